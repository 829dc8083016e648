//! Who belongs to a group, and how that changes.
//!
//! A change of voters goes through a joint configuration, in which both the old
//! and the new voters must agree, and which is left by a second entry. A single
//! change of learners, who count for nothing, needs no detour. New replicas come
//! in as learners only: a voter that does not hold the log would weaken its group.
//!
//! The rules are in [`Membership::after`], which the state machine and the
//! consensus core both go by.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

use crate::types::{NodeId, ReplicaId};

/// The replicas of a group and the nodes they live on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those whose majority decides.
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// Those whose majority must agree as well, while the group is joint; empty
    /// otherwise.
    pub outgoing: BTreeMap<ReplicaId, NodeId>,
    /// Those who only follow.
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// The id that the next new replica gets: all below were given.
    pub next_replica: ReplicaId,
}

/// A change of a group's members; without any it leaves the joint configuration.
#[derive(Clone, PartialEq, Message)]
pub struct MembershipChange {
    /// Learners to add.
    #[prost(message, repeated, tag = "1")]
    pub add: Vec<NewReplica>,
    /// Learners to make voters.
    #[prost(uint64, repeated, tag = "2")]
    pub promote: Vec<u64>,
    /// Voters and learners to remove.
    #[prost(uint64, repeated, tag = "3")]
    pub remove: Vec<u64>,
}

/// A replica to be.
#[derive(Clone, PartialEq, Message)]
pub struct NewReplica {
    /// Its id: the group's next.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    /// The node it shall live on.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// What the state machine wants to know of it, for example the node's name.
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// Why a change of members is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Another change comes first.
    #[error("an earlier change of its members is not finished")]
    Joint,
    /// There is no joint configuration to leave.
    #[error("it asks for nothing")]
    Nothing,
    /// New replicas are numbered in turn.
    #[error("replica {0} is not the next one")]
    NotNext(ReplicaId),
    /// A node holds one replica of a group at most.
    #[error("the node has a replica already, {0}")]
    NodeTaken(ReplicaId),
    /// Only learners are promoted.
    #[error("replica {0} is no learner")]
    NoLearner(ReplicaId),
    /// Only members are removed.
    #[error("replica {0} is no member")]
    NoMember(ReplicaId),
    /// A group needs a voter.
    #[error("no voter would be left")]
    NoVoterLeft,
}

impl MembershipChange {
    /// Leaves the joint configuration.
    pub fn leave_joint() -> Self {
        Self::default()
    }

    fn is_leave(&self) -> bool {
        self.add.is_empty() && self.promote.is_empty() && self.remove.is_empty()
    }

    fn promoted(&self) -> impl Iterator<Item = ReplicaId> {
        self.promote.iter().copied().map(ReplicaId)
    }

    fn removed(&self) -> impl Iterator<Item = ReplicaId> {
        self.remove.iter().copied().map(ReplicaId)
    }
}

impl Membership {
    /// A group's first members, all of them voters.
    pub fn of_voters(voters: BTreeMap<ReplicaId, NodeId>) -> Self {
        let last = voters.last_key_value().map_or(0, |(replica, _)| replica.0);
        Membership { voters, next_replica: ReplicaId(last + 1), ..Default::default() }
    }

    /// Whether a change of voters is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// All members and their nodes, each once.
    pub fn members(&self) -> BTreeMap<ReplicaId, NodeId> {
        let all = self.voters.iter().chain(&self.outgoing).chain(&self.learners);
        all.map(|(replica, node)| (*replica, *node)).collect()
    }

