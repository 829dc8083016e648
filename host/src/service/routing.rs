//! Which shard a key lives in, and who may know its leader.
//!
//! The table is made of the node's copy of the cluster's state and of the records of its
//! own replicas, which are often newer: of two that claim a slot, the one with the higher
//! epoch owns it. It is made anew whenever one of them changes; requests keep the one they
//! began with.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use raft_lite::{GroupId, NodeId};

use super::{Service, error::ServiceError};
use crate::{
    meta::{META_GROUP, META_NAME, MetaState},
    metrics::ShardMetrics,
    storage::{ShardRecord, Slot, SlotRange, overlap, slot_of, without},
};

/// Slots and the shards that own them.
pub struct RoutingTable {
    version: u64,
    /// For each slot the place of its shard in `shards`.
    by_slot: Vec<Option<u32>>,
    /// In the order of their groups.
    shards: Vec<Arc<ShardRoute>>,
    meta: Option<Arc<ShardRoute>>,
}

/// A shard, as requests find it.
#[derive(Clone, Debug)]
pub struct ShardRoute {
    /// Its Raft group.
    pub group: GroupId,
    /// Its name.
    pub name: Arc<str>,
    /// Its epoch, as far as this node knows.
    pub epoch: u64,
    /// Its slots.
    pub slots: Arc<[SlotRange]>,
    /// The nodes with a replica.
    pub nodes: Arc<[NodeId]>,
    /// What its plugin calls itself; empty if it is not known here.
    pub plugin: Arc<str>,
    /// Where to count.
    pub metrics: Arc<ShardMetrics>,
    /// The node that was last said to lead it; 0 for none. Of use where this node has no
    /// replica.
    pub hint: Arc<AtomicU64>,
    /// When this node last moved the shard's replicated time on, by its own clock, in
    /// milliseconds since 1970.
    pub moved_on_ms: Arc<AtomicU64>,
}

/// A shard and who leads it, for clients that ask the leaders themselves.
#[derive(Clone, Debug)]
pub struct LeaderRoute {
    /// Its name.
    pub shard: String,
    /// Its slots.
    pub slots: Vec<SlotRange>,
    /// Id and address of the leader's node, if known.
    pub leader: Option<(String, String)>,
}

impl Service {
    /// Version of the routing table, all shards and their leaders, as far as this node
    /// knows.
    pub fn leaders(&self) -> (u64, Vec<LeaderRoute>) {
        let leader = |route: &Arc<ShardRoute>| {
            let leader = self.leader_of(route).and_then(|node| self.node_at(node));
            LeaderRoute { shard: route.name.to_string(), slots: route.slots.to_vec(), leader }
        };
        let table = self.table();
        (table.version, table.shards().iter().map(leader).collect())
    }

    /// Where all nodes of the cluster are reached, as far as this node knows.
    pub fn node_addresses(&self) -> Vec<String> {
        self.copy.borrow().nodes.values().map(|node| node.address.clone()).collect()
    }

    /// The cluster's id, and its number of slots.
    pub fn cluster(&self) -> (&str, u32) {
        (&self.info.cluster_id, self.slots)
    }

    /// The routing table as it is now.
    pub(super) fn table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.table.read())
    }

    /// Makes the routing table anew.
    pub(super) fn rebuild_table(&self) {
        let copy = self.copy.borrow().clone();
        let mut records = copy.shards.clone();
        for shard in self.machine.replicas() {
            add_record(&mut records, shard.record(), &copy);
        }
        let before = self.table();
        let route = |record: &ShardRecord| {
            let known = before.group(record.group);
            let plugin: Arc<str> = self.machine.plugin_name(&record.plugin).into();
            let name = record.name.as_str();
            Arc::new(ShardRoute {
                group: record.group,
                epoch: record.epoch,
                slots: record.slots.as_slice().into(),
                nodes: record.nodes.keys().copied().collect(),
                metrics: self.metrics.shard(name, &plugin),
                hint: known.map(|route| Arc::clone(&route.hint)).unwrap_or_default(),
                moved_on_ms: known.map(|route| Arc::clone(&route.moved_on_ms)).unwrap_or_default(),
                name: name.into(),
                plugin,
            })
        };
        let meta = records.remove(&META_GROUP).map(|record| route(&record));
        let shards: Vec<Arc<ShardRoute>> = records.values().map(route).collect();
        self.metrics.keep_shards(&shards.iter().map(|route| &*route.name).collect());
        let table = RoutingTable::new(copy.version, self.slots, shards, meta);
        *self.table.write() = Arc::new(table);
    }
}

