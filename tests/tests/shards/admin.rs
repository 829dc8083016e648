//! The administrator's requests, as an administrator types them.

use raft_kv_tests::{Cluster, ClusterOptions, NodeOptions, eventually};
use serde_json::Value;

use crate::support::{
    Data, OVER_WITHIN, client_of, done, ended, four_nodes, id, stop_balancer, three_nodes,
};

const KEYS: usize = 200;

/// The data is there through every node, and every slot has one owner.
async fn check(cluster: &Cluster, data: &Data) {
    data.check(cluster).await;
    cluster.assert_every_slot_is_owned_once().await;
    cluster.assert_replicas_identical().await;
}

/// A node without the replica of a shard, and one with it.
fn without_and_with(cluster: &Cluster, shard: &str) -> (String, String) {
    let view = cluster.view();
    let replicas = view.replicas(shard).unwrap();
    let without = view.node_ids().into_iter().find(|node| !replicas.contains(node)).unwrap();
    (without, replicas[0].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_created_migrated_split_merged_and_handed_over_with_its_data() {
    let cluster = four_nodes(4);
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    assert_eq!(cluster.view().owned_once(), Ok(()));

    // All slots have owners: half of the largest shard's come from it.
    let created = done(
        &cluster,
        0,
        "POST",
        "/admin/shard",
        r#"{"shard_id": "shard_9", "nodes": ["node1","node2","node3"]}"#,
    );
    assert_eq!(created["kind"], "create");
    let shard = cluster.request(1, "GET", "/admin/shard/shard_9", "").json();
    assert_eq!(shard["shard_id"], "shard_9");
    assert_eq!(shard["state"], "serving");
    assert_eq!(cluster.view().replicas("shard_9").unwrap(), ["node1", "node2", "node3"]);
    check(&cluster, &data).await;

    let migrated = done(
        &cluster,
        1,
        "POST",
        "/admin/shard/shard_0/migrate",
        r#"{"from": "node1", "to": "node4"}"#,
    );
    assert_eq!(migrated["kind"], "migrate");
    assert_eq!(cluster.view().replicas("shard_0").unwrap(), ["node2", "node3", "node4"]);
    check(&cluster, &data).await;

    let split = done(
        &cluster,
        2,
        "POST",
        "/admin/shard/shard_0/split",
        r#"{"new_shards": ["shard_0","shard_10"]}"#,
    );
    assert_eq!(split["kind"], "split");
    assert_eq!(cluster.view().replicas("shard_10").unwrap(), ["node2", "node3", "node4"]);
    check(&cluster, &data).await;

    let merged = done(
        &cluster,
        3,
        "POST",
        "/admin/shard/merge",
        r#"{"sources": ["shard_1","shard_2"], "target": "shard_1"}"#,
    );
    assert_eq!(merged["kind"], "merge");
    // Another node hears of it a moment later.
    eventually("the merged shard to be gone", OVER_WITHIN, async || {
        (cluster.request(0, "GET", "/admin/shard/shard_2", "").status == 404).then_some(())
    })
    .await;
    check(&cluster, &data).await;

    let answer =
        cluster.request(0, "POST", "/admin/shard/shard_3/transfer-leader", r#"{"to": "node2"}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(id(cluster.leader_of("shard_3").await), "node2");
    check(&cluster, &data).await;

    let shards = cluster.request(1, "GET", "/admin/shard", "").json();
    let names = shards["shards"].as_array().unwrap().iter().map(|shard| &shard["shard_id"]);
    let names: Vec<&Value> = names.collect();
    assert_eq!(names, ["shard_0", "shard_1", "shard_3", "shard_9", "shard_10"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_on_different_nodes_are_merged() {
    let cluster = four_nodes(3);
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    done(&cluster, 0, "POST", "/admin/shard/shard_0/migrate", r#"{"from":"node1","to":"node4"}"#);
    done(&cluster, 0, "POST", "/admin/shard/shard_1/migrate", r#"{"from":"node2","to":"node4"}"#);
    let all = r#"{"sources": ["shard_0","shard_1","shard_2"], "target": "shard_2"}"#;
    done(&cluster, 0, "POST", "/admin/shard/merge", all);
    assert_eq!(cluster.view().shard_ids(), ["shard_2"]);
    check(&cluster, &data).await;
    // And in two again.
    done(&cluster, 0, "POST", "/admin/shard/shard_2/split", r#"{"new_shards":["a","shard_2"]}"#);
    assert_eq!(cluster.view().shard_ids(), ["shard_2", "a"]);
    check(&cluster, &data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_shard_needs_force_if_it_has_data_and_its_slots_are_unavailable() {
    let cluster = three_nodes(2);
    let client = cluster.client().await;
    let data = Data::put(&client, "kept/", KEYS).await;
    let answer = cluster.request(0, "DELETE", "/admin/shard/shard_0", "");
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert_eq!(answer.error().0, "rolled_back");
    assert!(answer.error().1.contains("force"), "{}", answer.text());
    check(&cluster, &data).await;

    let view = cluster.view();
    let gone = data.part(|slot| view.owner_of(slot).as_deref() == Some("shard_0"));
    let left = data.part(|slot| view.owner_of(slot).as_deref() == Some("shard_1"));
    assert!(!gone.pairs.is_empty() && !left.pairs.is_empty());
    done(&cluster, 0, "DELETE", "/admin/shard/shard_0?force=true", "");
    assert_eq!(cluster.view().shard_ids(), ["shard_1"]);
    for place in 0..cluster.size() {
        let mut node = cluster.node(place).http();
        for key in gone.pairs.keys() {
            let path = raft_kv_tests::http::path_of(key.as_bytes());
            for (method, body) in [("GET", ""), ("PUT", "v"), ("DELETE", "")] {
                let answer = node.request(method, &path, body.as_bytes()).unwrap();
                assert_eq!(answer.status, 503, "{method} {key}: {}", answer.text());
                assert_eq!(answer.error().0, "shard_unavailable");
            }
        }
        for (key, value) in &left.pairs {
            let answer = node.get(&raft_kv_tests::http::path_of(key.as_bytes())).unwrap();
            assert_eq!((answer.status, answer.text()), (200, value.clone()));
        }
    }
    // The replicas' own data goes, too.
    eventually("the replicas to be gone", OVER_WITHIN, async || {
        for place in 0..cluster.size() {
            if cluster.status(place).await.shards.len() > 1 {
                return None;
            }
        }
        Some(())
    })
    .await;

    done(
        &cluster,
        0,
        "POST",
        "/admin/shard",
        r#"{"shard_id": "shard_0", "nodes": ["node1","node2","node3"]}"#,
    );
    check(&cluster, &left).await;
    for key in gone.pairs.keys() {
        assert_eq!(client.get(key).await.unwrap(), None, "{key}");
    }
    let again = Data::put(&client, "again/", KEYS).await;
    check(&cluster, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_shard_is_deleted_without_force() {
    let cluster = three_nodes(2);
    let client = cluster.client().await;
    let data = Data::put(&client, "gone/", KEYS).await;
    for key in data.pairs.keys() {
        client.delete(key).await.unwrap();
    }
    done(&cluster, 1, "DELETE", "/admin/shard/shard_1", "");
    done(&cluster, 2, "DELETE", "/admin/shard/shard_0", "");
    assert_eq!(cluster.view().json()["unowned_slots"].to_string(), r#"[{"end":256,"start":0}]"#);
    // A cluster without shards gets new ones, on the nodes that it chooses.
    done(&cluster, 0, "POST", "/admin/shard", r#"{"shard_id": "only"}"#);
    let data = Data::put(&client, "kept/", KEYS).await;
    check(&cluster, &data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_listed_added_and_removed() {
    let mut cluster = three_nodes(2);
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    let known = |cluster: &Cluster, node: &str| cluster.view().node(node).cloned();
    // A node can be announced before it is there.
    let address = cluster.node(0).address().to_string();
    let taken = format!(r#"{{"node_id": "node4", "address": "{address}"}}"#);
    assert_eq!(cluster.request(0, "POST", "/admin/node", &taken).status, 409);
    let announced = r#"{"node_id": "spare", "address": "127.0.0.1:9"}"#;
    done(&cluster, 0, "POST", "/admin/node", announced);
    assert_eq!(known(&cluster, "spare").unwrap()["state"], "down");
    done(&cluster, 0, "DELETE", "/admin/node/spare", "");
    assert_eq!(known(&cluster, "spare"), None);

    let fourth = cluster.join(1);
    cluster.wait_until_ready();
    eventually("all nodes to be connected", OVER_WITHIN, async || {
        let nodes = cluster.request(2, "GET", "/admin/node", "").json();
        let nodes = nodes["nodes"].as_array().unwrap();
        let ids: Vec<&Value> = nodes.iter().map(|node| &node["node_id"]).collect();
        assert_eq!(ids, ["node1", "node2", "node3", "node4"]);
        nodes.iter().all(|node| node["state"] == "up").then_some(())
    })
    .await;
    check(&cluster, &data).await;

    let removed = done(&cluster, 3, "DELETE", "/admin/node/node1", "");
    assert_eq!(removed["kind"], "remove_node");
    assert_eq!(cluster.view_at(fourth).node_ids(), ["node2", "node3", "node4"]);
    let ended = cluster.node_mut(0).wait_until_ended(OVER_WITHIN);
    assert!(ended.success(), "{ended}");
    cluster.launch(0);
    let ended = cluster.node_mut(0).wait_until_ended(OVER_WITHIN);
    assert!(ended.success(), "it stays removed when it is started again: {ended}");
    let said = cluster.node(0).stderr();
    assert!(said.contains("was removed from the cluster"), "{said}");
    check(&cluster, &data).await;
    for shard in cluster.view().shard_ids() {
        assert_eq!(cluster.view().replicas(&shard).unwrap(), ["node2", "node3", "node4"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_outlives_the_request_and_can_be_asked_for() {
    let cluster = four_nodes(2);
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    for (timeout, shard) in [("0", "shard_0"), ("1ms", "shard_1")] {
        let (to, from) = without_and_with(&cluster, shard);
        let target = format!("/admin/shard/{shard}/migrate?timeout={timeout}");
        let body = format!(r#"{{"from": "{from}", "to": "{to}"}}"#);
        let answer = cluster.request(3, "POST", &target, &body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        let begun = answer.json();
        assert_eq!(begun["state"], "running");
        let operation = begun["id"].as_u64().unwrap();
        let known = cluster.request(1, "GET", &format!("/admin/operation/{operation}"), "").json();
        assert_eq!(known["kind"], "migrate");
        let ended = ended(&cluster, operation).await;
        assert_eq!(ended["state"], "done", "{ended}");
        assert!(ended["ended_unix_ms"].as_u64() >= ended["started_unix_ms"].as_u64(), "{ended}");
        let listed = cluster.request(2, "GET", "/admin/operation", "").json();
        let listed = listed["operations"].as_array().unwrap();
        assert!(listed.iter().any(|known| known["id"] == operation), "{listed:?}");
        check(&cluster, &data).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_added_and_removed_one_by_one() {
    let cluster = four_nodes(1);
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    let nodes = |count: usize| (0..count).map(id).collect::<Vec<String>>();
    done(&cluster, 1, "POST", "/admin/shard/shard_0/replica", r#"{"node": "node4"}"#);
    assert_eq!(cluster.view().replicas("shard_0").unwrap(), nodes(4));
    check(&cluster, &data).await;
    for place in (1..4).rev() {
        done(&cluster, 1, "DELETE", &format!("/admin/shard/shard_0/replica/{}", id(place)), "");
        assert_eq!(cluster.view().replicas("shard_0").unwrap(), nodes(place));
        check(&cluster, &data).await;
    }
    // The only replica moves, too.
    done(&cluster, 2, "POST", "/admin/shard/shard_0/migrate", r#"{"from":"node1","to":"node3"}"#);
    assert_eq!(cluster.view().replicas("shard_0").unwrap(), ["node3"]);
    check(&cluster, &data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_moved_is_found_through_nodes_that_led_it_before() {
    let cluster = four_nodes(1);
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    let replicas = "/admin/shard/shard_0/replica";
    for place in 0..2 {
        // The node takes a change as the leader, and so has heard who leads: itself.
        let leads = format!(r#"{{"to": "{}"}}"#, id(place));
        let target = "/admin/shard/shard_0/transfer-leader";
        let answer = cluster.request(place, "POST", target, &leads);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let client = client_of(&cluster, place).await;
        client.put("one/more", "v").await.unwrap();
        done(&cluster, place, "DELETE", &format!("{replicas}/{}", id(place)), "");
        data.check(&cluster).await;
    }
}

/// Whether all replicas of shards on a node sleep.
fn all_sleep(cluster: &Cluster, place: usize) -> bool {
    let metrics = cluster.request(place, "GET", "/metrics", "").text();
    let mut gauges = metrics.lines().filter(|line| line.starts_with("raftkv_raft_asleep{"));
    gauges.all(|line| line.ends_with(" 1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_sleep_are_changed_as_well() {
    let node = NodeOptions::new().shards(2).config("[raft]\nquiesce-after-ticks = 5\n");
    let mut cluster = ClusterOptions::new().node(node).start();
    stop_balancer(&cluster);
    cluster.join(0);
    cluster.wait_until_ready();
    let data = Data::put(&cluster.client().await, "kept/", KEYS).await;
    let steps = [
        ("/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","a"]}"#),
        ("/admin/shard/a/migrate", r#"{"from":"node1","to":"node4"}"#),
        ("/admin/shard/merge", r#"{"sources":["a"],"target":"shard_1"}"#),
    ];
    for (target, body) in steps {
        eventually("all replicas to sleep", OVER_WITHIN, async || {
            (0..cluster.size()).all(|place| all_sleep(&cluster, place)).then_some(())
        })
        .await;
        done(&cluster, 0, "POST", target, body);
    }
    check(&cluster, &data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_shows_no_figures_of_replicas_that_left_it() {
    let mut cluster = ClusterOptions::new().node(NodeOptions::new().shards(1)).start();
    stop_balancer(&cluster);
    cluster.join(0);
    cluster.wait_until_ready();
    let shown = |place: usize| {
        let metrics = cluster.request(place, "GET", "/metrics", "").text();
        metrics.contains(r#"raftkv_raft_term{shard="shard_0"}"#)
    };
    assert_eq!([0, 1, 2, 3].map(shown), [true, true, true, false]);
    let body = r#"{"from":"node1","to":"node4"}"#;
    done(&cluster, 0, "POST", "/admin/shard/shard_0/migrate", body);
    eventually("the replica's figures to go with it", OVER_WITHIN, async || {
        ([0, 1, 2, 3].map(shown) == [false, true, true, true]).then_some(())
    })
    .await;
}
