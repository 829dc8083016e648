//! The client library against a node in this process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{HANGING_KEY, Running, dead_endpoint, not_leader};
use futures::{TryStreamExt, future::try_join_all};
use raft_kv_client::{Error, Operation, Outcome, PluginErrorKind, RaftKVClient, Version};
use tokio::{io::AsyncReadExt, net::TcpListener};
use tonic::Status;

async fn node_and_client() -> (Running, RaftKVClient) {
    let node = Running::start().await;
    let client = RaftKVClient::new(node.endpoint()).await.unwrap();
    (node, client)
}

/// A client that waits for `timeout` at most.
async fn impatient(endpoint: String, timeout: Duration) -> RaftKVClient {
    let builder = RaftKVClient::builder().endpoints(endpoint);
    builder.request_timeout(timeout).connect().await.unwrap()
}

#[tokio::test]
async fn a_key_is_put_read_and_deleted() {
    let (_node, client) = node_and_client().await;
    assert_eq!(client.get("key1").await.unwrap(), None);
    let first = client.put("key1", "value1").await.unwrap();
    assert_eq!(client.get("key1").await.unwrap().unwrap(), "value1");
    let second = client.put("key1", "").await.unwrap();
    assert!(second > first);
    let found = client.get_with_version("key1").await.unwrap().unwrap();
    assert_eq!((found.value, found.version), (Bytes::new(), second));
    let stale = client.get_stale("key1").await.unwrap();
    assert_eq!(stale.unwrap().version, second);
    assert!(client.delete("key1").await.unwrap());
    assert!(!client.delete("key1").await.unwrap());
    assert_eq!(client.get("key1").await.unwrap(), None);
}

#[tokio::test]
async fn keys_and_values_may_be_of_any_bytes_type() {
    let (_node, client) = node_and_client().await;
    let owned = String::from("owned");
    client.put(&owned, owned.as_str()).await.unwrap();
    client.put(owned.clone(), owned.clone()).await.unwrap();
    client.put(b"array", [0xff, 0]).await.unwrap();
    client.put(vec![1, 2], &[3, 4][..]).await.unwrap();
    let bytes = Bytes::from_static(b"bytes");
    client.put(&bytes, bytes.clone()).await.unwrap();
    assert_eq!(client.get(&owned).await.unwrap().unwrap(), "owned");
    assert_eq!(client.get("array").await.unwrap().unwrap(), &[0xff, 0][..]);
    assert_eq!(client.get([1, 2]).await.unwrap().unwrap(), &[3, 4][..]);
}

#[tokio::test]
async fn a_compare_and_put_writes_at_the_expected_version_only() {
    let (_node, client) = node_and_client().await;
    let version = client.compare_and_put("k", Version::ABSENT, "1").await.unwrap();
    let error = client.compare_and_put("k", 0, "2").await.unwrap_err();
    assert!(matches!(&error, Error::VersionMismatch { .. }), "{error:?}");
    assert!(error.to_string().contains("the version is 1"), "{error}");
    client.compare_and_put("k", version, "3").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "3");
}

#[tokio::test]
async fn the_largest_value_goes_both_ways() {
    let (_node, client) = node_and_client().await;
    let value = Bytes::from(vec![7; 8 << 20]);
    client.put("k", &value).await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), value);
    let pairs = client.scan("k").collect().await.unwrap();
    assert_eq!(pairs[0].value, value);
}

