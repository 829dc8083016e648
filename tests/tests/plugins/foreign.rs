//! The key-value service on a plugin that is no key-value store.

use raft_kv_client::Error;
use raft_kv_proto::v1::{GetRequest, PutRequest};
use raft_kv_tests::{cli, grpc, http};
use tonic::Code;

use crate::module::hostile_node;

#[tokio::test]
async fn kv_calls_on_another_plugin_give_a_clear_error() {
    let node = hostile_node(2);
    let mut kv = grpc::kv(node.channel().await);
    let get = GetRequest { key: "k".into(), consistency: 0 };
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    for status in [kv.get(get).await.unwrap_err(), kv.put(put).await.unwrap_err()] {
        assert!(status.message().contains("plugin"), "{status:?}");
        assert!(status.message().contains("StateMachine"), "{status:?}");
        assert!(!matches!(status.code(), Code::Unknown | Code::Unavailable), "{status:?}");
    }
    let client = node.client().await;
    let scan = client.scan("").collect().await.unwrap_err().to_string();
    assert!(scan.contains("plugin"), "{scan}");
    let delete = client.delete("k").await.unwrap_err().to_string();
    assert!(delete.contains("plugin"), "{delete}");
    let batch = client.batch([raft_kv_client::Operation::get("k")]).await.unwrap();
    assert!(matches!(&batch[..], [Err(Error::Other(_))]), "{batch:?}");

    let answer = node.http().get(&http::path_of(b"k")).unwrap();
    assert!((400..600).contains(&answer.status) && answer.status != 404, "{answer:?}");
    assert!(answer.error().1.contains("plugin"), "{}", answer.text());
    let ran = cli::run(&node.endpoint(), ["get", "k"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("plugin"), "{ran:?}");

    assert_eq!(client.apply("k", "echo").await.unwrap(), "echo");
}

#[tokio::test]
async fn the_status_names_the_plugin() {
    let node = hostile_node(2);
    for shard in node.client().await.status().await.unwrap().shards {
        let plugin = shard.plugin.unwrap();
        assert_eq!((plugin.name.as_str(), plugin.version.as_str()), ("hostile", "1.0.0"));
    }
}
