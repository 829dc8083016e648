//! Everything at once: shards split, merge, move and change leaders, nodes are killed, come
//! back, are drained and replaced, while fifty clients read and write. Nothing that was
//! acknowledged may be lost, what clients saw must be linearizable, and no client may see an
//! error.
//!
//! `RAFTKV_TEST_CHAOS` is how many seconds it lasts (20 unless set), `RAFTKV_TEST_SEED`
//! makes the choices.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use raft_kv_client::{Change, ClusterState, Error, OperationState, RaftKVClient};
use raft_kv_proto::v1::{ChecksumRequest, StatusRequest};
use raft_kv_tests::{History, Node, NodeOptions, eventually, generator, grpc};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinSet;

const NODES: usize = 4;
const KEYS: usize = 20;
const READERS: usize = 30;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// An operation has ended within this, one way or the other.
const ENDS_WITHIN: Duration = Duration::from_secs(120);
const MOST_SHARDS: usize = 10;

fn key(number: usize) -> String {
    format!("register/{number}")
}

/// The nodes of the cluster, by their ids.
struct Fleet {
    nodes: BTreeMap<String, Node>,
    born: u32,
}

impl Fleet {
    fn start() -> Self {
        let options = NodeOptions::new().arg("--replace-after").arg("600");
        let nodes: Vec<Node> = (0..NODES).map(|_| options.clone().create()).collect();
        let id = |place: usize| format!("node{}", place + 1);
        let list: Vec<String> = nodes
            .iter()
            .enumerate()
            .map(|(n, node)| format!("{}={}", id(n), node.address()))
            .collect();
        let mut fleet = Fleet { nodes: BTreeMap::new(), born: NODES as u32 };
        for (place, mut node) in nodes.into_iter().enumerate() {
            node.add_argument("--node-id");
            node.add_argument(id(place));
            node.add_argument("--cluster");
            node.add_argument(list.join(","));
            node.launch();
            node.remove_last_arguments(2);
            fleet.nodes.insert(id(place), node);
        }
        fleet.nodes.values_mut().for_each(Node::wait_until_ready);
        fleet
    }

    fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(Node::endpoint).collect()
    }

    fn ids(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// A new node joins by way of another.
    fn join(&mut self, by: &str) -> String {
        self.born += 1;
        let id = format!("node{}", self.born);
        let mut node = NodeOptions::new().arg("--replace-after").arg("600").create();
        node.add_argument("--node-id");
        node.add_argument(&id);
        node.add_argument("--join");
        node.add_argument(self.nodes[by].address().to_string());
        node.launch();
        node.wait_until_ready();
        self.nodes.insert(id.clone(), node);
        id
    }
}

struct Clients {
    history: History,
    stop: AtomicBool,
    /// The longest that a request took, in milliseconds.
    longest: AtomicU64,
}

impl Clients {
    fn took(&self, began: Instant) {
        self.longest.fetch_max(began.elapsed().as_millis() as u64, SeqCst);
    }
}

async fn client(endpoints: &[String]) -> RaftKVClient {
    let builder = RaftKVClient::builder().endpoints(endpoints.to_vec());
    builder.request_timeout(REQUEST_TIMEOUT).connect().await.unwrap()
}

async fn write(client: RaftKVClient, number: usize, all: Arc<Clients>) {
    while !all.stop.load(SeqCst) {
        let value = all.history.send(number);
        let began = Instant::now();
        let written = client.put(key(number), value.to_string()).await;
        written.unwrap_or_else(|error| panic!("a write of {}: {error}", key(number)));
        all.took(began);
        all.history.acknowledge(number);
    }
}

async fn read(client: RaftKVClient, reader: usize, all: Arc<Clients>) {
    let mut number = reader;
    while !all.stop.load(SeqCst) {
        number = (number + 1) % KEYS;
        let began = Instant::now();
        let read = client.get(key(number)).await;
        let read = read.unwrap_or_else(|error| panic!("a read of {}: {error}", key(number)));
        let value = read.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
        all.took(began);
        all.history.read(number, began, value);
    }
}

/// Something that is done to the cluster.
struct Chaos {
    rng: StdRng,
    fleet: Fleet,
    client: RaftKVClient,
    shards_born: u32,
    /// The node that is down, and when it comes back.
    down: Option<(String, Instant)>,
    done: BTreeMap<String, (u32, u32)>,
}

