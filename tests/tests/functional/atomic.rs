//! Operations that all take effect or none, on conditions.

use futures::future::join_all;
use raft_kv_client::{AtomicOutcome, Error, Operation, Outcome, RaftKVClient, Version};
use raft_kv_plugin_kv::protocol::failure::NOT_A_NUMBER;
use raft_kv_proto::v1::{self, AtomicRequest, compare::Condition, error_detail::Detail};
use raft_kv_tests::{Node, cli, grpc, shared_node};
use serde_json::{Value, json};
use tonic::Code;

#[tokio::test]
async fn operations_take_effect_together_and_each_has_its_outcome() {
    let node = shared_node();
    let client = node.client().await;
    client.put("{atomic/all}old", "v").await.unwrap();
    let request = client
        .atomic()
        .if_exists("{atomic/all}old")
        .if_absent("{atomic/all}new")
        .put("{atomic/all}new", "1")
        .get("{atomic/all}new")
        .delete("{atomic/all}old")
        .delete("{atomic/all}old")
        .increment("{atomic/all}new", 41)
        .put_with_ttl("{atomic/all}short", "v", std::time::Duration::from_secs(60));
    let AtomicOutcome::Held(outcomes) = request.send().await.unwrap() else { panic!() };
    let Outcome::Put(version) = outcomes[0] else { panic!("{outcomes:?}") };
    assert!(matches!(&outcomes[1], Outcome::Get(Some(found)) if found.value == "1"));
    assert_eq!(outcomes[2..4], [Outcome::Delete(true), Outcome::Delete(false)]);
    assert_eq!(outcomes[4], Outcome::Increment(42, version));
    assert_eq!(outcomes[5], Outcome::Put(version), "what is written together has one version");
    let found = client.get_with_version("{atomic/all}new").await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version), (&b"42"[..], version));
    assert!(client.get_with_version("{atomic/all}short").await.unwrap().unwrap().ttl.is_some());
    assert_eq!(client.get("{atomic/all}old").await.unwrap(), None);
}

#[tokio::test]
async fn a_condition_that_does_not_hold_is_named_and_nothing_is_done() {
    let node = shared_node();
    let client = node.client().await;
    let (key, other) = ("{atomic/failed}a", "{atomic/failed}b");
    let version = client.put(key, "v").await.unwrap();
    let failed = |compare, version| AtomicOutcome::Failed { compare, version };
    for (request, outcome) in [
        (client.atomic().if_version(key, version.0 + 1), failed(0, version)),
        (client.atomic().if_version(key, version).if_absent(key), failed(1, version)),
        (client.atomic().if_exists(key).if_exists(other), failed(1, Version::ABSENT)),
    ] {
        let request = request.put(key, "no").put(other, "no").delete(key);
        assert_eq!(request.send().await.unwrap(), outcome);
    }
    let found = client.get_with_version(key).await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version), (&b"v"[..], version));
    assert_eq!(client.get(other).await.unwrap(), None);
}

