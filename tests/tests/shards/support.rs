//! What these tests share: clusters that leave everything to the test, data that must
//! stay, and operations that end.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use raft_kv_client::RaftKVClient;
use raft_kv_tests::{Cluster, ClusterOptions, NodeOptions, eventually, http, wait_for};
use serde_json::Value;

/// No operation of these tests takes longer, even on a machine that does much else.
pub const OVER_WITHIN: Duration = Duration::from_secs(60);
/// Requests of clients may take so long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Slots of the clusters.
pub const SLOTS: u32 = 256;

/// The id of the node at a place.
pub fn id(place: usize) -> String {
    format!("node{}", place + 1)
}

/// Three nodes with so many shards, which change nothing by themselves.
pub fn three_nodes(shards: u32) -> Cluster {
    let cluster = ClusterOptions::new().node(NodeOptions::new().shards(shards)).start();
    stop_balancer(&cluster);
    cluster
}

/// Three nodes, and a fourth that joined.
pub fn four_nodes(shards: u32) -> Cluster {
    let mut cluster = three_nodes(shards);
    cluster.join(0);
    cluster.wait_until_ready();
    // Then it says so, which is a change of what the cluster knows.
    wait_for("the new node to have the plugin", OVER_WITHIN, || {
        let plugins = cluster.request(0, "GET", "/admin/plugin", "").json();
        (plugins["plugins"][0]["nodes"].as_array()?.len() == 4).then_some(())
    });
    cluster
}

/// From now on a cluster changes nothing by itself.
pub fn stop_balancer(cluster: &Cluster) {
    let answer = cluster.request(0, "PUT", "/admin/balancer", r#"{"enabled": false}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Asks a node for something that is done when it answers.
#[track_caller]
pub fn done(cluster: &Cluster, place: usize, method: &str, target: &str, body: &str) -> Value {
    let answer = cluster.request(place, method, target, body);
    let text = answer.text();
    assert_eq!(answer.status, 200, "{method} {target} {body}: {text}");
    let operation = answer.json();
    assert_eq!(operation["state"], "done", "{method} {target} {body}: {text}");
    operation
}

/// Begins an operation and does not wait for it; gives its number.
#[track_caller]
pub fn begun(cluster: &Cluster, place: usize, method: &str, target: &str, body: &str) -> u64 {
    let answer = cluster.request(place, method, &format!("{target}?timeout=0"), body);
    assert!(matches!(answer.status, 200 | 202), "{method} {target} {body}: {}", answer.text());
    answer.json()["id"].as_u64().unwrap()
}

/// An operation at its end. Whichever node runs is asked.
pub async fn ended(cluster: &Cluster, operation: u64) -> Value {
    eventually(format!("operation {operation} to end"), OVER_WITHIN, async || {
        let place = (0..cluster.size()).find(|place| cluster.node(*place).is_running())?;
        let mut node = http::Connection::open(cluster.node(place).address()).ok()?;
        let answer = node.get(&format!("/admin/operation/{operation}?timeout=1")).ok()?;
        let operation = (answer.status == 200).then(|| answer.json())?;
        (operation["state"] != "running").then_some(operation)
    })
    .await
}

/// A client of one node alone.
pub async fn client_of(cluster: &Cluster, place: usize) -> RaftKVClient {
    let builder = RaftKVClient::builder().endpoints(cluster.node(place).endpoint());
    builder.request_timeout(REQUEST_TIMEOUT).connect().await.unwrap()
}

/// The slot of a key.
pub fn slot_of(key: &str) -> u32 {
    raft_kv_proto::slot_of(key.as_bytes(), SLOTS)
}

/// Pairs that were put, over all slots.
pub struct Data {
    prefix: String,
    pub pairs: BTreeMap<String, String>,
}

impl Data {
    /// Puts so many pairs with this prefix.
    pub async fn put(client: &RaftKVClient, prefix: &str, count: usize) -> Self {
        let pair = |n| (format!("{prefix}{n:05}"), format!("value {n} of {prefix}"));
        let pairs: BTreeMap<String, String> = (0..count).map(pair).collect();
        let puts = stream::iter(&pairs).map(|(key, value)| client.put(key, value));
        let results: Vec<_> = puts.buffer_unordered(50).collect().await;
        results.into_iter().for_each(|result| assert!(result.is_ok(), "{result:?}"));
        Self { prefix: prefix.to_owned(), pairs }
    }

    /// Asks every running node for every pair, over HTTP and with the client library, and
    /// for all that have the prefix.
    ///
    /// # Panics
    /// If one is not there, or another is.
    pub async fn check(&self, cluster: &Cluster) {
        self.check_present(cluster).await;
        for place in (0..cluster.size()).filter(|place| cluster.node(*place).is_running()) {
            let client = client_of(cluster, place).await;
            let scanned = client.scan(&self.prefix).collect().await.unwrap();
            let keys = scanned.iter().map(|pair| &pair.key[..]);
            assert!(keys.eq(self.pairs.keys().map(String::as_bytes)), "a scan at {}", id(place));
        }
    }

    /// [`Data::check`] without the scans, which take slots without an owner amiss.
    pub async fn check_present(&self, cluster: &Cluster) {
        for place in (0..cluster.size()).filter(|place| cluster.node(*place).is_running()) {
            let client = client_of(cluster, place).await;
            let gets = stream::iter(self.pairs.keys()).map(|key| client.get(key));
            let found: Vec<_> = gets.buffered(50).collect().await;
            for ((key, value), found) in self.pairs.iter().zip(found) {
                let found = found.unwrap();
                assert_eq!(found.as_deref(), Some(value.as_bytes()), "{key} at {}", id(place));
            }
            let mut node = cluster.node(place).http();
            for (key, value) in &self.pairs {
                let answer = node.get(&http::path_of(key.as_bytes())).unwrap();
                assert_eq!((answer.status, answer.text()), (200, value.clone()), "{key}");
            }
        }
    }

    /// Those of the pairs that are in slots which are owned, or not.
    pub fn part(&self, is_in: impl Fn(u32) -> bool) -> Self {
        let pairs = self.pairs.iter().filter(|(key, _)| is_in(slot_of(key)));
        let pairs = pairs.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { prefix: self.prefix.clone(), pairs }
    }
}
