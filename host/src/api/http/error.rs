//! The service's errors as HTTP answers: the one place where they are mapped.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use raft_kv_plugin_kv::protocol::failure;
use serde_json::json;

use crate::service::{FailureKind, ServiceError};

/// An error answer: `{"error": {"code", "message"}}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, code, message: message.into() }
    }

    /// The same error, of one of several parts of a request.
    pub(super) fn at(mut self, part: &str, place: usize) -> Self {
        self.message = format!("{part} {place}: {}", self.message);
        self
    }

    /// A part of the request that makes no sense.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_argument", message)
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let (status, code) = match &error {
            ServiceError::InvalidArgument { field, .. } if field == "value" => {
                (StatusCode::PAYLOAD_TOO_LARGE, "invalid_argument")
            }
            ServiceError::InvalidArgument { .. } => (StatusCode::BAD_REQUEST, "invalid_argument"),
            ServiceError::NotLeader { .. } => (StatusCode::SERVICE_UNAVAILABLE, "not_leader"),
            ServiceError::ShardUnavailable { .. } | ServiceError::Frozen { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "shard_unavailable")
            }
            ServiceError::StaleRouting { .. } => (StatusCode::SERVICE_UNAVAILABLE, "stale_routing"),
            ServiceError::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            ServiceError::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
            ServiceError::Plugin { kind: FailureKind::Failed, code, .. } => match *code {
                failure::VERSION_MISMATCH => (StatusCode::PRECONDITION_FAILED, "version_mismatch"),
                _ => (StatusCode::CONFLICT, "plugin_error"),
            },
            ServiceError::Plugin { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "plugin_error"),
            ServiceError::OtherPlugin { .. } => (StatusCode::CONFLICT, "other_plugin"),
            ServiceError::ResourceExhausted { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted")
            }
            ServiceError::DiskFull { .. } => {
                (StatusCode::INSUFFICIENT_STORAGE, "resource_exhausted")
            }
            ServiceError::OutcomeUnknown { .. } => (StatusCode::GATEWAY_TIMEOUT, "outcome_unknown"),
            ServiceError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}
