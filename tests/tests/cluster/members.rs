//! Replicas that are taken away and given, and leaders that hand over.

use std::{fs, time::Duration};

use raft_kv_client::{Error, RaftKVClient};
use raft_kv_tests::{Cluster, Load, LoadOptions, eventually};

const SHARDS: [&str; 4] = ["shard_0", "shard_1", "shard_2", "shard_3"];

fn light_load() -> LoadOptions {
    let request_timeout = Duration::from_secs(20);
    LoadOptions { writers: 8, counters: 2, request_timeout, errors_allowed: false }
}

/// Fills the shards with more than a snapshot's file holds.
async fn fill(client: &RaftKVClient) {
    let value = vec![7; 64 << 10];
    for row in 0..400 {
        let puts = (0..4).map(|part| client.put(format!("fill/{row}/{part}"), value.clone()));
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_comes_back_on_a_wiped_folder_under_load() {
    let mut cluster = Cluster::start();
    let client = cluster.client().await;
    fill(&client).await;
    let mut load = Load::start_with(&cluster.endpoints(), light_load()).await;
    load.wait_for_acknowledged(500).await;
    cluster.kill(2);
    fs::remove_dir_all(cluster.node(2).data_dir()).unwrap();
    for shard in SHARDS {
        client.remove_replica(shard, "node3").await.unwrap();
    }
    cluster.launch(2);
    cluster.wait_until_ready();
    load.wait_for_acknowledged(500).await;
    for shard in SHARDS {
        client.add_replica(shard, "node3").await.unwrap();
        // Asked again, there is nothing left to do.
        let again = client.add_replica(shard, "node3").await;
        assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
    }
    load.wait_for_acknowledged(500).await;
    load.check(&client).await;
    load.stop().await;
    for place in 0..3 {
        for shard in cluster.status(place).await.shards {
            assert_eq!(shard.replicas.len(), 3, "{shard:?}");
            assert!(shard.learners.is_empty(), "{shard:?}");
        }
    }
    cluster.assert_replicas_identical().await;
    // What came by a snapshot is there after a crash.
    cluster.kill(2);
    cluster.restart(2);
    cluster.wait_until_ready();
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_and_its_data_goes() {
    let cluster = Cluster::start();
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    let leader = cluster.leader_of("shard_1").await;
    let node = format!("node{}", leader + 1);
    client.remove_replica("shard_1", &node).await.unwrap();
    eventually("the replica to be gone", Duration::from_secs(10), async || {
        let shards = cluster.status(leader).await.shards;
        shards.iter().all(|shard| shard.name != "shard_1").then_some(())
    })
    .await;
    client.add_replica("shard_1", &node).await.unwrap();
    cluster.assert_replicas_identical().await;
    client.transfer_leader("shard_1", &node).await.unwrap();
    assert_eq!(cluster.leader_of("shard_1").await, leader);
}

#[tokio::test]
async fn changes_that_make_no_sense_are_refused_and_change_nothing() {
    let cluster = Cluster::start();
    let client = cluster.client().await;
    let before = cluster.status(0).await.shards[0].epoch;
    for (shard, node, what) in [("shard_9", "node1", "shard_9"), ("shard_0", "node9", "node9")] {
        let message = client.add_replica(shard, node).await.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
        let message = client.remove_replica(shard, node).await.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
        let message = client.transfer_leader(shard, node).await.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
    assert_eq!(cluster.status(0).await.shards[0].epoch, before);
}
