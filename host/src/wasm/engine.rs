//! The wasmtime engine, each setting with its reason.
//!
//! Everything that decides what a plugin computes or when it traps is set here explicitly, defaults
//! included, so that an upgrade of wasmtime cannot change it unnoticed.

use wasmtime::{Config, Engine, Inlining, Linker, OptLevel, Strategy, WasmBacktraceDetails};
use wasmparser::WasmFeatures;

use super::error::HostError;
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

/// Native stack for plugin code. A thread that runs plugins needs this and 256 KiB for the host's
/// own frames on top; the standard library's 2 MiB are plenty.
const MAX_WASM_STACK_BYTES: usize = 512 << 10;

/// Address space per linear memory. With 4 GiB and a guard, no 32-bit address can leave it, so that
/// compiled code needs no bounds checks.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;
/// Address space behind it that faults. Covers the constant offsets of loads and stores.
const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// Compiles and runs plugins. One per process; clones share it.
#[derive(Clone)]
pub struct PluginEngine {
    engine: Engine,
    linker: Linker<GuestState>,
}

impl PluginEngine {
    /// Sets up the engine.
    ///
    /// # Errors
    /// If wasmtime refuses the settings on this machine.
    pub fn new() -> Result<PluginEngine, HostError> {
        let engine = config().and_then(|config| Engine::new(&config)).map_err(HostError::Engine)?;
        let mut linker = Linker::new(&engine);
        host_calls::link(&mut linker).map_err(HostError::Engine)?;
        Ok(PluginEngine { engine, linker })
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn linker(&self) -> &Linker<GuestState> {
        &self.linker
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
    // How deep recursion goes before it traps follows from this and from the size of compiled
    // frames, so from the code generation below.
    config.max_wasm_stack(MAX_WASM_STACK_BYTES);
}

/// How code is generated.
fn code(config: &mut Config) -> wasmtime::Result<()> {
    config.strategy(Strategy::Cranelift);
    // Naming the target switches off the detection of CPU features: all nodes of one architecture
    // get the same machine code, with the same frame sizes. Measured: nothing is lost for integer
    // code; rounding and SIMD shuffles go through slower sequences.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    config.target("x86_64-unknown-linux-gnu")?;
    for flag in std::env::var("CPUFLAGS").unwrap_or_default().split_whitespace() { unsafe { config.cranelift_flag_enable(flag); } }
    config.cranelift_opt_level(OptLevel::Speed);
    // Inlining changes frame sizes from one version of its heuristics to the next.
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

/// Where instances live. On demand rather than pooled: see the module documentation.
fn memory(config: &mut Config) {
    config.memory_reservation(MEMORY_RESERVATION_BYTES);
    config.memory_guard_size(MEMORY_GUARD_BYTES);
    // The reservation holds all that 32 bits can address, so growing never moves it.
    config.memory_may_move(false);
    // A fresh instance maps the module's data copy-on-write and pays for the pages it touches.
    config.memory_init_cow(true);
    // Function references are made when first called, not all at every instantiation.
    config.table_lazy_init(true);
    if let Ok(keep) = std::env::var("POOL") {
        let mut pool = wasmtime::PoolingAllocationConfig::new();
        pool.total_core_instances(64).total_memories(64).total_tables(256).max_memory_size(4 << 30).table_elements(100_000).max_unused_warm_slots(4)
            .linear_memory_keep_resident(keep.parse().unwrap());
        config.allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool));
    }
}
