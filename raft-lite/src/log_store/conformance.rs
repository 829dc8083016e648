//! What every [`LogStore`] must do, as tests that take the store from outside.
//!
//! [`check_all`] goes through the contract property by property;
//! [`check_random_operations`] compares a store with a model under random writes,
//! reclaims, restarts and crashes.

mod model;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

pub(crate) use self::model::Model;
use super::{Durability, LogChange, LogEntry, LogState, LogStore, LogStoreError, LogWrite};
use crate::types::{GroupId, HardState, INITIAL_POSITION, Index, LogPosition, ReplicaId, Term};

/// A log store under test, empty when it is made.
pub(crate) trait Subject {
    /// The store as it is now.
    fn store(&self) -> &dyn LogStore;

    /// Told after each write and reclaim that returned.
    fn note_returned(&mut self) {}

    /// Closes and opens the store in good order.
    fn reopen(&mut self);

    /// Lets the store lose what was not synced from a random point on, as a crash
    /// would, and opens it again.
    fn lose_unsynced(&mut self, random: &mut StdRng);
}

/// Makes new subjects.
pub(crate) type Fresh<'a> = &'a mut dyn FnMut() -> Box<dyn Subject>;

const G: GroupId = GroupId(7);

/// Checks each property of the contract on a store of its own.
pub(crate) fn check_all(fresh: Fresh<'_>) {
    let properties: [fn(&mut dyn Subject); 12] = [
        unknown_group_has_no_log,
        created_log_is_empty_after_its_start,
        entries_are_read_back_as_appended,
        append_drops_what_it_overwrites,
        reads_are_bounded_by_bytes_but_give_one_entry,
        reads_out_of_range_are_refused,
        compaction_changes_nothing_that_remains,
        compaction_to_the_last_entry_leaves_an_empty_log,
        cleaned_group_is_gone_and_can_be_created_again,
        one_write_carries_many_changes_in_order,
        refused_write_changes_nothing,
        buffered_writes_are_seen_and_made_durable_by_the_next_synced_one,
    ];
    for property in properties {
        property(&mut *fresh());
    }
}

/// Checks a store against a model. `seed` decides everything but time.
pub(crate) fn check_random_operations(subject: &mut dyn Subject, seed: u64, steps: usize) {
    let random = &mut StdRng::seed_from_u64(seed);
    // What the store holds after each write since the last synced one.
    let mut history = vec![Model::default()];
    for step in 0..steps {
        let context = format!("seed {seed}, step {step}");
        let mut now = history.last().expect("it is never empty").clone();
        match random.random_range(0..100) {
            0..90 => {
                let write = now.random_write(random);
                let is_synced = random.random_bool(0.5);
                let durability = match is_synced {
                    true => Durability::Synced,
                    false => Durability::Buffered,
                };
                subject.store().write(write, durability).expect(&context);
                subject.note_returned();
                if is_synced {
                    history.clear();
                }
                history.push(now);
                continue;
            }
            90..94 => {
                subject.store().reclaim().expect(&context);
                subject.note_returned();
                assert_eq!(Model::read_from(subject.store()), now, "{context}");
                continue;
            }
            94..96 => subject.reopen(),
            _ => {
                if random.random_bool(0.7) {
                    // The crash comes while this is written: it may be there or not.
                    let write = now.random_write(random);
                    subject.store().write(write, Durability::Synced).expect(&context);
                    history.push(now);
                }
                subject.lose_unsynced(random);
                let found = Model::read_from(subject.store());
                let survived = history.iter().rposition(|model| *model == found);
                let survived = survived.unwrap_or_else(|| panic!("no prefix survived: {context}"));
                now = history[survived].clone();
            }
        }
        assert_eq!(Model::read_from(subject.store()), now, "{context}");
        // What a store recovered, it must not lose any more.
        let synced = subject.store().write(LogWrite::new(), Durability::Synced);
        synced.expect(&context);
        subject.note_returned();
        history = vec![now];
    }
}

