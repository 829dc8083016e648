//! Numbers, and what adds to them.

use futures::future::join_all;
use raft_kv_client::{Error, Operation, Outcome, PluginErrorKind};
use raft_kv_plugin_kv::protocol::failure::{NOT_A_NUMBER, OVERFLOW};
use raft_kv_proto::v1::{IncrementRequest, error_detail::Detail};
use raft_kv_tests::{cli, grpc, http, shared_node};
use serde_json::json;

#[tokio::test]
async fn a_number_is_text_that_can_be_put_and_got() {
    let node = shared_node();
    let client = node.client().await;
    let key = "increment/text";
    assert_eq!(client.increment(key, 5).await.unwrap(), 5);
    assert_eq!(client.get(key).await.unwrap().unwrap(), "5");
    client.put(key, "-40").await.unwrap();
    assert_eq!(client.increment(key, -2).await.unwrap(), -42);
    assert_eq!(client.get(key).await.unwrap().unwrap(), "-42");
}

#[tokio::test]
async fn what_is_no_number_or_none_any_more_has_a_code_and_a_message() {
    let node = shared_node();
    let client = node.client().await;
    let key = "increment/refused";
    for (value, delta, code, said) in [
        ("many", 1, NOT_A_NUMBER, "\"many\" is not the decimal text"),
        ("9223372036854775807", 1, OVERFLOW, "64 bits"),
    ] {
        client.put(key, value).await.unwrap();
        match client.increment(key, delta).await {
            Err(Error::Plugin { kind: PluginErrorKind::Failed, code: found, message }) => {
                assert_eq!(found, code);
                assert!(message.contains(said), "{message}");
            }
            other => panic!("{value}: {other:?}"),
        }
        assert_eq!(client.get(key).await.unwrap().unwrap(), value);
    }
    let mut kv = grpc::kv(node.channel().await);
    let request = IncrementRequest { key: key.into(), delta: i64::MAX, once: None };
    let status = kv.increment(request).await.unwrap_err();
    assert!(matches!(grpc::detail(&status), Detail::PluginError(e) if e.code == OVERFLOW));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_that_race_all_count() {
    const TASKS: usize = 8;
    const INCREMENTS: usize = 100;
    let node = shared_node();
    let clients = join_all((0..TASKS).map(|_| node.client())).await;
    let tasks = clients.into_iter().map(|client| {
        tokio::spawn(async move {
            let ones = (0..INCREMENTS).map(|_| client.increment("increment/race", 1));
            join_all(ones).await.into_iter().map(Result::unwrap).collect::<Vec<i64>>()
        })
    });
    let mut seen: Vec<i64> = join_all(tasks).await.into_iter().flat_map(Result::unwrap).collect();
    seen.sort_unstable();
    let all: Vec<i64> = (1..=(TASKS * INCREMENTS) as i64).collect();
    assert_eq!(seen, all, "each sees a number of its own");
}

#[tokio::test]
async fn a_batch_increments_in_order() {
    let node = shared_node();
    let client = node.client().await;
    let key = "increment/batch";
    let operations = [
        Operation::increment(key, 1),
        Operation::get(key),
        Operation::put(key, "10"),
        Operation::increment(key, 1),
        Operation::put(key, "x"),
        Operation::increment(key, 1),
    ];
    let results = client.batch(operations).await.unwrap();
    assert!(matches!(results[0], Ok(Outcome::Increment(1, _))), "{results:?}");
    assert!(matches!(&results[1], Ok(Outcome::Get(Some(found))) if found.value == "1"));
    assert!(matches!(results[3], Ok(Outcome::Increment(11, _))), "{results:?}");
    assert!(matches!(results[5], Err(Error::Plugin { code: NOT_A_NUMBER, .. })), "{results:?}");
}

#[test]
fn over_http_a_path_that_ends_so_increments() {
    let node = shared_node();
    let mut connection = node.http();
    let key = b"increment/http";
    let path = http::path_of(key);
    let mut post = |target: &str| connection.request("POST", target, b"").unwrap();
    let answer = post(&format!("{path}/increment"));
    assert_eq!((answer.status, &answer.json()["value"]), (200, &json!("1")), "{}", answer.text());
    assert!(answer.json()["version"].is_string());
    assert_eq!(post(&format!("{path}/increment?by=-11")).json()["value"], "-10");
    assert_eq!(post("/kv/increment/http/increment").json()["value"], "-9");
    for nonsense in ["x", "1.5", "9223372036854775808"] {
        let answer = post(&format!("{path}/increment?by={nonsense}"));
        assert_eq!(answer.status, 400, "{}", answer.text());
        answer.error();
    }
    let answer = post(&path);
    assert_eq!((answer.status, answer.error().0.as_str()), (405, "method_not_allowed"));
    // A key that ends like that is a key like others.
    let ends_so = b"increment/http/increment";
    assert_eq!(post(&format!("{}/increment?by=7", http::path_of(ends_so))).json()["value"], "7");
    assert_eq!(connection.get("/kv/increment/http/increment").unwrap().body, b"7");
    assert_eq!(connection.get(&path).unwrap().body, b"-9");
    connection.request("PUT", &path, b"x").unwrap();
    let answer = connection.request("POST", &format!("{path}/increment"), b"").unwrap();
    assert_eq!((answer.status, answer.error().0.as_str()), (409, "plugin_error"));
    let long = [("raftkv-key", "increment%2Fheader")];
    let answer = connection.request_with_headers("POST", "/kv//increment", &long, b"").unwrap();
    assert_eq!(answer.json()["value"], "1", "{}", answer.text());
    assert_eq!(connection.get("/kv/increment/header").unwrap().body, b"1");
}

#[test]
fn increments_work_from_a_shell() {
    let node = shared_node();
    let run = |arguments: &[&str]| cli::run(&node.endpoint(), arguments);
    assert_eq!(run(&["increment", "increment/cli"]).text(), "1\n");
    assert_eq!(run(&["increment", "increment/cli", "--by", "-3"]).text(), "-2\n");
    let answer = run(&["--output", "json", "increment", "increment/cli", "--by", "10"]).json();
    assert_eq!(answer, [json!({ "key": "increment/cli", "value": 8 })]);
    assert_eq!(run(&["increment", "increment/cli", "--by", "x"]).code, 2);
    run(&["put", "increment/cli", "x"]);
    let refused = run(&["increment", "increment/cli"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("decimal text"), "{refused:?}");
}
