//! Many operations in one call.

use raft_kv_client::{Error, Operation, Outcome, Version};
use raft_kv_proto::v1::{self, BatchRequest, operation_result};
use raft_kv_tests::{grpc, shared_node};
use tonic::Code;

fn value_of(outcome: &Result<Outcome, Error>) -> Option<&[u8]> {
    match outcome {
        Ok(Outcome::Get(found)) => found.as_ref().map(|found| &found.value[..]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn operations_on_one_key_take_effect_in_the_order_given() {
    let node = shared_node();
    let client = node.client().await;
    let key = "batch/order";
    let results = client
        .batch([
            Operation::get(key),
            Operation::put(key, "1"),
            Operation::get(key),
            Operation::put(key, "2"),
            Operation::put(key, "3"),
            Operation::get(key),
            Operation::delete(key),
            Operation::get(key),
            Operation::delete(key),
            Operation::put(key, "4"),
        ])
        .await
        .unwrap();
    assert_eq!(value_of(&results[0]), None);
    assert_eq!(value_of(&results[2]), Some(&b"1"[..]));
    assert_eq!(value_of(&results[5]), Some(&b"3"[..]));
    assert!(matches!(results[6], Ok(Outcome::Delete(true))));
    assert_eq!(value_of(&results[7]), None);
    assert!(matches!(results[8], Ok(Outcome::Delete(false))));
    let put = |result: &Result<Outcome, Error>| match result {
        Ok(Outcome::Put(version)) => *version,
        other => panic!("{other:?}"),
    };
    let versions: Vec<Version> = [1, 3, 4, 9].map(|place| put(&results[place])).into();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert_eq!(client.get(key).await.unwrap().as_deref(), Some(&b"4"[..]));
}

#[tokio::test]
async fn each_operation_has_a_status_of_its_own() {
    let node = shared_node();
    let client = node.client().await;
    let results = client
        .batch([
            Operation::put("batch/own/1", "v"),
            Operation::put("", "v"),
            Operation::compare_and_put("batch/own/2", 77, "v"),
            Operation::put("batch/own/3", vec![0; 9 << 20]),
            Operation::get(vec![b'k'; 70 << 10]),
            Operation::compare_and_put("batch/own/1", Version::ABSENT, "no"),
            Operation::get("batch/own/1"),
            Operation::delete("batch/own/2"),
        ])
        .await
        .unwrap();
    assert!(matches!(results[0], Ok(Outcome::Put(_))), "{:?}", results[0]);
    let refused = |place: usize, expected: &str| match &results[place] {
        Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, expected),
        other => panic!("operation {place}: {other:?}"),
    };
    refused(1, "key");
    refused(3, "value");
    refused(4, "key");
    for place in [2, 5] {
        let mismatch = matches!(results[place], Err(Error::VersionMismatch { .. }));
        assert!(mismatch, "operation {place}: {:?}", results[place]);
    }
    assert_eq!(value_of(&results[6]), Some(&b"v"[..]));
    assert!(matches!(results[7], Ok(Outcome::Delete(false))));
}

#[tokio::test]
async fn ten_thousand_operations_go_in_one_call() {
    let node = shared_node();
    let client = node.client().await;
    let key = |n: u32| format!("batch/many/{n}");
    let puts = (0..10_000).map(|n| Operation::put(key(n), n.to_string()));
    let results = client.batch(puts).await.unwrap();
    assert_eq!(results.len(), 10_000);
    for result in results {
        assert!(matches!(result, Ok(Outcome::Put(_))), "{result:?}");
    }
    let gets = (0..10_000).map(|n| Operation::get(key(n)));
    for (n, result) in client.batch(gets).await.unwrap().iter().enumerate() {
        assert_eq!(value_of(result), Some(n.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn an_empty_batch_has_no_results() {
    let node = shared_node();
    assert!(node.client().await.batch([]).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_operation_that_asks_for_nothing_is_refused() {
    let node = shared_node();
    let mut kv = grpc::kv(node.channel().await);
    let nothing = v1::Operation { operation: None };
    let request = BatchRequest { operations: vec![nothing] };
    let code = match kv.batch(request).await {
        Err(status) => status.code(),
        Ok(response) => match &response.into_inner().results[..] {
            [v1::OperationResult { result: Some(operation_result::Result::Error(error)) }] => {
                Code::from(error.code)
            }
            other => panic!("{other:?}"),
        },
    };
    assert_eq!(code, Code::InvalidArgument);
}
