//! What can go wrong, on three levels that never mix.
//!
//! - [`ModuleError`]: an upload is refused. Says what is the matter and how to get rid of it.
//! - [`PluginFailure`]: one command failed. Part of the replicated result, so nothing in it may come
//!   from the node it happened on: no addresses, no wasmtime wording, no times.
//! - [`HostError`]: this node could not do its part. Never recorded; it stops the replica.

use std::error::Error;
use std::fmt;

use bytes::Bytes;

/// What one command came to: its response, or how it failed. Replicated either way.
pub type PluginResult = Result<Bytes, PluginFailure>;

/// How a command failed. The same on every replica, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct PluginFailure {
    /// Which of the ABI's causes it was.
    pub kind: FailureKind,
    /// The plugin's own code if it called `fail`, else 0.
    pub code: u32,
    /// The plugin's or the host's words, at most [`MAX_MESSAGE_BYTES`](super::MAX_MESSAGE_BYTES).
    pub message: String,
}

impl PluginFailure {
    /// A failure that the host noticed, as opposed to one that the plugin announced with `fail`.
    pub(super) fn of(kind: FailureKind, message: impl Into<String>) -> Self {
        PluginFailure { kind, code: 0, message: message.into() }
    }
}

/// The causes in the ABI's table "When a command fails".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The plugin called `fail`.
    Failed,
    /// The plugin called `abort`.
    Panic,
    /// `unreachable`, an access out of bounds, a division by zero, and their like.
    Trap,
    /// More fuel was needed than one command may use.
    OutOfFuel,
    /// Memory or a table was grown beyond the limit.
    MemoryLimit,
    /// The call stack was exhausted.
    CallDepth,
    /// A call that the ABI forbids.
    BadCall,
}

impl FailureKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [FailureKind; 7] = [
        FailureKind::Failed,
        FailureKind::Panic,
        FailureKind::Trap,
        FailureKind::OutOfFuel,
        FailureKind::MemoryLimit,
        FailureKind::CallDepth,
        FailureKind::BadCall,
    ];
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailureKind::Failed => "failed",
            FailureKind::Panic => "panic",
            FailureKind::Trap => "trap",
            FailureKind::OutOfFuel => "out of fuel",
            FailureKind::MemoryLimit => "memory limit",
            FailureKind::CallDepth => "call depth",
            FailureKind::BadCall => "bad call",
        })
    }
}

/// The storage behind a [`PluginStorage`](super::PluginStorage) failed: I/O, corruption.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StorageError(Box<dyn Error + Send + Sync>);

impl StorageError {
    /// Wraps the storage's own error.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        StorageError(source.into())
    }
}

/// This node could not run the plugin. The caller stops the replica without advancing it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The engine could not be set up.
    #[error("the WebAssembly engine could not be set up: {0}")]
    Engine(#[source] wasmtime::Error),
    /// More executors than the engine was made for.
    #[error("the WebAssembly engine was set up for {max} executors, and all exist already")]
    TooManyExecutors {
        /// How many it was made for.
        max: usize,
    },
    /// The plugin's storage failed under a running command.
    #[error("storage failed while a plugin command was running: {0}")]
    Storage(#[source] StorageError),
    /// Memory that the limits allow could not be had from the operating system.
    #[error("the operating system refused {what} that a plugin may have: {source}")]
    OutOfMemory {
        /// `memory` or `table`.
        what: &'static str,
        /// The refusal.
        source: wasmtime::Error,
    },
    /// Frames were larger than they are reckoned, so that native code met its end first.
    #[error(
        "the native stack ended before the plugin's limit on recursion was reached: a defect of the \
         host, whose reckoning of stack frames is too low for this module"
    )]
    NativeStack,
    /// wasmtime failed in a way that no plugin can cause.
    #[error("wasmtime failed: {0}")]
    Wasmtime(#[source] wasmtime::Error),
}

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Larger than the upload limit.
    #[error(
        "the module has {size} bytes, allowed are {limit}: build it with optimisation and strip its \
         debug sections (`wasm-opt -Oz --strip-debug`)"
    )]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A component, not a core module.
    #[error(
        "this is a WebAssembly component, plugins are core modules: build for \
         `wasm32-unknown-unknown`, without `wasm-tools component new`"
    )]
    Component,
    /// Not valid WebAssembly under any set of features.
    #[error("not a valid WebAssembly module: {0}; was the upload cut short?")]
    Invalid(String),
    /// Valid only with a feature that the ABI does not allow.
    #[error(
        "the module needs a WebAssembly feature that plugins may not use: {0}; allowed are \
         mutable globals, sign extension, saturating conversions, multi-value, bulk memory, \
         reference types (functions only) and 128-bit SIMD: build without `-C target-feature=+...` \
         or the like for anything else"
    )]
    Feature(String),
    /// The `raftkv` section is missing.
    #[error(
        "the module has no custom section `raftkv`: declare the plugin with the SDK's macro, or add \
         the section with the lines `name=`, `version=` and `abi=1`"
    )]
    NoManifest,
    /// The `raftkv` section cannot be read.
    #[error("the custom section `raftkv` is wrong: {0}")]
    Manifest(String),
    /// Built for another ABI.
    #[error(
        "the module was built for plugin ABI {found:?}, this node speaks ABI 1: rebuild it with an \
         SDK for that"
    )]
    Abi {
        /// What its `raftkv` section says.
        found: String,
    },
    /// An import that the ABI does not have.
    #[error("the module imports `{module}.{name}`, which plugins cannot have: {help}")]
    Import {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
        /// What to do about it.
        help: String,
    },
    /// An import of the ABI with another type.
    #[error("the import `{module}.{name}` is declared as {found}, the ABI says {expected}")]
    ImportType {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
        /// How the module declares it.
        found: String,
        /// How the ABI has it.
        expected: String,
    },
    /// An export is missing or of another type.
    #[error("the export `{name}` {problem}")]
    Export {
        /// The export's name.
        name: &'static str,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// It has a start function.
    #[error(
        "the module has a start function, which would run outside any command: do that work at the \
         beginning of `apply` and `query` (AssemblyScript: `--exportStart` and call it yourself)"
    )]
    StartFunction,
    /// Something in it is larger than allowed.
    #[error("{what} is {found}, allowed are {limit}: {help}")]
    Limit {
        /// What is too large.
        what: String,
        /// How large it is.
        found: u64,
        /// How large it may be.
        limit: u64,
        /// What to do about it.
        help: &'static str,
    },
    /// Passed all checks, but the compiler refused it.
    #[error("the module passed all checks but could not be compiled: {0}")]
    Compile(#[source] wasmtime::Error),
}

/// Why a command's run ended early, carried through wasmtime from a host call to the executor.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// The command's fault; recorded as such.
    #[error("{0}")]
    Plugin(PluginFailure),
    /// The node's fault.
    #[error("{0}")]
    Host(HostError),
}

impl Stop {
    /// The ABI forbids this call.
    pub(super) fn bad_call(message: impl Into<String>) -> wasmtime::Error {
        Stop::plugin(FailureKind::BadCall, message)
    }

    /// The command fails in this way.
    pub(super) fn plugin(kind: FailureKind, message: impl Into<String>) -> wasmtime::Error {
        wasmtime::Error::new(Stop::Plugin(PluginFailure::of(kind, message)))
    }

    /// The storage failed.
    pub(super) fn storage(error: StorageError) -> wasmtime::Error {
        wasmtime::Error::new(Stop::Host(HostError::Storage(error)))
    }
}
