//! Measures a plugin as a node runs it: kept instances, batches, the overlay over RocksDB.
//!
//! Beside the plugin runs one that does nothing with its commands. What that takes is the host's
//! share: calling in, pulling, ending a command, the overlay and the write of a batch. No log, no
//! network and no other replica is involved.

mod idle;

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::Serialize;

use crate::{
    storage::{Overlay, ReadView, Storage, StorageError, StorageOptions, WriteSet},
    wasm::{
        Call, Executor, FailureKind, HostError, Limits, ModuleError, PluginEngine, PluginModule,
        PluginResult, PluginStorage, QueryResult, Reuse, Seed,
    },
};

/// Replicated time of the first command, in milliseconds.
const FIRST_TIME_MS: u64 = 1_700_000_000_000;
/// Commands whose fuel is found out: it takes some thirty runs each.
const MAX_WEIGHED: usize = 1_000;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No folder for the database.
    #[error("cannot make a temporary folder: {0}")]
    Folder(#[from] std::io::Error),
    /// The database failed.
    #[error("the temporary database failed: {0}")]
    Storage(#[from] StorageError),
    /// This machine cannot run plugins.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The plugin that does nothing is not one.
    #[error("the plugin to compare with is refused: {0}")]
    Idle(#[from] ModuleError),
}

/// What to measure, and for how long.
pub struct Plan<'a> {
    /// The plugin.
    pub module: &'a PluginModule,
    /// Its commands, repeated as often as there is time.
    pub commands: &'a [Bytes],
    /// Its queries.
    pub queries: &'a [Bytes],
    /// Commands of a large batch.
    pub batch: usize,
    /// For each of the measurements.
    pub time: Duration,
}

/// How fast calls went.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Commands or queries that the plugin was entered for at once.
    pub batch: usize,
    /// How many there were in a second.
    pub per_second: f64,
    /// How long one took.
    pub microseconds: f64,
    /// How long one of the plugin that does nothing took.
    pub crossing_microseconds: f64,
    /// The share that failed.
    pub failed: f64,
}

/// What commands use of their fuel.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Fuel {
    /// The least of any command.
    pub min: u64,
    /// What half of them stay within.
    pub median: u64,
    /// The most of any command.
    pub max: u64,
    /// What one may use.
    pub limit: u64,
    /// The most, as a share of what one may use.
    pub max_share: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Commands one by one, and in large batches.
    pub commands: [Speed; 2],
    /// Queries one by one.
    pub queries: Speed,
    /// Fuel of commands that run on instances of their own.
    pub fuel: Fuel,
    /// What a command that runs by itself writes to the database, in bytes. In a batch those that
    /// write the same key write it once.
    pub bytes_written: f64,
}

/// Measures a plugin on a database in a temporary folder. All that it needs, it makes anew.
///
/// # Errors
/// If this machine cannot do it. A plugin whose commands fail is measured all the same.
pub fn run(engine: &PluginEngine, plan: &Plan<'_>) -> Result<Report, BenchError> {
    let idle = PluginModule::compile(engine, &idle::module())?;
    let nothing = [Bytes::new()];
    let (mut commands, mut bytes_written) = (Vec::new(), 0.0);
    for batch in [1, plan.batch] {
        let crossing = Bench::new(engine, &idle, &nothing)?.commands(batch, plan.time)?;
        let mut bench = Bench::new(engine, plan.module, plan.commands)?;
        let measured = bench.commands(batch, plan.time)?;
        if batch == 1 {
            bytes_written = measured.bytes as f64 / measured.calls as f64;
        }
        commands.push(measured.speed(batch, &crossing));
    }
    let crossing = Bench::new(engine, &idle, &nothing)?.queries(&nothing, plan.time)?;
    let mut bench = Bench::new(engine, plan.module, plan.commands)?;
    let fuel = bench.weigh()?;
    let queries = bench.queries(plan.queries, plan.time)?.speed(1, &crossing);
    Ok(Report { commands: [commands[0], commands[1]], queries, fuel, bytes_written })
}

/// Calls that ran, and what they came to.
struct Measured {
    calls: u64,
    failed: u64,
    bytes: u64,
    took: Duration,
}

impl Measured {
    fn microseconds(&self) -> f64 {
        self.took.as_secs_f64() * 1e6 / self.calls as f64
    }

    fn speed(&self, batch: usize, crossing: &Measured) -> Speed {
        Speed {
            batch,
            per_second: 1e6 / self.microseconds(),
            microseconds: self.microseconds(),
            crossing_microseconds: crossing.microseconds(),
            failed: self.failed as f64 / self.calls as f64,
        }
    }
}