    /// The node of a member.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        let parts = [&self.voters, &self.outgoing, &self.learners];
        parts.into_iter().find_map(|part| part.get(&replica)).copied()
    }

    /// The replica that a node has.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.members().into_iter().find(|(_, on)| *on == node).map(|(replica, _)| replica)
    }

    /// Whether the replica was a member once and is none any more.
    pub fn was_removed(&self, replica: ReplicaId) -> bool {
        replica < self.next_replica && self.node_of(replica).is_none()
    }

    /// Whether no vote but this replica's own counts.
    pub fn is_sole_voter(&self, replica: ReplicaId) -> bool {
        self.voters.len() == 1 && self.voters.contains_key(&replica) && !self.is_joint()
    }

    /// The halves whose majorities must agree: one, or two while joint.
    pub(crate) fn halves(&self) -> impl Iterator<Item = &BTreeMap<ReplicaId, NodeId>> {
        [&self.voters, &self.outgoing].into_iter().filter(|half| !half.is_empty())
    }

    /// The members after a change.
    ///
    /// # Errors
    /// If the change breaks a rule; nothing changes then.
    pub fn after(&self, change: &MembershipChange) -> Result<Self, MembershipError> {
        if change.is_leave() {
            if !self.is_joint() {
                return Err(MembershipError::Nothing);
            }
            return Ok(Membership { outgoing: BTreeMap::new(), ..self.clone() });
        }
        if self.is_joint() {
            return Err(MembershipError::Joint);
        }
        let mut after = self.clone();
        for new in &change.add {
            let (replica, node) = (ReplicaId(new.replica), NodeId(new.node));
            if replica != after.next_replica {
                return Err(MembershipError::NotNext(replica));
            }
            if let Some(taken) = after.replica_on(node) {
                return Err(MembershipError::NodeTaken(taken));
            }
            after.next_replica = ReplicaId(replica.0 + 1);
            after.learners.insert(replica, node);
        }
        for replica in change.promoted() {
            if !self.learners.contains_key(&replica) {
                return Err(MembershipError::NoLearner(replica));
            }
            let node =
                after.learners.remove(&replica).ok_or(MembershipError::NoLearner(replica))?;
            after.voters.insert(replica, node);
        }
        for replica in change.removed() {
            let was_member = self.node_of(replica).is_some();
            let removed = after.voters.remove(&replica).or(after.learners.remove(&replica));
            if !was_member || removed.is_none() {
                return Err(MembershipError::NoMember(replica));
            }
        }
        if after.voters.is_empty() {
            return Err(MembershipError::NoVoterLeft);
        }
        if self.is_two_step(change) {
            after.outgoing = self.voters.clone();
        }
        Ok(after)
    }

    /// Whether the change goes through a joint configuration: unless it is that of
    /// a single learner.
    fn is_two_step(&self, change: &MembershipChange) -> bool {
        let count = change.add.len() + change.promote.len() + change.remove.len();
        let touches_voters = !change.promote.is_empty()
            || change.removed().any(|replica| self.voters.contains_key(&replica));
        touches_voters || count > 1
    }

    /// The change as `raft` takes it.
    pub(crate) fn to_raft(&self, change: &MembershipChange) -> ConfChangeV2 {
        let single = |kind: ConfChangeType, replica: u64| {
            let mut single = ConfChangeSingle { node_id: replica, ..Default::default() };
            single.set_change_type(kind);
            single
        };
        let added =
            change.add.iter().map(|new| single(ConfChangeType::AddLearnerNode, new.replica));
        let promoted = change.promote.iter().map(|id| single(ConfChangeType::AddNode, *id));
        let removed = change.remove.iter().map(|id| single(ConfChangeType::RemoveNode, *id));
        let mut raft = ConfChangeV2 {
            changes: added.chain(promoted).chain(removed).collect::<Vec<_>>().into(),
            ..Default::default()
        };
        if self.is_two_step(change) && !change.is_leave() {
            raft.set_transition(ConfChangeTransition::Explicit);
        }
        raft
    }

    /// The members as `raft` knows them.
    pub(crate) fn conf_state(&self) -> ConfState {
        let ids = |part: &BTreeMap<ReplicaId, NodeId>| part.keys().map(|id| id.0).collect();
        ConfState {
            voters: ids(&self.voters),
            voters_outgoing: ids(&self.outgoing),
            learners: ids(&self.learners),
            ..Default::default()
        }
    }

    /// Whether `raft` knows the same members.
    pub(crate) fn is_conf_state(&self, state: &ConfState) -> bool {
        let same = |ids: &[u64], part: &BTreeMap<ReplicaId, NodeId>| {
            let ids: BTreeSet<u64> = ids.iter().copied().collect();
            ids.into_iter().eq(part.keys().map(|id| id.0))
        };
        same(&state.voters, &self.voters)
            && same(&state.voters_outgoing, &self.outgoing)
            && same(&state.learners, &self.learners)
            && state.learners_next.is_empty()
    }
}

/// [`Membership`] as it is sent and stored.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireMembership {
    #[prost(message, repeated, tag = "1")]
    voters: Vec<WireMember>,
    #[prost(message, repeated, tag = "2")]
    outgoing: Vec<WireMember>,
    #[prost(message, repeated, tag = "3")]
    learners: Vec<WireMember>,
    #[prost(uint64, tag = "4")]
    next_replica: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireMember {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
}

