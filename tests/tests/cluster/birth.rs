//! How a cluster is born: at most once, whatever the order.

use std::{collections::BTreeSet, fs, time::Duration};

use raft_kv_proto::v1::PutRequest;
use raft_kv_tests::{Cluster, ClusterOptions, Node, generator, grpc, http, wait_for};
use rand::Rng;

/// Within this a node has noticed what is the matter.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

/// The error that a node ended with, in one line.
#[track_caller]
fn refusal(node: &mut Node) -> String {
    let status = node.wait_until_ended(NOTICED_WITHIN);
    let stderr = node.stderr();
    assert_eq!(status.code(), Some(2), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("raft-kv: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_owned()
}

fn cluster_id(cluster: &Cluster, place: usize) -> String {
    cluster.node(place).status()["cluster_id"].as_str().unwrap().to_owned()
}

/// Why a node is not ready; nothing if it does not listen.
fn not_ready(node: &Node) -> Option<String> {
    let answer = http::Connection::open(node.address()).and_then(|mut node| node.get("/readyz"));
    answer.ok().filter(|answer| answer.status == 503).map(|answer| answer.error().1)
}

#[tokio::test]
async fn a_cluster_is_born_in_any_order_of_starting() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut cluster = ClusterOptions::new().create();
        for place in order {
            cluster.launch(place);
        }
        cluster.wait_until_ready();
        let ids: BTreeSet<String> = (0..3).map(|place| cluster_id(&cluster, place)).collect();
        assert_eq!(ids.len(), 1, "{order:?}");
        cluster.client().await.put("k", "v").await.unwrap();
        cluster.assert_replicas_identical().await;
    }
}

#[test]
fn a_node_that_waits_for_others_says_for_whom() {
    let mut cluster = ClusterOptions::new().create();
    cluster.launch(0);
    cluster.launch(1);
    let late = cluster.node(2).address().to_string();
    for place in [0, 1] {
        let reason = wait_for("the reason", NOTICED_WITHIN, || {
            not_ready(cluster.node(place)).filter(|reason| {
                reason.contains("node3") && reason.contains(&late) && !reason.contains("node2 at")
            })
        });
        assert!(reason.contains("not born yet"), "{reason}");
        let healthy = cluster.node(place).http().get("/healthz").unwrap();
        assert_eq!(healthy.status, 200);
        for path in ["/kv/k", "/admin/shard", "/admin/operation/1"] {
            let answer = cluster.node(place).http().get(path).unwrap();
            assert_eq!((answer.status, &answer.error().0[..]), (503, "not_ready"), "{path}");
        }
    }
    cluster.launch(2);
    cluster.wait_until_ready();
}

#[test]
fn lists_that_contradict_each_other_are_refused() {
    let mut cluster = ClusterOptions::new().create();
    let two: Vec<String> = cluster.list().split(',').take(2).map(str::to_owned).collect();
    cluster.launch(0);
    cluster.launch_with(1, &two.join(","));
    // Whichever hears of the other's list first ends.
    let ended = wait_for("a node to end", NOTICED_WITHIN, || {
        (0..2).find(|place| cluster.node_mut(*place).exit_status().is_some())
    });
    let line = refusal(cluster.node_mut(ended));
    let other = ["node2", "node1"][ended];
    assert!(line.contains(other) && line.contains("same --cluster"), "{line}");
}

#[tokio::test]
async fn a_restart_needs_no_list_and_takes_no_other() {
    let mut cluster = Cluster::start();
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    cluster.kill(2);
    let list = cluster.list();
    let mut turned: Vec<&str> = list.split(',').collect();
    turned.reverse();
    cluster.launch_with(2, &turned.join(","));
    cluster.wait_until_ready();
    cluster.kill(2);

    let other = list.replace("node2=", "node9=");
    cluster.launch_with(2, &other);
    let line = refusal(cluster.node_mut(2));
    assert!(line.contains("--cluster") && line.contains("born with"), "{line}");
    cluster.launch_with(2, list.split(',').next_back().unwrap());
    let line = refusal(cluster.node_mut(2));
    assert!(line.contains("born with"), "{line}");

    cluster.restart(2);
    cluster.wait_until_ready();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn a_member_whose_data_is_gone_comes_back_without_replicas() {
    let mut cluster = Cluster::start();
    let client = cluster.client().await;
    let born = cluster_id(&cluster, 0);
    // The founder, which must not found a second time.
    cluster.kill(0);
    fs::remove_dir_all(cluster.node(0).data_dir()).unwrap();
    cluster.launch(0);
    cluster.wait_until_ready();
    assert_eq!(cluster_id(&cluster, 0), born);
    assert!(cluster.status(0).await.shards.is_empty());
    client.put("k", "v").await.unwrap();
    // Through the node that has nothing, and after another start.
    cluster.kill(0);
    cluster.restart(0);
    cluster.wait_until_ready();
    assert!(cluster.status(0).await.shards.is_empty());
    let mut kv = grpc::kv(cluster.node(0).channel().await);
    let put = PutRequest { key: "k".into(), value: "w".into(), ..PutRequest::default() };
    kv.put(put).await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "w");
}

#[tokio::test]
async fn crashes_while_it_is_born_leave_one_cluster() {
    let mut generator = generator();
    for _ in 0..3 {
        let mut cluster = ClusterOptions::new().create();
        for _ in 0..4 {
            cluster.launch_all();
            let place = generator.random_range(0..3);
            let moment = Duration::from_millis(generator.random_range(0..600));
            let started = std::time::Instant::now();
            wait_for("the moment to crash", NOTICED_WITHIN, || {
                (started.elapsed() >= moment).then_some(())
            });
            cluster.kill(place);
        }
        cluster.launch_all();
        cluster.wait_until_ready();
        let ids: BTreeSet<String> = (0..3).map(|place| cluster_id(&cluster, place)).collect();
        assert_eq!(ids.len(), 1);
        cluster.client().await.put("k", "v").await.unwrap();
        cluster.assert_replicas_identical().await;
    }
}
