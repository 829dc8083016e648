//! The sandbox.
#![allow(missing_docs)]
mod abi;
mod check;
mod engine;
mod error;
mod executor;
mod fuel;
mod host_calls;
mod instance;
mod limits;
mod manifest;
mod module;
mod state;
mod storage;
#[cfg(test)]
mod tests;

pub use check::{MAX_MODULE_BYTES, ModuleInfo, check as check_module};
pub use engine::PluginEngine;
pub use error::{FailureKind, HostError, ModuleError, PluginFailure, PluginResult, StorageError};
pub use executor::{BatchOutcome, Executor, QueryOutcome, QueryResult, Reuse};
pub use limits::{Limits, MAX_MESSAGE_BYTES, MAX_RESPONSE_BYTES};
pub use manifest::Manifest;
pub use module::{ModuleHash, PluginModule};
pub use state::Call;
pub use storage::{PluginStorage, ScanId, ScanRange};
