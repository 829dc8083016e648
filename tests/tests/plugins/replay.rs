//! Failures are part of the log's meaning: a replay comes to the same state,
//! however the commands were batched when they were applied first.

use std::{fs, time::Duration};

use futures::future::join_all;
use raft_kv_client::{Error, RaftKVClient};
use raft_kv_tests::{
    Node, NodeOptions, Signal, eventually,
    files::{copy_folder, files_with_suffix},
};
use tempfile::TempDir;

use crate::module::{failure, hostile_node, options};

/// Commands of all kinds, at once, so that some share entries and some do not.
async fn run_a_mixture(client: &RaftKVClient) {
    let commands = ["c", "t", "pa", "f", "Fb", "a", "c", "Tb", "r", "o", "pc", "h", "R", "e", "u"];
    let mixture = (0..300).map(|n| {
        let client = client.clone();
        async move {
            let key = format!("{{mixture {}}}", n % 5);
            let result = client.apply(key, commands[n % commands.len()]).await;
            assert!(matches!(result, Ok(_) | Err(Error::Plugin { .. })), "{result:?}");
        }
    });
    join_all(mixture).await;
    for command in ["l", "g", "b"] {
        let _ = client.apply("{mixture 0}", command).await;
    }
}

/// Applied index and state hash of each shard, once there is nothing left to
/// apply.
async fn states(node: &Node) -> Vec<(u64, String)> {
    let client = node.client().await;
    eventually("all shards to be applied", Duration::from_secs(10), async || {
        let shards = client.status().await.unwrap().shards;
        let settled = shards.iter().all(|shard| shard.applied_index == shard.commit_index);
        settled.then(|| {
            let state = shards.into_iter().map(|shard| (shard.applied_index, shard.state_hash));
            state.collect()
        })
    })
    .await
}

/// What the well-behaved commands left.
async fn contents(client: &RaftKVClient) -> Vec<(u64, Vec<u8>, Vec<u8>, Vec<u8>)> {
    let mut contents = Vec::new();
    for n in 0..5 {
        let key = format!("{{mixture {n}}}");
        let read = async |request: &str| client.query(&key, request).await.unwrap().to_vec();
        let count = read("qn").await;
        let count = count.try_into().map_or(0, u64::from_le_bytes);
        contents.push((count, read("qa").await, read("qb").await, read("qc").await));
    }
    contents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_and_restart_come_to_the_same_contents() {
    let mut node = hostile_node(2);
    let client = node.client().await;
    run_a_mixture(&client).await;
    let before = contents(&client).await;
    assert_eq!(before.iter().map(|(count, ..)| count).sum::<u64>(), 40);
    assert!(before.iter().all(|(_, _, b, _)| b.is_empty()), "a failed command left its writes");
    for _ in 0..3 {
        node.kill();
        node.restart();
        let client = node.client().await;
        assert_eq!(contents(&client).await, before);
        let (_, code, message) = failure(client.apply("{mixture 0}", "f").await);
        assert_eq!((code, &message[..]), (77, "no, said the stub"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_has_the_hash_of_the_first_run() {
    let mut node = hostile_node(2);
    run_a_mixture(&node.client().await).await;
    let live = states(&node).await;
    // As a crash at this moment would leave it: all is applied again from the log.
    let crashed = TempDir::new().unwrap();
    node.signal(Signal::STOP);
    copy_folder(node.data_dir(), crashed.path());
    node.signal(Signal::CONT);
    assert_eq!(states(&node).await, live, "an idle node changes nothing");
    // As an orderly stop leaves it: what was applied in the first run stays.
    node.stop();
    node.restart();
    let kept = states(&node).await;
    let replayed = options().shards(2).data_dir(crashed.path()).start();
    assert_eq!(states(&replayed).await, kept);
    assert_ne!(kept, live, "each start adds an entry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_tells_states_apart() {
    let node = hostile_node(1);
    let client = node.client().await;
    let mut seen = Vec::new();
    for command in ["c", "f", "t", "e", "e", "px"] {
        let _ = client.apply("hash", command).await;
        let state = states(&node).await;
        assert!(!seen.contains(&state), "{command} leaves {state:?} as it was");
        seen.push(state);
    }
}

#[test]
fn a_node_whose_plugin_is_gone_or_damaged_names_its_file() {
    let folder = TempDir::new().unwrap();
    let mut node = options().data_dir(folder.path()).start();
    node.stop();
    let modules = files_with_suffix(folder.path(), "wasm");
    let [module] = &modules[..] else {
        panic!("one plugin, but {modules:?}");
    };
    let bytes = fs::read(module).unwrap();
    for damage in [Some(vec![]), Some(bytes[1..].to_vec()), None] {
        match damage {
            Some(bytes) => fs::write(module, bytes).unwrap(),
            None => fs::remove_file(module).unwrap(),
        }
        // Without `--plugin`, as people start a node the second time.
        let mut node = NodeOptions::new().default_plugin().data_dir(folder.path()).create();
        node.launch();
        let status = node.wait_until_ended(Duration::from_secs(20));
        assert_eq!(status.code(), Some(3), "{}", node.stderr());
        let stderr = node.stderr();
        let line = stderr.lines().last().unwrap_or_default();
        assert!(line.starts_with("raft-kv: "), "{stderr}");
        assert!(line.contains(module.to_str().unwrap()), "{stderr}");
    }
    fs::write(module, bytes).unwrap();
    NodeOptions::new().default_plugin().data_dir(folder.path()).start();
}