pub(crate) fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index: Index(index), term: Term(term) }
}

pub(crate) fn entry(index: u64, term: u64) -> LogEntry {
    let data = format!("entry {index} of term {term}");
    LogEntry::new(Index(index), Term(term), Bytes::from(data))
}

pub(crate) fn entries(indexes: std::ops::Range<u64>, term: u64) -> Vec<LogEntry> {
    indexes.map(|index| entry(index, term)).collect()
}

pub(crate) fn hard_state(commit: u64) -> HardState {
    HardState {
        term: Term(commit / 2),
        vote: (!commit.is_multiple_of(3)).then_some(ReplicaId(commit)),
        commit: Index(commit),
    }
}

pub(crate) fn create(start: LogPosition) -> LogChange {
    LogChange::Create { start, hard_state: hard_state(start.index.0) }
}

pub(crate) fn write(store: &dyn LogStore, changes: impl IntoIterator<Item = (GroupId, LogChange)>) {
    let changes = changes.into_iter().collect();
    store.write(LogWrite { changes }, Durability::Synced).unwrap();
}

/// A group with entries 6..=10 of term 6.
fn with_five_entries(subject: &mut dyn Subject) {
    let append = LogChange::Append(entries(6..11, 6));
    write(subject.store(), [(G, create(INITIAL_POSITION)), (G, append)]);
}

fn state(subject: &dyn Subject) -> LogState {
    subject.store().state(G).unwrap().expect("the group has a log")
}

fn read(subject: &dyn Subject, low: u64, high: u64) -> Result<Vec<LogEntry>, LogStoreError> {
    subject.store().entries(G, Index(low), Index(high), u64::MAX)
}

/// Runs a check now, after a restart, and after a crash.
fn always(subject: &mut dyn Subject, check: impl Fn(&dyn Subject)) {
    check(subject);
    subject.reopen();
    check(subject);
    subject.note_returned();
    subject.lose_unsynced(&mut StdRng::seed_from_u64(0));
    check(subject);
}

fn unknown_group_has_no_log(subject: &mut dyn Subject) {
    always(subject, |subject| {
        assert!(subject.store().groups().is_empty());
        assert_eq!(subject.store().state(G).unwrap(), None);
        assert!(matches!(read(subject, 6, 7), Err(LogStoreError::Read { .. })));
    });
}

fn created_log_is_empty_after_its_start(subject: &mut dyn Subject) {
    write(subject.store(), [(G, create(at(20, 3)))]);
    always(subject, |subject| {
        assert_eq!(subject.store().groups(), [G]);
        let expected = LogState { hard_state: hard_state(20), start: at(20, 3), last: at(20, 3) };
        assert_eq!(state(subject), expected);
        assert_eq!(read(subject, 21, 21).unwrap(), []);
    });
    write(subject.store(), [(G, LogChange::Append(entries(21..22, 4)))]);
    always(subject, |subject| assert_eq!(state(subject).last, at(21, 4)));
}

fn entries_are_read_back_as_appended(subject: &mut dyn Subject) {
    with_five_entries(subject);
    let odd = [
        LogEntry::new(Index(11), Term(6), Bytes::new()),
        LogEntry::new(Index(12), Term(u64::MAX), Bytes::from(vec![0; 100_000])),
        LogEntry::new_structural(Index(13), Term(u64::MAX), Bytes::from(vec![7; 100])),
    ];
    write(subject.store(), [(G, LogChange::Append(odd.to_vec()))]);
    always(subject, |subject| {
        assert_eq!(state(subject).last, at(13, u64::MAX));
        let expected = [entries(6..11, 6), odd.to_vec()].concat();
        assert_eq!(read(subject, 6, 14).unwrap(), expected);
        assert_eq!(read(subject, 8, 9).unwrap(), entries(8..9, 6));
    });
}

