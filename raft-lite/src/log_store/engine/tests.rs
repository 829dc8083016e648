//! The engine against the contract, against crashes at any byte, and against
//! flipped bits.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
    sync::atomic::AtomicBool,
    thread,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::{witness::newest_append_file, *};
use crate::{
    log_store::conformance::{self, Model, Subject, at, create, entries, entry, hard_state, write},
    types::{INITIAL_POSITION, Term},
};

/// So small that files are rotated and purged all the time.
const TINY: EngineOptions = EngineOptions {
    purge_threshold_bytes: 24 << 10,
    target_file_bytes: 4 << 10,
    compression_threshold_bytes: 0,
};

/// A raft-engine file header and then some: nothing before it is ever torn.
const HEADER_BYTES: u64 = 80;

struct EngineSubject {
    root: TempDir,
    generation: u32,
    options: EngineOptions,
    store: Option<EngineLogStore>,
    /// The newest file when a write returned last, and how much was in it: all of
    /// that was synced, buffered writes being elsewhere.
    synced: Option<(PathBuf, u64)>,
}

impl EngineSubject {
    fn new(options: EngineOptions) -> Self {
        let mut subject = EngineSubject {
            root: tempfile::tempdir().unwrap(),
            generation: 0,
            options,
            store: None,
            synced: None,
        };
        subject.open();
        subject
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join(self.generation.to_string())
    }

    fn open(&mut self) {
        self.store = Some(EngineLogStore::open(&self.folder(), self.options).unwrap());
        self.note_returned();
    }

    fn store(&self) -> &EngineLogStore {
        self.store.as_ref().expect("it is open but while it is reopened")
    }

    /// Copies the folder as it is and goes on there.
    fn move_on(&mut self) {
        let from = self.folder();
        self.generation += 1;
        copy_folder(&from, &self.folder());
    }
}

impl Subject for EngineSubject {
    fn store(&self) -> &dyn LogStore {
        self.store()
    }

    fn note_returned(&mut self) {
        let newest = newest_append_file(&self.folder()).unwrap().unwrap();
        let bytes = used_bytes(&newest);
        self.synced = Some((newest.file_name().unwrap().into(), bytes));
    }

    fn reopen(&mut self) {
        self.store = None;
        self.open();
    }

    fn lose_unsynced(&mut self, random: &mut StdRng) {
        self.move_on();
        self.store = None;
        let newest = newest_append_file(&self.folder()).unwrap().unwrap();
        let length = fs::metadata(&newest).unwrap().len();
        let durable = match &self.synced {
            Some((name, bytes)) if newest.ends_with(name) => *bytes,
            _ => HEADER_BYTES,
        };
        tear(&newest, durable.min(length), random);
        self.open();
    }
}

/// Damages a file from a random byte on, as a crash can damage what was not synced.
fn tear(path: &Path, durable: u64, random: &mut StdRng) {
    let mut content = fs::read(path).unwrap();
    // Most of the file is allocated ahead and holds nothing.
    let end = used_bytes(path).max(durable);
    let torn = random.random_range(durable..=end) as usize;
    match random.random_range(0..4) {
        0 => {}
        1 => content.truncate(torn),
        2 => content[torn..end as usize].fill(0),
        _ => {
            let stop = random.random_range(torn..=end as usize);
            random.fill(&mut content[torn..stop]);
        }
    }
    if random.random_bool(0.3) {
        content.extend((0..random.random_range(0..200)).map(|_| random.random::<u8>()));
    }
    fs::write(path, content).unwrap();
}

/// Where a file's content ends; what raft-engine allocates ahead is zero. A batch
/// ends with a checksum, of which up to four bytes may be zero too.
fn used_bytes(path: &Path) -> u64 {
    let content = fs::read(path).unwrap();
    let last = content.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| (last + 5).min(content.len())) as u64
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn flip(path: &Path, offset: u64, random: &mut StdRng) {
    let mut content = fs::read(path).unwrap();
    content[offset as usize] ^= 1 << random.random_range(0..8);
    fs::write(path, content).unwrap();
}

fn log_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let is_log =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "raftlog" || e == "rewrite");
    let mut files: Vec<PathBuf> = files.filter(is_log).collect();
    files.sort();
    files
}

