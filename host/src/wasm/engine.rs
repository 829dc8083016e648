//! The wasmtime engine, each setting with its reason.
//!
//! Everything that decides what a plugin computes or when it traps is set here explicitly, defaults
//! included, so that an upgrade of wasmtime cannot change it unnoticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmparser::WasmFeatures;
use wasmtime::{
    Config, Engine, Inlining, InstanceAllocationStrategy, Linker, OptLevel,
    PoolingAllocationConfig, Strategy, WasmBacktraceDetails,
};

use super::check::MAX_TABLES;
use super::error::HostError;
use super::executor::MAX_INSTANCES_PER_EXECUTOR;
use super::limits::{
    MAX_FRAME_BYTES, MAX_RECURSION_BYTES, MAX_STRAIGHT_STACK_BYTES, MAX_TABLE_ELEMENTS,
};
use super::state::GuestState;
use super::{fuel, host_calls};

/// What a plugin may use, and nothing else: the checks and the compiler both go by this.
///
/// `FLOATS` is the parser's name for the MVP's floating point. `GC_TYPES` stays off, which leaves
/// functions as the only references: `externref` has no meaning here.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::SIMD);

/// Native stack for plugin code: all that the reckoned limits on frames allow, and a little for
/// getting in. So the limits, which are the same everywhere, are always reached first. A thread that
/// runs plugins needs this and 256 KiB for the host's own frames on top, so 4 MiB.
const MAX_WASM_STACK_BYTES: usize = MAX_RECURSION_BYTES as usize
    + (MAX_STRAIGHT_STACK_BYTES + MAX_FRAME_BYTES) as usize
    + (64 << 10);

/// Address space per linear memory. With 4 GiB and a guard, no 32-bit address can leave it, so that
/// compiled code needs no bounds checks.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;
/// Address space behind it that faults. Covers the constant offsets of loads and stores.
const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// Bytes at the start of a memory that are wiped by hand between two uses instead of being returned
/// to the kernel: a fresh instance of a small plugin then takes no page fault.
const KEPT_RESIDENT_BYTES: usize = 64 << 10;
/// Free places in the pool that may hold such bytes.
const MAX_WARM_PLACES: u32 = 8;

/// Compiles and runs plugins. One per process; clones share it.
#[derive(Clone)]
pub struct PluginEngine {
    engine: Engine,
    linker: Linker<GuestState>,
    seats: Arc<Seats>,
}

impl PluginEngine {
    /// Sets up the engine, with room for the instances of `max_executors` executors at a time.
    /// Costs address space (some 20 GiB each), but no memory.
    ///
    /// # Errors
    /// If wasmtime refuses the settings on this machine.
    pub fn new(max_executors: usize) -> Result<PluginEngine, HostError> {
        let mut config = config().map_err(HostError::Engine)?;
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(max_executors)));
        PluginEngine::with(&config, max_executors)
    }

    /// Sets up an engine that compiles and runs nothing: it takes up no address space.
    ///
    /// # Errors
    /// If wasmtime refuses the settings on this machine.
    pub fn for_compiling() -> Result<PluginEngine, HostError> {
        let mut config = config().map_err(HostError::Engine)?;
        config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        PluginEngine::with(&config, 0)
    }

    fn with(config: &Config, max_executors: usize) -> Result<PluginEngine, HostError> {
        let engine = Engine::new(config).map_err(HostError::Engine)?;
        let mut linker = Linker::new(&engine);
        host_calls::link(&mut linker).map_err(HostError::Engine)?;
        let seats = Arc::new(Seats { taken: AtomicUsize::new(0), max: max_executors });
        Ok(PluginEngine { engine, linker, seats })
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn linker(&self) -> &Linker<GuestState> {
        &self.linker
    }

    /// The right to run as many instances as one executor needs.
    pub(super) fn take_seat(&self) -> Result<Seat, HostError> {
        let seats = &self.seats;
        let more = |taken| (taken < seats.max).then_some(taken + 1);
        match seats.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Seat(seats.clone())),
            Err(_) => Err(HostError::TooManyExecutors { max: seats.max }),
        }
    }
}

/// Counts executors, so that one too many is refused when it is made and no instance ever finds the
/// pool empty in the middle of a batch.
struct Seats {
    taken: AtomicUsize,
    max: usize,
}

