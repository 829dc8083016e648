//! `raftkv.v1.Admin`.

mod wire;

use std::{sync::Arc, time::Duration};

use raft_kv_proto::v1::{self, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::{
    super::operation::{self, Asked, DEFAULT_WAIT, LONGEST_WAIT},
    status::status_of,
};
use crate::service::{OperationRequest, Service};

pub(super) struct AdminApi {
    pub(super) service: Arc<Service>,
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminApi {
    /// Begins an operation and waits for it.
    async fn carry_out(
        &self,
        request: OperationRequest,
        timeout_ms: u64,
        request_id: u64,
    ) -> Result<v1::ClusterOperation, Status> {
        let asked = Asked { request, request_id, within: wait(timeout_ms) };
        let operation = operation::carry_out(&self.service, asked).await;
        operation.map(wire::operation).map_err(status_of)
    }
}

/// How long a request that says so waits for the end of an operation.
fn wait(timeout_ms: u64) -> Duration {
    match timeout_ms {
        0 => DEFAULT_WAIT,
        milliseconds => Duration::from_millis(milliseconds).min(LONGEST_WAIT),
    }
}

fn answer(operation: v1::ClusterOperation) -> Response<v1::OperationResponse> {
    Response::new(v1::OperationResponse { operation: Some(operation) })
}

fn replica_answer(operation: v1::ClusterOperation) -> Response<v1::ReplicaResponse> {
    Response::new(v1::ReplicaResponse { replica: 0, operation: Some(operation) })
}

fn plugin_answer(operation: v1::ClusterOperation) -> Response<v1::PluginResponse> {
    Response::new(v1::PluginResponse { operation: Some(operation), ..Default::default() })
}

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn status(&self, _request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        // It reads the data folder: not on a thread that serves.
        let service = Arc::clone(&self.service);
        let status = tokio::task::spawn_blocking(move || service.status()).await;
        let status = status.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::status(status)))
    }

    async fn checksum(
        &self,
        request: Request<v1::ChecksumRequest>,
    ) -> Answer<v1::ChecksumResponse> {
        let taken = self.service.checksum(&request.get_ref().shard).await.map_err(status_of)?;
        Ok(Response::new(v1::ChecksumResponse {
            applied_index: taken.applied_index,
            checksum: format!("{:016x}", taken.checksum),
            keys: taken.keys,
        }))
    }

    async fn cluster(&self, _request: Request<v1::ClusterRequest>) -> Answer<v1::ClusterResponse> {
        let view = self.service.cluster_view().await.map_err(status_of)?;
        Ok(Response::new(wire::cluster(view)))
    }

    async fn create_shard(
        &self,
        request: Request<v1::CreateShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::CreateShardRequest { shard, nodes, timeout_ms, request_id } = request.into_inner();
        let request = OperationRequest::CreateShard { shard, nodes };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn delete_shard(
        &self,
        request: Request<v1::DeleteShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::DeleteShardRequest { shard, force, timeout_ms, request_id } = request.into_inner();
        let request = OperationRequest::DeleteShard { shard, force };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn migrate_shard(
        &self,
        request: Request<v1::MigrateShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::MigrateShardRequest { shard, from, to, timeout_ms, request_id } =
            request.into_inner();
        let request = OperationRequest::Migrate { shard, from, to };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn split_shard(
        &self,
        request: Request<v1::SplitShardRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::SplitShardRequest { shard, new_shards, timeout_ms, request_id } =
            request.into_inner();
        let request = OperationRequest::Split { shard, new_shards };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn merge_shards(
        &self,
        request: Request<v1::MergeShardsRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::MergeShardsRequest { sources, target, timeout_ms, request_id } =
            request.into_inner();
        let request = OperationRequest::Merge { sources, target };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn add_replica(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Answer<v1::ReplicaResponse> {
        let v1::ReplicaRequest { shard, node, timeout_ms, request_id } = request.into_inner();
        let request = OperationRequest::AddReplica { shard, node };
        self.carry_out(request, timeout_ms, request_id).await.map(replica_answer)
    }

    async fn remove_replica(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Answer<v1::ReplicaResponse> {
        let v1::ReplicaRequest { shard, node, timeout_ms, request_id } = request.into_inner();
        let request = OperationRequest::RemoveReplica { shard, node };
        self.carry_out(request, timeout_ms, request_id).await.map(replica_answer)
    }

    async fn add_node(
        &self,
        request: Request<v1::AddNodeRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::AddNodeRequest { node_id, address, timeout_ms, request_id } = request.into_inner();
        let request = OperationRequest::AddNode { node: node_id, address };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::RemoveNodeRequest { node_id, timeout_ms, request_id } = request.into_inner();
        let request = OperationRequest::RemoveNode { node: node_id };
        self.carry_out(request, timeout_ms, request_id).await.map(answer)
    }

    async fn upload_plugin(
        &self,
        request: Request<v1::UploadPluginRequest>,
    ) -> Answer<v1::PluginResponse> {
        let v1::UploadPluginRequest { module, timeout_ms, request_id } = request.into_inner();
        let uploaded = operation::upload(&self.service, module, request_id, wait(timeout_ms)).await;
        let (operation, plugin) = uploaded.map_err(status_of)?;
        let (operation, plugin) = (Some(wire::operation(operation)), Some(wire::plugin(plugin)));
        Ok(Response::new(v1::PluginResponse { operation, plugin, trials: Vec::new() }))
    }

    async fn list_plugins(
        &self,
        _request: Request<v1::ListPluginsRequest>,
    ) -> Answer<v1::ListPluginsResponse> {
        let plugins = self.service.plugin_views().into_iter().map(wire::plugin_view).collect();
        Ok(Response::new(v1::ListPluginsResponse { plugins }))
    }

    async fn activate_plugin(
        &self,
        request: Request<v1::ActivatePluginRequest>,
    ) -> Answer<v1::PluginResponse> {
        let mut request = request.into_inner();
        let (timeout_ms, request_id) = (request.timeout_ms, request.request_id);
        let dry_run = std::mem::take(&mut request.dry_run);
        let activation = wire::activation(request);
        if dry_run {
            let trials = self.service.try_activation(activation).await.map_err(status_of)?;
            let trials = trials.into_iter().map(wire::trial).collect();
            return Ok(Response::new(v1::PluginResponse { trials, ..Default::default() }));
        }
        let request = OperationRequest::ActivatePlugin(activation);
        self.carry_out(request, timeout_ms, request_id).await.map(plugin_answer)
    }

    async fn roll_back_plugin(
        &self,
        request: Request<v1::RollBackPluginRequest>,
    ) -> Answer<v1::PluginResponse> {
        let v1::RollBackPluginRequest { name, shards, force, timeout_ms, request_id } =
            request.into_inner();
        let request = OperationRequest::RollBackPlugin { name, shards, force };
        self.carry_out(request, timeout_ms, request_id).await.map(plugin_answer)
    }

    async fn delete_plugin(
        &self,
        request: Request<v1::DeletePluginRequest>,
    ) -> Answer<v1::DeletePluginResponse> {
        let v1::DeletePluginRequest { name, version } = request.into_inner();
        self.service.delete_plugin(&name, &version).await.map_err(status_of)?;
        Ok(Response::new(v1::DeletePluginResponse {}))
    }

    async fn operation(
        &self,
        request: Request<v1::OperationRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::OperationRequest { id, timeout_ms } = request.into_inner();
        let within = Duration::from_millis(timeout_ms).min(LONGEST_WAIT);
        let operation = self.service.await_operation(id, within).await;
        operation.map(wire::operation).map(answer).map_err(status_of)
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::OperationRequest>,
    ) -> Answer<v1::OperationResponse> {
        let v1::OperationRequest { id, timeout_ms } = request.into_inner();
        let operation = operation::cancel(&self.service, id, wait(timeout_ms)).await;
        operation.map(wire::operation).map(answer).map_err(status_of)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::ReplicaRequest>,
    ) -> Answer<v1::ReplicaResponse> {
        let v1::ReplicaRequest { shard, node, .. } = request.into_inner();
        let replica = self.service.transfer_leader(&shard, &node).await.map_err(status_of)?;
        Ok(Response::new(v1::ReplicaResponse { replica, operation: None }))
    }

    async fn set_balancer(
        &self,
        request: Request<v1::SetBalancerRequest>,
    ) -> Answer<v1::SetBalancerResponse> {
        self.service.set_balancer(request.get_ref().enabled).await.map_err(status_of)?;
        Ok(Response::new(v1::SetBalancerResponse {}))
    }
}
