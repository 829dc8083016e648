//! The state, and what commands make of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use raft_lite::{GroupId, ReplicaId};

use super::{
    META_GROUP,
    command::{Change, MetaCommand, MetaError, MetaReply, Observe, PutNode, Step},
    operation::{Operation, Outcome, TaskKind},
    plugin::PluginEntry,
};
use crate::storage::{PluginId, ShardRecord, Slot, SlotRange, normalized, overlap, without};

/// Operations that ended and are still shown.
const ENDED_OPERATIONS_KEPT: usize = 100;
/// Groups that ended and are still known by name of what became of them.
const ENDED_GROUPS_KEPT: usize = 10_000;

/// A node.
#[derive(Clone, PartialEq, Message)]
pub struct NodeEntry {
    /// `host:port` that it is reached at.
    #[prost(string, tag = "1")]
    pub address: String,
    /// The number of its data folder; 0 until it has said so.
    #[prost(uint64, tag = "2")]
    pub folder: u64,
    /// It is to get no replicas any more, and loses those it has.
    #[prost(bool, tag = "3")]
    pub draining: bool,
    /// Groups below this may have had replicas in an earlier data folder of the node.
    #[prost(uint64, tag = "4")]
    pub fresh_from: u64,
}

/// What became of a group that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its shard was deleted.
    Deleted,
    /// Its shard was merged into another's.
    MergedInto(GroupId),
}

/// Everything the cluster knows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetaState {
    /// Grows with each change.
    pub version: u64,
    /// Number of slots of the cluster.
    pub slots: u32,
    /// The number that the next group gets.
    pub next_group: u64,
    /// The number that the next operation gets.
    pub next_operation: u64,
    /// Whether the balancer begins operations by itself.
    pub balancer: bool,
    /// The nodes by their ids.
    pub nodes: BTreeMap<String, NodeEntry>,
    /// The newest known record of each group, meta's own among them. What it says of the
    /// replica of one node means nothing.
    pub shards: BTreeMap<GroupId, ShardRecord>,
    /// Groups that are no more.
    pub ended: BTreeMap<GroupId, Ended>,
    /// Operations under way, and those that ended last.
    pub operations: BTreeMap<u64, Operation>,
    /// The plugins that shards may run.
    pub plugins: BTreeMap<PluginId, PluginEntry>,
}

impl MetaState {
    /// Carries out a command at replicated time `now_ms`. Gives the answer.
    pub fn apply(&mut self, command: &Bytes, now_ms: u64) -> MetaReply {
        let change = MetaCommand::decode(command.clone()).ok().and_then(|command| command.change);
        let unknown = || MetaError::Conflict("this version does not know the command".to_owned());
        let carried_out =
            change.ok_or_else(unknown).and_then(|change| self.carry_out(change, now_ms));
        let reply = MetaReply {
            version: self.version,
            next_group: self.next_group,
            ..MetaReply::default()
        };
        match carried_out {
            Ok(operation) => MetaReply { operation, ..reply },
            Err(error) => reply.refused(&error),
        }
    }

    fn carry_out(&mut self, change: Change, now_ms: u64) -> Result<u64, MetaError> {
        let mut operation = 0;
        let has_changed = match change {
            Change::Observe(Observe { records }) => {
                let records = records.iter().filter_map(|record| ShardRecord::decode(record).ok());
                // Those of higher epochs take slots from the others, in whatever order.
                records.map(|record| self.observe(record)).filter(|is_news| *is_news).count() > 0
            }
            Change::Begin(begin) => {
                let known = self
                    .operations
                    .values()
                    .find(|o| begin.request_id != 0 && o.request_id == begin.request_id);
                match known.map(|operation| operation.id) {
                    Some(id) => {
                        operation = id;
                        false
                    }
                    None => {
                        operation = self.begin(begin, now_ms)?;
                        true
                    }
                }
            }
            Change::Step(step) => self.step(step, now_ms)?,
            Change::PutNode(node) => self.put_node(node)?,
            Change::DropNode(node) => self.drop_node(&node)?,
            Change::Balancer(on) => std::mem::replace(&mut self.balancer, on) != on,
            Change::PutPlugin(plugin) => self.put_plugin(plugin, now_ms)?,
            Change::HavePlugin(have) => self.have_plugin(have)?,
            Change::DropPlugin(plugin) => self.drop_plugin(&plugin)?,
            Change::EndShard(group) => self.end(GroupId(group), Ended::Deleted),
            Change::Cancel(id) => {
                let not_found = MetaError::NotFound { what: "operation", name: id.to_string() };
                let operation = self.operations.get_mut(&id).ok_or(not_found)?;
                match operation.outcome() {
                    Outcome::Running => !std::mem::replace(&mut operation.cancelled, true),
                    Outcome::RolledBack => false,
                    Outcome::Done => {
                        return Err(MetaError::Conflict(format!("operation {id} is done")));
                    }
                }
            }
        };
        self.version += u64::from(has_changed);
        Ok(operation)
    }

