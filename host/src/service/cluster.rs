//! The cluster as a whole: its nodes, shards and operations.

use std::{collections::BTreeMap, time::Duration};

use raft_kv_proto::v1::{ReplicaReport, TransferOrder, order::Kind};
use raft_lite::{GroupId, NodeId};
use serde::Serialize;

use super::{
    Service, ServiceError,
    plugins::Activation,
    status::{Plugin, Slots},
};
use crate::{
    meta::{
        Begin, Change, META_GROUP, META_NAME, MetaState, Operation, PutNode, Task, TaskKind,
        check_node_id,
    },
    storage::{Phase, ShardRecord, node_number},
    wasm::ModuleHash,
};

/// Within this a node hears of an operation that was begun elsewhere.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);
/// How long the leader is looked for that is to hand over.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(8);

/// A node of the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its id.
    pub node_id: String,
    /// `host:port` that it is reached at.
    pub address: String,
    /// `up` or `down`.
    pub state: &'static str,
    /// Whether it is being removed.
    pub draining: bool,
    /// Whether it replicates the cluster's own group.
    pub meta: bool,
    /// Replicas of shards on it.
    pub replicas: u32,
    /// Shards that it leads.
    pub leaders: u32,
    /// Bytes of its data folder.
    pub disk_usage_bytes: u64,
    /// Bytes free on its disk.
    pub disk_free_bytes: u64,
    /// Version of its program.
    pub version: String,
}

/// A shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardView {
    /// Its name.
    pub shard_id: String,
    /// Its Raft group.
    pub group: u64,
    /// Its slots.
    pub slots: Vec<Slots>,
    /// Version of its slots and replicas.
    pub epoch: u64,
    /// The node that leads, if one is known.
    pub leader: Option<String>,
    /// The nodes with a voting replica.
    pub replicas: Vec<String>,
    /// The nodes with a replica that is catching up and has no vote yet.
    pub learners: Vec<String>,
    /// `serving`, `frozen` or `no_leader`.
    pub state: &'static str,
    /// Bytes that a replica takes up on disk, roughly.
    pub bytes: u64,
    /// The highest index applied.
    pub applied_index: u64,
    /// The plugin it runs.
    pub plugin: Plugin,
    /// The operation under way that it takes part in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<u64>,
}

/// An operation, under way or ended.
#[derive(Clone, Debug, Serialize)]
pub struct OperationView {
    /// Its number.
    pub id: u64,
    /// `create`, `split`, `migrate`, `merge`, `delete`, `add_replica`, `remove_replica`,
    /// `remove_node`, `add_node`, `add_plugin`, `activate_plugin`, `roll_back_plugin` or `rebuild`.
    pub kind: String,
    /// What it does, in a few words.
    pub description: String,
    /// `running`, `done` or `rolled_back`.
    pub state: String,
    /// The step that is taken next.
    pub step: String,
    /// What it waits for, or how it ended.
    pub message: String,
    /// Who asked for it, and why.
    pub reason: String,
    /// When it began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When it ended, milliseconds since 1970.
    pub ended_unix_ms: Option<u64>,
}

/// The whole cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterView {
    /// Its id.
    pub cluster_id: String,
    /// Version of the routing table.
    pub version: u64,
    /// Number of slots.
    pub slots: u32,
    /// Slots that no shard owns.
    pub unowned_slots: Vec<Slots>,
    /// Whether the balancer begins operations by itself.
    pub balancer: bool,
    /// Its nodes, in the order of their ids.
    pub nodes: Vec<NodeView>,
    /// Its shards, in the order of their groups.
    pub shards: Vec<ShardView>,
    /// Operations, in the order they began.
    pub operations: Vec<OperationView>,
}

