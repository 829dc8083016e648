//! The gRPC services.

mod admin;
mod atomic;
mod kv;
mod raft;
mod state_machine;
mod status;

use std::{io, sync::Arc};

use axum::{Router, middleware, response::Response};
use http::HeaderValue;
use raft_kv_proto::{
    DIRECT_METADATA,
    v1::{
        self, admin_server::AdminServer, kv_server::KvServer, raft_server::RaftServer,
        state_machine_server::StateMachineServer,
    },
};
use tonic::{Code, metadata::MetadataMap, service::Routes};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

use super::Doors;
use crate::{
    network::{Introduction, MAX_FRAME_BYTES},
    service::{CallOptions, MAX_MODULE_BYTES},
};

/// The names that health is reported for; the empty one is the whole node.
const HEALTH_NAMES: [&str; 3] = ["", "raftkv.v1.Kv", "raftkv.v1.StateMachine"];

/// All services, with reflection and health.
pub(super) fn router(doors: Doors, health: HealthServer<impl Health>) -> io::Result<Router> {
    let Doors { service, network, introduction } = doors;
    // What exceeds the service's own limits is refused by it, with a detail; the
    // decoder's limit only bounds memory and must lie above.
    let limit = service.limits().message_bytes();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(io::Error::other)?;
    let kv = KvServer::new(kv::KvApi { service: Arc::clone(&service) });
    let state_machine =
        StateMachineServer::new(state_machine::StateMachineApi { service: Arc::clone(&service) });
    let admin = AdminServer::new(admin::AdminApi { service: Arc::clone(&service) });
    let raft = raft::RaftApi { network: Some(network), service: Some(service), introduction };
    let raft = raft_server(raft);
    let routes = Routes::new(health)
        .add_service(reflection)
        .add_service(kv.max_decoding_message_size(limit).max_encoding_message_size(usize::MAX))
        .add_service(
            state_machine.max_decoding_message_size(limit).max_encoding_message_size(usize::MAX),
        )
        .add_service(admin.max_decoding_message_size(MAX_MODULE_BYTES + (1 << 20)))
        .add_service(raft);
    let name_oversized = move |response| async move { name_oversized_message(response, limit) };
    Ok(routes.into_axum_router().layer(middleware::map_response(name_oversized)))
}

/// What is served before the cluster is born.
pub(super) fn birth_router(introduction: Introduction) -> io::Result<Router> {
    let raft = raft_server(raft::RaftApi { network: None, service: None, introduction });
    Ok(Routes::new(raft).into_axum_router())
}

fn raft_server(api: raft::RaftApi) -> RaftServer<raft::RaftApi> {
    RaftServer::new(api)
        .max_decoding_message_size(MAX_FRAME_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES)
}

/// What a call's metadata asks for.
fn options(metadata: &MetadataMap) -> CallOptions {
    CallOptions { direct: metadata.contains_key(DIRECT_METADATA) }
}

pub(super) async fn set_health(health: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}

/// A message above the decoder's limit is an invalid argument to our users;
/// tonic calls it out of range, which no handler here ever answers.
fn name_oversized_message(mut response: Response, limit: usize) -> Response {
    let headers = response.headers_mut();
    let code = headers.get("grpc-status");
    if code == Some(&HeaderValue::from(Code::OutOfRange as i32))
        && let Err(error) = status::oversized_message(limit).add_header(headers)
    {
        tracing::debug!("cannot describe an oversized message: {error}");
    }
    response
}
