//! What changes a cluster, and how it is asked for.

use raft_kv_proto::v1;
use tonic::{Response, Status, transport::Channel};

use super::Activation;
use crate::client::admin;

/// A change of a cluster that takes several steps. Shards go by their names and nodes
/// by their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A new shard, of slots that no shard owns or else of half of the largest one's.
    CreateShard {
        /// Its name: 1 to 64 letters, digits, `-`, `_` and `.`.
        shard: String,
        /// The nodes that shall replicate it; the cluster chooses if there are none.
        nodes: Vec<String>,
    },
    /// A shard goes, and its slots have no owner then.
    DeleteShard {
        /// The shard.
        shard: String,
        /// Also if there are keys in it, which are lost.
        force: bool,
    },
    /// A replica moves from one node to another.
    MigrateShard {
        /// The shard.
        shard: String,
        /// The node that loses it.
        from: String,
        /// The node that gets it.
        to: String,
    },
    /// A shard is cut in two.
    SplitShard {
        /// The shard.
        shard: String,
        /// The names of the shards that it becomes.
        new_shards: Vec<String>,
    },
    /// Several shards become one.
    MergeShards {
        /// The shards.
        sources: Vec<String>,
        /// The one that owns all their slots in the end; it exists already.
        target: String,
    },
    /// A node gets a replica; it has a vote in the end.
    AddReplica {
        /// The shard.
        shard: String,
        /// The node.
        node: String,
    },
    /// A node loses its replica, and the replica's data.
    RemoveReplica {
        /// The shard.
        shard: String,
        /// The node.
        node: String,
    },
    /// A node is let into the cluster.
    AddNode {
        /// Its id.
        node: String,
        /// Its address, `host:port`.
        address: String,
    },
    /// All replicas move off a node, and it leaves the cluster.
    RemoveNode {
        /// Its id.
        node: String,
    },
    /// Shards run another plugin, one after the other.
    ActivatePlugin(Activation),
    /// Shards run again what they ran before the last activation.
    RollBackPlugin {
        /// Name of the plugin that they run.
        name: String,
        /// The shards; none for all.
        shards: Vec<String>,
        /// Even if shards have data that nobody carries over.
        force: bool,
    },
}

/// A change, as a node is asked for it.
#[derive(Clone, Debug)]
pub(super) struct Begin {
    pub change: Change,
    pub timeout_ms: u64,
    pub request_id: u64,
}

type Answer = Result<Response<Option<v1::ClusterOperation>>, Status>;

/// Asks a node.
pub(super) async fn send(channel: Channel, begin: Begin) -> Answer {
    let Begin { change, timeout_ms, request_id } = begin;
    let mut admin = admin(channel);
    let of_operation =
        |answer: Response<v1::OperationResponse>| answer.map(|answer| answer.operation);
    let of_plugin = |answer: Response<v1::PluginResponse>| answer.map(|answer| answer.operation);
    let of_replica = |answer: Response<v1::ReplicaResponse>| answer.map(|answer| answer.operation);
    match change {
        Change::CreateShard { shard, nodes } => {
            let request = v1::CreateShardRequest { shard, nodes, timeout_ms, request_id };
            admin.create_shard(request).await.map(of_operation)
        }
        Change::DeleteShard { shard, force } => {
            let request = v1::DeleteShardRequest { shard, force, timeout_ms, request_id };
            admin.delete_shard(request).await.map(of_operation)
        }
        Change::MigrateShard { shard, from, to } => {
            let request = v1::MigrateShardRequest { shard, from, to, timeout_ms, request_id };
            admin.migrate_shard(request).await.map(of_operation)
        }
        Change::SplitShard { shard, new_shards } => {
            let request = v1::SplitShardRequest { shard, new_shards, timeout_ms, request_id };
            admin.split_shard(request).await.map(of_operation)
        }
        Change::MergeShards { sources, target } => {
            let request = v1::MergeShardsRequest { sources, target, timeout_ms, request_id };
            admin.merge_shards(request).await.map(of_operation)
        }
        Change::AddReplica { shard, node } => {
            let request = v1::ReplicaRequest { shard, node, timeout_ms, request_id };
            admin.add_replica(request).await.map(of_replica)
        }
        Change::RemoveReplica { shard, node } => {
            let request = v1::ReplicaRequest { shard, node, timeout_ms, request_id };
            admin.remove_replica(request).await.map(of_replica)
        }
        Change::AddNode { node, address } => {
            let request = v1::AddNodeRequest { node_id: node, address, timeout_ms, request_id };
            admin.add_node(request).await.map(of_operation)
        }
        Change::RemoveNode { node } => {
            let request = v1::RemoveNodeRequest { node_id: node, timeout_ms, request_id };
            admin.remove_node(request).await.map(of_operation)
        }
        Change::ActivatePlugin(activation) => {
            let request = activation.request(false);
            let request = v1::ActivatePluginRequest { timeout_ms, request_id, ..request };
            admin.activate_plugin(request).await.map(of_plugin)
        }
        Change::RollBackPlugin { name, shards, force } => {
            let request = v1::RollBackPluginRequest { name, shards, force, timeout_ms, request_id };
            admin.roll_back_plugin(request).await.map(of_plugin)
        }
    }
}

/// A shard and a node.
pub(super) fn replica(shard: &str, node: &str) -> v1::ReplicaRequest {
    let (shard, node) = (shard.to_owned(), node.to_owned());
    v1::ReplicaRequest { shard, node, timeout_ms: 0, request_id: 0 }
}
