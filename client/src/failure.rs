//! Why one attempt of a request failed, and what that says about the next one.

use std::{error::Error as _, sync::Arc, time::Duration};

use raft_kv_proto::{
    detail_of,
    v1::{NotLeader, OperationError, error_detail::Detail},
};
use tonic::{Code, Status};

use crate::{endpoint::Endpoint, error::Error};

/// The field that a node names when a write came after its time.
const NOT_AFTER_FIELD: &str = "not_after";

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub error: Error,
    pub kind: Kind,
}

/// What a failed attempt says about the next one.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Another node leads the shard. Nothing happened.
    NotLeader(Box<NotLeader>),
    /// The node cannot be reached. Nothing was sent.
    Unreachable,
    /// The node has no room or cannot serve the shard now. Nothing happened.
    Refused,
    /// The request was routed by an old table: the address of the node to ask instead, if
    /// known. Nothing happened.
    Stale(Option<String>),
    /// A write that may have been carried out.
    Unknown,
    /// The write came after its time: this attempt did not carry it out.
    Expired,
    /// Another attempt would end in the same way.
    Final,
}

impl Failure {
    /// What the status of a call to `endpoint` means.
    pub fn from_call(status: Status, endpoint: &Endpoint) -> Self {
        let code = status.code();
        let detail = detail_of(&status);
        let from_node = status.source().is_none();
        let error = Error::from_call(status, endpoint);
        let kind = match &error {
            Error::Connect { .. } => Kind::Unreachable,
            _ if !from_node => Kind::Unknown,
            _ => kind(code, detail),
        };
        Self { error, kind }
    }

    /// The failure of one request of a pipeline.
    pub fn from_operation(error: OperationError) -> Self {
        let detail = error.detail.as_ref().and_then(|detail| detail.detail.clone());
        Self { kind: kind(Code::from(error.code), detail), error: error.into() }
    }

    /// No connection to `endpoint` can be made.
    pub fn unreachable(endpoint: &Endpoint, source: Arc<Status>) -> Self {
        let error = Error::Connect { endpoint: endpoint.to_string(), source };
        Self { error, kind: Kind::Unreachable }
    }

    /// The connection to `endpoint` broke with the request on it.
    pub fn broken(endpoint: &Endpoint, reason: &str) -> Self {
        let message = format!("the connection to {endpoint} broke ({reason})");
        Self { error: Error::Unavailable { message }, kind: Kind::Unknown }
    }

    /// There was no answer from `endpoint` in the time of the attempt.
    pub fn late(endpoint: &Endpoint, request_timeout: Duration) -> Self {
        let error = Error::Timeout { endpoint: endpoint.to_string(), after: request_timeout };
        Self { error, kind: Kind::Unknown }
    }

    /// Whether the attempt certainly changed nothing.
    pub fn is_without_effect(&self) -> bool {
        !matches!(self.kind, Kind::Unknown | Kind::Final)
    }
}

fn kind(code: Code, detail: Option<Detail>) -> Kind {
    match (detail, code) {
        (Some(Detail::NotLeader(not_leader)), _) => Kind::NotLeader(Box::new(not_leader)),
        (Some(Detail::StaleRouting(stale)), _) => {
            Kind::Stale(Some(stale.address).filter(|address| !address.is_empty()))
        }
        (Some(Detail::ShardUnavailable(_)), _) => Kind::Stale(None),
        (Some(Detail::ResourceExhausted(_)), _) | (None, Code::ResourceExhausted) => Kind::Refused,
        (Some(Detail::InvalidArgument(invalid)), _) if invalid.field == NOT_AFTER_FIELD => {
            Kind::Expired
        }
        (None, Code::Unavailable | Code::DeadlineExceeded) => Kind::Unknown,
        _ => Kind::Final,
    }
}