fn append_drops_what_it_overwrites(subject: &mut dyn Subject) {
    with_five_entries(subject);
    write(subject.store(), [(G, LogChange::Append(entries(8..9, 7)))]);
    always(subject, |subject| {
        assert_eq!(state(subject).last, at(8, 7));
        let expected = [entries(6..8, 6), entries(8..9, 7)].concat();
        assert_eq!(read(subject, 6, 9).unwrap(), expected);
        assert!(matches!(read(subject, 6, 10), Err(LogStoreError::OutOfRange { .. })));
    });
    write(subject.store(), [(G, LogChange::Append(entries(6..12, 9)))]);
    always(subject, |subject| {
        assert_eq!(read(subject, 6, 12).unwrap(), entries(6..12, 9));
    });
}

fn reads_are_bounded_by_bytes_but_give_one_entry(subject: &mut dyn Subject) {
    with_five_entries(subject);
    let size = entry(6, 6).size() as u64;
    let count = |max_bytes| {
        let read = subject.store().entries(G, Index(6), Index(11), max_bytes);
        let read = read.unwrap();
        assert_eq!(read, entries(6..6 + read.len() as u64, 6));
        read.len()
    };
    assert_eq!(count(0), 1);
    assert_eq!(count(size), 1);
    assert_eq!(count(size * 3 - 1), 2);
    assert_eq!(count(size * 3), 3);
    assert_eq!(count(u64::MAX), 5);
}

fn reads_out_of_range_are_refused(subject: &mut dyn Subject) {
    with_five_entries(subject);
    write(subject.store(), [(G, LogChange::Compact(at(7, 6)))]);
    always(subject, |subject| {
        for (low, high) in [(7, 8), (0, 1), (8, 12), (12, 13), (11, 12)] {
            let error = read(subject, low, high).unwrap_err();
            let LogStoreError::OutOfRange { first, last, .. } = error else {
                panic!("{low}..{high}: {error}");
            };
            assert_eq!((first, last), (Index(8), Index(10)));
        }
    });
}

fn compaction_changes_nothing_that_remains(subject: &mut dyn Subject) {
    with_five_entries(subject);
    let before = state(subject);
    write(subject.store(), [(G, LogChange::Compact(at(8, 6)))]);
    // Done already: nothing happens.
    write(subject.store(), [(G, LogChange::Compact(at(7, 6)))]);
    always(subject, |subject| {
        let start = at(8, 6);
        assert_eq!(state(subject), LogState { start, ..before });
        assert_eq!(read(subject, 9, 11).unwrap(), entries(9..11, 6));
    });
}

fn compaction_to_the_last_entry_leaves_an_empty_log(subject: &mut dyn Subject) {
    with_five_entries(subject);
    write(subject.store(), [(G, LogChange::Compact(at(10, 6)))]);
    always(subject, |subject| {
        assert_eq!(state(subject).start, at(10, 6));
        assert_eq!(state(subject).last, at(10, 6));
    });
    write(subject.store(), [(G, LogChange::Append(entries(11..13, 7)))]);
    always(subject, |subject| {
        assert_eq!(read(subject, 11, 13).unwrap(), entries(11..13, 7));
    });
}

fn cleaned_group_is_gone_and_can_be_created_again(subject: &mut dyn Subject) {
    with_five_entries(subject);
    write(subject.store(), [(G, LogChange::Clean)]);
    always(subject, |subject| {
        assert!(subject.store().groups().is_empty());
        assert_eq!(subject.store().state(G).unwrap(), None);
    });
    write(subject.store(), [(G, LogChange::Clean)]);
    with_five_entries(subject);
    // Over what is there, within one write, and further on in the log.
    let append = LogChange::Append(entries(101..103, 9));
    write(
        subject.store(),
        [(G, LogChange::Clean), (G, create(at(50, 8))), (G, create(at(100, 8))), (G, append)],
    );
    always(subject, |subject| {
        assert_eq!(state(subject).start, at(100, 8));
        assert_eq!(state(subject).hard_state, hard_state(100));
        assert_eq!(read(subject, 101, 103).unwrap(), entries(101..103, 9));
    });
    // Back to where the first one was.
    write(subject.store(), [(G, create(at(7, 6)))]);
    write(subject.store(), [(G, LogChange::Append(entries(8..9, 6)))]);
    always(subject, |subject| {
        assert_eq!(read(subject, 8, 9).unwrap(), entries(8..9, 6));
        assert_eq!(state(subject).last, at(8, 6));
    });
}

