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
/// Reads that wait for a node to go on.
const READS_IN_WAIT: usize = 20 * KEYS;

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

/// Reads a key at one node. One that stands still answers when it goes on. Returns
/// whether it answered with a value.
async fn read(mut node: KvClient<Channel>, history: Arc<History>, number: usize) -> bool {
    let began = Instant::now();
    let request = GetRequest { key: key(number).into(), ..Default::default() };
    let Ok(answer) = node.get(request).await else { return false };
    let value = answer.into_inner().value;
    let text = std::str::from_utf8(&value).expect("all values are text");
    history.read(number, began, text.parse().unwrap_or(0));
    true
}

async fn read_on(node: KvClient<Channel>, history: Arc<History>, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(SeqCst) {
        number = (number + 1) % KEYS;
        if !read(node.clone(), Arc::clone(&history), number).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
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
            tasks.spawn(read_on(node, Arc::clone(&history), Arc::clone(&stop)));
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
        let node = grpc::kv(cluster.node(leader).channel().await);
        cluster.node(leader).signal(Signal::STOP);
        tokio::time::sleep(pause).await;
        // These begin when others have long been writing, and are the first thing that
        // the node finds.
        let waiting = (0..READS_IN_WAIT)
            .map(|number| read(node.clone(), Arc::clone(&history), number % KEYS))
            .map(tokio::spawn);
        let waiting: Vec<_> = waiting.collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.node(leader).signal(Signal::CONT);
        for read in waiting {
            read.await.expect("no reader fails");
        }
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
