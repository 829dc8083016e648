//! `/admin`: the cluster's nodes, shards, plugins and operations.
//!
//! What changes something is answered when it is done, or with 202 when its time is up
//! and it goes on.

mod plugin;
mod request;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use http::StatusCode;
use serde_json::json;

use super::{
    super::operation::{self, Asked, DEFAULT_WAIT},
    error::ApiError,
};
use crate::service::{OperationRequest, OperationView, Service, ServiceError};
use request::{
    AddReplica, Balancer, CreateShard, Force, InPath, JoinNode, Merge, Migrate, Sent, Split,
    Transfer, Wait,
};

type Answer = Result<Response, ApiError>;
type At = State<Arc<Service>>;

pub(super) fn router() -> Router<Arc<Service>> {
    Router::new()
        .route("/admin/cluster", get(cluster))
        .route("/admin/shard", get(shards).post(create_shard))
        .route("/admin/shard/merge", post(merge_shards))
        .route("/admin/shard/{shard}", get(shard).delete(delete_shard))
        .route("/admin/shard/{shard}/migrate", post(migrate_shard))
        .route("/admin/shard/{shard}/split", post(split_shard))
        .route("/admin/shard/{shard}/transfer-leader", post(transfer_leader))
        .route("/admin/shard/{shard}/replica", post(add_replica))
        .route("/admin/shard/{shard}/replica/{node}", delete(remove_replica))
        .route("/admin/node", get(nodes).post(add_node))
        .route("/admin/node/{node}", get(node).delete(remove_node))
        .merge(plugin::router())
        .route("/admin/operation", get(operations))
        .route("/admin/operation/{id}", get(operation).delete(cancel_operation))
        .route("/admin/balancer", get(balancer).put(set_balancer))
}

async fn cluster(State(service): At) -> Answer {
    Ok(Json(service.cluster_view().await?).into_response())
}

async fn shards(State(service): At) -> Answer {
    Ok(Json(json!({"shards": service.cluster_view().await?.shards})).into_response())
}

async fn shard(State(service): At, InPath(name): InPath<String>) -> Answer {
    let shards = service.cluster_view().await?.shards;
    match shards.into_iter().find(|shard| shard.shard_id == name) {
        Some(shard) => Ok(Json(shard).into_response()),
        None => Err(ServiceError::NotFound { what: "shard".to_owned(), name }.into()),
    }
}

async fn nodes(State(service): At) -> Answer {
    Ok(Json(json!({"nodes": service.cluster_view().await?.nodes})).into_response())
}

async fn node(State(service): At, InPath(name): InPath<String>) -> Answer {
    let nodes = service.cluster_view().await?.nodes;
    match nodes.into_iter().find(|node| node.node_id == name) {
        Some(node) => Ok(Json(node).into_response()),
        None => Err(ServiceError::NotFound { what: "node".to_owned(), name }.into()),
    }
}

async fn create_shard(State(service): At, wait: Wait, Sent(body): Sent<CreateShard>) -> Answer {
    let CreateShard { shard_id, nodes } = body;
    carry_out(&service, OperationRequest::CreateShard { shard: shard_id, nodes }, wait).await
}

async fn delete_shard(
    State(service): At,
    InPath(shard): InPath<String>,
    wait: Wait,
    Force(force): Force,
) -> Answer {
    carry_out(&service, OperationRequest::DeleteShard { shard, force }, wait).await
}

async fn migrate_shard(
    State(service): At,
    InPath(shard): InPath<String>,
    wait: Wait,
    Sent(body): Sent<Migrate>,
) -> Answer {
    let Migrate { from, to } = body;
    carry_out(&service, OperationRequest::Migrate { shard, from, to }, wait).await
}

async fn split_shard(
    State(service): At,
    InPath(shard): InPath<String>,
    wait: Wait,
    Sent(body): Sent<Split>,
) -> Answer {
    let Split { new_shards } = body;
    carry_out(&service, OperationRequest::Split { shard, new_shards }, wait).await
}

async fn merge_shards(State(service): At, wait: Wait, Sent(body): Sent<Merge>) -> Answer {
    let Merge { sources, target } = body;
    carry_out(&service, OperationRequest::Merge { sources, target }, wait).await
}

async fn transfer_leader(
    State(service): At,
    InPath(shard): InPath<String>,
    Sent(Transfer { to }): Sent<Transfer>,
) -> Answer {
    service.transfer_leader(&shard, &to).await?;
    Ok(Json(json!({"shard_id": shard, "leader": to})).into_response())
}

async fn add_replica(
    State(service): At,
    InPath(shard): InPath<String>,
    wait: Wait,
    Sent(AddReplica { node }): Sent<AddReplica>,
) -> Answer {
    carry_out(&service, OperationRequest::AddReplica { shard, node }, wait).await
}

async fn remove_replica(
    State(service): At,
    InPath((shard, node)): InPath<(String, String)>,
    wait: Wait,
) -> Answer {
    carry_out(&service, OperationRequest::RemoveReplica { shard, node }, wait).await
}

async fn add_node(State(service): At, wait: Wait, Sent(body): Sent<JoinNode>) -> Answer {
    let JoinNode { node_id, address } = body;
    carry_out(&service, OperationRequest::AddNode { node: node_id, address }, wait).await
}

async fn remove_node(State(service): At, InPath(node): InPath<String>, wait: Wait) -> Answer {
    carry_out(&service, OperationRequest::RemoveNode { node }, wait).await
}

async fn operations(State(service): At) -> Answer {
    Ok(Json(json!({"operations": service.cluster_view().await?.operations})).into_response())
}

async fn operation(State(service): At, InPath(id): InPath<u64>, Wait(within): Wait) -> Answer {
    let operation = service.await_operation(id, within.unwrap_or(Duration::ZERO)).await?;
    Ok(Json(operation).into_response())
}

async fn cancel_operation(
    State(service): At,
    InPath(id): InPath<u64>,
    Wait(within): Wait,
) -> Answer {
    let operation = operation::cancel(&service, id, within.unwrap_or(DEFAULT_WAIT)).await?;
    Ok(with_status(operation))
}

async fn balancer(State(service): At) -> Answer {
    Ok(Json(json!({"enabled": service.cluster_view().await?.balancer})).into_response())
}

async fn set_balancer(State(service): At, Sent(Balancer { enabled }): Sent<Balancer>) -> Answer {
    service.set_balancer(enabled).await?;
    Ok(Json(json!({"enabled": enabled})).into_response())
}

/// Begins an operation and waits for it.
async fn carry_out(service: &Service, request: OperationRequest, wait: Wait) -> Answer {
    let within = wait.0.unwrap_or(DEFAULT_WAIT);
    let operation = operation::carry_out(service, Asked { request, request_id: 0, within }).await?;
    let (status, operation) = standing(operation)?;
    Ok((status, Json(operation)).into_response())
}

/// An operation that is over or goes on, and the status that says so; one that was rolled back is
/// an error.
fn standing(operation: OperationView) -> Result<(StatusCode, OperationView), ApiError> {
    if operation.state == "rolled_back" {
        let OperationView { id, description, message, .. } = operation;
        let message = format!("operation {id} ({description}) was rolled back: {message}");
        return Err(ApiError::new(StatusCode::CONFLICT, "rolled_back", message));
    }
    Ok((status_of(&operation), operation))
}

fn status_of(operation: &OperationView) -> StatusCode {
    match operation.state.as_str() {
        "running" => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    }
}

/// An operation that has ended, or that goes on.
fn with_status(operation: OperationView) -> Response {
    (status_of(&operation), Json(operation)).into_response()
}
