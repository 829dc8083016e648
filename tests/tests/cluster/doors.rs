//! Any node serves any request.

use raft_kv_client::{Operation, RaftKVClient};
use raft_kv_proto::{
    DIRECT_METADATA,
    v1::{
        GetRequest, NotLeader, PipelineRequest, PutRequest, RoutingRequest, error_detail::Detail,
        pipeline_request::Request as Item, pipeline_response::Result as Answer,
    },
};
use raft_kv_tests::{Cluster, grpc};
use tonic::Request;

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn get(key: &str) -> GetRequest {
    GetRequest { key: key.to_owned().into(), ..Default::default() }
}

fn direct<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert(DIRECT_METADATA, "1".parse().unwrap());
    request
}

#[tokio::test]
async fn what_is_written_through_one_node_is_read_through_each() {
    let cluster = Cluster::start();
    for writer in 0..3 {
        let mut kv = grpc::kv(cluster.node(writer).channel().await);
        for n in 0..20 {
            kv.put(put(&format!("grpc/{writer}/{n}"), "v")).await.unwrap();
            let path = format!("/kv/http/{writer}/{n}");
            let answer = cluster.node(writer).http().request("PUT", &path, b"w").unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        for reader in 0..3 {
            let mut kv = grpc::kv(cluster.node(reader).channel().await);
            for n in 0..20 {
                let found = kv.get(get(&format!("grpc/{writer}/{n}"))).await.unwrap();
                assert_eq!(found.into_inner().value, "v");
                let path = format!("/kv/http/{writer}/{n}");
                let answer = cluster.node(reader).http().get(&path).unwrap();
                assert_eq!(answer.text(), "w");
            }
            let client = RaftKVClient::new(cluster.node(reader).endpoint()).await.unwrap();
            let prefix = format!("grpc/{writer}/");
            assert_eq!(client.scan(prefix).collect().await.unwrap().len(), 20);
        }
    }
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn batches_and_pipelines_go_through_any_node() {
    let cluster = Cluster::start();
    for place in 0..3 {
        let client = RaftKVClient::new(cluster.node(place).endpoint()).await.unwrap();
        let puts = (0..50).map(|n| Operation::put(format!("batch/{place}/{n}"), "v"));
        for outcome in client.batch(puts).await.unwrap() {
            outcome.unwrap();
        }
        let items = (0..50u64).map(move |tag| {
            let key = format!("pipe/{place}/{tag}");
            PipelineRequest { tag, request: Some(Item::Put(put(&key, "v"))) }
        });
        let mut machine = grpc::state_machine(cluster.node(place).channel().await);
        let answers = machine.pipeline(tokio_stream::iter(items)).await.unwrap();
        let mut answers = answers.into_inner();
        let mut done = 0;
        while let Some(answer) = answers.message().await.unwrap() {
            assert!(matches!(answer.result, Some(Answer::Put(_))), "{answer:?}");
            done += 1;
        }
        assert_eq!(done, 50);
    }
    let client = cluster.client().await;
    assert_eq!(client.scan("").collect().await.unwrap().len(), 300);
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn a_direct_call_is_told_who_leads() {
    let cluster = Cluster::start();
    let client = cluster.client().await;
    client.put("key", "value").await.unwrap();
    let mut machine = grpc::state_machine(cluster.node(0).channel().await);
    let routing = machine.routing(RoutingRequest {}).await.unwrap().into_inner();
    assert_eq!(routing.slots, 256);
    let slot = raft_kv_proto::slot_of(b"key", 256);
    let owns = |range: &raft_kv_proto::v1::SlotRange| (range.start..range.end).contains(&slot);
    let shard = routing.shards.into_iter().find(|shard| shard.slots.iter().any(owns)).unwrap();
    let leader = cluster.leader_of(&shard.name).await;
    assert_eq!(shard.address, cluster.node(leader).address().to_string());
    for place in 0..3 {
        let mut kv = grpc::kv(cluster.node(place).channel().await);
        let answers = [
            kv.put(direct(put("key", "value"))).await.map(drop),
            kv.get(direct(get("key"))).await.map(drop),
        ];
        for answer in answers {
            if place == leader {
                answer.unwrap();
                continue;
            }
            let expected = NotLeader {
                shard: shard.name.clone(),
                leader: format!("node{}", leader + 1),
                address: shard.address.clone(),
            };
            assert_eq!(grpc::detail(&answer.unwrap_err()), Detail::NotLeader(expected));
        }
    }
}

#[tokio::test]
async fn the_status_lists_all_nodes() {
    let cluster = Cluster::start();
    let status = cluster.status(1).await;
    let nodes: Vec<(String, String, bool)> =
        status.nodes.into_iter().map(|node| (node.node_id, node.address, node.connected)).collect();
    let expected = (0..3).map(|place| {
        (format!("node{}", place + 1), cluster.node(place).address().to_string(), true)
    });
    assert_eq!(nodes, expected.collect::<Vec<_>>());
}
