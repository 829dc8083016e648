//! The log store of a simulated node: it can crash, and tells what is appended.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    log_store::{
        Durability, LogChange, LogEntry, LogState, LogStore, LogStoreError, LogWrite,
        MemoryLogStore,
    },
    types::{GroupId, Index, Term},
};

/// Entries that were appended to a group's log.
pub(super) struct Appended {
    pub(super) group: GroupId,
    /// Term of the entry before them.
    pub(super) before: Term,
    pub(super) entries: Vec<LogEntry>,
}

#[derive(Default)]
pub(super) struct SimLog {
    store: MemoryLogStore,
    /// Writes that change a term or vote fail.
    fails_ballots: AtomicBool,
    appended: Mutex<Vec<Appended>>,
}

impl SimLog {
    pub(super) fn crash(&self, keep_buffered: usize) {
        self.store.crash(keep_buffered);
        self.appended.lock().unwrap().clear();
    }

    pub(super) fn fail_writes(&self, failing: bool) {
        self.store.fail_writes(failing);
    }

    /// Makes writes fail that change a term or vote.
    pub(super) fn fail_ballots(&self, failing: bool) {
        self.fails_ballots.store(failing, Ordering::Relaxed);
    }

    fn changes_ballot(&self, group: GroupId, change: &LogChange) -> bool {
        let LogChange::HardState(after) = change else { return false };
        let before = self.store.state(group).unwrap().map(|state| state.hard_state);
        before.is_some_and(|before| (before.term, before.vote) != (after.term, after.vote))
    }

    pub(super) fn take_appended(&self) -> Vec<Appended> {
        std::mem::take(&mut *self.appended.lock().unwrap())
    }

    /// The term of the entry at `index`, or of what the log begins after; `None` if
    /// the log does not reach there.
    pub(super) fn term_at(&self, group: GroupId, index: Index) -> Option<Term> {
        let state = self.store.state(group).unwrap()?;
        if index == state.start.index {
            return Some(state.start.term);
        }
        let entries = self.store.entries(group, index, index.next(), u64::MAX).ok()?;
        entries.first().map(LogEntry::term)
    }
}

impl LogStore for SimLog {
    fn groups(&self) -> Vec<GroupId> {
        self.store.groups()
    }

    fn state(&self, group: GroupId) -> Result<Option<LogState>, LogStoreError> {
        self.store.state(group)
    }

    fn entries(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, LogStoreError> {
        self.store.entries(group, low, high, max_bytes)
    }

    fn write(&self, write: LogWrite, durability: Durability) -> Result<(), LogStoreError> {
        let mut appended = Vec::new();
        for (group, change) in write.changes() {
            if self.fails_ballots.load(Ordering::Relaxed) && self.changes_ballot(*group, change) {
                return Err(LogStoreError::Write("the node crashes".to_owned()));
            }
            if let LogChange::Append(entries) = change {
                let before = Index(entries[0].index().0 - 1);
                if let Some(before) = self.term_at(*group, before) {
                    appended.push(Appended { group: *group, before, entries: entries.clone() });
                }
            }
        }
        self.store.write(write, durability)?;
        self.appended.lock().unwrap().append(&mut appended);
        Ok(())
    }

    fn reclaim(&self) -> Result<Vec<GroupId>, LogStoreError> {
        self.store.reclaim()
    }
}
