//! The simplest log store there is, to compare real ones with: groups as plain
//! vectors, without durability. Also makes up random writes that it would accept.

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng};

use super::{at, entry, hard_state};
use crate::{
    log_store::{LogChange, LogEntry, LogState, LogStore, LogWrite},
    types::{GroupId, HardState, Index, LogPosition, Term},
};

const GROUPS: u64 = 4;
const LONGEST_APPEND: u64 = 8;
const LONGEST_PAYLOAD: usize = 300;

/// Everything a store holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    groups: BTreeMap<GroupId, Log>,
}

#[derive(Clone, Debug, PartialEq)]
struct Log {
    hard_state: HardState,
    start: LogPosition,
    entries: Vec<LogEntry>,
}

impl Log {
    fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.start, LogEntry::position)
    }
}

impl Model {
    /// Everything in a real store. Fails if the store contradicts itself.
    pub(crate) fn read_from(store: &dyn LogStore) -> Model {
        let log = |group| {
            let state = store.state(group).unwrap().expect("it was listed");
            let (low, high) = (state.start.index.next(), state.last.index.next());
            let mut entries = Vec::new();
            if low < high {
                entries = store.entries(group, low, high, u64::MAX).unwrap();
            }
            let log = Log { hard_state: state.hard_state, start: state.start, entries };
            assert_eq!(log.last(), state.last, "group {group}");
            (group, log)
        };
        Model { groups: store.groups().into_iter().map(log).collect() }
    }

    /// A group's state, as a store must report it.
    pub(crate) fn state(&self, group: GroupId) -> Option<LogState> {
        self.groups.get(&group).map(|log| LogState {
            hard_state: log.hard_state,
            start: log.start,
            last: log.last(),
        })
    }

    /// What the store serves that this model does not hold, or keeps silent about;
    /// it may say that it cannot serve something.
    pub(crate) fn served_wrongly(&self, store: &dyn LogStore) -> Option<String> {
        let listed = store.groups();
        let unknown = listed.iter().filter(|group| !self.groups.contains_key(group));
        for group in unknown {
            if let Ok(state) = store.state(*group) {
                return Some(format!("group {group}: {state:?} instead of none"));
            }
        }
        for (group, log) in &self.groups {
            let Ok(state) = store.state(*group) else {
                continue;
            };
            if state != self.state(*group) {
                let expected = self.state(*group);
                return Some(format!("group {group}: {state:?} instead of {expected:?}"));
            }
            for entry in &log.entries {
                let (low, high) = (entry.index(), entry.index().next());
                let served = store.entries(*group, low, high, u64::MAX);
                if served.is_ok_and(|served| served != [entry.clone()]) {
                    return Some(format!("group {group}: entry {low} is another"));
                }
            }
        }
        None
    }

    /// Makes a change that is allowed.
    pub(crate) fn apply(&mut self, group: GroupId, change: LogChange) {
        if let LogChange::Create { start, hard_state } = change {
            let log = Log { hard_state, start, entries: Vec::new() };
            self.groups.insert(group, log);
            return;
        }
        if change == LogChange::Clean {
            self.groups.remove(&group);
            return;
        }
        let log = self.groups.get_mut(&group).expect("the group was created");
        match change {
            LogChange::Append(entries) => {
                log.entries.retain(|entry| entry.index() < entries[0].index());
                log.entries.extend(entries);
            }
            LogChange::HardState(hard_state) => log.hard_state = hard_state,
            LogChange::Compact(position) if position.index > log.start.index => {
                log.entries.retain(|entry| entry.index() > position.index);
                log.start = position;
            }
            _ => {}
        }
    }

    /// Makes up a write of a few changes that are allowed, and applies it.
    pub(crate) fn random_write(&mut self, random: &mut StdRng) -> LogWrite {
        let mut write = LogWrite::new();
        for _ in 0..random.random_range(1..=4) {
            let group = GroupId(random.random_range(1..=GROUPS));
            let change = self.random_change(group, random);
            self.apply(group, change.clone());
            write.push(group, change);
        }
        write
    }

    fn random_change(&self, group: GroupId, random: &mut StdRng) -> LogChange {
        let new_hard_state = hard_state(random.random_range(1..1000));
        let create = LogChange::Create {
            start: at(random.random_range(0..200), random.random_range(0..9)),
            hard_state: new_hard_state,
        };
        let Some(log) = self.groups.get(&group) else {
            return match random.random_range(0..10) {
                0 => LogChange::Clean,
                _ => create,
            };
        };
        match random.random_range(0..100) {
            0..60 => log.random_append(random),
            60..80 => LogChange::HardState(new_hard_state),
            80..94 => LogChange::Compact(log.random_position(random)),
            94..97 => create,
            _ => LogChange::Clean,
        }
    }
}

impl Log {
    /// Mostly at the end, sometimes over what is there.
    fn random_append(&self, random: &mut StdRng) -> LogChange {
        let end = self.last().index.next().0;
        let first = match random.random_range(0..4) {
            0 => random.random_range(self.start.index.next().0..=end),
            _ => end,
        };
        let term = Term(self.last().term.0 + random.random_range(0..2));
        let count = random.random_range(1..=LONGEST_APPEND);
        let entries = (first..first + count).map(|index| {
            let mut data = vec![0; random.random_range(0..LONGEST_PAYLOAD)];
            random.fill(data.as_mut_slice());
            LogEntry::new(Index(index), term, data.into())
        });
        LogChange::Append(entries.collect())
    }

    fn random_position(&self, random: &mut StdRng) -> LogPosition {
        match random.random_range(0..6) {
            0 => self.last(),
            1 => self.start,
            _ => {
                let position = random.random_range(0..=self.entries.len());
                let compacted = self.entries[..position].last();
                compacted.map_or(self.start, LogEntry::position)
            }
        }
    }
}

#[test]
fn model_overwrites_and_compacts() {
    let mut model = Model::default();
    let create = LogChange::Create { start: at(5, 5), hard_state: hard_state(1) };
    let group = GroupId(1);
    model.apply(group, create);
    model.apply(group, LogChange::Append((6..10).map(|index| entry(index, 6)).collect()));
    model.apply(group, LogChange::Append(vec![entry(8, 7)]));
    model.apply(group, LogChange::Compact(at(6, 6)));
    let state = model.state(group).unwrap();
    assert_eq!((state.start, state.last), (at(6, 6), at(8, 7)));
    assert_eq!(model.groups[&group].entries, [entry(7, 6), entry(8, 7)]);
}
