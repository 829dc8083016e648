//! A log store in memory, for tests and simulations: it can lose what was not
//! synced, as a crash would, and refuse to write, as a full disk would.
//!
//! Invariants:
//! - `current` is `durable` with all of `buffered` applied in order;
//! - a write that fails leaves both as they were.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{
    Durability, LogChange, LogEntry, LogState, LogStore, LogStoreError, LogWrite, contract,
};
use crate::types::{GroupId, Index};

/// A log store in memory. See the module.
#[derive(Debug, Default)]
pub struct MemoryLogStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    durable: Logs,
    current: Logs,
    buffered: Vec<LogWrite>,
    failing: bool,
}

impl MemoryLogStore {
    /// A store without groups.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many writes were made since the last synced one: those a crash may lose.
    pub fn buffered_writes(&self) -> usize {
        self.inner.lock().buffered.len()
    }

    /// Loses all writes that were not synced, but for the first `keep_buffered`
    /// of them, which are durable from then on.
    pub fn crash(&self, keep_buffered: usize) {
        let mut inner = self.inner.lock();
        let mut kept = std::mem::take(&mut inner.buffered);
        kept.truncate(keep_buffered);
        for write in kept {
            inner.durable.apply(write);
        }
        inner.current = inner.durable.clone();
    }

    /// Makes every write fail from now on, or work again.
    pub fn fail_writes(&self, failing: bool) {
        self.inner.lock().failing = failing;
    }
}

impl LogStore for MemoryLogStore {
    fn groups(&self) -> Vec<GroupId> {
        self.inner.lock().current.0.keys().copied().collect()
    }

    fn state(&self, group: GroupId) -> Result<Option<LogState>, LogStoreError> {
        Ok(self.inner.lock().current.state(group))
    }

    fn entries(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, LogStoreError> {
        let inner = self.inner.lock();
        let log = inner.current.0.get(&group).ok_or_else(|| contract::no_log(group))?;
        contract::check_range(group, &log.state, low, high)?;
        if low >= high {
            return Ok(Vec::new());
        }
        let asked = log.entries.range(low..high).map(|(_, entry)| entry);
        let fitting = contract::count_fitting(asked.clone(), max_bytes);
        Ok(asked.take(fitting).cloned().collect())
    }

    fn write(&self, write: LogWrite, durability: Durability) -> Result<(), LogStoreError> {
        let mut inner = self.inner.lock();
        if inner.failing {
            return Err(LogStoreError::Write("told to fail".to_owned()));
        }
        inner.current.check(&write)?;
        inner.current.apply(write.clone());
        inner.buffered.push(write);
        if durability == Durability::Synced {
            let Inner { durable, buffered, .. } = &mut *inner;
            buffered.drain(..).for_each(|write| durable.apply(write));
        }
        Ok(())
    }

    fn reclaim(&self) -> Result<Vec<GroupId>, LogStoreError> {
        Ok(Vec::new())
    }
}

#[derive(Clone, Debug, Default)]
struct Logs(BTreeMap<GroupId, Log>);

#[derive(Clone, Debug)]
struct Log {
    state: LogState,
    entries: BTreeMap<Index, LogEntry>,
}

impl Logs {
    fn state(&self, group: GroupId) -> Option<LogState> {
        self.0.get(&group).map(|log| log.state)
    }

    /// Checks that all changes of a write can be made.
    fn check(&self, write: &LogWrite) -> Result<(), LogStoreError> {
        let mut touched = BTreeMap::new();
        for (group, change) in &write.changes {
            let state = touched.entry(*group).or_insert_with(|| self.state(*group));
            *state = contract::after_change(*state, change)
                .map_err(|reason| contract::refused(*group, &reason))?;
        }
        Ok(())
    }

    fn apply(&mut self, write: LogWrite) {
        for (group, change) in write.changes {
            let state = contract::after_change(self.state(group), &change)
                .expect("the write was checked against the state it was made on");
            let Some(state) = state else {
                self.0.remove(&group);
                continue;
            };
            let log =
                self.0.entry(group).or_insert_with(|| Log { state, entries: BTreeMap::new() });
            log.state = state;
            match change {
                LogChange::Create { .. } => log.entries.clear(),
                LogChange::Append(entries) => {
                    log.entries.split_off(&entries[0].index());
                    let entries = entries.into_iter().map(|entry| (entry.index(), entry));
                    log.entries.extend(entries);
                }
                LogChange::Compact(_) => {
                    log.entries = log.entries.split_off(&state.start.index.next());
                }
                LogChange::HardState(_) | LogChange::Clean => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, rngs::StdRng};

    use super::*;
    use crate::{
        log_store::conformance::{self, Subject},
        types::{HardState, INITIAL_POSITION, Term},
    };

    impl Subject for MemoryLogStore {
        fn store(&self) -> &dyn LogStore {
            self
        }

        fn reopen(&mut self) {
            self.crash(usize::MAX);
        }

        fn lose_unsynced(&mut self, random: &mut StdRng) {
            let kept = random.random_range(0..=self.buffered_writes());
            self.crash(kept);
        }
    }

    #[test]
    fn memory_log_store_keeps_the_contract() {
        conformance::check_all(&mut || Box::new(MemoryLogStore::new()));
    }

    #[test]
    fn random_operations_and_crashes_lose_nothing_synced() {
        for seed in 0..200 {
            conformance::check_random_operations(&mut MemoryLogStore::new(), seed, 200);
        }
    }

    fn hard_state_write(term: u64) -> LogWrite {
        let mut write = LogWrite::new();
        let hard_state = HardState { term: Term(term), ..HardState::default() };
        let change = match term {
            1 => LogChange::Create { start: INITIAL_POSITION, hard_state },
            _ => LogChange::HardState(hard_state),
        };
        write.push(GroupId(1), change);
        write
    }

    fn term(store: &MemoryLogStore) -> Option<Term> {
        let state = store.state(GroupId(1)).unwrap();
        state.map(|state| state.hard_state.term)
    }

    #[test]
    fn crash_keeps_as_many_buffered_writes_as_told() {
        let store = MemoryLogStore::new();
        store.write(hard_state_write(1), Durability::Synced).unwrap();
        for term in 2..=4 {
            store.write(hard_state_write(term), Durability::Buffered).unwrap();
        }
        store.crash(2);
        assert_eq!(term(&store), Some(Term(3)));
        store.crash(0);
        assert_eq!(term(&store), Some(Term(3)), "what survived a crash is durable");
    }

    #[test]
    fn failed_write_changes_nothing() {
        let store = MemoryLogStore::new();
        store.fail_writes(true);
        store.write(hard_state_write(1), Durability::Synced).unwrap_err();
        assert_eq!(term(&store), None);
        store.fail_writes(false);
        store.write(hard_state_write(1), Durability::Synced).unwrap();
        assert_eq!(term(&store), Some(Term(1)));
    }
}
