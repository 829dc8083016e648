//! The sandbox: runs plugins, and lets nothing of the node reach a result.
//!
//! It owns the WebAssembly engine, the checks on uploaded modules, and the execution of batches. It
//! knows nothing of RocksDB, Raft or the network: state comes in as a [`PluginStorage`], commands as
//! [`Call`]s, and what goes out are [`PluginResult`]s. `docs/plugin-abi.md` is its other contract,
//! with the authors of plugins.
//!
//! ```text
//! bytes ─ check ─ instrument ─ compile ──┐
//! Vec<Call>, PluginStorage ──────────────┴─ Executor::apply ─ results, PluginStorage
//! ```
//!
//! # Results do not depend on how commands were batched
//!
//! Replicas cut the same log into different batches, and their instances have run different commands
//! before. What is recorded for a command must be the same everywhere. The argument:
//!
//! 1. *A command's boundaries are the plugin's doing.* It ends when the plugin pulls again or returns
//!    from the export, whether or not another one follows. A pull that finds the batch over does all
//!    that one with a next command does: checks its buffer, ends the running command, refills fuel.
//!    So a command cannot tell that it is the last, and what the plugin does after it was told so
//!    reaches no result: a trap there only costs the instance.
//! 2. *Failures are judged alone.* Whatever ends a command early on a kept instance is forgotten: its
//!    layer, its response, the instance. It runs again as the only command of a fresh instance,
//!    which has the module's initial memory and all of the limits. That run is a function of the
//!    module, the limits, the call and the storage, the same on every replica, and only it counts.
//!    The same goes for a trap before the first pull or between two pulls (the next command is to
//!    blame) and for an export that returns without having pulled.
//! 3. *Successes have slack.* A kept instance gives half the fuel, the memory and the stack. A command that
//!    succeeds there, of a plugin that keeps its word not to let results depend on its memory,
//!    succeeds on a fresh instance as well, unless setting itself up takes more than the other half.
//!    Growth of memory beyond a limit, the module's own maximum included, ends the command instead
//!    of returning −1, because a plugin could answer −1 in its own way and so succeed.
//! 4. *Nothing else gets in.* No clock, no randomness, one code generator for all nodes, pinned fuel
//!    costs, canonical NaNs; recorded texts are ours, not wasmtime's.
//!
//! What is left is the plugin's word in (3): a plugin that answers from a static can be told apart by
//! its batches. [`Reuse::Never`] runs every command on its own instance (3 to 4 µs each), so that a
//! dry run can compare; the shards' rolling hash finds the rest.
//!
//! How deep calls may nest is counted by the code itself (`instrument`), so that it is the same on
//! every architecture, and the native stack is larger than all that this allows.
//!
//! # What stops a replica
//!
//! [`HostError`] is never recorded: storage that fails, memory that the operating system refuses,
//! anything of wasmtime's that no plugin can cause. The caller drops the batch and stops the replica.

mod abi;
mod artifact;
mod call_graph;
mod check;
mod engine;
mod error;
mod executor;
mod frame;
mod fuel;
mod host_calls;
mod instance;
mod instrument;
mod limits;
mod manifest;
mod memory;
mod module;
mod outline;
mod seed;
mod state;
mod storage;
#[cfg(test)]
pub(crate) mod tests;

pub use artifact::ArtifactError;
pub use check::{MAX_MODULE_BYTES, ModuleInfo, check as check_module};
pub use engine::PluginEngine;
pub use error::{FailureKind, HostError, ModuleError, PluginFailure, PluginResult, StorageError};
pub use executor::{BatchOutcome, Executor, QueryOutcome, QueryResult, Reuse};
pub use limits::{Limits, MAX_MESSAGE_BYTES, MAX_RESPONSE_BYTES};
pub use manifest::{Manifest, is_plugin_name};
pub use memory::{MemoryStorage, Writes};
pub use module::{ModuleHash, PluginModule};
pub use seed::Seed;
pub use state::Call;
pub use storage::{PluginStorage, RowFn, ScanId, ScanRange};
