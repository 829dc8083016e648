//! The service's errors as gRPC statuses: the one place where they are mapped.

use raft_kv_proto::{
    status_with_detail,
    v1::{self, ErrorDetail, OperationError, error_detail::Detail, plugin_error::Kind},
};
use tonic::{Code, Status};

use crate::service::{FailureKind, ServiceError};

/// A plugin's own code for a compare-and-put that found something else.
const VERSION_MISMATCH: u32 = raft_kv_plugin_kv::protocol::failure::VERSION_MISMATCH;

/// The status of a failed call.
pub(super) fn status_of(error: ServiceError) -> Status {
    let message = error.to_string();
    let (code, detail) = code_and_detail(error);
    match detail {
        Some(detail) => status_with_detail(code, message, detail),
        None => Status::new(code, message),
    }
}

/// The failure of one operation among many.
pub(super) fn operation_error(error: ServiceError) -> OperationError {
    let message = error.to_string();
    let (code, detail) = code_and_detail(error);
    let detail = detail.map(|detail| ErrorDetail { detail: Some(detail) });
    OperationError { code: code as i32, message, detail }
}

/// The status of a message that is too long to be decoded.
pub(super) fn oversized_message(limit: usize) -> Status {
    let (field, limit) = ("request", format!("at most {limit} bytes"));
    let message = format!("the message is too long: {limit} are allowed");
    status_of(ServiceError::invalid(field, &limit, &message))
}

fn code_and_detail(error: ServiceError) -> (Code, Option<Detail>) {
    match error {
        ServiceError::InvalidArgument { field, limit, .. } => {
            let detail = v1::InvalidArgument { field, limit };
            (Code::InvalidArgument, Some(Detail::InvalidArgument(detail)))
        }
        ServiceError::NotLeader { shard, leader } => {
            let (leader, address) = leader.unwrap_or_default();
            let detail = v1::NotLeader { shard, leader, address };
            (Code::Unavailable, Some(Detail::NotLeader(detail)))
        }
        ServiceError::ShardUnavailable { shard, reason } => {
            let detail = v1::ShardUnavailable { shard, reason };
            (Code::Unavailable, Some(Detail::ShardUnavailable(detail)))
        }
        ServiceError::StaleRouting { version, owner, leader, .. } => {
            let (leader, address) = leader.unwrap_or_default();
            let detail = v1::StaleRouting { version, shard: owner, leader, address };
            (Code::Unavailable, Some(Detail::StaleRouting(detail)))
        }
        ServiceError::Frozen { shard } => {
            let detail = v1::ShardUnavailable { shard, reason: "it is frozen".to_owned() };
            (Code::Unavailable, Some(Detail::ShardUnavailable(detail)))
        }
        ServiceError::NotFound { what, name } => {
            (Code::NotFound, Some(Detail::NotFound(v1::NotFound { what, name })))
        }
        ServiceError::Conflict { message } => {
            (Code::FailedPrecondition, Some(Detail::Conflict(v1::Conflict { message })))
        }
        ServiceError::Plugin { kind, code, message } => {
            let status = match kind {
                FailureKind::Failed if code == VERSION_MISMATCH => Code::FailedPrecondition,
                FailureKind::Failed => Code::Aborted,
                _ => Code::Internal,
            };
            let detail = v1::PluginError { kind: plugin_kind(kind) as i32, code, message };
            (status, Some(Detail::PluginError(detail)))
        }
        ServiceError::ResourceExhausted { resource } => {
            let detail = v1::ResourceExhausted { resource };
            (Code::ResourceExhausted, Some(Detail::ResourceExhausted(detail)))
        }
        ServiceError::DiskFull { node, .. } => {
            let detail = v1::ResourceExhausted { resource: format!("disk of node {node}") };
            (Code::ResourceExhausted, Some(Detail::ResourceExhausted(detail)))
        }
        ServiceError::OtherPlugin { .. } => (Code::FailedPrecondition, None),
        ServiceError::OutcomeUnknown { .. } => (Code::DeadlineExceeded, None),
        ServiceError::Internal(_) => (Code::Internal, None),
    }
}

fn plugin_kind(kind: FailureKind) -> Kind {
    match kind {
        FailureKind::Failed => Kind::Failed,
        FailureKind::Panic => Kind::Panic,
        FailureKind::Trap => Kind::Trap,
        FailureKind::OutOfFuel => Kind::OutOfFuel,
        FailureKind::MemoryLimit => Kind::MemoryLimit,
        FailureKind::CallDepth => Kind::CallDepth,
        FailureKind::BadCall => Kind::BadCall,
    }
}
