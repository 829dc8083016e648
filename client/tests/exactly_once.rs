//! A write takes effect once, however often it is sent.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use common::{CLUSTER_TIME_MS, Proxy, Running, eventually};
use futures::future::join_all;
use raft_kv_client::{Error, RaftKVClient, Version};
use raft_kv_proto::{
    status_with_detail,
    v1::{InvalidArgument, error_detail::Detail},
};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Status};

/// A leader behind a network that can fail.
async fn leader() -> (Running, Proxy, RaftKVClient) {
    let node = Running::start().await;
    let proxy = Proxy::before(node.address).await;
    node.node.route_all_to(&proxy.endpoint());
    let client = RaftKVClient::new(proxy.endpoint()).await.unwrap();
    (node, proxy, client)
}

fn put(client: &RaftKVClient, key: &'static str) -> JoinHandle<Result<Version, Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.put(key, "v").await })
}

fn expired() -> Status {
    let detail = InvalidArgument { field: "not_after".into(), limit: "a time to come".into() };
    let detail = Detail::InvalidArgument(detail);
    status_with_detail(Code::InvalidArgument, "it came after its time", detail)
}

#[tokio::test]
async fn writes_in_flight_when_the_connection_breaks_are_sent_again_and_take_effect_once() {
    let (node, proxy, client) = leader().await;
    node.node.hold("k");
    let writes: Vec<_> = (0..10).map(|_| put(&client, "k")).collect();
    eventually("all have come in", || node.node.onces().len() == 10).await;
    proxy.cut();
    eventually("all have come in again", || node.node.onces().len() == 20).await;
    node.node.release("k");
    let versions = join_all(writes).await.into_iter().map(|version| version.unwrap().unwrap());
    let mut versions: Vec<u64> = versions.map(|version| version.0).collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=10).collect::<Vec<_>>(), "each has a result of its own");
    assert_eq!(node.node.store.effects(), 10);
    let mut onces = node.node.onces();
    onces.sort_by_key(|once| once.sequence);
    for pair in onces.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

#[tokio::test]
async fn a_comparison_that_is_sent_again_does_not_fail_because_of_itself() {
    let (node, proxy, client) = leader().await;
    node.node.hold("k");
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.compare_and_put("k", Version::ABSENT, "v").await }
    });
    eventually("it has come in", || node.node.store.has("k")).await;
    proxy.cut();
    node.node.release("k");
    assert_eq!(write.await.unwrap().unwrap(), Version(1));
    let error = client.compare_and_put("k", Version::ABSENT, "v").await.unwrap_err();
    assert!(matches!(error, Error::VersionMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn writes_carry_a_session_numbers_from_one_and_the_clusters_time() {
    let (node, _proxy, client) = leader().await;
    let other = RaftKVClient::new(node.endpoint()).await.unwrap();
    client.put("k", "v").await.unwrap();
    client.clone().delete("k").await.unwrap();
    other.apply("k", "x").await.unwrap();
    let onces = node.node.onces();
    assert_eq!(onces[0].session, onces[1].session);
    assert_ne!(onces[0].session, onces[2].session);
    let sequences: Vec<u64> = onces.iter().map(|once| once.sequence).collect();
    assert_eq!(sequences, [1, 2, 1]);
    for once in onces {
        // The request timeout of 10 s and 30 s more.
        let validity = once.not_after_ms - CLUSTER_TIME_MS;
        assert!((40_000..60_000).contains(&validity), "{validity}");
    }
}

#[tokio::test]
async fn only_writes_below_all_outstanding_ones_are_acknowledged() {
    let (node, _proxy, client) = leader().await;
    let acked_below = async || {
        client.put("look", "v").await.unwrap();
        node.node.onces().last().unwrap().acked_below
    };
    node.node.hold("first");
    let first = put(&client, "first");
    eventually("the first has come in", || node.node.onces().len() == 1).await;
    node.node.hold("second");
    let second = put(&client, "second");
    eventually("the second has come in", || node.node.onces().len() == 2).await;
    // Those that look end before both.
    assert_eq!(acked_below().await, 1);
    node.node.release("second");
    second.await.unwrap().unwrap();
    assert_eq!(acked_below().await, 1);
    node.node.release("first");
    first.await.unwrap().unwrap();
    assert_eq!(acked_below().await, 5);
    assert_eq!(acked_below().await, 6);
}

#[tokio::test]
async fn a_write_whose_future_is_dropped_is_no_longer_outstanding() {
    let (node, _proxy, client) = leader().await;
    node.node.hold("k");
    let write = put(&client, "k");
    eventually("it has come in", || node.node.onces().len() == 1).await;
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    node.node.release("k");
    client.put("other", "v").await.unwrap();
    assert_eq!(node.node.onces()[1].acked_below, 2);
}

#[tokio::test]
async fn a_write_that_came_too_late_is_reported_as_it_is_known() {
    let (node, _proxy, client) = leader().await;
    node.node.fail_next([expired()]);
    let error = client.put("k", "v").await.unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument { field, .. } if field == "not_after"),
        "{error:?}"
    );
    // The first attempt may have been carried out.
    node.node.fail_next([Status::unavailable("it stops"), expired()]);
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_node_that_is_silent_and_comes_back_answers_in_the_end() {
    let (node, proxy, client) = leader().await;
    proxy.hang();
    let mut write = put(&client, "k");
    // Longer than an attempt may take.
    timeout(Duration::from_millis(1500), &mut write).await.unwrap_err();
    proxy.go_on();
    write.await.unwrap().unwrap();
    assert_eq!(node.node.store.effects(), 1);
}
