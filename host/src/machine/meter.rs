//! What is counted of each plugin on this node.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::wasm::{FailureKind, PluginResult};

/// The kinds of failure that are told apart, in the order of their numbers.
const FAILURES: usize = FailureKind::ALL.len();

/// What one plugin has done on this node since it started.
#[derive(Debug, Default)]
pub struct PluginMeter {
    succeeded: AtomicU64,
    failed: [AtomicU64; FAILURES],
    queries: AtomicU64,
    fuel: AtomicU64,
    apply_nanos: AtomicU64,
    query_nanos: AtomicU64,
    memory_bytes: AtomicU64,
}

/// [`PluginMeter`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginCounts {
    /// Commands that succeeded.
    pub succeeded: u64,
    /// Commands that failed, by [`FailureKind`].
    pub failed: Vec<(FailureKind, u64)>,
    /// Queries that ran.
    pub queries: u64,
    /// Fuel that commands used, those that ran twice both times.
    pub fuel: u64,
    /// Time that commands took, in batches.
    pub apply_time: Duration,
    /// Time that queries took, in batches.
    pub query_time: Duration,
    /// Linear memory of the instance that ran commands last.
    pub memory_bytes: u64,
}

impl PluginMeter {
    /// Counts a batch of commands.
    pub(super) fn count_commands(&self, results: &[PluginResult], fuel: u64, time: Duration) {
        let mut succeeded = results.len();
        for failure in results.iter().filter_map(|result| result.as_ref().err()) {
            self.failed[failure.kind as usize].fetch_add(1, Relaxed);
            succeeded -= 1;
        }
        self.succeeded.fetch_add(succeeded as u64, Relaxed);
        self.fuel.fetch_add(fuel, Relaxed);
        self.apply_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Counts a batch of queries.
    pub(super) fn count_queries(&self, count: usize, time: Duration) {
        self.queries.fetch_add(count as u64, Relaxed);
        self.query_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Notes how much memory an instance has.
    pub(super) fn note_memory(&self, bytes: usize) {
        self.memory_bytes.store(bytes as u64, Relaxed);
    }

    /// Commands that failed by the plugin's fault: in any other way than by its own `fail`.
    pub fn faults(&self) -> u64 {
        let kinds = FailureKind::ALL.into_iter().filter(|kind| *kind != FailureKind::Failed);
        kinds.map(|kind| self.failed[kind as usize].load(Relaxed)).sum()
    }

    /// What was counted.
    pub fn counts(&self) -> PluginCounts {
        let failed = FailureKind::ALL.into_iter();
        PluginCounts {
            succeeded: self.succeeded.load(Relaxed),
            failed: failed.map(|kind| (kind, self.failed[kind as usize].load(Relaxed))).collect(),
            queries: self.queries.load(Relaxed),
            fuel: self.fuel.load(Relaxed),
            apply_time: Duration::from_nanos(self.apply_nanos.load(Relaxed)),
            query_time: Duration::from_nanos(self.query_nanos.load(Relaxed)),
            memory_bytes: self.memory_bytes.load(Relaxed),
        }
    }
}
