//! What clients did and were told, checked for linearizability.
//!
//! What a slot holds is a list of writes, whichever groups own it, so each operation has
//! a place: a write its own in the list, a read the end of the list that it saw. A
//! history is linearizable if and only if this order agrees with real time: an operation
//! that begins after another was answered comes after it (Herlihy and Wing, 1990).

use std::collections::BTreeMap;

use super::machine::{Place, Slot};
use crate::types::{GroupId, NodeId};

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

/// An operation of a client: of which slot, through which group and node, and what it
/// must come after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) slot: Slot,
    pub(super) group: GroupId,
    pub(super) node: NodeId,
    began: Place,
}

#[derive(Default)]
pub(super) struct History {
    /// Commands acknowledged, by slot.
    pub(super) acknowledged: BTreeMap<Slot, Vec<(u64, Place)>>,
    /// The highest place of an operation that was answered.
    answered: BTreeMap<Slot, Place>,
    pub(super) reads: usize,
    pub(super) lease_reads: usize,
    pub(super) follower_reads: usize,
    /// Changes of members that took effect.
    pub(super) changes: usize,
    pub(super) refused: usize,
    /// Commands that found their group without the slot, or frozen.
    pub(super) rejected: usize,
}

impl History {
    /// An operation begins now.
    pub(super) fn begin(&self, slot: Slot, group: GroupId, node: NodeId) -> Operation {
        let began = self.answered.get(&slot).copied().unwrap_or_default();
        Operation { slot, group, node, began }
    }

    pub(super) fn wrote(&mut self, operation: Operation, number: u64, place: Place) {
        assert!(
            place > operation.began,
            "command {number} took effect at {place:?}, but began after an operation at a later \
             place was answered: {operation:?}"
        );
        self.acknowledged.entry(operation.slot).or_default().push((number, place));
        self.answer(operation.slot, place);
    }

    pub(super) fn read(&mut self, operation: Operation, how: How, place: Place) {
        assert!(
            place >= operation.began,
            "a read ({how:?}) saw {place:?}, but began after an operation at a later place was \
             answered: {operation:?}"
        );
        self.reads += 1;
        match how {
            How::Lease => self.lease_reads += 1,
            How::Follower => self.follower_reads += 1,
            How::Leader => {}
        }
        self.answer(operation.slot, place);
    }

    fn answer(&mut self, slot: Slot, place: Place) {
        let answered = self.answered.entry(slot).or_default();
        *answered = (*answered).max(place);
    }
}
