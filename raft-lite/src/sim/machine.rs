//! A state machine that remembers what it applied, with each group's members and slots,
//! and forgets from some point on when its node crashes.

mod record;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rand::rngs::SmallRng;

use super::planted::{self, Bug};
use crate::{
    config::GroupDescriptor,
    entry::{Command, EntryKind, Payload},
    membership::Membership,
    snapshot::SnapshotMeta,
    state_machine::{
        ApplyError, CommandOutcome, CommittedEntry, Effects, GroupEntries, Rejection,
        SnapshotReply, StateMachine,
    },
    types::{GroupId, Index, LogPosition, NodeId, ReplicaId},
};

pub(super) use record::{Change, FIRST_EPOCH, Merge, Record, Slot};
use state::{Allowed, Replica, State};
pub(super) use state::{Content, Event, Place};

/// An applied entry: where it was, and the numbers of its commands or of what it changed.
pub(super) type Applied = (LogPosition, Vec<u64>);

/// A group's state.
#[derive(Clone)]
struct Snapshot {
    record: Record,
    applied: Vec<Applied>,
    data: BTreeMap<Slot, Content>,
}

/// The data of all snapshots of all nodes, and all structural changes, by number.
#[derive(Default)]
pub(super) struct Pool {
    snapshots: Mutex<Vec<Snapshot>>,
    changes: Mutex<Vec<Change>>,
}

impl Pool {
    /// Keeps a change; what a log has of it.
    pub(super) fn keep_change(&self, change: Change) -> Bytes {
        keep(&self.changes, change)
    }
}

fn keep<T>(all: &Mutex<Vec<T>>, one: T) -> Bytes {
    let mut all = all.lock().unwrap();
    all.push(one);
    Bytes::copy_from_slice(&(all.len() as u64 - 1).to_be_bytes())
}

fn kept<T, R>(all: &Mutex<Vec<T>>, number: &Bytes, look: impl FnOnce(&T) -> R) -> R {
    look(&all.lock().unwrap()[number_of(number) as usize])
}

fn number_of(bytes: &Bytes) -> u64 {
    u64::from_be_bytes(bytes.as_ref().try_into().unwrap())
}

pub(super) struct SimMachine {
    node: NodeId,
    state: Mutex<State>,
    pool: Arc<Pool>,
}

impl SimMachine {
    pub(super) fn new(node: NodeId, pool: Arc<Pool>) -> Self {
        SimMachine { node, state: Mutex::default(), pool }
    }

    /// Puts a replica on record whose group no split made, with slots that were created
    /// the `generation`th time. `None` if it can not be, or was.
    pub(super) fn create(
        &self,
        group: GroupId,
        (membership, slots): (Membership, BTreeSet<Slot>),
        generation: u64,
    ) -> Option<GroupDescriptor> {
        let state = &mut *self.state.lock().unwrap();
        let id = membership.replica_on(self.node)?;
        let was_here = state.replicas.contains_key(&group) || state.destroyed.contains_key(&group);
        if was_here || slots.iter().any(|slot| state.is_owned_beside(group, *slot)) {
            return None;
        }
        for slot in &slots {
            state.data.insert(*slot, Content { generation, ..Default::default() });
        }
        let replica = Replica::new(id, Record::new(membership, FIRST_EPOCH, slots));
        let descriptor = replica.descriptor(group);
        state.replicas.insert(group, replica);
        state.version += 1;
        Some(descriptor)
    }

    /// All replicas on record, for a start of the node.
    pub(super) fn descriptors(&self) -> Vec<GroupDescriptor> {
        let state = &mut *self.state.lock().unwrap();
        // What was removed and not yet destroyed is destroyed first.
        let removed = |(group, replica): (&GroupId, &Replica)| {
            replica.record.membership.was_removed(replica.id).then_some((*group, replica.id))
        };
        let removed: Vec<_> = state.replicas.iter().filter_map(removed).collect();
        for (group, id) in removed {
            state.destroy(group, id);
        }
        state.replicas.iter().map(|(group, replica)| replica.descriptor(*group)).collect()
    }

    pub(super) fn note_started(&self) {
        for replica in self.state.lock().unwrap().replicas.values_mut() {
            replica.started = true;
        }
    }

    /// Loses a random part of what was not on disk, and all that was asked.
    pub(super) fn crash(&self, rng: &mut SmallRng) {
        self.state.lock().unwrap().crash(rng);
    }

    /// Everything of a group applied and not lost.
    pub(super) fn applied(&self, group: GroupId) -> Vec<Applied> {
        self.with_applied(group, 0, <[Applied]>::to_vec)
    }

    /// Looks at what was applied from a place in the list on.
    pub(super) fn with_applied<T>(
        &self,
        group: GroupId,
        from: usize,
        look: impl FnOnce(&[Applied]) -> T,
    ) -> T {
        let state = self.state.lock().unwrap();
        let applied = state.replicas.get(&group).map_or(&[][..], |replica| &replica.applied);
        look(&applied[from.min(applied.len())..])
    }

