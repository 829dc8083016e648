//! Requests that make no sense, or can not be as things are: each gets its status and
//! its reason, and changes nothing.

use raft_kv_tests::Cluster;
use serde_json::Value;

use crate::support::{begun, done, ended, four_nodes};

/// What no refused request may change.
fn state(cluster: &Cluster) -> Value {
    let mut view = cluster.view().json().clone();
    for node in view["nodes"].as_array_mut().unwrap() {
        for varying in ["disk_usage_bytes", "disk_free_bytes", "leaders"] {
            node[varying].take();
        }
    }
    for shard in view["shards"].as_array_mut().unwrap() {
        for varying in ["bytes", "applied_index", "leader", "state"] {
            shard[varying].take();
        }
    }
    view
}

/// A request and what it is answered.
type Case<'a> = (&'a str, &'a str, &'a str, u16, &'a str);

#[track_caller]
fn assert_refused(cluster: &Cluster, cases: &[Case<'_>]) {
    let before = state(cluster);
    for (place, (method, target, body, status, said)) in cases.iter().enumerate() {
        let answer = cluster.request(place % cluster.size(), method, target, body);
        let asked = format!("{method} {target} {body}");
        assert_eq!(answer.status, *status, "{asked}: {}", answer.text());
        let (_, message) = answer.error();
        assert!(message.contains(said), "{asked}: {message}");
    }
    assert_eq!(state(cluster), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let cluster = four_nodes(2);
    // Where the replicas are does not depend on what the cluster likes.
    for shard in ["shard_0", "shard_1"] {
        let replicas = cluster.view().replicas(shard).unwrap();
        assert_eq!(replicas, ["node1", "node2", "node3"]);
    }
    assert_refused(&cluster, &SHARDS);
    assert_refused(&cluster, &NODES);
    assert_refused(&cluster, &FORMS);
    assert_refused(&cluster, &METHODS);
    let long = "x".repeat(65);
    let long = format!(r#"{{"shard_id": "{long}"}}"#);
    assert_refused(&cluster, &[("POST", "/admin/shard", &long, 400, "1 to 64")]);
}

const SHARDS: [Case<'static>; 35] = [
    ("GET", "/admin/shard/shard_7", "", 404, "shard_7"),
    ("DELETE", "/admin/shard/shard_7", "", 404, "shard_7"),
    ("DELETE", "/admin/shard/shard_7?force=true", "", 404, "shard_7"),
    ("POST", "/admin/shard/shard_7/migrate", r#"{"from":"node1","to":"node4"}"#, 404, "shard_7"),
    ("POST", "/admin/shard/shard_7/split", r#"{"new_shards":["shard_7","a"]}"#, 404, "shard_7"),
    ("POST", "/admin/shard/shard_7/transfer-leader", r#"{"to":"node1"}"#, 404, "shard_7"),
    ("POST", "/admin/shard/shard_7/replica", r#"{"node":"node4"}"#, 404, "shard_7"),
    ("DELETE", "/admin/shard/shard_7/replica/node1", "", 404, "shard_7"),
    ("POST", "/admin/shard/merge", r#"{"sources":["x"],"target":"shard_0"}"#, 404, "x"),
    ("POST", "/admin/shard/merge", r#"{"sources":["shard_0"],"target":"x"}"#, 404, "x"),
    ("POST", "/admin/shard/merge", r#"{"sources":["shard_0"],"target":"shard_0"}"#, 400, "merge"),
    ("POST", "/admin/shard/merge", r#"{"sources":[],"target":"shard_0"}"#, 400, "merge"),
    ("POST", "/admin/shard/merge", r#"{"sources":["meta"],"target":"shard_0"}"#, 400, "meta"),
    ("POST", "/admin/shard/merge", r#"{"sources":["shard_0"],"target":"meta"}"#, 400, "meta"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"from":"node9","to":"node4"}"#, 404, "node9"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"from":"node1","to":"node9"}"#, 404, "node9"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"from":"node1","to":"node2"}"#, 409, "already"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"from":"node1","to":"node1"}"#, 409, "already"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"from":"node4","to":"node4"}"#, 409, "node4"),
    ("POST", "/admin/shard/meta/migrate", r#"{"from":"node1","to":"node4"}"#, 400, "meta"),
    ("POST", "/admin/shard/shard_0/replica", r#"{"node":"node9"}"#, 404, "node9"),
    ("POST", "/admin/shard/shard_0/replica", r#"{"node":"node1"}"#, 409, "already"),
    ("DELETE", "/admin/shard/shard_0/replica/node9", "", 404, "node9"),
    ("DELETE", "/admin/shard/shard_0/replica/node4", "", 409, "no replica"),
    ("POST", "/admin/shard/shard_0/transfer-leader", r#"{"to":"node9"}"#, 404, "node9"),
    ("POST", "/admin/shard/shard_0/transfer-leader", r#"{"to":"node4"}"#, 409, "no voting"),
    (
        "POST",
        "/admin/shard/shard_0/split",
        r#"{"new_shards":["shard_0","shard_1"]}"#,
        409,
        "shard_1",
    ),
    ("POST", "/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","a","b"]}"#, 400, "two"),
    ("POST", "/admin/shard/shard_0/split", r#"{"new_shards":["shard_0"]}"#, 400, "two"),
    ("POST", "/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","shard_0"]}"#, 400, "two"),
    ("POST", "/admin/shard/shard_0/split", r#"{"new_shards":["a","b"]}"#, 400, "shard_0"),
    ("POST", "/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","meta"]}"#, 400, "meta"),
    ("POST", "/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","a/b"]}"#, 400, "a/b"),
    ("DELETE", "/admin/shard/meta", "", 400, "meta"),
    ("DELETE", "/admin/shard/meta?force=true", "", 400, "meta"),
];

const NODES: [Case<'static>; 16] = [
    ("POST", "/admin/shard", r#"{"shard_id":"shard_0"}"#, 409, "shard_0"),
    ("POST", "/admin/shard", r#"{"shard_id":"meta"}"#, 400, "meta"),
    ("POST", "/admin/shard", r#"{"shard_id":"merge"}"#, 400, "merge"),
    ("POST", "/admin/shard", r#"{"shard_id":"a/b"}"#, 400, "a/b"),
    ("POST", "/admin/shard", r#"{"shard_id":"ä"}"#, 400, "letters"),
    ("POST", "/admin/shard", r#"{"shard_id":""}"#, 400, "letters"),
    ("POST", "/admin/shard", r#"{"shard_id":"a","nodes":["node9"]}"#, 404, "node9"),
    ("POST", "/admin/shard", r#"{"shard_id":"a","nodes":["node1","node1"]}"#, 400, "twice"),
    ("GET", "/admin/node/node9", "", 404, "node9"),
    ("DELETE", "/admin/node/node9", "", 404, "node9"),
    ("POST", "/admin/node", r#"{"node_id":"node1","address":"127.0.0.1:1"}"#, 409, "node1"),
    ("POST", "/admin/node", r#"{"node_id":"","address":"127.0.0.1:1"}"#, 400, "node_id"),
    ("POST", "/admin/node", r#"{"node_id":"a b","address":"127.0.0.1:1"}"#, 400, "node_id"),
    ("POST", "/admin/node", r#"{"node_id":"node9","address":"nowhere"}"#, 400, "host:port"),
    ("POST", "/admin/node", r#"{"node_id":"node9","address":":1"}"#, 400, "host:port"),
    ("POST", "/admin/node", r#"{"node_id":"node9","address":"a:99999"}"#, 400, "host:port"),
];

const FORMS: [Case<'static>; 20] = [
    ("POST", "/admin/shard", "", 400, "empty"),
    ("POST", "/admin/shard", "{", 400, "JSON"),
    ("POST", "/admin/shard", "shard_id=a", 400, "JSON"),
    ("POST", "/admin/shard", "[]", 400, "list"),
    ("POST", "/admin/shard", "\"a\"", 400, "JSON"),
    ("POST", "/admin/shard", "{}", 400, "shard_id"),
    ("POST", "/admin/shard", r#"{"shard_id":1}"#, 400, "string"),
    ("POST", "/admin/shard", r#"{"shard_id":"a","nodes":"node1"}"#, 400, "sequence"),
    ("POST", "/admin/shard", r#"{"shard_id":"a","replicas":3}"#, 400, "replicas"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"from":"node1"}"#, 400, "to"),
    ("POST", "/admin/shard/shard_0/migrate", r#"{"to":"node4"}"#, 400, "from"),
    ("POST", "/admin/shard/shard_0/split", "{}", 400, "new_shards"),
    ("POST", "/admin/shard/merge", r#"{"sources":["shard_1"]}"#, 400, "target"),
    ("POST", "/admin/shard/merge", r#"{"target":"shard_1"}"#, 400, "sources"),
    ("POST", "/admin/shard/shard_0/transfer-leader", "{}", 400, "to"),
    ("POST", "/admin/node", r#"{"node_id":"node9"}"#, 400, "address"),
    ("POST", "/admin/shard?timeout=soon", r#"{"shard_id":"a"}"#, 400, "timeout"),
    ("DELETE", "/admin/shard/shard_0?force=perhaps", "", 400, "force"),
    ("GET", "/admin/operation/x", "", 400, "x"),
    ("PUT", "/admin/balancer", r#"{"enabled":"yes"}"#, 400, "boolean"),
];

const METHODS: [Case<'static>; 9] = [
    ("GET", "/admin/operation/999", "", 404, "999"),
    ("DELETE", "/admin/operation/999", "", 404, "999"),
    ("PUT", "/admin/shard", "{}", 405, ""),
    ("GET", "/admin/shard/merge/x", "", 404, ""),
    ("GET", "/admin/shard/shard_0/split", "", 405, ""),
    ("GET", "/admin/shard/shard_0/migrate", "", 405, ""),
    ("PATCH", "/admin/shard/shard_0", "{}", 405, ""),
    ("PUT", "/admin/node", "{}", 405, ""),
    ("POST", "/admin/operation/1", "{}", 405, ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operation_at_a_time_changes_a_shard() {
    let cluster = four_nodes(2);
    // A replica on a node that does not come up catches up for as long as it takes.
    let node = r#"{"node_id":"absent","address":"127.0.0.1:9"}"#;
    done(&cluster, 0, "POST", "/admin/node", node);
    let absent = r#"{"from":"node1","to":"absent"}"#;
    let operation = begun(&cluster, 0, "POST", "/admin/shard/shard_0/migrate", absent);
    let busy = format!("operation {operation}");
    let busy = busy.as_str();
    raft_kv_tests::eventually("a learner", crate::support::OVER_WITHIN, async || {
        (cluster.view().learners("shard_0")? == ["absent"]).then_some(())
    })
    .await;
    let migrate = r#"{"from":"node2","to":"node4"}"#;
    let merge = r#"{"sources":["shard_0"],"target":"shard_1"}"#;
    let merge_into = r#"{"sources":["shard_1"],"target":"shard_0"}"#;
    let split = r#"{"new_shards":["shard_0","a"]}"#;
    let cases: [Case<'_>; 8] = [
        ("POST", "/admin/shard/shard_0/migrate", migrate, 409, busy),
        ("POST", "/admin/shard/shard_0/split", split, 409, busy),
        ("POST", "/admin/shard/merge", merge, 409, busy),
        ("POST", "/admin/shard/merge", merge_into, 409, busy),
        ("DELETE", "/admin/shard/shard_0?force=true", "", 409, busy),
        ("POST", "/admin/shard/shard_0/replica", r#"{"node":"node4"}"#, 409, busy),
        ("DELETE", "/admin/shard/shard_0/replica/node2", "", 409, busy),
        ("POST", "/admin/shard", r#"{"shard_id":"a","nodes":["nobody"]}"#, 404, "nobody"),
    ];
    assert_refused(&cluster, &cases);
    // It is undone on demand.
    let answer = cluster.request(1, "DELETE", &format!("/admin/operation/{operation}"), "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let ended = ended(&cluster, operation).await;
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    let view = cluster.view();
    assert_eq!(view.replicas("shard_0").unwrap(), ["node1", "node2", "node3"]);
    assert!(view.learners("shard_0").unwrap().is_empty());
    let target = format!("/admin/operation/{operation}");
    // Asked again it is what was asked for already.
    assert_eq!(cluster.request(1, "DELETE", &target, "").status, 200);
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_the_last_replica_and_the_last_slot_stay() {
    let node = raft_kv_tests::ClusterOptions::new();
    let options = raft_kv_tests::NodeOptions::new().arg("--slots").arg("2").shards(1);
    let cluster = node.nodes(1).node(options).start();
    assert_refused(
        &cluster,
        &[
            ("DELETE", "/admin/node/node1", "", 409, "last"),
            ("DELETE", "/admin/shard/shard_0/replica/node1", "", 409, "last"),
        ],
    );
    done(&cluster, 0, "POST", "/admin/shard/shard_0/split", r#"{"new_shards":["shard_0","a"]}"#);
    assert_refused(
        &cluster,
        &[
            ("POST", "/admin/shard/a/split", r#"{"new_shards":["a","b"]}"#, 409, "one slot"),
            ("POST", "/admin/shard", r#"{"shard_id":"b"}"#, 409, "every slot"),
        ],
    );
}
