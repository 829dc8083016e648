//! Requests find the leaders of their shards, and go on when those change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    Node, Proxy, ROUTING_KEY, Running, SLOTS, Store, dead_endpoint, eventually, not_leader,
};
use futures::future::{join_all, try_join_all};
use raft_kv_client::{Error, RaftKVClient};
use raft_kv_proto::v1::{ShardRoute, SlotRange};
use tokio::time::sleep;
use tonic::Status;

/// Well above an attempt's time, well below the request timeout.
const SOON: Duration = Duration::from_secs(5);

/// Nodes that store the same.
async fn cluster(nodes: usize) -> Vec<Running> {
    let store = Arc::<Store>::default();
    let start = (0..nodes).map(|_| async {
        Running::start_on(Node::of(&store), "127.0.0.1:0".parse().unwrap()).await
    });
    join_all(start).await
}

/// From now on `nodes[leader]` leads, at `address`, and all know it.
fn lead(nodes: &[Running], leader: usize, address: &str) {
    for (index, node) in nodes.iter().enumerate() {
        node.node.route_all_to(address);
        node.node.follow((index != leader).then_some(address));
    }
}

fn shard(name: &str, slots: std::ops::Range<u32>, address: &str) -> ShardRoute {
    ShardRoute {
        name: name.into(),
        slots: vec![SlotRange { start: slots.start, end: slots.end }],
        leader: "a node".into(),
        address: address.into(),
    }
}

#[tokio::test]
async fn each_key_goes_straight_to_the_leader_of_its_shard() {
    let nodes = cluster(3).await;
    let half = SLOTS / 2;
    for node in &nodes {
        node.node.route(vec![
            shard("shard_0", 0..half, &nodes[1].endpoint()),
            shard("shard_1", half..SLOTS, &nodes[2].endpoint()),
        ]);
    }
    let client = RaftKVClient::new(nodes[0].endpoint()).await.unwrap();
    let keys: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    for key in &keys {
        client.put(key, "v").await.unwrap();
        client.get(key).await.unwrap().unwrap();
    }
    let slot = |key: &String| raft_kv_proto::slot_of(key.as_bytes(), SLOTS);
    let low = keys.iter().filter(|key| slot(key) < half).count();
    assert_eq!(nodes[0].node.requests(), 0);
    assert_eq!(nodes[1].node.direct_requests(), low * 2);
    assert_eq!(nodes[2].node.direct_requests(), (keys.len() - low) * 2);
    assert_eq!(nodes[0].node.routings(), 1);
}

#[tokio::test]
async fn a_node_without_routing_is_asked_to_forward() {
    let nodes = cluster(1).await;
    let client = RaftKVClient::new(nodes[0].endpoint()).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
    assert_eq!((nodes[0].node.requests(), nodes[0].node.direct_requests()), (2, 0));
}

#[tokio::test]
async fn a_redirect_is_followed_at_once_and_remembered() {
    let nodes = cluster(2).await;
    lead(&nodes, 0, &nodes[0].endpoint());
    let client = RaftKVClient::new(nodes[0].endpoint()).await.unwrap();
    client.put("k", "v").await.unwrap();
    let asked = nodes[0].node.requests();
    nodes[0].node.follow(Some(&nodes[1].endpoint()));
    nodes[1].node.follow(None);
    for _ in 0..5 {
        client.put("k", "v").await.unwrap();
    }
    assert_eq!(nodes[0].node.requests(), asked + 1);
    assert_eq!(nodes[1].node.direct_requests(), 5);
    assert_eq!(nodes[0].node.routings() + nodes[1].node.routings(), 1);
}

