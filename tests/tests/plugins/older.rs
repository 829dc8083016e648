//! Shards that run version 0.1.0 of the key-value store, which knew less.

use std::time::Duration;

use raft_kv_client::{Error, Operation};
use raft_kv_tests::{Node, NodeOptions, cli, http, workspace};

fn older_node() -> Node {
    let module = workspace().join("tests/fixtures/kv-0.1.0.wasm");
    NodeOptions::new().shards(1).plugin(module).start()
}

#[tokio::test]
async fn what_an_older_store_can_not_do_is_refused_with_its_version() {
    let node = older_node();
    let client = node.client().await;
    let version = client.put("k", "5").await.unwrap();
    let second = Duration::from_secs(1);
    let refused = [
        client.put_with_ttl("k", "no", second).await.map(drop),
        client.compare_and_delete("k", version).await,
        client.increment("k", 1).await.map(drop),
        client.atomic().put("k", "no").send().await.map(drop),
    ];
    let abilities = ["time to live", "before it deletes", "increment", "atomic"];
    for (refused, ability) in refused.into_iter().zip(abilities) {
        let Err(Error::Conflict { message }) = refused else { panic!("{ability}: {refused:?}") };
        for part in ["shard_0", "kv 0.1.0", ability, "activate a newer"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    let batch = client.batch([Operation::increment("k", 1), Operation::get("k")]).await.unwrap();
    assert!(matches!(&batch[0], Err(Error::Conflict { .. })), "{batch:?}");
    assert!(batch[1].is_ok(), "{batch:?}");

    let target = format!("{}/increment", http::path_of(b"k"));
    let answer = node.http().request("POST", &target, b"").unwrap();
    assert_eq!((answer.status, answer.error().0.as_str()), (409, "conflict"));
    let ran = cli::run(&node.endpoint(), ["put", "k", "no", "--ttl", "1s"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("kv 0.1.0"), "{ran:?}");

    let found = client.get_with_version("k").await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version), (&b"5"[..], version));
}

#[tokio::test]
async fn an_older_store_does_what_it_always_did() {
    let node = older_node();
    let client = node.client().await;
    let version = client.compare_and_put("k", 0, "v").await.unwrap();
    client.compare_and_put("k", version, "w").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap(), "w");
    // A scan of an idle shard asks first whether something is about to end.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(client.scan("").collect().await.unwrap().len(), 1);
    assert!(client.delete("k").await.unwrap());
    // What is malformed is still the caller's own, to whoever speaks to the plugin itself.
    let refused = client.apply("k", "\x7f").await;
    assert!(matches!(refused, Err(Error::Plugin { code: 2, .. })), "{refused:?}");
}
