//! RaftKV: a distributed key-value store whose state machine is a WebAssembly
//! plugin.
//!
//! The node's parts, and who may use whom: `api` → `service` → `machine` →
//! `storage` and `wasm`, which do not know each other; `network` is the way to the
//! other nodes; only `node` constructs. `author` tries plugins without a node.
//! The consensus itself is the crate `raft-lite`. The way of a write through all
//! of them is told in `ARCHITECTURE.md`.

#![deny(unsafe_code)]

mod api;
pub mod author;
pub mod failpoint;
pub mod machine;
pub mod meta;
mod metrics;
mod network;
pub mod node;
pub mod service;
pub mod storage;
pub mod wasm;

/// The client library.
pub use raft_kv_client as client;