#[tokio::test]
async fn a_redirect_to_an_unknown_shard_is_followed_without_mixing_shards_up() {
    let nodes = cluster(2).await;
    nodes[0].node.route(vec![shard("old", 0..SLOTS, &nodes[0].endpoint())]);
    let client = RaftKVClient::new(nodes[0].endpoint()).await.unwrap();
    // The redirect names shard_0, which the client's table does not have.
    nodes[0].node.fail_next([not_leader(&nodes[1].endpoint())]);
    client.put("k", "v").await.unwrap();
    assert_eq!(nodes[1].node.direct_requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_when_the_leader_dies_is_carried_out_by_the_next() {
    let nodes = cluster(3).await;
    let proxy = Proxy::before(nodes[0].address).await;
    lead(&nodes, 0, &proxy.endpoint());
    let client = RaftKVClient::new([nodes[1].endpoint(), nodes[2].endpoint()]).await.unwrap();
    client.put("before", "v").await.unwrap();
    nodes[0].node.hold("k");
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.apply("k", "x").await }
    });
    eventually("the write has come in", || nodes[0].node.requests() == 2).await;
    proxy.kill();
    lead(&nodes, 2, &nodes[2].endpoint());
    let started = Instant::now();
    assert_eq!(write.await.unwrap().unwrap(), "applied x");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(nodes[0].node.store.effects(), 2, "one each for both writes");
    // By way of another node, if the next one was not yet known to lead.
    let again = [nodes[1].node.onces(), nodes[2].node.onces()].concat();
    assert_eq!(*again.last().unwrap(), nodes[0].node.onces()[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_is_got_around_when_another_leads() {
    let nodes = cluster(3).await;
    let proxy = Proxy::before(nodes[0].address).await;
    lead(&nodes, 0, &proxy.endpoint());
    let client = RaftKVClient::new([proxy.endpoint(), nodes[1].endpoint()]).await.unwrap();
    client.put("k", "v").await.unwrap();
    proxy.hang();
    // Another is elected while the write waits.
    let write = client.put("k", "w");
    lead(&nodes, 2, &nodes[2].endpoint());
    let started = Instant::now();
    write.await.unwrap();
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    let started = Instant::now();
    for _ in 0..100 {
        client.put("k", "x").await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    // What the hanging node was sent takes no effect a second time.
    let effects = nodes[0].node.store.effects();
    nodes[0].node.follow(None);
    proxy.go_on();
    eventually("the node reads on", || nodes[0].node.onces().len() == 2).await;
    assert_eq!(nodes[0].node.store.effects(), effects);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_only_others_reach_is_asked_through_them() {
    let nodes = cluster(2).await;
    let dead = dead_endpoint().await;
    // Both say that a node leads that the client cannot reach.
    lead(&nodes, 2, &dead);
    let client = RaftKVClient::new([nodes[0].endpoint(), nodes[1].endpoint()]).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
    assert_eq!(nodes[0].node.direct_requests() + nodes[1].node.direct_requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_that_meet_a_dead_leader_refresh_one_at_a_time() {
    let nodes = cluster(2).await;
    let proxy = Proxy::before(nodes[0].address).await;
    lead(&nodes, 0, &proxy.endpoint());
    let client = RaftKVClient::new(nodes[1].endpoint()).await.unwrap();
    client.put("k", "v").await.unwrap();
    // A table that was just fetched is not fetched anew.
    sleep(Duration::from_millis(50)).await;
    let routings = nodes[1].node.routings();
    nodes[1].node.hold(ROUTING_KEY);
    proxy.kill();
    let tasks = (0..100).map(|number| {
        let client = client.clone();
        tokio::spawn(async move { client.put(format!("k{number}"), "v").await.map(drop) })
    });
    let tasks: Vec<_> = tasks.collect();
    eventually("a refresh is under way", || nodes[1].node.routings() > routings).await;
    lead(&nodes, 1, &nodes[1].endpoint());
    nodes[1].node.release(ROUTING_KEY);
    for written in try_join_all(tasks).await.unwrap() {
        written.unwrap();
    }
    assert_eq!(nodes[1].node.most_routings_at_once(), 1);
    let refreshes = nodes[1].node.routings() - routings;
    assert!(refreshes < 10, "{refreshes} refreshes");
}

#[tokio::test]
async fn a_write_waits_until_a_leader_is_elected() {
    let nodes = cluster(1).await;
    let at = nodes[0].endpoint();
    lead(&nodes, 0, &at);
    let client = RaftKVClient::new(&at).await.unwrap();
    nodes[0].node.fail_next((0..20).map(|_| not_leader("")));
    client.put("k", "v").await.unwrap();
    assert_eq!(nodes[0].node.requests(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_share_one_stream() {
    let nodes = cluster(1).await;
    lead(&nodes, 0, &nodes[0].endpoint());
    let client = RaftKVClient::new(nodes[0].endpoint()).await.unwrap();
    let tasks = (0..100).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            let key = format!("k{number}");
            client.put(&key, &key).await.unwrap();
            assert_eq!(client.get(&key).await.unwrap().unwrap(), key);
            assert_eq!(client.apply(&key, &key).await.unwrap(), format!("applied {key}"));
            assert_eq!(client.query(&key, &key).await.unwrap(), format!("asked {key}"));
            assert!(client.delete(&key).await.unwrap());
        })
    });
    try_join_all(tasks).await.unwrap();
    assert_eq!(nodes[0].node.requests(), 500);
    assert_eq!(nodes[0].node.streams(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_wait_for_room_until_their_deadline() {
    let nodes = cluster(1).await;
    let proxy = Proxy::before(nodes[0].address).await;
    lead(&nodes, 0, &proxy.endpoint());
    let builder = RaftKVClient::builder().endpoints(proxy.endpoint());
    let client = builder.request_timeout(Duration::from_millis(500)).connect().await.unwrap();
    client.put("k", "v").await.unwrap();
    proxy.hang();
    // More than the queue holds and the network takes.
    let value = vec![7; 10_000];
    let tasks = (0..10_000).map(|_| {
        let (client, value) = (client.clone(), value.clone());
        tokio::spawn(async move { client.put("k", value).await })
    });
    let started = Instant::now();
    for written in join_all(tasks).await {
        let error = written.unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    proxy.go_on();
    let deadline = Instant::now() + SOON;
    while let Err(error) = client.put("k", "v").await {
        assert!(Instant::now() < deadline, "{error:?}");
    }
}

#[tokio::test]
async fn a_request_too_large_to_share_a_stream_goes_alone() {
    let nodes = cluster(1).await;
    lead(&nodes, 0, &nodes[0].endpoint());
    let client = RaftKVClient::new(nodes[0].endpoint()).await.unwrap();
    client.put("k", vec![7; 1 << 20]).await.unwrap();
    client.apply("k", vec![7; 1 << 20]).await.unwrap();
    assert_eq!((nodes[0].node.direct_requests(), nodes[0].node.streams()), (2, 0));
    assert_eq!(client.get("k").await.unwrap().unwrap().len(), 1 << 20);
    assert_eq!(nodes[0].node.streams(), 1);
}

#[tokio::test]
async fn a_doubtful_write_is_not_said_to_have_had_no_effect() {
    let nodes = cluster(1).await;
    lead(&nodes, 0, &nodes[0].endpoint());
    let builder = RaftKVClient::builder().endpoints(nodes[0].endpoint());
    let client = builder.request_timeout(Duration::from_millis(200)).connect().await.unwrap();
    let no_leader = (0..1000).map(|_| not_leader(""));
    nodes[0].node.fail_next([Status::deadline_exceeded("unknown")].into_iter().chain(no_leader));
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { message } if message == "unknown"), "{error:?}");
}
