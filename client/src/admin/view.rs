//! What a cluster tells of itself.

use std::fmt;

use raft_kv_proto::v1::{self, PluginInfo, SlotRange};

use crate::error::{Error, Result};

/// A cluster: its nodes, shards and operations.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterState {
    /// The cluster's id.
    pub cluster_id: String,
    /// Version of the routing table.
    pub version: u64,
    /// Number of slots the key space is cut into.
    pub slots: u32,
    /// Slots that no shard owns.
    pub unowned_slots: Vec<SlotRange>,
    /// Whether it spreads replicas and leaders over its nodes by itself.
    pub balancer: bool,
    /// Its nodes.
    pub nodes: Vec<ClusterNode>,
    /// Its shards.
    pub shards: Vec<ClusterShard>,
    /// Operations that run, and the last that ended.
    pub operations: Vec<ClusterOperation>,
}

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterNode {
    /// Its id.
    pub node_id: String,
    /// Its address, `host:port`.
    pub address: String,
    /// `up` or `down`.
    pub state: String,
    /// Whether it is being removed.
    pub draining: bool,
    /// Whether it replicates the state of the cluster itself.
    pub meta: bool,
    /// How many replicas it has.
    pub replicas: u32,
    /// How many of them lead.
    pub leaders: u32,
    /// Bytes its data takes up on disk.
    pub disk_usage_bytes: u64,
    /// Bytes that are free on its disk.
    pub disk_free_bytes: u64,
    /// Version of the RaftKV program; empty if it is not known.
    pub version: String,
}

/// A shard of a cluster.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterShard {
    /// Its name.
    pub shard_id: String,
    /// The Raft group's number.
    pub group: u64,
    /// Its slots.
    pub slots: Vec<SlotRange>,
    /// Version of its slots and replicas.
    pub epoch: u64,
    /// The node that leads, if known.
    pub leader: Option<String>,
    /// The nodes with a voting replica.
    pub replicas: Vec<String>,
    /// The nodes with a replica that is catching up and has no vote yet.
    pub learners: Vec<String>,
    /// `serving`, `frozen` or `no_leader`.
    pub state: String,
    /// Bytes of its data.
    pub bytes: u64,
    /// The highest index applied.
    pub applied_index: u64,
    /// The plugin it runs, if known.
    pub plugin: Option<PluginInfo>,
    /// The operation that is under way on it.
    pub operation: Option<u64>,
}

/// An operation: a change of a cluster that takes several steps.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterOperation {
    /// Its number.
    pub id: u64,
    /// `create`, `split`, `migrate`, `merge`, `delete`, `add_replica`, `remove_replica`,
    /// `add_node` or `remove_node`.
    pub kind: String,
    /// What it does, for people.
    pub description: String,
    /// Whether it goes on, or how it ended.
    pub state: OperationState,
    /// What it does now, for people.
    pub step: String,
    /// How it stands, for people.
    pub message: String,
    /// `user`, or why the balancer began it.
    pub reason: String,
    /// When it began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
}

/// Whether an operation goes on, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It is done.
    Done,
    /// It was undone.
    RolledBack,
}

impl OperationState {
    /// The name that nodes give it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// For people.
impl fmt::Display for OperationState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::RolledBack => "rolled back",
            other => other.name(),
        })
    }
}

impl TryFrom<v1::ClusterResponse> for ClusterState {
    type Error = Error;

    fn try_from(answer: v1::ClusterResponse) -> Result<Self> {
        let operations = answer.operations.into_iter().map(ClusterOperation::try_from);
        Ok(Self {
            cluster_id: answer.cluster_id,
            version: answer.version,
            slots: answer.slots,
            unowned_slots: answer.unowned_slots,
            balancer: answer.balancer,
            nodes: answer.nodes.into_iter().map(ClusterNode::from).collect(),
            shards: answer.shards.into_iter().map(ClusterShard::from).collect(),
            operations: operations.collect::<Result<_>>()?,
        })
    }
}

impl From<v1::ClusterNode> for ClusterNode {
    fn from(node: v1::ClusterNode) -> Self {
        Self {
            node_id: node.node_id,
            address: node.address,
            state: node.state,
            draining: node.draining,
            meta: node.meta,
            replicas: node.replicas,
            leaders: node.leaders,
            disk_usage_bytes: node.disk_usage_bytes,
            disk_free_bytes: node.disk_free_bytes,
            version: node.version,
        }
    }
}

impl From<v1::ClusterShard> for ClusterShard {
    fn from(shard: v1::ClusterShard) -> Self {
        Self {
            shard_id: shard.shard_id,
            group: shard.group,
            slots: shard.slots,
            epoch: shard.epoch,
            leader: Some(shard.leader).filter(|leader| !leader.is_empty()),
            replicas: shard.replicas,
            learners: shard.learners,
            state: shard.state,
            bytes: shard.bytes,
            applied_index: shard.applied_index,
            plugin: shard.plugin,
            operation: Some(shard.operation).filter(|id| *id != 0),
        }
    }
}

impl TryFrom<v1::ClusterOperation> for ClusterOperation {
    type Error = Error;

    fn try_from(operation: v1::ClusterOperation) -> Result<Self> {
        let states = [OperationState::Running, OperationState::Done, OperationState::RolledBack];
        let state = states.into_iter().find(|state| state.name() == operation.state);
        let state = state.ok_or_else(|| Error::BadResponse {
            message: format!("that operation {} is {:?}", operation.id, operation.state),
        })?;
        Ok(Self {
            id: operation.id,
            kind: operation.kind,
            description: operation.description,
            state,
            step: operation.step,
            message: operation.message,
            reason: operation.reason,
            started_unix_ms: operation.started_unix_ms,
            ended_unix_ms: Some(operation.ended_unix_ms).filter(|time| *time != 0),
        })
    }
}
