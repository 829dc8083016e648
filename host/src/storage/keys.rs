//! Keys: how a user's key finds its slot, and what the stored keys look like.
//!
//! ```text
//! slot (2 bytes, big endian, below 0x4000) | space (1 byte) | the plugin's key
//! 0xFFFF | kind (1 byte) | group (8 bytes, big endian)
//! ```
//! A slot's keys are contiguous, so that a shard's are a few contiguous ranges.
//! Space 0 holds the plugin's data; the others are for what the host keeps for a
//! slot and what travels with it.

use std::fmt;

use raft_lite::GroupId;

/// Most slots a cluster can have.
pub const MAX_SLOTS: u32 = 16_384;

/// The space of the plugin's own keys.
const DATA_SPACE: u8 = 0;
/// The space of the clients' sessions.
const SESSION_SPACE: u8 = 1;
/// Above every slot: what belongs to groups.
const GROUP_PREFIX: [u8; 2] = [0xff, 0xff];
const RECORD_KIND: u8 = b'r';
const APPLIED_KIND: u8 = b'a';
const TOMBSTONE_KIND: u8 = b't';
const FOUNDED_KIND: u8 = b'f';
const META_KIND: u8 = b'm';

/// Bytes in front of the plugin's key.
pub(super) const DATA_PREFIX_LEN: usize = 3;

/// A fixed part of the key space; it belongs to one shard at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Slots `start <= slot < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// First slot.
    pub start: Slot,
    /// Slot after the last.
    pub end: Slot,
}

impl SlotRange {
    /// Whether `slot` lies in the range.
    pub fn contains(&self, slot: Slot) -> bool {
        self.start <= slot && slot < self.end
    }

    /// All slots of the range, in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        (self.start.0..self.end.0).map(Slot)
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start.0, self.end.0)
    }
}

/// The slot a key lives in, of `slots` in all.
pub fn slot_of(key: &[u8], slots: u32) -> Slot {
    Slot(raft_kv_proto::slot_of(key, slots))
}

/// The stored key of a plugin's key.
pub fn data_key(slot: Slot, key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(DATA_PREFIX_LEN + key.len());
    stored.extend_from_slice(&data_prefix(slot));
    stored.extend_from_slice(key);
    stored
}

/// What all stored keys of a slot's plugin data begin with.
pub(super) fn data_prefix(slot: Slot) -> [u8; DATA_PREFIX_LEN] {
    let [high, low] = (slot.0 as u16).to_be_bytes();
    [high, low, DATA_SPACE]
}

/// The bounds of everything that is stored in a slot.
pub(super) fn slot_bounds(slot: Slot) -> [[u8; 2]; 2] {
    let number = slot.0 as u16;
    [number.to_be_bytes(), (number + 1).to_be_bytes()]
}

/// Where a client's session in a slot is.
pub(super) fn session_key(slot: Slot, session: u64) -> [u8; 11] {
    let mut key = [0; 11];
    key[..2].copy_from_slice(&(slot.0 as u16).to_be_bytes());
    key[2] = SESSION_SPACE;
    key[3..].copy_from_slice(&session.to_be_bytes());
    key
}

/// The bounds of all sessions in a slot.
pub(super) fn session_bounds(slot: Slot) -> [[u8; 3]; 2] {
    let [high, low] = (slot.0 as u16).to_be_bytes();
    [[high, low, SESSION_SPACE], [high, low, SESSION_SPACE + 1]]
}

/// The first stored key after a slot's plugin data.
pub(super) fn data_end(slot: Slot) -> [u8; DATA_PREFIX_LEN] {
    let [high, low, space] = data_prefix(slot);
    [high, low, space + 1]
}

fn group_key(kind: u8, group: GroupId) -> [u8; 11] {
    let mut key = [0; 11];
    key[..2].copy_from_slice(&GROUP_PREFIX);
    key[2] = kind;
    key[3..].copy_from_slice(&group.0.to_be_bytes());
    key
}

/// Where a group's record is.
pub(super) fn record_key(group: GroupId) -> [u8; 11] {
    group_key(RECORD_KIND, group)
}

/// Where a group's apply state is.
pub(super) fn applied_key(group: GroupId) -> [u8; 11] {
    group_key(APPLIED_KIND, group)
}

/// Where it is noted which of a group's replicas were removed from this node.
pub(super) fn tombstone_key(group: GroupId) -> [u8; 11] {
    group_key(TOMBSTONE_KIND, group)
}

/// Where it is noted that the cluster's first shards were put on record.
pub(super) fn founded_key() -> [u8; 11] {
    group_key(FOUNDED_KIND, GroupId(0))
}

/// Where the state of the cluster's own group is.
pub(super) fn meta_key() -> [u8; 11] {
    group_key(META_KIND, GroupId(0))
}

/// The bounds of all groups' records.
pub(super) fn record_bounds() -> [[u8; 3]; 2] {
    kind_bounds(RECORD_KIND)
}

/// The bounds of all groups' tombstones.
pub(super) fn tombstone_bounds() -> [[u8; 3]; 2] {
    kind_bounds(TOMBSTONE_KIND)
}

fn kind_bounds(kind: u8) -> [[u8; 3]; 2] {
    let [high, low] = GROUP_PREFIX;
    [[high, low, kind], [high, low, kind + 1]]
}

/// The group that a key belongs to.
pub(super) fn group_of(key: &[u8]) -> Option<GroupId> {
    let group = key.get(3..)?.try_into().ok()?;
    Some(GroupId(u64::from_be_bytes(group)))
}

/// The bounds of everything that is stored in a range of slots.
pub(super) fn range_bounds(range: SlotRange) -> [[u8; 2]; 2] {
    [range.start, range.end].map(|slot| (slot.0 as u16).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_keys_are_contiguous_and_below_the_records() {
        let last = Slot(MAX_SLOTS - 1);
        assert!(data_key(Slot(1), b"\xff\xff") < data_end(Slot(1)).to_vec());
        assert!(data_end(Slot(1)).to_vec() < data_key(Slot(2), b""));
        assert!(data_key(last, &[0xff; 100]) < record_key(GroupId(0)).to_vec());
        let [low, high] = record_bounds();
        let key = record_key(GroupId(u64::MAX));
        assert!(low.as_slice() < key.as_slice() && key.as_slice() < high.as_slice());
    }
}
