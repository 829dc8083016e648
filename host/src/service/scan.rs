//! Scans over all shards, in the order of their keys.
//!
//! What this node has replicas of it scans itself (`local`); the pairs of other shards come
//! from nodes that have them, page by page, and both are merged. A prefix that holds a
//! whole `{tag}` lies in one slot alone.
//!
//! Each shard is scanned in one snapshot. Where that is lost, because a replica went away
//! or a node did, the scan goes on from the last key that was given: no key that is there
//! throughout is left out or given twice.

mod local;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use raft_kv_proto::{
    routing_key,
    v1::{ScanShardPage, ScanShardRequest, ScannedPair},
};
use raft_lite::{GroupId, Rejection};
use tonic::Streaming;

use super::{
    CallOptions, Consistency, Service, ServiceError, idle_time::lags, propose::Pauses,
    routing::ShardRoute,
};
use crate::{
    metrics::OperationKind,
    storage::{Slot, slot_of},
};

use local::LocalScan;

/// Pairs of one page, at most.
const PAGE_PAIRS: usize = 1024;
/// Bytes of keys and values of one page, unless a single pair has more.
const PAGE_BYTES: usize = 1 << 20;

/// What to scan.
#[derive(Clone, Debug, Default)]
pub struct ScanRequest {
    /// What the keys begin with.
    pub prefix: Bytes,
    /// Begin after this key; empty for the first.
    pub after: Bytes,
    /// Most pairs to give; none for all.
    pub limit: Option<u64>,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// A key, its value and the value's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The value's version.
    pub version: u64,
}

/// A shard and those of its slots that are scanned.
type Routed = (Arc<ShardRoute>, Vec<Slot>);

/// A scan in progress.
pub struct Scanner {
    /// What is left to scan: `after` is the last key that was given.
    request: ScanRequest,
    parts: Vec<Part>,
    left: u64,
}

/// Some slots' share of a scan.
struct Part {
    source: Source,
    /// Pairs that wait for their turn.
    pairs: VecDeque<Pair>,
    /// There may be more to read.
    more: bool,
}

enum Source {
    /// Of shards that have a replica here; none while it is being read.
    Here(Option<LocalScan>),
    /// Of a shard that has one elsewhere.
    Elsewhere(Box<Streaming<ScanShardPage>>),
}

impl Scanner {
    /// Whether all pairs asked for were given.
    pub fn is_done(&self) -> bool {
        self.left == 0 || self.is_exhausted()
    }

    /// Whether there is nothing behind the pairs that were given.
    pub fn is_exhausted(&self) -> bool {
        self.parts.iter().all(|part| part.pairs.is_empty() && !part.more)
    }

    /// The next pairs of all parts in order, as far as it is known which they are.
    fn take_page(&mut self) -> Vec<Pair> {
        let mut page = Vec::new();
        let mut bytes = 0;
        while page.len() < PAGE_PAIRS && self.left > 0 {
            if self.parts.iter().any(|part| part.pairs.is_empty() && part.more) {
                break;
            }
            let heads = self.parts.iter_mut().filter(|part| !part.pairs.is_empty());
            let Some(next) = heads.min_by(|a, b| a.pairs[0].key.cmp(&b.pairs[0].key)) else {
                break;
            };
            bytes += next.pairs[0].key.len() + next.pairs[0].value.len();
            if bytes > PAGE_BYTES && !page.is_empty() {
                break;
            }
            page.extend(next.pairs.pop_front());
            self.left -= 1;
        }
        if let Some(last) = page.last() {
            self.request.after = last.key.clone();
        }
        page
    }
}

impl Part {
    fn new(source: Source) -> Self {
        Part { source, pairs: VecDeque::new(), more: true }
    }

