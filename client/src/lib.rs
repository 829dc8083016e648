//! The RaftKV client.
//!
//! [`RaftKVClient`] is a cheap handle that any number of tasks may clone and
//! use at once.
//!
//! ```no_run
//! use raft_kv_client::RaftKVClient;
//!
//! # async fn example() -> Result<(), raft_kv_client::Error> {
//! let client = RaftKVClient::new("http://127.0.0.1:5001").await?;
//! let version = client.put("key1", "value1").await?;
//! let value = client.get("key1").await?;
//! assert_eq!(value.as_deref(), Some(&b"value1"[..]));
//! client.compare_and_put("key1", version, "value2").await?;
//! for pair in client.scan("key").limit(10).collect().await? {
//!     println!("{:?} is at version {}", pair.key, pair.version);
//! }
//! client.delete("key1").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Routing
//! The client holds one HTTP/2 connection to each node it has asked. It learns
//! from the nodes which of them leads which shard, and sends each request for a
//! key straight to the leader of the key's shard. Nodes that no longer lead say
//! who does; when a leader cannot be reached, the client asks the others until
//! there is a new one. Without a routing table, and for batches and scans, it asks
//! the first endpoint that answers, and that node forwards the request.
//!
//! # Coalescing
//! Requests of all tasks for single keys go over one long-lived stream to each
//! node. A request is sent at once; those that come while the connection is busy
//! go out together. A hundred tasks with a request each are thus far cheaper than
//! a hundred calls, without any setting. When too much waits for a node, callers
//! wait for room. Requests of more than 256 KiB are calls of their own.
//!
//! # Exactly once
//! A write carries the client's session and a number, and the cluster remembers
//! what became of it. So writes, like reads, are sent again when a node does not
//! answer or fails, and still take effect once. What a node answers to the request
//! itself, such as [`Error::VersionMismatch`], is final.
//!
//! # Deadlines
//! [`ClientBuilder::request_timeout`] bounds a request with all its attempts. An
//! attempt that takes longer than a second or two, or half of that time, is
//! followed by another, elsewhere if the node is silent. [`Error`] says after
//! which errors the outcome of a write is unknown.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod admin;
mod atomic;
mod attempts;
mod batch;
mod call;
mod channel;
mod client;
mod endpoint;
mod error;
mod failure;
mod operation;
mod pipeline;
mod routing;
mod scan;
mod session;
mod ttl;
mod value;

pub use admin::{
    Activation, Admin, Change, ClusterNode, ClusterOperation, ClusterShard, ClusterState,
    OperationState,
};
pub use atomic::{Atomic, AtomicOutcome};
pub use client::{ClientBuilder, RaftKVClient};
pub use endpoint::{Endpoint, IntoEndpoints};
pub use error::{Error, Result};
pub use operation::{Operation, Outcome, PutOptions};
pub use raft_kv_proto::v1::{
    ActiveShard, PluginInfo, PluginView, ShardStatus, ShardTrial, SlotRange, StatusResponse,
    plugin_error::Kind as PluginErrorKind,
};
pub use scan::{Scan, ScanStream};
pub use ttl::{InvalidTtl, parse_ttl};
pub use value::{IntoBytes, KeyValue, Version, Versioned};
