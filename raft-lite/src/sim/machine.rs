//! A state machine that remembers what it applied, and forgets from some point
//! on when its node crashes.

use std::{collections::BTreeMap, sync::Mutex};

use rand::{Rng, rngs::SmallRng};

use crate::{
    startup::ReplicaRecord,
    state_machine::{ApplyError, CommandOutcome, GroupEntries, StateMachine},
    types::{GroupId, INITIAL_POSITION, Index, LogPosition},
};

/// An applied entry: where it was and the numbers of its commands.
pub(super) type Applied = (LogPosition, Vec<u64>);

#[derive(Default)]
struct State {
    applied: BTreeMap<GroupId, Vec<Applied>>,
    /// How much of each group's list is on disk.
    persisted: BTreeMap<GroupId, usize>,
    started: bool,
}

pub(super) struct SimMachine {
    state: Mutex<State>,
}

impl SimMachine {
    pub(super) fn new() -> Self {
        SimMachine { state: Mutex::default() }
    }

    pub(super) fn record(&self, group: GroupId) -> ReplicaRecord {
        let state = self.state.lock().unwrap();
        let applied = state.applied.get(&group).and_then(|applied| applied.last());
        ReplicaRecord {
            applied: applied.map_or(INITIAL_POSITION, |(position, _)| *position),
            started: state.started,
            applied_by_snapshot: false,
        }
    }

    pub(super) fn note_started(&self) {
        self.state.lock().unwrap().started = true;
    }

    /// Loses a random part of what was not on disk.
    pub(super) fn crash(&self, rng: &mut SmallRng) {
        let mut state = self.state.lock().unwrap();
        let State { applied, persisted, .. } = &mut *state;
        for (group, applied) in applied {
            let least = persisted.get(group).copied().unwrap_or(0);
            applied.truncate(rng.random_range(least..=applied.len()));
            persisted.insert(*group, applied.len());
        }
    }

    /// Everything of a group applied and not lost.
    pub(super) fn applied(&self, group: GroupId) -> Vec<Applied> {
        self.state.lock().unwrap().applied.get(&group).cloned().unwrap_or_default()
    }
}

impl StateMachine for SimMachine {
    fn apply(
        &self,
        batch: &[GroupEntries],
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<(), ApplyError> {
        let mut state = self.state.lock().unwrap();
        for group in batch {
            let applied = state.applied.entry(group.group).or_default();
            for entry in &group.entries {
                let expected = applied.last().map_or(INITIAL_POSITION, |(last, _)| *last);
                assert_eq!(entry.position.index, expected.index.next(), "entries have a gap");
                let mut numbers = Vec::new();
                for command in entry.payload.iter().flat_map(|payload| &payload.commands) {
                    let number = command.payload.as_ref().try_into().unwrap();
                    numbers.push(u64::from_be_bytes(number));
                    outcomes.push(CommandOutcome::Applied(command.payload.clone()));
                }
                applied.push((entry.position, numbers));
            }
        }
        Ok(())
    }

    fn request_flush(&self) {}

    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError> {
        let mut state = self.state.lock().unwrap();
        // Being asked is as good a moment as any for a flush to have happened.
        let applied = state.applied.get(&group).map_or(0, Vec::len);
        state.persisted.insert(group, applied);
        let last = state.applied.get(&group).and_then(|applied| applied.last());
        Ok(last.map_or(INITIAL_POSITION.index, |(position, _)| position.index))
    }
}
