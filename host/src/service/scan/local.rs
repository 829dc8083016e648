//! The part of a scan that runs over this node's own replicas.
//!
//! A key's slot is a hash, so a prefix's keys lie in every slot. Each slot is read in
//! chunks, in key order, from one snapshot of its shard; the slots' chunks are merged, and
//! only a chunk that ran empty is read on.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use bytes::Bytes;
use raft_kv_plugin_kv::protocol;
use raft_lite::Rejection;

use super::{PAGE_BYTES, PAGE_PAIRS, Pair, ScanRequest};
use crate::{
    machine::{Query, QueryError, QueryReply, ShardReader},
    service::ServiceError,
    storage::Slot,
};

/// Pairs of one slot's chunk: enough for a page from a single slot, and few from
/// each of many.
const CHUNK_PAIRS: (usize, usize) = (8, 512);
/// Bytes that the chunks of all slots may have together, roughly.
const CHUNKS_BYTES: usize = 16 << 20;
/// Slots whose chunks are read together.
const SLOTS_AT_ONCE: usize = 8;
/// Longest value that waits in a chunk; longer ones are read when it is their
/// turn, so that a chunk of each of many slots stays small.
const HELD_VALUE_BYTES: usize = 4 << 10;

/// A scan of some slots in progress. It keeps its shards' snapshots until it is dropped.
pub(super) struct LocalScan {
    request: ScanRequest,
    shards: Vec<ShardReader>,
    slots: Vec<SlotScan>,
    /// The first pair of each slot that has one, least key first.
    heads: BinaryHeap<Reverse<(Bytes, usize)>>,
    left: u64,
    chunk_pairs: u32,
    chunk_bytes: u32,
}

/// A pair that waits for its turn.
struct Row {
    key: Bytes,
    /// None if it is too long to wait with the rest.
    value: Option<Bytes>,
    value_bytes: usize,
    version: u64,
}

/// One slot's part of a scan.
struct SlotScan {
    slot: Slot,
    /// Its shard's place in `Scanner::shards`.
    shard: usize,
    chunk: VecDeque<Row>,
    /// Last key read so far.
    after: Bytes,
    /// There may be more to read behind the chunk.
    more: bool,
}

