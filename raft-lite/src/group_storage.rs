//! One group's log as `raft` reads it: the log store behind a cache of the
//! entries that are still on their way to being applied and replicated.
//!
//! Invariants:
//! - `cache` holds a contiguous run of entries that ends at `last`, or nothing;
//! - what is in the log store and not in the cache is durable.

use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use raft::{
    Error, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{self, ConfState},
};

use crate::{
    log_store::{LogEntry, LogState, LogStore, LogStoreError},
    snapshot::SnapshotMeta,
    types::{GroupId, HardState, Index, LogPosition, ReplicaId, Term},
};

/// Bytes of entries a group keeps in memory after they are applied and
/// replicated, or beyond which it drops them even before.
const CACHE_LIMIT_BYTES: u64 = 16 << 20;

/// Bytes between two marks of where entries were, and how many are kept: together they
/// reach further than what may be under way to a follower.
const MARK_INTERVAL_BYTES: u64 = 256 << 10;
const MOST_MARKS: usize = 512;

pub(crate) struct GroupStorage {
    group: GroupId,
    log: Arc<dyn LogStore>,
    conf_state: ConfState,
    hard_state: HardState,
    start: LogPosition,
    last: LogPosition,
    cache: VecDeque<Cached>,
    /// Bytes of all that was ever appended.
    appended_bytes: u64,
    /// Of entries that are not cached any more, now and then one, and what
    /// `appended_bytes` was after it.
    marks: VecDeque<(Index, u64)>,
    /// Changed when `raft` asks for a snapshot, which it does by a shared reference.
    snapshot: RefCell<Snapshot>,
}

/// An entry in memory.
struct Cached {
    entry: LogEntry,
    /// Bytes of it and of all that were ever cached before it.
    end: u64,
}

impl Cached {
    /// Bytes of all that were ever cached before it.
    fn start(&self) -> u64 {
        self.end - self.entry.size() as u64
    }
}

/// The snapshot for replicas that are too far behind for the log.
#[derive(Debug, Default)]
struct Snapshot {
    ready: Option<SnapshotMeta>,
    /// `raft` asked for one, and `ready` would not do.
    wanted: bool,
    /// The state machine makes one.
    making: bool,
    /// The last change of the group. What was made before it is offered to nobody any
    /// more: who comes late may have a replica already of a group that was split off
    /// since, and can not install what covers the slots of both.
    not_before: Index,
}

impl GroupStorage {
    /// A group's log as found at start-up, committed at least up to `applied`.
    pub(crate) fn new(
        group: GroupId,
        log: Arc<dyn LogStore>,
        conf_state: ConfState,
        state: LogState,
        applied: Index,
    ) -> Self {
        let mut hard_state = state.hard_state;
        hard_state.commit = hard_state.commit.max(applied);
        GroupStorage {
            group,
            log,
            conf_state,
            hard_state,
            start: state.start,
            last: state.last,
            cache: VecDeque::new(),
            appended_bytes: 0,
            marks: VecDeque::new(),
            snapshot: RefCell::default(),
        }
    }

    /// Whether a snapshot is to be made now. It is made by whoever asks this.
    pub(crate) fn take_wanted_snapshot(&mut self) -> bool {
        let snapshot = self.snapshot.get_mut();
        let starts = snapshot.wanted && !snapshot.making;
        snapshot.making |= starts;
        starts
    }

    /// A snapshot was made, or could not be. Gives the one that it replaces.
    pub(crate) fn snapshot_made(&mut self, made: Option<SnapshotMeta>) -> Option<SnapshotMeta> {
        let snapshot = self.snapshot.get_mut();
        (snapshot.making, snapshot.wanted) = (false, false);
        let made = made?;
        snapshot.ready.replace(made)
    }

    /// The group changed at an index.
    pub(crate) fn outdate_snapshot(&mut self, change: Index) {
        self.snapshot.get_mut().not_before = change;
    }

    /// Whether a snapshot is being made, or is there for those who need it.
    pub(crate) fn has_snapshot(&self) -> bool {
        let snapshot = self.snapshot.borrow();
        snapshot.making || snapshot.ready.is_some()
    }

    /// Takes the snapshot away, if there is one.
    pub(crate) fn take_snapshot(&mut self) -> Option<SnapshotMeta> {
        self.snapshot.get_mut().ready.take()
    }

    /// Whether the log, or what it was made after, holds the entry at a position.
    pub(crate) fn holds(&self, position: LogPosition) -> Result<bool, LogStoreError> {
        if position.index < self.start.index || position.index > self.last.index {
            return Ok(false);
        }
        Ok(self.term_at(position.index)? == position.term)
    }

    /// The hard state found at start-up.
    pub(crate) fn initial_hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(crate) fn start(&self) -> LogPosition {
        self.start
    }

    /// Notes entries that are being written to the log.
    pub(crate) fn append(&mut self, entries: &[LogEntry]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        while self.cache.pop_back_if(|last| last.entry.index() >= first.index()).is_some() {}
        while self.marks.pop_back_if(|(mark, _)| *mark >= first.index()).is_some() {}
        for entry in entries {
            self.appended_bytes += entry.size() as u64;
            self.cache.push_back(Cached { entry: entry.clone(), end: self.appended_bytes });
        }
        self.last = LogPosition { index: last.index(), term: last.term() };
    }

