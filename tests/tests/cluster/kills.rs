//! Nodes that are killed under load, again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use raft_kv_client::RaftKVClient;
use raft_kv_tests::{Cluster, ClusterOptions, Load, LoadOptions, generator};
use rand::Rng;
use tokio::{task::JoinSet, time::timeout};

use crate::counter;

/// Within this of a kill every shard takes writes again.
const RESUMED_WITHIN: Duration = Duration::from_secs(2);

/// Kills of one run; more of them with `RAFTKV_TEST_KILLS`.
fn kills() -> usize {
    let given = std::env::var("RAFTKV_TEST_KILLS").ok();
    given.map_or(6, |kills| kills.parse().expect("the number of kills is a number"))
}

/// Fifty tasks, none of which may see an error.
fn fifty_clients() -> LoadOptions {
    let request_timeout = Duration::from_secs(20);
    LoadOptions { writers: 45, counters: 5, request_timeout, errors_allowed: false }
}

/// A key in each of the shards, which are four.
async fn key_of_each_shard(cluster: &Cluster) -> Vec<String> {
    let shards = cluster.status(0).await.shards;
    let find = |shard: &raft_kv_proto::v1::ShardStatus| {
        let mut keys = (0..10_000).map(|n| format!("probe/{n}"));
        let owned = |key: &String| {
            let slot = raft_kv_proto::slot_of(key.as_bytes(), 256);
            shard.slots.iter().any(|range| (range.start..range.end).contains(&slot))
        };
        keys.find(owned).unwrap()
    };
    shards.iter().map(find).collect()
}

/// Waits until a write to each shard is acknowledged.
async fn write_to_all(client: &RaftKVClient, keys: &[String]) {
    let puts = keys.iter().map(|key| client.put(key, "probe"));
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_resume_and_nothing_is_lost_when_nodes_are_killed_under_load() {
    let mut generator = generator();
    let mut cluster = Cluster::start();
    let client = cluster.client().await;
    let keys = key_of_each_shard(&cluster).await;
    let mut load = Load::start_with(&cluster.endpoints(), fifty_clients()).await;
    let mut longest = Duration::ZERO;
    for round in 0..kills() {
        load.wait_for_acknowledged(generator.random_range(200..2000)).await;
        // Every other time a node that leads for certain.
        let victim = match round % 2 {
            0 => cluster.leader_of("shard_0").await,
            _ => generator.random_range(0..3),
        };
        cluster.kill(victim);
        let killed = Instant::now();
        let resumed = timeout(RESUMED_WITHIN, write_to_all(&client, &keys)).await;
        assert!(resumed.is_ok(), "no writes {RESUMED_WITHIN:?} after node{} died", victim + 1);
        longest = longest.max(killed.elapsed());
        load.wait_for_acknowledged(generator.random_range(1..1000)).await;
        cluster.restart(victim);
        cluster.wait_until_ready();
        load.check(&client).await;
    }
    load.wait_for_acknowledged(100).await;
    load.stop().await;
    load.check(&client).await;
    cluster.assert_replicas_identical().await;
    println!("{} kills, longest pause {longest:?}: {:?}", kills(), load.tally());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_all_nodes_were_killed_at_once() {
    let mut generator = generator();
    let mut cluster = Cluster::start();
    let mut load = Load::start_with(&cluster.endpoints(), fifty_clients()).await;
    for _ in 0..2 {
        load.wait_for_acknowledged(generator.random_range(500..3000)).await;
        for place in 0..3 {
            cluster.kill(place);
        }
        for place in 0..3 {
            cluster.restart(place);
        }
        cluster.wait_until_ready();
        load.check(&cluster.client().await).await;
    }
    load.stop().await;
    load.check(&cluster.client().await).await;
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_end_at_exactly_the_number_of_acknowledged_increments() {
    const TASKS: usize = 50;
    const COUNTERS: usize = 8;
    let mut generator = generator();
    let mut cluster = ClusterOptions::new().node(counter::options()).start();
    let client = cluster.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged: Arc<[AtomicU64]> = (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let acknowledged = Arc::clone(&acknowledged);
        tasks.spawn(async move {
            while !stop.load(SeqCst) {
                let place = task % COUNTERS;
                client.apply(format!("{{counter {place}}}"), "add").await.unwrap();
                acknowledged[place].fetch_add(1, SeqCst);
            }
        });
    }
    let total = || acknowledged.iter().map(|count| count.load(SeqCst)).sum::<u64>();
    for _ in 0..kills() {
        let goal = total() + generator.random_range(200..2000);
        raft_kv_tests::eventually("more increments", Duration::from_secs(20), async || {
            (total() >= goal).then_some(())
        })
        .await;
        let shard = format!("shard_{}", generator.random_range(0..4));
        let victim = cluster.leader_of(&shard).await;
        cluster.kill(victim);
        cluster.restart(victim);
        cluster.wait_until_ready();
    }
    stop.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("every increment is acknowledged");
    }
    for (place, acknowledged) in acknowledged.iter().enumerate() {
        let answer = client.query(format!("{{counter {place}}}"), "").await.unwrap();
        assert_eq!(counter::count(&answer), acknowledged.load(SeqCst), "counter {place}");
    }
    cluster.assert_replicas_identical().await;
    println!("{} increments over {} kills", total(), kills());
}
