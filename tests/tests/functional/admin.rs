//! `/admin` over HTTP: what it says to requests that make no sense.

use raft_kv_tests::shared_node;

#[test]
fn bodies_that_make_no_sense_are_refused_with_what_and_where() {
    let node = shared_node();
    let mut connection = node.http();
    for (path, body, said) in [
        ("/admin/shard", "", "empty"),
        ("/admin/shard", r#"{"nodes": ["node1"]}"#, "missing field `shard_id`"),
        ("/admin/shard", r#"{"shard_id": "a", "nodes": "node1"}"#, "expected a sequence at line 1"),
        ("/admin/shard/merge", r#"{"sources": ["a"]}"#, "missing field `target`"),
        ("/admin/shard/shard_0/migrate", r#"{"from": "a", "too": "b"}"#, "unknown field `too`"),
        ("/admin/shard/shard_0/split", "{\n\"new_shards\": [}", "line 2 column"),
        ("/admin/shard/shard_0/transfer-leader", "[\"node1\"]", "list"),
        ("/admin/shard/shard_0/replica", "node1", "line 1 column"),
        ("/admin/node", r#"{"node_id": "node9"}"#, "missing field `address`"),
    ] {
        let answer = connection.request("POST", path, body.as_bytes()).unwrap();
        let (code, message) = answer.error();
        assert_eq!((answer.status, &code[..]), (400, "invalid_argument"), "{path}: {message}");
        assert!(message.contains(said), "{path}: {message}");
    }
    let answer = connection.request("PUT", "/admin/balancer", b"{\"enabled\": 1}").unwrap();
    assert!(answer.error().1.contains("expected a boolean"), "{}", answer.text());
}

#[test]
fn a_body_that_is_too_long_leaves_the_connection_usable() {
    let node = shared_node();
    let mut connection = node.http();
    let answer = connection.request("POST", "/admin/shard", &vec![b' '; 2 << 20]).unwrap();
    assert_eq!((answer.status, &answer.error().0[..]), (413, "invalid_argument"));
    assert_eq!(connection.get("/healthz").unwrap().status, 200);
}

#[test]
fn times_ids_and_methods_that_make_no_sense_are_refused() {
    let node = shared_node();
    let mut connection = node.http();
    for (method, target, status, said) in [
        ("DELETE", "/admin/shard/shard_0?timeout=soon", 400, "timeout: \"soon\""),
        ("DELETE", "/admin/shard/shard_0?force=perhaps", 400, "force"),
        ("DELETE", "/admin/shard/shard_0/replica/node1?timeout=-1", 400, "timeout: \"-1\""),
        ("DELETE", "/admin/node/node1?timeout=25h", 400, "24 hours"),
        ("GET", "/admin/operation/first", 400, "first"),
        ("GET", "/admin/shard/%ff", 400, "UTF-8"),
        ("PUT", "/admin/shard", 405, "PUT is not a method"),
        ("GET", "/admin/shard/merge", 405, "GET is not a method"),
        ("DELETE", "/admin/balancer", 405, "DELETE is not a method"),
        ("GET", "/admin", 404, "nothing at /admin"),
        ("GET", "/admin/shards", 404, "nothing at /admin/shards"),
    ] {
        let answer = connection.request(method, target, b"").unwrap();
        let (_, message) = answer.error();
        assert_eq!(answer.status, status, "{method} {target}: {message}");
        assert!(message.contains(said), "{method} {target}: {message}");
    }
}
