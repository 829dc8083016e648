//! Where keys live: slot to shard to leader, as the nodes say.
//!
//! The table may be old or missing. A node that is asked for a key that it does
//! not serve says so, and then the table is corrected or fetched anew; without a
//! table any node forwards what it is asked.
//!
//! Invariants:
//! - One refresh is under way at a time; whoever needs one meanwhile waits for
//!   that one.
//! - A table of an older version never replaces a newer one of the same cluster.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use raft_kv_proto::{
    slot_of,
    v1::{NotLeader, RoutingRequest, RoutingResponse},
};
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::{
    channel::{Node, Pool},
    client::machine,
};

/// A table older than this is fetched anew, for its clock, for leaders that moved
/// without an error, and for nodes that came.
const OLD_AGE: Duration = Duration::from_secs(20);
/// A table younger than this is not fetched anew.
const SHORTEST_AGE: Duration = Duration::from_millis(10);
/// If a node has not answered within this, the next is asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(50);
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// More slots than any cluster has.
const MAX_SLOTS: u32 = 1 << 16;

/// The routing table, kept up to date.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    table: RwLock<Table>,
    /// Held by the one who refreshes.
    turn: tokio::sync::Mutex<()>,
    refreshes: AtomicU64,
    /// Whether a refresh was started that nobody waits for.
    in_background: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    cluster_id: String,
    version: u64,
    /// For each slot the index of its shard, or [`NO_SHARD`]; empty without a table.
    shards_of_slots: Vec<u32>,
    shards: Vec<Shard>,
    /// The cluster's clock in milliseconds since 1970, and when it was read.
    clock: Option<(u64, Instant)>,
    /// When nodes were asked for the table last, whether or not they answered.
    asked_at: Option<Instant>,
}

const NO_SHARD: u32 = u32::MAX;

#[derive(Debug)]
struct Shard {
    name: String,
    leader: Option<Arc<Node>>,
}

/// What the table says of a key.
#[derive(Debug)]
pub(crate) struct Route {
    /// The node that leads the key's shard, if known.
    pub leader: Option<Arc<Node>>,
    /// Whether there is a table at all.
    pub is_known: bool,
    /// Whether it is time for a refresh.
    pub is_old: bool,
}

impl Routing {
    /// Where a key lives.
    pub fn route(&self, key: &[u8], now: Instant) -> Route {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Route {
            leader: table.shard_of(key).and_then(|index| table.shards[index].leader.clone()),
            is_known: !table.shards_of_slots.is_empty(),
            is_old: table.is_old(now),
        }
    }

    /// The cluster's clock, milliseconds since 1970: as far as known, else this
    /// machine's.
    pub fn unix_ms(&self, now: Instant) -> u64 {
        let clock = self.table.read().unwrap_or_else(PoisonError::into_inner).clock;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match clock {
            Some((unix_ms, at)) => {
                unix_ms.saturating_add(milliseconds(now.saturating_duration_since(at)))
            }
            None => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                milliseconds(now.expect("the clock shows a time after 1970"))
            }
        }
    }

    /// Takes note that `asked` does not lead the shard of `key`, and of who does
    /// according to it. Gives that node.
    pub fn heed(
        &self,
        pool: &Pool,
        key: &[u8],
        asked: &Node,
        hint: &NotLeader,
    ) -> Option<Arc<Node>> {
        let leader = pool.at(&hint.address).ok();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = table.shard_of(key) else {
            return leader;
        };
        let shard = &mut table.shards[index];
        if leader.is_some() && shard.name == hint.shard {
            shard.leader.clone_from(&leader);
        } else if shard.leader.as_ref().is_some_and(|led| led.endpoint == asked.endpoint) {
            shard.leader = None;
        }
        leader
    }

    /// Whether it is time for a refresh.
    pub fn is_old(&self, now: Instant) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).is_old(now)
    }

    /// The table is not what it should be any more: whoever asks it next has it fetched.
    pub fn outdate(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.asked_at = None;
    }

    /// Fetches the table from any node that answers, or waits for whoever is
    /// doing so. Without any answer the table stays as it is.
    pub async fn refresh(&self, pool: &Pool) {
        let seen = self.refreshes.load(Ordering::Acquire);
        let _turn = self.turn.lock().await;
        if self.refreshes.load(Ordering::Acquire) != seen || self.is_young() {
            return;
        }
        let asked_first = usize::try_from(seen).unwrap_or_default();
        let answer = timeout(REFRESH_TIMEOUT, ask_any(pool, asked_first)).await;
        let answer = answer.ok().flatten();
        if let Some(answer) = &answer {
            pool.learn(answer.nodes.iter().map(String::as_str));
        }
        let now = Instant::now();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answer {
            table.learn(answer, now, |address| pool.at(address).ok());
        }
        table.asked_at = Some(now);
        drop(table);
        self.refreshes.fetch_add(1, Ordering::Release);
    }

    /// Whether the caller shall refresh in the background, because nobody does;
    /// it says when it is done with [`Routing::end_background`].
    pub fn begin_background(&self) -> bool {
        !self.in_background.swap(true, Ordering::AcqRel)
    }

    /// See [`Routing::begin_background`].
    pub fn end_background(&self) {
        self.in_background.store(false, Ordering::Release);
    }

    fn is_young(&self) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.age(Instant::now()).is_some_and(|age| age < SHORTEST_AGE)
    }
}

impl Table {
    fn age(&self, now: Instant) -> Option<Duration> {
        self.asked_at.map(|at| now.saturating_duration_since(at))
    }

