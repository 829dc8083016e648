//! The callers: closed loops over the connections, from the warm-up to the end of
//! the phase.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{TryStreamExt, stream};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    args::{Args, Phase},
    cluster::{CannotLoad, Cluster, Connection},
    tally::Tally,
    workload::{Operation, Operations, Workload},
};

/// A caller whose call failed waits so long, for a cluster that is down not to be
/// hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// Calls in flight while the keys are loaded, the size of each, and how often
/// each is tried.
const LOAD_CALLS: usize = 16;
const LOAD_CALL_OPERATIONS: usize = 128;
const LOAD_CALL_BYTES: usize = 1 << 20;
const LOAD_ATTEMPTS: usize = 5;

/// When operations count: those that begin from `start` on and before `end`. As
/// many are in flight at one edge as at the other, so that their number over the
/// time between is the throughput.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    end: Instant,
}

/// One of the loops.
struct Caller {
    connection: Connection,
    operations: Operations,
    /// Operations in a call; `None` for calls of one operation only.
    batch: Option<usize>,
    window: Window,
    tally: Arc<Mutex<Tally>>,
}

/// Runs all callers through a phase; gives what they counted together.
pub async fn run_phase(args: &Args, phase: Phase, cluster: &Cluster) -> Tally {
    let workload = Workload::new(args, phase);
    // One for all callers of a connection: a histogram for each would crowd the
    // caches, and one for all would be fought over.
    let tallies: Vec<Arc<Mutex<Tally>>> =
        (0..cluster.connections()).map(|_| Arc::new(Mutex::new(Tally::new()))).collect();
    let start = Instant::now() + args.warm_up();
    let window = Window { start, end: start + args.duration };
    let mut callers = JoinSet::new();
    for caller in 0..args.concurrency {
        let caller = Caller {
            connection: cluster.connection_of(caller),
            operations: workload.of_caller(caller),
            batch: args.batch,
            window,
            tally: Arc::clone(&tallies[caller % tallies.len()]),
        };
        callers.spawn(caller.run());
    }
    callers.join_all().await;

    let mut sum = Tally::new();
    for tally in tallies {
        let tally = Arc::into_inner(tally).expect("all callers have ended");
        sum.merge(tally.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    sum
}

impl Caller {
    async fn run(mut self) {
        let mut began = Instant::now();
        while began < self.window.end {
            let answer = match self.batch {
                None => self.connection.single(self.operations.next()).await,
                Some(size) => {
                    let operations = (0..size).map(|_| self.operations.next()).collect();
                    self.connection.batch(operations).await
                }
            };
            let ended = Instant::now();
            let failed = answer.done == 0;
            if began >= self.window.start {
                let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.record(ended - began, answer);
            }
            began = ended;
            if failed {
                sleep(PAUSE_AFTER_FAILURE).await;
                began = Instant::now();
            }
        }
    }
}

/// Writes every key once.
///
/// # Errors
/// If a part of them fails again and again.
pub async fn load_keys(args: &Args, cluster: &Cluster) -> Result<(), CannotLoad> {
    let mut operations = Workload::new(args, Phase::Put).of_caller(0);
    let size = (LOAD_CALL_BYTES / args.value_size.max(1)).clamp(1, LOAD_CALL_OPERATIONS);
    let calls = (0..args.keys).step_by(size).enumerate().map(|(call, first)| {
        let numbers = first..args.keys.min(first + size);
        let puts: Vec<Operation> = numbers.map(|number| operations.put(number as u64)).collect();
        Ok(load_some(cluster.any_connection(call), puts))
    });
    stream::iter(calls).try_buffer_unordered(LOAD_CALLS).try_collect().await
}

/// Carries out all of `puts`.
async fn load_some(mut connection: Connection, puts: Vec<Operation>) -> Result<(), CannotLoad> {
    let mut attempt = 1;
    loop {
        let answer = connection.batch(puts.clone()).await;
        let Some(failure) = answer.failures.into_iter().next() else { return Ok(()) };
        if attempt == LOAD_ATTEMPTS {
            return Err(CannotLoad(format!("{} ({})", failure.message, failure.kind)));
        }
        attempt += 1;
        sleep(PAUSE_AFTER_FAILURE).await;
    }
}
