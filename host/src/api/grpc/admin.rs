//! `raftkv.v1.Admin`.

use std::sync::Arc;

use raft_kv_proto::v1::{self, admin_server::Admin};
use raft_lite::ReplicaId;
use tonic::{Request, Response, Status};

use super::status::status_of;
use crate::service::{MemberStatus, NodeStatus, Service, ShardStatus};

pub(super) struct AdminApi {
    pub(super) service: Arc<Service>,
}

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        // It reads the data folder: not on a thread that serves.
        let service = Arc::clone(&self.service);
        let status = tokio::task::spawn_blocking(move || service.status()).await;
        let status = status.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(response(status)))
    }

    async fn checksum(
        &self,
        request: Request<v1::ChecksumRequest>,
    ) -> Result<Response<v1::ChecksumResponse>, Status> {
        let taken = self.service.checksum(&request.get_ref().shard).await.map_err(status_of)?;
        Ok(Response::new(v1::ChecksumResponse {
            applied_index: taken.applied_index,
            checksum: format!("{:016x}", taken.checksum),
            keys: taken.keys,
        }))
    }

    async fn add_replica(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Result<Response<v1::ReplicaResponse>, Status> {
        let v1::ReplicaRequest { shard, node } = request.into_inner();
        self.service.add_replica(&shard, &node).await.map(replica).map_err(status_of)
    }

    async fn remove_replica(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Result<Response<v1::ReplicaResponse>, Status> {
        let v1::ReplicaRequest { shard, node } = request.into_inner();
        self.service.remove_replica(&shard, &node).await.map(replica).map_err(status_of)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Result<Response<v1::ReplicaResponse>, Status> {
        let v1::ReplicaRequest { shard, node } = request.into_inner();
        self.service.transfer_leader(&shard, &node).await.map(replica).map_err(status_of)
    }
}

fn replica(replica: ReplicaId) -> Response<v1::ReplicaResponse> {
    Response::new(v1::ReplicaResponse { replica: replica.0 })
}

fn response(status: NodeStatus) -> v1::StatusResponse {
    v1::StatusResponse {
        node_id: status.node_id,
        cluster_id: status.cluster_id,
        address: status.address,
        version: status.version.to_owned(),
        uptime_seconds: status.uptime_seconds,
        slots: status.slots,
        disk_usage_bytes: status.disk_usage_bytes,
        shards: status.shards.into_iter().map(shard).collect(),
        nodes: status.nodes.into_iter().map(node).collect(),
    }
}

fn node(node: MemberStatus) -> v1::NodeInfo {
    let MemberStatus { node_id, address, connected } = node;
    v1::NodeInfo { node_id, address, connected }
}

fn shard(shard: ShardStatus) -> v1::ShardStatus {
    let range =
        |slots: &crate::service::Slots| v1::SlotRange { start: slots.start, end: slots.end };
    v1::ShardStatus {
        slots: shard.slots.iter().map(range).collect(),
        name: shard.name,
        group: shard.group,
        leader: shard.leader,
        role: shard.role.to_owned(),
        term: shard.term,
        commit_index: shard.commit_index,
        applied_index: shard.applied_index,
        epoch: shard.epoch,
        replicas: shard.replicas,
        learners: shard.learners,
        plugin: Some(v1::PluginInfo {
            name: shard.plugin.name,
            version: shard.plugin.version,
            sha256: shard.plugin.sha256,
        }),
        state_hash: shard.state_hash,
        reason: shard.reason.unwrap_or_default(),
    }
}