#[tokio::test]
async fn a_scan_goes_through_all_pages_in_order() {
    let (node, client) = node_and_client().await;
    let mut expected = Vec::new();
    for number in 0..9 {
        let key = format!("a{number}");
        client.put(&key, "v").await.unwrap();
        expected.push(key);
    }
    client.put("b", "not in the prefix").await.unwrap();

    let pairs = client.scan("a").collect().await.unwrap();
    let keys: Vec<&Bytes> = pairs.iter().map(|pair| &pair.key).collect();
    assert_eq!(keys, expected.iter().collect::<Vec<_>>());
    assert_eq!(pairs[8].version, Version(9));

    let streamed: Vec<_> = client.scan("a").stream().try_collect().await.unwrap();
    assert_eq!(streamed, pairs);
    let limited = client.scan("a").limit(7).collect().await.unwrap();
    assert_eq!(limited, pairs[..7]);
    let rest = client.scan("a").after(&limited[6].key).stale();
    assert_eq!(rest.collect().await.unwrap(), pairs[7..]);
    assert_eq!(client.scan("").collect().await.unwrap().len(), 10);
    assert!(client.scan("nothing").after("n").collect().await.unwrap().is_empty());

    let asked = node.node.requests();
    assert!(client.scan("a").limit(0).collect().await.unwrap().is_empty());
    assert_eq!(node.node.requests(), asked, "nothing need be asked for no pairs");
}

#[tokio::test]
async fn each_operation_of_a_batch_has_its_own_result() {
    let (_node, client) = node_and_client().await;
    let operations = [
        Operation::put("k", "1"),
        Operation::compare_and_put("k", 9, "2"),
        Operation::put("", "no key"),
        Operation::get("k"),
        Operation::get_stale("missing"),
        Operation::delete("k"),
    ];
    let results = client.batch(operations).await.unwrap();
    let [put, mismatch, invalid, get, missing, deleted] = &results[..] else {
        panic!("{results:?}");
    };
    assert!(matches!(put, Ok(Outcome::Put(Version(1)))), "{put:?}");
    assert!(matches!(mismatch, Err(Error::VersionMismatch { .. })), "{mismatch:?}");
    assert!(
        matches!(invalid, Err(Error::InvalidArgument { field, .. }) if field == "key"),
        "{invalid:?}"
    );
    assert!(matches!(get, Ok(Outcome::Get(Some(found))) if found.value == "1"), "{get:?}");
    assert!(matches!(missing, Ok(Outcome::Get(None))), "{missing:?}");
    assert!(matches!(deleted, Ok(Outcome::Delete(true))), "{deleted:?}");
}

#[tokio::test]
async fn any_plugin_is_commanded_and_asked() {
    let (_node, client) = node_and_client().await;
    assert_eq!(client.apply("k", "this").await.unwrap(), "applied this");
    assert_eq!(client.query("k", "that").await.unwrap(), "asked that");
    let error = client.apply("k", "refuse").await.unwrap_err();
    assert!(
        matches!(&error, Error::Plugin { kind: PluginErrorKind::Failed, code: 1, message }
            if message == "as told"),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_status_of_a_node_lists_its_shards() {
    let (_node, client) = node_and_client().await;
    let status = client.status().await.unwrap();
    assert_eq!(status.node_id, "node1");
    assert_eq!(status.shards.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_work_from_many_tasks_at_once() {
    let (_node, client) = node_and_client().await;
    let tasks = (0..100).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            let key = format!("k{number}");
            client.put(&key, &key).await.unwrap();
            assert_eq!(client.get(&key).await.unwrap().unwrap(), key);
            client.scan(&key).collect().await.unwrap();
        })
    });
    try_join_all(tasks).await.unwrap();
    assert_eq!(client.scan("k").collect().await.unwrap().len(), 100);
}

#[tokio::test]
async fn no_node_at_any_endpoint_is_a_connect_error() {
    let endpoints = [dead_endpoint().await, dead_endpoint().await];
    let error = RaftKVClient::new(endpoints.clone()).await.unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert!(message.contains(&endpoints.join(", ")), "{message}");
    let error = RaftKVClient::new("https://localhost:1").await.unwrap_err();
    assert!(matches!(error, Error::InvalidEndpoint { .. }), "{error:?}");
}

#[tokio::test]
async fn one_live_endpoint_is_enough() {
    let node = Running::start().await;
    let endpoints = format!("{},http://{}", dead_endpoint().await, node.endpoint());
    let client = RaftKVClient::new(endpoints).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "v");
}

#[tokio::test]
async fn the_first_live_endpoint_is_asked_first_and_the_next_when_it_stops() {
    let (first, second) = (Running::start().await, Running::start().await);
    let client = RaftKVClient::new([first.endpoint(), second.endpoint()]).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!((first.node.requests(), second.node.requests()), (1, 0));
    first.stop().await;
    client.put("k", "v").await.unwrap();
    assert!(second.node.has("k"));
}

