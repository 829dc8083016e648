//! Writes that are sent more than once.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use raft_kv_proto::v1::{ApplyRequest, Once, PutRequest, error_detail::Detail};
use raft_kv_tests::{Cluster, ClusterOptions, grpc};
use tonic::{Code, Status};

use crate::counter;

const KEY: &str = "{counter}";

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn once(sequence: u64) -> Once {
    Once { session: 77, sequence, not_after_ms: now_ms() + 60_000, acked_below: 0 }
}

/// Sends a command to one node; gives what it answers.
async fn apply(
    cluster: &Cluster,
    place: usize,
    command: &'static str,
    once: Once,
) -> Result<Bytes, Status> {
    let mut machine = grpc::state_machine(cluster.node(place).channel().await);
    let request = ApplyRequest { key: KEY.into(), command: command.into(), once: Some(once) };
    Ok(machine.apply(request).await?.into_inner().response)
}

async fn count(cluster: &Cluster) -> u64 {
    counter::count(&cluster.client().await.query(KEY, "").await.unwrap())
}

#[tokio::test]
async fn a_command_sent_again_has_the_same_answer_and_no_effect() {
    let mut cluster = ClusterOptions::new().node(counter::options()).start();
    // Out of order, and each to another node.
    let numbers = [3, 1, 2];
    let sent = numbers.map(once);
    let mut answers = Vec::new();
    for (place, once) in sent.iter().enumerate() {
        answers.push(counter::count(&apply(&cluster, place, "add", *once).await.unwrap()));
    }
    assert_eq!(answers, [1, 2, 3]);
    let failed = once(4);
    let failure = apply(&cluster, 0, "fail", failed).await.unwrap_err();
    assert!(matches!(grpc::detail(&failure), Detail::PluginError(_)), "{failure:?}");
    for round in 0..2 {
        for (place, once) in sent.iter().enumerate() {
            let again = apply(&cluster, (place + 1 + round) % 3, "add", *once).await.unwrap();
            assert_eq!(counter::count(&again), answers[place]);
        }
        let again = apply(&cluster, 1, "fail", failed).await.unwrap_err();
        assert_eq!((again.code(), again.message()), (failure.code(), failure.message()));
        assert_eq!(count(&cluster).await, 3);
        if round == 0 {
            for place in 0..3 {
                cluster.kill(place);
                cluster.restart(place);
            }
            cluster.wait_until_ready();
        }
    }
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn the_same_command_many_times_at_once_has_one_effect() {
    let cluster = ClusterOptions::new().node(counter::options()).start();
    let once = once(1);
    let sent = (0..60).map(|n| apply(&cluster, n % 3, "add", once));
    for answer in futures::future::join_all(sent).await {
        assert_eq!(counter::count(&answer.unwrap()), 1);
    }
    assert_eq!(count(&cluster).await, 1);
}

#[tokio::test]
async fn what_is_over_is_refused() {
    let cluster = ClusterOptions::new().node(counter::options()).start();
    let field = |status: Status| match grpc::detail(&status) {
        Detail::InvalidArgument(invalid) => (status.code(), invalid.field),
        other => panic!("{other:?}"),
    };
    let refused = |field: &str| (Code::InvalidArgument, field.to_owned());
    let past = Once { not_after_ms: now_ms() - 10_000, ..once(1) };
    let answer = apply(&cluster, 0, "add", past).await.unwrap_err();
    assert_eq!(field(answer), refused("not_after"));

    let acked = Once { acked_below: 5, ..once(5) };
    apply(&cluster, 0, "add", acked).await.unwrap();
    let answer = apply(&cluster, 1, "add", once(4)).await.unwrap_err();
    assert_eq!(field(answer), refused("sequence"));
    apply(&cluster, 1, "add", once(6)).await.unwrap();
    assert_eq!(count(&cluster).await, 2);

    for (once, name) in [
        (Once { session: 0, ..once(1) }, "session"),
        (Once { not_after_ms: 0, ..once(1) }, "not_after_ms"),
        (Once { not_after_ms: u64::MAX, ..once(1) }, "not_after_ms"),
        (Once { acked_below: 9, ..once(1) }, "acked_below"),
    ] {
        let answer = apply(&cluster, 0, "add", once).await.unwrap_err();
        assert_eq!(field(answer), refused(name));
    }
}

#[tokio::test]
async fn a_put_sent_again_does_not_undo_a_later_one() {
    let cluster = Cluster::start();
    let mut kv = grpc::kv(cluster.node(0).channel().await);
    let first = PutRequest {
        key: "k".into(),
        value: "first".into(),
        once: Some(once(1)),
        ..Default::default()
    };
    let version = kv.put(first.clone()).await.unwrap().into_inner().version;
    let client = cluster.client().await;
    client.put("k", "second").await.unwrap();
    assert_eq!(kv.put(first).await.unwrap().into_inner().version, version);
    assert_eq!(client.get("k").await.unwrap().unwrap(), "second");
}
