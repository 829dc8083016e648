//! The command line against a node in this process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStringExt,
    process::Stdio,
};

use common::{
    HANGING_KEY, Running, dead_endpoint,
    program::{Ran, command, run},
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tonic::Status;

#[tokio::test]
async fn a_key_is_put_read_and_deleted() {
    let node = Running::start().await;
    let at = node.endpoint();
    assert_eq!(run(&at, ["put", "k", "v"]).await.text(), "version 1\n");
    assert_eq!(run(&at, ["get", "k"]).await.text(), "v\n");
    assert_eq!(run(&at, ["get", "k", "--stale"]).await.text(), "v\n");
    assert_eq!(run(&at, ["delete", "k"]).await.text(), "deleted\n");
    for command in ["get", "delete"] {
        let message = run(&at, [command, "k"]).await.failure(1);
        assert_eq!(message, "error: the key k does not exist\n");
    }
}

#[tokio::test]
async fn endpoints_are_an_option_before_or_after_the_command() {
    let node = Running::start().await;
    let (dead, url) = (dead_endpoint().await, format!("http://{}", node.endpoint()));
    let both = format!("{dead},{url}");
    run(&dead, ["--endpoints", &both, "put", "k", "v"]).await.text();
    assert_eq!(run(&dead, ["get", "k", "--endpoints", &url]).await.text(), "v\n");
}

#[tokio::test]
async fn a_value_is_read_from_stdin_and_printed_as_it_is() {
    let node = Running::start().await;
    let at = node.endpoint();
    let value = [&[0xff, 0, b'\n'][..], &[7; 100_000]].concat();
    let mut put = command(&at)
        .args(["put", "k", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    put.stdin.take().unwrap().write_all(&value).await.unwrap();
    assert!(put.wait().await.unwrap().success());

    let printed = run(&at, ["get", "k"]).await.stdout;
    assert_eq!(printed, [&value[..], b"\n"].concat());
}

#[tokio::test]
async fn keys_are_any_bytes_and_may_be_given_in_hexadecimal() {
    let node = Running::start().await;
    let at = node.endpoint();
    let raw = OsString::from_vec(vec![0xff, b'-', 1]);
    run(&at, [OsStr::new("put"), &raw, OsStr::new("-5")]).await.text();
    assert_eq!(run(&at, ["get", "--hex", "ff2d01"]).await.text(), "-5\n");
    let scan = run(&at, ["scan", "--hex", "FF"]).await;
    assert_eq!(scan.text(), "ff2d01\t-5\n");
    assert_eq!(run(&at, ["scan", ""]).await.text(), "\\xff-\\x01\t-5\n");

    let message = run(&at, ["get", "--hex", "f"]).await.failure(2);
    assert!(message.contains("\"f\" is not hexadecimal"), "{message}");
}

#[tokio::test]
async fn a_put_may_expect_a_version() {
    let node = Running::start().await;
    let at = node.endpoint();
    let put = |expected: &'static str| ["put", "k", "v", "--expected-version", expected];
    run(&at, put("0")).await.text();
    let message = run(&at, put("0")).await.failure(3);
    assert!(message.contains("the version is 1"), "{message}");
    run(&at, put("1")).await.text();
}

#[tokio::test]
async fn a_scan_prints_all_pages_up_to_its_limit() {
    let node = Running::start().await;
    let at = node.endpoint();
    for key in ["a1", "a2", "a3", "a4", "a5", "b"] {
        run(&at, ["put", key, "tab\there"]).await.text();
    }
    let line = |key: &str| format!("{key}\ttab\\there\n");
    let expected: String = ["a1", "a2", "a3", "a4", "a5"].map(line).concat();
    assert_eq!(run(&at, ["scan", "a"]).await.text(), expected);
    let limited = run(&at, ["scan", "a", "--limit", "3", "--stale"]).await;
    assert_eq!(limited.text(), expected[..expected.len() / 5 * 3]);
    assert_eq!(run(&at, ["scan", "c"]).await.text(), "");
}

#[tokio::test]
async fn json_answers_are_one_object_a_line() {
    let node = Running::start().await;
    let at = node.endpoint();
    let put = run(&at, ["--output", "json", "put", "k", "v"]).await;
    assert_eq!(put.json(), [json!({ "key": "k", "version": 1 })]);
    let get = run(&at, ["get", "k", "--output", "json"]).await;
    let pair = json!({ "key": "k", "value": "v", "version": 1 });
    assert_eq!(get.json(), std::slice::from_ref(&pair));

    let binary = OsString::from_vec(vec![b'k', 0xff]);
    run(&at, [OsStr::new("put"), &binary, OsStr::new("line\n2")]).await.text();
    let scan = run(&at, ["--output=json", "scan", "k"]).await.json();
    let binary = json!({ "key": { "base64": "a/8=" }, "value": "line\n2", "version": 2 });
    assert_eq!(scan, [pair, binary]);

    let delete = run(&at, ["--output=json", "delete", "k"]).await;
    assert_eq!(delete.json(), [json!({ "key": "k", "existed": true })]);
    let delete = run(&at, ["--output=json", "delete", "k"]).await;
    assert_eq!(delete.code, Some(1));
    let answer: Value = serde_json::from_slice(&delete.stdout).unwrap();
    assert_eq!(answer, json!({ "key": "k", "existed": false }));
    run(&at, ["--output=json", "get", "k"]).await.failure(1);
}

#[tokio::test]
async fn the_status_of_a_node_is_a_table_or_json() {
    let node = Running::start().await;
    let at = node.endpoint();
    let expected = "\
node     node1
address  127.0.0.1:5001
version  0.1.0
uptime   2 min 5 s
slots    256
disk     1.5 KiB

SHARD     SLOTS    LEADER  ROLE         TERM  COMMIT  APPLIED  PLUGIN
shard_0   0-127    node1   leader       3     17      16       kv 0.1.0
shard_10  128-255  -       quarantined  3     17      16       -
shard_10 does not serve: its state differs
";
    assert_eq!(run(&at, ["status", "--node"]).await.text(), expected);

    let status = run(&at, ["status", "--node", "--output", "json"]).await.json();
    assert_eq!(status[0]["node_id"], "node1");
    assert_eq!(status[0]["shards"][0]["slots"], json!([{ "start": 0, "end": 128 }]));
    assert_eq!(status[0]["shards"][0]["plugin"]["name"], "kv");
    assert_eq!(status[0]["shards"][1]["plugin"], Value::Null);
}

#[tokio::test]
async fn bad_usage_is_exit_code_2() {
    let node = Running::start().await;
    let at = node.endpoint();
    let usages: [&[&str]; 6] = [
        &[],
        &["put", "k"],
        &["scan", "a", "--limit", "many"],
        &["--timeout", "0", "status"],
        &["--output", "xml", "status"],
        &["--endpoints", "https://localhost:5001", "status"],
    ];
    for arguments in usages {
        let message = run(&at, arguments).await.failure(2);
        assert_ne!(message, "", "{arguments:?}");
    }
    let message = run(&at, ["put", "", "v"]).await.failure(2);
    assert_eq!(message, "error: invalid key: a key has 1 byte at least\n");
}

#[tokio::test]
async fn a_cluster_that_cannot_serve_is_exit_code_3() {
    let dead = dead_endpoint().await;
    let message = run(&dead, ["get", "k"]).await.failure(3);
    let expected = format!("error: no node answers at {dead}: is it running? (");
    assert!(message.starts_with(&expected), "{message}");

    let node = Running::start().await;
    let at = node.endpoint();
    let message = run(&at, ["--timeout", "0.2", "get", HANGING_KEY]).await.failure(3);
    assert!(message.contains("within 200ms"), "{message}");
    node.node.fail_next(vec![Status::unavailable("no quorum"); 1000]);
    let message = run(&at, ["--timeout", "0.2", "put", "k", "v"]).await.failure(3);
    assert!(message.contains("no quorum"), "{message}");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_the_program_quietly() {
    let node = Running::start().await;
    let at = node.endpoint();
    let mut put = command(&at)
        .args(["put", "k", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // More than a pipe holds, so that the writer notices.
    put.stdin.take().unwrap().write_all(&[b'x'; 1 << 20]).await.unwrap();
    assert!(put.wait().await.unwrap().success());

    let mut scan = command(&at)
        .args(["scan", "k"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(scan.stdout.take());
    let ran: Ran = scan.wait_with_output().await.unwrap().into();
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}
