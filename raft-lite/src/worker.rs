//! A worker: many groups, one round at a time.
//!
//! A round drains the inbox, ticks if a tick is due, collects what the touched
//! groups have to send and to store, sends what may leave early, writes the log
//! of all of them with one fsync, sends the rest and hands committed entries to
//! the appliers. A failing group is taken out of service alone; a failing log
//! write ends the process, because what is on disk is unknown from then on.

use std::{
    collections::BTreeMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    applier::ApplyTask,
    clock::{BootTime, Clock},
    config::{Config, GroupDescriptor},
    group::{Group, GroupError},
    group_storage::GroupStorage,
    log_store::{Durability, LogChange, LogState, LogStore, LogStoreError, LogWrite},
    message::RaftMessage,
    proposal::{PendingProposal, PendingRead, RequestError},
    round::Round,
    shared::GroupShared,
    state_machine::StateMachine,
    transport::Transport,
    types::{GroupId, NodeId},
};

/// Ticks between two looks at what can be truncated.
const COMPACT_INTERVAL_TICKS: u64 = 64;
/// Ticks between two attempts to give space of truncated logs back.
const RECLAIM_INTERVAL_TICKS: u64 = 200;

/// Bytes appended to the logs after which the state machine is asked to bring its
/// state to the disk: bounds how much log has to be kept, and replayed after a
/// crash.
const FLUSH_AFTER_BYTES: usize = 128 << 20;

/// What a worker is told.
pub(crate) enum Input {
    Propose(PendingProposal),
    Read(GroupId, PendingRead),
    /// From another node, for any groups of this worker.
    Messages(NodeId, Vec<RaftMessage>),
    /// The group's applier has room again.
    Wake(GroupId),
    /// No more inputs follow.
    Stop,
}

impl Input {
    /// There is no room for it.
    pub(crate) fn refuse(self) {
        match self {
            Input::Propose(proposal) => proposal.reply.send(Err(RequestError::Overloaded)),
            Input::Read(_, read) => read.send(Err(RequestError::Overloaded)),
            // Raft sends its messages again.
            Input::Messages(..) | Input::Wake(_) | Input::Stop => {}
        }
    }
}

/// What a worker is made of; a simulator gives its own.
#[derive(Clone)]
pub(crate) struct WorkerParts {
    pub(crate) config: Config,
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) clock: Arc<dyn Clock>,
}

struct Slot {
    group: Group,
    /// Whether the group was touched since the last round.
    dirty: bool,
}

