//! What a node's disk holds, or will: the replicas' records, and the data of the slots,
//! which belongs to whoever owns the slot. So it stays where it is when a slot changes
//! hands, and must be wiped when a slot leaves the node.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, rngs::SmallRng};

use super::{
    Applied, Snapshot,
    record::{Change, Record, Slot},
};
use crate::{
    config::GroupDescriptor,
    sim::planted::{self, Bug},
    startup::ReplicaRecord,
    state_machine::{Effects, SnapshotReply},
    types::{GroupId, INITIAL_POSITION, Index, LogPosition, NodeId, ReplicaId},
};

/// How far a slot's data has come: which time it was created, and how many writes it
/// has had since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) struct Place {
    pub(in crate::sim) generation: u64,
    pub(in crate::sim) writes: usize,
}

/// A slot's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::sim) struct Content {
    pub(in crate::sim) generation: u64,
    /// The number of each command, and the log that it was in.
    pub(in crate::sim) writes: Vec<(u64, GroupId, Index)>,
}

impl Content {
    pub(in crate::sim) fn place(&self) -> Place {
        Place { generation: self.generation, writes: self.writes.len() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) record: Record,
    /// The record that this replica began with.
    pub(super) first: Record,
    pub(super) applied: Vec<Applied>,
    /// How much of the list is on disk.
    pub(super) persisted: usize,
    pub(super) started: bool,
    /// Where a snapshot was installed.
    pub(super) installed: Option<LogPosition>,
}

impl Replica {
    /// A replica that never ran.
    pub(super) fn new(id: ReplicaId, record: Record) -> Self {
        Replica {
            id,
            first: record.clone(),
            record,
            applied: Vec::new(),
            persisted: 0,
            started: false,
            installed: None,
        }
    }

    pub(super) fn position(&self) -> LogPosition {
        self.applied.last().map_or(INITIAL_POSITION, |(position, _)| *position)
    }

    pub(super) fn descriptor(&self, group: GroupId) -> GroupDescriptor {
        let applied = self.position();
        GroupDescriptor {
            group,
            replica: self.id,
            membership: self.record.membership.clone(),
            epoch: self.record.epoch,
            record: ReplicaRecord {
                applied,
                started: self.started,
                applied_by_snapshot: self.installed == Some(applied),
            },
        }
    }
}

/// Something that invariants look at.
#[derive(Clone, Debug)]
pub(in crate::sim) enum Event {
    /// A command took effect.
    Wrote(Slot, Place, u64),
    /// A structural change took effect.
    Changed(GroupId, Index, Change),
    /// A replica went with a snapshot of the group that had absorbed its own.
    WentWithSnapshot,
    /// A replica was destroyed, other than by an absorb; what it was.
    Destroyed(GroupId, Record),
}

/// A change that a group allows, about to take effect on a node.
pub(super) struct Allowed<'a> {
    pub(super) node: NodeId,
    pub(super) group: GroupId,
    pub(super) change: &'a Change,
    /// Where it is in the group's log.
    pub(super) at: Index,
    /// What it makes of the group.
    pub(super) after: Record,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) replicas: BTreeMap<GroupId, Replica>,
    pub(super) data: BTreeMap<Slot, Content>,
    pub(super) destroyed: BTreeMap<GroupId, ReplicaId>,
    /// How many snapshots were installed.
    pub(super) installed: u64,
    /// How many were made and not released.
    pub(super) held: u64,
    /// Snapshots asked for and not made yet.
    pub(super) wanted: Vec<(GroupId, SnapshotReply)>,
    pub(super) events: Vec<Event>,
    /// How often a replica came or went, or a slot changed hands.
    pub(super) version: u64,
}

impl State {
    /// Whether another replica than that of `group` owns a slot.
    pub(super) fn is_owned_beside(&self, group: GroupId, slot: Slot) -> bool {
        let mut others = self.replicas.iter().filter(|(other, _)| **other != group);
        others.any(|(_, replica)| replica.record.slots.contains(&slot))
    }

    /// Removes the data of slots that a group lost, unless another owns them.
    fn wipe(&mut self, group: GroupId, slots: &BTreeSet<Slot>) {
        for slot in slots {
            if !self.is_owned_beside(group, *slot) {
                self.data.remove(slot);
            }
        }
    }

    /// Takes a replica off the record, for ever.
    fn bury(&mut self, group: GroupId) -> Option<Replica> {
        let replica = self.replicas.remove(&group)?;
        self.version += 1;
        self.note_destroyed(group, replica.id);
        Some(replica)
    }

    fn note_destroyed(&mut self, group: GroupId, id: ReplicaId) {
        let last = self.destroyed.entry(group).or_insert(id);
        *last = (*last).max(id);
    }

    /// Removes a replica with its data.
    pub(super) fn destroy(&mut self, group: GroupId, id: ReplicaId) {
        self.note_destroyed(group, id);
        if self.replicas.get(&group).is_some_and(|replica| replica.id == id)
            && let Some(replica) = self.bury(group)
        {
            self.wipe(group, &replica.record.slots);
            self.events.push(Event::Destroyed(group, replica.record));
        }
    }