impl Chaos {
    async fn step(&mut self) {
        self.bring_back();
        let state = match self.client.admin().cluster().await {
            Ok(state) => state,
            Err(error) => panic!("the cluster does not say how it is: {error}"),
        };
        match self.rng.random_range(0..100) {
            0..12 if self.down.is_none() => self.kill(),
            12..17 if self.down.is_none() => self.replace().await,
            choice => {
                let Some(change) = self.change(&state, choice) else { return };
                self.carry_out(change).await;
            }
        }
    }

    /// Starts the node that is down again, if it is time to.
    fn bring_back(&mut self) {
        if let Some((node, _)) = self.down.take_if(|(_, until)| Instant::now() >= *until) {
            self.fleet.nodes.get_mut(&node).unwrap().launch();
        }
    }

    fn kill(&mut self) {
        let victim = self.fleet.ids().choose(&mut self.rng).unwrap().clone();
        self.fleet.nodes.get_mut(&victim).unwrap().kill();
        let pause = Duration::from_millis(self.rng.random_range(200..2500));
        println!("killed {victim} for {pause:?}");
        self.down = Some((victim, Instant::now() + pause));
    }

    /// A node leaves and a new one comes.
    async fn replace(&mut self) {
        let ids = self.fleet.ids();
        let leaver = ids.choose(&mut self.rng).unwrap().clone();
        let by = ids.iter().find(|id| **id != leaver).unwrap();
        let comer = self.fleet.join(by);
        println!("{comer} joined, {leaver} leaves");
        self.carry_out(Change::RemoveNode { node: leaver.clone() }).await;
        let state = self.client.admin().cluster().await.unwrap();
        if state.nodes.iter().all(|node| node.node_id != leaver) {
            self.fleet.nodes.remove(&leaver);
        }
    }

    fn change(&mut self, state: &ClusterState, choice: u32) -> Option<Change> {
        let shard = state.shards.choose(&mut self.rng)?;
        let name = shard.shard_id.clone();
        Some(match choice {
            17..37 if state.shards.len() < MOST_SHARDS => {
                self.shards_born += 1;
                let new_shards = vec![name.clone(), format!("part_{}", self.shards_born)];
                Change::SplitShard { shard: name, new_shards }
            }
            37..57 if state.shards.len() > 2 => {
                let others: Vec<&str> = state
                    .shards
                    .iter()
                    .map(|s| s.shard_id.as_str())
                    .filter(|n| *n != name)
                    .collect();
                let source = (*others.choose(&mut self.rng)?).to_owned();
                Change::MergeShards { sources: vec![source, name.clone()], target: name }
            }
            57..77 => {
                let ids = self.fleet.ids();
                let from = shard.replicas.choose(&mut self.rng)?.clone();
                let free: Vec<&String> =
                    ids.iter().filter(|id| !shard.replicas.contains(id)).collect();
                let to = (*free.choose(&mut self.rng)?).clone();
                Change::MigrateShard { shard: name, from, to }
            }
            _ => {
                let client = self.client.clone();
                let to = shard.replicas.choose(&mut self.rng)?.clone();
                // Whether it comes to lead is up to how things are.
                tokio::spawn(async move { drop(client.transfer_leader(&name, &to).await) });
                return None;
            }
        })
    }