    /// Takes note of a shard's record, if it is news.
    fn observe(&mut self, record: ShardRecord) -> bool {
        let group = record.group;
        let is_known = self.shards.get(&group).is_some_and(|known| known.epoch >= record.epoch);
        if is_known || self.ended.contains_key(&group) || group.0 >= self.next_group {
            return false;
        }
        for source in &record.absorbed {
            self.end(*source, Ended::MergedInto(group));
        }
        let mut slots = record.slots.clone();
        for other in self.shards.values_mut().filter(|other| other.group != group) {
            if !overlap(&other.slots, &record.slots) {
                continue;
            }
            if other.epoch < record.epoch {
                other.slots = without(&other.slots, &record.slots);
            } else {
                slots = without(&slots, &other.slots);
            }
        }
        let record = ShardRecord {
            slots,
            replica: ReplicaId::default(),
            started: false,
            applied_by_snapshot: false,
            ..record
        };
        self.shards.insert(group, record);
        true
    }

    fn end(&mut self, group: GroupId, how: Ended) -> bool {
        self.shards.remove(&group);
        let is_news = self.ended.insert(group, how).is_none();
        while self.ended.len() > ENDED_GROUPS_KEPT {
            self.ended.pop_first();
        }
        is_news
    }

    fn step(&mut self, step: Step, now_ms: u64) -> Result<bool, MetaError> {
        let Step { operation: after, after: steps } = step;
        let not_found = MetaError::NotFound { what: "operation", name: after.id.to_string() };
        let operation = self.operations.get_mut(&after.id).ok_or(not_found)?;
        if operation.steps != steps || !operation.is_running() {
            return Err(MetaError::Conflict("the operation has gone on meanwhile".to_owned()));
        }
        operation.step = after.step;
        operation.sources = after.sources;
        operation.switched = after.switched;
        operation.watched_until_ms = after.watched_until_ms;
        operation.faults_before = after.faults_before;
        operation.fault = after.fault;
        operation.attempt = after.attempt;
        operation.message = after.message;
        operation.outcome = after.outcome;
        operation.steps += 1;
        if !operation.is_running() {
            operation.ended_ms = now_ms;
            if operation.outcome() == Outcome::RolledBack
                && operation.task.kind() == TaskKind::RemoveNode
                && let Some(node) = self.nodes.get_mut(&operation.task.from)
            {
                node.draining = false;
            }
        }
        let mut surplus = self.operations.values().filter(|o| !o.is_running()).count();
        self.operations.retain(|_, operation| {
            let goes = surplus > ENDED_OPERATIONS_KEPT && !operation.is_running();
            surplus -= usize::from(goes);
            !goes
        });
        Ok(true)
    }

    fn put_node(&mut self, node: PutNode) -> Result<bool, MetaError> {
        let taken = self
            .nodes
            .iter()
            .find(|(id, other)| **id != node.node && other.address == node.address);
        if let Some((id, _)) = taken {
            let message = format!("node {id} has the address {}", node.address);
            return Err(MetaError::Conflict(message));
        }
        let next_group = self.next_group;
        let mut is_news = false;
        let entry = self.nodes.entry(node.node).or_insert_with(|| {
            is_news = true;
            NodeEntry { fresh_from: next_group, ..NodeEntry::default() }
        });
        if entry.address != node.address {
            entry.address = node.address;
            is_news = true;
        }
        if node.folder != 0 && entry.folder != node.folder {
            if entry.folder != 0 {
                // What its replicas had in the other folder is lost.
                entry.fresh_from = next_group;
            }
            entry.folder = node.folder;
            is_news = true;
        }
        Ok(is_news)
    }

    fn drop_node(&mut self, node: &str) -> Result<bool, MetaError> {
        if let Some(shard) = self.shards_on(node).next() {
            let message = format!("node {node} has a replica of {}", shard.name);
            return Err(MetaError::Conflict(message));
        }
        Ok(self.nodes.remove(node).is_some())
    }

    /// The shards that have a replica on a node, meta among them.
    pub fn shards_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a ShardRecord> {
        self.shards.values().filter(move |shard| shard.nodes.values().any(|on| on == node))
    }

