//! What a plugin costs beside the same state machine compiled natively, on the same storage, as one
//! table. Both run in turn within one process, so that what else the machine does meets both; a row
//! shows medians, and the median of the rounds' ratios.
//!
//! With `RAFTKV_TABLE=FILE` the table is also written into that file, between its two marks.

use std::{fs, hint::black_box, time::Instant};

use raft_kv::machine::{Freshness, Query};
use raft_kv_benches::{
    Fixture, GROUP, NativeMachine, PutLog, Replicas, apply, get_request, scan_request,
};
use raft_lite::StateMachine;

// The node's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
const ROUNDS: usize = 101;
/// Of what takes longer.
const FEW_ROUNDS: usize = 15;
const BEGIN: &str = "<!-- plugin cost: begin -->\n";
const END: &str = "<!-- plugin cost: end -->";

/// Nanoseconds of one operation, and how many times the native one's.
struct Row {
    what: String,
    plugin: f64,
    native: f64,
    ratio: f64,
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Runs both in turn, in each round one, the other twice, and the one again: what grows or shrinks
/// meanwhile, and what a run leaves behind for the next, then meets both. Each run of `count`
/// operations tells how long it took in seconds.
fn compare(
    what: &str,
    (rounds, count): (usize, usize),
    mut plugin: impl FnMut() -> f64,
    mut native: impl FnMut() -> f64,
) -> Row {
    // Once for nothing: caches fill, code is paged in.
    plugin();
    native();
    let (mut plugins, mut natives, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let first = plugin();
        let other = native() + native();
        let one = first + plugin();
        plugins.push(one * 1e9 / (2 * count) as f64);
        natives.push(other * 1e9 / (2 * count) as f64);
        ratios.push(one / other);
    }
    Row {
        what: what.to_owned(),
        plugin: median(plugins),
        native: median(natives),
        ratio: median(ratios),
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn puts(batch: usize, commands: usize) -> Row {
    let (plugin, native) = (Fixture::new(), NativeMachine::new());
    let run = |machine: &dyn StateMachine, log: &mut PutLog| {
        let entries: Vec<_> = (0..commands / batch).map(|_| log.entry(batch)).collect();
        seconds(|| entries.iter().for_each(|entry| apply(machine, entry)))
    };
    let (mut one, mut other) = (PutLog::new(KEYS, VALUE_BYTES), PutLog::new(KEYS, VALUE_BYTES));
    let what = match batch {
        1 => "put, one command a batch".to_owned(),
        _ => format!("put, batches of {batch}"),
    };
    compare(
        &what,
        (ROUNDS, commands),
        || run(&*plugin.machine, &mut one),
        || run(&native, &mut other),
    )
}

/// Gets, and scans of a hundred rows.
fn reads() -> [Row; 2] {
    let (plugin, native) = (Fixture::new(), NativeMachine::new());
    let mut log = PutLog::new(KEYS, VALUE_BYTES);
    for _ in 0..400 {
        let entry = log.entry(64);
        apply(&*plugin.machine, &entry);
        apply(&native, &entry);
    }
    let keys: Vec<Vec<u8>> = (0..5_000).map(|_| log.next_key()).collect();
    let ask = |slot, request| {
        let reader = plugin.machine.reader(GROUP, Freshness::Latest).expect("the shard is there");
        black_box(reader.query(&[Query { slot, request }], true)).expect("it answers");
    };
    let get = compare(
        "get",
        (ROUNDS, keys.len()),
        || seconds(|| keys.iter().map(|key| get_request(key)).for_each(|(s, r)| ask(s, r))),
        || {
            seconds(|| {
                for (slot, request) in keys.iter().map(|key| get_request(key)) {
                    black_box(native.query(slot, &request));
                }
            })
        },
    );
    let scans: Vec<_> = keys.iter().take(500).map(|key| scan_request(key, 30)).collect();
    let scan = compare(
        "scan of 30 rows",
        (ROUNDS, scans.len()),
        || seconds(|| scans.iter().cloned().for_each(|(slot, request)| ask(slot, request))),
        || {
            seconds(|| {
                for (slot, request) in &scans {
                    black_box(native.query(*slot, request));
                }
            })
        },
    );
    [get, scan]
}

/// Puts through three nodes in one process: Raft, its log with fsync, and the state machine.
fn replicated(at_once: u64, commands: u64) -> Row {
    let plugins: Vec<Fixture> = (0..3).map(|_| Fixture::new()).collect();
    let plugin = Replicas::of(|node| plugins[node].machine.clone() as _);
    let native = Replicas::of(|_| std::sync::Arc::new(NativeMachine::new()) as _);
    let run = |replicas: &Replicas, log: &mut PutLog| {
        let puts: Vec<_> = (0..commands).map(|_| log.command()).collect();
        seconds(|| replicas.propose_each(puts, at_once))
    };
    let (mut one, mut other) = (PutLog::new(KEYS, VALUE_BYTES), PutLog::new(KEYS, VALUE_BYTES));
    compare(
        &format!("put on three nodes, {at_once} callers"),
        (FEW_ROUNDS, commands as usize),
        || run(&plugin, &mut one),
        || run(&native, &mut other),
    )
}

fn table(rows: &[Row]) -> String {
    let mut text = "| 256-byte values | plugin | native | ratio |\n|---|---|---|---|\n".to_owned();
    for Row { what, plugin, native, ratio } in rows {
        let time = |nanos: f64| format!("{:.2} µs", nanos / 1e3);
        text.push_str(&format!(
            "| {what} | {} | {} | {ratio:.2} |\n",
            time(*plugin),
            time(*native)
        ));
    }
    text
}

/// Puts the table between the marks of a file.
fn write(file: &str, table: &str) -> Result<(), Box<dyn std::error::Error>> {
    let text = fs::read_to_string(file)?;
    let (before, rest) = text.split_once(BEGIN).ok_or("it has no mark where the table begins")?;
    let (_, after) = rest.split_once(END).ok_or("it has no mark where the table ends")?;
    Ok(fs::write(file, format!("{before}{BEGIN}{table}{END}{after}"))?)
}

fn main() {
    // `cargo test` runs it too, to see that it does; nobody waits for figures then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let [get, scan] = reads();
    let rows =
        [puts(64, 64 * 100), puts(1, 2_000), get, scan, replicated(1, 300), replicated(100, 5_000)];
    let table = table(&rows);
    println!("{table}");
    if let Ok(file) = std::env::var("RAFTKV_TABLE")
        && let Err(error) = write(&file, &table)
    {
        eprintln!("the table is not written into {file}: {error}");
        std::process::exit(1);
    }
}
