//! Answering reads from one state of a shard.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use bytes::Bytes;
use raft_lite::{GroupId, Index};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Machine, Shard, ShardPlugin};
use crate::{
    storage::{
        ApplyState, Overlay, OwnedSnapshot, ReadView, ScanBounds, ShardRecord, Slot, StorageError,
        without,
    },
    wasm::{Call, HostError, PluginResult, QueryResult, Seed},
};

/// Fuel that a query may use on the thread that received it: about a
/// millisecond. Longer ones move to a thread where nobody waits behind them.
const INLINE_FUEL: u64 = 1_000_000;

/// A read request for the plugin.
#[derive(Clone, Debug)]
pub struct Query {
    /// The slot it reads.
    pub slot: Slot,
    /// What the plugin is given.
    pub request: Bytes,
}

/// What became of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryReply {
    /// What the plugin said.
    Done(PluginResult),
    /// The shard does not own the query's slot (any more).
    SlotNotOwned,
    /// It takes too long for the thread it was asked on.
    TooLong,
}

/// The replies to some queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryReplies {
    /// One for each, in order.
    pub replies: Vec<QueryReply>,
    /// Whether one of them may depend on the shard's replicated time.
    pub depends_on_time: bool,
}

/// Why no query of a batch could be answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The node has no replica of the group.
    #[error("this node has no replica of group {0}")]
    NoShard(GroupId),
    /// The shard is being merged into another.
    #[error("the shard is frozen")]
    Frozen,
    /// The shard's plugin is being changed: it takes a moment.
    #[error("the shard's plugin is being changed")]
    Switching,
    /// The node failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// So did its database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// How new the state must be that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It holds everything acknowledged.
    Latest,
    /// Any state will do.
    Any,
}

/// Answers queries from one state of a shard.
pub struct ShardReader {
    machine: Arc<Machine>,
    shard: Arc<Shard>,
    view: ReadView,
    applied: ApplyState,
}

impl Machine {
    /// The present state of a shard.
    pub fn reader(
        self: &Arc<Self>,
        group: GroupId,
        freshness: Freshness,
    ) -> Result<ShardReader, QueryError> {
        // Before the snapshot, which is then at least as new as it says.
        let before = self.shard(group).ok_or(QueryError::NoShard(group))?;
        let applied = before.applied();
        let snapshot = Arc::new(OwnedSnapshot::new(Arc::clone(&self.storage)));
        // Ownership is looked at after the snapshot was taken: a shard that owned
        // a slot then still owned it in the snapshot.
        let shard = self.shard(group).ok_or(QueryError::NoShard(group))?;
        if shard.record.is_frozen() && freshness == Freshness::Latest {
            return Err(QueryError::Frozen);
        }
        // The plugin has to be the one whose state the snapshot is.
        if shard.is_switching() || before.record.plugin != shard.record.plugin {
            return Err(QueryError::Switching);
        }
        let (machine, view) = (Arc::clone(self), ReadView::Snapshot(snapshot));
        Ok(ShardReader { machine, shard, view, applied })
    }
}

impl ShardReader {
    /// Whether the shard owned a slot in this state.
    pub fn owns(&self, slot: Slot) -> bool {
        self.shard.record.owns(slot)
    }

    /// The shard's replicated time in this state, in milliseconds since 1970.
    pub fn time_ms(&self) -> u64 {
        self.applied.time_ms
    }

    /// Hash and number of all that is stored in the shard's slots, and the index of
    /// the last entry applied to it.
    pub fn checksum(&self) -> Result<(Index, u64, u64), QueryError> {
        let ReadView::Snapshot(snapshot) = &self.view else { unreachable!("readers hold one") };
        let applied = snapshot.apply_state(self.shard.record.group)?.applied.index;
        let (mut hash, mut keys) = (0, 0);
        for slot in self.shard.record.slots.iter().flat_map(|range| range.slots()) {
            self.view.scan(&ScanBounds::whole_slot(slot), &mut |key, value| {
                hash = xxh3_64_with_seed(value, xxh3_64_with_seed(key, hash));
                keys += 1;
                ControlFlow::Continue(())
            })?;
        }
        self.check_present()?;
        Ok((applied, hash, keys))
    }

    /// To be asked after reading: when a replica is removed, or loses slots, files go that
    /// snapshots of it still need, and what was read may lack some.
    fn check_present(&self) -> Result<(), QueryError> {
        let ShardRecord { group, replica, ref slots, .. } = self.shard.record;
        let present = self.machine.shard(group);
        let is_whole = |shard: &Shard| {
            shard.record.replica == replica && without(slots, &shard.record.slots).is_empty()
        };
        match present.is_some_and(|shard| is_whole(&shard)) {
            true => Ok(()),
            false => Err(QueryError::NoShard(group)),
        }
    }

    /// Answers queries, in order. `inline`: those that take long are given up as
    /// [`QueryReply::TooLong`].
    pub fn query(&self, queries: &[Query], inline: bool) -> Result<QueryReplies, QueryError> {
        let owned = |query: &Query| self.shard.record.owns(query.slot);
        let call = |query: &Query| Call {
            slot: query.slot.0,
            index: self.shard.record.shown_index(self.applied.applied.index),
            time_ms: self.applied.time_ms,
            position: 0,
            seed: Seed::Given([0; 32]),
            payload: query.request.clone(),
        };
        let calls: Vec<Call> = queries.iter().filter(|query| owned(query)).map(call).collect();
        let overlay = Box::new(Overlay::new(self.view.clone()));
        let (readers, fuel) = if inline {
            (&self.machine.inline_readers, Some(INLINE_FUEL))
        } else {
            (&self.machine.long_readers, None)
        };
        let no_plugin = QueryError::NoShard(self.shard.record.group);
        let ShardPlugin { module, limits, meter } = self.shard.plugin.as_ref().ok_or(no_plugin)?;
        let (count, started) = (calls.len(), Instant::now());
        let outcome =
            readers.run(|executor| executor.query(module, limits, fuel, calls, overlay))?;
        meter.count_queries(count, started.elapsed());
        self.check_present()?;
        let mut results = outcome.results.into_iter();
        let reply = |query: &Query| {
            if !owned(query) {
                return QueryReply::SlotNotOwned;
            }
            match results.next().expect("each call has a result") {
                QueryResult::Done(result) => QueryReply::Done(result),
                QueryResult::OverBudget => QueryReply::TooLong,
            }
        };
        let replies = queries.iter().map(reply).collect();
        Ok(QueryReplies { replies, depends_on_time: outcome.asked_context })
    }
}
