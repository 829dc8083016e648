//! How a command can fail, and that nothing else does because of it.

use std::time::Duration;

use futures::future::join_all;
use raft_kv_client::{Error, PluginErrorKind as Kind, RaftKVClient};
use raft_kv_proto::v1::{
    ApplyRequest, PipelineRequest, pipeline_request::Request, pipeline_response::Result as Answer,
};
use raft_kv_tests::{Node, grpc};
use tokio::time::timeout;

use crate::module::{failure, hostile_node};

/// Commands that fail, how, and words that the message names the cause with.
const FAILING: [(&str, Kind, &str); 21] = [
    ("t", Kind::Trap, "unreachable"),
    ("m", Kind::Trap, "memory"),
    ("d", Kind::Trap, "zero"),
    ("i", Kind::Trap, ""),
    ("l", Kind::OutOfFuel, "fuel"),
    ("r", Kind::CallDepth, "call"),
    ("P", Kind::CallDepth, "call"),
    ("I", Kind::CallDepth, "call"),
    ("z", Kind::OutOfFuel, "fuel"),
    ("s", Kind::OutOfFuel, "fuel"),
    ("G", Kind::OutOfFuel, "fuel"),
    ("S", Kind::BadCall, "16 scans"),
    ("g", Kind::MemoryLimit, "memory"),
    ("o", Kind::BadCall, "outside the memory"),
    ("O", Kind::BadCall, "outside the memory"),
    ("h", Kind::BadCall, "77"),
    ("k", Kind::BadCall, "65600"),
    ("f", Kind::Failed, "no, said the stub"),
    ("a", Kind::Panic, "the plugin fell over"),
    ("u", Kind::Failed, "x"),
    ("R", Kind::Trap, "unreachable"),
];

async fn assert_well(client: &RaftKVClient) {
    assert_eq!(client.apply("well", "echo").await.unwrap(), "echo");
    assert_eq!(client.query("well", "echo").await.unwrap(), "echo");
}

#[tokio::test]
async fn each_failure_is_named_and_the_next_command_works() {
    let node = hostile_node(1);
    let client = node.client().await;
    for (command, expected, words) in FAILING {
        let (kind, code, message) = failure(client.apply("one", command).await);
        assert_eq!(kind, expected, "{command}: {message}");
        assert!(message.contains(words), "{command}: {message:?} does not say {words:?}");
        let own = match command {
            "f" => 77,
            "u" => 1,
            _ => 0,
        };
        assert_eq!(code, own, "{command}");
        assert_well(&client).await;
        // A command that fails fails the same every time.
        let again = failure(client.apply("one", command).await);
        assert_eq!(again, (kind, code, message), "{command}");
    }
}

#[tokio::test]
async fn queries_fail_like_commands_and_may_not_write() {
    let node = hostile_node(1);
    let client = node.client().await;
    for (request, expected, words) in FAILING {
        let (kind, _, message) = failure(client.query("one", request).await);
        // In a query no write is allowed, so that one does not get to its buffer.
        let writes = matches!(request, "o" | "k");
        assert_eq!(kind, expected, "{request}: {message}");
        assert!(writes || message.contains(words), "{request}: {message:?} for {words:?}");
        assert_well(&client).await;
    }
    let (kind, _, message) = failure(client.query("one", "wkey").await);
    assert_eq!(kind, Kind::BadCall, "{message}");
    assert!(message.contains("query"), "{message}");
    assert_eq!(client.query("one", "qkey").await.unwrap(), "");
    assert_well(&client).await;
}

#[tokio::test]
async fn what_a_failed_command_wrote_is_dropped() {
    let node = hostile_node(1);
    let client = node.client().await;
    for command in ["Fkey", "Tkey", "Lkey"] {
        failure(client.apply("dropped", command).await);
        assert_eq!(client.query("dropped", "qkey").await.unwrap(), "", "{command}");
    }
    client.apply("dropped", "pkey").await.unwrap();
    for command in ["Fkey", "Tkey"] {
        failure(client.apply("dropped", command).await);
        assert_eq!(client.query("dropped", "qkey").await.unwrap(), "key", "{command}");
    }
}

#[tokio::test]
async fn a_command_may_use_nearly_all_of_its_fuel() {
    let node = hostile_node(1);
    let client = node.client().await;
    for _ in 0..2 {
        assert_eq!(client.apply("burn", "b").await.unwrap(), "b");
        assert_eq!(client.query("burn", "b").await.unwrap(), "b");
    }
    assert_eq!(count(&client, "burn").await, 1);
}

