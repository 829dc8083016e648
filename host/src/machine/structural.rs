//! Changes of a shard itself: split, merge, deletion. Each is one entry in a shard's
//! log, valid at exactly the epoch it was proposed at.
//!
//! Invariants:
//! - every change that takes effect raises the epoch, so that whatever was proposed
//!   before it can not come after it;
//! - of all shards that ever owned a slot, the one with the highest epoch owns it: a
//!   split's child begins at its parent's new epoch, and what takes in another shard goes
//!   beyond both epochs;
//! - the log of a merge's target alone decides: `Absorb` counts only while `Prepare`
//!   stands, and `Cancel` ends that for good;
//! - a shard that is frozen, prepared or retired changes in no other way.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use raft_lite::{GroupId, Index, Membership, ReplicaId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::storage::{
    Allowance, ApplyState, Frozen, MergeId, Phase, PluginId, ShardRecord, Slot, SlotRange,
    first_replica, normalized, overlap, without,
};

/// Of how many shards that it took in a shard keeps the numbers.
const ABSORBED_KEPT: usize = 256;

/// A change of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardChange {
    /// Slots go to a new shard with replicas on the same nodes.
    Split {
        /// The new shard's group.
        child: GroupId,
        /// Its name.
        name: String,
        /// Its slots.
        slots: Vec<SlotRange>,
    },
    /// Another shard is about to be merged into this one.
    Prepare {
        /// The merge.
        merge: MergeId,
        /// Nodes that have a replica of either, no more and no less.
        nodes: BTreeSet<String>,
    },
    /// This shard is about to be merged into another.
    Freeze {
        /// The merge.
        merge: MergeId,
        /// The other shard.
        target: GroupId,
        /// As in `Prepare`.
        nodes: BTreeSet<String>,
    },
    /// Takes in a shard all of whose replicas are frozen.
    Absorb {
        /// The merge.
        merge: MergeId,
        /// The other shard.
        source: GroupId,
        /// Index of the entry that froze it.
        frozen_at: Index,
    },
    /// Ends a merge on the target's side, unless it is done.
    Cancel {
        /// The merge.
        merge: MergeId,
        /// The shard that was to be merged into this one.
        source: GroupId,
    },
    /// Ends a merge on the source's side.
    Unfreeze {
        /// The merge.
        merge: MergeId,
    },
    /// Ends the shard.
    Retire {
        /// Even if there is data in it.
        force: bool,
    },
    /// Another plugin gives the commands after this entry their meaning.
    Activate {
        /// The plugin.
        plugin: PluginId,
        /// What each command may use from then on.
        allowance: Allowance,
        /// Even if it makes nothing of the data that is there.
        force: bool,
    },
}

/// Why a change has no effect; the same on all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum Refusal {
    /// The shard takes part in a merge, or is being deleted.
    #[error("the shard takes part in a merge, or is being deleted")]
    Busy = 1,
    /// Its members are changing, or not all have a vote.
    #[error("the shard's replicas are changing")]
    Unsettled = 2,
    /// Its replicas are not on the nodes they were thought to be on.
    #[error("the shard's replicas are on other nodes")]
    OtherNodes = 3,
    /// It does not own the slots, or would be left without any.
    #[error("the shard does not own these slots, or would be left without any")]
    WrongSlots = 4,
    /// The merge was cancelled.
    #[error("the merge was cancelled")]
    Cancelled = 5,
    /// The merge is done.
    #[error("the merge is done")]
    Absorbed = 6,
    /// There is data in it.
    #[error("the shard is not empty")]
    NotEmpty = 7,
    /// It runs just this plugin already.
    #[error("the shard runs this plugin already")]
    Active = 8,
    /// The state can not be carried over.
    #[error("the shard's state can not be carried over")]
    Migration = 9,
    /// The shard that was to be taken in runs another plugin.
    #[error("the shards run different plugins")]
    OtherPlugin = 10,
}

impl Refusal {
    /// The reason that a number stands for.
    pub fn from_number(number: u32) -> Option<Self> {
        let all = [
            Refusal::Busy,
            Refusal::Unsettled,
            Refusal::OtherNodes,
            Refusal::WrongSlots,
            Refusal::Cancelled,
            Refusal::Absorbed,
            Refusal::NotEmpty,
            Refusal::Active,
            Refusal::Migration,
            Refusal::OtherPlugin,
        ];
        all.into_iter().find(|refusal| *refusal as u32 == number)
    }
}

