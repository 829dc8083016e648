//! What is too large is refused by name, and the connection goes on.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use raft_kv_client::{Error, Operation};
use raft_kv_proto::v1::{
    ApplyRequest, DeleteRequest, GetRequest, PutRequest, QueryRequest, error_detail::Detail,
};
use raft_kv_tests::{Node, grpc, http, shared_node};
use tokio::net::TcpStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

const KEY_LIMIT: usize = 64 << 10;
const VALUE_LIMIT: usize = 8 << 20;

/// A gRPC channel, and how many connections it has made.
async fn counted_channel(node: &Node) -> (Channel, Arc<AtomicUsize>) {
    let address = node.address();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let connector = tower::service_fn(move |_: Uri| {
        counter.fetch_add(1, SeqCst);
        async move { Ok::<_, io::Error>(TokioIo::new(TcpStream::connect(address).await?)) }
    });
    let endpoint = Endpoint::from_shared(node.endpoint()).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    (channel, connections)
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

/// Checks that a field was refused, with its limit.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, field: &str, limit: &str) {
    let status = result.expect_err("it is out of bounds");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let message = status.message();
    assert!(message.contains(field), "{message:?} names no {field}");
    match grpc::detail(&status) {
        Detail::InvalidArgument(invalid) => {
            assert_eq!(invalid.field, field, "{invalid:?}");
            assert!(invalid.limit.contains(limit), "{invalid:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_and_the_grpc_connection_goes_on() {
    let node = shared_node();
    let (channel, connections) = counted_channel(&node).await;
    let mut kv = grpc::kv(channel.clone());
    let mut machine = grpc::state_machine(channel);
    let long_key = vec![b'k'; 70 << 10];
    let key_limit = KEY_LIMIT.to_string();

    let large = kv.put(put("limits/large", vec![1; 9 << 20])).await;
    assert_refused(large, "value", &VALUE_LIMIT.to_string());
    assert_refused(kv.put(put("", "v")).await, "key", "1");
    assert_refused(kv.put(put(long_key.clone(), "v")).await, "key", &key_limit);

    let get = |key: Vec<u8>| GetRequest { key: key.into(), consistency: 0 };
    assert_refused(kv.get(get(Vec::new())).await, "key", "1");
    assert_refused(kv.get(get(long_key.clone())).await, "key", &key_limit);
    let delete = |key: Vec<u8>| DeleteRequest { key: key.into(), ..DeleteRequest::default() };
    assert_refused(kv.delete(delete(Vec::new())).await, "key", "1");
    assert_refused(kv.delete(delete(long_key.clone())).await, "key", &key_limit);

    let apply = ApplyRequest { key: Bytes::new(), command: Bytes::from_static(b"c"), once: None };
    assert_refused(machine.apply(apply).await, "key", "1");
    let query =
        QueryRequest { key: long_key.into(), request: Bytes::from_static(b"q"), consistency: 0 };
    assert_refused(machine.query(query).await, "key", &key_limit);

    kv.put(put("limits/after", "v")).await.unwrap();
    let found = kv.get(get(b"limits/after".to_vec())).await.unwrap();
    assert_eq!(found.into_inner().value, "v");
    let large = kv.get(get(b"limits/large".to_vec())).await.unwrap();
    assert!(!large.into_inner().found, "nothing was written");
    assert_eq!(connections.load(SeqCst), 1, "the connection was dropped");
}

#[tokio::test]
async fn keys_and_values_may_be_exactly_as_large_as_the_limits() {
    let node = shared_node();
    let mut kv = grpc::kv(node.channel().await);
    let key = Bytes::from(vec![b'k'; KEY_LIMIT]);
    let value = Bytes::from(vec![7; VALUE_LIMIT]);
    kv.put(put(key.clone(), value.clone())).await.unwrap();
    let get = GetRequest { key: key.clone(), consistency: 0 };
    let found = kv.get(get).await.unwrap().into_inner();
    assert!(found.found && found.value == value);
    let scan =
        raft_kv_proto::v1::ScanRequest { prefix: key.slice(..KEY_LIMIT - 1), ..Default::default() };
    let mut pages = kv.scan(scan).await.unwrap().into_inner();
    let page = pages.message().await.unwrap().unwrap();
    assert!(page.pairs.len() == 1 && page.pairs[0].value == value);
    let delete = DeleteRequest { key: key.clone(), ..DeleteRequest::default() };
    assert!(kv.delete(delete).await.unwrap().into_inner().existed);

    let longer_key = [&key[..], b"k"].concat();
    let refused = kv.put(put(longer_key, "v")).await;
    assert_refused(refused, "key", &KEY_LIMIT.to_string());
    let longer_value = [&value[..], b"v"].concat();
    let refused = kv.put(put("limits/exact", longer_value)).await;
    assert_refused(refused, "value", &VALUE_LIMIT.to_string());
}

#[tokio::test]
async fn the_client_library_names_the_field_that_is_out_of_bounds() {
    let node = shared_node();
    let client = node.client().await;
    let cases = [
        (Vec::new(), 1, "key"),
        (vec![b'k'; 70 << 10], 1, "key"),
        (b"limits/library".to_vec(), 9 << 20, "value"),
    ];
    for (key, value_length, expected) in cases {
        match client.put(key, vec![0; value_length]).await {
            Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    client.put("limits/library", "v").await.unwrap();
}

#[tokio::test]
async fn a_batch_of_too_many_operations_is_refused_as_a_whole() {
    let node = shared_node();
    let client = node.client().await;
    let gets = (0..100_001).map(|_| Operation::get("limits/batch"));
    match client.batch(gets).await {
        Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, "operations"),
        other => panic!("{:?}", other.map(|results| results.len())),
    }
    client.put("limits/batch", "v").await.unwrap();
}

#[test]
fn a_value_out_of_bounds_is_refused_and_the_http_connection_goes_on() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"limits/http");
    let large = vec![1; 9 << 20];
    for _ in 0..2 {
        let answer = connection.request("PUT", &path, &large).unwrap();
        assert_eq!(answer.status, 413, "{}", answer.text());
        let (code, message) = answer.error();
        assert_eq!(code, "invalid_argument");
        assert!(message.contains("value"), "{message}");
        assert!(message.contains(&VALUE_LIMIT.to_string()), "{message}");
        assert_eq!(connection.get(&path).unwrap().status, 404);
    }
    let answer = connection.request("PUT", &path, &large[..VALUE_LIMIT]).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = connection.request("DELETE", &path, b"").unwrap();
    assert_eq!(answer.json()["existed"], true);
}

#[test]
fn a_value_out_of_bounds_that_comes_in_chunks_is_refused_too() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"limits/chunks");
    let head = format!("PUT {path} HTTP/1.1\r\nhost: node\r\ntransfer-encoding: chunked\r\n\r\n");
    connection.send(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![1; 1 << 20], b"\r\n"].concat();
    for _ in 0..9 {
        connection.send(&chunk).unwrap();
    }
    connection.send(b"0\r\n\r\n").unwrap();
    let answer = connection.receive().unwrap();
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert_eq!(connection.get(&path).unwrap().status, 404);
}

