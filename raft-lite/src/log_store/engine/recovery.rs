//! Brings the groups' states together again when a log is opened, and finds the
//! groups whose log is damaged.
//!
//! Raft-engine does not keep a compaction for good: once the file with the command
//! is purged, entries that had been rewritten before come back when the log is
//! opened. The record knows where the log begins, so they are removed again. A
//! log without entries needs a clean for that: what came back may have been
//! overwritten before it was compacted, and reach beyond the log's end.

use std::collections::BTreeMap;

use raft_engine::{Command, Engine, LogBatch};

use super::{
    Slot,
    batch::STORE_GROUP,
    record::{self, RECORD_KEY},
};
use crate::{
    log_store::LogState,
    types::{GroupId, Index},
};

/// What was found in a log.
pub(super) struct Recovered {
    /// All groups that have a log.
    pub(super) slots: BTreeMap<GroupId, Slot>,
    /// What to write to remove entries that came back; often empty.
    pub(super) repairs: LogBatch,
}

/// How the entries that raft-engine holds fit a group's record.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Exact,
    /// Entries before the log's beginning came back.
    CompactedEntriesBack,
    /// The log is empty, but entries came back.
    EmptiedEntriesBack,
    Damaged(String),
}

/// Reads the states of all groups.
pub(super) fn recover(engine: &Engine) -> Recovered {
    let mut recovered = Recovered { slots: BTreeMap::new(), repairs: LogBatch::default() };
    for group in engine.raft_groups().into_iter().map(GroupId) {
        if group != STORE_GROUP {
            recovered.add(engine, group);
        }
    }
    recovered
}

impl Recovered {
    fn add(&mut self, engine: &Engine, group: GroupId) {
        let held = engine
            .first_index(group.0)
            .zip(engine.last_index(group.0))
            .map(|(first, last)| (Index(first), Index(last)));
        let slot = match (engine.get(group.0, RECORD_KEY), held) {
            // Commands leave such groups behind in raft-engine's memory.
            (None, None) => return,
            (None, Some(_)) => Slot::Damaged("it has entries but no record".to_owned()),
            (Some(record), held) => match record::decode(&record) {
                Ok(state) => self.add_recorded(group, state, held, record),
                Err(damage) => Slot::Damaged(damage),
            },
        };
        self.slots.insert(group, slot);
    }

    fn add_recorded(
        &mut self,
        group: GroupId,
        state: LogState,
        held: Option<(Index, Index)>,
        record: Vec<u8>,
    ) -> Slot {
        match fit(&state, held) {
            Fit::Exact => {}
            Fit::CompactedEntriesBack => {
                let index = state.start.index.next().0;
                self.repairs.add_command(group.0, Command::Compact { index });
            }
            Fit::EmptiedEntriesBack => {
                self.repairs.add_command(group.0, Command::Clean);
                self.repairs
                    .put(group.0, RECORD_KEY.to_vec(), record)
                    .expect("the key is not one of raft-engine's own");
            }
            Fit::Damaged(damage) => return Slot::Damaged(damage),
        }
        Slot::Sound(state)
    }
}

fn fit(state: &LogState, held: Option<(Index, Index)>) -> Fit {
    let (first, last) = (state.start.index.next(), state.last.index);
    let is_empty = state.start.index == last;
    match held {
        None if is_empty => Fit::Exact,
        Some(_) if is_empty => Fit::EmptiedEntriesBack,
        Some((held_first, held_last)) if held_first <= first && held_last == last => {
            if held_first == first { Fit::Exact } else { Fit::CompactedEntriesBack }
        }
        Some((held_first, held_last)) => Fit::Damaged(format!(
            "it should hold entries {first}..={last}, but holds {held_first}..={held_last}"
        )),
        None => Fit::Damaged(format!("it should hold entries {first}..={last}, but holds none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogPosition, Term};

    fn fit_of(start: u64, last: u64, held: Option<(u64, u64)>) -> Fit {
        let at = |index| LogPosition { index: Index(index), term: Term(1) };
        let state = LogState { hard_state: Default::default(), start: at(start), last: at(last) };
        fit(&state, held.map(|(first, last)| (Index(first), Index(last))))
    }

    #[test]
    fn entries_that_came_back_are_told_from_damage() {
        assert_eq!(fit_of(5, 5, None), Fit::Exact);
        assert_eq!(fit_of(5, 9, Some((6, 9))), Fit::Exact);
        assert_eq!(fit_of(5, 9, Some((2, 9))), Fit::CompactedEntriesBack);
        assert_eq!(fit_of(5, 5, Some((2, 4))), Fit::EmptiedEntriesBack);
        assert_eq!(fit_of(5, 5, Some((2, 9))), Fit::EmptiedEntriesBack);
        for held in [None, Some((7, 9)), Some((6, 8)), Some((6, 10)), Some((2, 4))] {
            assert!(matches!(fit_of(5, 9, held), Fit::Damaged(_)), "{held:?}");
        }
    }
}
