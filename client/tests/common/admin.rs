//! The administrator's service of the test node, over a made-up cluster.

use raft_kv_proto::v1::admin_server::Admin;
use tonic::{Request, Response};

use super::*;

type Answer<T> = Result<Response<T>, Status>;

/// How an operation goes.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// How often it is found running.
    pub found_running: usize,
    /// The state that it ends in.
    pub ends: &'static str,
}

impl Course {
    /// It is done at once.
    pub const DONE: Self = Self { found_running: 0, ends: "done" };
    /// It does not end.
    pub const ENDLESS: Self = Self { found_running: usize::MAX, ends: "done" };
}

/// The operations of a cluster, which its nodes share.
#[derive(Default)]
pub struct Operations {
    /// How the next ones go; those after them are done at once.
    courses: Mutex<VecDeque<Course>>,
    all: Mutex<BTreeMap<u64, Begun>>,
    balancer: Mutex<bool>,
}

struct Begun {
    request_id: u64,
    course: Course,
    operation: v1::ClusterOperation,
}

impl Operations {
    /// How the next operation goes.
    pub fn next(&self, course: Course) {
        self.courses.lock().unwrap().push_back(course);
    }

    /// What was begun.
    pub fn descriptions(&self) -> Vec<String> {
        let all = self.all.lock().unwrap();
        all.values().map(|begun| begun.operation.description.clone()).collect()
    }

    /// Begins an operation on a shard or node, unless the request began one before.
    fn begin(
        &self,
        on: &str,
        description: String,
        request_id: u64,
    ) -> Result<v1::ClusterOperation, Status> {
        assert_ne!(request_id, 0, "a request can be told from others");
        if on == "missing" {
            let (what, name) = ("shard".to_owned(), on.to_owned());
            let detail = Detail::NotFound(v1::NotFound { what, name });
            return Err(status_with_detail(Code::NotFound, "there is no shard missing", detail));
        }
        if on == "busy" {
            let message = "operation 9 is under way".to_owned();
            let detail = Detail::Conflict(v1::Conflict { message: message.clone() });
            return Err(status_with_detail(Code::FailedPrecondition, message, detail));
        }
        let mut all = self.all.lock().unwrap();
        let known = all.iter().find(|(_, begun)| begun.request_id == request_id);
        let id = known.map_or(all.len() as u64 + 1, |(id, _)| *id);
        all.entry(id).or_insert_with(|| Begun {
            request_id,
            course: self.courses.lock().unwrap().pop_front().unwrap_or(Course::DONE),
            operation: v1::ClusterOperation {
                id,
                kind: "migrate".into(),
                description,
                state: "running".into(),
                step: "move".into(),
                message: "the new replica catches up".into(),
                reason: "user".into(),
                started_unix_ms: 1_000_000,
                ended_unix_ms: 0,
            },
        });
        drop(all);
        self.look(id)
    }

    /// An operation, which comes along each time it is looked at.
    fn look(&self, id: u64) -> Result<v1::ClusterOperation, Status> {
        let mut all = self.all.lock().unwrap();
        let begun = all.get_mut(&id).ok_or_else(|| {
            let detail = v1::NotFound { what: "operation".into(), name: id.to_string() };
            let message = format!("there is no operation {id}");
            status_with_detail(Code::NotFound, message, Detail::NotFound(detail))
        })?;
        match begun.course.found_running.checked_sub(1) {
            Some(left) => begun.course.found_running = left,
            None => {
                begun.operation.state = begun.course.ends.into();
                begun.operation.message = match begun.course.ends {
                    "rolled_back" => "node4 is down".into(),
                    _ => String::new(),
                };
                begun.operation.ended_unix_ms = 1_003_000;
            }
        }
        Ok(begun.operation.clone())
    }

    fn cancel(&self, id: u64) -> Result<v1::ClusterOperation, Status> {
        if let Some(begun) = self.all.lock().unwrap().get_mut(&id) {
            begun.course = Course { found_running: 1, ends: "rolled_back" };
        }
        self.look(id)
    }
}

fn operation(operation: v1::ClusterOperation) -> Response<v1::OperationResponse> {
    Response::new(v1::OperationResponse { operation: Some(operation) })
}

fn replica(operation: v1::ClusterOperation) -> Response<v1::ReplicaResponse> {
    Response::new(v1::ReplicaResponse { replica: 0, operation: Some(operation) })
}

