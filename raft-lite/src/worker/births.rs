//! Replicas that start while the node runs: a split made them, or their group was
//! created. And those that go with an absorb.
//!
//! A split takes effect on one node before it does on another, so that messages come for
//! replicas that are not born yet. Votes that they are asked for are kept and given at
//! birth: the first election takes a round trip then. Appends to an empty log are not
//! answered for a while: if they were, the leader would have a snapshot made for a
//! replica that needs none.

use std::collections::BTreeMap;

use super::Worker;
use crate::{
    applier::Birth,
    clock::BootTime,
    log_store::{Durability, LogChange, LogState},
    message::RaftMessage,
    startup::first_hard_state,
    types::{GroupId, NodeId, ReplicaId},
};

/// Election timeouts after which a group that is not heard of is forgotten, and after
/// which a replica is not expected to be born any more, so that it votes without.
const TIMEOUTS_TO_FORGET: u32 = 4;
const TIMEOUTS_TO_VOTE: u32 = 2;

/// Groups without a replica here of which something is remembered.
const MOST_EXPECTED: usize = 1024;

/// What was heard of groups that have no replica here, and may come to have one.
#[derive(Default)]
pub(super) struct Expected {
    groups: BTreeMap<GroupId, Heard>,
}

struct Heard {
    first: BootTime,
    last: BootTime,
    /// The newest request for a vote, and when it came.
    vote: Option<(BootTime, NodeId, RaftMessage)>,
}

impl Expected {
    /// Something was heard of a group; `None` if there is no room to remember it.
    fn note(&mut self, group: GroupId, now: BootTime) -> Option<&mut Heard> {
        if self.groups.len() >= MOST_EXPECTED && !self.groups.contains_key(&group) {
            return None;
        }
        let new = Heard { first: now, last: now, vote: None };
        let heard = self.groups.entry(group).or_insert(new);
        heard.last = now;
        Some(heard)
    }

    /// Keeps a request for a vote, unless one of a later term is kept.
    pub(super) fn keep_vote(&mut self, from: NodeId, request: RaftMessage, now: BootTime) {
        let Some(heard) = self.note(request.group(), now) else { return };
        if heard.vote.as_ref().is_none_or(|(_, _, kept)| kept.term() <= request.term()) {
            heard.vote = Some((now, from, request));
        }
    }

    /// Whether votes were asked of a replica for so long that it will hardly be born.
    pub(super) fn is_overdue(&self, group: GroupId, now: BootTime, timeout: BootTime) -> bool {
        let heard = self.groups.get(&group);
        heard.is_some_and(|heard| now >= heard.first + timeout * TIMEOUTS_TO_VOTE)
    }

    /// A leader takes the replica for one with an empty log. Whether it can go on doing
    /// so for now, because the replica may be about to be born with one.
    pub(super) fn may_be_born(&mut self, group: GroupId, now: BootTime, timeout: BootTime) -> bool {
        self.note(group, now).is_some_and(|heard| now < heard.first + timeout)
    }

    /// Forgets what is too old to be of use.
    pub(super) fn forget(&mut self, now: BootTime, timeout: BootTime) {
        self.groups.retain(|_, heard| {
            // Whoever asked has given up by then.
            heard.vote.take_if(|(came, ..)| now >= *came + 2 * timeout);
            now < heard.last + timeout * TIMEOUTS_TO_FORGET
        });
    }

    /// The group has a replica now: the vote that it is asked for.
    fn take(&mut self, group: GroupId) -> Option<(NodeId, RaftMessage)> {
        let heard = self.groups.remove(&group)?;
        heard.vote.map(|(_, from, request)| (from, request))
    }
}

