//! What the service tells of nodes, shards and operations, as messages.

use raft_kv_proto::v1;

use crate::service::{
    Activation, ActiveShard, ClusterView, MemberStatus, NodeStatus, NodeView, OperationView,
    Plugin, PluginView, ShardStatus, ShardTrial, ShardView, Slots,
};

pub(super) fn status(status: NodeStatus) -> v1::StatusResponse {
    v1::StatusResponse {
        node_id: status.node_id,
        cluster_id: status.cluster_id,
        address: status.address,
        version: status.version.to_owned(),
        uptime_seconds: status.uptime_seconds,
        slots: status.slots,
        disk_usage_bytes: status.disk_usage_bytes,
        shards: status.shards.into_iter().map(shard_status).collect(),
        nodes: status.nodes.into_iter().map(member).collect(),
    }
}

fn member(node: MemberStatus) -> v1::NodeInfo {
    let MemberStatus { node_id, address, connected } = node;
    v1::NodeInfo { node_id, address, connected }
}

fn shard_status(shard: ShardStatus) -> v1::ShardStatus {
    v1::ShardStatus {
        slots: slots(&shard.slots),
        name: shard.name,
        group: shard.group,
        leader: shard.leader,
        role: shard.role.to_owned(),
        term: shard.term,
        commit_index: shard.commit_index,
        applied_index: shard.applied_index,
        epoch: shard.epoch,
        replicas: shard.replicas,
        learners: shard.learners,
        plugin: Some(plugin(shard.plugin)),
        state_hash: shard.state_hash,
        reason: shard.reason.unwrap_or_default(),
    }
}

pub(super) fn cluster(view: ClusterView) -> v1::ClusterResponse {
    v1::ClusterResponse {
        cluster_id: view.cluster_id,
        version: view.version,
        slots: view.slots,
        unowned_slots: slots(&view.unowned_slots),
        balancer: view.balancer,
        nodes: view.nodes.into_iter().map(node).collect(),
        shards: view.shards.into_iter().map(shard).collect(),
        operations: view.operations.into_iter().map(operation).collect(),
    }
}

fn node(node: NodeView) -> v1::ClusterNode {
    v1::ClusterNode {
        node_id: node.node_id,
        address: node.address,
        state: node.state.to_owned(),
        draining: node.draining,
        meta: node.meta,
        replicas: node.replicas,
        leaders: node.leaders,
        disk_usage_bytes: node.disk_usage_bytes,
        disk_free_bytes: node.disk_free_bytes,
        version: node.version,
    }
}

fn shard(shard: ShardView) -> v1::ClusterShard {
    v1::ClusterShard {
        shard_id: shard.shard_id,
        group: shard.group,
        slots: slots(&shard.slots),
        epoch: shard.epoch,
        leader: shard.leader.unwrap_or_default(),
        replicas: shard.replicas,
        learners: shard.learners,
        state: shard.state.to_owned(),
        bytes: shard.bytes,
        applied_index: shard.applied_index,
        plugin: Some(plugin(shard.plugin)),
        operation: shard.operation.unwrap_or_default(),
    }
}

pub(super) fn operation(operation: OperationView) -> v1::ClusterOperation {
    v1::ClusterOperation {
        id: operation.id,
        kind: operation.kind,
        description: operation.description,
        state: operation.state,
        step: operation.step,
        message: operation.message,
        reason: operation.reason,
        started_unix_ms: operation.started_unix_ms,
        ended_unix_ms: operation.ended_unix_ms.unwrap_or_default(),
    }
}

fn slots(slots: &[Slots]) -> Vec<v1::SlotRange> {
    let range = |slots: &Slots| v1::SlotRange { start: slots.start, end: slots.end };
    slots.iter().map(range).collect()
}

pub(super) fn plugin_view(plugin: PluginView) -> v1::PluginView {
    let active = |shard: ActiveShard| v1::ActiveShard { shard: shard.shard_id, index: shard.index };
    v1::PluginView {
        name: plugin.name,
        version: plugin.version,
        sha256: plugin.sha256,
        source_hash: plugin.source_hash,
        bytes: plugin.bytes,
        migrates: plugin.migrates,
        uploaded_unix_ms: plugin.uploaded_unix_ms,
        nodes: plugin.nodes,
        refusals: plugin.refusals.into_iter().collect(),
        active: plugin.active.into_iter().map(active).collect(),
        previous: plugin.previous,
    }
}

pub(super) fn activation(request: v1::ActivatePluginRequest) -> Activation {
    Activation {
        name: request.name,
        version: request.version,
        shards: request.shards,
        canary: request.canary,
        canary_ms: request.canary_ms,
        fuel: request.fuel,
        memory_bytes: request.memory_bytes,
        force: request.force,
    }
}

pub(super) fn trial(trial: ShardTrial) -> v1::ShardTrial {
    let ShardTrial { shard_id, refusal, slots, rows, bytes, fuel, micros } = trial;
    v1::ShardTrial { shard: shard_id, refusal, slots, rows, bytes, fuel, micros }
}

pub(super) fn plugin(plugin: Plugin) -> v1::PluginInfo {
    let Plugin { name, version, sha256 } = plugin;
    v1::PluginInfo { name, version, sha256 }
}
