//! What the host keeps beside an instance while it runs: the batch, the command that runs, limits.
//!
//! Invariants:
//! - `job.results.len()` is the position in the batch of the command that runs, or else of the one
//!   that comes next. Results are pushed once and never touched again.
//! - While the phase is `Running`, the storage has a command layer open; else it has none, and no
//!   scan is open.
//! - In the phase `Over` nothing that the plugin does can reach a result any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmtime::{Memory, ResourceLimiter};

use super::abi;
use super::error::{FailureKind, HostError, PluginFailure, PluginResult, Stop};
use super::limits::{Limits, MAX_LOG_LINES_PER_SECOND, MAX_TABLE_ELEMENTS, MAX_WRITTEN_BYTES};
use super::seed::Seed;
use super::storage::{Detached, PluginStorage, ScanId};

/// One command or query, as the plugin gets it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The slot it runs in.
    pub slot: u32,
    /// The log index of its entry; for a query the applied index of the state that it reads.
    pub index: u64,
    /// Replicated time in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Its position in its entry.
    pub position: u32,
    /// The random seed.
    pub seed: Seed,
    /// What the client sent.
    pub payload: Bytes,
}

impl Call {
    /// The 64 bytes that `context` writes.
    pub(super) fn context(&self) -> [u8; abi::CONTEXT_BYTES] {
        let mut out = [0; abi::CONTEXT_BYTES];
        out[..abi::PLACE_BYTES].copy_from_slice(&self.place());
        out[32..].copy_from_slice(&self.seed.bytes());
        out
    }

    /// The first of them, which say where it stands in the log.
    pub(super) fn place(&self) -> [u8; abi::PLACE_BYTES] {
        let mut out = [0; abi::PLACE_BYTES];
        out[0..8].copy_from_slice(&self.index.to_le_bytes());
        out[8..16].copy_from_slice(&self.time_ms.to_le_bytes());
        out[16..20].copy_from_slice(&self.slot.to_le_bytes());
        out[20..24].copy_from_slice(&self.position.to_le_bytes());
        out
    }
}

/// Which export runs, and so what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Commands: may write.
    Apply,
    /// Reads: may not write.
    Query,
    /// Slots to be carried over from another version: may write.
    Migrate,
}

/// A batch on its way through instances. Moves into an instance to run and out again.
pub(super) struct Job {
    pub(super) entry: Entry,
    pub(super) calls: Vec<Call>,
    /// Calls from here on are not offered yet: `calls.len()`, or less while one runs alone.
    pub(super) until: usize,
    pub(super) results: Vec<PluginResult>,
    /// A call asked for its context, so that its result may depend on the time.
    pub(super) asked_context: bool,
    pub(super) storage: Box<dyn PluginStorage>,
    /// Fuel that the calls with results have used, on the runs that count and on those that do not.
    pub(super) fuel: u64,
}

impl Job {
    pub(super) fn new(entry: Entry, calls: Vec<Call>, storage: Box<dyn PluginStorage>) -> Job {
        let results = Vec::with_capacity(calls.len());
        Job { entry, until: calls.len(), calls, results, storage, fuel: 0, asked_context: false }
    }

    /// What an instance holds between batches. Allocates nothing.
    pub(super) fn none() -> Job {
        Job::new(Entry::Query, Vec::new(), Box::new(Detached))
    }

    pub(super) fn is_done(&self) -> bool {
        self.results.len() >= self.calls.len()
    }
}

/// Where the plugin is between two pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before a command: the next one has not begun.
    Idle,
    /// In a command.
    Running,
    /// It was told that the batch is over.
    Over,
}

/// The data of a wasmtime store.
pub(super) struct GuestState {
    /// Set once, right after instantiation; looking it up by name costs a hash on every call.
    pub(super) memory: Option<Memory>,
    /// The plugin's name and version, for the log.
    pub(super) plugin: Arc<str>,
    pub(super) job: Job,
    pub(super) phase: Phase,
    pub(super) fuel_per_command: u64,
    pub(super) limiter: MemoryLimiter,
    pub(super) log: LogBudget,
    pub(super) scratch: Vec<u8>,
    response: Bytes,
    failure: Option<PluginFailure>,
    open_scans: u16,
    /// Bytes of keys and values that the running command has written.
    written_bytes: usize,
}

impl GuestState {
    pub(super) fn new(plugin: Arc<str>, limits: Limits) -> GuestState {
        GuestState {
            memory: None,
            plugin,
            job: Job::none(),
            phase: Phase::Over,
            fuel_per_command: limits.fuel_per_command,
            limiter: MemoryLimiter { memory_bytes: limits.memory_bytes },
            log: LogBudget::default(),
            scratch: Vec::new(),
            response: Bytes::new(),
            failure: None,
            open_scans: 0,
            written_bytes: 0,
        }
    }

    /// The call that runs, or comes next.
    pub(super) fn call(&self) -> Option<&Call> {
        let position = self.job.results.len();
        if position < self.job.until { self.job.calls.get(position) } else { None }
    }

    /// The running command, or the reason why there is none to speak of.
    pub(super) fn running(&self, what: &str) -> wasmtime::Result<()> {
        if self.phase == Phase::Running {
            return Ok(());
        }
        Err(Stop::bad_call(format!("`{what}` was called while no command was running")))
    }