    /// Reads the next pairs, if none wait.
    async fn fill(&mut self, service: &Service) -> Result<(), ServiceError> {
        if !self.pairs.is_empty() || !self.more {
            return Ok(());
        }
        match &mut self.source {
            Source::Here(scan) => {
                let lost = || ServiceError::Internal("a scan lost its place".to_owned());
                let mut local = scan.take().ok_or_else(lost)?;
                let read = move || local.next_page().map(|page| (local, page));
                let (local, page) = service.run_long(read).await??;
                self.more = !local.is_exhausted();
                *scan = Some(local);
                self.pairs.extend(page);
            }
            Source::Elsewhere(pages) => match pages.message().await {
                Ok(Some(page)) => self.pairs.extend(page.pairs.into_iter().map(pair)),
                Ok(None) => self.more = false,
                // Wherever it was, it is looked for again.
                Err(_) => return Err(ServiceError::of_rejection(Rejection::SlotNotOwned, "")),
            },
        }
        Ok(())
    }
}

fn pair(scanned: ScannedPair) -> Pair {
    let ScannedPair { key, value, version } = scanned;
    Pair { key, value, version }
}

impl Service {
    /// Opens a scan: takes a snapshot of each shard it runs over.
    pub async fn scan(&self, request: ScanRequest) -> Result<Scanner, ServiceError> {
        let limit = self.limits.key_bytes;
        super::check_length("prefix", request.prefix.len(), limit)?;
        super::check_length("cursor", request.after.len(), limit)?;
        let left = request.limit.unwrap_or(u64::MAX);
        let parts = self.open_parts(&request).await?;
        Ok(Scanner { request, parts, left })
    }

    /// Runs the next page of a scan where it does not hold others up.
    pub async fn scan_page(
        &self,
        mut scanner: Scanner,
    ) -> Result<(Scanner, Vec<Pair>), ServiceError> {
        let deadline = Instant::now() + self.limits.timeout;
        loop {
            let fills = scanner.parts.iter_mut().map(|part| part.fill(self));
            let failure = join_all(fills).await.into_iter().find_map(Result::err);
            if let Some(error) = failure {
                if !error.is_passing() || Instant::now() >= deadline {
                    return Err(error);
                }
                scanner.parts = self.open_parts(&scanner.request).await?;
                continue;
            }
            let page = scanner.take_page();
            if !page.is_empty() || scanner.is_done() {
                return Ok((scanner, page));
            }
        }
    }

    /// Snapshots of all shards that a scan runs over. Those that change meanwhile are looked
    /// for again.
    async fn open_parts(&self, request: &ScanRequest) -> Result<Vec<Part>, ServiceError> {
        let deadline = Instant::now() + self.limits.timeout;
        let mut pauses = Pauses::new();
        loop {
            match self.try_open(request).await {
                Err(error) if error.is_passing() && Instant::now() < deadline => {
                    pauses.pause().await;
                }
                opened => return opened,
            }
        }
    }

    async fn try_open(&self, request: &ScanRequest) -> Result<Vec<Part>, ServiceError> {
        let started = Instant::now();
        let routes = self.routes_of(request)?;
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            routes.into_iter().partition(|(route, _)| self.machine.shard(route.group).is_some());
        let opening = here.iter().map(|(route, slots)| self.local_part(route, slots, request));
        let local = try_join_all(opening).await?;
        let opening =
            elsewhere.iter().map(|(route, slots)| self.remote_part(route, slots, request));
        let mut parts = try_join_all(opening).await?;
        for (route, _) in here.iter().chain(&elsewhere) {
            route.metrics.observe(OperationKind::Scan, 1, started.elapsed(), true);
        }
        if !local.is_empty() {
            let scan = LocalScan::new(request.clone(), local);
            parts.push(Part::new(Source::Here(Some(scan))));
        }
        Ok(parts)
    }

    /// The shards that a scan runs over, each with the slots in question.
    fn routes_of(&self, request: &ScanRequest) -> Result<Vec<Routed>, ServiceError> {
        let table = self.table();
        let slots: Vec<Slot> = match tagged_slot(&request.prefix, table.slots()) {
            Some(slot) => vec![slot],
            None => (0..table.slots()).map(Slot).collect(),
        };
        let mut routes: BTreeMap<GroupId, Routed> = BTreeMap::new();
        for slot in slots {
            let route = table.owner(slot)?;
            let new = || (Arc::clone(route), Vec::new());
            routes.entry(route.group).or_insert_with(new).1.push(slot);
        }
        for (route, _) in routes.values() {
            route.check_is_kv()?;
        }
        Ok(routes.into_values().collect())
    }

