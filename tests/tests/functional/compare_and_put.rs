//! Compare-and-put and compare-and-delete: nobody's write is lost, and exactly one of many
//! wins.

use futures::future::join_all;
use raft_kv_client::{Error, Operation, RaftKVClient, Version};
use raft_kv_plugin_kv::protocol::failure::VERSION_MISMATCH;
use raft_kv_proto::v1::{PutRequest, error_detail::Detail, plugin_error::Kind};
use raft_kv_tests::{cli, grpc, http, shared_node};
use tonic::Code;

#[tokio::test]
async fn a_put_happens_only_at_the_expected_version() {
    let node = shared_node();
    let client = node.client().await;
    let key = "compare/expected";
    let first = client.compare_and_put(key, Version::ABSENT, "1").await.unwrap();
    let second = client.compare_and_put(key, first, "2").await.unwrap();
    for wrong in [Version::ABSENT, first, Version(second.0 + 1), Version(u64::MAX)] {
        match client.compare_and_put(key, wrong, "no").await {
            Err(Error::VersionMismatch { message }) => {
                assert!(message.contains(&second.to_string()), "{message}");
            }
            other => panic!("expecting {wrong}: {other:?}"),
        }
    }
    let found = client.get_with_version(key).await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version), (&b"2"[..], second));
}