    /// Like [`running`](Self::running), and the command may write.
    pub(super) fn writing(&self, what: &str) -> wasmtime::Result<()> {
        if self.job.entry == Entry::Query {
            return Err(Stop::bad_call(format!(
                "`{what}` was called in a query, which only reads"
            )));
        }
        self.running(what)
    }

    /// The next command starts.
    pub(super) fn begin(&mut self) {
        let Some(slot) = self.call().map(|call| call.slot) else { return };
        self.job.storage.begin(slot);
        self.written_bytes = 0;
        self.phase = Phase::Running;
    }

    /// The running command writes so much more: keys and values of all its writes are held in memory
    /// until it ends.
    pub(super) fn write(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.written_bytes += bytes;
        if self.written_bytes <= MAX_WRITTEN_BYTES {
            return Ok(());
        }
        let message = format!("the command writes more than {MAX_WRITTEN_BYTES} bytes");
        Err(Stop::plugin(FailureKind::MemoryLimit, message))
    }

    /// The running command is over: keeps its writes if it did not `fail`, and its result.
    pub(super) fn end(&mut self) {
        let response = std::mem::take(&mut self.response);
        self.end_with(response);
    }

    /// The same, with this response and not the one it gave before.
    pub(super) fn end_with(&mut self, response: Bytes) {
        self.response.clear();
        self.close_scans();
        let result = match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(response),
        };
        if result.is_ok() && self.job.entry != Entry::Query {
            self.job.storage.seal();
        } else {
            self.job.storage.discard();
        }
        self.job.results.push(result);
        self.phase = Phase::Idle;
    }

    /// The running command, if any, never was.
    pub(super) fn abandon(&mut self) {
        self.close_scans();
        self.response = Bytes::new();
        self.failure = None;
        if self.phase == Phase::Running {
            self.job.storage.discard();
            self.phase = Phase::Idle;
        }
    }

    pub(super) fn set_response(&mut self, response: Bytes) {
        self.response = response;
    }

    pub(super) fn set_failure(&mut self, code: u32, message: String) {
        self.failure = Some(PluginFailure { kind: FailureKind::Failed, code, message });
    }

    /// The lowest free scan id, which is the handle that the plugin gets.
    pub(super) fn free_scan(&self) -> Option<ScanId> {
        let free = self.open_scans.trailing_ones() as u8;
        (usize::from(free) < abi::MAX_OPEN_SCANS).then_some(ScanId(free))
    }

    pub(super) fn scan_opened(&mut self, scan: ScanId) {
        self.open_scans |= 1 << scan.0;
    }

    /// The open scan behind a plugin's handle.
    pub(super) fn scan(&self, handle: u32) -> wasmtime::Result<ScanId> {
        let open = (handle as usize) < abi::MAX_OPEN_SCANS && self.open_scans & (1 << handle) != 0;
        if !open {
            return Err(Stop::bad_call(format!("no scan is open under the handle {handle}")));
        }
        Ok(ScanId(handle as u8))
    }

    pub(super) fn close_scan(&mut self, scan: ScanId) {
        self.open_scans &= !(1 << scan.0);
        self.job.storage.scan_close(scan);
    }

    fn close_scans(&mut self) {
        while self.open_scans != 0 {
            self.close_scan(ScanId(self.open_scans.trailing_zeros() as u8));
        }
    }
}

/// Ends a command that grows memory or a table beyond the limit.
///
/// Growth never fails softly with −1: a plugin that leaks would see it or not depending on what its
/// instance did before, and could answer accordingly.
pub(super) struct MemoryLimiter {
    pub(super) memory_bytes: usize,
}

impl MemoryLimiter {
    fn check(
        what: &str,
        desired: usize,
        limit: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let limit = maximum.map_or(limit, |maximum| maximum.min(limit));
        if desired <= limit {
            return Ok(true);
        }
        let message = format!("{what} was to grow to {desired}, its limit is {limit}");
        Err(Stop::plugin(FailureKind::MemoryLimit, message))
    }

    fn refused(what: &'static str, source: wasmtime::Error) -> wasmtime::Error {
        wasmtime::Error::new(Stop::Host(HostError::OutOfMemory { what, source }))
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        MemoryLimiter::check("memory (in bytes)", desired, self.memory_bytes, maximum)
    }

    // Only asked after `memory_growing` allowed it, so the plugin is not to blame.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(MemoryLimiter::refused("memory", error))
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        MemoryLimiter::check("a table (in elements)", desired, MAX_TABLE_ELEMENTS, maximum)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(MemoryLimiter::refused("table", error))
    }
}

/// Keeps a chatty plugin from filling the node's log. Real time, because no result depends on it.
#[derive(Default)]
pub(super) struct LogBudget {
    window: Option<Instant>,
    lines: u32,
}

/// Whether a line may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogTurn {
    Log,
    /// The first line over the budget: say that lines are missing.
    LogAndWarn,
    Drop,
}

impl LogBudget {
    pub(super) fn take(&mut self) -> LogTurn {
        let now = Instant::now();
        let fresh = self.window.is_none_or(|start| now - start >= Duration::from_secs(1));
        if fresh {
            self.window = Some(now);
            self.lines = 0;
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines.cmp(&MAX_LOG_LINES_PER_SECOND) {
            std::cmp::Ordering::Less => LogTurn::Log,
            std::cmp::Ordering::Equal => LogTurn::LogAndWarn,
            std::cmp::Ordering::Greater => LogTurn::Drop,
        }
    }
}
