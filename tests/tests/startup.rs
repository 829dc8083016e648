//! Starting and stopping: what stands in the way is named in one line, and what
//! was there before stays as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, net::TcpListener, path::Path, time::Duration};

use raft_kv_tests::{
    Load, Node, NodeOptions, Signal, files::fingerprint, http, wait_for, workspace,
};
use tempfile::TempDir;

/// Within this a node that cannot start says so.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// Within this a node that was asked to stops.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// Starts a node that cannot start. Gives its exit code and the line in which it
/// says why.
#[track_caller]
fn refused(mut node: Node) -> (i32, String) {
    node.launch();
    let status = node.wait_until_ended(REFUSED_WITHIN);
    let stderr = node.stderr();
    let code = status.code().unwrap_or_else(|| panic!("ended with {status}: {stderr}"));
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("raft-kv: ")).collect();
    let [line] = lines[..] else {
        panic!("not one line that says why: {stderr}");
    };
    assert_eq!(stderr.lines().last(), Some(line), "{stderr}");
    assert!(line.len() < 500, "that is no clear line: {line}");
    (code, line.to_owned())
}

/// Checks that a node does not start, with this exit code and these words.
#[track_caller]
fn assert_refused(options: NodeOptions, expected: i32, words: &[&str]) {
    let (code, line) = refused(options.create());
    assert_eq!(code, expected, "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

/// A folder with the data of a node that was stopped, and what is in it.
fn folder_with_data() -> TempDir {
    let folder = TempDir::new().unwrap();
    let options = NodeOptions::new().data_dir(folder.path());
    let mut node = options.start();
    let mut connection = node.http();
    for n in 0..20 {
        let path = http::path_of(format!("key {n}").as_bytes());
        let answer = connection.request("PUT", &path, n.to_string().as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    node.stop();
    folder
}

/// Checks that a node finds there what [`folder_with_data`] left.
#[track_caller]
fn assert_data(folder: &Path) {
    let mut node = NodeOptions::new().data_dir(folder).start();
    assert_answers(&node);
    node.stop();
}

#[track_caller]
fn assert_answers(node: &Node) {
    let mut connection = node.http();
    for n in 0..20 {
        let path = http::path_of(format!("key {n}").as_bytes());
        let answer = connection.get(&path).unwrap();
        assert_eq!(answer.text(), n.to_string(), "key {n}: {}", answer.status);
    }
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_touched() {
    let folder = folder_with_data();
    let before = fingerprint(folder.path());
    let node = NodeOptions::new().data_dir(folder.path()).create();
    let _in_the_way = TcpListener::bind(node.address()).unwrap();
    let address = node.address().to_string();
    let (code, line) = refused(node);
    assert_eq!(code, 3, "{line}");
    assert!(line.contains(&address), "{line}");
    assert_eq!(fingerprint(folder.path()), before);
    assert_data(folder.path());
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let below = file.join("data");
    let options = NodeOptions::new().data_dir(&below);
    assert_refused(options, 3, &[below.to_str().unwrap()]);
    let options = NodeOptions::new().data_dir(&file);
    assert_refused(options, 3, &[file.to_str().unwrap()]);
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}

#[test]
fn a_data_folder_of_another_node_is_refused_and_left_alone() {
    let folder = folder_with_data();
    let before = fingerprint(folder.path());
    let options = NodeOptions::new().data_dir(folder.path());
    let path = folder.path().to_str().unwrap();
    assert_refused(options.arg("--node-id").arg("node2"), 2, &["node1", "node2", path]);
    assert_eq!(fingerprint(folder.path()), before);
    assert_data(folder.path());
}

#[test]
fn a_folder_with_something_else_in_it_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    let options = NodeOptions::new().data_dir(folder.path());
    assert_refused(options, 2, &[folder.path().to_str().unwrap()]);
    assert_eq!(fs::read(folder.path().join("letter.txt")).unwrap(), b"dear");
}

#[test]
fn a_data_folder_in_use_is_refused_and_its_node_goes_on() {
    let folder = folder_with_data();
    let mut first = NodeOptions::new().data_dir(folder.path()).start();
    for _ in 0..2 {
        let options = NodeOptions::new().data_dir(folder.path());
        assert_refused(options, 3, &["in use", folder.path().to_str().unwrap()]);
    }
    assert_answers(&first);
    let answer = first.http().request("PUT", "/kv/more", b"v").unwrap();
    assert_eq!(answer.status, 200);
    first.kill();
    assert_data(folder.path());
}

#[test]
fn what_contradicts_the_folder_is_refused_and_what_agrees_is_not() {
    let folder = folder_with_data();
    let before = fingerprint(folder.path());
    let options = || NodeOptions::new().data_dir(folder.path());
    assert_refused(options().arg("--slots").arg("512"), 2, &["--slots", "512", "256"]);
    assert_eq!(fingerprint(folder.path()), before);

    let other = TempDir::new().unwrap();
    let module = other.path().join("other.wasm");
    fs::write(&module, other_plugin()).unwrap();
    assert_refused(options().plugin(&module), 2, &["--plugin", module.to_str().unwrap()]);
    assert_data(folder.path());

    let same = options().arg("--slots").arg("256");
    let mut node = same.start();
    assert_answers(&node);
    node.stop();
    if std::env::var_os("RAFTKV_TEST_PLUGIN").is_none() {
        let same = options().plugin(workspace().join("plugins/dist/kv.wasm"));
        let mut node = same.start();
        assert_answers(&node);
        node.stop();
    }
}

/// A valid plugin that does nothing.
fn other_plugin() -> Vec<u8> {
    wat::parse_str(
        r#"(module
            (@custom "raftkv" "name=other\nversion=1.0.0\nabi=1\n")
            (memory (export "memory") 1)
            (func (export "apply"))
            (func (export "query")))"#,
    )
    .unwrap()
}

#[test]
fn bad_usage_is_refused_and_makes_no_folder() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let cases: [(&[&str], &str); 7] = [
        (&["--shards", "0"], "--shards"),
        (&["--slots", "0"], "--slots"),
        (&["--slots", "16385"], "--slots"),
        (&["--shards", "257"], "--shards"),
        (&["--node-id", ""], "--node-id"),
        (&["--node-id", "a/b"], "--node-id"),
        (&["--config", "/nowhere/raft-kv.toml"], "/nowhere/raft-kv.toml"),
    ];
    for (arguments, word) in cases {
        let options = NodeOptions::new().data_dir(&data);
        let options = arguments.iter().fold(options, NodeOptions::arg);
        assert_refused(options, 2, &[word]);
        assert!(!data.exists(), "{arguments:?}");
    }
    // What the parser of the command line refuses, it explains over several lines.
    for (argument, value) in [("--port", "x"), ("--port", "70000"), ("--frobnicate", "1")] {
        let mut node = NodeOptions::new().data_dir(&data).arg(argument).arg(value).create();
        node.launch();
        let status = node.wait_until_ended(REFUSED_WITHIN);
        assert_eq!(status.code(), Some(2), "{}", node.stderr());
        assert!(node.stderr().contains(argument), "{}", node.stderr());
        assert!(!data.exists(), "{argument}");
    }
}

#[test]
fn a_plugin_that_cannot_be_run_is_refused_with_the_reason() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plugin.wasm");
    let manifest = r#"(@custom "raftkv" "name=x\nversion=1.0.0\nabi=1\n")"#;
    let body = r#"(memory (export "memory") 1) (func (export "apply")) (func (export "query"))"#;
    let module = |parts: &[&str]| wat::parse_str(format!("(module {})", parts.concat())).unwrap();
    let wasi = r#"(import "wasi_snapshot_preview1" "fd_write" (func))"#;
    let newer = r#"(@custom "raftkv" "name=x\nversion=1.0.0\nabi=2\n")"#;
    let cases = [
        (b"not wasm at all".to_vec(), "WebAssembly"),
        (Vec::new(), "WebAssembly"),
        (module(&[manifest, body])[..60].to_vec(), "WebAssembly"),
        (module(&[body]), "raftkv"),
        (module(&[newer, body]), "ABI"),
        (module(&[manifest, wasi, body]), "wasi"),
        (module(&[manifest, r#"(memory (export "memory") 1)"#]), "apply"),
        (module(&[manifest, body, "(func $s) (start $s)"]), "start function"),
        (module(&[manifest, body, "(memory 1)"]), "feature"),
    ];
    for (bytes, word) in cases {
        fs::write(&file, bytes).unwrap();
        let data = folder.path().join("data");
        let options = NodeOptions::new().data_dir(&data).plugin(&file);
        assert_refused(options, 2, &[word, file.to_str().unwrap()]);
    }
    let missing = folder.path().join("missing.wasm");
    let options = NodeOptions::new().plugin(&missing);
    assert_refused(options, 2, &[missing.to_str().unwrap()]);
    // The folder is still good for a node with a plugin that runs.
    let data = folder.path().join("data");
    let node = NodeOptions::new().data_dir(data).start();
    assert_eq!(node.http().request("PUT", "/kv/a", b"v").unwrap().status, 200);
}

#[test]
fn fewer_slots_than_the_usual_shards_are_enough() {
    let node = NodeOptions::new().arg("--slots").arg("2").start();
    let status = node.status();
    let shards = status["shards"].as_array().unwrap();
    assert!((1..=2).contains(&shards.len()), "{status}");
    for shard in shards {
        let slots = &shard["slots"][0];
        assert!(slots["start"].as_u64() < slots["end"].as_u64(), "{shard}");
    }
}

#[test]
fn a_restart_keeps_the_cluster_and_its_data() {
    for crash in [false, true] {
        let mut node = NodeOptions::new().shards(3).start();
        assert_eq!(node.http().request("PUT", "/kv/a", b"v").unwrap().status, 200);
        let before = node.status();
        for _ in 0..3 {
            match crash {
                true => node.kill(),
                false => node.stop(),
            }
            node.restart();
        }
        let after = node.status();
        for name in ["cluster_id", "node_id", "slots"] {
            assert_eq!(after[name], before[name], "{name}");
        }
        let names = |status: &serde_json::Value| {
            let shards = status["shards"].as_array().unwrap().iter();
            let parts =
                shards.map(|s| (s["name"].clone(), s["slots"].clone(), s["plugin"].clone()));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(names(&after), names(&before));
        assert_eq!(node.http().get("/kv/a").unwrap().body, b"v");
    }
    let (one, other) = (Node::start(), Node::start());
    assert_ne!(one.status()["cluster_id"], other.status()["cluster_id"]);
}

/// Stops a node under load and checks that it stops soon and lost nothing.
async fn stop_under_load(signal: Signal) {
    let mut node = Node::start();
    let mut load = Load::start(&node.endpoint()).await;
    load.wait_for_acknowledged(300).await;
    node.signal(signal);
    let status = node.wait_until_ended(STOPPED_WITHIN);
    assert_eq!(status.code(), Some(0), "{status}");
    println!("stopped under load: {:?}", load.tally());
    node.restart();
    load.wait_for_acknowledged(50).await;
    load.stop().await;
    load.check(&node.client().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_ends_soon_and_loses_nothing() {
    stop_under_load(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_under_load_ends_soon_and_loses_nothing() {
    stop_under_load(Signal::INT).await;
}

#[tokio::test]
async fn idle_and_half_spoken_connections_do_not_hold_up_a_stop() {
    let mut node = Node::start();
    let _idle = (node.http(), node.channel().await, node.client().await);
    let mut half = node.http();
    half.send(b"PUT /kv/half HTTP/1.1\r\ncontent-length: 100\r\n\r\nabc").unwrap();
    let mut scanned = node.http();
    assert_eq!(scanned.get("/kv").unwrap().status, 200);
    node.stop();
}

#[test]
fn sigterm_while_it_starts_ends_it_too() {
    let mut node = Node::start();
    assert_eq!(node.http().request("PUT", "/kv/a", b"v").unwrap().status, 200);
    node.stop();
    for _ in 0..5 {
        node.launch();
        // As soon as it has begun to do something, with handlers for signals or without.
        wait_for("the node to begin", REFUSED_WITHIN, || {
            let begun = node.exit_status().is_some() || node.is_listening();
            begun.then_some(())
        });
        node.signal(Signal::TERM);
        let status = node.wait_until_ended(STOPPED_WITHIN);
        assert_eq!(status.code(), Some(0), "{status}");
    }
    node.restart();
    assert_eq!(node.http().get("/kv/a").unwrap().body, b"v");
}

#[test]
fn an_idle_node_is_small() {
    const LIMIT: u64 = 80 << 20;
    let node = Node::start();
    assert_eq!(node.http().request("PUT", "/kv/a", b"v").unwrap().status, 200);
    assert_eq!(node.http().get("/kv/a").unwrap().body, b"v");
    let bytes = node.resident_bytes();
    println!("an idle node takes {} MiB", bytes >> 20);
    assert!(bytes < LIMIT, "an idle node takes {} MiB", bytes >> 20);
}
