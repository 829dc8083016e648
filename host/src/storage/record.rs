//! What is on record of each replica beside its data.

use std::collections::{BTreeMap, BTreeSet};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// What each of its commands may use.
    pub allowance: Allowance,
    /// The plugin that did so before; none if there was no other.
    pub previous: Option<PluginId>,
    /// The index, as plugins see it, of the entry from which on the present one does.
    pub activated_at: u64,
    /// What it takes part in, if anything.
    pub phase: Phase,
    /// What is added to a log index before the plugin sees it: a slot's index never goes
    /// back, whatever shard it comes to belong to.
    pub index_base: u64,
    /// The shards that were merged into it lately, the last one last.
    pub absorbed: Vec<GroupId>,
    /// Its Raft log was created.
    pub started: bool,
    /// Its applied position came with a snapshot.
    pub applied_by_snapshot: bool,
}

/// What one command may use, where the shard says so; 0 for what every shard has unless it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Fuel.
    pub fuel: u64,
    /// Bytes of memory of an instance.
    pub memory_bytes: u64,
}

/// What a shard takes part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    #[default]
    Serving,
    /// It serves, and its members and slots stay as they are: another shard is about to
    /// be merged into it.
    Prepared {
        /// The merge.
        merge: MergeId,
    },
    /// It takes no writes, no reads that must be fresh and no changes: it is about to be
    /// merged into another shard.
    Frozen(Frozen),
    /// It takes nothing any more: it is being deleted.
    Retired,
}

/// The state in which a shard waits to be merged into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The merge.
    pub merge: MergeId,
    /// The shard it is to be merged into.
    pub target: GroupId,
    /// Index of the entry that froze it.
    pub index: Index,
    /// Replicated time then.
    pub time_ms: u64,
    /// The state hash then.
    pub state_hash: u64,
}

/// An attempt to merge one shard into another; never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MergeId(pub u64);

/// The number that raft-lite knows a node by, given its id.
pub fn node_number(node: &str) -> NodeId {
    NodeId(xxh3_64(node.as_bytes()))
}

/// The id of a group's first replica; those that follow have the next ones. Groups share
/// none, as long as their members change less than 65,536 times.
pub fn first_replica(group: GroupId) -> ReplicaId {
    ReplicaId((group.0 + 1) << 16)
}

impl ShardRecord {
    /// Whether the shard is about to be merged into another, or deleted.
    pub fn is_frozen(&self) -> bool {
        matches!(self.phase, Phase::Frozen(_) | Phase::Retired)
    }

    /// Whether its members and slots may change.
    pub fn may_change(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// The ids of all nodes with a replica, if every replica has a vote and no change of
    /// them is under way.
    pub fn settled_nodes(&self) -> Option<BTreeSet<&str>> {
        let Membership { outgoing, learners, .. } = &self.membership;
        let is_settled = outgoing.is_empty() && learners.is_empty();
        is_settled.then(|| self.nodes.values().map(String::as_str).collect())
    }

    /// The index that the plugin is shown for one of the log.
    pub fn shown_index(&self, index: Index) -> u64 {
        self.index_base + index.0
    }

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
    /// 0 serving, 1 prepared, 2 frozen, 3 retired.
    #[prost(uint32, tag = "8")]
    phase: u32,
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
    #[prost(uint64, tag = "14")]
    merge: u64,
    #[prost(message, optional, tag = "15")]
    frozen: Option<StoredFrozen>,
    #[prost(uint64, tag = "16")]
    index_base: u64,
    #[prost(uint64, repeated, tag = "17")]
    absorbed: Vec<u64>,
    #[prost(uint64, tag = "18")]
    fuel: u64,
    #[prost(uint64, tag = "19")]
    memory_bytes: u64,
    #[prost(bytes = "vec", tag = "20")]
    previous: Vec<u8>,
    #[prost(uint64, tag = "21")]
    activated_at: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredFrozen {
    #[prost(uint64, tag = "1")]
    target: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    time_ms: u64,
    #[prost(fixed64, tag = "4")]
    state_hash: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredMember {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(string, tag = "2")]
    node: String,
}

impl ShardRecord {
    /// The record as it is stored and sent.
    pub fn encode(&self) -> Vec<u8> {
        let (phase, merge, frozen) = self.phase.to_stored();
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
            phase,
            merge,
            frozen,
            index_base: self.index_base,
            absorbed: self.absorbed.iter().map(|group| group.0).collect(),
            fuel: self.allowance.fuel,
            memory_bytes: self.allowance.memory_bytes,
            previous: self.previous.map(Vec::from).unwrap_or_default(),
            activated_at: self.activated_at,
            started: self.started,
            applied_by_snapshot: self.applied_by_snapshot,
        }
        .encode_to_vec()
    }

    /// Reads [`ShardRecord::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
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
            phase: Phase::from_stored(stored.phase, stored.merge, stored.frozen)?,
            index_base: stored.index_base,
            absorbed: stored.absorbed.into_iter().map(GroupId).collect(),
            allowance: Allowance { fuel: stored.fuel, memory_bytes: stored.memory_bytes },
            // None is written as no bytes.
            previous: stored.previous.try_into().ok(),
            activated_at: stored.activated_at,
            started: stored.started,
            applied_by_snapshot: stored.applied_by_snapshot,
        })
    }
}

impl Phase {
    fn to_stored(self) -> (u32, u64, Option<StoredFrozen>) {
        match self {
            Phase::Serving => (0, 0, None),
            Phase::Prepared { merge } => (1, merge.0, None),
            Phase::Frozen(Frozen { merge, target, index, time_ms, state_hash }) => {
                let (target, index) = (target.0, index.0);
                (2, merge.0, Some(StoredFrozen { target, index, time_ms, state_hash }))
            }
            Phase::Retired => (3, 0, None),
        }
    }

    fn from_stored(
        phase: u32,
        merge: u64,
        frozen: Option<StoredFrozen>,
    ) -> Result<Self, &'static str> {
        let merge = MergeId(merge);
        match (phase, frozen) {
            (0, None) => Ok(Phase::Serving),
            (1, None) => Ok(Phase::Prepared { merge }),
            (2, Some(StoredFrozen { target, index, time_ms, state_hash })) => {
                let (target, index) = (GroupId(target), Index(index));
                Ok(Phase::Frozen(Frozen { merge, target, index, time_ms, state_hash }))
            }
            (3, None) => Ok(Phase::Retired),
            _ => Err("it is in no known phase"),
        }
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
            allowance: Allowance { fuel: 12, memory_bytes: 13 },
            previous: Some([14; 32]),
            activated_at: 15,
            phase: Phase::Serving,
            index_base: 11,
            absorbed: vec![GroupId(3)],
            started: true,
            applied_by_snapshot: false,
        };
        let frozen = Frozen {
            merge: MergeId(5),
            target: GroupId(6),
            index: Index(7),
            time_ms: 8,
            state_hash: u64::MAX,
        };
        let prepared = Phase::Prepared { merge: MergeId(5) };
        for phase in [Phase::Serving, prepared, Phase::Frozen(frozen), Phase::Retired] {
            let record = ShardRecord { phase, ..record.clone() };
            assert_eq!(ShardRecord::decode(&record.encode()), Ok(record));
        }
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