    /// All shards but meta.
    pub fn user_shards(&self) -> impl Iterator<Item = &ShardRecord> {
        self.shards.values().filter(|shard| shard.group != META_GROUP)
    }

    /// A shard by its name.
    pub fn shard_named(&self, name: &str) -> Result<&ShardRecord, MetaError> {
        let not_found = || MetaError::NotFound { what: "shard", name: name.to_owned() };
        self.shards.values().find(|shard| shard.name == name).ok_or_else(not_found)
    }

    /// A node by its id.
    pub fn node_named(&self, id: &str) -> Result<&NodeEntry, MetaError> {
        let not_found = || MetaError::NotFound { what: "node", name: id.to_owned() };
        self.nodes.get(id).ok_or_else(not_found)
    }

    /// The operation under way that a group takes part in.
    pub fn operation_on(&self, group: GroupId) -> Option<&Operation> {
        let mut running = self.operations.values().filter(|operation| operation.is_running());
        running.find(|operation| operation.groups().any(|other| other == group))
    }

    /// The slots that no shard owns.
    pub fn unowned(&self) -> Vec<SlotRange> {
        let owned = self.shards.values().flat_map(|shard| shard.slots.iter().copied());
        let all = [SlotRange { start: Slot(0), end: Slot(self.slots) }];
        without(&all, &normalized(owned))
    }

    /// How many replicas of shards a node has, or is about to get.
    pub fn replicas_on(&self, node: &str) -> usize {
        let has = self.shards_on(node).filter(|shard| shard.group != META_GROUP).count();
        let running = self.operations.values().filter(|operation| operation.is_running());
        let comes = |o: &&Operation| o.task.to == node || o.task.nodes.iter().any(|n| n == node);
        has + running.filter(comes).count()
    }
}

/// [`MetaState`] as it is stored and sent.
#[derive(Clone, PartialEq, Message)]
struct StoredState {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(uint32, tag = "2")]
    slots: u32,
    #[prost(uint64, tag = "3")]
    next_group: u64,
    #[prost(uint64, tag = "4")]
    next_operation: u64,
    #[prost(bool, tag = "5")]
    balancer_off: bool,
    #[prost(btree_map = "string, message", tag = "6")]
    nodes: BTreeMap<String, NodeEntry>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    shards: Vec<Vec<u8>>,
    /// Groups that were merged, and the groups they were merged into.
    #[prost(btree_map = "uint64, uint64", tag = "8")]
    merged: BTreeMap<u64, u64>,
    #[prost(uint64, repeated, tag = "9")]
    deleted: Vec<u64>,
    #[prost(message, repeated, tag = "10")]
    operations: Vec<Operation>,
    #[prost(message, repeated, tag = "11")]
    plugins: Vec<PluginEntry>,
}

impl MetaState {
    /// The state as it is stored and sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut stored = StoredState {
            version: self.version,
            slots: self.slots,
            next_group: self.next_group,
            next_operation: self.next_operation,
            balancer_off: !self.balancer,
            nodes: self.nodes.clone(),
            shards: self.shards.values().map(ShardRecord::encode).collect(),
            operations: self.operations.values().cloned().collect(),
            plugins: self.plugins.values().cloned().collect(),
            ..StoredState::default()
        };
        for (group, ended) in &self.ended {
            match ended {
                Ended::Deleted => stored.deleted.push(group.0),
                Ended::MergedInto(target) => {
                    stored.merged.insert(group.0, target.0);
                }
            }
        }
        stored.encode_to_vec()
    }

    /// Reads [`MetaState::encode`].
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored = StoredState::decode(bytes).map_err(|error| error.to_string())?;
        let deleted = stored.deleted.into_iter().map(|group| (GroupId(group), Ended::Deleted));
        let merged = stored.merged.into_iter();
        let merged = merged.map(|(group, into)| (GroupId(group), Ended::MergedInto(GroupId(into))));
        let mut shards = BTreeMap::new();
        for shard in stored.shards {
            let record = ShardRecord::decode(&shard)?;
            shards.insert(record.group, record);
        }
        Ok(MetaState {
            version: stored.version,
            slots: stored.slots,
            next_group: stored.next_group,
            next_operation: stored.next_operation,
            balancer: !stored.balancer_off,
            nodes: stored.nodes,
            shards,
            ended: deleted.chain(merged).collect(),
            operations: stored.operations.into_iter().map(|o| (o.id, o)).collect(),
            plugins: stored.plugins.into_iter().map(|plugin| (plugin.id(), plugin)).collect(),
        })
    }
}
