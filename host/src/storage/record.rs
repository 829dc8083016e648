//! What is on record of each replica beside its data.

use std::collections::BTreeMap;

use prost::Message;
use raft_lite::{
    GroupDescriptor, GroupId, INITIAL_POSITION, Index, LogPosition, Membership, NodeId, ReplicaId,
    ReplicaRecord, Term,
};
use xxhash_rust::xxh3::xxh3_64;

use super::keys::{Slot, SlotRange};

/// A plugin module's name: the SHA-256 of its bytes.
pub type PluginId = [u8; 32];

/// What a shard is and what this node's replica of it is. Changes only by
/// structural entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRecord {
    /// The shard's Raft group.
    pub group: GroupId,
    /// The replica on this node.
    pub replica: ReplicaId,
    /// The shard's name.
    pub name: String,
    /// Version of the shard's slots and replicas.
    pub epoch: u64,
    /// Its slots.
    pub slots: Vec<SlotRange>,
    /// Its replicas.
    pub membership: Membership,
    /// The ids of their nodes.
    pub nodes: BTreeMap<NodeId, String>,
    /// The plugin that gives its commands their meaning.
    pub plugin: PluginId,
    /// It takes no writes and no reads: it is being merged into another.
    pub frozen: bool,
    /// Its Raft log was created.
    pub started: bool,
    /// Its applied position came with a snapshot.
    pub applied_by_snapshot: bool,
}

/// The number that raft-lite knows a node by, given its id.
pub fn node_number(node: &str) -> NodeId {
    NodeId(xxh3_64(node.as_bytes()))
}

impl ShardRecord {
    /// Whether the shard owns `slot`.
    pub fn owns(&self, slot: Slot) -> bool {
        self.slots.iter().any(|range| range.contains(slot))
    }

    /// The id of the node that a member lives on.
    pub fn node_of(&self, replica: ReplicaId) -> Option<&str> {
        self.nodes.get(&self.membership.node_of(replica)?).map(String::as_str)
    }

    /// The ids of the nodes of these members.
    pub fn node_ids(&self, members: &BTreeMap<ReplicaId, NodeId>) -> Vec<String> {
        members.keys().filter_map(|replica| self.node_of(*replica)).map(str::to_owned).collect()
    }

    /// What raft-lite has to know of the replica, which applied its log up to
    /// `applied`.
    pub fn descriptor(&self, applied: LogPosition) -> GroupDescriptor {
        GroupDescriptor {
            group: self.group,
            replica: self.replica,
            membership: self.membership.clone(),
            epoch: self.epoch,
            record: ReplicaRecord {
                applied,
                started: self.started,
                applied_by_snapshot: self.applied_by_snapshot,
            },
        }
    }
}

/// How far a replica got. Written with the data it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyState {
    /// Position of the last entry applied.
    pub applied: LogPosition,
    /// Replicated time after it, milliseconds since 1970.
    pub time_ms: u64,
    /// Rolling hash over everything applied: indexes, write sets, responses.
    pub state_hash: u64,
}

impl ApplyState {
    /// A group's state before its first entry.
    pub const INITIAL: ApplyState =
        ApplyState { applied: INITIAL_POSITION, time_ms: 0, state_hash: 0 };

    const LEN: usize = 32;

    /// Fixed-size encoding: four little-endian numbers.
    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let fields = [self.applied.index.0, self.applied.term.0, self.time_ms, self.state_hash];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let mut fields = bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk));
        let mut next = || fields.next().unwrap_or_default();
        let applied = LogPosition { index: Index(next()), term: Term(next()) };
        Some(ApplyState { applied, time_ms: next(), state_hash: next() })
    }
}

