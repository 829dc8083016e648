//! Turns writes into one raft-engine batch: those of a round, and before them
//! those that were left to a later one.
//!
//! Raft-engine applies a batch's items in order, so changes keep theirs; the
//! record of each group touched follows at the end, as it stands after all of
//! them. Raft-engine panics on an append that leaves a hole or goes below what was
//! compacted, so every change is checked first, and a new log begins with a clean.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb;
use raft_engine::{Command, LogBatch, MessageExt};

use super::{
    Slot,
    record::{self, RECORD_KEY},
};
use crate::{
    log_store::{LogChange, LogEntry, LogState, LogStoreError, LogWrite, contract},
    types::GroupId,
};

/// How raft-engine finds the index of an entry.
pub(super) struct EntryCodec;

impl MessageExt for EntryCodec {
    type Entry = eraftpb::Entry;

    fn index(entry: &Self::Entry) -> u64 {
        entry.index
    }
}

/// The group id under which the store keeps what belongs to no group.
pub(super) const STORE_GROUP: GroupId = GroupId(u64::MAX);

/// States of groups; `None` is a group without a log.
pub(super) type States = BTreeMap<GroupId, Option<LogState>>;

/// Changes that are not written yet.
#[derive(Default)]
pub(super) struct Pending {
    /// What has to be done to entries.
    log: LogBatch,
    /// The groups whose record has to be written.
    groups: BTreeSet<GroupId>,
}

impl Pending {
    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.log.is_empty() && self.groups.is_empty()
    }
}

impl From<LogBatch> for Pending {
    fn from(log: LogBatch) -> Self {
        Pending { log, groups: BTreeSet::new() }
    }
}

/// A batch being filled.
pub(super) struct Batch<'a> {
    slots: &'a BTreeMap<GroupId, Slot>,
    pending: Pending,
    states: States,
}

impl<'a> Batch<'a> {
    /// A batch that begins with what is pending. `slots` are the groups after it.
    pub(super) fn new(slots: &'a BTreeMap<GroupId, Slot>, pending: Pending) -> Self {
        Batch { slots, pending, states: States::new() }
    }

    /// Adds a write as a whole, or nothing of it.
    pub(super) fn add(&mut self, write: LogWrite) -> Result<(), LogStoreError> {
        let states = self.check(&write)?;
        for (group, change) in write.changes {
            self.encode(group, change)?;
        }
        self.pending.groups.extend(states.keys());
        self.states.extend(states);
        Ok(())
    }

    /// Leaves everything to a later batch. Also returns the states of the groups
    /// that were changed.
    pub(super) fn defer(self) -> (Pending, States) {
        (self.pending, self.states)
    }

    /// Everything as raft-engine takes it. Also returns the states of the groups
    /// that were changed, once it is written.
    pub(super) fn finish(self) -> (LogBatch, States) {
        let mut log = self.pending.log;
        for group in self.pending.groups {
            let state = match (self.states.get(&group), self.slots.get(&group)) {
                (Some(Some(state)), _) | (None, Some(Slot::Sound(state))) => state,
                _ => continue,
            };
            log.put(group.0, RECORD_KEY.to_vec(), record::encode(state))
                .expect("the key is not one of raft-engine's own");
        }
        (log, self.states)
    }

    /// The states after a write, if all its changes are allowed.
    fn check(&self, write: &LogWrite) -> Result<States, LogStoreError> {
        let mut states = States::new();
        for (group, change) in &write.changes {
            let state = match states.get(group).or_else(|| self.states.get(group)) {
                Some(state) => *state,
                None => self.slot_state(*group, change)?,
            };
            let after = contract::after_change(state, change)
                .map_err(|reason| contract::refused(*group, &reason))?;
            states.insert(*group, after);
        }
        Ok(states)
    }

    fn slot_state(
        &self,
        group: GroupId,
        change: &LogChange,
    ) -> Result<Option<LogState>, LogStoreError> {
        if group == STORE_GROUP {
            return Err(contract::refused(group, "this id is the store's own"));
        }
        let starts_over = matches!(change, LogChange::Create { .. } | LogChange::Clean);
        match self.slots.get(&group) {
            None => Ok(None),
            Some(Slot::Sound(state)) => Ok(Some(*state)),
            Some(Slot::Damaged(_)) if starts_over => Ok(None),
            Some(Slot::Damaged(damage)) => Err(contract::refused(group, damage)),
        }
    }

    fn encode(&mut self, group: GroupId, change: LogChange) -> Result<(), LogStoreError> {
        match change {
            LogChange::Create { .. } | LogChange::Clean => {
                self.pending.log.add_command(group.0, Command::Clean);
            }
            LogChange::Append(entries) => {
                let entries: Vec<eraftpb::Entry> =
                    entries.into_iter().map(|LogEntry(entry)| entry).collect();
                self.pending
                    .log
                    .add_entries::<EntryCodec>(group.0, &entries)
                    .map_err(cannot_encode)?;
            }
            LogChange::Compact(position) => {
                let index = position.index.next().0;
                self.pending.log.add_command(group.0, Command::Compact { index });
            }
            LogChange::HardState(_) => {}
        }
        Ok(())
    }
}

fn cannot_encode(error: raft_engine::Error) -> LogStoreError {
    LogStoreError::Write(format!("cannot encode a write: {error}"))
}