    pub(super) fn replica(&self, group: GroupId) -> Option<ReplicaId> {
        self.state.lock().unwrap().replicas.get(&group).map(|replica| replica.id)
    }

    /// Whether a group has a replica here, or had one.
    pub(super) fn knows(&self, group: GroupId) -> bool {
        let state = self.state.lock().unwrap();
        state.replicas.contains_key(&group) || state.destroyed.contains_key(&group)
    }

    /// The group whose replica here owns a slot.
    pub(super) fn owner(&self, slot: Slot) -> Option<GroupId> {
        let state = self.state.lock().unwrap();
        let mut replicas = state.replicas.iter();
        replicas.find(|(_, r)| r.record.slots.contains(&slot)).map(|(group, _)| *group)
    }

    /// All replicas on record.
    pub(super) fn replicas(&self) -> Vec<(GroupId, ReplicaId)> {
        let state = self.state.lock().unwrap();
        state.replicas.iter().map(|(group, replica)| (*group, replica.id)).collect()
    }

    pub(super) fn with_record<T>(
        &self,
        group: GroupId,
        look: impl FnOnce(&Record) -> T,
    ) -> Option<T> {
        let state = self.state.lock().unwrap();
        state.replicas.get(&group).map(|replica| look(&replica.record))
    }

    pub(super) fn record(&self, group: GroupId) -> Option<Record> {
        self.with_record(group, Record::clone)
    }

    /// How far a slot has come, if the group's replica here owns it and can be read.
    pub(super) fn look(&self, group: GroupId, slot: Slot, by_index: bool) -> Option<Place> {
        let state = self.state.lock().unwrap();
        let record = &state.replicas.get(&group)?.record;
        let is_frozen = matches!(record.merge, Merge::Frozen { .. })
            && !(by_index && planted::is(Bug::ReadIndexOnFrozenSource));
        let serves = record.slots.contains(&slot) && !is_frozen;
        serves.then(|| state.data.get(&slot).map(Content::place).unwrap_or_default())
    }

    pub(super) fn content(&self, slot: Slot) -> Content {
        self.state.lock().unwrap().data.get(&slot).cloned().unwrap_or_default()
    }

    /// The slots that have data here.
    pub(super) fn slots_with_data(&self) -> BTreeSet<Slot> {
        self.state.lock().unwrap().data.keys().copied().collect()
    }

    pub(super) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state.lock().unwrap().events)
    }

    /// How often a replica came or went here, or a slot changed hands.
    pub(super) fn version(&self) -> u64 {
        self.state.lock().unwrap().version
    }

    pub(super) fn installed(&self) -> u64 {
        self.state.lock().unwrap().installed
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.state.lock().unwrap().held
    }

    /// Makes the snapshots that were asked for.
    pub(super) fn make_wanted(&self) {
        let wanted = std::mem::take(&mut self.state.lock().unwrap().wanted);
        for (group, reply) in wanted {
            reply(self.snapshot(group));
        }
    }

    fn snapshot(&self, group: GroupId) -> Result<SnapshotMeta, ApplyError> {
        let mut state = self.state.lock().unwrap();
        let replica = state.replicas.get(&group).ok_or_else(|| no_replica(group))?;
        let (record, applied) = (replica.record.clone(), replica.applied.clone());
        let content = |slot: &Slot| Some((*slot, state.data.get(slot)?.clone()));
        let data = record.slots.iter().filter_map(content).collect();
        let stale = planted::is(Bug::StaleMembershipInSnapshot);
        let membership = if stale { &replica.first.membership } else { &record.membership };
        let (position, membership) = (replica.position(), membership.clone());
        let data = keep(&self.pool.snapshots, Snapshot { record, applied, data });
        state.held += 1;
        Ok(SnapshotMeta { position, membership, data })
    }

    fn apply_entry(
        &self,
        state: &mut State,
        group: GroupId,
        entry: &CommittedEntry,
        effects: &mut Effects,
    ) {
        let replica = state.replicas.get_mut(&group).unwrap();
        let expected = replica.position().index.next();
        assert_eq!(entry.position.index, expected, "entries have a gap");
        // There is a log that the entry came from.
        replica.started = true;
        replica.applied.push((entry.position, Vec::new()));
        let Some(payload) = &entry.payload else { return };
        let numbers = if payload.kind == EntryKind::Commands as i32 {
            let commands = payload.commands.iter();
            commands.map(|command| run(state, group, command, effects)).collect()
        } else {
            vec![self.change(state, group, (payload, entry.position.index), effects)]
        };
        if let Some(replica) = state.replicas.get_mut(&group)
            && let Some(last) = replica.applied.last_mut()
        {
            last.1 = numbers;
        }
    }

    /// Changes a group or its members, if it may be. Gives a number that says what came
    /// of it.
    fn change(
        &self,
        state: &mut State,
        group: GroupId,
        (payload, at): (&Payload, Index),
        effects: &mut Effects,
    ) -> u64 {
        let replica = state.replicas.get_mut(&group).unwrap();
        let before = &replica.record;
        let structural = payload.membership.is_none();
        let change =
            structural.then(|| kept(&self.pool.changes, &payload.structural, Change::clone));
        let after = match (&payload.membership, &change) {
            _ if payload.epoch != before.epoch => Err(Rejection::StaleEpoch),
            (Some(members), _) => before.with_members(members),
            (None, Some(change)) => before.after(change, at),
            (None, None) => unreachable!("it is one or the other"),
        };
        let after = match after {
            Ok(after) => after,
            Err(reason) => {
                effects.outcomes.push(CommandOutcome::Rejected(reason));
                return u64::MAX;
            }
        };
        replica.persisted = replica.applied.len();
        let epoch = after.epoch;
        match change {
            Some(change) => {
                let allowed = Allowed { node: self.node, group, change: &change, at, after };
                state.take_effect(allowed, effects);
            }
            None => replica.record = after,
        }
        effects.epochs.insert(group, epoch);
        effects.outcomes.push(CommandOutcome::Applied(Bytes::new()));
        u64::MAX - epoch
    }
}

