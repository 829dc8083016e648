//! Nodes that come, go, die and lose everything, while clients go on.

use std::{fs, time::Duration};

use raft_kv_client::RaftKVClient;
use raft_kv_tests::{Cluster, ClusterOptions, Load, LoadOptions, NodeOptions, eventually};
use serde_json::Value;

use crate::support::{Data, client_of, done, id};

/// The balancer looks at nodes every few seconds, and waits until it is sure.
const BALANCED_WITHIN: Duration = Duration::from_secs(90);
/// A node that was removed ends in a second or two.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// A cluster that mends itself without long thoughts.
fn hasty(nodes: usize, shards: u32) -> Cluster {
    let node = NodeOptions::new().shards(shards).config("[balancer]\nsettle-ms = 500\n");
    let node = node.arg("--replace-after").arg("2");
    ClusterOptions::new().nodes(nodes).node(node).start()
}

fn patient_load() -> LoadOptions {
    let request_timeout = Duration::from_secs(20);
    LoadOptions { writers: 6, counters: 2, request_timeout, errors_allowed: false }
}

/// The ids of the nodes at these places.
fn ids(places: &[usize]) -> Vec<String> {
    places.iter().map(|place| id(*place)).collect()
}

/// Waits until every shard has three replicas that vote, on these nodes only, and each
/// node has one of some shard.
async fn spread_over(cluster: &Cluster, places: &[usize]) {
    let nodes = ids(places);
    eventually(format!("the shards to be on {nodes:?}"), BALANCED_WITHIN, async || {
        let view = cluster.view_at(places[0]);
        let mut used = Vec::new();
        for shard in view.shard_ids() {
            let replicas = view.replicas(&shard)?;
            let learners = view.learners(&shard)?;
            if replicas.len() != 3 || !learners.is_empty() {
                return None;
            }
            used.extend(replicas);
        }
        let all_known = used.iter().all(|node| nodes.contains(node));
        let all_used = nodes.iter().all(|node| used.contains(node));
        (all_known && all_used && view.running().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_nodes_and_shrinks_to_three_others_under_load() {
    let mut cluster = hasty(3, 4);
    let data = Data::put(&cluster.client().await, "kept/", 200).await;
    let mut load = Load::start_with(&cluster.endpoints(), patient_load()).await;
    load.wait_for_acknowledged(200).await;
    let of_first = client_of(&cluster, 0).await;
    let (fourth, fifth) = (cluster.join(0), cluster.join(1));
    cluster.wait_until_ready();
    spread_over(&cluster, &[0, 1, 2, 3, 4]).await;
    load.wait_for_acknowledged(200).await;
    for place in [0, 1] {
        let through = if place == 0 { fourth } else { 0 };
        let target = format!("/admin/node/{}", id(place));
        done(&cluster, through, "DELETE", &target, "");
        load.wait_for_acknowledged(200).await;
    }
    spread_over(&cluster, &[2, fourth, fifth]).await;
    assert_eq!(cluster.view_at(2).node_ids(), ids(&[2, fourth, fifth]));
    for place in [0, 1] {
        let ended = cluster.node_mut(place).wait_until_ended(ENDS_WITHIN);
        assert!(ended.success(), "a node that was removed ends by itself: {ended}");
        load.wait_for_acknowledged(200).await;
    }
    load.stop().await;
    // It was given the first node alone, and learned of the others.
    let first = data.pairs.iter().next().unwrap();
    let found = of_first.get(first.0).await.unwrap();
    assert_eq!(found.as_deref(), Some(first.1.as_bytes()));
    assert_eq!(of_first.admin().cluster().await.unwrap().nodes.len(), 3);
    load.check(&cluster.client().await).await;
    data.check(&cluster).await;
    cluster.assert_every_slot_is_owned_once().await;
    cluster.assert_replicas_identical().await;
    println!("{:?}", load.tally());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_folder_joins_again_and_gets_its_replicas_back() {
    let mut cluster = hasty(3, 2);
    let data = Data::put(&cluster.client().await, "kept/", 200).await;
    let mut load = Load::start_with(&cluster.endpoints(), patient_load()).await;
    load.wait_for_acknowledged(100).await;
    cluster.kill(2);
    fs::remove_dir_all(cluster.node(2).data_dir()).unwrap();
    load.wait_for_acknowledged(100).await;
    cluster.join_again(2, 0);
    cluster.wait_until_ready();
    eventually("the replicas to be back", BALANCED_WITHIN, async || {
        let shards = cluster.status(2).await.shards;
        let whole = shards.iter().all(|s| s.learners.is_empty() && s.replicas.len() == 3);
        (shards.len() == 2 && whole).then_some(())
    })
    .await;
    load.wait_for_acknowledged(100).await;
    load.stop().await;
    load.check(&cluster.client().await).await;
    data.check(&cluster).await;
    cluster.assert_replicas_identical().await;
    // The cluster's own group has all its replicas again, too: it goes on without another.
    let meta = |cluster: &Cluster| {
        let view = cluster.view();
        let all = ids(&[0, 1, 2]).iter().all(|node| view.node(node).unwrap()["meta"] == true);
        // The last of them has a vote.
        all && view.running().is_empty()
    };
    eventually("three replicas of meta", BALANCED_WITHIN, async || meta(&cluster).then_some(()))
        .await;
    cluster.kill(0);
    done(&cluster, 1, "POST", "/admin/shard?timeout=20", r#"{"shard_id": "more"}"#);
    data.check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_is_replaced_and_holds_nothing_stale_when_it_returns() {
    let mut cluster = hasty(4, 3);
    let data = Data::put(&cluster.client().await, "kept/", 200).await;
    let mut load = Load::start_with(&cluster.endpoints(), patient_load()).await;
    load.wait_for_acknowledged(100).await;
    spread_over(&cluster, &[0, 1, 2, 3]).await;
    cluster.kill(1);
    spread_over(&cluster, &[0, 2, 3]).await;
    load.wait_for_acknowledged(100).await;
    cluster.restart(1);
    cluster.wait_until_ready();
    // What it had is gone or moved back; never two of anything.
    eventually("the returned node to agree with the others", BALANCED_WITHIN, async || {
        let view = cluster.view_at(0);
        let node = id(1);
        for shard in cluster.status(1).await.shards {
            let replicas = view.replicas(&shard.name)?;
            let learners = view.learners(&shard.name)?;
            if !replicas.contains(&node) && !learners.contains(&node) {
                return None;
            }
        }
        Some(())
    })
    .await;
    load.wait_for_acknowledged(100).await;
    load.stop().await;
    load.check(&cluster.client().await).await;
    data.check(&cluster).await;
    cluster.assert_every_slot_is_owned_once().await;
    cluster.assert_replicas_identical().await;
}

/// What survives a crash of everything.
fn lasting(cluster: &Cluster) -> Vec<(String, Vec<String>, Value)> {
    let view = cluster.view();
    let shard = |shard: String| {
        let slots = view.shard(&shard).unwrap()["slots"].clone();
        let replicas = view.replicas(&shard).unwrap();
        (shard, replicas, slots)
    };
    view.shard_ids().into_iter().map(shard).collect()
}

async fn crash(cluster: &mut Cluster) {
    let all = 0..cluster.size();
    all.clone().for_each(|place| cluster.kill(place));
    all.for_each(|place| cluster.restart(place));
    cluster.wait_until_ready();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_as_it_was_after_all_nodes_were_killed_at_once() {
    let mut cluster = crate::support::three_nodes(2);
    cluster.join(2);
    cluster.wait_until_ready();
    let data = Data::put(&cluster.client().await, "kept/", 200).await;
    let steps = [
        ("/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","a"]}"#),
        ("/admin/shard/a/migrate", r#"{"from":"node1","to":"node4"}"#),
        ("/admin/shard/merge", r#"{"sources":["shard_1"],"target":"shard_0"}"#),
        ("/admin/shard", r#"{"shard_id":"b","nodes":["node2","node4"]}"#),
    ];
    for (target, body) in steps {
        done(&cluster, 0, "POST", target, body);
        let before = lasting(&cluster);
        crash(&mut cluster).await;
        assert_eq!(lasting(&cluster), before, "{target}");
        assert_eq!(cluster.view().node_ids(), ids(&[0, 1, 2, 3]));
        assert_eq!(cluster.view().json()["balancer"], false);
        data.check(&cluster).await;
    }
    cluster.assert_every_slot_is_owned_once().await;
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_by_way_of_any_node_and_serves_at_once() {
    let mut cluster = crate::support::three_nodes(2);
    let data = Data::put(&cluster.client().await, "kept/", 200).await;
    let fourth = cluster.join(1);
    cluster.wait_until_ready();
    // Even by way of one that joined itself.
    let fifth = cluster.join(fourth);
    cluster.wait_until_ready();
    data.check(&cluster).await;
    let client: RaftKVClient = cluster.node(fifth).client().await;
    client.put("by the way", "v").await.unwrap();
    assert_eq!(client.get("by the way").await.unwrap().as_deref(), Some(&b"v"[..]));
    // Its id is taken while it is up.
    let mut other = NodeOptions::new().arg("--node-id").arg(id(fifth)).create();
    other.add_argument("--join");
    other.add_argument(cluster.node(0).address().to_string());
    other.launch();
    let status = other.wait_until_ended(Duration::from_secs(20));
    assert_eq!(status.code(), Some(2), "{}", other.stderr());
    assert!(other.stderr().contains("choose another --node-id"), "{}", other.stderr());
    assert_eq!(cluster.view().node_ids(), ids(&[0, 1, 2, fourth, fifth]));
}
