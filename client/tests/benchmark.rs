//! The load generator against a node in this process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{process::Output, time::Duration};

use common::{Running, dead_endpoint, not_leader};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, time::timeout};
use tonic::Status;

/// However the cluster behaves, a run of the tests here is over by then.
const LONGEST_RUN: Duration = Duration::from_secs(30);

/// Runs the program for 300 ms a phase with these arguments, separated by blanks.
async fn run(endpoints: &str, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raft-kv-benchmark"));
    let ran = command
        .args([
            "--endpoints",
            endpoints,
            "--duration",
            "300ms",
            "--concurrency",
            "4",
            "--keys",
            "1000",
        ])
        .args(arguments.split_whitespace())
        .kill_on_drop(true)
        .output();
    timeout(LONGEST_RUN, ran).await.unwrap().unwrap()
}

fn stderr(ran: &Output) -> String {
    String::from_utf8(ran.stderr.clone()).unwrap()
}

/// The report of a run that ended with this code.
fn report(ran: &Output, code: i32) -> Value {
    assert_eq!(ran.status.code(), Some(code), "{ran:?}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[tokio::test]
async fn each_phase_has_figures_of_its_own() {
    let node = Running::start().await;
    let ran = run(&node.endpoint(), "--ops put,get,mixed --connections 3 --output json").await;
    let report = report(&ran, 0);
    assert_eq!(report["connections"], 3);
    assert_eq!(report["duration_seconds"], 0.3);
    let phases = report["phases"].as_array().unwrap();
    let names: Vec<&Value> = phases.iter().map(|phase| &phase["phase"]).collect();
    assert_eq!(names, ["put", "get", "mixed"]);
    for phase in phases {
        let operations = phase["operations"].as_u64().unwrap();
        assert!(operations > 0, "{phase}");
        assert_eq!(phase["calls"], operations);
        assert_eq!((&phase["failed"], &phase["missing"]), (&json!(0), &json!(0)), "{phase}");
        let rate = phase["operations_per_second"].as_f64().unwrap();
        assert!((rate * 0.3 - operations as f64).abs() < 0.01, "{phase}");
        let latency = |name: &str| phase["latency_ms"][name].as_f64().unwrap();
        assert!(latency("p50") <= latency("p99") && latency("p99") <= latency("max"), "{phase}");
    }
    assert!(node.node.has("key-0000000000000000") && node.node.has("key-00000000000003e7"));
    assert!(!node.node.has("key-00000000000003e8"));
}

#[tokio::test]
async fn the_table_has_a_row_for_each_phase() {
    let node = Running::start().await;
    let ran = run(&node.endpoint(), "--value-size 10").await;
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let table = String::from_utf8(ran.stdout).unwrap();
    let starts: Vec<&str> =
        table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(starts, ["raftkv", "concurrency", "300ms", "PHASE", "put", "get"], "{table}");
    assert!(table.contains("values of 10 bytes"), "{table}");
}

#[tokio::test]
async fn a_batch_counts_its_operations() {
    let node = Running::start().await;
    let ran = run(&node.endpoint(), "--ops put,get --batch 10 --output json").await;
    for phase in report(&ran, 0)["phases"].as_array().unwrap() {
        let calls = phase["calls"].as_u64().unwrap();
        assert!(calls > 0, "{phase}");
        assert_eq!(phase["operations"], calls * 10);
        assert_eq!(phase["failed"], 0);
    }
}

#[tokio::test]
async fn gets_of_keys_that_were_not_loaded_are_said_to_be_missing() {
    let node = Running::start().await;
    let ran = run(&node.endpoint(), "--ops get --no-load --output json").await;
    let phase = &report(&ran, 0)["phases"][0];
    assert_ne!(phase["missing"], 0);
    assert_eq!(phase["missing"], phase["operations"]);
}

#[tokio::test]
async fn errors_are_counted_by_kind() {
    let node = Running::start().await;
    // More than the warm-up takes, and fewer than the phase: after a failure a
    // caller pauses.
    let faults = (0..10).flat_map(|_| [not_leader(""), Status::internal("the disk is gone")]);
    node.node.fail_next(faults);
    let ran = run(&node.endpoint(), "--ops put --output json").await;
    let phase = &report(&ran, 0)["phases"][0];
    assert_ne!(phase["operations"], 0);
    let count = |kind: &str| phase["errors"][kind]["operations"].as_u64().unwrap();
    assert_eq!(phase["failed"], count("NotLeader") + count("Internal"));
    assert_eq!(phase["errors"]["Internal"]["message"], "the disk is gone");
}

#[tokio::test]
async fn a_phase_without_a_success_is_exit_code_3() {
    let node = Running::start().await;
    node.node.fail_next(vec![Status::unavailable("no quorum"); 10_000]);
    let ran = run(&node.endpoint(), "--ops put --output json").await;
    let phase = &report(&ran, 3)["phases"][0];
    assert_eq!(phase["operations"], 0);
    assert_eq!(phase["errors"]["Unavailable"]["message"], "no quorum");
    assert_eq!(stderr(&ran), "error: every put failed: see the errors in the report\n");

    let ran = run(&node.endpoint(), "--ops get").await;
    assert_eq!(ran.status.code(), Some(3));
    assert!(stderr(&ran).contains("cannot load the keys: no quorum (Unavailable)"), "{ran:?}");
}

#[tokio::test]
async fn endpoints_that_do_not_answer_are_left_out() {
    let (node, dead) = (Running::start().await, dead_endpoint().await);
    let both = format!("{dead},{}", node.endpoint());
    let ran = run(&both, "--ops put --output json").await;
    let report = report(&ran, 0);
    assert_eq!(report["endpoints"], json!([node.endpoint()]));
    assert_eq!(report["phases"][0]["failed"], 0);
    assert!(stderr(&ran).starts_with(&format!("{dead} is left out")), "{ran:?}");

    let ran = run(&dead, "").await;
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(3), 0), "{ran:?}");
    assert!(stderr(&ran).starts_with(&format!("error: no node answers at {dead}: is it running?")));
}

#[tokio::test]
async fn a_node_that_never_answers_does_not_hold_the_run_up() {
    // Connections are taken by the kernel and then left alone.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let ran = run(&endpoint, "--ops put --timeout 50ms --output json").await;
    let phase = &report(&ran, 3)["phases"][0];
    assert_eq!(phase["latency_ms"], Value::Null);
    assert_eq!(phase["errors"]["Timeout"]["message"], "no answer within 50ms");
}

#[tokio::test]
async fn bad_usage_is_exit_code_2() {
    for arguments in ["--ops fly", "--batch 0", "--target etcd --via client", "--timeout 5y"] {
        let ran = run("127.0.0.1:1", arguments).await;
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    }
}
