//! Scans while the shards under them change: keys that are there throughout are neither
//! skipped nor repeated, and all come in order.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use raft_kv_client::RaftKVClient;
use raft_kv_tests::{Cluster, eventually, http};
use serde_json::Value;
use tokio::task::{JoinSet, spawn_blocking};

use crate::support::{Data, OVER_WITHIN, done, four_nodes, id};

const PREFIX: &str = "scan/";
const STABLE: &str = "scan/stable/";
const KEYS: usize = 700;
/// Rounds of changes.
const ROUNDS: usize = 3;

/// What all scanners share.
struct Scanned {
    /// The keys that are there throughout.
    stable: Vec<String>,
    stop: AtomicBool,
    passes: [AtomicU64; 3],
}

impl Scanned {
    fn goes_on(&self) -> bool {
        !self.stop.load(SeqCst)
    }

    /// A scan of everything gave these keys.
    fn check(&self, how: usize, keys: &[String]) {
        let name = ["pages", "HTTP", "a stream"][how];
        let ordered = keys.is_sorted_by(|one, next| one < next);
        assert!(ordered, "{name}: keys are out of order, or come twice: {keys:?}");
        let stable: Vec<&String> = keys.iter().filter(|key| key.starts_with(STABLE)).collect();
        let missing: Vec<&String> =
            self.stable.iter().filter(|key| keys.binary_search(key).is_err()).collect();
        assert!(missing.is_empty(), "{name}: {} keys are missing: {missing:?}", missing.len());
        assert_eq!(stable.len(), self.stable.len(), "{name}");
        self.passes[how].fetch_add(1, SeqCst);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Pages of the client library, each of which begins where the last one ended.
async fn scan_in_pages(client: RaftKVClient, scanned: Arc<Scanned>) {
    while scanned.goes_on() {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let after = keys.last().cloned().unwrap_or_default();
            let page = client.scan(PREFIX).after(after).limit(37).collect().await.unwrap();
            keys.extend(page.iter().map(|pair| text(&pair.key)));
            if page.len() < 37 {
                break;
            }
        }
        scanned.check(0, &keys);
    }
}

/// Pages over HTTP, through one node, by the cursors that it gives.
fn scan_over_http(mut node: http::Connection, scanned: &Scanned) {
    while scanned.goes_on() {
        let (mut keys, mut cursor) = (Vec::new(), String::new());
        loop {
            let prefix = http::encoded(PREFIX.as_bytes());
            let target = format!("/kv?prefix={prefix}&limit=53{cursor}");
            let answer = node.get(&target).unwrap();
            assert_eq!(answer.status, 200, "{target}: {}", answer.text());
            let page = answer.json();
            keys.extend(page_keys(&page));
            match page["cursor"].as_str() {
                // It comes percent-encoded.
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        scanned.check(1, &keys);
    }
}

/// The keys of a page.
fn page_keys(page: &Value) -> Vec<String> {
    let pairs = page["pairs"].as_array().unwrap().iter();
    pairs.map(|pair| pair["key"].as_str().unwrap().to_owned()).collect()
}

async fn scan_in_a_stream(client: RaftKVClient, scanned: Arc<Scanned>) {
    while scanned.goes_on() {
        let mut keys = Vec::new();
        let mut stream = client.scan(PREFIX).stream();
        while let Some(pair) = stream.next().await {
            keys.push(text(&pair.unwrap().key));
            if keys.len() % 100 == 0 {
                // Somebody who reads slowly sees more changes on the way.
                tokio::task::yield_now().await;
            }
        }
        scanned.check(2, &keys);
    }
}

/// Keys that come and go between the others.
async fn come_and_go(client: RaftKVClient, scanned: Arc<Scanned>) {
    for number in 0.. {
        if !scanned.goes_on() {
            break;
        }
        let key = format!("{PREFIX}{}/{number}", ["passing", "temporary"][number % 2]);
        client.put(&key, "here for a while").await.unwrap();
        client.delete(&key).await.unwrap();
    }
}

/// One of everything that changes shards; at the end all is as it was.
async fn change_everything(cluster: &Cluster, round: usize) {
    let place = round % cluster.size();
    let post = |target: &str, body: &str| done(cluster, place, "POST", target, body);
    let shard = ["shard_0", "shard_1"][round % 2];
    let new = format!("new_{round}");
    let both = format!(r#"{{"new_shards":["{shard}","{new}"]}}"#);
    post(&format!("/admin/shard/{shard}/split"), &both);
    for moved in [shard, &new] {
        let view = cluster.view();
        let replicas = view.replicas(moved).unwrap();
        let to = view.node_ids().into_iter().find(|node| !replicas.contains(node)).unwrap();
        // The leader itself moves away.
        let from = id(cluster.leader_of(moved).await);
        post(
            &format!("/admin/shard/{moved}/migrate"),
            &format!(r#"{{"from":"{from}","to":"{to}"}}"#),
        );
        let to = cluster.view().replicas(moved).unwrap().remove(round % 3);
        let target = format!("/admin/shard/{moved}/transfer-leader");
        let answer = cluster.request(place, "POST", &target, &format!(r#"{{"to":"{to}"}}"#));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let merge = format!(r#"{{"sources":["{new}"],"target":"{shard}"}}"#);
    post("/admin/shard/merge", &merge);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_skip_and_repeat_nothing_while_shards_change_under_them() {
    let cluster = four_nodes(2);
    let client = cluster.client().await;
    let data = Data::put(&client, STABLE, KEYS).await;
    let scanned = Arc::new(Scanned {
        stable: data.pairs.keys().cloned().collect(),
        stop: AtomicBool::new(false),
        passes: Default::default(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(scan_in_pages(client.clone(), scanned.clone()));
    tasks.spawn(scan_in_a_stream(client.clone(), scanned.clone()));
    tasks.spawn(come_and_go(client.clone(), scanned.clone()));
    for place in 0..2 {
        let (node, scanned) = (cluster.node(place).http(), scanned.clone());
        tasks.spawn(async move {
            spawn_blocking(move || scan_over_http(node, &scanned)).await.unwrap()
        });
    }
    for round in 0..ROUNDS {
        change_everything(&cluster, round).await;
        let passed = || scanned.passes.each_ref().map(|passes| passes.load(SeqCst));
        let before = passed();
        eventually("scans to get through", OVER_WITHIN, async || {
            let ended = tasks.try_join_next();
            assert!(ended.is_none(), "a scan ended: {ended:?}");
            passed().iter().zip(before).all(|(now, before)| *now > before).then_some(())
        })
        .await;
    }
    scanned.stop.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("all scans go well");
    }
    println!("passes of pages, HTTP and streams: {:?}", scanned.passes);
    data.check(&cluster).await;
    cluster.assert_every_slot_is_owned_once().await;
    cluster.assert_replicas_identical().await;
}