#[test]
fn engine_log_store_keeps_the_contract() {
    conformance::check_all(&mut || Box::new(EngineSubject::new(EngineOptions::default())));
    conformance::check_all(&mut || Box::new(EngineSubject::new(TINY)));
}

#[test]
fn random_operations_and_torn_tails_lose_nothing_synced() {
    for seed in 0..12 {
        conformance::check_random_operations(&mut EngineSubject::new(TINY), seed, 300);
    }
    for seed in 100..103 {
        let compressed =
            EngineOptions { compression_threshold_bytes: 256, ..EngineOptions::default() };
        conformance::check_random_operations(&mut EngineSubject::new(compressed), seed, 150);
    }
}

#[test]
fn flipped_bit_is_reported_and_never_served() {
    let mut reported = 0;
    for seed in 0..15 {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut subject =
            EngineSubject::new(if seed == 0 { EngineOptions::default() } else { TINY });
        let mut model = Model::default();
        for step in 1..=120 {
            let made = model.random_write(random);
            subject.store().write(made, Durability::Synced).unwrap();
            if step % 20 == 0 {
                subject.store().reclaim().unwrap();
            }
        }
        // Closing it makes the last write something that may be lost.
        subject.store = None;
        let folder = subject.folder();
        for round in 0..60 {
            let copy = subject.root.path().join(format!("flipped-{round}"));
            copy_folder(&folder, &copy);
            let files = log_files(&copy);
            let damaged = &files[random.random_range(0..files.len())];
            flip(damaged, random.random_range(0..used_bytes(damaged)), random);
            match EngineLogStore::open(&copy, subject.options) {
                Ok(store) => {
                    let wrong = model.served_wrongly(&store);
                    assert_eq!(wrong, None, "seed {seed}, round {round}, {damaged:?}");
                }
                Err(_) => {
                    reported += 1;
                    let again = EngineLogStore::open(&copy, subject.options);
                    assert!(again.is_err(), "damage is forgotten: seed {seed}, round {round}");
                }
            }
            fs::remove_dir_all(copy).unwrap();
        }
    }
    assert!(reported > 20, "only {reported} were reported");
}

#[test]
fn lost_middle_of_the_only_file_keeps_the_log_from_opening() {
    let mut subject = EngineSubject::new(EngineOptions::default());
    write(subject.store(), [(GroupId(1), create(INITIAL_POSITION))]);
    let (_, middle) = subject.synced.clone().unwrap();
    for index in 6..9 {
        let append = LogChange::Append(vec![entry(index, 6)]);
        write(subject.store(), [(GroupId(1), append)]);
    }
    subject.move_on();
    subject.store = None;
    let file = newest_append_file(&subject.folder()).unwrap().unwrap();
    flip(&file, middle + 30, &mut StdRng::seed_from_u64(1));
    for _ in 0..2 {
        let opened = EngineLogStore::open(&subject.folder(), subject.options);
        let error = opened.err().expect("synced writes are gone").to_string();
        assert!(error.contains("it is damaged"), "{error}");
    }
}

#[test]
fn damaged_group_is_reported_and_can_be_replaced_while_others_go_on() {
    let mut subject = EngineSubject::new(EngineOptions::default());
    let (damaged, sound) = (GroupId(1), GroupId(2));
    for group in [damaged, sound] {
        let append = LogChange::Append(entries(6..11, 6));
        write(subject.store(), [(group, create(INITIAL_POSITION)), (group, append)]);
    }
    subject.store = None;
    let config = engine_config(subject.folder().to_str().unwrap(), subject.options);
    let engine = Engine::open(config).unwrap();
    engine.compact_to(damaged.0, 8);
    drop(engine);
    subject.open();

    let store = subject.store();
    assert_eq!(store.groups(), [damaged, sound]);
    assert_eq!(store.state(sound).unwrap().unwrap().last, at(10, 6));
    let error = store.state(damaged).unwrap_err();
    assert!(matches!(error, LogStoreError::Read { group, .. } if group == damaged));
    let mut refused = LogWrite::new();
    refused.push(damaged, LogChange::HardState(hard_state(9)));
    store.write(refused, Durability::Synced).unwrap_err();
    write(store, [(damaged, create(at(20, 7)))]);
    subject.reopen();
    let state = subject.store().state(damaged).unwrap().unwrap();
    assert_eq!((state.start, state.last), (at(20, 7), at(20, 7)));
}