    /// Loses a random part of what was not on disk.
    pub(super) fn crash(&mut self, rng: &mut SmallRng) {
        self.version += 1;
        self.wanted.clear();
        self.held = 0;
        for (group, replica) in &mut self.replicas {
            let kept = rng.random_range(replica.persisted..=replica.applied.len());
            let ahead = replica.applied.get(kept).cloned();
            replica.applied.truncate(kept);
            replica.persisted = kept;
            let end = replica.position().index;
            for slot in &replica.record.slots {
                let writes = &mut self.data.entry(*slot).or_default().writes;
                while writes.pop_if(|(_, by, at)| by == group && *at > end).is_some() {}
            }
            if let Some(lost) = ahead
                && planted::is(Bug::AppliedAheadOfData)
            {
                // Its position reached the disk and its data did not.
                replica.applied.push((lost.0, Vec::new()));
            }
            if planted::is(Bug::OldMembershipAfterRestart) {
                replica.record.membership = replica.first.membership.clone();
                replica.record.epoch = replica.first.epoch;
            }
        }
    }

    /// A change that its group allows takes effect on this node.
    pub(super) fn take_effect(&mut self, allowed: Allowed<'_>, effects: &mut Effects) {
        let Allowed { node, group, change, at, mut after } = allowed;
        match change {
            Change::Split { child, slots } => {
                let membership = after.child_membership();
                let record = Record::new(membership, after.epoch, slots.clone());
                self.put(group, after);
                self.bear(node, *child, record, effects);
            }
            Change::Absorb { operation, source, frozen_at, .. } => {
                let replica = self.bury(*source);
                let replica = replica.unwrap_or_else(|| {
                    panic!(
                        "node {node} has no replica of group {source} that group {group} absorbs"
                    )
                });
                assert!(
                    replica.record.is_frozen_by(*operation)
                        && replica.position().index >= *frozen_at,
                    "group {group} absorbs group {source}, which is not frozen: {replica:?}"
                );
                after.slots.extend(replica.record.slots);
                self.put(group, after);
                effects.gone.push((*source, replica.id));
            }
            Change::Delete => {
                let slots = after.deleted.clone().unwrap_or_default();
                self.put(group, after);
                self.wipe(group, &slots);
            }
            Change::Prepare { .. }
            | Change::Freeze { .. }
            | Change::Cancel { .. }
            | Change::Unfreeze { .. } => self.put(group, after),
        }
        self.events.push(Event::Changed(group, at, change.clone()));
    }

    fn put(&mut self, group: GroupId, record: Record) {
        self.version += 1;
        self.replicas.get_mut(&group).unwrap().record = record;
    }

    /// A split takes effect on this node: the new group has a replica here, or its
    /// slots leave the node. It may have had one before, or have one already that came by
    /// a snapshot from after the group gave its slots away.
    fn bear(&mut self, node: NodeId, child: GroupId, record: Record, effects: &mut Effects) {
        let id = record.membership.replica_on(node);
        let is_here = self.replicas.contains_key(&child);
        let is_news = |id: &ReplicaId| self.destroyed.get(&child).is_none_or(|last| last < id);
        let id = id.filter(|id| !is_here && is_news(id));
        let Some(id) = id else { return self.wipe(child, &record.slots) };
        let replica = Replica::new(id, record);
        effects.born.push(replica.descriptor(child));
        self.replicas.insert(child, replica);
    }

    /// Whether a snapshot of a group covers nothing that another replica here owns, but
    /// what goes with it.
    pub(super) fn admits(&self, group: GroupId, snapshot: &Snapshot) -> bool {
        self.replicas.iter().all(|(other, replica)| {
            *other == group
                || replica.record.slots.is_disjoint(&snapshot.record.slots)
                || replica.record.went_into(*other, group, &snapshot.record)
        })
    }

    /// Replaces a replica's state, or makes a replica.
    pub(super) fn install(&mut self, group: GroupId, id: ReplicaId, snapshot: Snapshot) {
        self.version += 1;
        let absorbed: Vec<GroupId> = self
            .replicas
            .iter()
            .filter(|(other, replica)| replica.record.went_into(**other, group, &snapshot.record))
            .map(|(other, _)| *other)
            .collect();
        let mut lost: BTreeSet<Slot> = BTreeSet::new();
        for source in absorbed {
            self.events.push(Event::WentWithSnapshot);
            lost.extend(self.bury(source).into_iter().flat_map(|replica| replica.record.slots));
        }
        let before = self.replicas.remove(&group);
        // A new replica has no log yet.
        let started = before.as_ref().is_some_and(|before| before.started);
        lost.extend(before.into_iter().flat_map(|replica| replica.record.slots));
        let Snapshot { record, applied, data } = snapshot;
        let mut replica = Replica { started, ..Replica::new(id, record) };
        replica.persisted = applied.len();
        replica.applied = applied;
        replica.installed = Some(replica.position());
        lost.retain(|slot| !replica.record.slots.contains(slot));
        self.replicas.insert(group, replica);
        self.wipe(group, &lost);
        self.data.extend(data);
        self.installed += 1;
    }
}
