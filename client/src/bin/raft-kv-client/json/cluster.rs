//! The cluster's nodes, shards and operations, under the names that they have over
//! HTTP.

use raft_kv_client::{
    ClusterNode, ClusterOperation, ClusterShard, ClusterState, PluginInfo, SlotRange,
};
use serde_json::{Value, json};

/// All of it.
pub fn state(cluster: &ClusterState) -> Value {
    json!({
        "cluster_id": cluster.cluster_id,
        "version": cluster.version,
        "slots": cluster.slots,
        "unowned_slots": slots(&cluster.unowned_slots),
        "balancer": cluster.balancer,
        "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        "shards": cluster.shards.iter().map(shard).collect::<Vec<_>>(),
        "operations": cluster.operations.iter().map(operation).collect::<Vec<_>>(),
    })
}

/// A node.
pub fn node(node: &ClusterNode) -> Value {
    json!({
        "node_id": node.node_id,
        "address": node.address,
        "state": node.state,
        "draining": node.draining,
        "meta": node.meta,
        "replicas": node.replicas,
        "leaders": node.leaders,
        "disk_usage_bytes": node.disk_usage_bytes,
        "disk_free_bytes": node.disk_free_bytes,
        "version": node.version,
    })
}

/// A shard.
pub fn shard(shard: &ClusterShard) -> Value {
    let mut value = json!({
        "shard_id": shard.shard_id,
        "group": shard.group,
        "slots": slots(&shard.slots),
        "epoch": shard.epoch,
        "leader": shard.leader,
        "replicas": shard.replicas,
        "learners": shard.learners,
        "state": shard.state,
        "bytes": shard.bytes,
        "applied_index": shard.applied_index,
        "plugin": shard.plugin.as_ref().map(plugin),
    });
    if let Some(operation) = shard.operation {
        value["operation"] = operation.into();
    }
    value
}

/// An operation.
pub fn operation(operation: &ClusterOperation) -> Value {
    json!({
        "id": operation.id,
        "kind": operation.kind,
        "description": operation.description,
        "state": operation.state.name(),
        "step": operation.step,
        "message": operation.message,
        "reason": operation.reason,
        "started_unix_ms": operation.started_unix_ms,
        "ended_unix_ms": operation.ended_unix_ms,
    })
}

/// Whether the balancer is on.
pub fn balancer(on: bool) -> Value {
    json!({ "enabled": on })
}

/// Ranges of slots.
pub fn slots(slots: &[SlotRange]) -> Value {
    let range = |range: &SlotRange| json!({ "start": range.start, "end": range.end });
    slots.iter().map(range).collect::<Vec<_>>().into()
}

/// A plugin's name.
pub fn plugin(plugin: &PluginInfo) -> Value {
    json!({ "name": plugin.name, "version": plugin.version, "sha256": plugin.sha256 })
}
