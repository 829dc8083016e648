//! Crashes and damaged files: what was acknowledged stays, what was never
//! written is never read.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_kv_client::RaftKVClient;
use raft_kv_tests::{
    Load, Node, NodeOptions, Signal,
    files::{copy_folder, cut, files_with_suffix, flip_byte, newest_raft_log, used_length},
    generator, http, wait_for,
};
use rand::{Rng, rngs::StdRng};
use serde_json::Value;
use tempfile::TempDir;

/// Within this a damaged node has said what is the matter.
const DECIDED_WITHIN: Duration = Duration::from_secs(20);

/// Starts the node, and kills it at some time before it is ready.
fn crash_while_starting(node: &mut Node, generator: &mut StdRng, usual: Duration) {
    let after = usual.mul_f64(generator.random());
    let started = Instant::now();
    node.launch();
    // The moment itself is what is random: there is nothing to wait for.
    wait_for("the moment to crash", DECIDED_WITHIN, || (started.elapsed() >= after).then_some(()));
    node.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_twenty_kills_under_load() {
    const KILLS: u32 = 20;
    let mut generator = generator();
    let mut node = Node::start();
    let mut load = Load::start(&node.endpoint()).await;
    let mut usual_start = Duration::from_millis(300);
    for round in 0..KILLS {
        load.wait_for_acknowledged(generator.random_range(1..=300)).await;
        node.kill();
        if round % 4 == 1 {
            crash_while_starting(&mut node, &mut generator, usual_start);
        }
        let starting = Instant::now();
        node.restart();
        usual_start = starting.elapsed();
        load.check(&node.client().await).await;
    }
    load.wait_for_acknowledged(50).await;
    load.stop().await;
    load.check(&node.client().await).await;
    node.kill();
    node.restart();
    load.check(&node.client().await).await;
    println!("{KILLS} kills: {:?}", load.tally());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_after_a_crash_finds_every_kind_of_loss() {
    let node = Node::start();
    let mut load = Load::start(&node.endpoint()).await;
    load.wait_for_acknowledged(100).await;
    load.stop().await;
    let load = Arc::new(load);
    let client = node.client().await;
    load.check(&client).await;
    let changes = [
        ("load/new/0/000000001", None),
        ("load/new/0/000000001", Some("1 wrote 1")),
        ("load/new/0/999999999", Some("0 wrote 999999999")),
        ("load/overwritten/0", None),
        ("load/overwritten/0", Some("0 wrote 1")),
        ("load/overwritten/0", Some("0 wrote 999999999")),
        ("load/counter", Some("1")),
        ("load/counter", Some("999999999")),
        ("load/nobody", Some("v")),
    ];
    for (key, change) in changes {
        let before = client.get(key).await.unwrap();
        match change {
            Some(value) => drop(client.put(key, value).await.unwrap()),
            None => assert!(client.delete(key).await.unwrap()),
        }
        let (checked, reader) = (load.clone(), client.clone());
        let check = tokio::spawn(async move { checked.check(&reader).await });
        let ended = check.await;
        assert!(ended.is_err_and(|error| error.is_panic()), "{key} became {change:?} unseen");
        match before {
            Some(value) => drop(client.put(key, value).await.unwrap()),
            None => assert!(client.delete(key).await.unwrap()),
        }
    }
    load.check(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_the_process_loses_nothing() {
    let mut node = Node::start();
    let mut load = Load::start(&node.endpoint()).await;
    for _ in 0..3 {
        load.wait_for_acknowledged(100).await;
        node.signal(Signal::STOP);
        let paused = Instant::now();
        // Longer than an election timeout.
        wait_for("the pause to end", DECIDED_WITHIN, || {
            (paused.elapsed() > Duration::from_millis(1500)).then_some(())
        });
        node.signal(Signal::CONT);
    }
    load.wait_for_acknowledged(100).await;
    load.stop().await;
    load.check(&node.client().await).await;
    node.kill();
    node.restart();
    load.check(&node.client().await).await;
}

#[tokio::test]
async fn crashes_while_the_cluster_is_born_leave_a_folder_that_starts() {
    let mut generator = generator();
    let usual = {
        let starting = Instant::now();
        drop(Node::start());
        starting.elapsed()
    };
    for _ in 0..8 {
        let mut node = NodeOptions::new().create();
        crash_while_starting(&mut node, &mut generator, usual);
        crash_while_starting(&mut node, &mut generator, usual);
        node.restart();
        let client = node.client().await;
        client.put("born", "v").await.unwrap();
        assert_eq!(node.status()["shards"].as_array().unwrap().len(), 4);
    }
}

const KEYS: usize = 400;

fn key(n: usize) -> String {
    format!("damage/{n}")
}

fn value(n: usize) -> String {
    format!("value {n} {}", "x".repeat(200))
}

/// A node with [`KEYS`] keys, each written by an entry of its own.
async fn node_with_keys() -> Node {
    let node = Node::start();
    let client = node.client().await;
    for n in 0..KEYS {
        client.put(key(n), value(n)).await.unwrap();
    }
    node
}

/// What became of a node that was started on a damaged folder.
enum Outcome {
    /// It did not start, and said this.
    Refused(String),
    /// It serves, but for the shards that it quarantined, for these reasons.
    Serves { quarantined: Vec<String> },
}

/// Starts a node that may have reasons not to serve all, and waits until it has
/// decided.
fn start_damaged(node: &mut Node) -> Outcome {
    node.launch();
    wait_for("the node to start or to say why not", DECIDED_WITHIN, || {
        if let Some(status) = node.exit_status() {
            let stderr = node.stderr();
            let line = stderr.lines().last().unwrap_or_default();
            assert_eq!(status.code(), Some(3), "{stderr}");
            assert!(line.starts_with("raft-kv: "), "{stderr}");
            return Some(Outcome::Refused(line.to_owned()));
        }
        let answer = http::Connection::open(node.address()).and_then(|mut c| c.get("/status"));
        let status = answer.ok()?.json();
        let shards = status["shards"].as_array().unwrap();
        let decided = |shard: &&Value| match shard["role"].as_str().unwrap() {
            "quarantined" => true,
            role => role == "leader" && shard["commit_index"] == shard["applied_index"],
        };
        if shards.iter().filter(decided).count() < shards.len() {
            return None;
        }
        let quarantined = shards.iter().filter(|shard| shard["role"] == "quarantined");
        let reason = |shard: &Value| shard["reason"].as_str().unwrap_or_default().to_owned();
        let quarantined: Vec<String> = quarantined.map(reason).collect();
        assert!(quarantined.iter().all(|reason| !reason.is_empty()), "{status}");
        Some(Outcome::Serves { quarantined })
    })
}

/// Reads all keys; none may have a value that nobody wrote. Gives how many were
/// found, how many were said not to exist, and how many were not answered for.
async fn read_all(node: &Node) -> (usize, usize, usize) {
    let client = RaftKVClient::builder()
        .endpoints(node.endpoint())
        .request_timeout(Duration::from_millis(500))
        .connect()
        .await
        .unwrap();
    let (mut found, mut absent, mut refused) = (0, 0, 0);
    let reads = (0..KEYS).map(|n| {
        let client = client.clone();
        async move { (n, client.get(key(n)).await) }
    });
    for (n, result) in futures::future::join_all(reads).await {
        match result {
            Ok(Some(read)) => {
                assert!(read == value(n), "{} has a value that nobody wrote", key(n));
                found += 1;
            }
            Ok(None) => absent += 1,
            Err(_) => refused += 1,
        }
    }
    (found, absent, refused)
}

/// Damages copies of a folder's Raft log at several places, one each, and checks
/// that no node serves wrong data from it.
async fn damage_the_log(folder: &Path) {
    const PLACES: usize = 8;
    /// Damage to the last write of a crashed node looks like a write that was torn,
    /// and is cut off like one.
    const LAST_WRITE_BYTES: usize = 1024;
    let mut generator = generator();
    for place in 0..PLACES {
        let copy = TempDir::new().unwrap();
        copy_folder(folder, copy.path());
        let log = newest_raft_log(copy.path());
        let used = used_length(&log) - LAST_WRITE_BYTES;
        let offset = used / PLACES * place + generator.random_range(0..used / PLACES);
        flip_byte(&log, offset);
        let mut node = NodeOptions::new().data_dir(copy.path()).create();
        match start_damaged(&mut node) {
            Outcome::Refused(line) => println!("damage at {offset} of {used}, refused: {line}"),
            Outcome::Serves { quarantined } => {
                let (found, absent, refused) = read_all(&node).await;
                println!("damage at {offset} of {used}, quarantined: {quarantined:?}");
                assert_eq!(absent, 0, "acknowledged writes are said not to exist");
                // Otherwise it was not needed any more.
                assert!(found == KEYS || !quarantined.is_empty(), "{refused} refused");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_damaged_after_a_stop_never_serves_wrong_data() {
    let mut node = node_with_keys().await;
    node.stop();
    damage_the_log(node.data_dir()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_damaged_after_a_crash_never_serves_wrong_data() {
    let mut node = node_with_keys().await;
    node.kill();
    damage_the_log(node.data_dir()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_of_the_log_costs_at_most_the_tail() {
    let mut generator = generator();
    let mut node = node_with_keys().await;
    node.kill();
    let log = newest_raft_log(node.data_dir());
    let torn = generator.random_range(1..200);
    cut(&log, used_length(&log) - torn);
    match start_damaged(&mut node) {
        Outcome::Refused(line) => println!("{torn} bytes torn off, refused: {line}"),
        Outcome::Serves { quarantined } => {
            let (found, absent, refused) = read_all(&node).await;
            println!("{torn} bytes torn off: {found} found, {absent} absent, {refused} refused");
            // An entry here is longer than what was torn off.
            assert!(absent <= 2, "{absent} keys are gone for {torn} bytes");
            assert!(refused == 0 || !quarantined.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_log_is_noticed() {
    let mut node = node_with_keys().await;
    node.stop();
    let log = newest_raft_log(node.data_dir());
    std::fs::remove_file(&log).unwrap();
    match start_damaged(&mut node) {
        Outcome::Refused(line) => println!("refused: {line}"),
        Outcome::Serves { quarantined } => {
            let (_, absent, _) = read_all(&node).await;
            println!("quarantined: {quarantined:?}");
            assert_eq!(absent, 0, "acknowledged writes are said not to exist");
            assert!(!quarantined.is_empty(), "nobody noticed that {} is gone", log.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_running_nodes_folder_is_a_crash_and_starts() {
    let node = node_with_keys().await;
    let copy = TempDir::new().unwrap();
    node.signal(Signal::STOP);
    copy_folder(node.data_dir(), copy.path());
    node.signal(Signal::CONT);
    let copied = NodeOptions::new().data_dir(copy.path()).start();
    assert_eq!(read_all(&copied).await, (KEYS, 0, 0));
    assert_eq!(read_all(&node).await, (KEYS, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_file_never_serves_wrong_data() {
    let mut generator = generator();
    let mut node = node_with_keys().await;
    node.stop();
    let files = files_with_suffix(node.data_dir(), "sst").into_iter();
    let largest = files.max_by_key(|file| used_length(file));
    let file = largest.expect("an orderly stop brings the state to the disk");
    // Data comes first in such a file, and what describes it behind.
    flip_byte(&file, generator.random_range(0..used_length(&file) / 3));
    match start_damaged(&mut node) {
        Outcome::Refused(line) => println!("refused: {line}"),
        Outcome::Serves { quarantined } => {
            let (found, absent, refused) = read_all(&node).await;
            println!("quarantined: {quarantined:?}; {found} found, {refused} refused");
            assert_eq!(absent, 0, "acknowledged writes are said not to exist");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_survive_kills_in_the_middle_of_flushes() {
    const SIZE: usize = 2 << 20;
    const KEYS: usize = 10;
    let mut generator = generator();
    let mut node = Node::start();
    let mut written = [0u8; KEYS];
    for round in 1..=4u8 {
        let client = node.client().await;
        // The state's buffers in memory overflow several times a round.
        for turn in 0..generator.random_range(20..50) {
            let n = turn % KEYS;
            client.put(format!("large/{n}"), vec![round * 50 + turn as u8; SIZE]).await.unwrap();
            written[n] = round * 50 + turn as u8;
        }
        node.kill();
        node.restart();
        let client = node.client().await;
        for (n, byte) in written.iter().enumerate() {
            let value = client.get(format!("large/{n}")).await.unwrap().unwrap();
            assert!(value.len() == SIZE && value.iter().all(|found| found == byte), "key {n}");
        }
    }
    let disk = node.status()["disk_usage_bytes"].as_u64().unwrap();
    println!("{} MiB on disk", disk >> 20);
}
