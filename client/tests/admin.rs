//! Operations on the cluster, against nodes in this process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use common::{Course, Node, Running, Store};
use raft_kv_client::{Change, Error, OperationState, RaftKVClient};
use tonic::Status;

fn split(shard: &str) -> Change {
    let new_shards = vec![shard.to_owned(), "new".to_owned()];
    Change::SplitShard { shard: shard.to_owned(), new_shards }
}

/// Two nodes of one cluster, and a client that knows both.
async fn cluster() -> (Running, Running, RaftKVClient) {
    let store = Arc::new(Store::default());
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let first = Running::start_on(Node::of(&store), anywhere).await;
    let second = Running::start_on(Node::of(&store), anywhere).await;
    let endpoints = vec![first.endpoint(), second.endpoint()];
    let client = RaftKVClient::builder()
        .endpoints(endpoints)
        .request_timeout(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    (first, second, client)
}

#[tokio::test]
async fn every_change_is_asked_for_as_it_is_meant() {
    let (node, _, client) = cluster().await;
    let (a, b, c) = (|| "a".to_owned(), || "b".to_owned(), || "c".to_owned());
    for (change, description) in [
        (Change::CreateShard { shard: a(), nodes: vec![b(), c()] }, "create a on b,c"),
        (Change::DeleteShard { shard: a(), force: true }, "delete a, force true"),
        (Change::MigrateShard { shard: a(), from: b(), to: c() }, "migrate a from b to c"),
        (split("a"), "split a into a,new"),
        (Change::MergeShards { sources: vec![a(), b()], target: c() }, "merge a,b into c"),
        (Change::AddReplica { shard: a(), node: b() }, "add b to a"),
        (Change::RemoveReplica { shard: a(), node: b() }, "remove b from a"),
        (Change::AddNode { node: a(), address: b() }, "add a at b"),
        (Change::RemoveNode { node: a() }, "remove a"),
    ] {
        let operation = client.admin().change(change).await.unwrap();
        assert_eq!(operation.description, description);
        assert_eq!(operation.state, OperationState::Done);
        assert_eq!(operation.ended_unix_ms, Some(1_003_000));
    }
    client.add_replica("a", "b").await.unwrap();
    client.remove_replica("a", "b").await.unwrap();
    assert_eq!(client.transfer_leader("a", "b").await.unwrap(), 4);
    assert_eq!(node.node.store.operations.descriptions().len(), 11);
}

#[tokio::test]
async fn an_operation_is_followed_until_it_is_done() {
    let (node, _, client) = cluster().await;
    node.node.store.operations.next(Course { found_running: 3, ends: "done" });
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let admin = client.admin().on_progress(move |operation| {
        tell.lock().unwrap().push(operation.state);
    });
    let operation = admin.change(split("a")).await.unwrap();
    assert_eq!((operation.id, operation.state), (1, OperationState::Done));
    let (running, done) = (OperationState::Running, OperationState::Done);
    assert_eq!(*told.lock().unwrap(), [running, running, running, done]);
}

#[tokio::test]
async fn a_request_that_is_sent_again_begins_nothing_new() {
    let (node, _, client) = cluster().await;
    node.node.fail_next([Status::unavailable("it began, and then the node went")]);
    let operation = client.admin().change(split("a")).await.unwrap();
    assert_eq!((operation.id, operation.state), (1, OperationState::Done));
    assert_eq!(node.node.store.operations.descriptions(), ["split a into a,new"]);
    // The same again is another request.
    assert_eq!(client.admin().change(split("a")).await.unwrap().id, 2);
}

#[tokio::test]
async fn an_operation_is_followed_at_another_node_when_one_fails() {
    let (first, second, client) = cluster().await;
    let operations = &second.node.store.operations;
    operations.next(Course { found_running: 2, ends: "done" });
    let operation = client.admin().begin(split("a")).await.unwrap();
    assert_eq!(operation.state, OperationState::Running);
    first.stop().await;
    let operation = client.admin().wait(operation.id).await.unwrap();
    assert_eq!(operation.state, OperationState::Done);
}

#[tokio::test]
async fn an_operation_is_followed_through_a_time_without_answers() {
    let node = Running::start().await;
    let client = RaftKVClient::builder()
        .endpoints(node.endpoint())
        .request_timeout(Duration::from_millis(100))
        .connect()
        .await
        .unwrap();
    node.node.store.operations.next(Course { found_running: 1, ends: "done" });
    let (faulty, failed) = (node.node.clone(), Once::new());
    let admin = client.admin().on_progress(move |_| {
        // More than all attempts of one request.
        let faults = || faulty.fail_next(vec![Status::unavailable("no quorum"); 12]);
        failed.call_once(faults);
    });
    let operation = admin.change(split("a")).await.unwrap();
    assert_eq!(operation.state, OperationState::Done);
    assert!(node.node.requests() > 12);
}

#[tokio::test]
async fn a_node_that_has_not_heard_of_an_operation_yet_is_asked_again() {
    let (node, _, client) = cluster().await;
    node.node.store.operations.next(Course { found_running: 1, ends: "done" });
    let (behind, once) = (node.node.clone(), Once::new());
    let admin = client.admin().on_progress(move |_| {
        once.call_once(|| behind.fail_next([Status::not_found("there is no operation 1")]));
    });
    let operation = admin.change(split("a")).await.unwrap();
    assert_eq!(operation.state, OperationState::Done);
}

#[tokio::test]
async fn one_that_was_rolled_back_is_an_error_with_its_reason() {
    let (node, _, client) = cluster().await;
    node.node.store.operations.next(Course { found_running: 1, ends: "rolled_back" });
    let error = client.admin().change(split("a")).await.unwrap_err();
    let message = "operation 1 (split a into a,new) was rolled back: node4 is down";
    assert_eq!(error.to_string(), message);
    assert!(matches!(error, Error::RolledBack { operation } if operation.id == 1));
}

#[tokio::test]
async fn one_that_does_not_end_is_left_when_the_time_is_up() {
    let (node, _, client) = cluster().await;
    node.node.store.operations.next(Course::ENDLESS);
    let admin = client.admin().timeout(Duration::from_millis(300));
    let error = admin.change(split("a")).await.unwrap_err();
    let Error::StillRunning { operation } = error else { panic!("{error}") };
    assert_eq!((operation.id, operation.step.as_str()), (1, "move"));

    let cancelled = client.admin().cancel(1).await.unwrap();
    assert_eq!(cancelled.state, OperationState::RolledBack);
}

#[tokio::test]
async fn what_does_not_exist_and_what_stands_in_the_way_are_told_at_once() {
    let (node, _, client) = cluster().await;
    let error = client.admin().change(split("missing")).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_eq!(error.to_string(), "there is no shard missing");
    let error = client.admin().change(split("busy")).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    assert_eq!(error.to_string(), "operation 9 is under way");
    assert_eq!(node.node.requests(), 2, "nothing is asked twice");
    for error in [client.admin().operation(5).await, client.admin().wait(5).await] {
        assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");
    }
    let error = client.transfer_leader("missing", "node1").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn the_cluster_is_told_as_it_is() {
    let (_node, _, client) = cluster().await;
    client.admin().change(split("a")).await.unwrap();
    client.admin().set_balancer(true).await.unwrap();
    let cluster = client.admin().cluster().await.unwrap();
    assert_eq!((cluster.cluster_id.as_str(), cluster.version, cluster.slots), ("6f3a", 12, 256));
    assert!(cluster.balancer);
    assert_eq!(cluster.unowned_slots.len(), 1);
    let nodes: Vec<&str> = cluster.nodes.iter().map(|node| node.state.as_str()).collect();
    assert_eq!(nodes, ["up", "up", "down"]);
    assert!(cluster.nodes[2].draining && cluster.nodes[0].meta);
    assert_eq!(cluster.shards[0].leader.as_deref(), Some("node1"));
    assert_eq!(cluster.shards[0].operation, Some(7));
    assert_eq!((&cluster.shards[1].leader, cluster.shards[1].operation), (&None, None));
    assert_eq!(cluster.operations[0].description, "split a into a,new");
}
