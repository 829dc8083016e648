//! Where the logs of all groups are kept.
//!
//! A [`LogStore`] owns, for each group, a contiguous run of entries, the
//! position just before them, and the hard state. It knows nothing of what
//! entries mean. One [`LogWrite`] carries everything a worker round has to
//! store for all its groups; it is written as a whole with a single fsync.
//!
//! Invariants, checked by `conformance` for each implementation:
//! - a write is all or nothing, also across a crash, and writes survive in the
//!   order they were made;
//! - what a returned `write` stored survives any crash (durable writes);
//! - appending at an index drops every entry from that index on;
//! - entries are contiguous: `start.index + 1 ..= last`;
//! - compacting never changes what remains.

#[cfg(test)]
pub(crate) mod conformance;
mod contract;
mod engine;
mod memory;

use raft::eraftpb;

pub use engine::{EngineLogStore, EngineOptions};
pub use memory::MemoryLogStore;

use crate::types::{GroupId, HardState, Index, LogPosition, Term};

/// One entry of a group's log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogEntry(pub(crate) eraftpb::Entry);

impl LogEntry {
    /// Makes an entry with commands for a payload.
    pub fn new(index: Index, term: Term, data: bytes::Bytes) -> Self {
        LogEntry(eraftpb::Entry { index: index.0, term: term.0, data, ..Default::default() })
    }

    /// The entry's index.
    pub fn index(&self) -> Index {
        Index(self.0.index)
    }

    /// The term in which the entry was proposed.
    pub fn term(&self) -> Term {
        Term(self.0.term)
    }

    /// Makes an entry with a structural change for a payload.
    #[cfg(test)]
    pub(crate) fn new_structural(index: Index, term: Term, context: bytes::Bytes) -> Self {
        LogEntry(eraftpb::Entry { index: index.0, term: term.0, context, ..Default::default() })
    }

    /// Where the entry stands in the log.
    pub fn position(&self) -> LogPosition {
        LogPosition { index: self.index(), term: self.term() }
    }

    /// The entry's payload; empty for the one a new leader appends. That of a change of
    /// the group or its members is the raft entry's context.
    pub fn payload(&self) -> &bytes::Bytes {
        if self.is_structural() { &self.0.context } else { &self.0.data }
    }

    /// Whether it changes the group itself or its members.
    pub(crate) fn is_structural(&self) -> bool {
        self.0.get_entry_type() != eraftpb::EntryType::EntryNormal || !self.0.context.is_empty()
    }

    /// Bytes the entry takes up, roughly.
    pub fn size(&self) -> usize {
        self.0.data.len() + self.0.context.len() + 32
    }
}

/// What the store knows of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogState {
    /// The hard state last written.
    pub hard_state: HardState,
    /// The position before the first entry: what compaction removed last, or
    /// where the log was created.
    pub start: LogPosition,
    /// Position of the last entry; equal to `start` if there are none.
    pub last: LogPosition,
}

/// A change to one group's log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogChange {
    /// Starts a new, empty log after `start`, removing what was there.
    Create {
        /// Position before the first entry.
        start: LogPosition,
        /// The first hard state.
        hard_state: HardState,
    },
    /// Appends entries (contiguous, not empty), dropping those from the first
    /// new index on. The first index must lie in `start + 1 ..= last + 1`.
    Append(Vec<LogEntry>),
    /// Replaces the hard state.
    HardState(HardState),
    /// Removes the entries up to and including this position, at most the last
    /// one. Nothing happens if they are gone already.
    Compact(LogPosition),
    /// Removes the group, if there is one.
    Clean,
}

/// Changes to the logs of many groups, stored as one, in the order added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogWrite {
    changes: Vec<(GroupId, LogChange)>,
}

impl LogWrite {
    /// A write without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a change.
    pub fn push(&mut self, group: GroupId, change: LogChange) {
        self.changes.push((group, change));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes in order.
    pub fn changes(&self) -> &[(GroupId, LogChange)] {
        &self.changes
    }
}

/// Whether a write must survive a crash once it returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Fsync before returning.
    Synced,
    /// Leave it to a later synced write; it may be lost until then, but only
    /// together with everything after it.
    Buffered,
}

/// The failure of a log store. After a failed write the store must not be used
/// again: what is on disk is unknown, and a second fsync proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum LogStoreError {
    /// The store cannot be opened.
    #[error("cannot open the Raft log in {path}: {message}")]
    Open {
        /// Folder of the log.
        path: String,
        /// What the engine said.
        message: String,
    },
    /// A write or fsync failed.
    #[error("cannot write to the Raft log: {0}")]
    Write(String),
    /// A read failed or what was read is damaged.
    #[error("cannot read the Raft log of group {group}: {message}")]
    Read {
        /// The group read.
        group: GroupId,
        /// What went wrong.
        message: String,
    },
    /// Entries were asked that are compacted away or not there yet.
    #[error("group {group} has no log entries {low}..{high}, only {first}..={last}")]
    OutOfRange {
        /// The group read.
        group: GroupId,
        /// First index asked.
        low: Index,
        /// Index after the last asked.
        high: Index,
        /// First index there is.
        first: Index,
        /// Last index there is.
        last: Index,
    },
}

/// A durable store for the logs of many groups. See the module for its contract.
pub trait LogStore: Send + Sync {
    /// All groups that have a log, in order.
    fn groups(&self) -> Vec<GroupId>;

    /// What is known of a group; `None` if it has no log.
    fn state(&self, group: GroupId) -> Result<Option<LogState>, LogStoreError>;

    /// Entries `low <= index < high`, from `low` on, as many as fit into
    /// `max_bytes` but at least one.
    fn entries(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, LogStoreError>;

    /// Stores a write as a whole, or refuses it as a whole if a change breaks
    /// the rules stated at [`LogChange`]. May be called from several threads, but
    /// a group's changes must come from one at a time.
    fn write(&self, write: LogWrite, durability: Durability) -> Result<(), LogStoreError>;

    /// Gives space of removed entries back. Returns the groups whose old
    /// entries stand in the way: compacting those frees more.
    fn reclaim(&self) -> Result<Vec<GroupId>, LogStoreError>;
}
