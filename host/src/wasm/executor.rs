//! Runs batches: on a kept instance as far as it goes, one by one on fresh ones where it does not.
//!
//! The module documentation of [`wasm`](super) argues why results cannot depend on the batching.

use super::engine::{PluginEngine, Seat};
use super::error::{FailureKind, HostError, PluginFailure, PluginResult};
use super::instance::{Ended, Instance, Visit};
use super::limits::Limits;
use super::module::{ModuleHash, PluginModule};
use super::state::{Call, Entry, Job};
use super::storage::PluginStorage;

/// Instances that one executor keeps, of as many modules.
const MAX_KEPT_INSTANCES: usize = 4;
/// Instances that exist at once because of one executor: those kept, and the one in use.
pub(super) const MAX_INSTANCES_PER_EXECUTOR: usize = MAX_KEPT_INSTANCES + 1;
/// Linear memory that they may hold together between batches.
const MAX_KEPT_MEMORY_BYTES: usize = 32 << 20;

/// What a batch of commands came to.
pub struct BatchOutcome {
    /// One result a call, in order.
    pub results: Vec<PluginResult>,
    /// The storage, with the writes of all commands that succeeded in its batch layer.
    pub storage: Box<dyn PluginStorage>,
    /// Fuel that they used in all. A command that ran twice has used it twice, so replicas differ
    /// here.
    pub fuel: u64,
    /// Linear memory of the instance that is kept, in bytes; 0 if none is.
    pub memory_bytes: usize,
}

/// What one query came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryResult {
    /// It ran to its end.
    Done(PluginResult),
    /// It needs more than the inline budget: run it again elsewhere, without one.
    OverBudget,
}

/// What a batch of queries came to.
pub struct QueryOutcome {
    /// One result a call, in order.
    pub results: Vec<QueryResult>,
    /// Whether a query asked for its context, which tells it the time.
    pub asked_context: bool,
    /// The storage as it was given.
    pub storage: Box<dyn PluginStorage>,
}

/// Whether instances are used for more than one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Keep them between commands and batches. What nodes do.
    Keep,
    /// Every command on its own fresh instance: slow, and by definition free of anything that
    /// earlier commands left behind. To find plugins whose results depend on that.
    Never,
}

/// Runs plugins on one thread, which needs at least 4 MiB of stack.
pub struct Executor {
    _seat: Seat,
    reuse: Reuse,
    /// Least recently used first. No instance in here ever trapped.
    kept: Vec<(ModuleHash, Instance)>,
}

impl Executor {
    /// An executor without any instances, for modules compiled by `engine`.
    ///
    /// # Errors
    /// If there are already as many as `engine` was made for.
    pub fn new(engine: &PluginEngine, reuse: Reuse) -> Result<Executor, HostError> {
        Ok(Executor { _seat: engine.take_seat()?, reuse, kept: Vec::new() })
    }

    /// Runs commands in order. Each sees the writes of those before it.
    ///
    /// # Errors
    /// If this node failed. The storage is gone then, and so are its unwritten changes: the caller
    /// stops the replica without advancing it.
    pub fn apply(
        &mut self,
        module: &PluginModule,
        limits: &Limits,
        calls: Vec<Call>,
        storage: Box<dyn PluginStorage>,
    ) -> Result<BatchOutcome, HostError> {
        let mut job = Job::new(Entry::Apply, calls, storage);
        let mut budget = Budget::full(limits);
        self.run(module, &mut budget, &mut job)?;
        let kept = self.kept.last().filter(|(hash, _)| *hash == module.hash());
        let memory_bytes = kept.map_or(0, |(_, instance)| instance.memory_bytes());
        Ok(BatchOutcome {
            results: job.results,
            storage: job.storage,
            fuel: job.fuel,
            memory_bytes,
        })
    }

    /// Answers queries. With `inline_fuel`, one that needs more fuel than that is given up.
    ///
    /// # Errors
    /// If this node failed.
    pub fn query(
        &mut self,
        module: &PluginModule,
        limits: &Limits,
        inline_fuel: Option<u64>,
        calls: Vec<Call>,
        storage: Box<dyn PluginStorage>,
    ) -> Result<QueryOutcome, HostError> {
        let mut job = Job::new(Entry::Query, calls, storage);
        let mut budget = Budget::inline(limits, inline_fuel);
        self.run(module, &mut budget, &mut job)?;
        let mut results: Vec<_> = job.results.into_iter().map(QueryResult::Done).collect();
        for position in budget.exceeded {
            results[position] = QueryResult::OverBudget;
        }
        Ok(QueryOutcome { results, asked_context: job.asked_context, storage: job.storage })
    }

    /// Carries one slot's state over from another version: all of it or, on failure, nothing. It
    /// runs on an instance of its own, so that the fuel it uses is the same on every replica.
    ///
    /// # Errors
    /// If this node failed.
    pub fn migrate(
        &mut self,
        module: &PluginModule,
        limits: &Limits,
        call: Call,
        storage: Box<dyn PluginStorage>,
    ) -> Result<BatchOutcome, HostError> {
        let mut job = Job::new(Entry::Migrate, vec![call], storage);
        run_alone(module, &mut Budget::full(limits), &mut job)?;
        let Job { results, storage, fuel, .. } = job;
        Ok(BatchOutcome { results, storage, fuel, memory_bytes: 0 })
    }

