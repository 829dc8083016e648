//! Turns the writes of one round into one raft-engine batch.
//!
//! Raft-engine applies a batch's items in order, so changes keep theirs; the
//! record of each group touched follows at the end, as it stands after all of
//! them. Raft-engine panics on an append that leaves a hole or goes below what was
//! compacted, so every change is checked first, and a new log begins with a clean.

use std::collections::BTreeMap;

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

type States = BTreeMap<GroupId, Option<LogState>>;

/// A batch being filled.
pub(super) struct Batch<'a> {
    slots: &'a BTreeMap<GroupId, Slot>,
    touched: States,
    log: LogBatch,
}

impl<'a> Batch<'a> {
    /// An empty batch on top of these groups.
    pub(super) fn new(slots: &'a BTreeMap<GroupId, Slot>) -> Self {
        Batch {
            slots,
            touched: States::new(),
            log: LogBatch::default(),
        }
    }

    /// Adds a write as a whole, or nothing of it.
    pub(super) fn add(&mut self, write: LogWrite) -> Result<(), LogStoreError> {
        let states = self.check(&write)?;
        for (group, change) in write.changes {
            self.encode(group, change)?;
        }
        self.touched.extend(states);
        Ok(())
    }

    /// Adds the records of all sound groups.
    pub(super) fn add_all_records(&mut self) {
        for (group, slot) in self.slots {
            if let Slot::Sound(state) = slot {
                self.touched.entry(*group).or_insert(Some(*state));
            }
        }
    }

    /// The batch, and the states of the groups in it once it is written.
    pub(super) fn finish(mut self) -> Result<(LogBatch, States), LogStoreError> {
        for (group, state) in &self.touched {
            if let Some(state) = state {
                let record = record::encode(state);
                let put = self.log.put(group.0, RECORD_KEY.to_vec(), record);
                put.map_err(cannot_encode)?;
            }
        }
        Ok((self.log, self.touched))
    }

    /// The states after a write, if all its changes are allowed.
    fn check(&self, write: &LogWrite) -> Result<States, LogStoreError> {
        let mut states = States::new();
        for (group, change) in &write.changes {
            let state = match states.get(group).or_else(|| self.touched.get(group)) {
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
                self.log.add_command(group.0, Command::Clean);
            }
            LogChange::Append(entries) => {
                let entries: Vec<eraftpb::Entry> =
                    entries.into_iter().map(|LogEntry(entry)| entry).collect();
                self.log
                    .add_entries::<EntryCodec>(group.0, &entries)
                    .map_err(cannot_encode)?;
            }
            LogChange::Compact(position) => {
                let index = position.index.next().0;
                self.log.add_command(group.0, Command::Compact { index });
            }
            LogChange::HardState(_) => {}
        }
        Ok(())
    }
}

fn cannot_encode(error: raft_engine::Error) -> LogStoreError {
    LogStoreError::Write(format!("cannot encode a write: {error}"))
}