impl LocalScan {
    /// A scan of these slots of these shards.
    pub(super) fn new(request: ScanRequest, parts: Vec<(ShardReader, Vec<Slot>)>) -> Self {
        let mut slots = Vec::new();
        let mut shards = Vec::new();
        for (shard, (reader, owned)) in parts.into_iter().enumerate() {
            shards.push(reader);
            slots.extend(owned.into_iter().map(|slot| SlotScan {
                slot,
                shard,
                chunk: VecDeque::new(),
                after: request.after.clone(),
                more: true,
            }));
        }
        let left = request.limit.unwrap_or(u64::MAX);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_PAIRS);
        let (least, most) = CHUNK_PAIRS;
        let chunk_pairs = (2 * wanted / slots.len().max(1)).clamp(least, most) as u32;
        let chunk_bytes = (CHUNKS_BYTES / slots.len().max(1)).clamp(1 << 10, 64 << 10) as u32;
        let heads = BinaryHeap::new();
        LocalScan { request, shards, slots, heads, left, chunk_pairs, chunk_bytes }
    }

    /// Whether there is nothing behind the pairs that were given.
    pub(super) fn is_exhausted(&self) -> bool {
        self.slots.iter().all(|slot| slot.chunk.is_empty() && !slot.more)
    }

    /// The next pairs, in key order; empty when there are none left.
    pub(super) fn next_page(&mut self) -> Result<Vec<Pair>, ServiceError> {
        let mut page = Vec::new();
        let mut bytes = 0;
        let dry: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].is_dry()).collect();
        for places in dry.chunks(SLOTS_AT_ONCE) {
            self.refill(places)?;
        }
        while page.len() < PAGE_PAIRS && self.left > 0 {
            let Some(Reverse((_, place))) = self.heads.peek() else { break };
            let place = *place;
            let Some(row) = self.slots[place].chunk.front() else {
                return Err(ServiceError::Internal("a scan lost its place".to_owned()));
            };
            bytes += row.key.len() + row.value_bytes;
            if bytes > PAGE_BYTES && !page.is_empty() {
                break;
            }
            self.heads.pop();
            page.extend(self.take(place)?);
            self.left -= 1;
        }
        Ok(page)
    }

    /// Takes the first row of a slot's chunk, and brings the one after it up.
    fn take(&mut self, place: usize) -> Result<Option<Pair>, ServiceError> {
        let slot = &mut self.slots[place];
        let Some(row) = slot.chunk.pop_front() else { return Ok(None) };
        match slot.chunk.front() {
            Some(next) => self.heads.push(Reverse((next.key.clone(), place))),
            None if slot.more && self.left > 1 => self.refill(&[place])?,
            None => {}
        }
        let value = match row.value {
            Some(value) => value,
            None => self.read_value(place, &row.key)?,
        };
        Ok(Some(Pair { key: row.key, value, version: row.version }))
    }

    /// Reads a value that was too long to wait, from the snapshot it was seen in.
    fn read_value(&self, place: usize, key: &[u8]) -> Result<Bytes, ServiceError> {
        let slot = &self.slots[place];
        let request = protocol::Query::Get { key }.encode().into();
        let queries = [Query { slot: slot.slot, request }];
        let response = self.answers(slot.shard, &queries)?.pop().unwrap_or_default();
        let found = protocol::decode_get(&response).map_err(ServiceError::foreign_response)?;
        let gone = || ServiceError::Internal("a snapshot lost a value".to_owned());
        Ok(response.slice(found.ok_or_else(gone)?.value))
    }

    /// The plugin's responses to queries of one shard.
    fn answers(&self, shard: usize, queries: &[Query]) -> Result<Vec<Bytes>, ServiceError> {
        let replies = self.shards[shard].query(queries, false);
        // The replica may have gone meanwhile, and with it files that the snapshot needs.
        let replies = replies.map_err(|error| match error {
            QueryError::NoShard(_) => ServiceError::of_rejection(Rejection::SlotNotOwned, ""),
            error => ServiceError::Internal(error.to_string()),
        })?;
        let response = |reply| match reply {
            QueryReply::Done(result) => Ok(result?),
            QueryReply::SlotNotOwned | QueryReply::TooLong => {
                let text = "a snapshot does not own its shard's slots";
                Err(ServiceError::Internal(text.to_owned()))
            }
        };
        replies.replies.into_iter().map(response).collect()
    }

    /// Reads the next chunk of slots whose chunk ran empty.
    fn refill(&mut self, places: &[usize]) -> Result<(), ServiceError> {
        for shard in 0..self.shards.len() {
            let of_shard: Vec<usize> =
                places.iter().copied().filter(|place| self.slots[*place].shard == shard).collect();
            if of_shard.is_empty() {
                continue;
            }
            let queries: Vec<Query> = of_shard.iter().map(|place| self.query(*place)).collect();
            for (place, response) in of_shard.into_iter().zip(self.answers(shard, &queries)?) {
                self.take_chunk(place, &response)?;
            }
        }
        Ok(())
    }

    fn query(&self, place: usize) -> Query {
        let slot = &self.slots[place];
        let scan = protocol::Scan {
            prefix: &self.request.prefix,
            after: (!slot.after.is_empty()).then_some(slot.after.as_ref()),
            max_rows: self.chunk_pairs,
            max_bytes: self.chunk_bytes,
        };
        Query { slot: slot.slot, request: protocol::Query::Scan(scan).encode().into() }
    }

    /// Keeps a chunk's rows. They are copied, so that the response can go.
    fn take_chunk(&mut self, place: usize, response: &[u8]) -> Result<(), ServiceError> {
        let chunk = protocol::ScanPage::decode(response).map_err(ServiceError::foreign_response)?;
        let slot = &mut self.slots[place];
        slot.more = chunk.more();
        slot.chunk.extend(chunk.rows().map(|row| {
            let value = &response[row.value];
            let held = value.len() <= HELD_VALUE_BYTES;
            Row {
                key: Bytes::copy_from_slice(&response[row.key]),
                value: held.then(|| Bytes::copy_from_slice(value)),
                value_bytes: value.len(),
                version: row.version,
            }
        }));
        if let Some(last) = slot.chunk.back() {
            slot.after = last.key.clone();
        }
        if let Some(first) = slot.chunk.front() {
            self.heads.push(Reverse((first.key.clone(), place)));
        }
        Ok(())
    }
}

impl SlotScan {
    fn is_dry(&self) -> bool {
        self.chunk.is_empty() && self.more
    }
}
