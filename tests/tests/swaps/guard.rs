//! A replica that differs is found, taken out of service, and made anew.

use std::time::Duration;

use raft_kv_tests::eventually;
use serde_json::Value;

use crate::{
    module::Version,
    support::{keys, three_nodes},
};

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_replica_that_differs_from_the_others_is_made_anew() {
    let mut cluster = three_nodes(&Version::new(1), 1);
    let client = cluster.client().await;
    let key = &keys(1)[0];
    // What this plugin remembers is lost with the process: the replica there writes another number
    // than the others.
    for _ in 0..3 {
        client.apply(key, "s").await.unwrap();
    }
    let leader = cluster.leader_of("shard_0").await;
    let other = (leader + 1) % 3;
    cluster.node_mut(other).stop();
    cluster.restart(other);
    cluster.wait_until_ready();
    client.apply(key, "s").await.unwrap();
    let rebuilt = |operations: &Value| -> Option<Value> {
        let operations = operations["operations"].as_array()?;
        let rebuild = operations.iter().find(|operation| operation["kind"] == "rebuild")?;
        (rebuild["state"] == "done").then(|| rebuild.clone())
    };
    let operation = eventually("the replica to be made anew", WITHIN, async || {
        rebuilt(&cluster.request(leader, "GET", "/admin/operation", "").json())
    })
    .await;
    let reason = operation["reason"].as_str().unwrap();
    assert!(reason.starts_with("guard: its state at index "), "{operation}");
    let description = operation["description"].as_str().unwrap();
    assert_eq!(description, format!("rebuild the replica of shard_0 on node{}", other + 1));
    client.apply(key, "i").await.unwrap();
    cluster.assert_replicas_identical().await;
    let log: String = (0..3).map(|place| cluster.node(place).stderr()).collect();
    assert!(log.contains("is taken out of service"), "{log}");
}