/// [`ShardRecord`] as stored.
#[derive(Clone, PartialEq, Message)]
struct StoredRecord {
    #[prost(uint64, tag = "1")]
    group: u64,
    #[prost(uint64, tag = "2")]
    replica: u64,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(uint64, tag = "4")]
    epoch: u64,
    /// Starts and ends, in turn.
    #[prost(uint32, repeated, tag = "5")]
    slots: Vec<u32>,
    #[prost(message, repeated, tag = "6")]
    voters: Vec<StoredMember>,
    #[prost(bytes = "vec", tag = "7")]
    plugin: Vec<u8>,
    #[prost(bool, tag = "8")]
    frozen: bool,
    #[prost(bool, tag = "9")]
    started: bool,
    #[prost(bool, tag = "10")]
    applied_by_snapshot: bool,
    #[prost(message, repeated, tag = "11")]
    outgoing: Vec<StoredMember>,
    #[prost(message, repeated, tag = "12")]
    learners: Vec<StoredMember>,
    #[prost(uint64, tag = "13")]
    next_replica: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredMember {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(string, tag = "2")]
    node: String,
}

impl ShardRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let members = |part: &BTreeMap<ReplicaId, NodeId>| {
            let member = |(replica, node): (&ReplicaId, &NodeId)| StoredMember {
                replica: replica.0,
                node: self.nodes.get(node).cloned().unwrap_or_default(),
            };
            part.iter().map(member).collect()
        };
        StoredRecord {
            group: self.group.0,
            replica: self.replica.0,
            name: self.name.clone(),
            epoch: self.epoch,
            slots: self.slots.iter().flat_map(|range| [range.start.0, range.end.0]).collect(),
            voters: members(&self.membership.voters),
            outgoing: members(&self.membership.outgoing),
            learners: members(&self.membership.learners),
            next_replica: self.membership.next_replica.0,
            plugin: self.plugin.to_vec(),
            frozen: self.frozen,
            started: self.started,
            applied_by_snapshot: self.applied_by_snapshot,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored = StoredRecord::decode(bytes).map_err(|error| error.to_string())?;
        let plugin = stored.plugin.try_into().map_err(|_| "the plugin's hash is not 32 bytes")?;
        let (slots, rest) = stored.slots.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a slot range has no end".to_owned());
        }
        let mut nodes = BTreeMap::new();
        let mut members = |part: Vec<StoredMember>| -> BTreeMap<ReplicaId, NodeId> {
            part.into_iter()
                .map(|member| {
                    let number = node_number(&member.node);
                    nodes.insert(number, member.node);
                    (ReplicaId(member.replica), number)
                })
                .collect()
        };
        let mut membership = Membership {
            voters: members(stored.voters),
            outgoing: members(stored.outgoing),
            learners: members(stored.learners),
            next_replica: ReplicaId(stored.next_replica),
        };
        if stored.next_replica == 0 {
            // Written before members could change.
            membership = Membership::of_voters(membership.voters);
        }
        Ok(ShardRecord {
            group: GroupId(stored.group),
            replica: ReplicaId(stored.replica),
            name: stored.name,
            epoch: stored.epoch,
            slots: slots
                .iter()
                .map(|[start, end]| SlotRange { start: Slot(*start), end: Slot(*end) })
                .collect(),
            membership,
            nodes,
            plugin,
            frozen: stored.frozen,
            started: stored.started,
            applied_by_snapshot: stored.applied_by_snapshot,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_storage() {
        let record = ShardRecord {
            group: GroupId(7),
            replica: ReplicaId(8),
            name: "shard_0".into(),
            epoch: 3,
            slots: vec![SlotRange { start: Slot(0), end: Slot(64) }],
            membership: Membership {
                voters: [(ReplicaId(8), node_number("node1"))].into(),
                outgoing: [(ReplicaId(7), node_number("node2"))].into(),
                learners: [(ReplicaId(9), node_number("node3"))].into(),
                next_replica: ReplicaId(10),
            },
            nodes: ["node1", "node2", "node3"].map(|n| (node_number(n), n.to_owned())).into(),
            plugin: [9; 32],
            frozen: true,
            started: true,
            applied_by_snapshot: false,
        };
        assert_eq!(ShardRecord::decode(&record.encode()), Ok(record));
        let state = ApplyState {
            applied: LogPosition { index: Index(1), term: Term(2) },
            time_ms: 3,
            state_hash: 4,
        };
        assert_eq!(ApplyState::decode(&state.encode()), Some(state));
    }

    #[test]
    fn damaged_records_are_refused() {
        assert!(ShardRecord::decode(b"\xff").is_err());
        assert!(ShardRecord::decode(b"").is_err());
        assert_eq!(ApplyState::decode(&[0; 31]), None);
    }
}
