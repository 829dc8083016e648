//! Modules that never come into a cluster, and switches that never happen: nothing else is disturbed.

use std::time::Duration;

use serde_json::json;

use crate::{
    module::{Answer, Migrate, Version},
    support::{activate, active, send, three_nodes, upload},
};

#[tokio::test]
async fn modules_that_cannot_run_are_refused_with_the_reason() {
    let one = Version::new(1);
    let cluster = three_nodes(&one, 1);
    let wat = |text: &str| wat::parse_str(text).unwrap();
    let wasi = wat(r#"(module (@custom "raftkv" "name=w\nversion=1.0.0\nabi=1\n")
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (func (export "apply")) (func (export "query")))"#);
    let plain = wat("(module)");
    let large = vec![0; 17 << 20];
    let huge = vec![0; 100 << 20];
    for (what, module, status, reason) in [
        ("no module", b"hello".to_vec(), 400, "not a valid WebAssembly module"),
        ("one cut short", one.module()[..200].to_vec(), 400, "was the upload cut short?"),
        ("one without a manifest", plain, 400, "no custom section `raftkv`"),
        ("one that imports WASI", wasi, 400, "which plugins cannot have"),
        ("17 MiB", large, 413, "the limit is 16777216 bytes"),
        ("100 MiB", huge, 413, "the limit is 16777216 bytes"),
    ] {
        let answer = send(&cluster, 1, &module);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert!(answer.text().contains(reason), "{what}: {}", answer.text());
    }
    let same = Version { salt: 7, ..Version::new(1) };
    let answer = send(&cluster, 0, &same.module());
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("give this one a version of its own"), "{}", answer.text());
    assert!(cluster.node(1).resident_bytes() < 400 << 20, "{}", cluster.node(1).resident_bytes());
    let client = cluster.client().await;
    assert_eq!(Answer::read(&client.apply("a", "i").await.unwrap()).version, 1);
}

#[tokio::test]
async fn a_module_that_takes_too_long_to_compile_is_refused() {
    let options = raft_kv_tests::NodeOptions::new()
        .shards(1)
        .plugin_module(Version::new(1).module())
        .config("[plugins]\ncompile-cpu-seconds = 1\n");
    let node = options.start();
    // Many large functions: each legal, all of them together several seconds' work on a fast machine,
    // since a square root takes a check of what came out with it.
    let body = format!("(local.get 0) {} (local.set 0)", "f64.sqrt ".repeat(10_000));
    let functions = format!("(func (param f64) {body})").repeat(40);
    let module = wat::parse_str(format!(
        r#"(module (@custom "raftkv" "name=slow\nversion=1.0.0\nabi=1\n")
            (memory (export "memory") 1) (func (export "apply")) (func (export "query")) {functions})"#
    ))
    .unwrap();
    let answer = node.http().request("POST", "/admin/plugin", &module).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("more than 1 s of processor time"), "{}", answer.text());
    assert!(
        !node
            .data_dir()
            .join("plugins")
            .read_dir()
            .unwrap()
            .any(|file| { file.unwrap().metadata().unwrap().len() == module.len() as u64 })
    );
    let client = node.client().await;
    assert_eq!(Answer::read(&client.apply("a", "i").await.unwrap()).count, 1);
}

#[tokio::test]
async fn a_migration_that_never_ends_is_refused_and_the_shard_goes_on() {
    let one = Version::new(1);
    let endless = Version { migrate: Migrate::Forever, ..Version::new(2) };
    let cluster = three_nodes(&one, 1);
    let client = cluster.client().await;
    client.apply("a", "i").await.unwrap();
    upload(&cluster, 0, &endless);
    let answer = activate(&cluster, 0, &endless, &json!({}));
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("uses more fuel in this shard"), "{}", answer.text());
    assert!(answer.text().contains("split the shard first"), "{}", answer.text());
    assert_eq!(Answer::read(&client.apply("a", "i").await.unwrap()).count, 2);
    assert_eq!(active(&cluster, 0)["shard_0"].0, 1);
}

#[tokio::test]
async fn a_switch_of_what_is_not_there_is_refused_and_says_what() {
    let one = Version::new(1);
    let cluster = three_nodes(&one, 1);
    let two = Version::new(2);
    let answer = activate(&cluster, 0, &two, &json!({}));
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("there is no plugin vers 0.2.0"), "{}", answer.text());
    upload(&cluster, 0, &two);
    let answer = activate(&cluster, 0, &two, &json!({"shards": ["shard_9"]}));
    assert_eq!(answer.status, 404, "{}", answer.text());
    let answer = activate(&cluster, 0, &two, &json!({"canary": "shard_9"}));
    assert_eq!(answer.status, 400, "{}", answer.text());
    let answer = activate(&cluster, 0, &two, &json!({"shards": "some"}));
    assert_eq!(answer.status, 400, "{}", answer.text());
    let answer = cluster.request(0, "POST", "/admin/plugin/vers/rollback", "{}");
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("ran no other plugin before"), "{}", answer.text());
    let answer = cluster.request(0, "POST", "/admin/plugin/nobody/rollback", "{}");
    assert_eq!(answer.status, 404, "{}", answer.text());
    tokio::time::timeout(Duration::from_secs(20), cluster.assert_replicas_identical())
        .await
        .unwrap();
}
