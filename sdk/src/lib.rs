//! Write a replicated state machine for RaftKV.
//!
//! A plugin decides what a command *means*; the host does the rest: it replicates the commands, keeps
//! the data, moves and splits shards. Every replica runs the plugin on the same commands in the same
//! order, so a plugin must be a pure function of its command, the stored data and the [`Context`]:
//! no clock but [`time_ms`](QueryContext::time_ms), no randomness but [`seed`](QueryContext::seed),
//! and no state of its own between commands.
//!
//! A whole plugin, a counter for each key space:
//!
//! ```
//! use raft_kv_sdk::{Context, Failure, QueryContext, Response, StateMachine};
//!
//! struct Counter;
//!
//! fn total(context: &QueryContext<'_>) -> u64 {
//!     let stored = context.get(b"total").and_then(|value| value[..].try_into().ok());
//!     stored.map_or(0, u64::from_le_bytes)
//! }
//!
//! impl StateMachine for Counter {
//!     fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
//!         let step = command.try_into().map_err(|_| Failure::new(1, "a step has 8 bytes"))?;
//!         let total = total(context).wrapping_add(u64::from_le_bytes(step)).to_le_bytes();
//!         context.put(b"total", &total);
//!         Ok(total.into())
//!     }
//!     fn query(context: &QueryContext<'_>, _request: &[u8]) -> Result<Response, Failure> {
//!         Ok(total(context).to_le_bytes().into())
//!     }
//! }
//!
//! raft_kv_sdk::plugin!(Counter, name: "counter");
//!
//! // And its test, without a cluster:
//! use raft_kv_sdk::testing::TestHost;
//!
//! let mut host = TestHost::<Counter>::new();
//! host.apply(&2_u64.to_le_bytes()).expect("eight bytes are a step");
//! host.apply(&3_u64.to_le_bytes()).expect("eight bytes are a step");
//! assert_eq!(host.query(b""), Ok(5_u64.to_le_bytes().to_vec()));
//! assert_eq!(host.apply(b"five").unwrap_err().code, 1);
//! ```
//!
//! To make a module of it, the crate is a `cdylib` and is built for `wasm32-unknown-unknown`. The
//! contract between module and host is written down in `docs/plugin-abi.md`; this crate is one way of
//! keeping it.
//!
//! - [`StateMachine`], [`Response`], [`Failure`]: what a plugin is; [`Migrate`], how it carries over the
//!   state of another version.
//! - [`Context`], [`QueryContext`], [`Scan`]: what it may do.
//! - [`plugin!`]: makes it a module.
//! - [`TypedMachine`], [`Typed`]: commands that are types instead of bytes, in JSON (feature `json`),
//!   protocol buffers (feature `prost`), or a format of one's own.
//! - [`storage`]: maps, indexes, queues and counters with documented layouts.
//! - [`Random`], [`error!`], [`warn!`], [`info!`], [`debug!`]: random numbers from the command's seed, lines
//!   for the node's log.
//! - The feature `small-allocator`: a module smaller by 10 kB and a little slower, for plugins whose
//!   messages are small.
//! - `testing` and `native` (not on wasm32): the same plugin in `cargo test`, and on a host of one's
//!   own.

#[cfg(any(test, all(target_arch = "wasm32", feature = "small-allocator")))]
mod allocator;
mod buffer;
pub mod codes;
mod context;
mod formats;
mod limits;
mod logging;
mod machine;
mod module;
mod random;
mod scan;
pub mod storage;
mod typed;
mod values;

#[cfg(target_arch = "wasm32")]
mod batch;
#[cfg(target_arch = "wasm32")]
mod imports;
#[cfg(not(target_arch = "wasm32"))]
pub mod native;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use buffer::Buffer;
pub use context::{Context, Level, Place, QueryContext};
#[cfg(feature = "json")]
pub use formats::Json;
#[cfg(feature = "prost")]
pub use formats::Prost;
pub use limits::{MAX_KEY_LEN, MAX_OPEN_SCANS, MAX_VALUE_LEN};
pub use machine::{Failure, Migrate, Migration, Response, StateMachine};
pub use random::Random;
pub use scan::{Row, Rows, Scan, ScanRange};
pub use typed::{Decode, Encode, Typed, TypedMachine};
pub use values::Values;

/// What the [`plugin!`] macro expands to. Not for use by hand; it may change with every release.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::batch::{apply, migrate, query};
    pub use crate::module::{check, section, section_len};
}