    /// Drops all kept instances. For a thread that has been idle for a while.
    pub fn release(&mut self) {
        self.kept.clear();
    }

    /// Linear memory of all kept instances, in bytes.
    pub fn kept_memory_bytes(&self) -> usize {
        self.kept.iter().map(|(_, instance)| instance.memory_bytes()).sum()
    }

    fn run(
        &mut self,
        module: &PluginModule,
        budget: &mut Budget,
        job: &mut Job,
    ) -> Result<(), HostError> {
        while !job.is_done() {
            if self.reuse == Reuse::Never || !self.run_kept(module, budget, job)? {
                run_alone(module, budget, job)?;
            }
        }
        Ok(())
    }

    /// Enters a kept instance once. False if the next command has to run alone.
    fn run_kept(
        &mut self,
        module: &PluginModule,
        budget: &mut Budget,
        job: &mut Job,
    ) -> Result<bool, HostError> {
        let limits = budget.kept();
        let Some(mut instance) = self.take(module, limits)? else { return Ok(false) };
        let before = job.results.len();
        match instance.visit(job)? {
            Visit::Returned => {
                self.keep(module.hash(), instance);
                Ok(job.results.len() > before)
            }
            Visit::TrappedAfterTheEnd => Ok(true),
            Visit::Trapped(failure) => Ok(budget.give_up(limits, &failure, job)),
        }
    }

    /// A kept instance of `module`, or a new one to be kept, if it can be had within `limits`.
    fn take(
        &mut self,
        module: &PluginModule,
        limits: Limits,
    ) -> Result<Option<Instance>, HostError> {
        let hash = module.hash();
        if let Some(position) = self.kept.iter().position(|kept| kept.0 == hash) {
            let (_, mut instance) = self.kept.remove(position);
            // Shards have limits of their own, the instance may come from one with higher ones.
            if instance.memory_bytes() <= limits.memory_bytes {
                instance.set_limits(limits);
                return Ok(Some(instance));
            }
        }
        match Instance::new(module, limits) {
            Ok(mut instance) => {
                instance.halve_stack();
                Ok(Some(instance))
            }
            Err(Ended::Plugin(_)) => Ok(None),
            Err(Ended::Host(error)) => Err(error),
        }
    }

    fn keep(&mut self, hash: ModuleHash, instance: Instance) {
        self.kept.push((hash, instance));
        while self.kept.len() > MAX_KEPT_INSTANCES
            || self.kept_memory_bytes() > MAX_KEPT_MEMORY_BYTES
        {
            self.kept.remove(0);
        }
    }
}

/// Runs the next command on a fresh instance of its own, with all that one command may use. What
/// comes out is its result.
fn run_alone(module: &PluginModule, budget: &mut Budget, job: &mut Job) -> Result<(), HostError> {
    let limits = budget.alone();
    let before = job.results.len();
    job.until = before + 1;
    let visit = match Instance::new(module, limits) {
        Ok(mut instance) => instance.visit(job)?,
        Err(Ended::Plugin(failure)) => Visit::Trapped(failure),
        Err(Ended::Host(error)) => return Err(error),
    };
    job.until = job.calls.len();
    match visit {
        Visit::Trapped(failure) => {
            if !budget.give_up(limits, &failure, job) {
                job.results.push(Err(failure));
            }
        }
        Visit::Returned | Visit::TrappedAfterTheEnd if job.results.len() > before => {}
        Visit::Returned | Visit::TrappedAfterTheEnd => {
            let message = "it returned before it took a command";
            job.results.push(Err(PluginFailure::of(FailureKind::BadCall, message)));
        }
    }
    Ok(())
}

/// The fuel that the calls of one job get, and the calls that an inline budget was too small for.
struct Budget {
    limits: Limits,
    inline_fuel: Option<u64>,
    exceeded: Vec<usize>,
}

impl Budget {
    fn full(limits: &Limits) -> Budget {
        Budget::inline(limits, None)
    }

    /// A budget that is no smaller than the limit is none.
    fn inline(limits: &Limits, fuel: Option<u64>) -> Budget {
        let inline_fuel = fuel.filter(|fuel| *fuel < limits.fuel_per_command);
        Budget { limits: *limits, inline_fuel, exceeded: Vec::new() }
    }

    /// What a command gets on a kept instance.
    fn kept(&self) -> Limits {
        self.cut(self.limits.halved())
    }

    /// What it gets on a fresh one, alone.
    fn alone(&self) -> Limits {
        self.cut(self.limits)
    }

    fn cut(&self, limits: Limits) -> Limits {
        let inline = self.inline_fuel.unwrap_or(u64::MAX);
        Limits { fuel_per_command: limits.fuel_per_command.min(inline), ..limits }
    }

    /// Whether the next call failed for want of more than the inline budget; it is then done with,
    /// its place in the results taken by its failure.
    fn give_up(&mut self, limits: Limits, failure: &PluginFailure, job: &mut Job) -> bool {
        let over = failure.kind == FailureKind::OutOfFuel
            && self.inline_fuel == Some(limits.fuel_per_command);
        if over {
            self.exceeded.push(job.results.len());
            job.results.push(Err(failure.clone()));
        }
        over
    }
}
