//! Versions: which put wrote a value.
//!
//! To callers a version is an opaque number, unique among the puts of a log and growing with it. It is
//! made of the index of the log entry and the position of the command in that entry:
//! `log_index << 20 | position`.

/// Bits of a version that hold the position.
const POSITION_BITS: u32 = 20;

/// Bits of a version that hold the index. The highest bit is never set: where a version is stored or
/// sent together with a time, that bit says so.
const INDEX_BITS: u32 = u64::BITS - POSITION_BITS - 1;

/// The version of no value; a compare-and-put that expects it puts only an absent key.
pub const NONE: u64 = 0;

/// The version of a value put by the command at `position` of the entry at `log_index`, or `None` if
/// the position (2^20 and above) or the index (2^43 and above) is too large.
#[must_use]
pub const fn pack(log_index: u64, position: u32) -> Option<u64> {
    if position >> POSITION_BITS != 0 || log_index >> INDEX_BITS != 0 {
        return None;
    }
    Some(log_index << POSITION_BITS | position as u64)
}

/// Index of the log entry that the version's put was in.
#[must_use]
pub const fn log_index(version: u64) -> u64 {
    version >> POSITION_BITS
}

/// Position of the version's put in its entry.
#[must_use]
pub const fn position(version: u64) -> u32 {
    (version & ((1 << POSITION_BITS) - 1)) as u32
}
