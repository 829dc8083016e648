//! Runs the simulator from many seeds.
//!
//! ```text
//! cargo run --release -p raft-lite --example sim -- --seeds 1000 --from 1 --steps 500
//! ```
//!
//! A seed that breaks something ends the run with exit code 101 and is named; run
//! with `--seeds 1 --from SEED`, it does so again.

use std::{
    env,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use raft_lite::sim::{Options, Summary, run};

const USAGE: &str = "usage: sim [--seeds N] [--from SEED] [--steps N] [--nodes N] [--groups N]";

fn main() -> ExitCode {
    let mut options = Options::default();
    let (mut seeds, mut from) = (100, 0);
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let Some(Ok(number)) = arguments.next().map(|number| number.parse::<u64>()) else {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        };
        match name.as_str() {
            "--seeds" => seeds = number,
            "--from" => from = number,
            "--steps" => options.steps = number,
            "--nodes" => options.nodes = number.max(1),
            "--groups" => options.groups = number.max(1),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }

    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(from));
    let sum = Arc::new(Mutex::new(Summary::default()));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (next, sum) = (Arc::clone(&next), Arc::clone(&sum));
            thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return None;
                    }
                    let result = thread::Builder::new()
                        .name(format!("seed {seed}"))
                        .spawn(move || run(seed, options))
                        .expect("a thread can be started")
                        .join();
                    match result {
                        Ok(summary) => *sum.lock().expect("nobody panics with it") += summary,
                        Err(_) => return Some(seed),
                    }
                }
            })
        })
        .collect();
    let failed: Vec<u64> =
        workers.into_iter().filter_map(|worker| worker.join().expect("it catches all")).collect();
    let sum = sum.lock().expect("nobody panics with it");
    println!(
        "seeds {from}..{} in {:.1} s: {:?}",
        from + seeds,
        started.elapsed().as_secs_f64(),
        *sum
    );
    for seed in &failed {
        println!("seed {seed} failed: sim --seeds 1 --from {seed} --steps {}", options.steps);
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}
