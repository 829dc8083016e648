//! The cost of applying puts and answering gets, through the plugin and natively.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use raft_kv::machine::{Freshness, Query};
use raft_kv_benches::{Fixture, GROUP, NativeMachine, PutLog, apply, get_request};
use raft_lite::StateMachine;

// The node's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;

fn puts(criterion: &mut Criterion) {
    let plugin = Fixture::new();
    let native = NativeMachine::new();
    for batch in [1, 64] {
        let mut group = criterion.benchmark_group(format!("apply {batch} puts"));
        group.throughput(Throughput::Elements(batch as u64));
        let machines: [(&str, &dyn StateMachine); 2] =
            [("plugin", &*plugin.machine), ("native", &native)];
        for (name, machine) in machines {
            let mut log = PutLog::new(KEYS, VALUE_BYTES);
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    || log.entry(batch),
                    |entry| apply(machine, &entry),
                    BatchSize::LargeInput,
                );
            });
        }
        group.finish();
    }
}

fn gets(criterion: &mut Criterion) {
    let plugin = Fixture::new();
    let native = NativeMachine::new();
    let mut log = PutLog::new(KEYS, VALUE_BYTES);
    for _ in 0..400 {
        let entry = log.entry(64);
        apply(&*plugin.machine, &entry);
        apply(&native, &entry);
    }
    let mut group = criterion.benchmark_group("get");
    group.bench_function("plugin", |bencher| {
        bencher.iter(|| {
            let (slot, request) = get_request(&log.next_key());
            let reader =
                plugin.machine.reader(GROUP, Freshness::Latest).expect("the shard is there");
            black_box(reader.query(&[Query { slot, request }], true)).expect("it answers")
        });
    });
    group.bench_function("native", |bencher| {
        bencher.iter(|| {
            let (slot, request) = get_request(&log.next_key());
            black_box(native.query(slot, &request))
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50);
    targets = puts, gets
}
criterion_main!(benches);
