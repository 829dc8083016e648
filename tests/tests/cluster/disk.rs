//! A disk that is nearly full.

use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

use raft_kv_proto::v1::{
    BatchRequest, DeleteRequest, GetRequest, Operation, PutRequest, operation, operation_result,
};
use raft_kv_tests::{ClusterOptions, eventually, grpc};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tonic::Code;

/// Far more than other tests use meanwhile.
const MARGIN: u64 = 1 << 30;
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

fn free_bytes(folder: &Path) -> u64 {
    let found = statvfs(folder).unwrap();
    found.f_bavail * found.f_frsize
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_nearly_full_ends_writes_but_no_reads_and_deletes() {
    let mut cluster = ClusterOptions::new().create();
    // The third node keeps so much free that a large file is too much.
    let folder = cluster.node(2).folder().to_owned();
    let reserve = free_bytes(&folder).checked_sub(MARGIN).expect("the disk has 1 GiB to spare");
    let file = folder.join("config.toml");
    fs::write(&file, format!("[storage]\ndisk-reserve-bytes = {reserve}\n")).unwrap();
    cluster.node_mut(2).add_argument("--config");
    cluster.node_mut(2).add_argument(&file);
    cluster.launch_all();
    cluster.wait_until_ready();
    let client = cluster.client().await;
    for number in 0..20 {
        client.put(format!("k{number}"), "v").await.unwrap();
    }
    let ballast = folder.join("ballast");
    let taken = File::create(&ballast).unwrap();
    fallocate(&taken, FallocateFlags::empty(), 0, 2 * MARGIN).unwrap();

    let mut first = grpc::kv(cluster.node(0).channel().await);
    let put = |key: &str| PutRequest {
        key: key.to_owned().into(),
        value: "new".into(),
        ..Default::default()
    };
    // Every shard has a replica there, and any node may be asked.
    let refused = eventually("writes to be refused", NOTICED_WITHIN, async || {
        let mut messages = Vec::new();
        for number in 0..20 {
            let status = first.put(put(&format!("k{number}"))).await.err()?;
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            messages.push(status.message().to_owned());
        }
        Some(messages)
    })
    .await;
    assert!(refused.iter().all(|message| message.contains("node3")), "{refused:?}");

    let get = |key: &str| GetRequest { key: key.to_owned().into(), ..Default::default() };
    let value = first.get(get("k0")).await.unwrap().into_inner();
    assert!(value.found && (value.value == "v" || value.value == "new"), "{value:?}");
    let delete = |key: &str| DeleteRequest { key: key.to_owned().into(), ..Default::default() };
    assert!(first.delete(delete("k0")).await.unwrap().into_inner().existed);
    assert!(!first.get(get("k0")).await.unwrap().into_inner().found);
    // What makes room does not suffer from what is beside it.
    let operation = |operation| Operation { operation: Some(operation) };
    let batch = BatchRequest {
        operations: vec![
            operation(operation::Operation::Put(put("k1"))),
            operation(operation::Operation::Delete(delete("k1"))),
        ],
    };
    let results = first.batch(batch).await.unwrap().into_inner().results;
    let kinds: Vec<_> = results.into_iter().map(|result| result.result.unwrap()).collect();
    assert!(matches!(kinds[0], operation_result::Result::Error(_)), "{kinds:?}");
    assert!(matches!(kinds[1], operation_result::Result::Delete(_)), "{kinds:?}");

    // The space is free once nobody has the file open.
    drop(taken);
    fs::remove_file(&ballast).unwrap();
    eventually("writes to be taken again", NOTICED_WITHIN, async || {
        first.put(put("k0")).await.ok()
    })
    .await;
    cluster.assert_replicas_identical().await;
}