#[tokio::test]
async fn a_version_is_gone_for_good_once_the_key_was_deleted() {
    let node = shared_node();
    let client = node.client().await;
    let key = "compare/deleted";
    let first = client.put(key, "1").await.unwrap();
    assert!(client.delete(key).await.unwrap());
    let refused = client.compare_and_put(key, first, "no").await;
    assert!(matches!(refused, Err(Error::VersionMismatch { .. })), "{refused:?}");
    client.compare_and_put(key, Version::ABSENT, "1").await.unwrap();
    let refused = client.compare_and_put(key, first, "no").await;
    assert!(matches!(refused, Err(Error::VersionMismatch { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_delete_happens_only_at_the_expected_version() {
    let node = shared_node();
    let client = node.client().await;
    let key = "compare/delete";
    let first = client.put(key, "1").await.unwrap();
    let second = client.put(key, "2").await.unwrap();
    let refused = client.compare_and_delete(key, first).await;
    assert!(matches!(refused, Err(Error::VersionMismatch { .. })), "{refused:?}");
    assert_eq!(client.get(key).await.unwrap().unwrap(), "2");
    client.compare_and_delete(key, second).await.unwrap();
    assert_eq!(client.get(key).await.unwrap(), None);
    let refused = client.compare_and_delete(key, second).await;
    assert!(matches!(refused, Err(Error::VersionMismatch { .. })), "{refused:?}");
    let batch = [Operation::put(key, "3"), Operation::compare_and_delete(key, second)];
    let results = client.batch(batch).await.unwrap();
    assert!(matches!(results[1], Err(Error::VersionMismatch { .. })), "{results:?}");
    assert_eq!(client.get(key).await.unwrap().unwrap(), "3");
}

#[test]
fn over_http_and_from_a_shell_a_delete_can_compare() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"compare/delete/doors");
    let put = connection.request("PUT", &path, b"1").unwrap();
    let version = put.json()["version"].as_str().unwrap().to_owned();
    let mut delete = |version: &str| {
        let target = format!("{path}?expected_version={version}");
        connection.request("DELETE", &target, b"").unwrap()
    };
    let refused = delete("7");
    assert_eq!((refused.status, refused.error().0.as_str()), (412, "version_mismatch"));
    assert_eq!(delete("abc").status, 400);
    let run = |arguments: &[&str]| cli::run(&node.endpoint(), arguments);
    let refused = run(&["delete", "compare/delete/doors", "--if-version", "7"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    let deleted = run(&["delete", "compare/delete/doors", "--if-version", &version]);
    assert_eq!((deleted.code, deleted.text()), (0, "deleted\n".to_owned()), "{deleted:?}");
    let put = run(&["put", "compare/delete/doors", "2", "--if-absent"]);
    assert_eq!(put.code, 0, "{put:?}");
    assert_eq!(run(&["put", "compare/delete/doors", "3", "--if-absent"]).code, 3);
    let version = put.text().trim().strip_prefix("version ").unwrap().to_owned();
    assert_eq!(run(&["put", "compare/delete/doors", "3", "--if-version", &version]).code, 0);
    let both = ["put", "k", "v", "--if-version", "1", "--if-absent"];
    assert_eq!(run(&both).code, 2);
    assert_eq!(delete(&version).status, 412);
}

#[tokio::test]
async fn a_mismatch_is_a_failed_precondition_with_the_plugins_code() {
    let node = shared_node();
    let mut kv = grpc::kv(node.channel().await);
    let request = PutRequest {
        key: "compare/grpc".into(),
        value: "v".into(),
        expected_version: Some(12345),
        ..PutRequest::default()
    };
    let status = kv.put(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    match grpc::detail(&status) {
        Detail::PluginError(error) => {
            assert_eq!(error.kind(), Kind::Failed);
            assert_eq!(error.code, VERSION_MISMATCH);
            assert!(error.message.contains("12345"), "{}", error.message);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn over_http_a_mismatch_is_412() {
    let node = shared_node();
    let mut connection = node.http();
    let path = http::path_of(b"compare/http");
    let expecting = |version: &str| format!("{path}?expected_version={version}");
    let answer = connection.request("PUT", &expecting("0"), b"1").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let version = answer.json()["version"].as_str().unwrap().to_owned();
    let answer = connection.request("PUT", &expecting("0"), b"no").unwrap();
    assert_eq!(answer.status, 412, "{}", answer.text());
    answer.error();
    let answer = connection.request("PUT", &expecting(&version), b"2").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = connection.get(&path).unwrap();
    assert_eq!(answer.body, b"2");
    for nonsense in ["", "abc", "-1", "1.5", "99999999999999999999999"] {
        let answer = connection.request("PUT", &expecting(nonsense), b"no").unwrap();
        assert_eq!(answer.status, 400, "{nonsense}: {}", answer.text());
        answer.error();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_one_of_many_that_race_wins() {
    const RACERS: usize = 64;
    let node = shared_node();
    let clients = join_all((0..4).map(|_| node.client())).await;
    let mut expected = Version::ABSENT;
    for round in 0..20 {
        let racers = (0..RACERS).map(|racer| {
            let client = clients[racer % clients.len()].clone();
            let value = format!("{round}/{racer}");
            tokio::spawn(async move {
                let result = client.compare_and_put("compare/race", expected, &value).await;
                (value, result)
            })
        });
        let mut winners = Vec::new();
        for ended in join_all(racers).await {
            match ended.unwrap() {
                (value, Ok(version)) => winners.push((value, version)),
                (_, Err(Error::VersionMismatch { .. })) => {}
                (_, Err(error)) => panic!("{error:?}"),
            }
        }
        let [(value, version)] = &winners[..] else {
            panic!("round {round}: winners are {winners:?}");
        };
        let found = clients[0].get_with_version("compare/race").await.unwrap().unwrap();
        assert_eq!(found.value, *value);
        assert_eq!(found.version, *version);
        expected = *version;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_that_race_lose_nothing() {
    const TASKS: usize = 8;
    const INCREMENTS: usize = 40;
    let node = shared_node();
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        let client = node.client().await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..INCREMENTS {
                increment(&client).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let found = node.client().await.get("compare/counter").await.unwrap();
    let total = (TASKS * INCREMENTS).to_string();
    assert_eq!(found.as_deref(), Some(total.as_bytes()));
}

/// Adds one, however often it takes.
async fn increment(client: &RaftKVClient) {
    loop {
        let found = client.get_with_version("compare/counter").await.unwrap();
        let (count, version) = match &found {
            Some(found) => (std::str::from_utf8(&found.value).unwrap(), found.version),
            None => ("0", Version::ABSENT),
        };
        let next = (count.parse::<u64>().unwrap() + 1).to_string();
        match client.compare_and_put("compare/counter", version, next).await {
            Ok(_) => return,
            Err(Error::VersionMismatch { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}
