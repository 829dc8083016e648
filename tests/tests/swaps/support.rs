//! What these tests share: clusters with versions of the plugin, callers who count, and the record of
//! which version each shard ran from which index on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use raft_kv_client::RaftKVClient;
use raft_kv_tests::{Cluster, ClusterOptions, NodeOptions, eventually, http::Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::module::{Answer, Version};

/// Slots of the clusters.
const SLOTS: u32 = 256;
/// Within this callers are answered, whatever happens to their shards.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Three nodes whose shards run this version.
pub fn three_nodes(version: &Version, shards: u32) -> Cluster {
    let node = NodeOptions::new().shards(shards).plugin_module(version.module());
    with_balancer_off(ClusterOptions::new().node(node).start())
}

pub fn with_balancer_off(cluster: Cluster) -> Cluster {
    let answer = cluster.request(0, "PUT", "/admin/balancer", r#"{"enabled": false}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    cluster
}

/// Sends a module to a node.
pub fn send(cluster: &Cluster, place: usize, module: &[u8]) -> Response {
    let mut node = cluster.node(place).http();
    node.request("POST", "/admin/plugin", module).unwrap()
}

/// Makes a version known to the cluster.
#[track_caller]
pub fn upload(cluster: &Cluster, place: usize, version: &Version) {
    let answer = send(cluster, place, &version.module());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["operation"]["state"], "done", "{}", answer.text());
}

/// Has a node switch shards to a version.
pub fn activate(cluster: &Cluster, place: usize, version: &Version, more: &Value) -> Response {
    let mut body = json!({"version": version.text(), "shards": "all"});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    let target = format!("/admin/plugin/{}/activate?timeout=60", version.name);
    cluster.request(place, "POST", &target, &body.to_string())
}

/// Switches all shards to a version.
#[track_caller]
pub fn activated(cluster: &Cluster, place: usize, version: &Version) -> Value {
    let answer = activate(cluster, place, version, &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["state"], "done", "{}", answer.text());
    answer.json()
}

/// Which version each shard runs, from which index on; by the shards' names.
pub fn active(cluster: &Cluster, place: usize) -> BTreeMap<String, (u8, u64)> {
    let answer = cluster.request(place, "GET", "/admin/plugin", "").json();
    let mut active = BTreeMap::new();
    for plugin in answer["plugins"].as_array().unwrap() {
        let digit = plugin["version"].as_str().unwrap().as_bytes()[2] - b'0';
        for shard in plugin["active"].as_array().unwrap() {
            let index = shard["index"].as_u64().unwrap();
            active.insert(shard["shard_id"].as_str().unwrap().to_owned(), (digit, index));
        }
    }
    active
}

/// Keys in different slots, so many in all.
pub fn keys(count: usize) -> Vec<String> {
    let mut slots = BTreeSet::new();
    let candidates = (0..).map(|n| format!("key{n}"));
    let fresh =
        candidates.filter(|key| slots.insert(raft_kv_proto::slot_of(key.as_bytes(), SLOTS)));
    fresh.take(count).collect()
}

/// The shard of a key.
pub fn shard_of(cluster: &Cluster, key: &str) -> String {
    let slot = raft_kv_proto::slot_of(key.as_bytes(), SLOTS);
    let shards = cluster.request(0, "GET", "/admin/shard", "").json();
    let owns = |shard: &&Value| {
        let mut ranges = shard["slots"].as_array().unwrap().iter();
        ranges.any(|range| {
            let bound = |end: &str| range[end].as_u64().unwrap();
            (bound("start")..bound("end")).contains(&u64::from(slot))
        })
    };
    let shard = shards["shards"].as_array().unwrap().iter().find(owns).cloned();
    shard.unwrap()["shard_id"].as_str().unwrap().to_owned()
}

/// What a caller was answered: each count one more than the last.
pub struct Counted {
    pub key: String,
    pub answers: Vec<Answer>,
    /// The longest that one command took.
    pub longest: Duration,
}

/// Callers who count, each under a key in a slot of its own.
pub struct Callers {
    /// How often each has been answered.
    answered: Vec<Arc<AtomicUsize>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Counted>>,
}

impl Callers {
    pub fn start(client: &RaftKVClient, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered: Vec<Arc<AtomicUsize>> = (0..count).map(|_| Arc::default()).collect();
        let call = |(key, answered): (String, &Arc<AtomicUsize>)| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let answered = Arc::clone(answered);
            tokio::spawn(async move {
                let mut counted = Counted { key, answers: Vec::new(), longest: Duration::ZERO };
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let response = client.apply(&counted.key, "i").await;
                    let took = began.elapsed();
                    let response = response.unwrap_or_else(|e| panic!("{}: {e}", counted.key));
                    let answer = Answer::read(&response);
                    let before = counted.answers.last().map_or(0, |last| last.count);
                    assert_eq!(answer.count, before + 1, "{} after {before}", counted.key);
                    counted.answers.push(answer);
                    answered.fetch_add(1, Ordering::Relaxed);
                    counted.longest = counted.longest.max(took);
                }
                counted
            })
        };
        let tasks = keys(count).into_iter().zip(&answered).map(call).collect();
        Callers { answered, stop, tasks }
    }

    /// Waits until each has been answered some more commands that it began after this.
    pub async fn go_on(&self) {
        let counts = || self.answered.iter().map(|count| count.load(Ordering::Relaxed));
        // The first may have begun before.
        let goals: Vec<usize> = counts().map(|count| count + 3).collect();
        eventually("all callers to be answered", ANSWERED_WITHIN, async || {
            counts().zip(&goals).all(|(count, goal)| count >= *goal).then_some(())
        })
        .await;
    }

    /// Has them stop; gives what they were answered.
    ///
    /// # Panics
    /// If one of them got an error, or a count that is not one more than its last.
    pub async fn stop(self) -> Vec<Counted> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counted = Vec::new();
        for task in self.tasks {
            counted.push(task.await.unwrap());
        }
        counted
    }
}

/// Which version each shard ran from which index on, as far as it was written down.
#[derive(Default)]
pub struct Record(BTreeMap<String, BTreeMap<u64, u8>>);

impl Record {
    /// Writes down what the shards run now. To be done after each switch.
    pub fn note(&mut self, active: BTreeMap<String, (u8, u64)>) {
        for (shard, (version, index)) in active {
            self.0.entry(shard).or_default().insert(index, version);
        }
    }

    /// Checks that each command ran under the version that its shard ran at its index.
    ///
    /// # Panics
    /// If one did not.
    pub fn check(&self, cluster: &Cluster, counted: &[Counted]) {
        for Counted { key, answers, .. } in counted {
            let shard = shard_of(cluster, key);
            for answer in answers {
                let (from, version) = self.0[&shard].range(..=answer.index).next_back().unwrap();
                assert_eq!(
                    answer.version, *version,
                    "{key} in {shard} at {}, where {version} ran from {from} on",
                    answer.index
                );
            }
        }
    }
}
