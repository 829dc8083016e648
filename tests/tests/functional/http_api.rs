//! HTTP: its answers, and what it says to requests that make no sense.

use std::io::ErrorKind;

use raft_kv_tests::{Node, http, shared_node};

#[test]
fn a_put_answers_its_version_and_a_delete_whether_the_key_existed() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"http/answers");
    let put = connection.request("PUT", &path, b"v").unwrap();
    assert_eq!(put.status, 200, "{}", put.text());
    let version = put.json()["version"].as_str().unwrap().to_owned();
    assert!(version.parse::<u64>().unwrap() > 0);
    let get = connection.get(&path).unwrap();
    assert_eq!((get.status, &get.body[..]), (200, &b"v"[..]));
    assert_eq!(get.header("raftkv-version"), Some(&version[..]));
    let delete = connection.request("DELETE", &path, b"").unwrap();
    assert_eq!(delete.json(), serde_json::json!({ "existed": true }));
    let delete = connection.request("DELETE", &path, b"").unwrap();
    assert_eq!(delete.json(), serde_json::json!({ "existed": false }));
    let get = connection.get(&path).unwrap();
    assert_eq!(get.status, 404);
    assert_eq!(get.error().0, "not_found");
}

#[test]
fn a_path_need_not_be_encoded_more_than_http_asks() {
    let node = shared_node();
    let mut connection = node.http();
    connection.request("PUT", "/kv/http-plain_1.2~3", b"v").unwrap();
    let answer = connection.get(&http::path_of(b"http-plain_1.2~3")).unwrap();
    assert_eq!(answer.body, b"v");
    // A plus is a plus in a path, and hexadecimal digits are of either case.
    connection.request("PUT", "/kv/http+plus%c3%BC", b"v").unwrap();
    let answer = connection.get(&http::path_of("http+plus\u{fc}".as_bytes())).unwrap();
    assert_eq!(answer.body, b"v");
    connection.request("PUT", "/kv/http/slashes//and/", b"v").unwrap();
    let answer = connection.get(&http::path_of(b"http/slashes//and/")).unwrap();
    assert_eq!(answer.body, b"v");
}

#[test]
fn curls_upload_of_a_large_file_works() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"http/upload");
    let value = vec![3; 5 << 20];
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\
         Content-Length: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Expect: 100-continue\r\n\r\n",
        node.address(),
        value.len()
    );
    connection.send(head.as_bytes()).unwrap();
    assert_eq!(connection.receive().unwrap().status, 100);
    connection.send(&value).unwrap();
    assert_eq!(connection.receive().unwrap().status, 200);
    assert!(connection.get(&path).unwrap().body == value);
    connection.request("DELETE", &path, b"").unwrap();
}

#[test]
fn requests_that_make_no_sense_get_an_error_that_says_so() {
    let node = shared_node();
    let mut connection = node.http();
    let cases = [
        ("GET", "/kv/%zz", 400),
        ("GET", "/kv/%4", 400),
        ("GET", "/kv/a%", 400),
        ("PUT", "/kv/%G0", 400),
        ("DELETE", "/kv/%zz", 400),
        ("PUT", "/kv/a?expected_version=x", 400),
        ("GET", "/kv?limit=abc", 400),
        ("GET", "/kv?limit=-1", 400),
        ("GET", "/kv?limit=99999999999999999999", 400),
        ("GET", "/kv?prefix=%zz", 400),
        ("GET", "/kv?cursor=%zz", 400),
        ("GET", "/", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/kvs/a", 404),
        ("POST", "/admin/nothing", 404),
        ("POST", "/kv/a", 405),
        ("PATCH", "/kv/a", 405),
        ("PUT", "/kv", 405),
        ("DELETE", "/status", 405),
        ("POST", "/metrics", 405),
    ];
    for (method, target, expected) in cases {
        let answer = connection.request(method, target, b"").unwrap();
        let text = answer.text();
        assert_eq!(answer.status, expected, "{method} {target}: {text}");
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/json"), "{method} {target}: {kind}");
        let (code, _) = answer.error();
        if expected == 400 {
            assert_eq!(code, "invalid_argument", "{method} {target}");
        }
    }
}

/// Sends bytes and takes whatever comes of it, but nothing that hangs.
fn send_nonsense(node: &Node, bytes: &[u8]) {
    let mut connection = node.http();
    let answer = connection.send(bytes).and_then(|()| connection.receive());
    match answer {
        Ok(answer) => assert!((400..600).contains(&answer.status), "{answer:?}"),
        Err(error) => assert!(
            !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{bytes:?} is neither answered nor refused"
        ),
    }
}

#[test]
fn what_is_no_http_at_all_disturbs_nobody() {
    let node = shared_node();
    send_nonsense(&node, b"nonsense\r\n\r\n");
    send_nonsense(&node, b"\0\xff\xfe\r\n\r\n");
    send_nonsense(&node, b"GET /kv/a HTTP/9.9\r\n\r\n");
    send_nonsense(&node, b"PUT /kv/a HTTP/1.1\r\ncontent-length: x\r\n\r\n");
    send_nonsense(&node, &[b"GET /kv/a HTTP/1.1\r\n".as_slice(), &[b'x'; 1 << 20]].concat());
    // An HTTP/2 connection that goes wrong after its preface.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    send_nonsense(&node, &[preface.as_slice(), &[0xff; 100]].concat());
    // A body that never comes.
    let mut cut = node.http();
    cut.send(b"PUT /kv/http-cut HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc").unwrap();
    drop(cut);
    let mut connection = node.http();
    assert_eq!(connection.get("/healthz").unwrap().status, 200);
    assert_eq!(connection.get("/kv/http-cut").unwrap().status, 404);
}

#[test]
fn many_connections_are_served_at_once() {
    let node = shared_node();
    let mut connections: Vec<_> = (0..200).map(|_| node.http()).collect();
    for (n, connection) in connections.iter_mut().enumerate() {
        let path = http::path_of(format!("http/many/{n}").as_bytes());
        let answer = connection.request("PUT", &path, b"v").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}