/// What can be asked for.
#[derive(Clone, Debug)]
pub enum OperationRequest {
    /// A new shard on these nodes; on those with the fewest replicas if none is named.
    CreateShard {
        /// Its name.
        shard: String,
        /// The nodes.
        nodes: Vec<String>,
    },
    /// A shard goes.
    DeleteShard {
        /// Its name.
        shard: String,
        /// Even if there is data in it.
        force: bool,
    },
    /// A replica moves.
    Migrate {
        /// The shard.
        shard: String,
        /// The node it leaves.
        from: String,
        /// The node it comes to.
        to: String,
    },
    /// A shard becomes two.
    Split {
        /// The shard.
        shard: String,
        /// The names of both afterwards, its own among them.
        new_shards: Vec<String>,
    },
    /// Shards become one.
    Merge {
        /// Their names.
        sources: Vec<String>,
        /// The name of the one that stays.
        target: String,
    },
    /// A replica more.
    AddReplica {
        /// The shard.
        shard: String,
        /// The node that gets it.
        node: String,
    },
    /// A replica less.
    RemoveReplica {
        /// The shard.
        shard: String,
        /// The node that has it.
        node: String,
    },
    /// A node more, which joins then.
    AddNode {
        /// Its id.
        node: String,
        /// `host:port` that it will be reached at.
        address: String,
    },
    /// A node gives up its replicas, and goes.
    RemoveNode {
        /// Its id.
        node: String,
    },
    /// Shards run another plugin.
    ActivatePlugin(Activation),
    /// Shards run again what they ran before.
    RollBackPlugin {
        /// What the plugin calls itself that they run.
        name: String,
        /// Their names; none for all.
        shards: Vec<String>,
        /// Even if nobody carries the state over.
        force: bool,
    },
}

impl Service {
    /// The cluster as it is now. Asks all nodes: not for a hot path.
    pub async fn cluster_view(&self) -> Result<ClusterView, ServiceError> {
        let reports = self.reports().await;
        let copy = self.copy.borrow().clone();
        let mut replicas: BTreeMap<GroupId, Vec<(NodeId, ReplicaReport)>> = BTreeMap::new();
        let mut leads: BTreeMap<&str, u32> = BTreeMap::new();
        for (node, report) in &reports {
            for replica in &report.replicas {
                let Ok(record) = ShardRecord::decode(&replica.record) else { continue };
                if replica.leads && record.group != META_GROUP {
                    *leads.entry(node).or_default() += 1;
                }
                let of_group = replicas.entry(record.group).or_default();
                of_group.push((node_number(node), replica.clone()));
            }
        }
        let meta = copy.shards.get(&META_GROUP);
        let node = |(id, entry): (&String, &crate::meta::NodeEntry)| {
            let report = reports.get(id);
            NodeView {
                node_id: id.clone(),
                address: entry.address.clone(),
                state: if report.is_some() { "up" } else { "down" },
                draining: entry.draining,
                meta: meta.is_some_and(|meta| meta.nodes.values().any(|on| on == id)),
                replicas: copy.shards_on(id).filter(|s| s.group != META_GROUP).count() as u32,
                leaders: leads.get(id.as_str()).copied().unwrap_or(0),
                disk_usage_bytes: report.map_or(0, |report| report.disk_usage_bytes),
                disk_free_bytes: report.map_or(0, |report| report.disk_free_bytes),
                version: report.map(|report| report.version.clone()).unwrap_or_default(),
            }
        };
        let none = Vec::new();
        let shard = |shard: &ShardRecord| {
            self.shard_view(&copy, shard, replicas.get(&shard.group).unwrap_or(&none))
        };
        Ok(ClusterView {
            cluster_id: self.info.cluster_id.clone(),
            version: copy.version,
            slots: self.slots,
            unowned_slots: copy.unowned().iter().map(Slots::of).collect(),
            balancer: copy.balancer,
            nodes: copy.nodes.iter().map(node).collect(),
            shards: copy.user_shards().map(shard).collect(),
            operations: copy.operations.values().map(operation_view).collect(),
        })
    }

    fn shard_view(
        &self,
        copy: &MetaState,
        shard: &ShardRecord,
        replicas: &[(NodeId, ReplicaReport)],
    ) -> ShardView {
        let leader = replicas.iter().find(|(_, report)| report.leads).map(|(node, _)| *node);
        let leader = leader.and_then(|node| shard.nodes.get(&node)).cloned();
        ShardView {
            shard_id: shard.name.clone(),
            group: shard.group.0,
            slots: shard.slots.iter().map(Slots::of).collect(),
            epoch: shard.epoch,
            state: match (&shard.phase, &leader) {
                (Phase::Frozen(_) | Phase::Retired, _) => "frozen",
                (_, None) => "no_leader",
                _ => "serving",
            },
            leader,
            replicas: shard.node_ids(&shard.membership.voters),
            learners: shard.node_ids(&shard.membership.learners),
            bytes: replicas.iter().map(|(_, report)| report.bytes).max().unwrap_or(0),
            applied_index: replicas.iter().map(|(_, r)| r.applied_index).max().unwrap_or(0),
            plugin: self.plugin_of(copy, shard),
            operation: copy.operation_on(shard.group).map(|operation| operation.id),
        }
    }

