//! Links that are cut: a network that loses every packet and closes nothing.

use std::time::Duration;

use raft_kv_client::RaftKVClient;
use raft_kv_proto::v1::{Consistency, GetRequest, PutRequest};
use raft_kv_tests::{Cluster, ClusterOptions, NodeOptions, eventually, grpc};
use tokio::time::{Instant, timeout};

/// An election timeout, and what a busy machine adds to it.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
const ELECTED_WITHIN: Duration = Duration::from_secs(10);

/// A cluster with one shard and a proxy in each link.
fn one_shard() -> Cluster {
    ClusterOptions::new().node(NodeOptions::new().shards(1)).proxies().start()
}

async fn term(cluster: &Cluster, place: usize) -> u64 {
    cluster.status(place).await.shards[0].term
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cut_off_disturbs_nobody_and_catches_up() {
    let cluster = one_shard();
    let client = cluster.client().await;
    client.put("before", "v").await.unwrap();
    let leader = cluster.leader_of("shard_0").await;
    let follower = (leader + 1) % 3;
    let before = term(&cluster, leader).await;
    cluster.isolate(follower);
    // It would have stood for election several times by now.
    let until = Instant::now() + 4 * ELECTION_TIMEOUT;
    let mut written = 0;
    while Instant::now() < until {
        client.put(format!("k{written}"), "v").await.unwrap();
        written += 1;
    }
    cluster.heal();
    eventually("the follower to catch up", ELECTED_WITHIN, async || {
        let statuses = [cluster.status(follower).await, cluster.status(leader).await];
        let [behind, ahead] = statuses.map(|status| status.shards[0].applied_index);
        (behind == ahead).then_some(())
    })
    .await;
    assert_eq!(term(&cluster, leader).await, before, "there was an election");
    assert_eq!(cluster.leader_of("shard_0").await, leader);
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_serves_no_stale_reads_and_no_writes() {
    let cluster = one_shard();
    let client = cluster.client().await;
    client.put("k", "old").await.unwrap();
    let leader = cluster.leader_of("shard_0").await;
    let mut old = grpc::kv(cluster.node(leader).channel().await);
    let get = || GetRequest { key: "k".into(), ..Default::default() };
    assert_eq!(old.get(get()).await.unwrap().into_inner().value, "old");
    cluster.isolate(leader);
    let isolated = Instant::now();
    // As long as its lease holds nobody else can lead, and it may answer. After
    // that it must not, even though it may not know of another leader.
    let last_answer = {
        let mut last = isolated;
        loop {
            match timeout(Duration::from_millis(300), old.get(get())).await {
                Ok(Ok(_)) => last = Instant::now(),
                _ => break last,
            }
            assert!(isolated.elapsed() < ELECTED_WITHIN, "the old leader goes on for ever");
        }
    };
    let served = last_answer - isolated;
    assert!(served <= ELECTION_TIMEOUT, "reads for {served:?} after the cut");

    let others: Vec<String> =
        (0..3).filter(|p| *p != leader).map(|p| cluster.node(p).endpoint()).collect();
    let majority = RaftKVClient::new(others).await.unwrap();
    majority.put("k", "new").await.unwrap();
    let found = timeout(2 * ELECTION_TIMEOUT, old.get(get())).await;
    assert!(!matches!(found, Ok(Ok(_))), "a stale read: {found:?}");
    let put = PutRequest { key: "k".into(), value: "lost".into(), ..Default::default() };
    let wrote = timeout(2 * ELECTION_TIMEOUT, old.put(put)).await;
    assert!(!matches!(wrote, Ok(Ok(_))), "a write without a majority: {wrote:?}");
    cluster.heal();
    let found =
        eventually("the old leader to follow", ELECTED_WITHIN, async || old.get(get()).await.ok());
    assert_eq!(found.await.into_inner().value, "new");
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_cut_in_one_direction_heal() {
    let cluster = one_shard();
    let client = cluster.client().await;
    for round in 0..3 {
        let leader = cluster.leader_of("shard_0").await;
        let other = (leader + 1 + round % 2) % 3;
        match round {
            0 => cluster.cut(leader, other),
            1 => cluster.cut(other, leader),
            _ => {
                cluster.cut(leader, other);
                cluster.cut((other + 1) % 3, other);
            }
        }
        let until = Instant::now() + 2 * ELECTION_TIMEOUT;
        while Instant::now() < until {
            client.put(format!("{round}"), "v").await.unwrap();
        }
        cluster.heal();
        client.put(format!("{round} healed"), "v").await.unwrap();
    }
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_cut_off_serves_stale_reads_alone() {
    let cluster = one_shard();
    cluster.client().await.put("k", "v").await.unwrap();
    cluster.assert_replicas_identical().await;
    let follower = (cluster.leader_of("shard_0").await + 1) % 3;
    cluster.isolate(follower);
    let mut kv = grpc::kv(cluster.node(follower).channel().await);
    let get =
        |consistency: Consistency| GetRequest { key: "k".into(), consistency: consistency.into() };
    let stale = kv.get(get(Consistency::Stale)).await.unwrap().into_inner();
    assert_eq!(stale.value, "v");
    let linearizable = timeout(2 * ELECTION_TIMEOUT, kv.get(get(Consistency::Linearizable))).await;
    assert!(!matches!(linearizable, Ok(Ok(_))), "nobody confirmed {linearizable:?}");
}
