//! Leaders whose process stands still, and finds when it goes on that it leads no
//! more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use raft_kv_client::RaftKVClient;
use raft_kv_proto::v1::{GetRequest, kv_client::KvClient};
use raft_kv_tests::{Cluster, History, Signal, eventually, grpc};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Keys, in all shards.
const KEYS: usize = 16;
/// Reads under way at each node all the time.
const READERS: usize = 24;

fn key(number: usize) -> String {
    format!("paused/{number}")
}

async fn write(client: RaftKVClient, history: Arc<History>, number: usize, stop: Arc<AtomicBool>) {
    while !stop.load(SeqCst) {
        let value = history.send(number).to_string();
        client.put(key(number), value).await.expect("a write survives the pause of a node");
        history.acknowledge(number);
    }
}

/// Reads at one node whatever comes; one that stands still answers late.
async fn read(mut node: KvClient<Channel>, history: Arc<History>, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(SeqCst) {
        number = (number + 1) % KEYS;
        let began = Instant::now();
        let request = GetRequest { key: key(number).into(), ..Default::default() };
        match node.get(request).await {
            Ok(answer) => {
                let value = answer.into_inner().value;
                let text = std::str::from_utf8(&value).expect("all values are text");
                history.read(number, began, text.parse().unwrap_or(0));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_stopped_serves_no_stale_read_when_it_goes_on() {
    let cluster = Cluster::start();
    let history = Arc::new(History::new(KEYS));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for number in 0..KEYS {
        let client = cluster.client().await;
        tasks.spawn(write(client, Arc::clone(&history), number, Arc::clone(&stop)));
    }
    for place in 0..3 {
        for _ in 0..READERS {
            let node = grpc::kv(cluster.node(place).channel().await);
            tasks.spawn(read(node, Arc::clone(&history), Arc::clone(&stop)));
        }
    }
    let more = async |what: &str| {
        let before = history.counts();
        eventually(what, Duration::from_secs(30), async || {
            let now = history.counts();
            (now.0 >= before.0 + 500 && now.1 >= before.1 + 500).then_some(())
        })
        .await;
    };
    // Shorter than an election takes, about as long, and much longer.
    for pause in [Duration::from_millis(300), Duration::from_millis(800), Duration::from_secs(10)] {
        more("reads and writes before the pause").await;
        let leader = cluster.leader_of("shard_0").await;
        cluster.node(leader).signal(Signal::STOP);
        tokio::time::sleep(pause).await;
        cluster.node(leader).signal(Signal::CONT);
        more("reads and writes after the pause").await;
    }
    stop.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no writer fails");
    }
    let (writes, reads) = history.counts();
    println!("{writes} writes and {reads} reads");
    history.check();
    cluster.assert_replicas_identical().await;
}