#[tokio::test]
async fn a_write_waits_for_a_node_that_is_restarting() {
    let (node, client) = node_and_client().await;
    client.put("before", "v").await.unwrap();
    let address = node.address;
    let node = node.stop().await;
    let write = client.put("after", "v");
    let restart = Running::start_on(node, address);
    let (written, restarted) = tokio::join!(write, restart);
    assert_eq!(written.unwrap(), Version(2));
    assert_eq!(restarted.node.store.effects(), 2);
}

#[tokio::test]
async fn a_hint_to_the_leader_is_followed() {
    let (follower, client) = node_and_client().await;
    let leader = Running::start().await;
    follower.node.fail_next([not_leader(&leader.endpoint())]);
    client.put("k", "v").await.unwrap();
    assert!(leader.node.has("k"));
    assert!(!follower.node.has("k"));
}

#[tokio::test]
async fn a_write_is_sent_again_while_there_is_no_leader() {
    let (node, client) = node_and_client().await;
    node.node.fail_next([not_leader(""), not_leader("not an address")]);
    client.put("k", "v").await.unwrap();
    assert_eq!(node.node.requests(), 3);
}

#[tokio::test]
async fn reads_and_writes_are_sent_again_when_the_node_is_unavailable_or_full() {
    let (node, client) = node_and_client().await;
    let faults = || [Status::unavailable("busy"), Status::resource_exhausted("full")];
    node.node.fail_next(faults());
    assert_eq!(client.get("k").await.unwrap(), None);
    assert_eq!(node.node.requests(), 3);
    node.node.fail_next(faults());
    client.put("k", "v").await.unwrap();
    assert_eq!(node.node.requests(), 6);
    assert_eq!(node.node.store.effects(), 1);
}

#[tokio::test]
async fn a_batch_with_writes_is_sent_again_with_the_same_numbers() {
    let (node, client) = node_and_client().await;
    let operations = || [Operation::put("k", "v"), Operation::get("k"), Operation::delete("k")];
    client.batch(operations()).await.unwrap();
    node.node.fail_next([Status::unavailable("busy")]);
    client.batch(operations()).await.unwrap();
    assert_eq!(node.node.requests(), 3);
    let sequences = node.node.onces().iter().map(|once| once.sequence).collect::<Vec<_>>();
    assert_eq!(sequences, [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_another_attempt_cannot_mend_is_not_tried_again() {
    let (node, client) = node_and_client().await;
    node.node.fail_next([Status::internal("the disk is gone")]);
    let error = client.get("k").await.unwrap_err();
    assert!(matches!(error, Error::Other(_)), "{error:?}");
    let error = client.put("", "v").await.unwrap_err();
    assert_eq!(error.to_string(), "invalid key: a key has 1 byte at least");
    assert_eq!(node.node.requests(), 2);
}

#[tokio::test]
async fn a_request_without_answer_times_out() {
    let node = Running::start().await;
    let timeout = Duration::from_millis(50);
    let client = impatient(node.endpoint(), timeout).await;
    let error = client.get(HANGING_KEY).await.unwrap_err();
    assert!(matches!(&error, Error::Timeout { after, .. } if *after == timeout), "{error:?}");
    assert!(error.to_string().contains(&node.endpoint()), "{error}");
}

#[tokio::test]
async fn attempts_end_with_the_deadline_and_the_last_error() {
    let node = Running::start().await;
    let client = impatient(node.endpoint(), Duration::from_millis(700)).await;
    node.node.fail_next((0..1000).map(|_| not_leader("")));
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::NotLeader { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_write_is_an_unavailable_cluster() {
    // A node that closes its connections once most of a request has come in.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 1000];
            connection.read_exact(&mut request).await.unwrap();
        }
    });
    let client = impatient(endpoint, Duration::from_millis(500)).await;
    let error = client.put("k", vec![0; 1000]).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { message } if message.contains("broke")),
        "{error:?}"
    );
}
