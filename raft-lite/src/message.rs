//! Raft messages between replicas, in a schema of our own.
//!
//! `raft`'s messages are protobuf 2 and must not be parsed from network bytes
//! (RUSTSEC-2024-0437). These are parsed by prost; payloads are moved, not
//! copied, on the way in and out.

use bytes::Bytes;
use raft::eraftpb;

use crate::{
    snapshot::SnapshotMeta,
    types::{GroupId, HardState, INITIAL_POSITION, Index, ReplicaId, Term},
};

/// A message from one replica of a group to another.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftMessage {
    /// The group both replicas belong to.
    #[prost(uint64, tag = "1")]
    group: u64,
    /// `raft`'s number for the kind of message.
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    to: u64,
    #[prost(uint64, tag = "4")]
    from: u64,
    #[prost(uint64, tag = "5")]
    term: u64,
    #[prost(uint64, tag = "6")]
    log_term: u64,
    #[prost(uint64, tag = "7")]
    index: u64,
    #[prost(message, repeated, tag = "8")]
    entries: Vec<MessageEntry>,
    #[prost(uint64, tag = "9")]
    commit: u64,
    #[prost(uint64, tag = "10")]
    commit_term: u64,
    #[prost(bool, tag = "11")]
    reject: bool,
    #[prost(uint64, tag = "12")]
    reject_hint: u64,
    #[prost(bytes = "bytes", tag = "13")]
    context: Bytes,
    #[prost(int64, tag = "14")]
    priority: i64,
    /// Index up to which every replica's log holds the group's entries durably,
    /// as far as the sending leader knows: below it logs may be truncated.
    #[prost(uint64, tag = "15")]
    replicated_by_all: u64,
    /// From a leader: the number of this round of messages. From a follower: the
    /// newest round it has seen of the leader of this term. See `group/lease.rs`.
    #[prost(uint64, tag = "16")]
    round: u64,
    /// A snapshot's description ([`SnapshotMeta`]); its data travels apart.
    #[prost(bytes = "bytes", tag = "17")]
    snapshot: Bytes,
    /// Index of the snapshot that the sending follower is fetching or installing;
    /// 0 if it is not.
    #[prost(uint64, tag = "18")]
    installing: u64,
    /// From a leader: the group is to fall asleep. From a follower: it sleeps. See
    /// `group/quiescence.rs`.
    #[prost(bool, tag = "19")]
    asleep: bool,
}

/// The kind of message that tells a replica that it was removed from its group;
/// `raft` knows nothing of it.
const REMOVED: i32 = 1000;
/// The kind of message by which a replica asks whether it still is a member.
const INQUIRY: i32 = 1001;
/// The kind of message by which a node says that it is alive; of no group.
const SIGN_OF_LIFE: i32 = 1002;

/// What a message carries besides `raft`'s own fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) replicated_by_all: u64,
    pub(crate) round: u64,
    pub(crate) installing: u64,
    pub(crate) asleep: bool,
}

/// An entry within a [`RaftMessage`].
#[derive(Clone, PartialEq, prost::Message)]
struct MessageEntry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    context: Bytes,
}

/// Why a message from the network is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A number that stands for no kind of message or entry.
    #[error("unknown kind {0}")]
    UnknownKind(i32),
    /// A kind that never crosses the network.
    #[error("{0} is not a message between replicas")]
    NotForTheNetwork(&'static str),
    /// A message without a term, which `raft` takes for one of its own.
    #[error("it has no term")]
    NoTerm,
    /// A read that does not carry its context, and nothing else, as an entry.
    #[error("a read has {0} entries instead of one")]
    NotOneRead(usize),
    /// Entries that are not contiguous or do not follow the position claimed.
    #[error("entries do not follow index {0}")]
    EntriesNotContiguous(u64),
    /// A snapshot without a description, or with one that can not be read.
    #[error("it does not describe its snapshot")]
    NoSnapshot,
}

impl RaftMessage {
    pub(crate) fn from_raft(group: GroupId, message: eraftpb::Message, envelope: Envelope) -> Self {
        RaftMessage {
            group: group.0,
            kind: message.msg_type as i32,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.into_iter().map(MessageEntry::from).collect(),
            commit: message.commit,
            commit_term: message.commit_term,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context,
            priority: message.priority,
            replicated_by_all: envelope.replicated_by_all,
            round: envelope.round,
            snapshot: message.snapshot.into_option().map_or(Bytes::new(), |snapshot| snapshot.data),
            installing: envelope.installing,
            asleep: envelope.asleep,
        }
    }

    /// Says that a node is alive, which of its starts it is, and whether its disk is
    /// nearly full, so that it should be given no more than it must.
    pub(crate) fn sign_of_life(start: u64, disk_full: bool) -> Self {
        let kind = SIGN_OF_LIFE;
        RaftMessage { kind, round: start, reject: disk_full, ..Default::default() }
    }

