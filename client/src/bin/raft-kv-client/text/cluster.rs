//! The cluster's nodes, shards and operations for people.

use std::{cmp::Reverse, fmt::Write, time::Duration};

use raft_kv_client::{ClusterNode, ClusterOperation, ClusterShard, ClusterState, OperationState};

use super::{on_or_off, or_dash, size, slots, table, time};

/// Operations that have ended, in the overview.
const ENDED_SHOWN: usize = 5;

/// The cluster in a line, its nodes, its shards, and what is or was done to it.
pub fn overview(cluster: &ClusterState, now: Duration) -> String {
    let ClusterState { cluster_id, version, slots: count, .. } = cluster;
    let balancer = on_or_off(cluster.balancer);
    let mut text = format!(
        "cluster {cluster_id}, {count} slots, routing version {version}, balancer {balancer}\n"
    );
    // Writing to a string cannot fail.
    if !cluster.unowned_slots.is_empty() {
        let _ = writeln!(text, "no shard owns the slots {}", slots(&cluster.unowned_slots));
    }
    let _ = write!(text, "\n{}\n{}", nodes(&cluster.nodes), shards(&cluster.shards));
    let mut shown: Vec<ClusterOperation> = cluster.operations.clone();
    shown.sort_by_key(|operation| Reverse(operation.id));
    let mut ended = 0;
    shown.retain(|operation| {
        ended += usize::from(!is_running(operation));
        is_running(operation) || ended <= ENDED_SHOWN
    });
    if !shown.is_empty() {
        let _ = write!(text, "\n{}", operations(&shown, now));
    }
    text
}

/// A table of nodes.
pub fn nodes(nodes: &[ClusterNode]) -> String {
    let columns = ["NODE", "ADDRESS", "STATE", "REPLICAS", "LEADERS", "DISK", "FREE", "VERSION"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(nodes.iter().map(|node| {
        [
            node.node_id.clone(),
            or_dash(node.address.clone()),
            node_state(node),
            node.replicas.to_string(),
            node.leaders.to_string(),
            size(node.disk_usage_bytes),
            size(node.disk_free_bytes),
            or_dash(node.version.clone()),
        ]
    }));
    table(&rows)
}

fn node_state(node: &ClusterNode) -> String {
    let remarks = [(node.draining, ", draining"), (node.meta, ", meta")];
    let remarks = remarks.into_iter().filter(|(applies, _)| *applies);
    remarks.fold(node.state.clone(), |state, (_, remark)| state + remark)
}

/// A table of shards.
pub fn shards(shards: &[ClusterShard]) -> String {
    let columns = ["SHARD", "SLOTS", "LEADER", "REPLICAS", "SIZE", "STATE"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(shards.iter().map(|shard| {
        [
            shard.shard_id.clone(),
            or_dash(slots(&shard.slots)),
            or_dash(shard.leader.clone().unwrap_or_default()),
            or_dash(replicas(shard)),
            size(shard.bytes),
            shard_state(shard),
        ]
    }));
    table(&rows)
}

/// The nodes with a replica; a plus before those without a vote.
fn replicas(shard: &ClusterShard) -> String {
    let learners = shard.learners.iter().map(|node| format!("+{node}"));
    shard.replicas.iter().cloned().chain(learners).collect::<Vec<_>>().join(",")
}

fn shard_state(shard: &ClusterShard) -> String {
    let state = shard.state.replace('_', " ");
    match shard.operation {
        Some(operation) => format!("{state}, operation {operation}"),
        None => state,
    }
}

/// All about a shard.
pub fn shard(shard: &ClusterShard) -> String {
    let plugin = shard.plugin.as_ref();
    let plugin = plugin.map(|plugin| format!("{} {}", plugin.name, plugin.version));
    table(&[
        ["shard".to_owned(), shard.shard_id.clone()],
        ["group".to_owned(), shard.group.to_string()],
        ["slots".to_owned(), or_dash(slots(&shard.slots))],
        ["epoch".to_owned(), shard.epoch.to_string()],
        ["leader".to_owned(), or_dash(shard.leader.clone().unwrap_or_default())],
        ["replicas".to_owned(), or_dash(shard.replicas.join(","))],
        ["learners".to_owned(), or_dash(shard.learners.join(","))],
        ["state".to_owned(), shard_state(shard)],
        ["size".to_owned(), size(shard.bytes)],
        ["applied".to_owned(), shard.applied_index.to_string()],
        ["plugin".to_owned(), or_dash(plugin.unwrap_or_default())],
    ])
}

/// A table of operations.
pub fn operations(operations: &[ClusterOperation], now: Duration) -> String {
    let columns = ["ID", "OPERATION", "STATE", "TOOK", "ENDED", "REASON", "MESSAGE"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(operations.iter().map(|operation| {
        [
            operation.id.to_string(),
            operation.description.clone(),
            operation_state(operation),
            took(operation, now),
            or_dash(ended(operation, now).unwrap_or_default()),
            or_dash(operation.reason.clone()),
            operation.message.clone(),
        ]
    }));
    table(&rows)
}

/// All about an operation.
pub fn operation(operation: &ClusterOperation, now: Duration) -> String {
    table(&[
        ["operation".to_owned(), operation.id.to_string()],
        ["what".to_owned(), operation.description.clone()],
        ["state".to_owned(), operation_state(operation)],
        ["message".to_owned(), or_dash(operation.message.clone())],
        ["reason".to_owned(), or_dash(operation.reason.clone())],
        ["took".to_owned(), took(operation, now)],
        ["ended".to_owned(), or_dash(ended(operation, now).unwrap_or_default())],
    ])
}

/// How an operation ended, in a line.
pub fn end(operation: &ClusterOperation) -> String {
    let ClusterOperation { id, description, state, message, .. } = operation;
    let mut text = format!("{description}: {state}");
    // What was done at once has no number. Writing to a string cannot fail.
    if *id != 0 {
        let _ = write!(text, " (operation {id})");
    }
    if !message.is_empty() {
        let _ = write!(text, ": {message}");
    }
    text
}

/// How an operation comes along, in a line.
pub fn progress(operation: &ClusterOperation, now: Duration) -> String {
    format!("operation {}, {}: {}", operation.id, took(operation, now), stand(operation))
}

/// What an operation does now, and how that stands.
pub fn stand(operation: &ClusterOperation) -> String {
    let ClusterOperation { step, message, .. } = operation;
    match message.as_str() {
        "" => step.clone(),
        _ => format!("{step}: {message}"),
    }
}

fn is_running(operation: &ClusterOperation) -> bool {
    operation.state == OperationState::Running
}

fn operation_state(operation: &ClusterOperation) -> String {
    match is_running(operation) && !operation.step.is_empty() {
        true => format!("{}: {}", operation.state, operation.step),
        false => operation.state.to_string(),
    }
}

/// How long it took, or has taken.
fn took(operation: &ClusterOperation, now: Duration) -> String {
    let end = operation.ended_unix_ms.map_or(now, Duration::from_millis);
    time(end.saturating_sub(Duration::from_millis(operation.started_unix_ms)).as_secs())
}

/// How long ago it ended.
fn ended(operation: &ClusterOperation, now: Duration) -> Option<String> {
    let end = Duration::from_millis(operation.ended_unix_ms?);
    Some(format!("{} ago", time(now.saturating_sub(end).as_secs())))
}
