//! What the node does with much work, as facts that hold on any machine: how
//! much is merged, that all is answered, how much memory it takes. Times are
//! printed and never judged.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream};
use raft_kv_client::{Error, Operation, RaftKVClient};
use raft_kv_plugin_kv::protocol::{Command, Put};
use raft_kv_proto::v1::{
    ApplyRequest, PipelineRequest, PutRequest, StatusRequest, pipeline_request::Request,
    pipeline_response::Result as Answer,
};
use raft_kv_tests::{Node, grpc};
use tokio::time::timeout;
use tonic::Code;

/// Within this any amount of work here is answered: nothing hangs.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// Entries in the logs of all shards.
async fn entries(node: &Node) -> u64 {
    let status = grpc::admin(node.channel().await).status(StatusRequest {}).await;
    let shards = status.unwrap().into_inner().shards;
    shards.iter().map(|shard| shard.commit_index).sum()
}

#[track_caller]
fn print(what: &str, count: u64, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what}: {count} in {seconds:.2} s, {:.0} a second", count as f64 / seconds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_puts_share_log_entries() {
    const ROUNDS: u64 = 5;
    const PUTS: u64 = 1000;
    let node = Node::start();
    let client = node.client().await;
    let before = entries(&node).await;
    let started = Instant::now();
    for round in 0..ROUNDS {
        let puts = (0..PUTS).map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("merge/{n}"), round.to_string()).await })
        });
        for put in join_all(puts).await {
            put.unwrap().unwrap();
        }
    }
    print("puts, 1000 at once", ROUNDS * PUTS, started);
    let entries = entries(&node).await - before;
    println!("{} puts made {entries} entries", ROUNDS * PUTS);
    assert!(entries <= ROUNDS * PUTS / 4, "{entries} entries for {} puts", ROUNDS * PUTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_makes_few_entries() {
    const PUTS: u64 = 20_000;
    let node = Node::start();
    let client = node.client().await;
    let before = entries(&node).await;
    let started = Instant::now();
    put_many(&client, "batch", 0..PUTS, &[b'v'; 100]).await;
    print("puts in batches of 1000", PUTS, started);
    let entries = entries(&node).await - before;
    println!("{PUTS} puts in batches made {entries} entries");
    // 20 batches over 4 shards, and some room.
    assert!(entries <= 200, "{entries} entries for 20 batches");
}

/// Puts numbered keys, a thousand in a call, a few calls at once.
async fn put_many(
    client: &RaftKVClient,
    prefix: &str,
    numbers: std::ops::Range<u64>,
    value: &[u8],
) {
    let value = Bytes::copy_from_slice(value);
    let starts = numbers.clone().step_by(1000);
    let batches = starts.map(|start| {
        let (client, value, end) = (client.clone(), value.clone(), numbers.end);
        async move {
            let numbers = start..(start + 1000).min(end);
            let puts = numbers.map(|n| Operation::put(format!("{prefix}/{n:08}"), &value));
            for result in client.batch(puts).await.unwrap() {
                result.unwrap();
            }
        }
    });
    let mut batches = stream::iter(batches).buffer_unordered(4);
    while batches.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_bounded_after_many_small_puts() {
    const PUTS: u64 = 100_000;
    const LIMIT: u64 = 320 << 20;
    let node = Node::start();
    let client = node.client().await;
    let mut sizes = vec![node.resident_bytes()];
    for round in 0..4u8 {
        let started = Instant::now();
        put_many(&client, "memory", 0..PUTS, &[round; 100]).await;
        print("small puts in batches", PUTS, started);
        sizes.push(node.resident_bytes());
    }
    let started = Instant::now();
    let mut scan = client.scan("memory/").stream();
    let mut count = 0;
    while let Some(pair) = scan.next().await {
        assert_eq!(*pair.unwrap().value, [3; 100]);
        count += 1;
    }
    print("pairs of a scan", count, started);
    assert_eq!(count, PUTS);
    sizes.push(node.resident_bytes());
    let sizes: Vec<u64> = sizes.into_iter().map(|size| size >> 20).collect();
    println!("resident MiB, before, after each round, after the scan: {sizes:?}");
    assert!(sizes.iter().all(|size| size << 20 < LIMIT), "{sizes:?} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_single_puts_is_answered_in_full() {
    const PUTS: u32 = 20_000;
    const CHANNELS: u32 = 8;
    let node = Node::start();
    let channels = join_all((0..CHANNELS).map(|_| node.channel())).await;
    let started = Instant::now();
    let puts = (0..PUTS).map(|n| {
        let mut kv = grpc::kv(channels[(n % CHANNELS) as usize].clone());
        let request = PutRequest {
            key: format!("burst/{n}").into(),
            value: vec![b'v'; 1024].into(),
            ..PutRequest::default()
        };
        tokio::spawn(async move { kv.put(request).await })
    });
    let answers = timeout(ANSWERED_WITHIN, join_all(puts)).await.expect("all are answered");
    print("single puts, 20,000 at once", u64::from(PUTS), started);
    let (mut done, mut turned_away) = (Vec::new(), 0);
    for (n, answer) in answers.into_iter().enumerate() {
        match answer.unwrap() {
            Ok(_) => done.push(n),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                turned_away += 1;
            }
        }
    }
    println!("{} puts done, {turned_away} turned away", done.len());
    let client = node.client().await;
    let found = client.scan("burst/").collect().await.unwrap();
    assert_eq!(found.len(), done.len(), "what was turned away was not written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_beyond_the_limits_is_answered_and_the_node_stays_small() {
    const BATCHES: usize = 96;
    const PUTS: usize = 2000;
    const LIMIT: u64 = 1500 << 20;
    let node = Node::start();
    let clients = join_all((0..4).map(|_| node.client())).await;
    let value = Bytes::from(vec![b'v'; 2048]);
    let started = Instant::now();
    // Nearly 400 MiB at once: more than may wait, unless the node is very fast.
    let batches = (0..BATCHES).map(|batch| {
        let (client, value) = (clients[batch % clients.len()].clone(), value.clone());
        let puts = (0..PUTS).map(move |n| Operation::put(format!("{batch}/{n}"), &value));
        tokio::spawn(async move { client.batch(puts).await })
    });
    let answers = timeout(ANSWERED_WITHIN, join_all(batches)).await.expect("all are answered");
    print("puts of 2 KiB in batches, all at once", (BATCHES * PUTS) as u64, started);
    let (mut done, mut turned_away, mut unknown) = (0, 0, 0);
    let mut count = |result: &Result<_, Error>| match result {
        Ok(()) => done += 1,
        Err(Error::ResourceExhausted { .. }) => turned_away += 1,
        Err(Error::Timeout { .. } | Error::Unavailable { .. }) => unknown += 1,
        Err(error) => panic!("{error:?}"),
    };
    for answer in answers {
        match answer.unwrap() {
            Ok(results) => results.into_iter().for_each(|result| count(&result.map(drop))),
            Err(error) => (0..PUTS).for_each(|_| count(&Err(error.clone()))),
        }
    }
    let bytes = node.resident_bytes();
    println!("{done} done, {turned_away} turned away, {unknown} not known, {} MiB", bytes >> 20);
    assert!(bytes < LIMIT, "the node takes {} MiB", bytes >> 20);
    let found = clients[0].scan("").collect().await.unwrap().len();
    assert!((done..=done + unknown).contains(&found), "{found} found");
    clients[0].put("after", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_and_never_reads_is_held_back() {
    const REQUESTS: u64 = 200_000;
    const LIMIT: u64 = 400 << 20;
    let node = Node::start();
    let mut machine = grpc::state_machine(node.channel().await);
    let value = vec![b'v'; 1024];
    let requests = (0..REQUESTS).map(move |tag| {
        let key = format!("flood/{}", tag % 1000);
        let put = Put { key: key.as_bytes(), value: &value, expected: None, ttl_ms: None };
        let command = Command::Put(put).encode().into();
        let apply = ApplyRequest { key: key.clone().into(), command, once: None };
        PipelineRequest { tag, request: Some(Request::Apply(apply)) }
    });
    let mut answers = machine.pipeline(tokio_stream::iter(requests)).await.unwrap().into_inner();
    // Others are served while the answers pile up.
    let client = node.client().await;
    for n in 0..200 {
        client.put("flood/beside", n.to_string()).await.unwrap();
    }
    let bytes = node.resident_bytes();
    println!("with a stream nobody reads: {} MiB", bytes >> 20);
    assert!(bytes < LIMIT, "the node takes {} MiB", bytes >> 20);
    let started = Instant::now();
    let (mut done, mut turned_away) = (0, 0);
    let read_all = async {
        while let Some(answer) = answers.message().await.unwrap() {
            match answer.result.unwrap() {
                Answer::Apply(_) => done += 1,
                Answer::Error(error) => {
                    assert_eq!(Code::from(error.code), Code::ResourceExhausted, "{error:?}");
                    turned_away += 1;
                }
                other => panic!("nobody asked for {other:?}"),
            }
        }
    };
    timeout(ANSWERED_WITHIN, read_all).await.expect("all are answered");
    print("pipelined puts", REQUESTS, started);
    println!("{done} done, {turned_away} turned away");
    assert_eq!(done + turned_away, REQUESTS);
    assert!(done > 0);
}
