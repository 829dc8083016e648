//! Which node leads the shard of a key, as far as this client knows.
//!
//! The table comes from any node that answers, and is asked for anew when it turns
//! out to be wrong; between the two, what nodes say of their leaders is noted.
//! However many requests find the table wrong, it is asked for once at a time.

use std::{
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use raft_kv_proto::{slot_of, v1};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    channel::{Node, Pool},
    client::machine,
    endpoint::Endpoint,
};

/// A node answers within this, or another is asked.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Where keys live.
#[derive(Debug)]
pub(crate) struct Routing {
    table: RwLock<Option<Table>>,
    /// How often a table was sought.
    searches: AtomicU64,
    searching: Mutex<()>,
}

#[derive(Debug)]
struct Table {
    slots: u32,
    /// For each slot the place of its shard in `leaders`.
    by_slot: Vec<Option<u16>>,
    /// The leader of each shard, if known.
    leaders: Vec<Option<Endpoint>>,
    /// The cluster's clock at a moment of this machine's.
    clock: (u64, Instant),
}

impl Routing {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self { table: RwLock::new(None), searches: AtomicU64::new(0), searching: Mutex::new(()) }
    }

    /// The leader of the shard that `key` lives in, if known.
    pub(crate) fn leader(&self, key: &[u8]) -> Option<Endpoint> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let table = table.as_ref()?;
        table.leaders[table.shard_of(key)?].clone()
    }

    /// Notes who leads the shard that `key` lives in, or that the one who was
    /// thought to does not.
    pub(crate) fn set_leader(&self, key: &[u8], leader: Option<Endpoint>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = table.as_mut() else { return };
        if let Some(shard) = table.shard_of(key) {
            table.leaders[shard] = leader;
        }
    }

    /// Notes that a node can not be reached: it leads nothing that this client can
    /// use.
    pub(crate) fn forget(&self, node: &Endpoint) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let leaders = table.iter_mut().flat_map(|table| &mut table.leaders);
        for leader in leaders.filter(|leader| leader.as_ref() == Some(node)) {
            *leader = None;
        }
    }

    /// The cluster's clock now, in milliseconds since 1970; this machine's, as
    /// long as the cluster's is not known.
    pub(crate) fn cluster_now_ms(&self) -> u64 {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match table.as_ref().map(|table| table.clock) {
            Some((ms, at)) => ms + at.elapsed().as_millis() as u64,
            None => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                now.map_or(0, |now| now.as_millis() as u64)
            }
        }
    }

    /// A mark for [`Routing::refresh`]: what was sought up to now is known.
    pub(crate) fn mark(&self) -> u64 {
        self.searches.load(Ordering::Acquire)
    }

    /// Asks for the table, unless somebody else has since `mark`. Leaves what is
    /// known if no node answers.
    pub(crate) async fn refresh(&self, pool: &Pool, mark: u64) {
        let _one_at_a_time = self.searching.lock().await;
        if self.mark() != mark {
            return;
        }
        for node in pool.all() {
            if let Some(answer) = ask(&node).await {
                let table = Table::from_answer(answer);
                *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
                break;
            }
        }
        self.searches.fetch_add(1, Ordering::Release);
    }
}

async fn ask(node: &Node) -> Option<v1::RoutingResponse> {
    let mut machine = machine(node.channel.clone());
    let answer = timeout(ANSWER_WITHIN, machine.routing(v1::RoutingRequest {})).await;
    Some(answer.ok()?.ok()?.into_inner())
}

impl Table {
    /// The table in a node's answer, if it makes sense.
    fn from_answer(answer: v1::RoutingResponse) -> Option<Self> {
        let mut by_slot = vec![None; answer.slots as usize];
        let mut leaders = Vec::new();
        for shard in answer.shards {
            let place = u16::try_from(leaders.len()).ok()?;
            for range in shard.slots {
                by_slot.get_mut(range.start as usize..range.end as usize)?.fill(Some(place));
            }
            leaders.push(shard.address.parse().ok());
        }
        let clock = (answer.unix_ms, Instant::now());
        (answer.slots > 0).then_some(Self { slots: answer.slots, by_slot, leaders, clock })
    }

    fn shard_of(&self, key: &[u8]) -> Option<usize> {
        self.by_slot[slot_of(key, self.slots) as usize].map(usize::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(answer: v1::RoutingResponse) -> Routing {
        let routing = Routing::new();
        *routing.table.write().unwrap() = Table::from_answer(answer);
        routing
    }

    fn shard(name: &str, start: u32, end: u32, address: &str) -> v1::ShardRoute {
        v1::ShardRoute {
            name: name.into(),
            slots: vec![v1::SlotRange { start, end }],
            leader: "node".into(),
            address: address.into(),
        }
    }

    fn answer() -> v1::RoutingResponse {
        let shards = vec![shard("a", 0, 100, "h:1"), shard("b", 100, 256, "")];
        v1::RoutingResponse { slots: 256, shards, unix_ms: 5000, ..Default::default() }
    }

    /// A key of each shard.
    fn keys() -> [Vec<u8>; 2] {
        let find = |in_first: bool| {
            let mut keys = (0..1000u32).map(|n| n.to_string().into_bytes());
            keys.find(|key| (slot_of(key, 256) < 100) == in_first).unwrap()
        };
        [find(true), find(false)]
    }

    #[test]
    fn a_key_is_led_by_its_shards_leader() {
        let routing = routing(answer());
        let [first, second] = keys();
        assert_eq!(routing.leader(&first), Some("h:1".parse().unwrap()));
        assert_eq!(routing.leader(&second), None);
        routing.set_leader(&second, Some("h:2".parse().unwrap()));
        assert_eq!(routing.leader(&second), Some("h:2".parse().unwrap()));
        routing.forget(&"h:1".parse().unwrap());
        assert_eq!(routing.leader(&first), None);
        assert_eq!(routing.leader(&second), Some("h:2".parse().unwrap()));
    }

    #[test]
    fn the_clusters_clock_goes_on() {
        let now = routing(answer()).cluster_now_ms();
        assert!((5000..60_000).contains(&now), "{now}");
    }

    #[test]
    fn a_table_that_makes_no_sense_is_none() {
        let beyond = vec![shard("a", 0, 300, "h:1")];
        let answers =
            [v1::RoutingResponse::default(), v1::RoutingResponse { shards: beyond, ..answer() }];
        for answer in answers {
            assert!(Table::from_answer(answer).is_none());
        }
    }
}
