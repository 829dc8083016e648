//! How fast a shard's state becomes files, and files become a shard's state, with
//! everything synced. What lies between, the network, is held to a rate on purpose.

use std::{fs, sync::mpsc, time::Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use raft_kv::storage::{SnapshotData, fetched};
use raft_kv_benches::{Fixture, GROUP, PutLog, apply};
use raft_lite::{ReplicaId, SnapshotMeta, StateMachine};

// The node's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: usize = 256 << 10;
const VALUE_BYTES: usize = 1024;

/// Makes a snapshot and reads what it is called.
fn make(source: &Fixture) -> (SnapshotMeta, SnapshotData) {
    let (sender, made) = mpsc::channel();
    source.machine.make_snapshot(GROUP, Box::new(move |result| drop(sender.send(result))));
    let meta = made.recv().expect("it is answered").expect("a snapshot can be made");
    let data = prost::Message::decode(meta.data.clone()).expect("it describes itself");
    (meta, data)
}

fn snapshots(criterion: &mut Criterion) {
    let source = Fixture::new();
    let mut log = PutLog::new(u64::MAX, VALUE_BYTES);
    for _ in 0..ROWS / 256 {
        apply(&*source.machine, &log.entry(256));
    }
    let (meta, data) = make(&source);
    let bytes = data.files.iter().map(|file| file.bytes).sum();
    let mut group = criterion.benchmark_group("snapshot");
    group.throughput(Throughput::Bytes(bytes)).sample_size(10);
    group.bench_function("make", |bencher| {
        bencher.iter_custom(|count| {
            let started = Instant::now();
            for _ in 0..count {
                let (made, _) = make(&source);
                source.machine.release_snapshot(GROUP, &made);
            }
            started.elapsed()
        });
    });
    let target = Fixture::empty();
    group.bench_function("install", |bencher| {
        bencher.iter_custom(|count| {
            (0..count)
                .map(|_| {
                    let (id, folder) = target.snapshots.create().expect("a folder can be made");
                    for file in &data.files {
                        let from = source.snapshots.file(data.id, &file.name);
                        let from = from.expect("the name is a file's");
                        fs::copy(from, folder.join(&file.name)).expect("the disk has room");
                    }
                    let started = Instant::now();
                    let installed =
                        target.machine.install_snapshot(GROUP, ReplicaId(1), &meta, &fetched(id));
                    installed.expect("the snapshot can be installed");
                    started.elapsed()
                })
                .sum()
        });
    });
    group.finish();
}

criterion_group!(benches, snapshots);
criterion_main!(benches);
