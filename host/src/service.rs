//! What the node does for its clients, whatever way they come in.
//!
//! A request is validated, routed (key → slot → shard), proposed or read through
//! the shard's Raft group, and answered with one vocabulary of errors. Nothing
//! here knows of gRPC or HTTP.

mod atomic;
mod batch;
mod checksum;
mod cluster;
mod control;
mod error;
mod follow;
mod idle_time;
mod join;
mod kv;
mod moves;
mod older_plugin;
mod orders;
mod plugins;
mod propose;
mod read;
mod routing;
mod scan;
mod state_machine;
mod status;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::RwLock;
use raft_lite::{MultiRaft, NodeId};
use tokio::sync::{Semaphore, watch};

use crate::{
    machine::Machine, meta::MetaState, metrics::Metrics, network::Network, storage::PluginId,
};

pub use crate::{metrics::OperationKind, storage::SlotRange, wasm::MAX_MODULE_BYTES};
pub use atomic::{AtomicReply, AtomicRequest, Compare, Condition};
pub use batch::{KvKind, Operation, OperationReply};
pub use checksum::Checksum;
pub use cluster::{ClusterView, NodeView, OperationRequest, OperationView, ShardView};
pub use control::BalancerConfig;
pub use error::{FailureKind, ServiceError};
pub use follow::COPY_FILE;
pub use kv::{Expected, Number, PutTerms, Versioned};
pub use plugins::{Activation, ActiveShard, PluginView, ShardTrial, describe_plugin};
pub use routing::{LeaderRoute, RoutingTable};
pub use scan::{Pair, ScanRequest, Scanner};
pub use state_machine::{Request, RequestKind, ShardRequests};
pub use status::{MemberStatus, NodeStatus, Plugin, ShardStatus, Slots};

/// Reads that may run or wait on threads of their own.
const MAX_LONG_READS: usize = 256;

/// What clients may ask for at most.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Longest key, in bytes.
    pub key_bytes: usize,
    /// Longest value, in bytes.
    pub value_bytes: usize,
    /// Most operations in one batch.
    pub batch_operations: usize,
    /// Most bytes of keys, values and commands in one request.
    pub request_bytes: usize,
    /// Longest time to work on one request.
    pub timeout: Duration,
}

impl Default for RequestLimits {
    fn default() -> Self {
        RequestLimits {
            key_bytes: 64 << 10,
            value_bytes: 8 << 20,
            batch_operations: 100_000,
            request_bytes: 64 << 20,
            timeout: Duration::from_secs(10),
        }
    }
}

impl RequestLimits {
    /// Longest message that is decoded at all: what exceeds the limits is refused
    /// by name, and only what exceeds this by its size alone.
    pub fn message_bytes(&self) -> usize {
        2 * self.request_bytes
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write acknowledged before it was asked.
    #[default]
    Linearizable,
    /// It sees some earlier state of this node's replica.
    Stale,
}

/// How a request is to be dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// If another node leads the shard, say so instead of asking it.
    pub direct: bool,
}

/// How a write is to be dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// As any request.
    pub call: CallOptions,
    /// Told from itself when it is sent again.
    pub once: Option<Once>,
}

/// What makes a write take effect once, however often it is sent. See `Once` in
/// `kv.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    /// The client's session; not 0.
    pub session: u64,
    /// Its number within the session.
    pub sequence: u64,
    /// When it is over, by the cluster's clock; not 0.
    pub not_after_ms: u64,
    /// The client needs no results below this sequence number.
    pub acked_below: u64,
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The node's id.
    pub node_id: String,
    /// The number that raft-lite knows it by.
    pub number: NodeId,
    /// The cluster's id.
    pub cluster_id: String,
    /// Where it is reached: `host:port`.
    pub address: String,
}

/// A node's service. See the module.
pub struct Service {
    raft: Arc<MultiRaft>,
    network: Arc<Network>,
    machine: Arc<Machine>,
    /// Number of slots of the cluster.
    slots: u32,
    table: RwLock<Arc<RoutingTable>>,
    /// The cluster's own state, as far as this node knows.
    copy: watch::Sender<Arc<MetaState>>,
    default_plugin: PluginId,
    balancer: BalancerConfig,
    limits: RequestLimits,
    metrics: Arc<Metrics>,
    info: NodeInfo,
    data_folder: PathBuf,
    started: Instant,
    /// Bounds the reads that wait for threads of their own.
    long_reads: Semaphore,
    stopping: watch::Sender<bool>,
    /// Whether the node was removed from the cluster.
    removed: watch::Sender<bool>,
}

/// What a service is made of.
pub struct ServiceParts {
    /// The node's Raft groups.
    pub raft: Arc<MultiRaft>,
    /// The way to the other nodes.
    pub network: Arc<Network>,
    /// What they are applied to.
    pub machine: Arc<Machine>,
    /// Number of slots of the cluster.
    pub slots: u32,
    /// The cluster's own state, as far as this node knows at first.
    pub copy: MetaState,
    /// What the cluster's first shards ran.
    pub default_plugin: PluginId,
    /// When the balancer does what.
    pub balancer: BalancerConfig,
    /// What clients may ask for.
    pub limits: RequestLimits,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// Who the node is.
    pub info: NodeInfo,
    /// The folder whose size is reported.
    pub data_folder: PathBuf,
}

impl Service {
    /// The service of a node.
    pub fn new(parts: ServiceParts) -> Self {
        let service = Service {
            raft: parts.raft,
            network: parts.network,
            machine: parts.machine,
            slots: parts.slots,
            table: RwLock::new(Arc::new(RoutingTable::empty(parts.slots))),
            copy: watch::Sender::new(Arc::new(parts.copy)),
            default_plugin: parts.default_plugin,
            balancer: parts.balancer,
            limits: parts.limits,
            metrics: parts.metrics,
            info: parts.info,
            data_folder: parts.data_folder,
            started: Instant::now(),
            long_reads: Semaphore::new(MAX_LONG_READS),
            stopping: watch::Sender::new(false),
            removed: watch::Sender::new(false),
        };
        service.rebuild_table();
        service
    }

    /// The node takes no more requests on streams that would go on for ever, and no shard waits for
    /// a plugin any more.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.machine.plugins().close();
    }

    /// Resolves when the node is to stop.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move {
            // Either way there is no more to come.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        }
    }

    /// Resolves when the node was removed from the cluster.
    pub fn removed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut removed = self.removed.subscribe();
        async move {
            if removed.wait_for(|removed| *removed).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// What clients may ask for.
    pub fn limits(&self) -> &RequestLimits {
        &self.limits
    }

    /// Where operations are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn check_key(&self, key: &[u8]) -> Result<(), ServiceError> {
        if key.is_empty() {
            return Err(ServiceError::invalid("key", "at least 1 byte", "the key is empty"));
        }
        check_length("key", key.len(), self.limits.key_bytes)
    }

    fn check_value(&self, value: &Bytes) -> Result<(), ServiceError> {
        check_length("value", value.len(), self.limits.value_bytes)
    }
}

/// This node's clock, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

fn check_length(field: &'static str, length: usize, limit: usize) -> Result<(), ServiceError> {
    if length <= limit {
        return Ok(());
    }
    let message = format!("the {field} has {length} bytes, the limit is {limit} bytes");
    Err(ServiceError::invalid(field, &format!("at most {limit} bytes"), &message))
}