    /// What a shard's plugin calls itself, as far as this node or the cluster knows.
    fn plugin_of(&self, copy: &MetaState, shard: &ShardRecord) -> Plugin {
        let known = copy.plugins.get(&shard.plugin).map(|entry| Plugin {
            name: entry.description.name.clone(),
            version: entry.description.version.clone(),
            sha256: ModuleHash(shard.plugin).to_string(),
        });
        let own = || self.machine.plugin(&shard.plugin).as_ref().map(Plugin::of);
        known.or_else(own).unwrap_or_default()
    }

    /// Begins an operation; gives its id. Asked again with the same `request_id`, which is
    /// not 0, it gives that of the same operation.
    ///
    /// # Errors
    /// If what is named does not exist, or it can not be as things are; nothing has changed
    /// then.
    pub async fn begin(
        &self,
        request: OperationRequest,
        request_id: u64,
    ) -> Result<u64, ServiceError> {
        let task = match request {
            OperationRequest::AddNode { node, address } => {
                return self.add_node(node, address).await;
            }
            request => task_of(request)?,
        };
        if task.shard == META_NAME {
            let message =
                format!("{META_NAME} keeps the cluster itself, and is looked after by it");
            return Err(ServiceError::invalid("shard_id", "a shard", &message));
        }
        let begin = Begin { task, request_id, reason: "user".to_owned() };
        Ok(self.tell_meta(Change::Begin(begin)).await?.operation)
    }

    async fn add_node(&self, node: String, address: String) -> Result<u64, ServiceError> {
        check_node_id(&node).map_err(|message| {
            ServiceError::invalid("node_id", "an id", &format!("node_id {message}"))
        })?;
        if address
            .rsplit_once(':')
            .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            let message = format!("{address:?} is no address: it has to be host:port");
            return Err(ServiceError::invalid("address", "host:port", &message));
        }
        let known = self.copy.borrow().nodes.get(&node).cloned();
        if known.is_some_and(|known| known.address != address || known.folder != 0) {
            return Err(ServiceError::Conflict {
                message: format!("there is a node {node} already"),
            });
        }
        self.tell_meta(Change::PutNode(PutNode { node, address, folder: 0 })).await?;
        Ok(0)
    }

    /// The operation once it is finished, or as it is when the time is up. Number 0 stands
    /// for what was done at once.
    pub async fn await_operation(
        &self,
        id: u64,
        within: Duration,
    ) -> Result<OperationView, ServiceError> {
        if id == 0 {
            return Ok(done_at_once());
        }
        self.wait_for_operation(id).await;
        let mut copy = self.copy.subscribe();
        let is_over = |copy: &std::sync::Arc<MetaState>| {
            copy.operations.get(&id).is_some_and(|operation| !operation.is_running())
        };
        // When the time is up it is shown as it is.
        let _ = tokio::time::timeout(within, copy.wait_for(is_over)).await;
        let copy = copy.borrow().clone();
        let not_found =
            || ServiceError::NotFound { what: "operation".to_owned(), name: id.to_string() };
        copy.operations.get(&id).map(operation_view).ok_or_else(not_found)
    }

    /// Waits until this node's copy of the cluster's state is new enough to have an
    /// operation, for a while: it may have been begun by way of another node.
    async fn wait_for_operation(&self, id: u64) {
        let mut copy = self.copy.subscribe();
        let knows = copy.wait_for(|copy| id < copy.next_operation);
        // It is not found then.
        let _ = tokio::time::timeout(KNOWN_WITHIN, knows).await;
    }

    /// Cancels an operation where that is safe: it rolls back.
    pub async fn cancel(&self, id: u64) -> Result<(), ServiceError> {
        self.tell_meta(Change::Cancel(id)).await?;
        Ok(())
    }

    /// Lets the balancer begin operations by itself, or not.
    pub async fn set_balancer(&self, on: bool) -> Result<(), ServiceError> {
        self.tell_meta(Change::Balancer(on)).await?;
        Ok(())
    }

    /// Has a node's replica take over a shard's leadership.
    ///
    /// # Errors
    /// If the shard or the node does not exist, the node has no vote, or does not take over
    /// in time.
    pub async fn transfer_leader(&self, shard: &str, node: &str) -> Result<u64, ServiceError> {
        let table = self.table();
        let route = table.named(shard)?;
        let copy = self.copy.borrow().clone();
        copy.node_named(node)?;
        let number = node_number(node);
        let voters = copy.shards.get(&route.group).map(|shard| &shard.membership.voters);
        let voter = voters.into_iter().flatten().find(|(_, on)| **on == number);
        let Some((replica, _)) = voter else {
            let message = format!("node {node} has no voting replica of shard {shard}");
            return Err(ServiceError::Conflict { message });
        };
        let kind = Kind::Transfer(TransferOrder { group: route.group.0, to: node.to_owned() });
        let ordered = self.order_leader(route.group, kind, HAND_OVER_WITHIN).await;
        ordered.map_err(|error| self.request_error(error, route))?;
        Ok(replica.0)
    }
}

