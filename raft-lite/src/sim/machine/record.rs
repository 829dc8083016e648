//! What a group is, as its log made it, and what each change makes of it.
//!
//! The rules of a merge: `Prepare` in the target's log bars other changes there;
//! `Freeze` in the source's log ends writes and reads; `Absorb` in the target's log is
//! valid only as long as its `Prepare` stands; `Cancel` takes that back, and also
//! raises the epoch if there is nothing to take back, so that a `Prepare` on its way is
//! out of date; `Unfreeze` does the same for a `Freeze`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    membership::{Membership, MembershipChange},
    sim::planted::{self, Bug},
    state_machine::Rejection,
    types::{GroupId, Index, NodeId, ReplicaId},
};

/// A part of the key space.
pub(in crate::sim) type Slot = u32;

/// The epoch of a group that no split made.
pub(in crate::sim) const FIRST_EPOCH: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sim) struct Record {
    pub(in crate::sim) membership: Membership,
    pub(in crate::sim) epoch: u64,
    pub(in crate::sim) slots: BTreeSet<Slot>,
    pub(in crate::sim) merge: Merge,
    /// The groups that it absorbed, and by which operation.
    pub(in crate::sim) absorbed: BTreeMap<GroupId, u64>,
    /// The slots it had when it was deleted, if it was.
    pub(in crate::sim) deleted: Option<BTreeSet<Slot>>,
}

/// A group's part in a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Merge {
    None,
    /// It is to absorb another group.
    Prepared {
        operation: u64,
    },
    /// It is to be absorbed.
    Frozen {
        operation: u64,
        target: GroupId,
        at: Index,
    },
}

/// A structural change.
#[derive(Clone, Debug)]
pub(in crate::sim) enum Change {
    Split { child: GroupId, slots: BTreeSet<Slot> },
    Prepare { operation: u64, nodes: BTreeSet<NodeId> },
    Freeze { operation: u64, target: GroupId, nodes: BTreeSet<NodeId> },
    Absorb { operation: u64, source: GroupId, source_epoch: u64, frozen_at: Index },
    Cancel { operation: u64 },
    Unfreeze { operation: u64 },
    Delete,
}

impl Record {
    pub(in crate::sim) fn new(membership: Membership, epoch: u64, slots: BTreeSet<Slot>) -> Self {
        let (merge, absorbed) = (Merge::None, BTreeMap::new());
        Record { membership, epoch, slots, merge, absorbed, deleted: None }
    }

    /// The record, as a person wants to see it.
    pub(in crate::sim) fn line(&self) -> String {
        let Record { epoch, slots, merge, absorbed, deleted, .. } = self;
        let absorbed: Vec<u64> = absorbed.keys().map(|group| group.0).collect();
        format!("at epoch {epoch}: {slots:?}, {merge:?}, absorbed {absorbed:?}, {deleted:?}")
    }

    /// The nodes with a replica.
    pub(in crate::sim) fn nodes(&self) -> BTreeSet<NodeId> {
        self.membership.members().into_values().collect()
    }

    /// Whether it can take part in a merge with another group on the same nodes.
    pub(in crate::sim) fn can_merge(&self) -> bool {
        self.is_free() && self.membership.learners.is_empty()
    }

    /// Whether nothing is under way that bars a change.
    pub(in crate::sim) fn is_free(&self) -> bool {
        self.merge == Merge::None && !self.membership.is_joint() && self.deleted.is_none()
    }

    pub(in crate::sim) fn is_frozen_by(&self, by: u64) -> bool {
        matches!(self.merge, Merge::Frozen { operation, .. } if operation == by)
    }

    /// Whether it waits to be absorbed by a group that says it has absorbed it.
    pub(in crate::sim) fn went_into(&self, own: GroupId, target: GroupId, after: &Record) -> bool {
        let Merge::Frozen { operation, target: into, .. } = self.merge else { return false };
        into == target && after.absorbed.get(&own) == Some(&operation)
    }

    /// The members of a group that is split off: the same nodes, all of them voters.
    pub(in crate::sim) fn child_membership(&self) -> Membership {
        let nodes: BTreeSet<NodeId> = self.membership.voters.values().copied().collect();
        Membership::of_voters((1..).map(ReplicaId).zip(nodes).collect())
    }

    /// After a change of members.
    pub(in crate::sim) fn with_members(
        &self,
        change: &MembershipChange,
    ) -> Result<Record, Rejection> {
        if self.merge != Merge::None {
            return Err(Rejection::Frozen);
        }
        let membership = self.membership.after(change).map_err(|_| Rejection::StaleEpoch)?;
        Ok(Record { membership, epoch: self.epoch + 1, ..self.clone() })
    }

    /// After a structural change at an index of its log; of an absorb without the
    /// slots that it brings.
    pub(in crate::sim) fn after(&self, change: &Change, at: Index) -> Result<Record, Rejection> {
        let mut after = Record { epoch: self.epoch + 1, ..self.clone() };
        let is_allowed = match change {
            Change::Split { slots, .. } => {
                after.slots = &self.slots - slots;
                self.is_free() && slots.is_subset(&self.slots) && !after.slots.is_empty()
            }
            Change::Prepare { operation, nodes } => {
                after.merge = Merge::Prepared { operation: *operation };
                self.can_merge() && self.nodes() == *nodes
            }
            Change::Freeze { operation, target, nodes } => {
                after.merge = Merge::Frozen { operation: *operation, target: *target, at };
                self.can_merge() && self.nodes() == *nodes
            }
            Change::Absorb { operation, source, source_epoch, .. } => {
                after.merge = Merge::None;
                after.absorbed.insert(*source, *operation);
                after.epoch = self.epoch.max(*source_epoch) + 1;
                self.merge == Merge::Prepared { operation: *operation }
                    || planted::is(Bug::AbsorbAfterCancel)
            }
            Change::Cancel { operation } => {
                if self.merge == (Merge::Prepared { operation: *operation }) {
                    after.merge = Merge::None;
                }
                !self.absorbed.values().any(|absorbed| absorbed == operation)
            }
            Change::Unfreeze { operation } => {
                after.merge = Merge::None;
                self.merge == Merge::None || self.is_frozen_by(*operation)
            }
            Change::Delete => {
                after.deleted = Some(std::mem::take(&mut after.slots));
                self.is_free()
            }
        };
        if is_allowed { Ok(after) } else { Err(Rejection::Frozen) }
    }
}
