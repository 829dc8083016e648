//! The command line's shards, nodes and operations, against a node in this process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Course, Running, dead_endpoint, program::run};
use serde_json::{Value, json};

/// A node whose first operation takes this course.
async fn node(course: Course) -> (Running, String) {
    let node = Running::start().await;
    node.node.store.operations.next(course);
    let at = node.endpoint();
    (node, at)
}

#[tokio::test]
async fn every_change_is_a_command() {
    let (node, at) = node(Course::DONE).await;
    for (command, description) in [
        ("shard create a --nodes b,c", "create a on b,c"),
        ("shard create a", "create a on "),
        ("shard delete a", "delete a, force false"),
        ("shard delete a --force", "delete a, force true"),
        ("shard migrate a --from b --to c", "migrate a from b to c"),
        ("shard split a --into a,b", "split a into a,b"),
        ("shard merge --sources a,b --target a", "merge a,b into a"),
        ("shard add-replica a b", "add b to a"),
        ("shard remove-replica a b", "remove b from a"),
        ("node add a 127.0.0.1:5004", "add a at 127.0.0.1:5004"),
        ("node remove a", "remove a"),
    ] {
        let ran = run(&at, command.split(' ')).await;
        let id = node.node.store.operations.descriptions().len();
        assert_eq!(ran.text(), format!("{description}: done (operation {id})\n"));
        assert_eq!(node.node.store.operations.descriptions()[id - 1], description);
    }
    let ran = run(&at, ["shard", "transfer-leader", "a", "b"]).await;
    assert_eq!(ran.text(), "b leads a (replica 4)\n");
}

#[tokio::test]
async fn an_operation_is_waited_for_and_printed_as_json() {
    let (_node, at) = node(Course { found_running: 2, ends: "done" }).await;
    let ran = run(&at, "--output json shard split a --into a,b".split(' ')).await;
    let expected = json!({
        "id": 1,
        "kind": "migrate",
        "description": "split a into a,b",
        "state": "done",
        "step": "move",
        "message": "",
        "reason": "user",
        "started_unix_ms": 1_000_000,
        "ended_unix_ms": 1_003_000,
    });
    assert_eq!(ran.json(), [expected]);
}

#[tokio::test]
async fn an_operation_that_goes_on_is_exit_code_3_and_can_be_looked_at_and_cancelled() {
    let (_node, at) = node(Course::ENDLESS).await;
    let message = run(&at, "shard split a --into a,b --timeout 0.2".split(' ')).await.failure(3);
    let expected = "error: operation 1 (split a into a,b) is still under way (move: the new \
                    replica catches up) and goes on: see how it stands with `raft-kv-client \
                    operation show 1`\n";
    assert_eq!(message, expected);

    let shown = run(&at, ["operation", "show", "1"]).await.text();
    assert!(shown.contains("state      running: move\n"), "{shown}");
    let shown = run(&at, "operation show 1 --output json".split(' ')).await.json();
    assert_eq!((&shown[0]["state"], &shown[0]["ended_unix_ms"]), (&json!("running"), &Value::Null));
    let listed = run(&at, ["operation", "list"]).await.text();
    assert!(listed.contains("split a into a,b  running: move"), "{listed}");

    let message = run(&at, ["operation", "cancel", "1"]).await.text();
    assert_eq!(message, "split a into a,b: rolled back (operation 1): node4 is down\n");
    let listed = run(&at, "operation list --output json".split(' ')).await.json();
    assert_eq!(listed[0]["state"], "rolled_back");
}

#[tokio::test]
async fn programs_learn_of_an_operation_that_goes_on() {
    let (_node, at) = node(Course::ENDLESS).await;
    let arguments = "--output json shard split a --into a,b --timeout 0.2";
    let ran = run(&at, arguments.split(' ')).await;
    assert_eq!(ran.code, Some(3));
    let operation: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&operation["id"], &operation["state"]), (&json!(1), &json!("running")));
}

#[tokio::test]
async fn one_that_was_rolled_back_is_exit_code_3_and_says_why() {
    let (_node, at) = node(Course { found_running: 1, ends: "rolled_back" }).await;
    let message = run(&at, "shard split a --into a,b".split(' ')).await.failure(3);
    let expected = "error: operation 1 (split a into a,b) was rolled back: node4 is down\n";
    assert_eq!(message, expected);
}

#[tokio::test]
async fn what_does_not_exist_is_exit_code_1() {
    let (_node, at) = node(Course::DONE).await;
    for (command, message) in [
        ("shard show missing", "error: there is no shard missing\n"),
        ("shard split missing --into a,b", "error: there is no shard missing\n"),
        ("shard transfer-leader missing node1", "error: there is no shard missing\n"),
        ("operation show 7", "error: there is no operation 7\n"),
        ("operation cancel 7", "error: there is no operation 7\n"),
    ] {
        assert_eq!(run(&at, command.split(' ')).await.failure(1), message, "{command}");
    }
}