/// What a change makes of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) record: ShardRecord,
    pub(super) state: ApplyState,
    /// The shard that a split made, without the replica on this node.
    pub(super) child: Option<ShardRecord>,
    /// The shard that was taken in.
    pub(super) absorbed: Option<GroupId>,
}

/// What a change has to know beside the shard itself.
pub(super) trait Surroundings {
    /// The replica on this node of another shard.
    fn shard(&self, group: GroupId) -> Option<ShardRecord>;
    /// Whether the plugin has stored anything in the shard's slots.
    fn is_empty(&self, record: &ShardRecord) -> Result<bool, String>;
}

impl ShardChange {
    /// What the change makes of a shard, whose `state` is that after the entry.
    ///
    /// # Errors
    /// The outer error stops the replica: something that all replicas rely on is not so
    /// here. The inner one is the entry's outcome.
    pub(super) fn applied_to(
        &self,
        record: &ShardRecord,
        mut state: ApplyState,
        around: &dyn Surroundings,
    ) -> Result<Result<Changed, Refusal>, String> {
        let mut after = ShardRecord { epoch: record.epoch + 1, ..record.clone() };
        let (mut child, mut absorbed) = (None, None);
        match self {
            ShardChange::Split { child: group, name, slots } => {
                if let Err(refusal) = check_settled(record, None) {
                    return Ok(Err(refusal));
                }
                after.slots = without(&record.slots, slots);
                let is_part = without(slots, &record.slots).is_empty() && !slots.is_empty();
                if !is_part || after.slots.is_empty() {
                    return Ok(Err(Refusal::WrongSlots));
                }
                child = Some(child_of(record, &state, *group, name, slots));
            }
            ShardChange::Prepare { merge, nodes } => {
                if let Err(refusal) = check_settled(record, Some(nodes)) {
                    return Ok(Err(refusal));
                }
                after.phase = Phase::Prepared { merge: *merge };
            }
            ShardChange::Freeze { merge, target, nodes } => {
                if let Err(refusal) = check_settled(record, Some(nodes)) {
                    return Ok(Err(refusal));
                }
                after.phase = Phase::Frozen(Frozen {
                    merge: *merge,
                    target: *target,
                    index: state.applied.index,
                    time_ms: state.time_ms,
                    state_hash: state.state_hash,
                });
            }
            ShardChange::Absorb { merge, source, frozen_at } => {
                if record.phase != (Phase::Prepared { merge: *merge }) {
                    return Ok(Err(match record.absorbed.contains(source) {
                        true => Refusal::Absorbed,
                        false => Refusal::Cancelled,
                    }));
                }
                let taken = frozen_source(around, *source, *merge, *frozen_at)?;
                if (taken.0.plugin, taken.0.allowance) != (record.plugin, record.allowance) {
                    return Ok(Err(Refusal::OtherPlugin));
                }
                take_in(&mut after, &mut state, &taken);
                absorbed = Some(*source);
            }
            ShardChange::Cancel { merge, source } => {
                if record.absorbed.contains(source) {
                    return Ok(Err(Refusal::Absorbed));
                }
                if record.phase == (Phase::Prepared { merge: *merge }) {
                    after.phase = Phase::Serving;
                }
                // Otherwise the epoch alone changes: a `Prepare` under way comes to nothing.
            }
            ShardChange::Unfreeze { merge } => match record.phase {
                Phase::Frozen(frozen) if frozen.merge == *merge => after.phase = Phase::Serving,
                _ => {}
            },
            ShardChange::Retire { force } => {
                if let Err(refusal) = check_settled(record, None) {
                    return Ok(Err(refusal));
                }
                if !force && !around.is_empty(record)? {
                    return Ok(Err(Refusal::NotEmpty));
                }
                after.phase = Phase::Retired;
            }
            ShardChange::Activate { plugin, allowance, .. } => {
                if !record.may_change() {
                    return Ok(Err(Refusal::Busy));
                }
                if (record.plugin, record.allowance) == (*plugin, *allowance) {
                    return Ok(Err(Refusal::Active));
                }
                if record.plugin != *plugin {
                    after.previous = Some(record.plugin);
                    after.activated_at = record.shown_index(state.applied.index);
                }
                (after.plugin, after.allowance) = (*plugin, *allowance);
            }
        }
        Ok(Ok(Changed { record: after, state, child, absorbed }))
    }
}

