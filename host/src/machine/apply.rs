//! Applying committed entries.

use std::{
    any::Any,
    collections::BTreeSet,
    mem,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use raft_lite::{
    ApplyError, Command, CommandFailure, CommandOutcome, CommittedEntry, Effects, EntryKind,
    GroupDescriptor, GroupEntries, GroupId, Index, MembershipChange, NodeId, Payload, Rejection,
    ReplicaId, SnapshotMeta, SnapshotReply, StateMachine,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    Machine, Shard, ShardPlugin,
    checkpoints::Checkpoints,
    sessions::{Admission, BatchRows},
};
use crate::{
    meta::{META_GROUP, MetaState},
    storage::{
        ApplyState, Overlay, ReadView, ShardRecord, Slot, SlotRange, StorageError, WriteSet,
        node_number,
    },
    wasm::{BatchOutcome, Call, PluginResult, Seed},
};

impl StateMachine for Machine {
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError> {
        let mut writes = WriteSet::new();
        let mut progress = Vec::with_capacity(batch.len());
        let outcomes = &mut effects.outcomes;
        for group in batch {
            let shard = self.shard(group.group).ok_or_else(|| ApplyError {
                group: group.group,
                message: "this node has no record of it".to_owned(),
            })?;
            progress.push(match structural_entry(group)? {
                Some((entry, payload)) => {
                    self.apply_change(shard, (entry, payload), &mut writes, outcomes)?
                }
                None if group.group == META_GROUP => {
                    self.apply_meta(shard, group, &mut writes, outcomes)?
                }
                None => self.apply_group(shard, group, &mut writes, outcomes)?,
            });
        }
        let first = batch.first().map_or(GroupId(0), |group| group.group);
        let fail = |error: StorageError| host_failure(first, &error);
        let changes_records = progress.iter().any(|progress| progress.record.is_some());
        let _turn = changes_records.then(|| self.changing.lock());
        for progress in progress.iter().filter(|progress| progress.plugin.is_some()) {
            progress.shard.switching.store(true, Ordering::Release);
        }
        self.storage.write(writes).map_err(fail)?;
        if progress.iter().any(|progress| progress.is_structural) {
            // What it changes may be relied on as soon as this returns.
            self.storage.flush().map_err(fail)?;
        }
        for progress in progress {
            self.publish(progress, effects).map_err(|error| host_failure(first, &*error))?;
        }
        Ok(())
    }

    fn admits_snapshot(
        &self,
        group: GroupId,
        _replica: ReplicaId,
        snapshot: &SnapshotMeta,
    ) -> bool {
        match self.stands_in_the_way(group, snapshot) {
            Ok(_) => true,
            Err(reason) => {
                tracing::debug!(group = group.0, "a snapshot is not taken in now: {reason}");
                false
            }
        }
    }

    fn never_lost(&self, group: GroupId) -> bool {
        group.0 >= self.fresh_from.load(Ordering::Relaxed)
    }

    fn request_flush(&self) {
        if let Err(error) = self.storage.start_flush() {
            // The next write meets the same trouble, and stops the replica.
            tracing::warn!("cannot flush the database: {error}");
        }
    }

    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError> {
        match self.storage.persisted_apply_state(group) {
            Ok(state) => Ok(state.applied.index),
            Err(error) => Err(host_failure(group, &error)),
        }
    }

    fn make_snapshot(&self, group: GroupId, reply: SnapshotReply) {
        self.start_snapshot(group, reply);
    }

    fn release_snapshot(&self, _group: GroupId, snapshot: &SnapshotMeta) {
        self.forget_snapshot(snapshot);
    }

    fn install_snapshot(
        &self,
        group: GroupId,
        replica: ReplicaId,
        snapshot: &SnapshotMeta,
        fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError> {
        let installed = self.install(group, replica, snapshot, fetched);
        self.forget_fetched(fetched);
        installed.map_err(|error| host_failure(group, &*error))
    }

    fn discard_fetched(&self, fetched: &Bytes) {
        self.forget_fetched(fetched);
    }

    fn destroy_replica(&self, group: GroupId, replica: ReplicaId) -> Result<(), ApplyError> {
        self.destroy(group, replica).map_err(|error| host_failure(group, &*error))
    }

    fn last_destroyed(&self, group: GroupId) -> Option<ReplicaId> {
        self.tombstone(group)
    }
}

pub(super) fn host_failure(group: GroupId, error: &dyn std::error::Error) -> ApplyError {
    ApplyError { group, message: error.to_string() }
}

/// Of how many entries one sweeps a slot's sessions.
const SWEEP_INTERVAL_ENTRIES: u64 = 256;

/// A group's entries on their way through the plugin.
struct Batch {
    state: ApplyState,
    /// What is to be done with each command.
    admissions: Vec<Admission>,
    /// The commands that run.
    calls: Vec<Call>,
    sessions: BatchRows,
    /// What became of each change of members.
    changes: Vec<CommandOutcome>,
    /// The shard's record after them, if it is another one.
    record: Option<ShardRecord>,
}

/// What is to be published once a group's batch is stored.
pub(super) struct Progress {
    pub(super) shard: Arc<Shard>,
    pub(super) state: ApplyState,
    pub(super) sessions: BatchRows,
    pub(super) record: Option<ShardRecord>,
    /// The shard itself or its members changed.
    pub(super) is_structural: bool,
    /// A shard that a split made, if it has a replica here.
    pub(super) child: Option<Shard>,
    /// The plugin from now on, if it is another one, or may use more or less.
    pub(super) plugin: Option<ShardPlugin>,
    /// The replica of a shard that was taken in.
    pub(super) absorbed: Option<(GroupId, ReplicaId)>,
    /// The slots that changed hands without a replica here that has them.
    pub(super) lost: Vec<SlotRange>,
    /// The new state of the cluster's own group.
    pub(super) meta: Option<MetaState>,
    /// Indexes, and the state hash after each, that are to be compared with other replicas'.
    pub(super) checkpoints: Vec<(u64, u64)>,
}

impl Progress {
    pub(super) fn new(shard: Arc<Shard>, state: ApplyState) -> Self {
        Progress {
            shard,
            state,
            sessions: BatchRows::default(),
            record: None,
            is_structural: false,
            child: None,
            plugin: None,
            absorbed: None,
            lost: Vec::new(),
            meta: None,
            checkpoints: Vec::new(),
        }
    }
}

impl Machine {
    /// Applies one group's entries over an overlay of its own and adds what they
    /// wrote to `writes`.
    fn apply_group(
        &self,
        shard: Arc<Shard>,
        group: &GroupEntries,
        writes: &mut WriteSet,
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<Progress, ApplyError> {
        let fail = |error: &dyn std::error::Error| host_failure(group.group, error);
        let Batch { mut state, admissions, calls, mut sessions, changes, record } =
            self.admit(&shard, group).map_err(|error| fail(&*error))?;
        let no_plugin = || ApplyError { group: group.group, message: "it has no plugin".into() };
        let ShardPlugin { module, limits, meter } = shard.plugin.as_ref().ok_or_else(no_plugin)?;
        let overlay = Box::new(Overlay::new(ReadView::Latest(Arc::clone(&self.storage))));
        let started = Instant::now();
        let outcome = self
            .appliers
            .run(|executor| executor.apply(module, limits, calls, overlay))
            .map_err(|error| fail(&error))?;
        let BatchOutcome { results, storage, fuel, memory_bytes } = outcome;
        meter.count_commands(&results, fuel, started.elapsed());
        meter.note_memory(memory_bytes);
        let storage: Box<dyn Any> = storage;
        let mut overlay =
            storage.downcast::<Overlay>().expect("the executor gives back what it was given");
        let mut written = overlay.take_write_hashes().into_iter();
        let mut ran: Vec<CommandOutcome> = results.into_iter().map(outcome_of).collect();
        sessions.finish(&ran, writes);
        let sent_twice = |admission: &Admission| match admission {
            Admission::SameAs(place) => Some(*place),
            _ => None,
        };
        let sent_twice: BTreeSet<usize> = admissions.iter().filter_map(sent_twice).collect();
        let mut places = 0..ran.len();
        let mut admissions = admissions.into_iter();
        let is_structural =
            changes.iter().any(|outcome| matches!(outcome, CommandOutcome::Applied(_)));
        let mut changes = changes.into_iter();
        let mut checkpoints = Vec::new();
        let nothing = || CommandOutcome::Applied(Bytes::new());
        outcomes.reserve(admissions.len());
        for entry in &group.entries {
            let index = entry.position.index.0.to_le_bytes();
            state.state_hash = xxh3_64_with_seed(&index, state.state_hash);
            if entry.payload.as_ref().is_some_and(is_membership) {
                let outcome = changes.next().expect("each change has an outcome");
                let is_applied = matches!(outcome, CommandOutcome::Applied(_));
                state.state_hash = xxh3_64_with_seed(&[u8::from(is_applied)], !state.state_hash);
                outcomes.push(outcome);
            }
            for command in entry.payload.iter().flat_map(|payload| &payload.commands) {
                let hash = state.state_hash;
                let admission = admissions.next().expect("each command has an admission");
                let (hash, outcome) = match admission {
                    Admission::Run => {
                        let place = places.next().expect("each call has a result");
                        // Only what was applied has written anything.
                        let is_applied = matches!(ran[place], CommandOutcome::Applied(_));
                        let written = if is_applied { written.next() } else { None };
                        let hash = fold(hash, written.unwrap_or(0), &ran[place]);
                        let outcome = match sent_twice.contains(&place) {
                            true => ran[place].clone(),
                            false => mem::replace(&mut ran[place], nothing()),
                        };
                        (hash, outcome)
                    }
                    Admission::Known(outcome) => (fold_answered(hash, command), outcome),
                    Admission::SameAs(place) => (fold_answered(hash, command), ran[place].clone()),
                    Admission::Rejected(rejection) => {
                        let hash = xxh3_64_with_seed(&[rejection.number() as u8], hash);
                        (hash, CommandOutcome::Rejected(rejection))
                    }
                };
                state.state_hash = hash;
                outcomes.push(outcome);
            }
            if Checkpoints::is_one(entry.position.index) {
                checkpoints.push((entry.position.index.0, state.state_hash));
            }
        }
        overlay.drain_into(writes);
        writes.put_apply_state(group.group, &state);
        if let Some(record) = &record {
            writes.put_record(record);
        }
        let progress = Progress::new(shard, state);
        Ok(Progress { sessions, record, is_structural, checkpoints, ..progress })
    }

    /// Checks all commands of a group's entries, in their order.
    fn admit(
        &self,
        shard: &Shard,
        group: &GroupEntries,
    ) -> Result<Batch, Box<dyn std::error::Error>> {
        let sessions = shard.sessions.lock();
        let payloads = group.entries.iter().filter_map(|entry| entry.payload.as_ref());
        let commands = payloads.map(|payload| payload.commands.len()).sum();
        let mut batch = Batch {
            state: shard.applied(),
            admissions: Vec::with_capacity(commands),
            calls: Vec::with_capacity(commands),
            sessions: BatchRows::default(),
            changes: Vec::new(),
            record: in_service(&shard.record),
        };
        for entry in &group.entries {
            batch.state.applied = entry.position;
            let Some(payload) = &entry.payload else { continue };
            if let Some(change) = membership_change(group.group, payload)? {
                let outcome = change_members(&mut batch.record, shard, payload.epoch, change);
                batch.changes.push(outcome);
                continue;
            }
            batch.state.time_ms = batch.state.time_ms.max(payload.time_ms);
            let now_ms = batch.state.time_ms;
            for (position, command) in payload.commands.iter().enumerate() {
                let admission = match check(&shard.record, command, now_ms) {
                    Err(rejection) => Admission::Rejected(rejection),
                    Ok(()) if command.session == 0 => Admission::Run,
                    Ok(()) => {
                        let rows = &mut batch.sessions;
                        let place = (now_ms, batch.calls.len());
                        sessions.admit(rows, &self.storage, command, place)?
                    }
                };
                if admission == Admission::Run {
                    batch.calls.push(call(&shard.record, &batch.state, position, command));
                }
                batch.admissions.push(admission);
            }
            if let Some(slot) = slot_to_sweep(&shard.record, entry.position.index.0) {
                sessions.sweep(&mut batch.sessions, &self.storage, slot, now_ms)?;
            }
        }
        Ok(batch)
    }
}

/// The record of a replica that applies entries, if it says otherwise: such a replica
/// has a log, and if that is missing later, it was lost; and what it has applied from then
/// on came by the log.
pub(super) fn in_service(record: &ShardRecord) -> Option<ShardRecord> {
    (!record.started || record.applied_by_snapshot).then(|| ShardRecord {
        started: true,
        applied_by_snapshot: false,
        ..record.clone()
    })
}

/// The entry, if it is one that changes the shard itself: such come alone.
fn structural_entry(
    group: &GroupEntries,
) -> Result<Option<(&CommittedEntry, &Payload)>, ApplyError> {
    let is_structural = |payload: &&Payload| payload.kind == EntryKind::Structural as i32;
    let mut found = group
        .entries
        .iter()
        .filter_map(|entry| Some((entry, entry.payload.as_ref().filter(is_structural)?)));
    match (found.next(), group.entries.len()) {
        (Some(_), 2..) => {
            let message = "a change of the shard does not come alone".to_owned();
            Err(ApplyError { group: group.group, message })
        }
        (found, _) => Ok(found),
    }
}

/// Applies a change of members to a record under way; gives its outcome.
pub(super) fn change_members(
    record: &mut Option<ShardRecord>,
    shard: &Shard,
    epoch: u64,
    change: &MembershipChange,
) -> CommandOutcome {
    match after_change(record.as_ref().unwrap_or(&shard.record), epoch, change) {
        Some(after) => {
            *record = Some(after);
            CommandOutcome::Applied(Bytes::new())
        }
        None => CommandOutcome::Rejected(Rejection::StaleEpoch),
    }
}

/// The slot whose sessions are swept at this index, if one is: all have their turn.
fn slot_to_sweep(record: &ShardRecord, index: u64) -> Option<Slot> {
    if !index.is_multiple_of(SWEEP_INTERVAL_ENTRIES) {
        return None;
    }
    let slots: Vec<Slot> = record.slots.iter().flat_map(|range| range.slots()).collect();
    let turn = (index / SWEEP_INTERVAL_ENTRIES).checked_rem(slots.len() as u64)?;
    slots.get(turn as usize).copied()
}

pub(super) fn is_membership(payload: &Payload) -> bool {
    payload.kind == EntryKind::Membership as i32
}

/// The change of members that an entry makes, if it makes one. Kinds of entries that
/// are not known were written by a newer version.
pub(super) fn membership_change(
    group: GroupId,
    payload: &Payload,
) -> Result<Option<&MembershipChange>, ApplyError> {
    match &payload.membership {
        None if payload.kind == EntryKind::Commands as i32 => Ok(None),
        Some(change) if is_membership(payload) => Ok(Some(change)),
        _ => {
            let message = "its log holds a change that this version does not know".to_owned();
            Err(ApplyError { group, message })
        }
    }
}

/// The record after a change of members; `None` if it is not allowed.
fn after_change(
    record: &ShardRecord,
    epoch: u64,
    change: &MembershipChange,
) -> Option<ShardRecord> {
    if epoch != record.epoch || !record.may_change() {
        return None;
    }
    let membership = record.membership.after(change).ok()?;
    let mut nodes = record.nodes.clone();
    for new in &change.add {
        let id = String::from_utf8(new.context.to_vec()).ok()?;
        if node_number(&id) != NodeId(new.node) {
            return None;
        }
        nodes.insert(NodeId(new.node), id);
    }
    let members = membership.members();
    nodes.retain(|node, _| members.values().any(|member| member == node));
    Some(ShardRecord { epoch: epoch + 1, membership, nodes, ..record.clone() })
}

/// Checks a command before anything else is looked at.
fn check(record: &ShardRecord, command: &Command, now_ms: u64) -> Result<(), Rejection> {
    if !record.owns(Slot(command.slot)) {
        Err(Rejection::SlotNotOwned)
    } else if record.is_frozen() {
        Err(Rejection::Frozen)
    } else if command.not_after_ms != 0 && now_ms > command.not_after_ms {
        Err(Rejection::Expired)
    } else {
        Ok(())
    }
}

fn call(record: &ShardRecord, state: &ApplyState, position: usize, command: &Command) -> Call {
    let (index, position) = (state.applied.index.0, position as u32);
    Call {
        slot: command.slot,
        index: record.shown_index(state.applied.index),
        time_ms: state.time_ms,
        position,
        seed: Seed::At { group: record.group.0, index, position },
        payload: command.payload.clone(),
    }
}

/// The rolling state hash after one more command that ran.
fn fold(hash: u64, written: u64, outcome: &CommandOutcome) -> u64 {
    let hash = xxh3_64_with_seed(&written.to_le_bytes(), hash);
    match outcome {
        CommandOutcome::Applied(response) => xxh3_64_with_seed(response, hash),
        CommandOutcome::Failed(failure) => {
            let hash = xxh3_64_with_seed(&failure.kind.to_le_bytes(), !hash);
            let hash = xxh3_64_with_seed(&failure.code.to_le_bytes(), hash);
            xxh3_64_with_seed(failure.message.as_bytes(), hash)
        }
        CommandOutcome::Rejected(_) => unreachable!("a command that ran was not rejected"),
    }
}

/// The rolling state hash after one more command that had been answered before.
fn fold_answered(hash: u64, command: &Command) -> u64 {
    let hash = xxh3_64_with_seed(&command.session.to_le_bytes(), hash ^ 0xfe);
    xxh3_64_with_seed(&command.sequence.to_le_bytes(), hash)
}

fn outcome_of(result: PluginResult) -> CommandOutcome {
    match result {
        Ok(response) => CommandOutcome::Applied(response),
        Err(failure) => CommandOutcome::Failed(CommandFailure {
            kind: failure.kind as u32,
            code: failure.code,
            message: failure.message,
        }),
    }
}