fn task_of(request: OperationRequest) -> Result<Task, ServiceError> {
    let mut task = Task::default();
    let kind = match request {
        OperationRequest::CreateShard { shard, nodes } => {
            (task.new_shard, task.nodes) = (shard, nodes);
            TaskKind::Create
        }
        OperationRequest::DeleteShard { shard, force } => {
            (task.shard, task.force) = (shard, force);
            TaskKind::Delete
        }
        OperationRequest::Migrate { shard, from, to } => {
            (task.shard, task.from, task.to) = (shard, from, to);
            TaskKind::Migrate
        }
        OperationRequest::Split { shard, new_shards } => {
            let others: Vec<&String> = new_shards.iter().filter(|name| **name != shard).collect();
            let [new_shard] = others.as_slice() else {
                let limit = "the shard's own name and a new one";
                let message = format!("new_shards has to hold two names: {shard} and a new one");
                return Err(ServiceError::invalid("new_shards", limit, &message));
            };
            if new_shards.len() != 2 {
                let message = format!("new_shards has to hold two names: {shard} and a new one");
                return Err(ServiceError::invalid("new_shards", "two names", &message));
            }
            task.new_shard = (*new_shard).clone();
            task.shard = shard;
            TaskKind::Split
        }
        OperationRequest::Merge { sources, target } => {
            (task.sources, task.shard) = (sources, target);
            TaskKind::Merge
        }
        OperationRequest::AddReplica { shard, node } => {
            (task.shard, task.to) = (shard, node);
            TaskKind::AddReplica
        }
        OperationRequest::RemoveReplica { shard, node } => {
            (task.shard, task.from) = (shard, node);
            TaskKind::RemoveReplica
        }
        OperationRequest::RemoveNode { node } => {
            task.from = node;
            TaskKind::RemoveNode
        }
        OperationRequest::AddNode { node, .. } => {
            task.to = node;
            TaskKind::AddNode
        }
        OperationRequest::ActivatePlugin(activation) => {
            task = activation.task();
            TaskKind::ActivatePlugin
        }
        OperationRequest::RollBackPlugin { name, shards, force } => {
            (task.plugin, task.sources, task.force) = (name, shards, force);
            TaskKind::RollBackPlugin
        }
    };
    task.set_kind(kind);
    Ok(task)
}

fn operation_view(operation: &Operation) -> OperationView {
    OperationView {
        id: operation.id,
        kind: operation.task.kind().name().to_owned(),
        description: operation.description(),
        state: operation.outcome().name().to_owned(),
        step: operation.step().name().to_owned(),
        message: operation.message.clone(),
        reason: operation.reason.clone(),
        started_unix_ms: operation.started_ms,
        ended_unix_ms: Some(operation.ended_ms).filter(|ended| *ended != 0),
    }
}

/// What was done at once has no record.
fn done_at_once() -> OperationView {
    OperationView {
        id: 0,
        kind: TaskKind::AddNode.name().to_owned(),
        description: "add a node".to_owned(),
        state: "done".to_owned(),
        step: String::new(),
        message: String::new(),
        reason: "user".to_owned(),
        started_unix_ms: 0,
        ended_unix_ms: None,
    }
}
