//! What crosses the network, whole and damaged, and the answers given for others.

use prost::Message;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const ENVELOPE: Envelope = Envelope { replicated_by_all: 8, round: 9, installing: 3, asleep: true };

fn append() -> eraftpb::Message {
    let mut message = eraftpb::Message {
        to: 2,
        from: 1,
        term: 7,
        log_term: 6,
        index: 10,
        commit: 9,
        ..Default::default()
    };
    message.set_msg_type(eraftpb::MessageType::MsgAppend);
    for index in [11, 12] {
        message.entries.push(eraftpb::Entry {
            term: 7,
            index,
            data: Bytes::from_static(b"data"),
            ..Default::default()
        });
    }
    message
}

#[test]
fn a_message_survives_the_wire() {
    let sent = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE);
    let received = RaftMessage::decode(sent.encode_to_vec().as_slice()).unwrap();
    assert_eq!(received.group(), GroupId(4));
    assert_eq!(received.envelope(), ENVELOPE);
    assert_eq!(received.into_raft().unwrap(), append());
}

#[test]
fn a_replica_that_is_not_here_votes_once_in_a_term() {
    use eraftpb::MessageType::{MsgRequestPreVote, MsgRequestVote};
    let request = |kind: eraftpb::MessageType, from, term| RaftMessage {
        kind: kind as i32,
        from,
        to: 9,
        term,
        ..Default::default()
    };
    // Gives the answer's term and whether it is a yes.
    let vote = |kind, from, term, before: &mut HardState| {
        let (answer, after) = request(kind, from, term).vote_of_absent(*before)?;
        *before = after;
        assert_eq!((answer.to, answer.from), (from, 9));
        Some((answer.term, !answer.reject))
    };
    let mut ballot = HardState::default();
    assert_eq!(vote(MsgRequestPreVote, 1, 7, &mut ballot), Some((7, true)));
    assert_eq!(ballot, HardState::default(), "a pre-vote binds nobody");
    assert_eq!(vote(MsgRequestVote, 1, 7, &mut ballot), Some((7, true)));
    assert_eq!(vote(MsgRequestVote, 2, 7, &mut ballot), Some((7, false)));
    assert_eq!(vote(MsgRequestVote, 1, 7, &mut ballot), Some((7, true)), "it may be lost");
    assert_eq!(vote(MsgRequestPreVote, 2, 6, &mut ballot), Some((7, false)));
    assert_eq!(vote(MsgRequestVote, 2, 6, &mut ballot), None);
    assert_eq!(vote(MsgRequestPreVote, 2, 8, &mut ballot), Some((8, true)));
    assert_eq!(vote(MsgRequestVote, 2, 8, &mut ballot), Some((8, true)));
    assert_eq!((ballot.term, ballot.vote), (Term(8), Some(ReplicaId(2))));
}

#[test]
fn damaged_messages_are_refused_or_harmless() {
    let mut rng = SmallRng::seed_from_u64(1);
    let sent = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE).encode_to_vec();
    for _ in 0..20_000 {
        let mut bytes = sent.clone();
        for _ in 0..rng.random_range(1..4) {
            let place = rng.random_range(0..bytes.len());
            bytes[place] = rng.random();
        }
        bytes.truncate(rng.random_range(0..=bytes.len()));
        let Ok(message) = RaftMessage::decode(bytes.as_slice()) else { continue };
        if let Ok(message) = message.into_raft() {
            let first = message.index + 1;
            let contiguous =
                message.entries.iter().zip(first..).all(|(entry, index)| entry.index == index);
            assert!(contiguous || message.get_msg_type() != eraftpb::MessageType::MsgAppend);
        }
    }
}

#[test]
fn messages_that_would_harm_raft_are_refused() {
    let mut local = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE);
    local.kind = eraftpb::MessageType::MsgHup as i32;
    assert_eq!(local.into_raft(), Err(InvalidMessage::NotForTheNetwork("MsgHup")));

    let mut unknown = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE);
    unknown.kind = 99;
    assert_eq!(unknown.into_raft(), Err(InvalidMessage::UnknownKind(99)));

    let mut termless = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE);
    termless.term = 0;
    assert_eq!(termless.into_raft(), Err(InvalidMessage::NoTerm));

    let mut read = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE);
    read.kind = eraftpb::MessageType::MsgReadIndex as i32;
    assert_eq!(read.into_raft(), Err(InvalidMessage::NotOneRead(2)));

    let mut gap = RaftMessage::from_raft(GroupId(4), append(), ENVELOPE);
    gap.entries[1].index = 13;
    assert_eq!(gap.into_raft(), Err(InvalidMessage::EntriesNotContiguous(11)));
}