/// Adds one to the counter of a key's slot.
async fn count(client: &RaftKVClient, key: &str) -> u64 {
    let response = client.apply(key, "c").await.unwrap();
    u64::from_le_bytes(response[..].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_beside_failing_ones_succeed_in_full() {
    const ROUNDS: u64 = 40;
    let node = hostile_node(1);
    let client = node.client().await;
    // All in one slot of one shard, so that they share entries and batches.
    let counting = (0..ROUNDS).map(|_| count(&client, "{beside}"));
    let quick = FAILING.iter().filter(|(command, ..)| !matches!(*command, "l" | "g"));
    let failing = quick.flat_map(|(command, kind, _)| {
        let client = client.clone();
        (0..4).map(move |_| {
            let client = client.clone();
            async move {
                let (found, ..) = failure(client.apply("{beside}", *command).await);
                assert_eq!(found, *kind, "{command}");
            }
        })
    });
    let slow = (0..2).map(|_| async {
        let (kind, ..) = failure(client.apply("{beside}", "l").await);
        assert_eq!(kind, Kind::OutOfFuel);
    });
    let all = async { tokio::join!(join_all(counting), join_all(failing), join_all(slow)) };
    let (mut counts, ..) = timeout(Duration::from_secs(60), all).await.expect("all are answered");
    counts.sort_unstable();
    assert_eq!(counts, (1..=ROUNDS).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_entry_of_good_and_bad_commands_has_the_right_answer_for_each() {
    let node = hostile_node(1);
    let commands = ["c", "t", "c", "f", "e1", "a", "c", "Tx", "r", "px", "c", "o", "h", "e2", "c"];
    let answers = pipeline(&node, &commands).await;
    let text = |answer: &Answer| match answer {
        Answer::Apply(applied) => Ok(applied.response.to_vec()),
        Answer::Error(error) => Err(error.message.clone()),
        other => panic!("nobody asked for {other:?}"),
    };
    for (command, answer) in commands.iter().zip(&answers) {
        let answer = text(answer);
        match *command {
            "e1" | "e2" => assert_eq!(answer, Ok(command.as_bytes().to_vec())),
            "c" => assert_eq!(answer.map(|bytes| bytes.len()), Ok(8)),
            "px" => assert_eq!(answer, Ok(Vec::new())),
            _ => assert!(answer.is_err(), "{command}: {answer:?}"),
        }
    }
    assert_eq!(count(&node.client().await, "{pipeline}").await, 6);
}

/// Sends commands on one stream at once; gives their answers in this order.
async fn pipeline(node: &Node, commands: &[&'static str]) -> Vec<Answer> {
    let requests: Vec<PipelineRequest> = commands
        .iter()
        .zip(0..)
        .map(|(command, tag)| PipelineRequest {
            tag,
            request: Some(Request::Apply(ApplyRequest {
                key: "{pipeline}".into(),
                command: (*command).into(),
                once: None,
            })),
        })
        .collect();
    let mut machine = grpc::state_machine(node.channel().await);
    let stream = machine.pipeline(tokio_stream::iter(requests)).await;
    let mut stream = stream.unwrap().into_inner();
    let mut answers = vec![None; commands.len()];
    while let Some(answer) = stream.message().await.unwrap() {
        answers[usize::try_from(answer.tag).unwrap()] = answer.result;
    }
    answers.into_iter().map(|answer| answer.expect("each request has an answer")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_loops_hold_up_nobody_for_good() {
    let node = hostile_node(2);
    let client = node.client().await;
    let loops = (0..6).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let key = format!("loop {n}");
            match n % 2 {
                0 => client.apply(key, "l").await,
                _ => client.query(key, "l").await,
            }
        })
    });
    let loops: Vec<_> = loops.collect();
    let echoes = (0..100).map(|n| {
        let client = client.clone();
        async move { client.apply(format!("echo {n}"), "echo").await }
    });
    for echo in join_all(echoes).await {
        assert_eq!(echo.unwrap(), "echo");
    }
    for ended in loops {
        let (kind, ..) = failure(ended.await.unwrap());
        assert_eq!(kind, Kind::OutOfFuel);
    }
    assert_well(&client).await;
}

#[tokio::test]
async fn hostile_memory_use_does_not_stay_with_the_node() {
    const LIMIT: u64 = 200 << 20;
    let node = hostile_node(2);
    let client = node.client().await;
    for n in 0..40 {
        let (kind, ..) = failure(client.apply(format!("grow {n}"), "g").await);
        assert_eq!(kind, Kind::MemoryLimit);
        let (kind, ..) = failure(client.query(format!("grow {n}"), "g").await);
        assert_eq!(kind, Kind::MemoryLimit);
    }
    let bytes = node.resident_bytes();
    println!("after 80 commands that took all memory: {} MiB", bytes >> 20);
    assert!(bytes < LIMIT, "the node takes {} MiB", bytes >> 20);
}

#[tokio::test]
async fn a_command_that_is_empty_or_too_large_for_the_guest_fails_alone() {
    let node = hostile_node(1);
    let client = node.client().await;
    // Its first byte is what an earlier command left there: nothing to rely on,
    // but nothing that may harm either.
    let empty = client.apply("sizes", "").await;
    assert!(matches!(empty, Ok(_) | Err(Error::Plugin { .. })), "{empty:?}");
    // The guest takes the size for granted and never offers a larger buffer.
    let large = client.apply("sizes", vec![b'e'; 100_000]).await;
    assert!(matches!(large, Ok(_) | Err(Error::Plugin { .. })), "{large:?}");
    assert_well(&client).await;
}
