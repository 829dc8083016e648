//! A worker: many groups, one round at a time.
//!
//! A round drains the inbox, ticks if a tick is due, collects what the touched
//! groups have to send and to store, sends what may leave early, writes the log
//! of all of them with one fsync, sends the rest and hands committed entries to
//! the appliers. A failing group is taken out of service alone; a failing log
//! write ends the process, because what is on disk is unknown from then on.

mod absent;
mod births;
mod input;
mod votes;

use std::{
    collections::BTreeMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use rand::{SeedableRng, rngs::SmallRng};

use absent::Absentees;
use births::Expected;
pub(crate) use input::Input;

use crate::{
    applier::{ApplyTask, Notice},
    clock::{BootTime, Clock},
    config::{Config, GroupDescriptor},
    group::{Group, GroupError},
    group_storage::GroupStorage,
    liveness::Liveness,
    log_store::{Durability, LogChange, LogState, LogStore, LogStoreError, LogWrite},
    message::RaftMessage,
    proposal::RequestError,
    registry::Registry,
    round::Round,
    shared::GroupShared,
    state_machine::StateMachine,
    transport::Transport,
    types::{GroupId, NodeId},
};

/// Ticks between two attempts to give space of truncated logs back.
const RECLAIM_INTERVAL_TICKS: u64 = 200;

/// Bytes appended to the logs after which the state machine is asked to bring its
/// state to the disk: bounds how much log has to be kept, and replayed after a
/// crash.
const FLUSH_AFTER_BYTES: usize = 128 << 20;

/// What a worker is made of; a simulator gives its own.
#[derive(Clone)]
pub(crate) struct WorkerParts {
    pub(crate) config: Config,
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Which other nodes are alive.
    pub(crate) liveness: Arc<Liveness>,
    /// All groups of the node, for everybody else.
    pub(crate) registry: Arc<Registry>,
    /// The way back to the worker of a group for those who do something for it.
    pub(crate) inbox: Arc<dyn Fn(GroupId, Input) + Send + Sync>,
}

struct Slot {
    group: Group,
    /// Whether the group was touched since the last round.
    dirty: bool,
}

pub(crate) struct Worker {
    parts: WorkerParts,
    groups: BTreeMap<GroupId, Slot>,
    /// Replicas that are not in service: coming, going, or being replaced.
    absent: Absentees,
    expected: Expected,
    dirty: Vec<GroupId>,
    next_tick: BootTime,
    ticks: u64,
    /// Does what one worker does for all of the node: reclaims space of the log, and
    /// tells the other nodes that this one is alive.
    is_first: bool,
    /// The start that each other node last said it was.
    starts_of_peers: BTreeMap<NodeId, u64>,
    /// Bytes appended since the state machine was last asked to flush.
    unflushed_bytes: usize,
    /// Replicas started so far.
    starts: u64,
    /// A write outside of a round failed: the next round says so.
    failed: Option<LogStoreError>,
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts, is_first: bool) -> Self {
        let next_tick = parts.clock.now() + parts.config.tick_interval;
        Worker {
            parts,
            groups: BTreeMap::new(),
            absent: Absentees::default(),
            expected: Expected::default(),
            dirty: Vec::new(),
            next_tick,
            ticks: 0,
            is_first,
            starts_of_peers: BTreeMap::new(),
            unflushed_bytes: 0,
            starts: 0,
            failed: None,
        }
    }

    /// Writes to the log outside of a round. Returns whether it worked; if not, the
    /// node stops at the next round.
    fn write(&mut self, id: GroupId, change: LogChange, durability: Durability) -> bool {
        let mut write = LogWrite::new();
        write.push(id, change);
        match self.parts.log.write(write, durability) {
            Ok(()) => true,
            Err(error) => {
                self.failed = Some(error);
                false
            }
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
            descriptor.membership.conf_state(),
            log,
            descriptor.record.applied.index,
        );
        // A replica that starts again must draw other numbers: what it asked before
        // may still be answered.
        self.starts += 1;
        let replica = descriptor.replica.0.rotate_left(32) ^ self.starts.rotate_left(48);
        let rng = SmallRng::seed_from_u64(self.parts.config.seed ^ replica ^ id.0);
        let now = self.parts.clock.now();
        // `raft` panics on a log that it can not read.
        let (config, liveness) = (&self.parts.config, Arc::clone(&self.parts.liveness));
        let new = || Group::new(descriptor, storage, config, liveness, rng, now);
        let group = catch_unwind(AssertUnwindSafe(new)).unwrap_or(Err(GroupError::Panic))?;
        let shared = Arc::clone(&group.shared);
        self.groups.insert(id, Slot { group, dirty: false });
        self.parts.registry.insert(Arc::clone(&shared));
        self.touch(id);
        Ok(shared)
    }

    /// Time until the next tick is due.
    pub(crate) fn until_tick(&self) -> Duration {
        if self.dirty.is_empty() && self.absent.is_idle() {
            self.next_tick.saturating_sub(self.parts.clock.now())
        } else {
            Duration::ZERO
        }
    }

    /// Takes one input in; it takes effect in the next round.
    pub(crate) fn handle(&mut self, input: Input) {
        match input {
            Input::Propose(proposal) => {
                let id = proposal.group;
                match self.group(id) {
                    Ok(group) => group.propose(proposal),
                    Err(error) => proposal.reply.send(Err(error)),
                }
            }
            Input::Read(id, read) => match self.group(id) {
                Ok(group) => group.read(read),
                Err(error) => read.send(Err(error)),
            },
            Input::Change(change) => {
                let id = change.group;
                match self.group(id) {
                    Ok(group) => group.change(change),
                    Err(error) => change.reply.send(Err(error)),
                }
            }
            Input::Transfer(id, to, answer) => {
                answer(self.group(id).and_then(|group| group.transfer(to)));
            }
            Input::Progress(id, answer) => answer(self.group(id).and_then(|g| g.progress())),
            Input::Messages(from, messages, _permit) => {
                for message in messages {
                    self.receive(from, message);
                }
            }
            Input::Remove(id, replica) => {
                let own = self.groups.get(&id).map(|slot| slot.group.shared.replica);
                match own {
                    Some(own) if own == replica => {
                        self.destroy(id, "it is said to have been removed from the group");
                    }
                    Some(_) => {}
                    None => self.destroy_halted(id, replica),
                }
            }
            Input::Notice(Notice::Wake(id)) => self.touch(id),
            Input::Notice(Notice::Born(birth)) => self.born(birth),
            Input::Notice(Notice::Gone(id, replica)) => self.gone(id, replica),
            Input::Notice(Notice::Installed(id, installed)) => self.installed(id, installed),
            Input::Notice(Notice::Destroyed(id, destroyed)) => self.destroyed(id, destroyed),
            Input::SnapshotMade(id, made) => self.snapshot_made(id, made),
            Input::Fetched(id, fetched) => self.fetched(id, fetched),
            Input::Stop => {}
        }
    }

    /// A group that is in service; it has its turn in the next round.
    fn group(&mut self, id: GroupId) -> Result<&mut Group, RequestError> {
        self.touch(id);
        let slot = self.groups.get_mut(&id);
        slot.map(|slot| &mut slot.group).ok_or_else(|| no_group(id))
    }

    /// Takes in a message from another node.
    fn receive(&mut self, from: NodeId, message: RaftMessage) {
        if let Some(life) = message.life() {
            return self.parts.liveness.heard(from, life);
        }
        let (id, to) = (message.group(), message.to());
        let Some(slot) = self.groups.get_mut(&id) else {
            return self.receive_for_absent(from, message);
        };
        let own = slot.group.shared.replica;
        if own != to {
            if own < to && message.is_from_leader() {
                // A node has one replica of a group: its own was removed before.
                self.destroy(id, "the group has another replica here now");
            } else {
                // For a replica that was here before: its sender may have been
                // removed as well, and there may be nobody else to say so.
                slot.group.admit_sender(from, &message);
                self.touch(id);
            }
            return;
        }
        self.touch(id);
        if message.is_removal() {
            return self.destroy(id, "it was removed from the group");
        }
        if let Some(snapshot) = message.snapshot() {
            let worth_it = self.guarded(id, |group| group.wants(&snapshot));
            if worth_it == Some(true) {
                return self.fetch(from, message, snapshot);
            }
        }
        let now = self.parts.clock.now();
        self.guarded(id, |group| group.step(from, message, now));
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
        slot.group.shared.halt(reason);
        self.give_up(id);
        None
    }

    /// Takes a replica that was halted out of service. If it led, its followers may
    /// sleep: they wake, and elect another.
    fn give_up(&mut self, id: GroupId) {
        let Some(mut slot) = self.groups.remove(&id) else { return };
        let reason = slot.group.shared.halted().unwrap_or_default().to_owned();
        slot.group.abandon(&reason);
        self.absent.ask(slot.group.inquiries());
    }

    /// One round. Returns the work for the appliers, in order.
    pub(crate) fn round(&mut self) -> Result<Vec<ApplyTask>, LogStoreError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let now = self.parts.clock.now();
        self.tick_if_due(now)?;
        let dirty = mem::take(&mut self.dirty);
        let mut round = Round::new(now, self.parts.clock.unix_millis());
        self.absent.collect(&mut round);
        for &id in &dirty {
            if let Some(slot) = self.groups.get_mut(&id) {
                slot.dirty = false;
                if slot.group.shared.halted().is_some() {
                    // The applier gave up on it.
                    self.give_up(id);
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
            let Some(slot) = self.groups.get_mut(&id) else { continue };
            if slot.group.is_removed() {
                self.destroy(id, "it was removed from the group");
                continue;
            }
            if slot.group.take_wanted_snapshot() {
                self.make_snapshot(id);
            }
            if self.groups.get(&id).is_some_and(|slot| slot.group.has_more()) {
                self.touch(id);
            }
        }
        self.absent.collect(&mut round);
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
        self.tick_liveness();
        self.expected.forget(now, self.parts.config.election_timeout());
        let awake = self.groups.iter().filter(|(_, slot)| !slot.group.is_asleep());
        let awake: Vec<GroupId> = awake.map(|(id, _)| *id).collect();
        for id in awake {
            let ticked = self.guarded(id, |group| {
                group.evict_cache();
                group.tick(now)
            });
            if ticked == Some(true) {
                self.touch(id);
            }
        }
        if self.ticks.is_multiple_of(self.parts.config.compact_interval_ticks) {
            self.compact(self.parts.config.compact_threshold_entries, None)?;
        }
        if self.is_first && self.ticks.is_multiple_of(RECLAIM_INTERVAL_TICKS) {
            let in_the_way = self.parts.log.reclaim()?;
            if !in_the_way.is_empty() {
                // What they need is truncated at the next look.
                self.parts.state_machine.request_flush();
            }
            self.compact(1, Some(&in_the_way))?;
        }
        Ok(())
    }

    /// Tells the others that this node is alive, and wakes the groups that have a
    /// member on a node which fell silent or has started anew.
    fn tick_liveness(&mut self) {
        let WorkerParts { config, liveness, transport, .. } = &self.parts;
        if self.is_first {
            liveness.tick();
            if self.ticks.is_multiple_of(config.heartbeat_ticks as u64) {
                for node in transport.peers() {
                    transport.send(node, vec![liveness.sign()]);
                }
            }
        }
        let mut gone = Vec::new();
        for (node, life) in liveness.peers() {
            let known = self.starts_of_peers.insert(node, life.start);
            if known != Some(life.start) || liveness.is_dead(&life) {
                gone.push(node);
            }
        }
        if gone.is_empty() {
            return;
        }
        let mut woken = Vec::new();
        for (id, slot) in &mut self.groups {
            if gone.iter().any(|node| slot.group.note_gone(*node)) {
                woken.push(*id);
            }
        }
        for id in woken {
            self.touch(id);
        }
    }

    /// Truncates logs up to what the state machine has on disk and no replica
    /// needs.
    fn compact(&mut self, threshold: u64, only: Option<&[GroupId]>) -> Result<(), LogStoreError> {
        let mut write = LogWrite::new();
        let now = self.parts.clock.now();
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            if only.is_some_and(|only| !only.contains(&id)) {
                continue;
            }
            let Ok(persisted) = self.parts.state_machine.persisted_index(id) else {
                continue;
            };
            let unused = self.guarded(id, |group| Ok(group.take_unused_snapshot(now)));
            if let Some(Some(snapshot)) = unused {
                self.parts.state_machine.release_snapshot(id, &snapshot);
            }
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