/// Held by an executor as long as it lives.
pub(super) struct Seat(Arc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

fn config() -> wasmtime::Result<Config> {
    let mut config = Config::new();
    meaning(&mut config);
    code(&mut config)?;
    memory(&mut config);
    Ok(config)
}

/// What decides results.
fn meaning(config: &mut Config) {
    // One by one: what is not listed is refused, also what future versions enable by default.
    for feature in WasmFeatures::all().iter() {
        config.wasm_features(feature, FEATURES.contains(feature));
    }
    // Fuel, never time, decides when a command has run too long.
    config.consume_fuel(true);
    config.operator_cost(fuel::operator_cost());
    config.epoch_interruption(false);
    // The bits of a NaN are the one thing in WebAssembly that the CPU may choose.
    config.cranelift_nan_canonicalization(true);
    // Never reached: how deep recursion goes is counted in the code itself.
    config.max_wasm_stack(MAX_WASM_STACK_BYTES);
    // For a way of calling that nobody uses; wasmtime wants it to be no less.
    config.async_stack_size(MAX_WASM_STACK_BYTES);
}

/// How code is generated.
fn code(config: &mut Config) -> wasmtime::Result<()> {
    config.strategy(Strategy::Cranelift);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fixed_cpu(config)?;
    config.cranelift_opt_level(OptLevel::Speed);
    // Inlining makes frames larger than they are reckoned from one function.
    config.compiler_inlining(Inlining::No);
    config.parallel_compilation(true);
    // Nobody reads a plugin's native frames: no unwind tables to register, no backtraces to walk at
    // each failed command. Its own panic text comes through `abort`.
    config.native_unwind_info(false);
    config.wasm_backtrace_max_frames(None);
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config.debug_info(false);
    // Trapping on a fault instead of checking for one: the cheap way for bounds and divisions.
    config.signals_based_traps(true);
    Ok(())
}

/// One CPU for all nodes, x86-64-v2 (any since 2009): the same machine code on each.
///
/// Naming the target switches off the detection of CPU features. Plain x86-64 would do as well, but
/// population counts take twice the time there, and rounding and SIMD shuffles four times; v3 gains
/// nothing measurable over v2.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code)]
fn fixed_cpu(config: &mut Config) -> wasmtime::Result<()> {
    config.target("x86_64-unknown-linux-gnu")?;
    for flag in ["has_cmpxchg16b", "has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"]
    {
        // SAFETY: the flags let compiled code use instructions that this CPU may lack. wasmtime asks
        // the CPU for each of them before it loads any code, and refuses if one is missing.
        unsafe { config.cranelift_flag_enable(flag) };
    }
    Ok(())
}

/// Linear memory.
fn memory(config: &mut Config) {
    config.memory_reservation(MEMORY_RESERVATION_BYTES);
    config.memory_guard_size(MEMORY_GUARD_BYTES);
    // The reservation holds all that 32 bits can address, so growing never moves it.
    config.memory_may_move(false);
    // A fresh instance maps the module's data copy-on-write and pays for the pages it touches.
    config.memory_init_cow(true);
    // Function references are made when first called, not all at every instantiation.
    config.table_lazy_init(true);
}

/// Where instances live. Taking a place in a pool instead of mapping and unmapping 4 GiB makes a
/// fresh instance in 3 to 4 µs rather than 25, and threads do not wait for each other in the kernel.
fn pool(max_executors: usize) -> PoolingAllocationConfig {
    let instances = max_executors.saturating_mul(MAX_INSTANCES_PER_EXECUTOR);
    let instances = u32::try_from(instances).unwrap_or(u32::MAX).max(1);
    let tables_per_module = MAX_TABLES as u32;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(instances)
        .total_memories(instances)
        .total_tables(instances.saturating_mul(tables_per_module))
        .max_memories_per_module(1)
        .max_tables_per_module(tables_per_module)
        // The limiter knows the shard's limit; the pool only has to have room.
        .max_memory_size(MEMORY_RESERVATION_BYTES as usize)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_unused_warm_slots(MAX_WARM_PLACES)
        .linear_memory_keep_resident(KEPT_RESIDENT_BYTES);
    pool
}