/// A plugin with a database of its own.
struct Bench<'a> {
    module: &'a PluginModule,
    commands: &'a [Bytes],
    executor: Executor,
    /// For runs that are to use what a command needs alone.
    alone: Executor,
    storage: Arc<Storage>,
    limits: Limits,
    /// Commands begun so far.
    index: u64,
    _folder: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    fn new(
        engine: &PluginEngine,
        module: &'a PluginModule,
        commands: &'a [Bytes],
    ) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir()?;
        let storage = Storage::open(folder.path(), StorageOptions::default())?;
        Ok(Bench {
            module,
            commands,
            executor: Executor::new(engine, Reuse::Keep)?,
            alone: Executor::new(engine, Reuse::Never)?,
            storage: Arc::new(storage),
            limits: Limits::default(),
            index: 0,
            _folder: folder,
        })
    }

    fn overlay(&self) -> Box<Overlay> {
        Box::new(Overlay::new(ReadView::Latest(Arc::clone(&self.storage))))
    }

    fn call(&mut self, payload: &Bytes) -> Call {
        self.index += 1;
        Call {
            slot: 0,
            index: self.index,
            time_ms: FIRST_TIME_MS + self.index,
            position: 0,
            seed: Seed::At { group: 0, index: self.index, position: 0 },
            payload: payload.clone(),
        }
    }

    /// The next commands of the file, from its beginning when it is over.
    fn next_calls(&mut self, count: usize) -> Vec<Call> {
        let commands = self.commands;
        (0..count)
            .map(|_| {
                let place = self.index as usize % commands.len();
                self.call(&commands[place])
            })
            .collect()
    }

    /// Applies batches for as long as given, after a tenth of that to warm up.
    fn commands(&mut self, batch: usize, time: Duration) -> Result<Measured, BenchError> {
        for _ in repeat(time / 10) {
            self.apply(batch)?;
        }
        let mut measured = Measured { calls: 0, failed: 0, bytes: 0, took: Duration::ZERO };
        let started = Instant::now();
        for _ in repeat(time) {
            let (results, bytes) = self.apply(batch)?;
            measured.calls += results.len() as u64;
            measured.failed += results.iter().filter(|result| result.is_err()).count() as u64;
            measured.bytes += bytes;
        }
        measured.took = started.elapsed();
        Ok(measured)
    }

    /// Applies one batch as the node does it, and tells how many bytes it wrote.
    fn apply(&mut self, batch: usize) -> Result<(Vec<PluginResult>, u64), BenchError> {
        let calls = self.next_calls(batch);
        let overlay = self.overlay();
        let outcome = self.executor.apply(self.module, &self.limits, calls, overlay)?;
        let bytes = self.write(outcome.storage)?;
        Ok((outcome.results, bytes))
    }

    fn write(&self, storage: Box<dyn PluginStorage>) -> Result<u64, BenchError> {
        let storage: Box<dyn Any> = storage;
        let mut writes = WriteSet::new();
        if let Ok(mut overlay) = storage.downcast::<Overlay>() {
            overlay.drain_into(&mut writes);
        }
        let bytes = writes.bytes();
        self.storage.write(writes)?;
        Ok(bytes)
    }

    fn queries(&mut self, queries: &[Bytes], time: Duration) -> Result<Measured, BenchError> {
        let mut measured = Measured { calls: 0, failed: 0, bytes: 0, took: Duration::ZERO };
        let started = Instant::now();
        for round in repeat(time) {
            let call = self.call(&queries[round % queries.len()]);
            let overlay = self.overlay();
            let outcome =
                self.executor.query(self.module, &self.limits, None, vec![call], overlay)?;
            measured.calls += 1;
            let done = matches!(outcome.results[..], [QueryResult::Done(Ok(_))]);
            measured.failed += u64::from(!done);
        }
        measured.took = started.elapsed();
        Ok(measured)
    }

    /// Applies each command once, and finds out the least fuel that it comes to its end with.
    fn weigh(&mut self) -> Result<Fuel, BenchError> {
        let limit = self.limits.fuel_per_command;
        let mut found = Vec::new();
        for _ in 0..self.commands.len().min(MAX_WEIGHED) {
            let calls = self.next_calls(1);
            let (mut too_little, mut enough) = (0, limit);
            while enough - too_little > 1 {
                let middle = u64::midpoint(too_little, enough);
                match self.suffices(&calls, middle)? {
                    true => enough = middle,
                    false => too_little = middle,
                }
            }
            found.push(enough);
            let overlay = self.overlay();
            let outcome = self.alone.apply(self.module, &self.limits, calls, overlay)?;
            self.write(outcome.storage)?;
        }
        found.sort_unstable();
        let max = found.last().copied().unwrap_or(0);
        Ok(Fuel {
            min: found.first().copied().unwrap_or(0),
            median: found.get(found.len() / 2).copied().unwrap_or(0),
            max,
            limit,
            max_share: max as f64 / limit as f64,
        })
    }

    /// Whether a command ends within some fuel, in whatever way. Nothing that it writes stays.
    fn suffices(&mut self, calls: &[Call], fuel_per_command: u64) -> Result<bool, BenchError> {
        let limits = Limits { fuel_per_command, ..self.limits };
        let overlay = self.overlay();
        let outcome = self.alone.apply(self.module, &limits, calls.to_vec(), overlay)?;
        let out_of_fuel = |result: &PluginResult| {
            result.as_ref().is_err_and(|failure| failure.kind == FailureKind::OutOfFuel)
        };
        Ok(!outcome.results.iter().any(out_of_fuel))
    }
}

/// Rounds, at least one, until the time is over.
fn repeat(time: Duration) -> impl Iterator<Item = usize> {
    let until = Instant::now() + time;
    (0..).take_while(move |round| *round == 0 || Instant::now() < until)
}
