//! The overlay against a plain map.

use std::{collections::BTreeMap, sync::Arc};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;
use crate::storage::{OwnedSnapshot, Storage, StorageOptions};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

struct Fixture {
    storage: Arc<Storage>,
    overlay: Overlay,
    _folder: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Storage::open(folder.path(), StorageOptions::default()).unwrap());
    let overlay = Overlay::new(ReadView::Latest(Arc::clone(&storage)));
    Fixture { storage, overlay, _folder: folder }
}

impl Fixture {
    fn write(&mut self) {
        let mut writes = WriteSet::new();
        self.overlay.drain_into(&mut writes);
        self.storage.write(writes).unwrap();
    }

    fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.overlay.get(key, |value| value.map(<[u8]>::to_vec)).unwrap()
    }

    fn scan(&mut self, start: &[u8], end: Option<&[u8]>, reverse: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.overlay.scan_open(0, start, end, reverse);
        let mut rows = Vec::new();
        self.overlay
            .scan_next(0, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        self.overlay.scan_close(0);
        rows
    }
}

fn model_scan(
    model: &Model,
    start: &[u8],
    end: Option<&[u8]>,
    reverse: bool,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inside = |key: &[u8]| key >= start && end.is_none_or(|end| key < end);
    let mut rows: Vec<_> =
        model.iter().filter(|(k, _)| inside(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    if reverse {
        rows.reverse();
    }
    rows
}

#[test]
fn it_reads_like_a_map_through_seals_discards_and_writes() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut fixture = fixture();
    let mut committed = Model::new();
    for _ in 0..400 {
        let mut running = committed.clone();
        fixture.overlay.begin(Slot(3));
        for _ in 0..rng.random_range(1..6) {
            let key = vec![rng.random_range(0..20_u8); rng.random_range(1..3)];
            if rng.random_bool(0.6) {
                let value = vec![rng.random::<u8>(); rng.random_range(0..5)];
                fixture.overlay.put(&key, &value);
                running.insert(key.clone(), value);
            } else {
                fixture.overlay.delete(&key);
                running.remove(&key);
            }
            assert_eq!(fixture.get(&key), running.get(&key).cloned());
            let (start, end) = (vec![rng.random_range(0..20_u8)], vec![rng.random_range(0..20_u8)]);
            let end = rng.random_bool(0.7).then_some(end.as_slice());
            let reverse = rng.random_bool(0.5);
            assert_eq!(
                fixture.scan(&start, end, reverse),
                model_scan(&running, &start, end, reverse)
            );
        }
        if rng.random_bool(0.7) {
            fixture.overlay.seal();
            committed = running;
        } else {
            fixture.overlay.discard();
        }
        if rng.random_bool(0.2) {
            fixture.write();
        }
    }
}

#[test]
fn slots_do_not_see_each_other() {
    let mut fixture = fixture();
    for (slot, value) in [(1, b"one"), (2, b"two")] {
        fixture.overlay.begin(Slot(slot));
        fixture.overlay.put(b"\xff\xff", value);
        fixture.overlay.put(b"", value);
        fixture.overlay.seal();
    }
    fixture.write();
    fixture.overlay.begin(Slot(1));
    assert_eq!(fixture.get(b"").as_deref(), Some(&b"one"[..]));
    assert_eq!(fixture.scan(b"", None, false).len(), 2);
    assert_eq!(fixture.scan(b"", None, true)[0], (b"\xff\xff".to_vec(), b"one".to_vec()));
    fixture.overlay.begin(Slot(0));
    assert_eq!(fixture.scan(b"", None, false), vec![]);
}

#[test]
fn a_scan_does_not_see_writes_made_after_it_was_opened() {
    let mut fixture = fixture();
    fixture.overlay.begin(Slot(1));
    fixture.overlay.put(b"a", b"1");
    fixture.overlay.scan_open(5, b"", None, false);
    fixture.overlay.put(b"b", b"2");
    let mut keys = Vec::new();
    let mut row = |key: &[u8], _: &[u8]| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    };
    fixture.overlay.scan_next(5, &mut row).unwrap();
    assert_eq!(keys, [b"a".to_vec()]);
}

#[test]
fn a_row_that_was_left_comes_again() {
    let mut fixture = fixture();
    fixture.overlay.begin(Slot(1));
    fixture.overlay.put(b"a", b"1");
    fixture.overlay.scan_open(0, b"", None, false);
    fixture.overlay.scan_next(0, &mut |_, _| ControlFlow::Break(())).unwrap();
    let mut seen = 0;
    fixture
        .overlay
        .scan_next(0, &mut |_, _| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn a_snapshot_does_not_move() {
    let mut fixture = fixture();
    fixture.overlay.begin(Slot(1));
    fixture.overlay.put(b"a", b"old");
    fixture.overlay.seal();
    fixture.write();
    let snapshot = Arc::new(OwnedSnapshot::new(Arc::clone(&fixture.storage)));
    fixture.overlay.begin(Slot(1));
    fixture.overlay.put(b"a", b"new");
    fixture.overlay.seal();
    fixture.write();
    let mut then = Overlay::new(ReadView::Snapshot(snapshot));
    then.begin(Slot(1));
    assert_eq!(then.get(b"a", |v| v.map(<[u8]>::to_vec)).unwrap().unwrap(), b"old");
    assert_eq!(fixture.get(b"a").unwrap(), b"new");
}

#[test]
fn the_hash_of_a_write_set_tells_what_was_written() {
    let mut fixture = fixture();
    let mut hash_of = |writes: &[(&[u8], Option<&[u8]>)]| {
        fixture.overlay.begin(Slot(1));
        for (key, value) in writes {
            match value {
                Some(value) => fixture.overlay.put(key, value),
                None => fixture.overlay.delete(key),
            }
        }
        fixture.overlay.seal();
        fixture.overlay.take_write_hashes()[0]
    };
    let put = hash_of(&[(b"a", Some(b"1"))]);
    assert_eq!(put, hash_of(&[(b"a", Some(b"2")), (b"a", Some(b"1"))]));
    assert_ne!(put, hash_of(&[(b"a", Some(b"2"))]));
    assert_ne!(put, hash_of(&[(b"b", Some(b"1"))]));
    assert_ne!(put, hash_of(&[(b"a", None)]));
    assert_ne!(put, hash_of(&[]));
}

#[test]
fn many_scans_of_a_commands_large_writes_hold_them_once() {
    let mut fixture = fixture();
    fixture.overlay.begin(Slot(1));
    fixture.overlay.put(b"large", &vec![7; 1 << 20]);
    for id in 0..16 {
        assert_eq!(fixture.overlay.scan_open(id, b"", None, id % 2 == 0), 1);
    }
    let (key, value) = fixture.overlay.command.first_key_value().unwrap();
    assert_eq!((Arc::strong_count(key), Arc::strong_count(value.as_ref().unwrap())), (17, 17));
    // What is written now, they do not see.
    fixture.overlay.put(b"large", b"");
    for id in 0..16 {
        let mut seen = Vec::new();
        let mut take = |key: &[u8], value: &[u8]| {
            seen.push((key.to_vec(), value.len()));
            ControlFlow::Continue(())
        };
        fixture.overlay.scan_next(id, &mut take).unwrap();
        assert_eq!(seen, [(b"large".to_vec(), 1 << 20)]);
    }
}
