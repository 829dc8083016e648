//! Peers that do not belong, and those that talk nonsense.

use bytes::Bytes;
use raft_kv_proto::v1::{Hello, PeerFrame, raft_client::RaftClient};
use raft_kv_tests::{Cluster, http};
use rand::{Rng, RngCore};
use tonic::{Code, Status, Streaming};

async fn call(cluster: &Cluster, frames: Vec<PeerFrame>) -> Result<Streaming<PeerFrame>, Status> {
    let mut raft = RaftClient::new(cluster.node(0).channel().await);
    Ok(raft.exchange(tokio_stream::iter(frames)).await?.into_inner())
}

fn introduced(hello: Hello) -> PeerFrame {
    PeerFrame { hello: Some(hello), ..Default::default() }
}

/// What node2 says to node1.
async fn hello(cluster: &Cluster) -> Hello {
    Hello {
        protocol: 1,
        cluster_id: cluster.status(0).await.cluster_id,
        from: "node2".into(),
        to: "node1".into(),
        election_timeout_ms: 500,
    }
}

#[tokio::test]
async fn who_does_not_belong_is_refused_and_told_why() {
    let cluster = Cluster::start();
    let right = hello(&cluster).await;
    for (wrong, reason) in [
        (Hello { protocol: 9, ..right.clone() }, "version 9"),
        (Hello { cluster_id: "other".into(), ..right.clone() }, "belongs to cluster other"),
        (Hello { to: "node3".into(), ..right.clone() }, "looks for node node3"),
        (Hello { from: "node9".into(), ..right.clone() }, "node9 is not a node"),
        (Hello { election_timeout_ms: 1, ..right.clone() }, "election timeout of 1 ms"),
    ] {
        let status = call(&cluster, vec![introduced(wrong)]).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains(reason), "{status:?}");
    }
    let status = call(&cluster, vec![PeerFrame::default()]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let mut answers = call(&cluster, vec![introduced(right)]).await.unwrap();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.hello.unwrap().from, "node1");
}

#[tokio::test]
async fn nonsense_from_a_peer_is_dropped_and_the_node_goes_on() {
    let cluster = Cluster::start();
    let client = cluster.client().await;
    client.put("before", "v").await.unwrap();
    let mut generator = raft_kv_tests::generator();
    let mut frames = vec![introduced(hello(&cluster).await)];
    for _ in 0..300 {
        let mut bytes = vec![0; generator.random_range(0..200)];
        generator.fill_bytes(&mut bytes);
        // Group, kind, to and from in their places, then whatever: some for groups
        // there are, of replicas that are not the sender's.
        let kind = generator.random_range(0..20);
        let plausible = [
            &[0x08, generator.random_range(0..6), 0x10, kind][..],
            &[0x18, generator.random_range(0..14), 0x20, generator.random_range(0..14)],
            &[0x28, generator.random_range(0..100)],
        ]
        .concat();
        let messages = vec![Bytes::from(bytes), Bytes::from(plausible)];
        frames.push(PeerFrame { messages, ..Default::default() });
    }
    let mut answers = call(&cluster, frames).await.unwrap();
    while let Ok(Some(_)) = answers.message().await {}
    for n in 0..50 {
        client.put(format!("after {n}"), "v").await.unwrap();
    }
    let ready = http::Connection::open(cluster.node(0).address()).unwrap().get("/readyz").unwrap();
    assert_eq!(ready.status, 200, "{}", ready.text());
    cluster.assert_replicas_identical().await;
}
