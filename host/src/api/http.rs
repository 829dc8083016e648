//! The HTTP endpoints.

mod admin;
mod atomic;
mod body;
mod error;
mod kv;

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use http::{HeaderValue, Method, StatusCode, header};

use crate::{network::Introduction, service::Service};
use error::ApiError;

/// `grpc-status` of a method that is not served.
const GRPC_UNIMPLEMENTED: &str = "12";

pub(super) fn router(service: Arc<Service>) -> Router {
    let one = get(kv::get).put(kv::put).delete(kv::delete).post(kv::increment);
    Router::new()
        .route("/kv", get(kv::scan))
        .route("/kv-atomic", post(atomic::atomic))
        // An empty key gets the same error here as everywhere.
        .route("/kv/", one.clone())
        .route("/kv/{*key}", one)
        .route("/status", get(status))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(admin::router())
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(service)
}

/// What is served before the cluster is born.
pub(super) fn birth_router(introduction: Introduction) -> Router {
    let not_ready = |State(introduction): State<Introduction>| async move {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", introduction.waits_for())
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(not_ready))
        .route("/kv/{*key}", any(not_ready))
        .route("/kv", any(not_ready))
        .route("/kv-atomic", any(not_ready))
        .route("/status", get(not_ready))
        .route("/admin/{*path}", any(not_ready))
        .with_state(introduction)
}

/// For paths that are neither ours nor a gRPC service's.
pub(super) async fn not_found(request: Request) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(GRPC_UNIMPLEMENTED));
        return response;
    }
    let message = format!("there is nothing at {}", request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message).into_response()
}

async fn method_not_allowed(method: Method) -> ApiError {
    let message = format!("{method} is not a method of this path");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Work that reads the data folder stays off the threads that serve.
async fn blocking<T: Send + 'static>(
    service: Arc<Service>,
    work: impl FnOnce(&Service) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let result = tokio::task::spawn_blocking(move || work(&service)).await;
    result.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })
}

async fn status(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    Ok(Json(blocking(service, Service::status).await?).into_response())
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    let text = blocking(service, Service::metrics_text).await?;
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((content_type, text).into_response())
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(service): State<Arc<Service>>) -> Result<&'static str, ApiError> {
    match service.readiness() {
        Ok(()) => Ok("ok\n"),
        Err(reason) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", reason)),
    }
}
