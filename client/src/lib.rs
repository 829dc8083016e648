//! The RaftKV client.
//!
//! [`RaftKVClient`] is a cheap handle that any number of tasks may clone and
//! use at once. It holds one HTTP/2 connection to each node it has asked. Requests
//! go to the first endpoint that answers, and where a node that does not lead the
//! shard says that its leader is.
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
//! A read is sent again, within the request's deadline and to another endpoint
//! if there is one, when a node cannot serve it. A write is sent again only if
//! it certainly did not take effect: the node could not be reached, or it
//! answered that it does not lead the shard.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod call;
mod channel;
mod client;
mod endpoint;
mod error;
mod operation;
mod scan;
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