/// Whether a shard serves, with voters only, on these nodes if any are named.
fn check_settled(record: &ShardRecord, nodes: Option<&BTreeSet<String>>) -> Result<(), Refusal> {
    if !record.may_change() {
        return Err(Refusal::Busy);
    }
    let settled = record.settled_nodes().ok_or(Refusal::Unsettled)?;
    let is_there = |nodes: &BTreeSet<String>| settled.iter().copied().eq(nodes.iter());
    match nodes.is_none_or(is_there) {
        true => Ok(()),
        false => Err(Refusal::OtherNodes),
    }
}

/// The shard that a split makes. Its log begins anew; what the plugin sees of the index
/// goes on from the parent's.
fn child_of(
    parent: &ShardRecord,
    state: &ApplyState,
    group: GroupId,
    name: &str,
    slots: &[SlotRange],
) -> ShardRecord {
    let nodes = parent.membership.voters.values().copied();
    let ids = (first_replica(group).0..).map(ReplicaId);
    let membership = Membership::of_voters(ids.zip(nodes).collect());
    ShardRecord {
        group,
        name: name.to_owned(),
        epoch: parent.epoch + 1,
        slots: slots.to_vec(),
        membership,
        nodes: parent.nodes.clone(),
        plugin: parent.plugin,
        allowance: parent.allowance,
        previous: parent.previous,
        activated_at: parent.activated_at,
        index_base: parent.shown_index(state.applied.index),
        ..ShardRecord::default()
    }
}

/// A child's state before its first entry.
pub(super) fn first_state(parent: &ApplyState, child: GroupId) -> ApplyState {
    let state_hash = xxh3_64_with_seed(&child.0.to_le_bytes(), parent.state_hash);
    ApplyState { time_ms: parent.time_ms, state_hash, ..ApplyState::INITIAL }
}

/// The replica of a merge's source that is on this node: every node reported it frozen,
/// and it can not have changed since.
fn frozen_source(
    around: &dyn Surroundings,
    source: GroupId,
    merge: MergeId,
    frozen_at: Index,
) -> Result<(ShardRecord, Frozen), String> {
    let record = around.shard(source).ok_or_else(|| format!("group {source} is not here"))?;
    match record.phase {
        Phase::Frozen(frozen) if frozen.merge == merge && frozen.index == frozen_at => {
            Ok((record, frozen))
        }
        phase => Err(format!("group {source}, which is to be taken in, is {phase:?}")),
    }
}

fn take_in(
    target: &mut ShardRecord,
    state: &mut ApplyState,
    (source, frozen): &(ShardRecord, Frozen),
) {
    target.slots = normalized(target.slots.iter().chain(&source.slots).copied());
    target.epoch = target.epoch.max(source.epoch + 1);
    target.phase = Phase::Serving;
    target.absorbed.push(source.group);
    let surplus = target.absorbed.len().saturating_sub(ABSORBED_KEPT);
    target.absorbed.drain(..surplus);
    let shown = source.shown_index(frozen.index);
    target.index_base = target.index_base.max(shown.saturating_sub(state.applied.index.0));
    state.time_ms = state.time_ms.max(frozen.time_ms);
    state.state_hash = xxh3_64_with_seed(&frozen.state_hash.to_le_bytes(), state.state_hash);
}

/// What stands in the way of a snapshot of `record` on a node with these other replicas.
/// Those that are of shards which it took in go with its installation.
pub(super) fn in_the_way<'a>(
    record: &ShardRecord,
    others: impl Iterator<Item = &'a ShardRecord>,
) -> Result<Vec<GroupId>, GroupId> {
    let mut absorbed = Vec::new();
    for other in others.filter(|other| overlap(&other.slots, &record.slots)) {
        let is_taken_in = matches!(other.phase, Phase::Frozen(f) if f.target == record.group)
            && record.absorbed.contains(&other.group)
            && without(&other.slots, &record.slots).is_empty();
        if !is_taken_in {
            return Err(other.group);
        }
        absorbed.push(other.group);
    }
    Ok(absorbed)
}