pub(crate) struct Worker {
    parts: WorkerParts,
    groups: BTreeMap<GroupId, Slot>,
    dirty: Vec<GroupId>,
    next_tick: BootTime,
    ticks: u64,
    /// Reclaims space of the log; one worker of a node does.
    reclaims: bool,
    /// Bytes appended since the state machine was last asked to flush.
    unflushed_bytes: usize,
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts, reclaims: bool) -> Self {
        let next_tick = parts.clock.now() + parts.config.tick_interval;
        Worker {
            parts,
            groups: BTreeMap::new(),
            dirty: Vec::new(),
            next_tick,
            ticks: 0,
            reclaims,
            unflushed_bytes: 0,
        }
    }

    /// Starts a replica whose log was found or made.
    pub(crate) fn add_group(
        &mut self,
        descriptor: GroupDescriptor,
        log: LogState,
    ) -> Result<Arc<GroupShared>, GroupError> {
        let id = descriptor.group;
        let storage = GroupStorage::new(
            id,
            Arc::clone(&self.parts.log),
            descriptor.voters.keys().copied(),
            log,
            descriptor.record.applied.index,
        );
        let seed = self.parts.config.seed ^ descriptor.replica.0.rotate_left(32) ^ id.0;
        let rng = SmallRng::seed_from_u64(seed);
        let now = self.parts.clock.now();
        // `raft` panics on a log that it can not read.
        let config = &self.parts.config;
        let group =
            catch_unwind(AssertUnwindSafe(|| Group::new(descriptor, storage, config, rng, now)))
                .unwrap_or(Err(GroupError::Panic))?;
        let shared = Arc::clone(&group.shared);
        self.groups.insert(id, Slot { group, dirty: false });
        self.touch(id);
        Ok(shared)
    }

    /// Time until the next tick is due.
    pub(crate) fn until_tick(&self) -> Duration {
        if self.dirty.is_empty() {
            self.next_tick.saturating_sub(self.parts.clock.now())
        } else {
            Duration::ZERO
        }
    }

    /// Takes one input in; it takes effect in the next round.
    pub(crate) fn handle(&mut self, input: Input) {
        match input {
            Input::Propose(proposal) => match self.groups.get_mut(&proposal.group) {
                Some(slot) => {
                    let id = proposal.group;
                    slot.group.propose(proposal);
                    self.touch(id);
                }
                None => {
                    let error = no_group(proposal.group);
                    proposal.reply.send(Err(error));
                }
            },
            Input::Read(id, read) => match self.groups.get_mut(&id) {
                Some(slot) => {
                    slot.group.read(read);
                    self.touch(id);
                }
                None => read.send(Err(no_group(id))),
            },
            Input::Messages(from, messages) => {
                let now = self.parts.clock.now();
                for message in messages {
                    let (id, to) = (message.group(), message.to());
                    let ours = self.groups.get(&id).is_some_and(|s| s.group.shared.replica == to);
                    if ours {
                        self.guarded(id, |group| group.step(from, message, now));
                        self.touch(id);
                    }
                }
            }
            Input::Wake(id) => self.touch(id),
            Input::Stop => {}
        }
    }

    fn touch(&mut self, id: GroupId) {
        if let Some(slot) = self.groups.get_mut(&id)
            && !mem::replace(&mut slot.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Runs a step of a group. If it fails or panics, the group goes out of
    /// service and the others go on.
    fn guarded<T>(
        &mut self,
        id: GroupId,
        step: impl FnOnce(&mut Group) -> Result<T, GroupError>,
    ) -> Option<T> {
        let slot = self.groups.get_mut(&id)?;
        let reason = match catch_unwind(AssertUnwindSafe(|| step(&mut slot.group))) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => GroupError::Panic.to_string(),
        };
        slot.group.shared.halt(reason.clone());
        slot.group.abandon(&reason);
        self.groups.remove(&id);
        None
    }

    /// One round. Returns the work for the appliers, in order.
    pub(crate) fn round(&mut self) -> Result<Vec<ApplyTask>, LogStoreError> {
        let now = self.parts.clock.now();
        self.tick_if_due(now)?;
        let dirty = mem::take(&mut self.dirty);
        let mut round = Round::new(now, self.parts.clock.unix_millis());
        for &id in &dirty {
            if let Some(slot) = self.groups.get_mut(&id) {
                slot.dirty = false;
                if let Some(reason) = slot.group.shared.halted().map(str::to_owned) {
                    // The applier gave up on it.
                    slot.group.abandon(&reason);
                    self.groups.remove(&id);
                    continue;
                }
            }
            // What a group that fails half-way added to the write is harmless:
            // it does not run again before it was checked at a new start.
            self.guarded(id, |group| group.collect(&mut round));
        }
        round.flush(&*self.parts.transport);
        self.unflushed_bytes += round.appended_bytes;
        if self.unflushed_bytes >= FLUSH_AFTER_BYTES {
            self.unflushed_bytes = 0;
            self.parts.state_machine.request_flush();
        }
        let write = mem::take(&mut round.write);
        if !write.is_empty() {
            let durability =
                if round.must_sync { Durability::Synced } else { Durability::Buffered };
            self.parts.log.write(write, durability)?;
        }
        for &id in &dirty {
            self.guarded(id, |group| group.complete(&mut round));
            if self.groups.get(&id).is_some_and(|slot| slot.group.has_more()) {
                self.touch(id);
            }
        }
        round.flush(&*self.parts.transport);
        Ok(round.apply)
    }

    /// Ticks every group at most once; ticks that were missed are not made up
    /// for, so that a pause does not start elections.
    fn tick_if_due(&mut self, now: BootTime) -> Result<(), LogStoreError> {
        if now < self.next_tick {
            return Ok(());
        }
        let interval = self.parts.config.tick_interval;
        let on_time = self.next_tick + interval;
        self.next_tick = if on_time > now { on_time } else { now + interval };
        self.ticks += 1;
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            let ticked = self.guarded(id, |group| {
                group.evict_cache();
                Ok(group.tick(now))
            });
            if ticked == Some(true) {
                self.touch(id);
            }
        }
        if self.ticks.is_multiple_of(COMPACT_INTERVAL_TICKS) {
            self.compact(self.parts.config.compact_threshold_entries, None)?;
        }
        if self.reclaims && self.ticks.is_multiple_of(RECLAIM_INTERVAL_TICKS) {
            let in_the_way = self.parts.log.reclaim()?;
            if !in_the_way.is_empty() {
                // What they need is truncated at the next look.
                self.parts.state_machine.request_flush();
            }
            self.compact(1, Some(&in_the_way))?;
        }
        Ok(())
    }

    /// Truncates logs up to what the state machine has on disk and no replica
    /// needs.
    fn compact(&mut self, threshold: u64, only: Option<&[GroupId]>) -> Result<(), LogStoreError> {
        let mut write = LogWrite::new();
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            if only.is_some_and(|only| !only.contains(&id)) {
                continue;
            }
            let Ok(persisted) = self.parts.state_machine.persisted_index(id) else {
                continue;
            };
            let position = self.guarded(id, |group| group.compact(persisted, threshold));
            if let Some(Some(position)) = position {
                write.push(id, LogChange::Compact(position));
            }
        }
        if write.is_empty() {
            return Ok(());
        }
        self.parts.log.write(write, Durability::Buffered)
    }

    /// Answers everything that waits; the worker must not be used after.
    pub(crate) fn stop(&mut self) {
        for slot in self.groups.values_mut() {
            slot.group.abandon("the node is stopping");
        }
    }
}

fn no_group(group: GroupId) -> RequestError {
    RequestError::Unavailable(format!("it has no replica of group {group}"))
}