#[test]
fn one_thread_reading_two_stores_gets_each_its_own_entries() {
    let stores = [EngineSubject::new(TINY), EngineSubject::new(TINY)];
    for (subject, letter) in stores.iter().zip([b'a', b'b']) {
        // The same sizes at the same places: raft-engine's cache takes one for the other.
        let data = Bytes::from(vec![letter; 100]);
        let append = LogChange::Append(vec![LogEntry::new(Index(6), Term(6), data)]);
        write(subject.store(), [(GroupId(1), create(INITIAL_POSITION)), (GroupId(1), append)]);
    }
    for _ in 0..2 {
        for (subject, letter) in stores.iter().zip([b'a', b'b']) {
            let read = subject.store().entries(GroupId(1), Index(6), Index(7), u64::MAX);
            assert!(read.unwrap()[0].payload().iter().all(|byte| *byte == letter));
        }
    }
}

#[test]
fn oversized_write_is_refused_and_leaves_the_store_usable() {
    let subject = EngineSubject::new(TINY);
    write(subject.store(), [(GroupId(1), create(INITIAL_POSITION))]);
    let data = Bytes::from(vec![0; 1 << 20]);
    let too_many = 6..7 + (WRITE_LIMIT_BYTES >> 20) as u64;
    let large = too_many.map(|index| LogEntry::new(Index(index), Term(6), data.clone()));
    let mut oversized = LogWrite::new();
    oversized.push(GroupId(1), LogChange::Append(large.collect()));
    let error = subject.store().write(oversized, Durability::Synced).unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error}");
    write(subject.store(), [(GroupId(1), LogChange::Append(entries(6..7, 6)))]);
}

#[test]
fn nothing_is_written_after_a_failed_write() {
    let mut subject = EngineSubject::new(TINY);
    write(subject.store(), [(GroupId(1), create(INITIAL_POSITION))]);
    subject.store().tail.lock().has_failed = true;
    for durability in [Durability::Buffered, Durability::Synced] {
        let mut refused = LogWrite::new();
        refused.push(GroupId(1), LogChange::HardState(hard_state(9)));
        let error = subject.store().write(refused, durability).unwrap_err();
        assert!(error.to_string().contains("failed before"), "{error}");
    }
    subject.store().reclaim().unwrap_err();
    subject.reopen();
    let state = subject.store().state(GroupId(1)).unwrap().unwrap();
    assert_eq!(state.hard_state, hard_state(INITIAL_POSITION.index.0));
}

#[test]
fn threads_write_and_read_while_space_is_reclaimed() {
    let mut subject = EngineSubject::new(TINY);
    let store = subject.store();
    let is_done = &AtomicBool::new(false);
    thread::scope(|scope| {
        let work = |group| {
            write(store, [(group, create(INITIAL_POSITION))]);
            for first in (6..306).step_by(3) {
                write(store, [(group, LogChange::Append(entries(first..first + 3, group.0)))]);
                let kept = first.saturating_sub(30).max(6);
                if first % 10 == 0 && kept > 6 {
                    write(store, [(group, LogChange::Compact(at(kept, group.0)))]);
                }
                let low = store.state(group).unwrap().unwrap().start.index.next();
                let read = store.entries(group, low, Index(first + 3), u64::MAX).unwrap();
                assert_eq!(read, entries(low.0..first + 3, group.0));
            }
        };
        let workers: Vec<_> =
            (1..=4).map(|group| scope.spawn(move || work(GroupId(group)))).collect();
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                store.reclaim().unwrap();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        is_done.store(true, Ordering::SeqCst);
    });
    let before = Model::read_from(subject.store());
    assert!(!log_files(&subject.folder())[0].ends_with("0000000000000001.raftlog"));
    subject.reopen();
    assert_eq!(Model::read_from(subject.store()), before);
}

/// Writes so much to a group that whatever else there is must be moved out of the
/// way.
fn fill_and_reclaim(subject: &EngineSubject, group: GroupId, indexes: std::ops::Range<u64>) {
    for index in indexes {
        let data = Bytes::from(vec![1; 1000]);
        let entry = LogEntry::new(Index(index), Term(6), data);
        let compact = LogChange::Compact(at(index, 6));
        write(subject.store(), [(group, LogChange::Append(vec![entry])), (group, compact)]);
        subject.store().reclaim().unwrap();
    }
}