    async fn local_part(
        &self,
        route: &ShardRoute,
        slots: &[Slot],
        request: &ScanRequest,
    ) -> Result<(crate::machine::ShardReader, Vec<Slot>), ServiceError> {
        let options = CallOptions::default();
        let mut reader = self.reader(route, request.consistency, options).await?;
        if request.consistency == Consistency::Linearizable && lags(route, reader.time_ms()) {
            // Before the first pair is given: a scan keeps its snapshot.
            let expiring;
            (reader, expiring) = self.is_expiring(route, reader, slots).await?;
            if expiring {
                self.move_time_on(route).await?;
                reader = self.reader(route, request.consistency, options).await?;
            }
        }
        if !slots.iter().all(|slot| reader.owns(*slot)) {
            return Err(ServiceError::of_rejection(Rejection::SlotNotOwned, &route.name));
        }
        Ok((reader, slots.to_vec()))
    }

    async fn remote_part(
        &self,
        route: &ShardRoute,
        slots: &[Slot],
        request: &ScanRequest,
    ) -> Result<Part, ServiceError> {
        let passing = || ServiceError::of_rejection(Rejection::SlotNotOwned, &route.name);
        let node = self.leader_of(route).or_else(|| self.anybody(route)).ok_or_else(passing)?;
        let request = ScanShardRequest {
            hello: None,
            group: route.group.0,
            slots: slots.iter().map(|slot| slot.0).collect(),
            prefix: request.prefix.clone(),
            after: request.after.clone(),
            limit: request.limit.unwrap_or(0),
            stale: request.consistency == Consistency::Stale,
        };
        let pages = self.network.scan_shard(node, request).await.map_err(|_| {
            route.hint.store(0, std::sync::atomic::Ordering::Relaxed);
            passing()
        })?;
        Ok(Part::new(Source::Elsewhere(Box::new(pages))))
    }

    /// Opens the part of another node's scan that runs over a replica of this one.
    pub async fn scan_here(&self, asked: ScanShardRequest) -> Result<Scanner, ServiceError> {
        let table = self.table();
        let group = GroupId(asked.group);
        let passing = || ServiceError::of_rejection(Rejection::SlotNotOwned, "");
        let route = table.group(group).ok_or_else(passing)?;
        if self.machine.shard(group).is_none() {
            return Err(passing());
        }
        let stale = if asked.stale { Consistency::Stale } else { Consistency::Linearizable };
        let request = ScanRequest {
            prefix: asked.prefix,
            after: asked.after,
            limit: Some(asked.limit).filter(|limit| *limit != 0),
            consistency: stale,
        };
        let slots: Vec<Slot> = asked.slots.into_iter().map(Slot).collect();
        let local = self.local_part(route, &slots, &request).await?;
        let left = request.limit.unwrap_or(u64::MAX);
        let scan = LocalScan::new(request.clone(), vec![local]);
        Ok(Scanner { request, parts: vec![Part::new(Source::Here(Some(scan)))], left })
    }

    /// The next page of [`Service::scan_here`]. What is lost is not looked for again here:
    /// whoever asked does that.
    pub async fn page_here(
        &self,
        mut scanner: Scanner,
    ) -> Result<(Scanner, Vec<Pair>), ServiceError> {
        for part in &mut scanner.parts {
            part.fill(self).await?;
        }
        let page = scanner.take_page();
        Ok((scanner, page))
    }
}

/// The one slot that a prefix's keys lie in, if it holds a whole tag.
fn tagged_slot(prefix: &[u8], slots: u32) -> Option<Slot> {
    let tagged = routing_key(prefix).len() < prefix.len();
    tagged.then(|| slot_of(prefix, slots))
}
