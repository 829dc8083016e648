//! What `GET /admin/cluster` says of a cluster.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::http::Response;

/// A cluster, as one of its nodes sees it.
#[derive(Clone, Debug)]
pub struct ClusterView(Value);

impl ClusterView {
    /// What a node answered.
    ///
    /// # Panics
    /// If it is not the cluster.
    pub fn of(answer: &Response) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text());
        Self(answer.json())
    }

    /// The answer itself.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// Version of the routing table.
    ///
    /// # Panics
    /// If it has none.
    pub fn version(&self) -> u64 {
        self.0["version"].as_u64().expect("there is a version")
    }

    /// The shards' names, in the order of their groups.
    pub fn shard_ids(&self) -> Vec<String> {
        strings(self.list("shards").iter().map(|shard| &shard["shard_id"]))
    }

    /// The nodes' ids.
    pub fn node_ids(&self) -> Vec<String> {
        strings(self.list("nodes").iter().map(|node| &node["node_id"]))
    }

    /// A shard.
    pub fn shard(&self, shard: &str) -> Option<&Value> {
        self.list("shards").iter().find(|found| found["shard_id"] == shard)
    }

    /// A node.
    pub fn node(&self, node: &str) -> Option<&Value> {
        self.list("nodes").iter().find(|found| found["node_id"] == node)
    }

    /// The nodes with a voting replica of a shard, in the order of their ids.
    pub fn replicas(&self, shard: &str) -> Option<Vec<String>> {
        let mut replicas = strings(entries(&self.shard(shard)?["replicas"]));
        replicas.sort();
        Some(replicas)
    }

    /// The nodes with a replica of a shard that has no vote yet.
    pub fn learners(&self, shard: &str) -> Option<Vec<String>> {
        self.shard(shard).map(|shard| strings(entries(&shard["learners"])))
    }

    /// The operations under way.
    pub fn running(&self) -> Vec<&Value> {
        let operations = self.list("operations").iter();
        operations.filter(|operation| operation["state"] == "running").collect()
    }

    /// The slots of each shard by its group: starts, and the slots after the ends.
    pub fn slots_of_groups(&self) -> BTreeMap<u64, Vec<(u32, u32)>> {
        let group = |shard: &Value| (number(&shard["group"]), ranges(&shard["slots"]));
        self.list("shards").iter().map(group).collect()
    }

    /// The shard that owns a slot, if any.
    pub fn owner_of(&self, slot: u32) -> Option<String> {
        let owns = |shard: &&Value| {
            ranges(&shard["slots"]).iter().any(|(start, end)| (*start..*end).contains(&slot))
        };
        let owner = self.list("shards").iter().find(owns)?;
        owner["shard_id"].as_str().map(str::to_owned)
    }

    /// Whether each slot has one owner; else what is wrong.
    pub fn owned_once(&self) -> Result<(), String> {
        let mut owned = BTreeSet::new();
        for (start, end) in self.slots_of_groups().into_values().flatten() {
            for slot in start..end {
                if !owned.insert(slot) {
                    return Err(format!("slot {slot} has two owners: {}", self.0["shards"]));
                }
            }
        }
        let slots = number(&self.0["slots"]);
        match owned.len() as u64 == slots {
            true => Ok(()),
            false => Err(format!("slots have no owner: {}", self.0["unowned_slots"])),
        }
    }

    fn list(&self, name: &str) -> &[Value] {
        self.0[name].as_array().map_or(&[], Vec::as_slice)
    }
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn strings<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<String> {
    values.map(|value| value.as_str().expect("it is a string").to_owned()).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("it is a number")
}

fn ranges(list: &Value) -> Vec<(u32, u32)> {
    let bound = |value: &Value| u32::try_from(number(value)).expect("slots are few");
    entries(list).map(|range| (bound(&range["start"]), bound(&range["end"]))).collect()
}