/// Runs a command. Gives its number.
fn run(state: &mut State, group: GroupId, command: &Command, effects: &mut Effects) -> u64 {
    let number = number_of(&command.payload);
    let replica = &state.replicas[&group];
    let rejection = match replica.record.merge {
        _ if !replica.record.slots.contains(&command.slot) => Some(Rejection::SlotNotOwned),
        Merge::Frozen { .. } => Some(Rejection::Frozen),
        _ => None,
    };
    if let Some(rejection) = rejection {
        effects.outcomes.push(CommandOutcome::Rejected(rejection));
        return number;
    }
    let at = replica.position().index;
    let content = state.data.entry(command.slot).or_default();
    content.writes.push((number, group, at));
    let place = content.place();
    state.events.push(Event::Wrote(command.slot, place, number));
    effects.outcomes.push(CommandOutcome::Applied(place.encode()));
    number
}

impl Place {
    fn encode(self) -> Bytes {
        let numbers = [self.generation, self.writes as u64];
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    /// The place that a write was given.
    pub(super) fn decode(mut bytes: Bytes) -> Self {
        let writes = bytes.split_off(8);
        Place { generation: number_of(&bytes), writes: number_of(&writes) as usize }
    }
}

fn no_replica(group: GroupId) -> ApplyError {
    ApplyError { group, message: "there is no replica".to_owned() }
}

impl StateMachine for SimMachine {
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError> {
        let state = &mut *self.state.lock().unwrap();
        // A batch is applied as a whole or not at all.
        if let Some(missing) = batch.iter().find(|of| !state.replicas.contains_key(&of.group)) {
            return Err(no_replica(missing.group));
        }
        for group in batch {
            for entry in &group.entries {
                self.apply_entry(state, group.group, entry, effects);
            }
        }
        Ok(())
    }

    fn request_flush(&self) {}

    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError> {
        let mut state = self.state.lock().unwrap();
        let replica = state.replicas.get_mut(&group).ok_or_else(|| no_replica(group))?;
        // Being asked is as good a moment as any for a flush to have happened.
        replica.persisted = replica.applied.len();
        Ok(replica.position().index)
    }

    fn make_snapshot(&self, group: GroupId, reply: SnapshotReply) {
        self.state.lock().unwrap().wanted.push((group, reply));
    }

    fn release_snapshot(&self, _group: GroupId, _snapshot: &SnapshotMeta) {
        self.state.lock().unwrap().held -= 1;
    }

    fn admits_snapshot(&self, group: GroupId, _: ReplicaId, snapshot: &SnapshotMeta) -> bool {
        let state = self.state.lock().unwrap();
        let admits = |snapshot: &Snapshot| state.admits(group, snapshot);
        planted::is(Bug::TwoLocalOwners) || kept(&self.pool.snapshots, &snapshot.data, admits)
    }

    fn never_lost(&self, _group: GroupId) -> bool {
        true
    }

    fn install_snapshot(
        &self,
        group: GroupId,
        id: ReplicaId,
        snapshot: &SnapshotMeta,
        fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError> {
        let mut data = kept(&self.pool.snapshots, fetched, Snapshot::clone);
        data.record.membership = snapshot.membership.clone();
        let mut state = self.state.lock().unwrap();
        state.install(group, id, data);
        let replica = &state.replicas[&group];
        assert_eq!(replica.position(), snapshot.position);
        Ok(replica.descriptor(group))
    }

    fn discard_fetched(&self, _fetched: &Bytes) {}

    fn destroy_replica(&self, group: GroupId, replica: ReplicaId) -> Result<(), ApplyError> {
        self.state.lock().unwrap().destroy(group, replica);
        Ok(())
    }

    fn last_destroyed(&self, group: GroupId) -> Option<ReplicaId> {
        if planted::is(Bug::DestroyedReplicaComesBack) {
            return None;
        }
        self.state.lock().unwrap().destroyed.get(&group).copied()
    }
}