impl Node {
    /// Begins an operation, and then, if this node is told to, fails.
    fn operate(
        &self,
        on: &str,
        description: String,
        request_id: u64,
    ) -> Result<v1::ClusterOperation, Status> {
        let operation = self.store.operations.begin(on, description, request_id);
        self.begin()?;
        operation
    }
}

fn plugin(operation: v1::ClusterOperation) -> Response<v1::PluginResponse> {
    Response::new(v1::PluginResponse { operation: Some(operation), ..Default::default() })
}

#[tonic::async_trait]
impl Admin for Node {
    async fn create_shard(
        &self,
        request: Request<v1::CreateShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::CreateShardRequest { shard, nodes, request_id, .. } = request.into_inner();
        let description = format!("create {shard} on {}", nodes.join(","));
        self.operate(&shard, description, request_id).map(operation)
    }

    async fn delete_shard(
        &self,
        request: Request<v1::DeleteShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::DeleteShardRequest { shard, force, request_id, .. } = request.into_inner();
        let description = format!("delete {shard}, force {force}");
        self.operate(&shard, description, request_id).map(operation)
    }

    async fn migrate_shard(
        &self,
        request: Request<v1::MigrateShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::MigrateShardRequest { shard, from, to, request_id, .. } = request.into_inner();
        let description = format!("migrate {shard} from {from} to {to}");
        self.operate(&shard, description, request_id).map(operation)
    }

    async fn split_shard(
        &self,
        request: Request<v1::SplitShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::SplitShardRequest { shard, new_shards, request_id, .. } = request.into_inner();
        let description = format!("split {shard} into {}", new_shards.join(","));
        self.operate(&shard, description, request_id).map(operation)
    }

    async fn merge_shards(
        &self,
        request: Request<v1::MergeShardsRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::MergeShardsRequest { sources, target, request_id, .. } = request.into_inner();
        let description = format!("merge {} into {target}", sources.join(","));
        self.operate(&target, description, request_id).map(operation)
    }

