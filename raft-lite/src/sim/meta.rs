//! What the cluster's meta group would know: operations on groups, each with the step
//! it is at, and which groups are no more. Steps go one way, and only from where they
//! are, whoever asks and however late.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::machine::Slot;
use crate::types::{GroupId, Index, NodeId};

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Of a merge: the target is to bar other changes.
    Prepare,
    /// The source is to end writes and reads.
    Freeze,
    /// Every replica of the source is to say that it has.
    Gather,
    /// The target is to absorb the source.
    Absorb,
    /// The target is to forget of it: the merge is rolled back.
    Cancel,
    /// The source is to go on.
    Unfreeze,
    /// What is left of the source is to go.
    CleanUp,
    /// Of a deletion: the group is to give up its slots.
    Delete,
    /// Another group is to have its slots, and its replicas are to go.
    Create,
    Done,
}

#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) step: Step,
    pub(super) began: Duration,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Merge(Merge),
    Delete(Delete),
}

#[derive(Clone, Debug)]
pub(super) struct Merge {
    pub(super) source: GroupId,
    pub(super) target: GroupId,
    /// The nodes with replicas of both.
    pub(super) nodes: BTreeSet<NodeId>,
    /// The target's epoch at which it is to be prepared, and the source's at which it
    /// is to be frozen: neither can happen any more once the epoch is another.
    pub(super) prepare_epoch: u64,
    pub(super) freeze_epoch: u64,
    /// Where the source's log has its freeze.
    pub(super) frozen_at: Index,
    /// The nodes whose replica of the source has it on disk.
    pub(super) frozen_on: BTreeSet<NodeId>,
    /// The target absorbed the source.
    pub(super) is_absorbed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Delete {
    pub(super) group: GroupId,
    /// The group that has its slots afterwards, and where.
    pub(super) successor: GroupId,
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) slots: BTreeSet<Slot>,
}

impl Operation {
    /// The groups that it is about.
    fn groups(&self) -> [GroupId; 2] {
        match &self.kind {
            Kind::Merge(merge) => [merge.source, merge.target],
            Kind::Delete(delete) => [delete.group, delete.successor],
        }
    }

    pub(super) fn merge(&self) -> Option<&Merge> {
        match &self.kind {
            Kind::Merge(merge) => Some(merge),
            Kind::Delete(_) => None,
        }
    }
}

#[derive(Default)]
pub(super) struct Meta {
    pub(super) operations: BTreeMap<u64, Operation>,
    next_group: u64,
}

impl Meta {
    pub(super) fn new(groups: u64) -> Self {
        Meta { next_group: groups + 1, ..Default::default() }
    }

    pub(super) fn new_group(&mut self) -> GroupId {
        self.next_group += 1;
        GroupId(self.next_group - 1)
    }

    /// Begins an operation, unless one is under way on a group of its.
    pub(super) fn begin(&mut self, kind: Kind, step: Step, began: Duration) {
        let id = self.operations.len() as u64 + 1;
        let operation = Operation { id, kind, step, began };
        let groups = operation.groups();
        let is_busy = |other: &Operation| {
            other.step != Step::Done && other.groups().iter().any(|group| groups.contains(group))
        };
        if !self.operations.values().any(is_busy) {
            self.operations.insert(id, operation);
        }
    }

    /// Takes an operation from one step to the next, with what was learnt in it.
    /// Nothing happens if it is not at that step.
    pub(super) fn advance(
        &mut self,
        id: u64,
        (from, to): (Step, Step),
        learn: impl FnOnce(&mut Kind),
    ) {
        if let Some(operation) = self.operations.get_mut(&id)
            && operation.step == from
        {
            learn(&mut operation.kind);
            operation.step = to;
        }
    }

    /// Groups there are or were, or were meant to be.
    pub(super) fn groups(&self) -> u64 {
        self.next_group - 1
    }

    /// Operations that are under way.
    pub(super) fn open(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values().filter(|operation| operation.step != Step::Done)
    }

    /// The operation by which a group came to its end, if it did.
    pub(super) fn end_of(&self, group: GroupId) -> Option<&Operation> {
        self.operations.values().find(|operation| match &operation.kind {
            Kind::Merge(merge) => merge.source == group && merge.is_absorbed,
            Kind::Delete(delete) => {
                delete.group == group && matches!(operation.step, Step::Create | Step::Done)
            }
        })
    }
}
