//! The RaftKV client.
//!
//! [`RaftKVClient`] is a cheap handle that any number of tasks may clone and
//! use at once. It knows which node leads which shard and asks the leader; what
//! many tasks ask at the same time goes over one stream to each node.
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
//! A request is sent again, within its deadline and to other nodes, as long as
//! the cluster cannot serve it: while a leader is elected, when a connection
//! breaks, when a node does not answer. A write takes effect once all the same:
//! each client has a session, and the cluster remembers what it answered.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod call;
mod channel;
mod client;
mod endpoint;
mod error;
mod operation;
mod pipeline;
mod routing;
mod scan;
mod session;
mod value;

pub use client::{ClientBuilder, RaftKVClient};
pub use endpoint::{Endpoint, IntoEndpoints};
pub use error::{Error, Result};
pub use operation::{Operation, Outcome};
pub use raft_kv_proto::v1::{
    PluginInfo, ShardStatus, SlotRange, StatusResponse, plugin_error::Kind as PluginErrorKind,
};
pub use scan::{Scan, ScanStream};
pub use value::{IntoBytes, KeyValue, Version, Versioned};