#[tokio::test]
async fn what_stands_in_the_way_is_exit_code_3() {
    let (_node, at) = node(Course::DONE).await;
    let message = run(&at, "shard split busy --into a,b".split(' ')).await.failure(3);
    assert_eq!(message, "error: operation 9 is under way\n");
    let dead = dead_endpoint().await;
    run(&dead, ["--timeout", "0.5", "status"]).await.failure(3);
}

#[tokio::test]
async fn bad_usage_is_exit_code_2() {
    let (_node, at) = node(Course::DONE).await;
    for arguments in [
        "shard",
        "shard create",
        "shard migrate a --from b",
        "shard split a",
        "shard merge --target a",
        "node add a",
        "operation show first",
        "balancer perhaps",
    ] {
        let message = run(&at, arguments.split(' ')).await.failure(2);
        assert_ne!(message, "", "{arguments}");
    }
}

#[tokio::test]
async fn the_status_of_the_cluster_can_be_read_in_one_go() {
    let (_node, at) = node(Course::DONE).await;
    run(&at, "shard split a --into a,b".split(' ')).await.text();
    let expected = "\
cluster 6f3a, 256 slots, routing version 12, balancer off
no shard owns the slots 200-255

NODE   ADDRESS         STATE           REPLICAS  LEADERS  DISK     FREE     VERSION
node1  127.0.0.1:5001  up, meta        2         1        1.5 KiB  3.0 TiB  0.1.0
node2  127.0.0.1:5002  up, meta        2         1        1.5 KiB  3.0 TiB  0.1.0
node3  127.0.0.1:5003  down, draining  1         0        0 B      0 B      -

SHARD    SLOTS     LEADER  REPLICAS            SIZE     STATE
shard_0  0-99,150  node1   node1,node2,+node3  1.0 MiB  serving, operation 7
shard_1  151-199   -       node3               0 B      no leader

ID  OPERATION         STATE  TOOK  ENDED";
    let status = run(&at, ["status"]).await.text();
    assert!(status.starts_with(expected), "{status}");
    assert!(status.contains("1   split a into a,b  done   3 s   "), "{status}");
}

#[tokio::test]
async fn the_status_of_the_cluster_is_one_json_object() {
    let (_node, at) = node(Course::DONE).await;
    run(&at, "shard split a --into a,b".split(' ')).await.text();
    let lines = run(&at, ["status", "--output", "json"]).await.json();
    let [status] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(status["cluster_id"], "6f3a");
    assert_eq!(status["unowned_slots"], json!([{ "start": 200, "end": 256 }]));
    assert_eq!(status["nodes"][2]["state"], "down");
    assert_eq!(status["shards"][1]["leader"], Value::Null);
    assert_eq!(status["shards"][0]["operation"], 7);
    assert_eq!(status["shards"][1].get("operation"), None);
    assert_eq!(status["operations"][0]["description"], "split a into a,b");
}

#[tokio::test]
async fn lists_have_an_item_on_each_line() {
    let (_node, at) = node(Course::DONE).await;
    let nodes = run(&at, ["node", "list"]).await.text();
    assert_eq!(nodes.lines().count(), 4, "{nodes}");
    let nodes = run(&at, "node list --output json".split(' ')).await.json();
    assert_eq!(nodes[1]["node_id"], "node2");
    let shards = run(&at, ["shard", "list"]).await.text();
    assert_eq!(shards.lines().count(), 3, "{shards}");
    let shards = run(&at, "shard list --output json".split(' ')).await.json();
    assert_eq!((shards.len(), &shards[1]["shard_id"]), (2, &json!("shard_1")));
    let one = run(&at, "shard show shard_1 --output json".split(' ')).await.json();
    assert_eq!(one[..], shards[1..]);
    let one = run(&at, ["shard", "show", "shard_0"]).await.text();
    assert!(one.contains("learners  node3\n"), "{one}");
}

#[tokio::test]
async fn the_balancer_is_turned_on_and_off() {
    let (_node, at) = node(Course::DONE).await;
    assert_eq!(run(&at, ["balancer", "status"]).await.text(), "the balancer is off\n");
    assert_eq!(run(&at, ["balancer", "on"]).await.text(), "the balancer is on\n");
    let status = run(&at, "balancer status --output json".split(' ')).await.json();
    assert_eq!(status, [json!({ "enabled": true })]);
    run(&at, ["balancer", "off"]).await.text();
    assert_eq!(run(&at, ["balancer", "status"]).await.text(), "the balancer is off\n");
}
