//! Shards with nothing to do, which sleep.

use std::{fs, time::Duration};

use raft_kv_tests::{Cluster, ClusterOptions, NodeOptions, eventually};
use tempfile::TempDir;

const ASLEEP_WITHIN: Duration = Duration::from_secs(20);

/// A cluster whose shards sleep soon, and the folder with its settings.
fn drowsy() -> (Cluster, TempDir) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, "[raft]\nquiesce-after-ticks = 5\n").unwrap();
    let node = NodeOptions::new().arg("--config").arg(file);
    (ClusterOptions::new().node(node).start(), folder)
}

/// How many replicas sleep on a node.
fn sleeping(cluster: &Cluster, place: usize) -> usize {
    let metrics = cluster.node(place).http().get("/metrics").unwrap().text();
    let lines = metrics.lines().filter(|line| line.starts_with("raftkv_raft_asleep{"));
    lines.filter(|line| line.ends_with(" 1")).count()
}

async fn all_sleep(cluster: &Cluster) {
    eventually("all shards to sleep", ASLEEP_WITHIN, async || {
        (0..3).all(|place| sleeping(cluster, place) == 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_shards_sleep_keep_their_leaders_and_wake_for_reads_and_writes() {
    let (cluster, _folder) = drowsy();
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    all_sleep(&cluster).await;
    let before = cluster.status(0).await.shards;
    // Several elections could have been by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((0..3).map(|place| sleeping(&cluster, place)).sum::<usize>(), 12);
    assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
    for number in 0..20 {
        client.put(format!("k{number}"), "v").await.unwrap();
    }
    let after = cluster.status(0).await.shards;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.term, &before.leader), (after.term, &after.leader));
    }
    all_sleep(&cluster).await;
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_wake_when_the_node_of_their_leader_dies_and_sleep_again_when_it_is_back() {
    let (mut cluster, _folder) = drowsy();
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    all_sleep(&cluster).await;
    let leader = cluster.leader_of("shard_0").await;
    cluster.kill(leader);
    // Without a request: the silence of the node alone wakes them.
    assert_ne!(cluster.leader_of("shard_0").await, leader);
    cluster.restart(leader);
    cluster.wait_until_ready();
    all_sleep(&cluster).await;
    assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
}
