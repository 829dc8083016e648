//! The command line: its output and its exit codes.

use raft_kv_tests::{ReservedPort, cli, shared_node};
use serde_json::json;

#[test]
fn put_get_delete_and_scan_work_as_in_the_manual() {
    let node = shared_node();
    let run = |arguments: &[&str]| cli::run(&node.endpoint(), arguments);
    let put = run(&["put", "cli/plain/a", "1"]);
    assert_eq!(put.code, 0, "{put:?}");
    assert!(put.text().starts_with("version "), "{put:?}");
    let get = run(&["get", "cli/plain/a"]);
    assert_eq!((get.code, &get.stdout[..]), (0, &b"1\n"[..]));
    assert_eq!(run(&["put", "cli/plain/b", ""]).code, 0);
    assert_eq!(run(&["put", "cli/plain/c\t", "tab"]).code, 0);
    let scan = run(&["scan", "cli/plain/"]);
    assert_eq!(
        (scan.code, &scan.text()[..]),
        (0, "cli/plain/a\t1\ncli/plain/b\t\ncli/plain/c\\t\ttab\n")
    );
    let scan = run(&["scan", "cli/plain/", "--limit", "1"]);
    assert_eq!(scan.text(), "cli/plain/a\t1\n");
    assert_eq!(run(&["delete", "cli/plain/a"]).code, 0);
    let endpoint = node.endpoint();
    let with_flag = ["--endpoints", &endpoint, "get", "cli/plain/b"];
    assert_eq!(cli::run("http://127.0.0.1:1", with_flag).text(), "\n");
}

#[test]
fn json_output_is_one_object_a_line() {
    let node = shared_node();
    let run = |arguments: &[&str]| {
        let ran = cli::run(&node.endpoint(), arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()
    };
    let put = run(&["--output", "json", "put", "cli/json/a", "1"]);
    let version = put[0]["version"].as_u64().unwrap();
    assert_eq!(put, [json!({ "key": "cli/json/a", "version": version })]);
    run(&["--output", "json", "put", "--hex", "636c692f6a736f6e2fff", "2"]);
    let scan = run(&["--output", "json", "scan", "cli/json/"]);
    assert_eq!(scan[0], json!({ "key": "cli/json/a", "value": "1", "version": version }));
    assert_eq!(scan[1]["key"], json!({ "base64": "Y2xpL2pzb24v/w==" }));
    let delete = run(&["delete", "cli/json/a", "--output", "json"]);
    assert_eq!(delete, [json!({ "key": "cli/json/a", "existed": true })]);
    let status = run(&["--output", "json", "status", "--node"]);
    assert_eq!(status[0]["node_id"], "node1");
    assert_eq!(status[0]["shards"].as_array().unwrap().len(), 4);
}

#[test]
fn exit_codes_tell_what_is_the_matter() {
    let node = shared_node();
    let here = node.endpoint();
    let nobody = ReservedPort::take();
    let nowhere = format!("http://{}", nobody.address());
    let cases: [(&str, &[&str], i32, &str); 12] = [
        (&here, &["put", "cli/exit", "v"], 0, ""),
        (&here, &["get", "cli/absent"], 1, "cli/absent"),
        (&here, &["delete", "cli/absent"], 1, "cli/absent"),
        (&here, &["scan", "cli/absent"], 0, ""),
        (&here, &["get"], 2, "Usage"),
        (&here, &["frobnicate"], 2, "frobnicate"),
        (&here, &["get", "--hex", "xyz"], 2, "xyz"),
        (&here, &["put", "", "v"], 2, "key"),
        ("not an endpoint", &["get", "k"], 2, "endpoint"),
        (&here, &["put", "cli/exit", "v", "--expected-version", "1"], 3, "version"),
        (&nowhere, &["get", "k"], 3, "running"),
        (&nowhere, &["status"], 3, "running"),
    ];
    for (endpoint, arguments, code, said) in cases {
        let ran = cli::run(endpoint, arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(said), "{arguments:?}: {ran:?}");
        assert_eq!(ran.stderr.is_empty(), code == 0, "{arguments:?}: {ran:?}");
        if code != 0 {
            assert!(ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
        }
    }
}

#[test]
fn compare_and_put_works_from_a_shell() {
    let node = shared_node();
    let run = |arguments: &[&str]| cli::run(&node.endpoint(), arguments);
    let first = run(&["put", "cli/compare", "1", "--expected-version", "0"]);
    let version = first.text().trim().strip_prefix("version ").unwrap().to_owned();
    assert_eq!(run(&["put", "cli/compare", "no", "--expected-version", "0"]).code, 3);
    let second = run(&["put", "cli/compare", "2", "--expected-version", &version]);
    assert_eq!(second.code, 0, "{second:?}");
    assert_eq!(run(&["get", "cli/compare"]).text(), "2\n");
}

#[test]
fn the_status_of_a_node_is_a_table_of_shards() {
    let node = shared_node();
    let ran = cli::run(&node.endpoint(), ["status", "--node"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = ran.text();
    for part in ["node1", "shard_0", "shard_3", "leader", "SHARD"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
