//! What the node knows of itself and its shards.

use raft_lite::Role;
use serde::Serialize;

use super::{NodeInfo, Service};
use crate::{
    machine::Shard,
    meta::META_GROUP,
    storage::{SlotRange, folder_bytes},
    wasm::PluginModule,
};

/// A node's state.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// The node's id.
    pub node_id: String,
    /// The cluster's id.
    pub cluster_id: String,
    /// Where it listens.
    pub address: String,
    /// Version of the program.
    pub version: &'static str,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Number of slots the key space is cut into.
    pub slots: u32,
    /// Bytes its data takes up on disk.
    pub disk_usage_bytes: u64,
    /// Its shards, in the order of their groups.
    pub shards: Vec<ShardStatus>,
    /// All nodes of the cluster.
    pub nodes: Vec<MemberStatus>,
}

/// A node of the cluster, as this one sees it.
#[derive(Clone, Debug, Serialize)]
pub struct MemberStatus {
    /// Its id.
    pub node_id: String,
    /// `host:port` that it is reached at.
    pub address: String,
    /// Whether this node has a connection to it; true for itself.
    pub connected: bool,
}

/// The state of a shard's replica on this node.
#[derive(Clone, Debug, Serialize)]
pub struct ShardStatus {
    /// The shard's name.
    pub name: String,
    /// Its Raft group.
    pub group: u64,
    /// Its slots.
    pub slots: Vec<Slots>,
    /// The node that leads; empty if none is known.
    pub leader: String,
    /// `leader`, `follower`, `candidate` or `quarantined`.
    pub role: &'static str,
    /// The term.
    pub term: u64,
    /// The highest index known to be committed.
    pub commit_index: u64,
    /// The highest index applied.
    pub applied_index: u64,
    /// Version of the shard's slots and replicas.
    pub epoch: u64,
    /// The nodes with a voting replica.
    pub replicas: Vec<String>,
    /// The nodes with a replica that is catching up and has no vote yet.
    pub learners: Vec<String>,
    /// The plugin it runs.
    pub plugin: Plugin,
    /// Rolling hash over everything applied, in hex.
    pub state_hash: String,
    /// Why it does not serve, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Slots `start <= slot < end`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Slots {
    /// First slot.
    pub start: u32,
    /// Slot after the last.
    pub end: u32,
}

impl Slots {
    pub(super) fn of(range: &SlotRange) -> Self {
        Slots { start: range.start.0, end: range.end.0 }
    }
}

impl Plugin {
    pub(super) fn of(module: &PluginModule) -> Self {
        let manifest = &module.info().manifest;
        Plugin {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: module.hash().to_string(),
        }
    }
}

/// A plugin's name.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plugin {
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the module, in hex.
    pub sha256: String,
}

impl Service {
    /// The node's state now. Reads the data folder: not for a hot path.
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            node_id: self.info.node_id.clone(),
            cluster_id: self.info.cluster_id.clone(),
            address: self.info.address.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            slots: self.slots,
            disk_usage_bytes: folder_bytes(&self.data_folder),
            shards: self.machine.shards().iter().map(|shard| self.shard_status(shard)).collect(),
            nodes: self.members(),
        }
    }

    fn members(&self) -> Vec<MemberStatus> {
        let NodeInfo { node_id, address, .. } = self.info.clone();
        let mut members = vec![MemberStatus { node_id, address, connected: true }];
        members.extend(self.network.peers().into_iter().map(|peer| MemberStatus {
            node_id: peer.node_id,
            address: peer.address,
            connected: peer.connected,
        }));
        members.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        members
    }

    /// Whether every shard on this node can serve; if not, which and why.
    pub fn readiness(&self) -> Result<(), String> {
        if self.table().group(META_GROUP).is_none() {
            return Err("the cluster's shards are not known here yet".to_owned());
        }
        for route in self.table().shards() {
            if self.machine.shard(route.group).is_none() {
                // Others have it.
                continue;
            }
            let Some(status) = self.raft.status(route.group) else {
                return Err(format!("shard {} has not started", route.name));
            };
            if let Some(reason) = status.halted {
                return Err(format!("shard {} is quarantined: {reason}", route.name));
            }
            if status.leader.is_none() {
                return Err(format!("shard {} has no leader", route.name));
            }
            if status.role == Role::Leader && !self.raft.leads_settled(route.group) {
                return Err(format!("shard {} is applying its log", route.name));
            }
        }
        Ok(())
    }

    fn shard_status(&self, shard: &Shard) -> ShardStatus {
        let record = shard.record();
        let applied = shard.applied();
        let raft = self.raft.status(record.group);
        let reason = raft.as_ref().and_then(|raft| raft.halted.clone());
        let role = match raft.as_ref().map(|raft| raft.role) {
            _ if reason.is_some() => "quarantined",
            Some(Role::Leader) => "leader",
            Some(Role::Candidate) => "candidate",
            Some(Role::Follower) | None => "follower",
        };
        let leader = raft.as_ref().and_then(|raft| raft.leader).filter(|_| reason.is_none());
        ShardStatus {
            name: record.name.clone(),
            group: record.group.0,
            slots: record.slots.iter().map(Slots::of).collect(),
            leader: leader.and_then(|leader| record.node_of(leader)).unwrap_or_default().to_owned(),
            role,
            term: raft.as_ref().map_or(0, |raft| raft.term.0),
            commit_index: raft.as_ref().map_or(0, |raft| raft.commit.0),
            applied_index: applied.applied.index.0,
            epoch: record.epoch,
            replicas: record.node_ids(&record.membership.voters),
            learners: record.node_ids(&record.membership.learners),
            plugin: shard.module().map(Plugin::of).unwrap_or_default(),
            state_hash: format!("{:016x}", applied.state_hash),
            reason,
        }
    }

    /// Brings the gauges up to date and gives all metrics as Prometheus text.
    pub fn metrics_text(&self) -> String {
        for route in self.table().shards() {
            self.metrics.set_raft(&route.name, self.raft.status(route.group).as_ref());
        }
        for peer in self.network.peers() {
            self.metrics.set_peer(&peer.node_id, peer.connected, peer.dropped_messages);
        }
        let storage = self.machine.storage();
        self.metrics.plugins().set(&self.plugin_figures());
        self.metrics.set_storage(folder_bytes(&self.data_folder), storage.memory_bytes());
        self.metrics.text()
    }
}