impl Worker {
    /// Starts a replica that is on record and never ran.
    pub(super) fn born(&mut self, birth: Birth) {
        let Birth { descriptor, leads_parent } = birth;
        let (id, replica) = (descriptor.group, descriptor.replica);
        let is_here = self.parts.registry.get(id).is_some() || self.absent.has(id);
        if is_here || self.is_gone(id, replica) {
            return;
        }
        let start = descriptor.record.applied;
        let hard_state = first_hard_state(start, self.ballot(id));
        if !self.write(id, LogChange::Create { start, hard_state }, Durability::Synced) {
            return;
        }
        let halted = descriptor.shared();
        let log = LogState { hard_state, start, last: start };
        if let Err(error) = self.add_group(descriptor, log) {
            halted.halt(error.to_string());
            return self.parts.registry.insert(halted.into());
        }
        let request = self.expected.take(id).filter(|(_, request)| request.to() == replica);
        let now = self.parts.clock.now();
        self.guarded(id, |group| {
            group.open_gate();
            if leads_parent && !group.is_leader() {
                group.campaign()?;
            }
            match request {
                Some((from, request)) => group.step(from, request, now),
                None => Ok(()),
            }
        });
    }

    /// Takes a replica out of service that went with an absorb.
    pub(super) fn gone(&mut self, id: GroupId, replica: ReplicaId) {
        if self.groups.get(&id).is_some_and(|slot| slot.group.shared.replica == replica) {
            return self.destroy(id, "its group was absorbed by another");
        }
        // One that is being given a snapshot is looked at once that has ended.
        let halted = self.parts.registry.get(id).filter(|shared| shared.replica == replica);
        if halted.is_some() && !self.groups.contains_key(&id) && !self.absent.has(id) {
            self.forget_replica(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raft::eraftpb;

    use super::*;
    use crate::message::Envelope;

    const TIMEOUT: BootTime = Duration::from_secs(1);

    fn request(group: u64, term: u64) -> RaftMessage {
        let mut message = eraftpb::Message { to: 2, from: 1, term, ..Default::default() };
        message.set_msg_type(eraftpb::MessageType::MsgRequestPreVote);
        RaftMessage::from_raft(GroupId(group), message, Envelope::default())
    }

    fn at(millis: u64) -> BootTime {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_newest_request_for_a_vote_is_kept_until_it_is_too_old() {
        let mut expected = Expected::default();
        for (term, millis) in [(6, 0), (8, 10), (7, 20), (8, 30)] {
            expected.keep_vote(NodeId(millis), request(1, term), at(millis));
        }
        expected.forget(at(2029), TIMEOUT);
        let (from, kept) = expected.take(GroupId(1)).unwrap();
        assert_eq!((from, kept.term().0), (NodeId(30), 8));
        assert_eq!(expected.take(GroupId(1)), None, "it is given once");

        expected.keep_vote(NodeId(1), request(1, 6), at(0));
        expected.forget(at(2000), TIMEOUT);
        assert_eq!(expected.take(GroupId(1)), None);
    }

    #[test]
    fn a_replica_is_expected_for_a_while_after_its_group_was_first_heard_of() {
        let (mut expected, group) = (Expected::default(), GroupId(1));
        expected.keep_vote(NodeId(1), request(1, 6), at(0));
        assert!(expected.may_be_born(group, at(900), TIMEOUT));
        assert!(!expected.may_be_born(group, at(1000), TIMEOUT));
        assert!(!expected.is_overdue(group, at(1900), TIMEOUT));
        expected.forget(at(4900), TIMEOUT);
        assert!(expected.is_overdue(group, at(2000), TIMEOUT));
        expected.forget(at(5000), TIMEOUT);
        assert!(!expected.is_overdue(group, at(5000), TIMEOUT));
    }

    #[test]
    fn what_is_kept_is_bounded_and_forgotten() {
        let mut expected = Expected::default();
        for group in 0..2 * MOST_EXPECTED as u64 {
            expected.keep_vote(NodeId(1), request(group, 6), at(0));
        }
        assert_eq!(expected.groups.len(), MOST_EXPECTED);
        let late = GroupId(MOST_EXPECTED as u64);
        assert!(!expected.may_be_born(late, at(0), TIMEOUT));
        expected.forget(at(4000), TIMEOUT);
        assert!(expected.groups.is_empty());
    }
}
