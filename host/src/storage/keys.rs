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
use xxhash_rust::xxh3::xxh3_64;

/// Most slots a cluster can have.
pub const MAX_SLOTS: u32 = 16_384;

/// The space of the plugin's own keys.
const DATA_SPACE: u8 = 0;
/// Above every slot: what belongs to groups.
const GROUP_PREFIX: [u8; 2] = [0xff, 0xff];
const RECORD_KIND: u8 = b'r';
const APPLIED_KIND: u8 = b'a';

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

/// The part of a key that decides where it lives: what stands between the first
/// `{` and the next `}`, unless that is nothing, else the whole key.
///
/// The same rule as Redis Cluster's hash tags.
pub fn routing_key(key: &[u8]) -> &[u8] {
    let tag = || {
        let open = key.iter().position(|byte| *byte == b'{')?;
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    };
    tag().unwrap_or(key)
}

/// The slot a key lives in, of `slots` in all.
pub fn slot_of(key: &[u8], slots: u32) -> Slot {
    Slot((xxh3_64(routing_key(key)) % u64::from(slots)) as u32)
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

/// The bounds of all groups' records.
pub(super) fn record_bounds() -> ([u8; 3], [u8; 3]) {
    let [high, low] = GROUP_PREFIX;
    ([high, low, RECORD_KIND], [high, low, RECORD_KIND + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_routes_alone() {
        assert_eq!(routing_key(b"user:{42}:name"), b"42");
        assert_eq!(slot_of(b"a{42}", 256), slot_of(b"b{42}c", 256));
        assert_eq!(routing_key(b"{a}{b}"), b"a");
        assert_eq!(routing_key(b"a}b{c}"), b"c");
    }

    #[test]
    fn an_empty_or_open_tag_is_no_tag() {
        assert_eq!(routing_key(b"a{}b"), b"a{}b");
        assert_eq!(routing_key(b"a{b"), b"a{b");
        assert_eq!(routing_key(b""), b"");
    }

    #[test]
    fn slots_stay_the_same_for_ever() {
        // Data on disk depends on it. The hash of nothing is xxHash's own test vector.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(slot_of(b"", 256), Slot(0xc2));
    }

    #[test]
    fn a_slots_keys_are_contiguous_and_below_the_records() {
        let last = Slot(MAX_SLOTS - 1);
        assert!(data_key(Slot(1), b"\xff\xff") < data_end(Slot(1)).to_vec());
        assert!(data_end(Slot(1)).to_vec() < data_key(Slot(2), b""));
        assert!(data_key(last, &[0xff; 100]) < record_key(GroupId(0)).to_vec());
        let (low, high) = record_bounds();
        let key = record_key(GroupId(u64::MAX));
        assert!(low.as_slice() < key.as_slice() && key.as_slice() < high.as_slice());
    }
}