    fn is_old(&self, now: Instant) -> bool {
        self.age(now).is_none_or(|age| age >= OLD_AGE)
    }

    /// Index of the shard that a key lives in.
    fn shard_of(&self, key: &[u8]) -> Option<usize> {
        let slots = u32::try_from(self.shards_of_slots.len()).expect("there are few slots");
        if slots == 0 {
            return None;
        }
        match self.shards_of_slots[slot_of(key, slots) as usize] {
            NO_SHARD => None,
            index => Some(index as usize),
        }
    }

    /// Takes over what a node says, unless it is behind. Leaders that it does
    /// not know stay as they were.
    fn learn(
        &mut self,
        answer: RoutingResponse,
        now: Instant,
        node_at: impl Fn(&str) -> Option<Arc<Node>>,
    ) {
        if answer.unix_ms != 0 {
            self.clock = Some((answer.unix_ms, now));
        }
        let is_behind = answer.cluster_id == self.cluster_id && answer.version < self.version;
        if is_behind || answer.slots == 0 || answer.slots > MAX_SLOTS {
            return;
        }
        let old = std::mem::take(&mut self.shards);
        self.shards_of_slots = vec![NO_SHARD; answer.slots as usize];
        for (index, route) in (0..).zip(answer.shards) {
            for range in &route.slots {
                let slots = range.start as usize..range.end as usize;
                if let Some(slots) = self.shards_of_slots.get_mut(slots) {
                    slots.fill(index);
                }
            }
            let before = || old.iter().find(|shard| shard.name == route.name)?.leader.clone();
            let leader = node_at(&route.address).or_else(before);
            self.shards.push(Shard { name: route.name, leader });
        }
        self.cluster_id = answer.cluster_id;
        self.version = answer.version;
    }
}

/// The answer of whichever node answers first. The one in the place `first` is
/// asked, and as long as there is no answer, one more every little while; those
/// that rest come last.
async fn ask_any(pool: &Pool, first: usize) -> Option<RoutingResponse> {
    let mut nodes = pool.all();
    let count = nodes.len();
    nodes.rotate_left(first % count);
    let now = Instant::now();
    nodes.sort_by_key(|node| node.health.rests(now));
    let mut nodes = nodes.into_iter();
    let mut asked = FuturesUnordered::new();
    asked.push(ask(nodes.next()?));
    loop {
        tokio::select! {
            answer = asked.next() => match answer {
                Some(Ok(answer)) => return Some(answer),
                Some(Err(_)) => {}
                None => return None,
            },
            () = sleep(HEDGE_AFTER), if nodes.len() > 0 => {}
        }
        asked.extend(nodes.next().map(ask));
    }
}

async fn ask(node: Arc<Node>) -> Result<RoutingResponse, Status> {
    let answer = machine(node.channel.clone()).routing(RoutingRequest {}).await;
    answer.map(tonic::Response::into_inner)
}

#[cfg(test)]
mod tests {
    use raft_kv_proto::v1::{ShardRoute, SlotRange};

    use super::*;

    fn answer(version: u64, shards: &[(&str, u32, u32)]) -> RoutingResponse {
        let shards = shards.iter().map(|(name, start, end)| ShardRoute {
            name: (*name).into(),
            slots: vec![SlotRange { start: *start, end: *end }],
            ..ShardRoute::default()
        });
        RoutingResponse {
            version,
            slots: 8,
            shards: shards.collect(),
            ..RoutingResponse::default()
        }
    }

    fn names(table: &Table) -> Vec<Option<&str>> {
        let name = |index: &u32| table.shards.get(*index as usize).map(|s| s.name.as_str());
        table.shards_of_slots.iter().map(name).collect()
    }

    #[test]
    fn each_slot_is_found_and_an_older_table_is_not_taken() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert_eq!(table.shard_of(b"k"), None);
        table.learn(answer(2, &[("a", 0, 3), ("b", 4, 8)]), now, |_| None);
        let (a, b) = (Some("a"), Some("b"));
        assert_eq!(names(&table), [a, a, a, None, b, b, b, b]);
        table.learn(answer(1, &[("old", 0, 8)]), now, |_| None);
        assert_eq!(names(&table)[0], a);
        table.learn(answer(3, &[("a", 0, 8)]), now, |_| None);
        assert_eq!(names(&table), [a; 8]);
        let reborn = RoutingResponse { cluster_id: "new".into(), ..answer(1, &[("c", 0, 8)]) };
        table.learn(reborn, now, |_| None);
        assert_eq!(names(&table), [Some("c"); 8]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_does_no_harm() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn(answer(1, &[("a", 4, 2), ("b", 7, 100), ("c", 0, 1)]), now, |_| None);
        assert_eq!(names(&table)[..2], [Some("c"), None]);
        table.learn(RoutingResponse { slots: u32::MAX, ..answer(2, &[]) }, now, |_| None);
        table.learn(RoutingResponse { slots: 0, ..answer(2, &[]) }, now, |_| None);
        assert_eq!(table.version, 1);
    }

    #[test]
    fn the_clock_goes_on_from_what_the_node_said() {
        let (routing, now) = (Routing::default(), Instant::now());
        assert!(routing.unix_ms(now) > 1_600_000_000_000);
        let said = RoutingResponse { unix_ms: 5_000, ..answer(1, &[]) };
        routing.table.write().unwrap().learn(said, now, |_| None);
        assert_eq!(routing.unix_ms(now + Duration::from_millis(250)), 5_250);
    }
}
