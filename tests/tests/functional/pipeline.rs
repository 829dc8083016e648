//! Thousands of tagged requests on one stream.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use raft_kv_plugin_kv::protocol::{Command, Put, Query, decode_get, decode_put, failure};
use raft_kv_proto::v1::{
    ApplyRequest, OperationError, PipelineRequest, PipelineResponse, QueryRequest,
    error_detail::Detail, pipeline_request::Request, pipeline_response::Result as Answer,
};
use raft_kv_tests::{Node, grpc, shared_node};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// Within this a stream of a few thousand requests is answered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

fn put(tag: u64, key: &str, value: &str) -> PipelineRequest {
    let put = Put { key: key.as_bytes(), value: value.as_bytes(), expected: None, ttl_ms: None };
    apply(tag, key, Command::Put(put).encode())
}

fn apply(tag: u64, key: &str, command: impl Into<Bytes>) -> PipelineRequest {
    let request = Request::Apply(ApplyRequest {
        key: key.to_owned().into(),
        command: command.into(),
        once: None,
    });
    PipelineRequest { tag, request: Some(request) }
}

fn get(tag: u64, key: &str) -> PipelineRequest {
    let key = key.as_bytes();
    let request = Request::Query(QueryRequest {
        key: key.to_vec().into(),
        request: Query::Get { key }.encode().into(),
        consistency: 0,
    });
    PipelineRequest { tag, request: Some(request) }
}

/// Sends all requests on one stream and gives the answers by their tags, once
/// the node has ended the stream.
async fn run(node: &Node, requests: Vec<PipelineRequest>) -> BTreeMap<u64, Answer> {
    let mut machine = grpc::state_machine(node.channel().await);
    let (sender, receiver) = mpsc::channel(64);
    let count = requests.len();
    tokio::spawn(async move {
        for request in requests {
            sender.send(request).await.unwrap();
        }
    });
    let answers = async {
        let stream = machine.pipeline(ReceiverStream::new(receiver)).await;
        let mut stream = stream.unwrap().into_inner();
        let mut answers = BTreeMap::new();
        while let Some(PipelineResponse { tag, result }) = stream.message().await.unwrap() {
            let answer = result.expect("an answer says something");
            let earlier = answers.insert(tag, answer);
            assert!(earlier.is_none(), "tag {tag} was answered twice");
        }
        answers
    };
    let answers = timeout(ANSWERED_WITHIN, answers).await;
    let answers = answers.expect("the stream ends");
    assert_eq!(answers.len(), count, "each request has an answer");
    answers
}

fn error(answer: &Answer) -> &OperationError {
    match answer {
        Answer::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn thousands_of_requests_are_answered_by_their_tags() {
    const COUNT: u64 = 4000;
    let node = shared_node();
    let key = |n: u64| format!("pipeline/many/{n}");
    let puts = (0..COUNT).map(|n| put(n * 7, &key(n), &n.to_string()));
    let answers = run(&node, puts.collect()).await;
    for n in 0..COUNT {
        match &answers[&(n * 7)] {
            Answer::Apply(applied) => assert!(decode_put(&applied.response).unwrap() > 0),
            other => panic!("{n}: {other:?}"),
        }
    }
    // Reads of what is there, mixed with writes of what is not.
    let mixed = (0..COUNT).map(|n| match n % 2 {
        0 => get(n, &key(n)),
        _ => put(n, &format!("pipeline/more/{n}"), "v"),
    });
    let answers = run(&node, mixed.collect()).await;
    for n in 0..COUNT {
        match &answers[&n] {
            Answer::Query(read) if n % 2 == 0 => {
                let found = decode_get(&read.response).unwrap().unwrap();
                assert_eq!(read.response[found.value], *n.to_string().as_bytes());
            }
            Answer::Apply(applied) if n % 2 == 1 => {
                decode_put(&applied.response).unwrap();
            }
            other => panic!("{n}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn errors_are_tagged_and_the_stream_goes_on() {
    let node = shared_node();
    let long_key = "k".repeat(70 << 10);
    let requests = vec![
        put(1, "pipeline/errors", "v"),
        apply(2, "pipeline/errors", "\u{7f}"),
        put(3, "", "v"),
        get(4, &long_key),
        PipelineRequest { tag: 5, request: None },
        apply(6, "pipeline/errors", vec![0; 9 << 20]),
        put(u64::MAX, "pipeline/errors", "w"),
    ];
    let answers = run(&node, requests).await;
    assert!(matches!(answers[&1], Answer::Apply(_)));
    assert!(matches!(answers[&u64::MAX], Answer::Apply(_)));
    let detail = error(&answers[&2]).detail.clone().unwrap().detail;
    match detail {
        Some(Detail::PluginError(plugin)) => assert_eq!(plugin.code, failure::MALFORMED),
        other => panic!("{other:?}"),
    }
    for tag in [3, 4, 5, 6] {
        let error = error(&answers[&tag]);
        assert_eq!(Code::from(error.code), Code::InvalidArgument, "{tag}: {error:?}");
        assert!(!error.message.is_empty());
    }
    for (tag, field) in [(3, "key"), (4, "key"), (6, "command")] {
        match &error(&answers[&tag]).detail.as_ref().unwrap().detail {
            Some(Detail::InvalidArgument(invalid)) => assert_eq!(invalid.field, field),
            other => panic!("{tag}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn answers_come_while_the_stream_is_still_open() {
    let node = shared_node();
    let mut machine = grpc::state_machine(node.channel().await);
    let (sender, receiver) = mpsc::channel(1);
    sender.send(put(0, "pipeline/open", "0")).await.unwrap();
    let stream = machine.pipeline(ReceiverStream::new(receiver)).await;
    let mut stream = stream.unwrap().into_inner();
    for tag in 0..50 {
        let answer = timeout(ANSWERED_WITHIN, stream.message()).await;
        let answer = answer.expect("an answer is due").unwrap().unwrap();
        assert_eq!(answer.tag, tag);
        let next = get(tag + 1, "pipeline/open");
        sender.send(next).await.unwrap();
    }
    drop(sender);
    assert_eq!(stream.message().await.unwrap().unwrap().tag, 50);
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_disturbs_nobody() {
    let node = shared_node();
    for round in 0..10 {
        let mut machine = grpc::state_machine(node.channel().await);
        let (sender, receiver) = mpsc::channel(64);
        let feeder = tokio::spawn(async move {
            for tag in 0.. {
                let request = put(tag, &format!("pipeline/gone/{tag}"), "v");
                if sender.send(request).await.is_err() {
                    break;
                }
            }
        });
        let stream = machine.pipeline(ReceiverStream::new(receiver)).await;
        let mut stream = stream.unwrap().into_inner();
        for _ in 0..=round * 20 {
            stream.message().await.unwrap().unwrap();
        }
        drop((stream, machine));
        feeder.abort();
    }
    let answers = run(&node, vec![put(1, "pipeline/gone", "v")]).await;
    assert!(matches!(answers[&1], Answer::Apply(_)));
}