#[test]
fn a_key_out_of_bounds_is_refused_over_http() {
    let node = shared_node();
    let mut connection = node.http();
    let answer = connection.request("PUT", "/kv/", b"v").unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.error().0, "invalid_argument");
    // A target of more than 64 KiB is beyond what HTTP servers take: an answer
    // is all that can be asked for.
    let path = http::path_of(&vec![b'k'; 70 << 10]);
    let answer = node.http().request("PUT", &path, b"v").unwrap();
    assert!(matches!(answer.status, 400 | 414), "{}", answer.status);
    // Percent-encoded this is long, but a valid key.
    let path = http::path_of(&[0xff; 20 << 10]);
    let answer = connection.request("PUT", &path, b"v").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(connection.get(&path).unwrap().body, b"v");
}

#[test]
fn a_key_of_64_kib_goes_over_http_in_a_header() {
    let node = shared_node();
    let mut connection = node.http();
    let mut request = |method: &str, target: &str, key: &[u8]| {
        let key = http::encoded(key);
        let headers = [("raftkv-key", key.as_str())];
        // Only a PUT is expected to have a body: the server may answer another
        // before it has read one, and then closes the connection.
        let body: &[u8] = if method == "PUT" { b"v" } else { b"" };
        connection.request_with_headers(method, target, &headers, body).unwrap()
    };
    let key = vec![0xfe; KEY_LIMIT];
    let answer = request("PUT", "/kv/", &key);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(request("GET", "/kv/", &key).body, b"v");
    assert_eq!(request("DELETE", "/kv/", &key).json()["existed"], true);
    assert_eq!(request("GET", "/kv/", &key).status, 404);

    let answer = request("PUT", "/kv/", &[&key[..], b"k"].concat());
    assert_eq!(answer.status, 400, "{}", answer.text());
    let (code, message) = answer.error();
    assert_eq!(code, "invalid_argument");
    assert!(message.contains(&KEY_LIMIT.to_string()), "{message}");
    assert_eq!(request("PUT", "/kv/", b"").status, 400);
    assert_eq!(request("PUT", "/kv/two", b"keys").status, 400);
}