/// Adds the record of a replica on this node to what the cluster's state says.
fn add_record(records: &mut BTreeMap<GroupId, ShardRecord>, own: &ShardRecord, copy: &MetaState) {
    let is_older = records.get(&own.group).is_some_and(|known| known.epoch >= own.epoch);
    if is_older || copy.ended.contains_key(&own.group) {
        return;
    }
    for source in &own.absorbed {
        records.remove(source);
    }
    let mut slots = own.slots.clone();
    for other in records.values_mut().filter(|other| other.group != own.group) {
        if !overlap(&other.slots, &own.slots) {
            continue;
        }
        if other.epoch < own.epoch {
            other.slots = without(&other.slots, &own.slots);
        } else {
            slots = without(&slots, &other.slots);
        }
    }
    records.insert(own.group, ShardRecord { slots, ..own.clone() });
}

/// What the key-value store calls itself.
const KV_PLUGIN: &str = "kv";

impl ShardRoute {
    /// Whether the shard's plugin understands the commands of the key-value store.
    pub fn check_is_kv(&self) -> Result<(), ServiceError> {
        if &*self.plugin == KV_PLUGIN || self.plugin.is_empty() {
            return Ok(());
        }
        let (shard, plugin) = (self.name.to_string(), self.plugin.to_string());
        Err(ServiceError::OtherPlugin { shard, plugin })
    }
}

impl RoutingTable {
    /// A table that knows of no shards.
    pub fn empty(slots: u32) -> Self {
        Self::new(0, slots, Vec::new(), None)
    }

    fn new(
        version: u64,
        slots: u32,
        shards: Vec<Arc<ShardRoute>>,
        meta: Option<Arc<ShardRoute>>,
    ) -> Self {
        let mut by_slot = vec![None; slots as usize];
        for (place, route) in (0..).zip(&shards) {
            for slot in route.slots.iter().flat_map(|range| range.slots()) {
                if let Some(owner) = by_slot.get_mut(slot.0 as usize) {
                    *owner = Some(place);
                }
            }
        }
        RoutingTable { version, by_slot, shards, meta }
    }

    /// Grows with each change that the whole cluster knows of.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of slots the key space is cut into.
    pub fn slots(&self) -> u32 {
        self.by_slot.len() as u32
    }

    /// All shards, in the order of their groups.
    pub fn shards(&self) -> &[Arc<ShardRoute>] {
        &self.shards
    }

    /// A shard by its group; the cluster's own group is found, too.
    pub fn group(&self, group: GroupId) -> Option<&Arc<ShardRoute>> {
        if group == META_GROUP {
            return self.meta.as_ref();
        }
        let place = self.shards.binary_search_by_key(&group, |route| route.group).ok()?;
        self.shards.get(place)
    }

    /// A shard by its name; the cluster's own group is found, too.
    pub fn named(&self, name: &str) -> Result<&Arc<ShardRoute>, ServiceError> {
        let found = match name {
            META_NAME => self.meta.as_ref(),
            name => self.shards.iter().find(|route| &*route.name == name),
        };
        found.ok_or_else(|| ServiceError::NotFound {
            what: "shard".to_owned(),
            name: name.to_owned(),
        })
    }

    /// The slot of a key and the shard that owns it.
    pub fn route(&self, key: &[u8]) -> Result<(Slot, &Arc<ShardRoute>), ServiceError> {
        let slot = slot_of(key, self.slots());
        Ok((slot, self.owner(slot)?))
    }

    /// The shard that owns a slot.
    pub fn owner(&self, slot: Slot) -> Result<&Arc<ShardRoute>, ServiceError> {
        let owner = self.by_slot.get(slot.0 as usize).copied().flatten();
        owner.map(|place| &self.shards[place as usize]).ok_or_else(|| {
            ServiceError::ShardUnavailable {
                shard: String::new(),
                reason: format!("no shard owns slot {}", slot.0),
            }
        })
    }
}
