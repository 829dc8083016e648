//! What a node says of itself: reflection, health, status, metrics.

use std::{collections::BTreeSet, time::Duration};

use raft_kv_plugin_kv::protocol::{Command, Query};
use raft_kv_proto::v1::{self, StatusRequest};
use raft_kv_tests::{
    Node, NodeOptions, eventually, files::sha256, grpc, http, shared_node, workspace,
};
use serde_json::Value;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn reflect(node: &Node, request: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(node.channel().await);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let answers = client.server_reflection_info(tokio_stream::once(request));
    let mut answers = answers.await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test]
async fn reflection_lists_the_services_and_their_files() {
    let node = shared_node();
    let listed = reflect(&node, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("{listed:?}");
    };
    let listed: BTreeSet<String> = listed.service.into_iter().map(|s| s.name).collect();
    for service in
        ["raftkv.v1.Kv", "raftkv.v1.StateMachine", "raftkv.v1.Admin", "grpc.health.v1.Health"]
    {
        assert!(listed.contains(service), "{service} is not in {listed:?}");
    }
    for symbol in ["raftkv.v1.Kv", "raftkv.v1.PipelineRequest", "raftkv.v1.ErrorDetail"] {
        let request = MessageRequest::FileContainingSymbol(symbol.to_owned());
        match reflect(&node, request).await {
            MessageResponse::FileDescriptorResponse(files) => {
                assert!(!files.file_descriptor_proto.is_empty(), "{symbol}");
            }
            other => panic!("{symbol}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_health_service_says_that_the_node_serves() {
    let node = shared_node();
    let mut health = HealthClient::new(node.channel().await);
    for service in ["", "raftkv.v1.Kv", "raftkv.v1.StateMachine"] {
        // The health service may be a little behind.
        eventually("the health service to say so", Duration::from_secs(5), async || {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.unwrap().into_inner();
            (answer.status() == ServingStatus::Serving).then_some(())
        })
        .await;
    }
    let request = HealthCheckRequest { service: "nobody".to_owned() };
    let status = health.check(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(node.http().get(path).unwrap().status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_health_service_knows_its_services_from_the_first_moment() {
    let mut node = NodeOptions::new().shards(1).create();
    for _ in 0..10 {
        node.restart();
        let mut health = HealthClient::new(node.channel().await);
        for service in ["raftkv.v1.Kv", "raftkv.v1.StateMachine"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            health.check(request).await.unwrap();
        }
        node.kill();
    }
}

/// A number of the status, given as such or as text.
fn number(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    let number = value.as_u64().or(text);
    number.unwrap_or_else(|| panic!("{value} is no number"))
}

#[tokio::test]
async fn the_status_tells_what_the_node_is_and_how_its_shards_do() {
    let node = NodeOptions::new().arg("--node-id").arg("alpha").default_plugin().start();
    let client = node.client().await;
    for n in 0..50 {
        client.put(format!("status/{n}"), "v").await.unwrap();
    }
    let status = grpc::admin(node.channel().await).status(StatusRequest {}).await;
    let status = status.unwrap().into_inner();
    assert_eq!(status.node_id, "alpha");
    assert!(!status.cluster_id.is_empty());
    assert_eq!(status.address, node.address().to_string());
    assert!(!status.version.is_empty());
    assert_eq!(status.slots, 256);
    assert!(status.disk_usage_bytes > 0);

    let module = std::fs::read(workspace().join("plugins/dist/kv.wasm")).unwrap();
    let mut owned = BTreeSet::new();
    for shard in &status.shards {
        assert!(shard.name.starts_with("shard_"), "{}", shard.name);
        assert_eq!((shard.leader.as_str(), shard.role.as_str()), ("alpha", "leader"));
        assert_eq!(shard.replicas, ["alpha"]);
        assert!(shard.term > 0 && shard.commit_index >= shard.applied_index);
        assert!(shard.applied_index > 0);
        assert_eq!(shard.reason, "");
        assert!(u128::from_str_radix(&shard.state_hash, 16).is_ok(), "{}", shard.state_hash);
        let plugin = shard.plugin.as_ref().unwrap();
        assert_eq!((plugin.name.as_str(), &plugin.sha256), ("kv", &sha256(&module)));
        for slot in shard.slots.iter().flat_map(|range| range.start..range.end) {
            assert!(owned.insert(slot), "slot {slot} has two owners");
        }
    }
    assert_eq!(status.shards.len(), 4);
    assert_eq!(owned, (0..256).collect(), "every slot has an owner");
    assert_agree(&status, &node.status());
}

/// Checks that HTTP tells the same as gRPC.
fn assert_agree(status: &v1::StatusResponse, json: &Value) {
    assert_eq!(json["node_id"], status.node_id);
    assert_eq!(json["cluster_id"], status.cluster_id);
    assert_eq!(json["version"], status.version);
    assert_eq!(number(&json["slots"]), u64::from(status.slots));
    assert!(number(&json["disk_usage_bytes"]) > 0);
    number(&json["uptime_seconds"]);
    let shards = json["shards"].as_array().unwrap();
    assert_eq!(shards.len(), status.shards.len());
    for (json, shard) in shards.iter().zip(&status.shards) {
        assert_eq!(json["name"], shard.name);
        assert_eq!(json["leader"], shard.leader);
        assert_eq!(json["role"], shard.role);
        assert_eq!(json["state_hash"], shard.state_hash);
        for (name, expected) in [
            ("group", shard.group),
            ("term", shard.term),
            ("commit_index", shard.commit_index),
            ("applied_index", shard.applied_index),
            ("epoch", shard.epoch),
        ] {
            assert_eq!(number(&json[name]), expected, "{name}");
        }
        assert_eq!(json["replicas"][0], shard.replicas[0]);
        assert_eq!(json["plugin"]["name"], "kv");
        assert!(!json["slots"].is_null());
    }
}

#[tokio::test]
async fn shards_and_slots_are_as_many_as_asked_for() {
    let options = NodeOptions::new().shards(3).arg("--slots").arg("10");
    let node = options.start();
    let status = node.client().await.status().await.unwrap();
    assert_eq!(status.slots, 10);
    let sizes = status.shards.iter().map(|shard| {
        let sizes = shard.slots.iter().map(|range| range.end - range.start);
        sizes.sum::<u32>()
    });
    let mut sizes: Vec<u32> = sizes.collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [3, 3, 4]);
}

/// The sum of all samples of a metric whose labels contain `label`.
fn metric(node: &Node, name: &str, label: &str) -> f64 {
    let answer = node.http().get("/metrics").unwrap();
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/plain"), "{kind}");
    let text = answer.text();
    for about in ["HELP", "TYPE"] {
        let base = name.trim_end_matches("_count");
        assert!(text.contains(&format!("# {about} {base} ")), "{about} of {base}:\n{text}");
    }
    let mut samples = text.lines().filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let labels = sample.strip_prefix(name)?;
        let matches = labels.is_empty() || labels.starts_with('{');
        (matches && labels.contains(label)).then(|| value.parse::<f64>().unwrap())
    });
    let first = samples.next();
    let first = first.unwrap_or_else(|| panic!("no {name} with {label}:\n{text}"));
    samples.fold(first, |sum, value| sum + value)
}

#[tokio::test]
async fn the_metrics_count_what_is_done() {
    const OPERATIONS: &str = "raftkv_operations_total";
    const DURATIONS: &str = "raftkv_operation_duration_seconds_count";
    let node = Node::start();
    let client = node.client().await;
    let all = async || {
        client.put("metrics", "v").await.unwrap();
        client.get("metrics").await.unwrap();
        client.scan("metrics").collect().await.unwrap();
        client.delete("metrics").await.unwrap();
        let delete = Command::Delete { key: b"metrics", expected: None };
        client.apply("metrics", delete.encode()).await.unwrap();
        let get = Query::Get { key: b"metrics" };
        client.query("metrics", get.encode()).await.unwrap();
    };
    all().await;
    let operations = ["put", "get", "delete", "scan", "apply", "query"];
    let counts = || operations.map(|op| metric(&node, OPERATIONS, &format!("op=\"{op}\"")));
    let durations = || operations.map(|op| metric(&node, DURATIONS, &format!("op=\"{op}\"")));
    let commits = || metric(&node, "raftkv_raft_commit_index", "shard=\"");
    let before = (counts(), durations(), commits());
    for _ in 0..10 {
        all().await;
    }
    let after = (counts(), durations(), commits());
    for (place, op) in operations.iter().enumerate() {
        let counted = after.0[place] - before.0[place];
        let timed = after.1[place] - before.1[place];
        // A scan may count once for each shard.
        let exact = *op != "scan";
        assert!(counted == 10.0 || !exact && counted > 10.0, "{op} counts {counted}");
        assert!(timed == 10.0 || !exact && timed > 10.0, "{op} times {timed}");
    }
    assert!(after.2 >= before.2 + 30.0, "{} after {}", after.2, before.2);
    assert!(metric(&node, "raftkv_raft_term", "shard=\"") >= 4.0);
    assert!(metric(&node, "raftkv_storage_disk_usage_bytes", "") > 0.0);
}

#[tokio::test]
async fn keys_do_not_become_labels() {
    let node = Node::start();
    let client = node.client().await;
    let count = || node.http().get("/metrics").unwrap().text().lines().count();
    client.put("labels/0", "v").await.unwrap();
    let before = count();
    for n in 1..100 {
        client.put(format!("labels/{n}"), "v").await.unwrap();
        let answer = node.http().get(&http::path_of(format!("absent{n}").as_bytes()));
        assert_eq!(answer.unwrap().status, 404);
    }
    // Each shard and operation may add its own histogram, no more.
    assert!(count() < before + 400, "{} lines after {before}", count());
}
