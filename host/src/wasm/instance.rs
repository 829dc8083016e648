//! One instance of a plugin: how it comes to be, how a batch runs through it, how it ends.

use wasmtime::{Global, Store, Trap, TypedFunc, Val};

use super::abi;
use super::error::{FailureKind, HostError, PluginFailure, Stop};
use super::fuel;
use super::limits::{Limits, MAX_RECURSION_BYTES};
use super::module::PluginModule;
use super::state::{Entry, GuestState, Job, Phase};

/// Why something did not go on.
#[derive(Debug)]
pub(super) enum Ended {
    /// By the plugin's doing.
    Plugin(PluginFailure),
    /// By the node's failing.
    Host(HostError),
}

/// How a visit to an instance ended.
#[derive(Debug)]
pub(super) enum Visit {
    /// The export returned. Commands that it took are done.
    Returned,
    /// It trapped, but only after it was told that the batch is over: no result is touched.
    TrappedAfterTheEnd,
    /// It trapped in the command whose turn it is, or on the way to it. That command has no result.
    Trapped(PluginFailure),
}

/// An instance with a store of its own, so that dropping it gives everything back.
pub(super) struct Instance {
    store: Store<GuestState>,
    apply: TypedFunc<(), ()>,
    query: TypedFunc<(), ()>,
    migrate: Option<TypedFunc<(), ()>>,
    /// Counts the stack that recursion has left, if there is any in the module.
    stack_left: Option<Global>,
    /// What it starts with.
    recursion_bytes: u32,
}

impl Instance {
    /// A fresh instance, with memory as the module describes it.
    pub(super) fn new(module: &PluginModule, limits: Limits) -> Result<Instance, Ended> {
        let pre = module.pre();
        let state = GuestState::new(module.label().clone(), limits);
        let mut store = Store::new(pre.module().engine(), state);
        store.limiter(|state| &mut state.limiter);
        Instance::start(store, module).map_err(|e| classify(e, limits.fuel_per_command))
    }

    fn start(mut store: Store<GuestState>, module: &PluginModule) -> wasmtime::Result<Instance> {
        // There is no start function; this is for what the initial data and tables might cost.
        store.set_fuel(u64::MAX)?;
        let instance = module.pre().instantiate(&mut store)?;
        let apply = instance.get_typed_func(&mut store, abi::APPLY)?;
        let query = instance.get_typed_func(&mut store, abi::QUERY)?;
        let migrate = if module.info().has_migrate {
            Some(instance.get_typed_func(&mut store, abi::MIGRATE)?)
        } else {
            None
        };
        store.data_mut().memory = instance.get_memory(&mut store, abi::MEMORY);
        let stack_left = instance.get_global(&mut store, abi::STACK_LEFT);
        let recursion_bytes = MAX_RECURSION_BYTES;
        Ok(Instance { store, apply, query, migrate, stack_left, recursion_bytes })
    }

