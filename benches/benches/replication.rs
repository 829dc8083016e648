//! What the Raft runtime itself costs on three nodes: proposals to one, ten and a
//! thousand groups, and the three kinds of linearizable read.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use raft_kv_benches::{Replicas, read};
use raft_lite::GroupId;

// The node's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COMMAND_BYTES: usize = 256;
/// Requests under way at any time, as of so many clients.
const AT_ONCE: [u64; 2] = [1, 256];
const GROUP: GroupId = GroupId(1);

fn proposals(criterion: &mut Criterion) {
    let command = Bytes::from(vec![7; COMMAND_BYTES]);
    for groups in [1, 10, 1000] {
        let replicas = Replicas::start(groups);
        let mut group = criterion.benchmark_group(format!("propose to {groups} groups"));
        group.throughput(Throughput::Elements(1));
        for at_once in AT_ONCE {
            group.bench_function(format!("{at_once} at once"), |bencher| {
                bencher.iter_custom(|count| {
                    let started = Instant::now();
                    replicas.propose(count, at_once, &command);
                    started.elapsed()
                });
            });
        }
        group.finish();
    }
}

fn reads(criterion: &mut Criterion) {
    let replicas = Replicas::start(1);
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    let leader = replicas.leader(GROUP);
    group.bench_function("by the lease", |bencher| {
        bencher.iter(|| {
            if !black_box(leader.could_read(GROUP)) {
                // The lease lapsed: a busy machine. A round of the others renews it.
                read(leader, GROUP, 1, 1);
            }
        });
    });
    let nodes = [("confirmed by the others", leader), ("at a follower", replicas.follower(GROUP))];
    for (name, node) in nodes {
        for at_once in AT_ONCE {
            group.bench_function(format!("{name}, {at_once} at once"), |bencher| {
                bencher.iter_custom(|count| {
                    let started = Instant::now();
                    read(node, GROUP, count, at_once);
                    started.elapsed()
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = proposals, reads
}
criterion_main!(benches);
