//! Plugins and their answers, for programs.

use raft_kv_client::{ClusterOperation, PluginInfo, PluginView, ShardTrial};
use serde_json::{Value, json};

use super::{bytes, cluster};

/// A plugin, the nodes that have it, and the shards that run it.
pub fn view(plugin: &PluginView) -> Value {
    let active = plugin.active.iter();
    json!({
        "name": plugin.name,
        "version": plugin.version,
        "sha256": plugin.sha256,
        "source_hash": plugin.source_hash,
        "bytes": plugin.bytes,
        "migrates": plugin.migrates,
        "uploaded_unix_ms": plugin.uploaded_unix_ms,
        "nodes": plugin.nodes,
        "refusals": plugin.refusals,
        "active": active
            .map(|shard| json!({"shard_id": shard.shard, "index": shard.index}))
            .collect::<Vec<_>>(),
        "previous": plugin.previous,
    })
}

/// A plugin that was uploaded, and the operation that brought it to all nodes.
pub fn uploaded(plugin: &PluginInfo, operation: &ClusterOperation) -> Value {
    json!({ "plugin": cluster::plugin(plugin), "operation": cluster::operation(operation) })
}

/// A plugin that was forgotten.
pub fn deleted(name: &str, version: &str) -> Value {
    json!({ "name": name, "version": version, "deleted": true })
}

/// What switching a shard would do.
pub fn trial(trial: &ShardTrial) -> Value {
    json!({
        "shard_id": trial.shard,
        "refusal": trial.refusal,
        "slots": trial.slots,
        "rows": trial.rows,
        "bytes": trial.bytes,
        "fuel": trial.fuel,
        "micros": trial.micros,
    })
}

/// What a plugin answered.
pub fn response(key: &[u8], response: &[u8]) -> Value {
    json!({ "key": bytes(key), "response": bytes(response) })
}