    /// Linear memory it holds now, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.store.data().memory.map_or(0, |memory| memory.data_size(&self.store))
    }

    /// Limits for the commands to come.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        let state = self.store.data_mut();
        state.fuel_per_command = limits.fuel_per_command;
        state.limiter.memory_bytes = limits.memory_bytes;
    }

    /// Allows half of the recursion: what goes for fuel and memory goes for the stack.
    pub(super) fn halve_stack(&mut self) {
        self.recursion_bytes = MAX_RECURSION_BYTES / 2;
    }

    /// Enters the export once with the rest of the job, and takes back what is left.
    ///
    /// # Errors
    /// If the node failed. The job's open command is then left as it is.
    pub(super) fn visit(&mut self, job: &mut Job) -> Result<Visit, HostError> {
        self.swap_job(job);
        let outcome = self.enter();
        let visit = self.settle(outcome);
        self.swap_job(job);
        visit
    }

    fn swap_job(&mut self, job: &mut Job) {
        std::mem::swap(&mut self.store.data_mut().job, job);
    }

    fn enter(&mut self) -> wasmtime::Result<()> {
        let state = self.store.data_mut();
        state.phase = Phase::Idle;
        let (entry, fuel) = (state.job.entry, state.fuel_per_command);
        self.store.set_fuel(fuel)?;
        if let Some(stack_left) = self.stack_left {
            stack_left.set(&mut self.store, Val::I32(self.recursion_bytes as i32))?;
        }
        match entry {
            Entry::Apply => self.apply.call(&mut self.store, ()),
            Entry::Query => self.query.call(&mut self.store, ()),
            Entry::Migrate => match &self.migrate {
                None => Err(Stop::bad_call("the module has no `migrate`")),
                Some(migrate) => migrate.call(&mut self.store, ()),
            },
        }
    }

    /// Whether the last visit ended in a guard's trap: nothing runs on once the counter is below zero.
    fn is_too_deep(&mut self) -> bool {
        let left = self.stack_left.map(|left| left.get(&mut self.store));
        matches!(left, Some(Val::I32(left)) if left < 0)
    }

    /// Brings the state to rest: no command open, its fate decided.
    fn settle(&mut self, outcome: wasmtime::Result<()>) -> Result<Visit, HostError> {
        let left = self.store.get_fuel().unwrap_or(0);
        let too_deep = self.is_too_deep();
        let state = self.store.data_mut();
        if state.phase == Phase::Running {
            state.job.fuel += state.fuel_per_command.saturating_sub(left);
        }
        let Err(error) = outcome else {
            if state.phase == Phase::Running {
                state.end();
            }
            return Ok(Visit::Returned);
        };
        let ended = match classify(error, state.fuel_per_command) {
            Ended::Plugin(_) if too_deep => {
                let message = "the call stack is exhausted";
                Ended::Plugin(PluginFailure::of(FailureKind::CallDepth, message))
            }
            ended => ended,
        };
        match ended {
            Ended::Host(error) => Err(error),
            Ended::Plugin(_) if state.phase == Phase::Over => Ok(Visit::TrappedAfterTheEnd),
            Ended::Plugin(failure) => {
                state.abandon();
                Ok(Visit::Trapped(failure))
            }
        }
    }
}

/// Whose fault it was. Traps are told in our own words, because they are recorded: wasmtime's may
/// change with its version.
fn classify(error: wasmtime::Error, fuel_per_command: u64) -> Ended {
    let error = match error.downcast::<Stop>() {
        Ok(Stop::Plugin(failure)) => return Ended::Plugin(failure),
        Ok(Stop::Host(error)) => return Ended::Host(error),
        Err(error) => error,
    };
    let Some(trap) = error.downcast_ref::<Trap>() else {
        return Ended::Host(HostError::Wasmtime(error));
    };
    let (kind, message) = match trap {
        Trap::OutOfFuel => {
            let message = fuel::exhausted_message(fuel_per_command);
            return Ended::Plugin(PluginFailure::of(FailureKind::OutOfFuel, message));
        }
        Trap::StackOverflow => return Ended::Host(HostError::NativeStack),
        Trap::MemoryOutOfBounds => (FailureKind::Trap, "access outside memory"),
        Trap::TableOutOfBounds => (FailureKind::Trap, "access outside a table"),
        Trap::IndirectCallToNull => (FailureKind::Trap, "call of an empty table element"),
        Trap::BadSignature => (FailureKind::Trap, "call of a function of another type"),
        Trap::IntegerOverflow => (FailureKind::Trap, "integer overflow"),
        Trap::IntegerDivisionByZero => (FailureKind::Trap, "integer division by zero"),
        Trap::BadConversionToInteger => (FailureKind::Trap, "invalid conversion to integer"),
        Trap::UnreachableCodeReached => (FailureKind::Trap, "unreachable"),
        // Belongs to a feature that is off.
        _ => return Ended::Host(HostError::Wasmtime(error)),
    };
    Ended::Plugin(PluginFailure::of(kind, message))
}
