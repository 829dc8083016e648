//! Keys with a time to live, on shards that are otherwise idle: nothing but the reads
//! themselves moves their time on.

use std::time::{Duration, Instant};

use raft_kv_client::{Error, Operation, Outcome, PutOptions, RaftKVClient, Version};
use raft_kv_proto::v1::{self, PutRequest, error_detail::Detail};
use raft_kv_tests::{Node, NodeOptions, cli, eventually, grpc, http, shared_node};
use tonic::Code;

/// Long enough not to be over before it is looked at.
const TTL: Duration = Duration::from_secs(1);
/// Within this a key whose time is over is gone, on a busy machine.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// A shard's time is further behind than a read that depends on it bears.
const LAG: Duration = Duration::from_millis(600);
const LONG: Duration = Duration::from_secs(3600);

fn idle_node() -> Node {
    NodeOptions::new().shards(1).start()
}

async fn applied(client: &RaftKVClient) -> u64 {
    client.status().await.unwrap().shards[0].applied_index
}

#[tokio::test]
async fn a_key_is_gone_when_its_time_is_over_although_nothing_is_written() {
    let node = idle_node();
    let client = node.client().await;
    client.put("stays", "v").await.unwrap();
    let began = Instant::now();
    let version = client.put_with_ttl("k", "v", TTL).await.unwrap();
    let found = client.get_with_version("k").await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version), (&b"v"[..], version));
    assert!(found.ttl.is_some_and(|ttl| ttl <= TTL), "{found:?}");
    assert_eq!(client.get_with_version("stays").await.unwrap().unwrap().ttl, None);
    eventually("the key to be gone", GONE_WITHIN, async || {
        client.get("k").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(began.elapsed() >= TTL - Duration::from_millis(5), "{:?}", began.elapsed());
    assert!(!client.delete("k").await.unwrap(), "it did not exist any more");
    client.compare_and_put("k", Version::ABSENT, "anew").await.unwrap();
    assert_eq!(client.get("stays").await.unwrap().unwrap(), "v");
}

#[tokio::test]
async fn a_scan_does_not_show_what_is_over() {
    let node = idle_node();
    let client = node.client().await;
    client.put("a", "v").await.unwrap();
    client.put_with_ttl("b", "v", TTL).await.unwrap();
    client.put_with_ttl("c", "v", LONG).await.unwrap();
    let keys = async || {
        let pairs = client.scan("").collect().await.unwrap();
        pairs.into_iter().map(|pair| pair.key).collect::<Vec<_>>()
    };
    assert_eq!(keys().await, ["a", "b", "c"]);
    let left = eventually("a scan with less in it", GONE_WITHIN, async || {
        Some(keys().await).filter(|keys| keys.len() < 3)
    })
    .await;
    assert_eq!(left, ["a", "c"]);
}

#[tokio::test]
async fn only_a_read_that_depends_on_the_time_costs_an_entry() {
    let node = idle_node();
    let client = node.client().await;
    client.put("plain", "v").await.unwrap();
    client.put_with_ttl("k", "v", LONG).await.unwrap();
    let before = applied(&client).await;
    let idle = Instant::now();
    eventually("the shard's time to be old", GONE_WITHIN, async || {
        (idle.elapsed() > LAG).then_some(())
    })
    .await;
    for _ in 0..20 {
        client.get("plain").await.unwrap();
        client.get("absent").await.unwrap();
        client.get_stale("k").await.unwrap();
    }
    assert_eq!(client.scan("").collect().await.unwrap().len(), 2, "what it shows stays for long");
    assert_eq!(applied(&client).await, before);
    let ttl = client.get_with_version("k").await.unwrap().unwrap().ttl.unwrap();
    assert!(ttl <= LONG - LAG, "{ttl:?}");
    assert_eq!(applied(&client).await, before + 1);
}

#[tokio::test]
async fn a_put_without_a_time_to_live_makes_a_key_stay() {
    let node = idle_node();
    let client = node.client().await;
    let options = PutOptions::new().ttl(TTL).if_absent();
    client.put_with("k", "v", options).await.unwrap();
    let refused = client.put_with("k", "v", options).await;
    assert!(matches!(refused, Err(Error::VersionMismatch { .. })), "{refused:?}");
    client.put_with_ttl("gone", "v", TTL).await.unwrap();
    client.put("k", "w").await.unwrap();
    eventually("the other key to be gone", GONE_WITHIN, async || {
        client.get("gone").await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(client.get_with_version("k").await.unwrap().unwrap().ttl, None);
}

#[tokio::test]
async fn a_batch_puts_and_gets_times_to_live() {
    let node = shared_node();
    let client = node.client().await;
    let put = Operation::put_with("expiry/batch", "v", PutOptions::new().ttl(LONG));
    let results = client.batch([put, Operation::get("expiry/batch")]).await.unwrap();
    match &results[1] {
        Ok(Outcome::Get(Some(found))) => assert!(found.ttl.is_some(), "{found:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_time_goes_on_through_a_restart() {
    let mut node = idle_node();
    node.client().await.put_with_ttl("k", "v", TTL).await.unwrap();
    node.kill();
    node.restart();
    let client = node.client().await;
    eventually("the key to be gone", GONE_WITHIN, async || {
        client.get("k").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_time_at_all_is_refused_by_name() {
    let node = shared_node();
    let mut kv = grpc::kv(node.channel().await);
    let put = |ttl_ms| PutRequest {
        key: "expiry/zero".into(),
        ttl_ms: Some(ttl_ms),
        ..PutRequest::default()
    };
    let status = kv.put(put(0)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(matches!(grpc::detail(&status), Detail::InvalidArgument(i) if i.field == "ttl_ms"));
    // For ever, and longer.
    kv.put(put(u64::MAX)).await.unwrap();
    let get = v1::GetRequest { key: "expiry/zero".into(), ..Default::default() };
    let found = kv.get(get).await.unwrap().into_inner();
    assert!(found.found && found.ttl_ms.is_some_and(|ttl_ms| ttl_ms > u64::MAX / 2), "{found:?}");
}

#[test]
fn over_http_a_time_has_a_unit() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"expiry/http");
    let put = connection.request("PUT", &format!("{path}?ttl=30s"), b"v").unwrap();
    assert_eq!(put.status, 200, "{}", put.text());
    let get = connection.get(&path).unwrap();
    let ttl_ms: u64 = get.header("raftkv-ttl-ms").unwrap().parse().unwrap();
    assert!((1..=30_000).contains(&ttl_ms), "{ttl_ms}");
    connection.request("PUT", &path, b"v").unwrap();
    assert_eq!(connection.get(&path).unwrap().header("raftkv-ttl-ms"), None);
    for nonsense in ["", "30", "0s", "-1s", "1.5s", "s", "30%20s"] {
        let put = connection.request("PUT", &format!("{path}?ttl={nonsense}"), b"no").unwrap();
        assert_eq!(put.status, 400, "{nonsense}: {}", put.text());
        assert!(put.error().1.contains("30s"), "{}", put.text());
    }
    assert_eq!(connection.get(&path).unwrap().body, b"v");
}

#[test]
fn times_to_live_work_from_a_shell() {
    let node = shared_node();
    let run = |arguments: &[&str]| cli::run(&node.endpoint(), arguments);
    assert_eq!(run(&["put", "expiry/cli", "v", "--ttl", "1h"]).code, 0);
    let found = run(&["--output", "json", "get", "expiry/cli"]).json();
    let ttl_ms = found[0]["ttl_ms"].as_u64().unwrap();
    assert!((1..=3_600_000).contains(&ttl_ms), "{ttl_ms}");
    for nonsense in ["0s", "5", "1 h"] {
        let refused = run(&["put", "expiry/cli", "no", "--ttl", nonsense]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains("30s"), "{refused:?}");
    }
    assert_eq!(run(&["put", "expiry/cli", "w"]).code, 0);
    let found = run(&["--output", "json", "get", "expiry/cli"]).json();
    assert!(found[0].get("ttl_ms").is_none(), "{found:?}");
}
