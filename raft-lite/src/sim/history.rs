//! What clients did and were told, checked for linearizability.
//!
//! A group's state is a function of the log index, so each operation has a place: a
//! write the index of its entry, a read the index of the state it saw. A history is
//! linearizable if and only if this order agrees with real time: an operation that
//! begins after another was answered comes after it (Herlihy and Wing, 1990).

use std::collections::BTreeMap;

use crate::types::{GroupId, Index, NodeId};

/// How a read was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By the leader within its lease.
    Lease,
    /// By the leader after asking the others.
    Leader,
    /// By a follower after asking the leader.
    Follower,
}

#[derive(Default)]
pub(super) struct History {
    /// Commands acknowledged, by group.
    pub(super) acknowledged: BTreeMap<GroupId, Vec<(u64, Index)>>,
    /// The highest place of an operation that was answered.
    answered: BTreeMap<GroupId, Index>,
    pub(super) reads: usize,
    pub(super) lease_reads: usize,
    pub(super) follower_reads: usize,
    /// Changes of members that took effect.
    pub(super) changes: usize,
    pub(super) refused: usize,
}

impl History {
    /// What an operation that begins now must come after.
    pub(super) fn begin(&self, group: GroupId) -> Index {
        self.answered.get(&group).copied().unwrap_or_default()
    }

    pub(super) fn wrote(&mut self, group: GroupId, began: Index, number: u64, index: Index) {
        assert!(
            index > began,
            "command {number} of group {group} took effect at index {index}, but began after an \
             operation at {began} was answered"
        );
        self.acknowledged.entry(group).or_default().push((number, index));
        self.answer(group, index);
    }

    pub(super) fn read(
        &mut self,
        group: GroupId,
        began: Index,
        node: NodeId,
        how: How,
        index: Index,
    ) {
        assert!(
            index >= began,
            "a read of group {group} at node {node} ({how:?}) saw index {index}, but began after \
             an operation at {began} was answered"
        );
        self.reads += 1;
        match how {
            How::Lease => self.lease_reads += 1,
            How::Follower => self.follower_reads += 1,
            How::Leader => {}
        }
        self.answer(group, index);
    }

    fn answer(&mut self, group: GroupId, index: Index) {
        let answered = self.answered.entry(group).or_default();
        *answered = (*answered).max(index);
    }
}