#[tokio::test]
async fn an_operation_that_fails_undoes_all() {
    let node = shared_node();
    let client = node.client().await;
    client.put("{atomic/undone}n", "no number").await.unwrap();
    let request = client.atomic().put("{atomic/undone}k", "v").increment("{atomic/undone}n", 1);
    match request.send().await {
        Err(Error::Plugin { code: NOT_A_NUMBER, message, .. }) => {
            assert!(message.starts_with("operation 1: "), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.get("{atomic/undone}k").await.unwrap(), None);
}

#[tokio::test]
async fn keys_that_need_not_live_together_are_refused() {
    let node = shared_node();
    let client = node.client().await;
    for request in [
        client.atomic().put("atomic/apart/a", "v").put("atomic/apart/b", "v"),
        client.atomic().if_absent("{atomic/x}a").put("{atomic/y}a", "v"),
    ] {
        match request.send().await {
            Err(Error::InvalidArgument { message, .. }) => {
                assert!(message.contains("{tag}"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    let same = client.atomic().if_absent("atomic/same").put("atomic/same", "v").get("atomic/same");
    assert!(matches!(same.send().await.unwrap(), AtomicOutcome::Held(_)));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name() {
    let node = shared_node();
    let client = node.client().await;
    let key = "atomic/nonsense";
    let large = vec![0; 5 << 20];
    for (request, said) in [
        (client.atomic(), "0 operations"),
        (client.atomic().if_absent(key), "0 operations"),
        (client.atomic().put("", "v"), "empty"),
        (client.atomic().put(key, &large).put(key, &large), "limit"),
        (client.atomic().then(Operation::compare_and_put(key, 1, "v")), "compares"),
        (client.atomic().then(Operation::get_stale(key)), "compares"),
        (client.atomic().put_with_ttl(key, "v", std::time::Duration::ZERO), "time to live"),
    ] {
        match request.send().await {
            Err(Error::InvalidArgument { message, .. }) => {
                assert!(message.contains(said), "{message}");
            }
            other => panic!("{said}: {other:?}"),
        }
    }
    assert_eq!(client.get(key).await.unwrap(), None);
    let mut kv = grpc::kv(node.channel().await);
    let compares = vec![v1::Compare { key: key.into(), condition: None }];
    let request = AtomicRequest { compares, ..AtomicRequest::default() };
    let status = kv.atomic(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(matches!(grpc::detail(&status), Detail::InvalidArgument(i) if i.field == "compares"));
}

#[tokio::test]
async fn a_call_of_its_own_is_answered_like_one_of_a_stream() {
    let node = shared_node();
    let mut kv = grpc::kv(node.channel().await);
    let key = || bytes::Bytes::from("atomic/call");
    let increment = v1::IncrementRequest { key: key(), delta: 3, once: None };
    let operation = Some(v1::operation::Operation::Increment(increment));
    let request = |condition| AtomicRequest {
        compares: vec![v1::Compare { key: key(), condition: Some(condition) }],
        operations: vec![v1::Operation { operation: operation.clone() }],
        once: None,
    };
    let held = kv.atomic(request(Condition::Exists(false))).await.unwrap().into_inner();
    assert!(held.held && held.failed.is_none() && held.results.len() == 1, "{held:?}");
    let failed = kv.atomic(request(Condition::Version(0))).await.unwrap().into_inner();
    let found = failed.failed.unwrap();
    assert!(!failed.held && failed.results.is_empty() && found.version > 0, "{found:?}");
    let held = kv.atomic(request(Condition::Version(found.version))).await.unwrap().into_inner();
    assert!(held.held, "{held:?}");
}

/// Moves one from an account to another, if there is one.
async fn transfer(client: &RaftKVClient, from: &str, to: &str) {
    loop {
        let found = client.get_with_version(from).await.unwrap().unwrap();
        if found.value == "0" {
            return;
        }
        let request = client.atomic().if_version(from, found.version);
        let request = request.increment(from, -1).increment(to, 1);
        if let AtomicOutcome::Held(_) = request.send().await.unwrap() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_that_race_keep_the_sum() {
    const ACCOUNTS: usize = 4;
    let node = shared_node();
    let client = node.client().await;
    let accounts: Vec<String> = (0..ACCOUNTS).map(|n| format!("{{atomic/bank}}{n}")).collect();
    for account in &accounts {
        client.put(account, "10").await.unwrap();
    }
    let tasks = (0..16).map(|task| {
        let (client, accounts) = (client.clone(), accounts.clone());
        tokio::spawn(async move {
            for step in 0..20 {
                let (from, to) = ((task + step) % ACCOUNTS, (task * 3 + step + 1) % ACCOUNTS);
                transfer(&client, &accounts[from], &accounts[to]).await;
            }
        })
    });
    let watcher = client.clone();
    let sum = async || {
        let request = accounts.iter().fold(watcher.atomic(), |request, key| request.get(key));
        let AtomicOutcome::Held(outcomes) = request.send().await.unwrap() else { panic!() };
        let number = |outcome: &Outcome| match outcome {
            Outcome::Get(Some(found)) => {
                std::str::from_utf8(&found.value).unwrap().parse::<i64>().unwrap()
            }
            other => panic!("{other:?}"),
        };
        outcomes.iter().map(number).sum::<i64>()
    };
    let tasks: Vec<_> = tasks.collect();
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        assert_eq!(sum().await, 40, "nobody sees half of a transfer");
    }
    join_all(tasks).await.into_iter().for_each(Result::unwrap);
    assert_eq!(sum().await, 40);
}

fn post(node: &Node, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let answer = node.http().request("POST", "/kv-atomic", body.as_bytes()).unwrap();
    (answer.status, answer.json())
}

#[test]
fn over_http_a_request_is_json() {
    let node = shared_node();
    let asked = json!({
        "compares": [{"key": "{atomic/http}a", "exists": false}],
        "operations": [
            {"put": {"key": "{atomic/http}a", "value": "v", "ttl": "1h"}},
            {"put": {"key_base64": "e2F0b21pYy9odHRwff8=", "value_base64": "AP8="}},
            {"increment": {"key": "{atomic/http}n", "by": 5}},
            {"increment": {"key": "{atomic/http}n"}},
            {"get": {"key_base64": "e2F0b21pYy9odHRwff8="}},
            {"get": {"key": "{atomic/http}absent"}},
            {"get": {"key": "{atomic/http}a"}},
            {"delete": {"key": "{atomic/http}n"}},
        ],
    });
    let (status, answer) = post(&node, &asked);
    assert_eq!((status, &answer["held"]), (200, &json!(true)), "{answer}");
    let results = answer["results"].as_array().unwrap();
    let version = results[0]["version"].as_str().unwrap();
    assert_eq!(results[3], json!({"value": "6", "version": version}));
    assert_eq!(results[4], json!({"found": true, "value_base64": "AP8=", "version": version}));
    assert_eq!(results[5], json!({"found": false}));
    assert_eq!(
        (&results[6]["value"], results[6]["ttl_ms"].as_u64()),
        (&json!("v"), Some(3_600_000))
    );
    assert_eq!(results[7], json!({"existed": true}));
    let (status, answer) = post(&node, &asked);
    assert_eq!(status, 200);
    let failed = json!({"held": false, "failed": {"compare": 0, "version": version}});
    assert_eq!(answer, failed);
    for version in [json!(version), json!(version.parse::<u64>().unwrap())] {
        let compares = json!([{"key": "{atomic/http}a", "version": version}]);
        let get = json!([{"get": {"key": "{atomic/http}a"}}]);
        let (_, answer) = post(&node, &json!({"compares": compares, "operations": get}));
        assert_eq!(answer["held"], true, "{answer}");
    }
}

#[test]
fn over_http_what_makes_no_sense_is_refused_with_its_place() {
    let node = shared_node();
    let get = json!({"get": {"key": "k"}});
    for (asked, said) in [
        (json!({}), "operations"),
        (json!({"operations": []}), "operations"),
        (json!({"operations": [get, {"frobnicate": {"key": "k"}}]}), "frobnicate"),
        (json!({"operations": [get, {"get": {"key": "k", "keys": 1}}]}), "keys"),
        (json!({"operations": [get, {"get": {}}]}), "operation 1: it has either a `key`"),
        (json!({"operations": [{"get": {"key_base64": "%"}}]}), "operation 0: `key_base64`"),
        (json!({"operations": [{"put": {"key": "k", "value": "v", "ttl": "5"}}]}), "time to live"),
        (json!({"operations": [get], "compares": [{"key": "k"}]}), "compare 0: it has either"),
        (json!({"operations": [get], "compares": [{"key": "k", "version": "x"}]}), "no version"),
        (json!({"operations": [get, {"get": {"key": "l"}}]}), "{tag}"),
    ] {
        let (status, answer) = post(&node, &asked);
        assert_eq!(status, 400, "{asked}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{asked}: {message}");
    }
    let answer = node.http().request("POST", "/kv-atomic", b"no JSON").unwrap();
    assert_eq!((answer.status, answer.error().0.as_str()), (400, "invalid_argument"));
}

#[test]
fn requests_from_a_shell_are_lines() {
    let node = shared_node();
    let lines = b"# a comment\nif {atomic/cli}a absent\n\nput {atomic/cli}a two\\x20words\n\
        put {atomic/cli}s x ttl 1h\nincrement {atomic/cli}n 4\nget {atomic/cli}a\n\
        get {atomic/cli}absent\ndelete {atomic/cli}n\n";
    let ran = cli::run_with_stdin(&node.endpoint(), ["atomic"], lines);
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = ran.text();
    let printed: Vec<&str> = text.lines().collect();
    assert!(printed[0].starts_with("version ") && printed[1] == printed[0], "{text}");
    assert_eq!(printed[2..], ["number 4", "value two words", "absent", "deleted"]);

    let run = |arguments: &[&str]| cli::run(&node.endpoint(), arguments);
    let version = printed[0].strip_prefix("version ").unwrap();
    let condition = "if {atomic/cli}a absent";
    let failed = run(&["atomic", condition, "delete {atomic/cli}a"]);
    assert_eq!((failed.code, failed.stdout.is_empty()), (3, true), "{failed:?}");
    assert!(failed.stderr.contains(condition) && failed.stderr.contains(version), "{failed:?}");
    let failed = run(&["--output", "json", "atomic", condition, "delete {atomic/cli}a"]);
    let version: u64 = version.parse().unwrap();
    let said = json!({"held": false, "failed": {"condition": 0, "version": version}});
    assert_eq!((failed.code, failed.json()), (3, vec![said]));
    let held = run(&["--output", "json", "atomic", "get {atomic/cli}a", "get {atomic/cli}no"]);
    assert_eq!(held.json()[0]["results"][0]["value"], "two words");
    assert_eq!(held.json()[0]["results"][1], json!({"found": false}));
    for (line, said) in [("frobnicate x", "line 1"), ("get \\q", "backslash"), ("", "operations")] {
        let refused = run(&["atomic", line]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}