impl From<&Membership> for WireMembership {
    fn from(membership: &Membership) -> Self {
        let part = |part: &BTreeMap<ReplicaId, NodeId>| -> Vec<WireMember> {
            let member = |(replica, node): (&ReplicaId, &NodeId)| WireMember {
                replica: replica.0,
                node: node.0,
            };
            part.iter().map(member).collect()
        };
        WireMembership {
            voters: part(&membership.voters),
            outgoing: part(&membership.outgoing),
            learners: part(&membership.learners),
            next_replica: membership.next_replica.0,
        }
    }
}

impl From<WireMembership> for Membership {
    fn from(wire: WireMembership) -> Self {
        let part = |part: Vec<WireMember>| {
            part.into_iter().map(|m| (ReplicaId(m.replica), NodeId(m.node))).collect()
        };
        Membership {
            voters: part(wire.voters),
            outgoing: part(wire.outgoing),
            learners: part(wire.learners),
            next_replica: ReplicaId(wire.next_replica),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Membership {
        Membership::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id * 10))).collect())
    }

    fn add(replica: u64, node: u64) -> MembershipChange {
        let new = NewReplica { replica, node, context: Bytes::new() };
        MembershipChange { add: vec![new], ..Default::default() }
    }

    fn swap(promote: &[u64], remove: &[u64]) -> MembershipChange {
        MembershipChange { add: vec![], promote: promote.to_vec(), remove: remove.to_vec() }
    }

    #[test]
    fn a_learner_comes_in_one_step_and_becomes_a_voter_in_two() {
        let with_learner = three().after(&add(4, 40)).unwrap();
        assert!(!with_learner.is_joint());
        assert_eq!(with_learner.learners, BTreeMap::from([(ReplicaId(4), NodeId(40))]));
        let joint = with_learner.after(&swap(&[4], &[1])).unwrap();
        assert_eq!(joint.outgoing, three().voters);
        assert_eq!(joint.voters.keys().map(|id| id.0).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(joint.halves().count(), 2);
        let left = joint.after(&MembershipChange::leave_joint()).unwrap();
        assert!(!left.is_joint() && left.was_removed(ReplicaId(1)));
        assert!(!left.was_removed(ReplicaId(5)), "it was never there");
    }

    #[test]
    fn the_consensus_core_comes_to_the_same_members() {
        let mut membership = three();
        let changes = [
            add(4, 40),
            swap(&[4], &[1]),
            swap(&[], &[]),
            add(5, 50),
            swap(&[], &[5]),
            add(6, 60),
            swap(&[6], &[2, 3]),
            swap(&[], &[]),
        ];
        let storage = raft::storage::MemStorage::new_with_conf_state(membership.conf_state());
        let config = raft::Config { id: 9, ..Default::default() };
        let mut core = raft::RawNode::new(&config, storage, &crate::logger::logger()).unwrap();
        for change in changes {
            let state = core.apply_conf_change(&membership.to_raft(&change)).unwrap();
            membership = membership.after(&change).unwrap();
            assert!(membership.is_conf_state(&state), "{change:?}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        use MembershipError::*;
        let group = three().after(&add(4, 40)).unwrap();
        let refused = |change| group.after(&change).unwrap_err();
        assert_eq!(refused(add(4, 50)), NotNext(ReplicaId(4)));
        assert_eq!(refused(add(5, 20)), NodeTaken(ReplicaId(2)));
        assert_eq!(refused(swap(&[1], &[])), NoLearner(ReplicaId(1)));
        assert_eq!(refused(swap(&[4, 4], &[])), NoLearner(ReplicaId(4)));
        assert_eq!(refused(swap(&[], &[9])), NoMember(ReplicaId(9)));
        assert_eq!(refused(swap(&[], &[1, 2, 3])), NoVoterLeft);
        assert_eq!(refused(swap(&[], &[])), Nothing);
        let joint = group.after(&swap(&[4], &[])).unwrap();
        assert_eq!(joint.after(&add(5, 50)), Err(Joint));
    }

    #[test]
    fn members_survive_the_wire() {
        let joint = three().after(&add(4, 40)).unwrap().after(&swap(&[4], &[2])).unwrap();
        let bytes = WireMembership::from(&joint).encode_to_vec();
        assert_eq!(Membership::from(WireMembership::decode(bytes.as_slice()).unwrap()), joint);
    }
}