    /// What a sign of life says: the start of its node, and whether its disk is nearly
    /// full.
    pub(crate) fn life(&self) -> Option<(u64, bool)> {
        (self.kind == SIGN_OF_LIFE).then_some((self.round, self.reject))
    }

    /// Tells replica `to` that it was removed from its group.
    pub(crate) fn removed(group: GroupId, from: ReplicaId, to: ReplicaId) -> Self {
        RaftMessage { group: group.0, kind: REMOVED, from: from.0, to: to.0, ..Default::default() }
    }

    /// Asks replica `to` to say so if the sender was removed.
    pub(crate) fn inquiry(group: GroupId, from: ReplicaId, to: ReplicaId) -> Self {
        RaftMessage { group: group.0, kind: INQUIRY, from: from.0, to: to.0, ..Default::default() }
    }

    /// Answers a leader in the name of a replica that is not there yet, or not in
    /// service: it is alive and holds nothing that could be relied on. `None` if the
    /// message asks for no answer.
    ///
    /// The answer confirms neither a read nor a round, and acknowledges no entry. To an
    /// append it says that the replica has an empty log, as one that a split makes will
    /// have; if the leader takes it for such a one already, that it has not even that, and
    /// needs a snapshot.
    pub(crate) fn answer_of_absent(&self, installing: u64) -> Option<Self> {
        use eraftpb::MessageType::{
            MsgAppend, MsgAppendResponse, MsgHeartbeat, MsgHeartbeatResponse,
        };
        let is = |kind: eraftpb::MessageType| self.kind == kind as i32;
        let mut answer = RaftMessage {
            group: self.group,
            to: self.from,
            from: self.to,
            term: self.term,
            installing,
            ..Default::default()
        };
        if is(MsgHeartbeat) {
            answer.kind = MsgHeartbeatResponse as i32;
        } else if is(MsgAppend) {
            answer.kind = MsgAppendResponse as i32;
            (answer.index, answer.reject) = (self.index, true);
            let empty = INITIAL_POSITION.index.0;
            answer.reject_hint = if self.index > empty { empty } else { 0 };
        } else {
            return None;
        }
        Some(answer)
    }

    /// Answers a request for a vote in the name of a replica that never was here and has
    /// voted as in `before`. Gives the answer, and how it has voted after it; `None` if
    /// the request is of a term that is over.
    pub(crate) fn vote_of_absent(&self, before: HardState) -> Option<(Self, HardState)> {
        use eraftpb::MessageType::{
            MsgRequestPreVote, MsgRequestPreVoteResponse, MsgRequestVoteResponse,
        };
        let is_pre_vote = self.kind == MsgRequestPreVote as i32;
        let is_newer = self.term() > before.term;
        if self.term() < before.term && !is_pre_vote {
            return None;
        }
        let vote = before.vote.filter(|_| !is_newer);
        let is_granted =
            self.term() >= before.term && vote.is_none_or(|candidate| candidate == self.from());
        let mut after = before;
        if !is_pre_vote {
            after.term = self.term();
            after.vote = if is_granted { Some(self.from()) } else { vote };
        }
        let kind = if is_pre_vote { MsgRequestPreVoteResponse } else { MsgRequestVoteResponse };
        let answer = RaftMessage {
            group: self.group,
            kind: kind as i32,
            to: self.from,
            from: self.to,
            // Who is refused learns of a term that it has not heard of.
            term: if is_granted { self.term } else { before.term.0.max(1) },
            reject: !is_granted,
            ..Default::default()
        };
        Some((answer, after))
    }

    /// Turns the message into `raft`'s, if it is one that `raft` can be given
    /// without harm.
    pub(crate) fn into_raft(self) -> Result<eraftpb::Message, InvalidMessage> {
        use eraftpb::MessageType::{MsgReadIndex, MsgReadIndexResp};
        let kind = network_kind(self.kind)?;
        // Reads travel as an entry without an index; questions without a term.
        let is_read = matches!(kind, MsgReadIndex | MsgReadIndexResp);
        if self.term == 0 && kind != MsgReadIndex {
            return Err(InvalidMessage::NoTerm);
        }
        if is_read && self.entries.len() != 1 {
            return Err(InvalidMessage::NotOneRead(self.entries.len()));
        }
        let mut message = eraftpb::Message {
            to: self.to,
            from: self.from,
            term: self.term,
            log_term: self.log_term,
            index: self.index,
            commit: self.commit,
            commit_term: self.commit_term,
            reject: self.reject,
            reject_hint: self.reject_hint,
            context: self.context,
            priority: self.priority,
            ..Default::default()
        };
        message.set_msg_type(kind);
        let mut previous = self.index;
        for entry in self.entries {
            if !is_read {
                if Some(entry.index) != previous.checked_add(1) {
                    return Err(InvalidMessage::EntriesNotContiguous(previous));
                }
                previous = entry.index;
            }
            message.entries.push(entry.into_raft()?);
        }
        if kind == eraftpb::MessageType::MsgSnapshot {
            let meta = SnapshotMeta::decode(self.snapshot).ok_or(InvalidMessage::NoSnapshot)?;
            message.set_snapshot(meta.to_raft());
        }
        Ok(message)
    }

