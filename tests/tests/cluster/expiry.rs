//! Keys with a time to live: all nodes agree on when they are gone.

use std::time::Duration;

use raft_kv_tests::{Cluster, eventually, http};

const GONE_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_a_key_is_gone_at_one_node_it_is_gone_at_all() {
    let cluster = Cluster::start();
    let client = cluster.client().await;
    for number in 0..6 {
        let key = format!("k{number}");
        client.put_with_ttl(&key, "v", Duration::from_millis(700)).await.unwrap();
        let path = http::path_of(key.as_bytes());
        let status = |place| cluster.node(place).http().get(&path).unwrap().status;
        let first = number % 3;
        eventually("the key to be gone", GONE_WITHIN, async || {
            (status(first) == 404).then_some(())
        })
        .await;
        for place in 0..3 {
            assert_eq!(status(place), 404, "{key} at node {place} after node {first}");
        }
    }
    assert!(client.scan("").collect().await.unwrap().is_empty());
    cluster.assert_replicas_identical().await;
}