/// [`ShardChange`] as it stands in the log.
#[derive(Clone, PartialEq, Message)]
struct StoredChange {
    #[prost(enumeration = "Kind", tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    merge: u64,
    /// The child, the target or the source.
    #[prost(uint64, tag = "3")]
    other: u64,
    #[prost(string, tag = "4")]
    name: String,
    /// Starts and ends, in turn.
    #[prost(uint32, repeated, tag = "5")]
    slots: Vec<u32>,
    #[prost(string, repeated, tag = "6")]
    nodes: Vec<String>,
    #[prost(uint64, tag = "7")]
    index: u64,
    #[prost(bool, tag = "8")]
    force: bool,
    #[prost(bytes = "vec", tag = "9")]
    plugin: Vec<u8>,
    #[prost(uint64, tag = "10")]
    fuel: u64,
    #[prost(uint64, tag = "11")]
    memory_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Unknown = 0,
    Split = 1,
    Prepare = 2,
    Freeze = 3,
    Absorb = 4,
    Cancel = 5,
    Unfreeze = 6,
    Retire = 7,
    Activate = 8,
}

impl ShardChange {
    /// The change as it stands in the log.
    pub fn encode(&self) -> Bytes {
        let mut stored = StoredChange::default();
        let nodes_of = |nodes: &BTreeSet<String>| nodes.iter().cloned().collect();
        let kind = match self {
            ShardChange::Split { child, name, slots } => {
                (stored.other, stored.name) = (child.0, name.clone());
                stored.slots =
                    slots.iter().flat_map(|range| [range.start.0, range.end.0]).collect();
                Kind::Split
            }
            ShardChange::Prepare { merge, nodes } => {
                (stored.merge, stored.nodes) = (merge.0, nodes_of(nodes));
                Kind::Prepare
            }
            ShardChange::Freeze { merge, target, nodes } => {
                (stored.merge, stored.other) = (merge.0, target.0);
                stored.nodes = nodes_of(nodes);
                Kind::Freeze
            }
            ShardChange::Absorb { merge, source, frozen_at } => {
                (stored.merge, stored.other, stored.index) = (merge.0, source.0, frozen_at.0);
                Kind::Absorb
            }
            ShardChange::Cancel { merge, source } => {
                (stored.merge, stored.other) = (merge.0, source.0);
                Kind::Cancel
            }
            ShardChange::Unfreeze { merge } => {
                stored.merge = merge.0;
                Kind::Unfreeze
            }
            ShardChange::Retire { force } => {
                stored.force = *force;
                Kind::Retire
            }
            ShardChange::Activate { plugin, allowance, force } => {
                (stored.plugin, stored.force) = (plugin.to_vec(), *force);
                (stored.fuel, stored.memory_bytes) = (allowance.fuel, allowance.memory_bytes);
                Kind::Activate
            }
        };
        stored.set_kind(kind);
        stored.encode_to_vec().into()
    }

    /// Reads [`ShardChange::encode`].
    ///
    /// # Errors
    /// If the bytes are none, or were written by a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored = StoredChange::decode(bytes).map_err(|error| error.to_string())?;
        let (merge, other) = (MergeId(stored.merge), GroupId(stored.other));
        let kind = stored.kind();
        let nodes = stored.nodes.into_iter().collect();
        Ok(match kind {
            Kind::Unknown => return Err("it is a change that this version does not know".into()),
            Kind::Split => {
                let (pairs, _) = stored.slots.as_chunks::<2>();
                let range = |[a, b]: &[u32; 2]| SlotRange { start: Slot(*a), end: Slot(*b) };
                let slots = normalized(pairs.iter().map(range));
                ShardChange::Split { child: other, name: stored.name, slots }
            }
            Kind::Prepare => ShardChange::Prepare { merge, nodes },
            Kind::Freeze => ShardChange::Freeze { merge, target: other, nodes },
            Kind::Absorb => {
                ShardChange::Absorb { merge, source: other, frozen_at: Index(stored.index) }
            }
            Kind::Cancel => ShardChange::Cancel { merge, source: other },
            Kind::Unfreeze => ShardChange::Unfreeze { merge },
            Kind::Retire => ShardChange::Retire { force: stored.force },
            Kind::Activate => ShardChange::Activate {
                plugin: stored.plugin.try_into().map_err(|_| "a plugin's hash has 32 bytes")?,
                allowance: Allowance { fuel: stored.fuel, memory_bytes: stored.memory_bytes },
                force: stored.force,
            },
        })
    }
}