#[test]
fn lost_end_of_rewritten_entries_keeps_the_log_from_opening() {
    let mut subject = EngineSubject::new(TINY);
    let (idle, busy) = (GroupId(1), GroupId(2));
    write(
        subject.store(),
        [
            (idle, create(INITIAL_POSITION)),
            (idle, LogChange::Append(entries(6..21, 6))),
            (busy, create(INITIAL_POSITION)),
        ],
    );
    fill_and_reclaim(&subject, busy, 6..106);
    subject.move_on();
    subject.store = None;
    let files = log_files(&subject.folder());
    let rewritten = files.iter().rfind(|file| file.extension().is_some_and(|e| e == "rewrite"));
    let rewritten = OpenOptions::new().write(true).open(rewritten.unwrap());
    rewritten.unwrap().set_len(HEADER_BYTES).unwrap();
    for _ in 0..2 {
        let opened = EngineLogStore::open(&subject.folder(), subject.options);
        let error = opened.err().expect("rewritten entries are gone").to_string();
        assert!(error.contains("it is damaged"), "{error}");
    }
}

#[test]
fn compacted_entries_stay_gone_after_their_files_were_purged() {
    let mut subject = EngineSubject::new(TINY);
    let [shrunk, grown, partly, busy] = [1, 2, 3, 4].map(GroupId);
    for group in [shrunk, grown, partly, busy] {
        write(subject.store(), [(group, create(INITIAL_POSITION))]);
    }
    for group in [shrunk, grown, partly] {
        write(subject.store(), [(group, LogChange::Append(entries(6..21, 6)))]);
    }
    fill_and_reclaim(&subject, busy, 6..106);
    // Now these entries are in the second queue. What is done to them is in the
    // first, and is purged from there.
    let changes = [
        (shrunk, LogChange::Append(entries(15..17, 7))),
        (shrunk, LogChange::Compact(at(16, 7))),
        (grown, LogChange::Append(entries(21..23, 7))),
        (grown, LogChange::Compact(at(22, 7))),
        (partly, LogChange::Compact(at(10, 6))),
    ];
    write(subject.store(), changes);
    fill_and_reclaim(&subject, busy, 106..206);
    let before = Model::read_from(subject.store());
    for _ in 0..2 {
        subject.reopen();
        assert_eq!(Model::read_from(subject.store()), before);
        let held = [shrunk, grown, partly].map(|group| subject.store().engine.first_index(group.0));
        assert_eq!(held, [None, None, Some(11)]);
    }
    for (group, next) in [(shrunk, 17), (grown, 23), (partly, 21)] {
        write(subject.store(), [(group, LogChange::Append(entries(next..next + 1, 7)))]);
    }
}

#[test]
fn synced_write_is_synced_once_with_the_buffered_ones_before_it() {
    let subject = EngineSubject::new(EngineOptions::default());
    write(subject.store(), [(GroupId(1), create(INITIAL_POSITION))]);
    let write_hard_state = |commit, durability| {
        let mut made = LogWrite::new();
        made.push(GroupId(1), LogChange::HardState(hard_state(commit)));
        raft_engine::take_perf_context();
        subject.store().write(made, durability).unwrap();
        !raft_engine::take_perf_context().log_sync_duration.is_zero()
    };
    let last_write = || subject.store().tail.lock().last_write;
    let before = last_write();
    assert!(!write_hard_state(6, Durability::Buffered));
    assert!(!write_hard_state(7, Durability::Buffered));
    assert_eq!(last_write(), before, "buffered writes wait in memory");
    assert!(write_hard_state(8, Durability::Synced));
    assert_eq!(last_write(), before + 1);
}

#[test]
fn idle_store_takes_little_space_and_opens_with_a_foreign_file_beside_it() {
    let mut subject = EngineSubject::new(EngineOptions::default());
    write(subject.store(), [(GroupId(1), create(INITIAL_POSITION))]);
    let mut stray = OpenOptions::new();
    let stray = stray.create(true).append(true).open(subject.folder().join("notes.txt"));
    stray.unwrap().write_all(b"not a log").unwrap();
    subject.reopen();
    subject.store = None;
    let files = log_files(&subject.folder());
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes < 4096, "{bytes}");
}