    /// Drops cached entries that nobody needs any more: up to `done`, and, if the
    /// cache is over its limit, the oldest durable ones.
    pub(crate) fn evict(&mut self, done: Index, durable: Index) {
        while let Some(oldest) = self.cache.front() {
            let index = oldest.entry.index();
            let over_limit =
                self.appended_bytes - oldest.start() > CACHE_LIMIT_BYTES && index <= durable;
            if index > done && !over_limit {
                break;
            }
            let (end, last_mark) = (oldest.end, self.marks.back().map_or(0, |(_, end)| *end));
            if end >= last_mark + MARK_INTERVAL_BYTES {
                self.marks.push_back((index, end));
            }
            self.cache.pop_front();
        }
        while self.marks.len() > MOST_MARKS {
            self.marks.pop_front();
        }
        if self.cache.is_empty() {
            self.cache = VecDeque::new();
        }
    }

    /// Bytes of the entries after `low`, up to `high`, roughly; of those that are long
    /// gone from memory not all are counted.
    pub(crate) fn bytes_between(&self, low: Index, high: Index) -> u64 {
        self.end_of(high).saturating_sub(self.end_of(low))
    }

    /// What `appended_bytes` was after an entry, or after one not far from it.
    fn end_of(&self, index: Index) -> u64 {
        if index >= self.last.index {
            return self.appended_bytes;
        }
        let first_cached = self.cache.front().map(|first| first.entry.index());
        if let Some(place) = first_cached.and_then(|first| index.0.checked_sub(first.0)) {
            return self.cache[place as usize].end;
        }
        let place = self.marks.partition_point(|(mark, _)| *mark <= index);
        let before = place.checked_sub(1).map(|place| self.marks[place]);
        // Before the first mark it is not known: as if that were the beginning.
        before.or(self.marks.front().copied()).map_or(0, |(_, end)| end)
    }

    /// Notes that the log up to `position` is being removed.
    pub(crate) fn compact(&mut self, position: LogPosition) {
        self.start = position;
    }

    /// Entries `low..high`, at most `max_bytes` but at least one.
    pub(crate) fn read(
        &self,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, LogStoreError> {
        let Some(first_cached) = self.cache.front().map(|first| first.entry.index()) else {
            return self.log.entries(self.group, low, high, max_bytes);
        };
        if low < first_cached {
            let high = high.min(first_cached);
            return self.log.entries(self.group, low, high, max_bytes);
        }
        let skip = (low.0 - first_cached.0) as usize;
        let count = (high.0 - low.0) as usize;
        let mut entries = Vec::with_capacity(count.min(1024));
        let mut bytes = 0;
        for Cached { entry, .. } in self.cache.iter().skip(skip).take(count) {
            bytes += entry.size() as u64;
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    /// The term of the entry at `index`.
    pub(crate) fn term_at(&self, index: Index) -> Result<Term, LogStoreError> {
        if index == self.start.index {
            return Ok(self.start.term);
        }
        if index == self.last.index {
            return Ok(self.last.term);
        }
        let entries = self.read(index, index.next(), u64::MAX)?;
        Ok(entries.first().map(LogEntry::term).unwrap_or_default())
    }
}

/// A failed read, as `raft` wants it.
fn storage_error(error: LogStoreError) -> Error {
    Error::Store(StorageError::Other(Box::new(error)))
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = eraftpb::HardState {
            term: self.hard_state.term.0,
            vote: self.hard_state.vote.map_or(raft::INVALID_ID, |replica| replica.0),
            commit: self.hard_state.commit.0,
            ..Default::default()
        };
        Ok(RaftState::new(hard_state, self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.start.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last.index.0 + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let entries = self.read(Index(low), Index(high), max_bytes).map_err(storage_error)?;
        Ok(entries.into_iter().map(|entry| entry.0).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.start.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last.index.0 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        self.term_at(Index(index)).map(|term| term.0).map_err(storage_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.index.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.index.0)
    }

    /// The snapshot, if one is there that the log goes on from, whose members the
    /// replica is one of, and since which the group has not changed; else one is made.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        let mut snapshot = self.snapshot.borrow_mut();
        if let Some(meta) = &snapshot.ready
            && meta.position.index >= self.start.index.max(snapshot.not_before)
            && meta.membership.node_of(ReplicaId(to)).is_some()
        {
            return Ok(meta.to_raft());
        }
        snapshot.wanted = true;
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        log_store::MemoryLogStore,
        membership::Membership,
        types::{INITIAL_POSITION, NodeId},
    };

    fn snapshot(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            position: LogPosition { index: Index(index), term: Term(6) },
            membership: Membership::of_voters(BTreeMap::from([(ReplicaId(2), NodeId(2))])),
            data: bytes::Bytes::new(),
        }
    }

    #[test]
    fn a_snapshot_from_before_the_group_changed_is_offered_to_nobody() {
        let start = INITIAL_POSITION;
        let state = LogState { hard_state: HardState::default(), start, last: start };
        let log = Arc::new(MemoryLogStore::new());
        let (group, members) = (GroupId(1), ConfState::default());
        let mut storage = GroupStorage::new(group, log, members, state, start.index);
        storage.snapshot_made(Some(snapshot(10)));
        assert!(storage.snapshot(0, 2).is_ok());
        assert!(!storage.take_wanted_snapshot());

        storage.outdate_snapshot(Index(11));
        storage.snapshot(0, 2).unwrap_err();
        assert!(storage.take_wanted_snapshot(), "another is to be made");
        // It was begun before the change: it will not do either.
        assert_eq!(storage.snapshot_made(Some(snapshot(10))), Some(snapshot(10)));
        storage.snapshot(0, 2).unwrap_err();
        storage.snapshot_made(Some(snapshot(11)));
        assert!(storage.snapshot(0, 2).is_ok());
    }
}