    async fn add_replica(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Answer<v1::ReplicaResponse> {
        let v1::ReplicaRequest { shard, node, request_id, .. } = request.into_inner();
        let description = format!("add {node} to {shard}");
        self.operate(&shard, description, request_id).map(replica)
    }

    async fn remove_replica(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Answer<v1::ReplicaResponse> {
        let v1::ReplicaRequest { shard, node, request_id, .. } = request.into_inner();
        let description = format!("remove {node} from {shard}");
        self.operate(&shard, description, request_id).map(replica)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Answer<v1::ReplicaResponse> {
        self.begin()?;
        let v1::ReplicaRequest { shard, .. } = request.into_inner();
        match shard.as_str() {
            "missing" => Err(Status::not_found("there is no shard missing")),
            _ => Ok(Response::new(v1::ReplicaResponse { replica: 4, operation: None })),
        }
    }

    async fn add_node(
        &self,
        request: Request<v1::AddNodeRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::AddNodeRequest { node_id, address, request_id, .. } = request.into_inner();
        let description = format!("add {node_id} at {address}");
        self.operate(&node_id, description, request_id).map(operation)
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::RemoveNodeRequest { node_id, request_id, .. } = request.into_inner();
        self.operate(&node_id, format!("remove {node_id}"), request_id).map(operation)
    }

    async fn operation(
        &self,
        request: Request<v1::OperationRequest>,
    ) -> Answer<v1::OperationResponse> {
        self.begin()?;
        self.store.operations.look(request.get_ref().id).map(operation)
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::OperationRequest>,
    ) -> Answer<v1::OperationResponse> {
        self.begin()?;
        self.store.operations.cancel(request.get_ref().id).map(operation)
    }

    async fn upload_plugin(
        &self,
        request: Request<v1::UploadPluginRequest>,
    ) -> Answer<v1::PluginResponse> {
        let v1::UploadPluginRequest { module, request_id, .. } = request.into_inner();
        let description = format!("add a plugin of {} bytes", module.len());
        self.operate("plugins", description, request_id).map(plugin)
    }

    async fn list_plugins(
        &self,
        _: Request<v1::ListPluginsRequest>,
    ) -> Answer<v1::ListPluginsResponse> {
        self.begin()?;
        Ok(Response::new(v1::ListPluginsResponse::default()))
    }

    async fn activate_plugin(
        &self,
        request: Request<v1::ActivatePluginRequest>,
    ) -> Answer<v1::PluginResponse> {
        let v1::ActivatePluginRequest { name, version, request_id, .. } = request.into_inner();
        let description = format!("activate {name} {version}");
        self.operate("plugins", description, request_id).map(plugin)
    }

    async fn roll_back_plugin(
        &self,
        request: Request<v1::RollBackPluginRequest>,
    ) -> Answer<v1::PluginResponse> {
        let v1::RollBackPluginRequest { name, request_id, .. } = request.into_inner();
        self.operate("plugins", format!("roll back {name}"), request_id).map(plugin)
    }

    async fn delete_plugin(
        &self,
        _: Request<v1::DeletePluginRequest>,
    ) -> Answer<v1::DeletePluginResponse> {
        self.begin()?;
        Ok(Response::new(v1::DeletePluginResponse {}))
    }

    async fn set_balancer(
        &self,
        request: Request<v1::SetBalancerRequest>,
    ) -> Answer<v1::SetBalancerResponse> {
        self.begin()?;
        *self.store.operations.balancer.lock().unwrap() = request.get_ref().enabled;
        Ok(Response::new(v1::SetBalancerResponse {}))
    }

    async fn cluster(&self, _: Request<v1::ClusterRequest>) -> Answer<v1::ClusterResponse> {
        self.begin()?;
        let operations = &self.store.operations;
        let begun = operations.all.lock().unwrap();
        Ok(Response::new(v1::ClusterResponse {
            cluster_id: "6f3a".into(),
            version: 12,
            slots: SLOTS,
            unowned_slots: vec![v1::SlotRange { start: 200, end: SLOTS }],
            balancer: *operations.balancer.lock().unwrap(),
            nodes: nodes(),
            shards: shards(),
            operations: begun.values().map(|begun| begun.operation.clone()).collect(),
        }))
    }

    async fn checksum(&self, _: Request<v1::ChecksumRequest>) -> Answer<v1::ChecksumResponse> {
        Err(Status::unimplemented("no checksums"))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.begin()?;
        let shard = |name: &str, start, end| v1::ShardStatus {
            name: name.into(),
            group: 1,
            slots: vec![v1::SlotRange { start, end }],
            leader: "node1".into(),
            role: "leader".into(),
            term: 3,
            commit_index: 17,
            applied_index: 16,
            plugin: Some(v1::PluginInfo {
                name: "kv".into(),
                version: "0.1.0".into(),
                sha256: "00".into(),
            }),
            ..Default::default()
        };
        let quarantined = v1::ShardStatus {
            leader: String::new(),
            role: "quarantined".into(),
            plugin: None,
            reason: "its state differs".into(),
            ..shard("shard_10", 128, 256)
        };
        Ok(Response::new(v1::StatusResponse {
            node_id: "node1".into(),
            address: "127.0.0.1:5001".into(),
            version: "0.1.0".into(),
            uptime_seconds: 125,
            slots: 256,
            disk_usage_bytes: 1536,
            shards: vec![shard("shard_0", 0, 128), quarantined],
            ..Default::default()
        }))
    }
}

fn nodes() -> Vec<v1::ClusterNode> {
    let node = |number: u32| v1::ClusterNode {
        node_id: format!("node{number}"),
        address: format!("127.0.0.1:500{number}"),
        state: "up".into(),
        meta: true,
        replicas: 2,
        leaders: 1,
        disk_usage_bytes: 1536,
        disk_free_bytes: 3 << 40,
        version: "0.1.0".into(),
        ..Default::default()
    };
    let down = v1::ClusterNode {
        node_id: "node3".into(),
        address: "127.0.0.1:5003".into(),
        state: "down".into(),
        draining: true,
        replicas: 1,
        ..Default::default()
    };
    vec![node(1), node(2), down]
}

fn shards() -> Vec<v1::ClusterShard> {
    let serving = v1::ClusterShard {
        shard_id: "shard_0".into(),
        group: 2,
        slots: vec![v1::SlotRange { start: 0, end: 100 }, v1::SlotRange { start: 150, end: 151 }],
        epoch: 3,
        leader: "node1".into(),
        replicas: vec!["node1".into(), "node2".into()],
        learners: vec!["node3".into()],
        state: "serving".into(),
        bytes: 1 << 20,
        applied_index: 17,
        plugin: Some(v1::PluginInfo {
            name: "kv".into(),
            version: "0.1.0".into(),
            sha256: "00".into(),
        }),
        operation: 7,
    };
    let alone = v1::ClusterShard {
        shard_id: "shard_1".into(),
        group: 3,
        slots: vec![v1::SlotRange { start: 151, end: 200 }],
        replicas: vec!["node3".into()],
        state: "no_leader".into(),
        ..Default::default()
    };
    vec![serving, alone]
}
