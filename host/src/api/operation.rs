//! Operations as both ways in carry them out: begun, and then waited for.

use std::time::Duration;

use bytes::Bytes;

use crate::service::{OperationRequest, OperationView, Plugin, Service, ServiceError};

/// How long to wait for an operation's end unless said otherwise.
pub(super) const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// Nobody waits longer for one answer.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// An operation, as somebody asks for it.
pub(super) struct Asked {
    pub(super) request: OperationRequest,
    /// What it is known by if it is sent again; one that nobody else has if it is 0.
    pub(super) request_id: u64,
    pub(super) within: Duration,
}

/// Begins an operation; gives it as it is at its end, or when the time is up.
pub(super) async fn carry_out(
    service: &Service,
    asked: Asked,
) -> Result<OperationView, ServiceError> {
    let Asked { request, request_id, within } = asked;
    let id = service.begin(request, known_by(request_id)).await?;
    ended(service, id, within).await
}

/// Brings a plugin to all nodes; gives the operation as above, and what the plugin is.
pub(super) async fn upload(
    service: &Service,
    module: Bytes,
    request_id: u64,
    within: Duration,
) -> Result<(OperationView, Plugin), ServiceError> {
    let (id, plugin) = service.upload_plugin(module, known_by(request_id)).await?;
    Ok((ended(service, id, within).await?, plugin))
}

fn known_by(request_id: u64) -> u64 {
    match request_id {
        0 => rand::random_range(1..=u64::MAX),
        given => given,
    }
}

/// An operation that was begun, as it is at its end, or when the time is up.
async fn ended(
    service: &Service,
    id: u64,
    within: Duration,
) -> Result<OperationView, ServiceError> {
    // Whoever asked must learn that there is an operation.
    service.await_operation(id, within).await.map_err(|error| ServiceError::OutcomeUnknown {
        reason: format!("operation {id} has begun, and what it does now can not be told: {error}"),
    })
}

/// Has an operation rolled back; gives it as it is at its end, or when the time is up.
pub(super) async fn cancel(
    service: &Service,
    id: u64,
    within: Duration,
) -> Result<OperationView, ServiceError> {
    service.cancel(id).await?;
    service.await_operation(id, within).await
}
