//! What one command may use.
//!
//! [`Limits`] are part of a shard's replicated configuration: replicas that disagree on a limit
//! disagree on which commands fail. The constants are the host's own safety; those that a plugin can
//! notice change only together with the ABI.

/// The largest response of one command, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Bytes of keys and values that one command may write.
pub const MAX_WRITTEN_BYTES: usize = 64 << 20;
/// The longest failure message that is recorded; longer ones are cut at a character.
pub const MAX_MESSAGE_BYTES: usize = 4 << 10;
/// The longest log line; longer ones are cut at a character.
pub(super) const MAX_LOG_LINE_BYTES: usize = 1 << 10;
/// Log lines of one instance that reach the node's log within one second.
pub(super) const MAX_LOG_LINES_PER_SECOND: u32 = 100;
/// Elements that one table may have.
pub(super) const MAX_TABLE_ELEMENTS: usize = 100_000;

/// What the frames of functions that can come to call themselves may take of the native stack, as
/// the host reckons it, in bytes. A small function is reckoned at 200, an ordinary one at 1,000.
pub(super) const MAX_RECURSION_BYTES: u32 = 2 << 20;
/// What all other functions on the stack may take together.
pub(super) const MAX_STRAIGHT_STACK_BYTES: u64 = 512 << 10;
/// What one function may take: the last one before recursion ends is on the stack already.
pub(super) const MAX_FRAME_BYTES: u64 = 512 << 10;

/// Values that may meet at the blocks of one function: see the checks.
pub(super) const MAX_MERGES: u64 = 50_000;
/// The squares of these, added up over all functions: about a minute of the compiler's.
pub(super) const MAX_MERGING_WORK: u64 = 5_000_000_000;

/// Limits for one command, all replicas of a shard alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fuel for one command, in units of the ABI's table.
    pub fuel_per_command: u64,
    /// The most linear memory an instance may have, in bytes.
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { fuel_per_command: 100_000_000, memory_bytes: 64 << 20 }
    }
}

impl Limits {
    /// What a kept instance gets: half of both, so that a success on it implies one on a fresh
    /// instance with all of both.
    pub(super) fn halved(&self) -> Limits {
        Limits { fuel_per_command: self.fuel_per_command / 2, memory_bytes: self.memory_bytes / 2 }
    }
}