fn one_write_carries_many_changes_in_order(subject: &mut dyn Subject) {
    let of_group = |group: u64| {
        let group = GroupId(group);
        [
            (group, create(INITIAL_POSITION)),
            (group, LogChange::Append(entries(6..20, group.0))),
            (group, LogChange::HardState(hard_state(10))),
            (group, LogChange::Compact(at(8, group.0))),
            (group, LogChange::Append(entries(15..17, group.0 + 1))),
            (group, LogChange::HardState(hard_state(15))),
            (group, LogChange::Compact(at(12, group.0))),
        ]
    };
    write(subject.store(), (1..=50).rev().flat_map(of_group));
    always(subject, |subject| {
        let groups: Vec<GroupId> = (1..=50).map(GroupId).collect();
        assert_eq!(subject.store().groups(), groups);
        for group in groups {
            let expected = LogState {
                hard_state: hard_state(15),
                start: at(12, group.0),
                last: at(16, group.0 + 1),
            };
            assert_eq!(subject.store().state(group).unwrap(), Some(expected));
            let (low, high) = (Index(13), Index(17));
            let read = subject.store().entries(group, low, high, u64::MAX);
            let expected = [entries(13..15, group.0), entries(15..17, group.0 + 1)];
            assert_eq!(read.unwrap(), expected.concat());
        }
    });
}

fn refused_write_changes_nothing(subject: &mut dyn Subject) {
    with_five_entries(subject);
    let unknown = GroupId(8);
    let refused = [
        (G, LogChange::Append(Vec::new())),
        (G, LogChange::Append(entries(13..14, 6))),
        (G, LogChange::Append(entries(5..12, 6))),
        (G, LogChange::Append(vec![entry(12, 6), entry(14, 6)])),
        (G, LogChange::Compact(at(12, 6))),
        (G, LogChange::Compact(at(11, 5))),
        (unknown, LogChange::Append(entries(6..7, 6))),
        (unknown, LogChange::HardState(hard_state(6))),
        (unknown, LogChange::Compact(at(6, 6))),
    ];
    for (group, change) in refused {
        let allowed = LogChange::Append(entries(11..12, 6));
        let changes = vec![(G, allowed), (group, change.clone())];
        let written = subject.store().write(LogWrite { changes }, Durability::Synced);
        let error = written.expect_err("the second change is wrong");
        assert!(matches!(error, LogStoreError::Write(_)), "{change:?}: {error}");
        assert_eq!(state(subject).last, at(10, 6), "{change:?}");
    }
    always(subject, |subject| {
        assert_eq!(subject.store().groups(), [G]);
        assert_eq!(state(subject).last, at(10, 6));
        assert_eq!(read(subject, 6, 11).unwrap(), entries(6..11, 6));
    });
}

fn buffered_writes_are_seen_and_made_durable_by_the_next_synced_one(subject: &mut dyn Subject) {
    with_five_entries(subject);
    let mut buffered = LogWrite::new();
    buffered.push(G, LogChange::HardState(hard_state(9)));
    subject.store().write(buffered, Durability::Buffered).unwrap();
    assert_eq!(state(subject).hard_state, hard_state(9));
    subject.store().write(LogWrite::new(), Durability::Synced).unwrap();
    subject.note_returned();
    subject.lose_unsynced(&mut StdRng::seed_from_u64(0));
    assert_eq!(state(subject).hard_state, hard_state(9));
}