    async fn carry_out(&mut self, change: Change) {
        let kind = format!("{change:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
        let began = Instant::now();
        let admin = self.client.admin();
        let mut operation = match admin.begin(change.clone()).await {
            Ok(operation) => operation,
            // Things have changed since the choice was made.
            Err(error @ (Error::Conflict { .. } | Error::NotFound { .. })) => {
                println!("{change:?}: {error}");
                self.done.entry(kind).or_default().1 += 1;
                return;
            }
            Err(error) => panic!("{change:?}: {error}"),
        };
        while operation.state == OperationState::Running {
            assert!(began.elapsed() < ENDS_WITHIN, "{operation:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.bring_back();
            operation = admin.operation(operation.id).await.unwrap();
        }
        let (state, message) = (operation.state, operation.message);
        println!("{change:?}: {state:?} {message} after {:?}", began.elapsed());
        let counts = self.done.entry(kind).or_default();
        match state {
            OperationState::Done => counts.0 += 1,
            _ => counts.1 += 1,
        }
    }

    /// Everything is mended, and comes to rest.
    async fn settle(&mut self) -> ClusterState {
        if let Some((node, _)) = self.down.take() {
            self.fleet.nodes.get_mut(&node).unwrap().launch();
        }
        self.fleet.nodes.values_mut().for_each(Node::wait_until_ready);
        self.client.admin().set_balancer(false).await.unwrap();
        eventually("all operations to end", ENDS_WITHIN, async || {
            let state = self.client.admin().cluster().await.ok()?;
            let runs = state.operations.iter().any(|o| o.state == OperationState::Running);
            let serves = state.shards.iter().all(|shard| shard.state == "serving");
            (!runs && serves).then_some(state)
        })
        .await
    }
}

/// Checks that each slot has one owner, and that all replicas of each shard hold the same.
async fn check(fleet: &Fleet, state: &ClusterState) {
    let mut owners = vec![0; state.slots as usize];
    for slots in state.shards.iter().flat_map(|shard| &shard.slots) {
        owners[slots.start as usize..slots.end as usize].iter_mut().for_each(|owners| *owners += 1);
    }
    assert!(owners.iter().all(|owners| *owners == 1), "{:?}", state.shards);
    for shard in &state.shards {
        let name = &shard.shard_id;
        let same =
            eventually(format!("the replicas of {name}"), Duration::from_secs(60), async || {
                let mut held = Vec::new();
                for node in &shard.replicas {
                    held.push(held_by(&fleet.nodes[node], name).await?);
                }
                held.iter().all(|replica| replica.0 == held[0].0).then_some(held)
            })
            .await;
        assert!(same.iter().all(|replica| *replica == same[0]), "{name}: {same:?}");
    }
}

/// Applied index, checksum and state hash of a replica, if they are of one state.
async fn held_by(node: &Node, shard: &str) -> Option<(u64, String, String)> {
    let mut admin = grpc::admin(node.channel().await);
    let request = ChecksumRequest { shard: shard.to_owned() };
    let checksum = admin.checksum(request).await.ok()?.into_inner();
    let status = admin.status(StatusRequest {}).await.ok()?.into_inner();
    let status = status.shards.into_iter().find(|found| found.name == shard)?;
    let index = checksum.applied_index;
    (index == status.applied_index).then_some((index, checksum.checksum, status.state_hash))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_drift_and_clients_notice_nothing() {
    let seconds = std::env::var("RAFTKV_TEST_CHAOS").map_or(20, |text| text.parse().unwrap());
    let rng = generator();
    let fleet = Fleet::start();
    let endpoints = fleet.endpoints();
    let all = Arc::new(Clients {
        history: History::new(KEYS),
        stop: AtomicBool::new(false),
        longest: AtomicU64::new(0),
    });
    let mut tasks = JoinSet::new();
    for number in 0..KEYS {
        tasks.spawn(write(client(&endpoints).await, number, Arc::clone(&all)));
    }
    for reader in 0..READERS {
        tasks.spawn(read(client(&endpoints).await, reader, Arc::clone(&all)));
    }
    let mut chaos = Chaos {
        rng,
        client: client(&endpoints).await,
        fleet,
        shards_born: 0,
        down: None,
        done: BTreeMap::new(),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        chaos.step().await;
        if let Some(ended) = tasks.try_join_next() {
            ended.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(chaos.rng.random_range(0..300))).await;
    }
    let settling = Instant::now();
    let state = chaos.settle().await;
    println!("settled after {:?}", settling.elapsed());
    all.stop.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let (writes, reads) = all.history.counts();
    println!("{writes} writes and {reads} reads, the longest took {} ms", all.longest.load(SeqCst));
    println!("done and refused or rolled back: {:?}", chaos.done);
    all.history.check();
    println!("{:?} after the end of the storm", settling.elapsed());
    check(&chaos.fleet, &state).await;
}

/// What the nodes said, for whoever looks into a failure.
impl Drop for Fleet {
    fn drop(&mut self) {
        let Ok(folder) = std::env::var("RAFTKV_TEST_LOGS") else { return };
        for (id, node) in &self.nodes {
            // It is for people alone.
            let _ = fs::write(format!("{folder}/{id}.log"), node.stderr());
        }
    }
}