    /// Whether it asks for a vote.
    pub(crate) fn asks_for_vote(&self) -> bool {
        use eraftpb::MessageType::{MsgRequestPreVote, MsgRequestVote};
        [MsgRequestVote as i32, MsgRequestPreVote as i32].contains(&self.kind)
    }

    /// Bytes the message takes up, roughly.
    pub fn size(&self) -> usize {
        let entries = self.entries.iter().map(|e| e.data.len() + e.context.len() + 32);
        64 + self.context.len() + self.snapshot.len() + entries.sum::<usize>()
    }

    /// The group the message belongs to.
    pub fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// The replica that sent it.
    pub fn from(&self) -> ReplicaId {
        ReplicaId(self.from)
    }

    /// The replica it is for.
    pub fn to(&self) -> ReplicaId {
        ReplicaId(self.to)
    }

    /// The sender's term.
    pub fn term(&self) -> Term {
        Term(self.term)
    }

    /// Whether the message has to keep its place among the group's appends, which
    /// can be large. All others may overtake them.
    pub fn is_append(&self) -> bool {
        self.kind == eraftpb::MessageType::MsgAppend as i32
    }

    /// Whether the message says that its receiver was removed from the group.
    pub(crate) fn is_removal(&self) -> bool {
        self.kind == REMOVED
    }

    /// Whether the message asks whether its sender still is a member.
    pub(crate) fn is_inquiry(&self) -> bool {
        self.kind == INQUIRY
    }

    /// Whether it appends to a log that ends at `index`.
    pub(crate) fn appends_after(&self, index: Index) -> bool {
        self.is_append() && self.index == index.0
    }

    /// Whether only a leader sends such a message.
    pub(crate) fn is_from_leader(&self) -> bool {
        use eraftpb::MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot};
        [MsgAppend, MsgHeartbeat, MsgSnapshot].into_iter().any(|kind| kind as i32 == self.kind)
    }

    /// The snapshot that the message offers, if it does.
    pub(crate) fn snapshot(&self) -> Option<SnapshotMeta> {
        let offers = self.kind == eraftpb::MessageType::MsgSnapshot as i32;
        offers.then(|| SnapshotMeta::decode(self.snapshot.clone())).flatten()
    }

    pub(crate) fn envelope(&self) -> Envelope {
        Envelope {
            replicated_by_all: self.replicated_by_all,
            round: self.round,
            installing: self.installing,
            asleep: self.asleep,
        }
    }
}

impl From<eraftpb::Entry> for MessageEntry {
    fn from(entry: eraftpb::Entry) -> Self {
        MessageEntry {
            kind: entry.entry_type as i32,
            term: entry.term,
            index: entry.index,
            data: entry.data,
            context: entry.context,
        }
    }
}

impl MessageEntry {
    fn into_raft(self) -> Result<eraftpb::Entry, InvalidMessage> {
        use eraftpb::EntryType;
        let kind = match self.kind {
            0 => EntryType::EntryNormal,
            2 => EntryType::EntryConfChangeV2,
            other => return Err(InvalidMessage::UnknownKind(other)),
        };
        let mut entry = eraftpb::Entry {
            term: self.term,
            index: self.index,
            data: self.data,
            context: self.context,
            ..Default::default()
        };
        entry.set_entry_type(kind);
        Ok(entry)
    }
}

/// The kinds of message that replicas send each other.
fn network_kind(kind: i32) -> Result<eraftpb::MessageType, InvalidMessage> {
    use eraftpb::MessageType::*;
    let kinds = [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgSnapshot,
        MsgTimeoutNow,
        MsgReadIndex,
        MsgReadIndexResp,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ];
    if let Some(found) = kinds.into_iter().find(|known| *known as i32 == kind) {
        return Ok(found);
    }
    for (known, name) in [(MsgHup, "MsgHup"), (MsgBeat, "MsgBeat"), (MsgPropose, "MsgPropose")] {
        if known as i32 == kind {
            return Err(InvalidMessage::NotForTheNetwork(name));
        }
    }
    Err(InvalidMessage::UnknownKind(kind))
}

#[cfg(test)]
mod tests;
