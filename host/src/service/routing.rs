//! Which shard a key lives in.

use std::sync::Arc;

use raft_lite::GroupId;

use super::{Service, error::ServiceError};
use crate::storage::{ShardRecord, Slot, SlotRange, slot_of};

/// Slots and the shards that own them.
pub struct RoutingTable {
    /// For each slot the place of its shard in `shards`.
    by_slot: Vec<Option<usize>>,
    shards: Vec<ShardRoute>,
}

/// A shard, as requests find it.
#[derive(Clone, Debug)]
pub struct ShardRoute {
    /// Its Raft group.
    pub group: GroupId,
    /// Its name.
    pub name: Arc<str>,
    /// Its slots.
    pub slots: Arc<[SlotRange]>,
    /// Its place in the table, for counters.
    pub ordinal: usize,
    /// What its plugin calls itself.
    pub plugin: Arc<str>,
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
    /// All shards and their leaders, as far as this node knows.
    pub fn leaders(&self) -> Vec<LeaderRoute> {
        let leader = |route: &ShardRoute| {
            let leader = self.raft.leader(route.group).and_then(|node| self.node_at(node));
            LeaderRoute { shard: route.name.to_string(), slots: route.slots.to_vec(), leader }
        };
        self.routing.shards().iter().map(leader).collect()
    }

    /// The cluster's id, and its number of slots.
    pub fn cluster(&self) -> (&str, u32) {
        (&self.info.cluster_id, self.routing.slots())
    }
}

/// What the key-value store calls itself.
const KV_PLUGIN: &str = "kv";

impl ShardRoute {
    /// Whether the shard's plugin understands the commands of the key-value store.
    pub fn check_is_kv(&self) -> Result<(), ServiceError> {
        if &*self.plugin == KV_PLUGIN {
            return Ok(());
        }
        let (shard, plugin) = (self.name.to_string(), self.plugin.to_string());
        Err(ServiceError::OtherPlugin { shard, plugin })
    }
}

impl RoutingTable {
    /// The table of a cluster's shards and what their plugins call themselves.
    pub fn of(shards: &[(ShardRecord, String)], slots: u32) -> Self {
        let mut table = RoutingTable { by_slot: vec![None; slots as usize], shards: Vec::new() };
        for (record, plugin) in shards {
            let ordinal = table.shards.len();
            for slot in record.slots.iter().flat_map(|range| range.slots()) {
                if let Some(owner) = table.by_slot.get_mut(slot.0 as usize) {
                    *owner = Some(ordinal);
                }
            }
            let name = record.name.as_str().into();
            let plugin = plugin.as_str().into();
            let (group, slots) = (record.group, record.slots.as_slice().into());
            table.shards.push(ShardRoute { group, name, slots, ordinal, plugin });
        }
        table
    }

    /// Number of slots the key space is cut into.
    pub fn slots(&self) -> u32 {
        self.by_slot.len() as u32
    }

    /// All shards.
    pub fn shards(&self) -> &[ShardRoute] {
        &self.shards
    }

    /// The slot of a key and the shard that owns it.
    pub fn route(&self, key: &[u8]) -> Result<(Slot, &ShardRoute), ServiceError> {
        let slot = slot_of(key, self.slots());
        Ok((slot, self.owner(slot)?))
    }

    /// The shard that owns a slot.
    pub fn owner(&self, slot: Slot) -> Result<&ShardRoute, ServiceError> {
        let owner = self.by_slot.get(slot.0 as usize).copied().flatten();
        owner.map(|ordinal| &self.shards[ordinal]).ok_or_else(|| ServiceError::ShardUnavailable {
            shard: String::new(),
            reason: format!("no shard owns slot {}", slot.0),
        })
    }
}
