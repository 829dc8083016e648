//! What can go wrong with a request, and how it is read off a gRPC status.
//!
//! The code of a status says little; its detail, if it has one, decides. A
//! status made on this side, because the connection failed, has a source; one
//! that a node sent has none.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use raft_kv_proto::{
    detail_of,
    v1::{OperationError, error_detail::Detail, plugin_error::Kind},
};
use tonic::{Code, ConnectError, Status};

use crate::{admin::ClusterOperation, endpoint::Endpoint};

/// The key-value plugin's own code for a put or delete that found another version
/// (`PutRequest` in `kv.proto`).
const VERSION_MISMATCH: u32 = 1;

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed.
///
/// After [`Error::Unavailable`], [`Error::Timeout`], [`Error::BadResponse`] and
/// [`Error::Other`] a write may or may not have taken effect, or may still do so
/// for as long as it is valid: the request timeout and 30 s from its beginning.
/// After any other error none of its attempts has. Either way it takes effect
/// once at most; but to the cluster the same call made again is another write.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was given as an endpoint is none.
    #[error("{endpoint:?} is not an endpoint ({reason}): write host:port or http://host:port")]
    InvalidEndpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection could be made; nothing was sent.
    #[error("no node answers at {endpoint}: is it running?")]
    Connect {
        /// The endpoint, or all that were tried, separated by commas.
        endpoint: String,
        /// Why not.
        #[source]
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// A part of the request is out of bounds.
    #[error("invalid {field}: {message}")]
    InvalidArgument {
        /// The offending field; `request` if the server does not say.
        field: String,
        /// What is wrong with it, and the limit.
        message: String,
    },
    /// The key's version was not the expected one; nothing was written.
    #[error("the key is not at the expected version ({message}): read it again and decide anew")]
    VersionMismatch {
        /// What the plugin says.
        message: String,
    },
    /// The plugin refused or failed the command; its writes were dropped.
    #[error("the plugin {} (code {code}): {message}", verb(*.kind))]
    Plugin {
        /// How it failed.
        kind: Kind,
        /// The plugin's own code, if it refused.
        code: u32,
        /// What the plugin says, or what stopped it.
        message: String,
    },
    /// A shard, a node or an operation that was named does not exist.
    #[error("{message}")]
    NotFound {
        /// What there is none of.
        message: String,
    },
    /// It cannot be as things are; nothing was begun.
    #[error("{message}")]
    Conflict {
        /// What stands in the way.
        message: String,
    },
    /// An operation could not be done and was undone.
    #[error(
        "operation {} ({}) was rolled back: {}", .operation.id, .operation.description,
        .operation.message
    )]
    RolledBack {
        /// The operation.
        operation: Box<ClusterOperation>,
    },
    /// An operation was not done in time; it goes on.
    #[error(
        "operation {} ({}) is still under way, at {}: {}", .operation.id,
        .operation.description, .operation.step, .operation.message
    )]
    StillRunning {
        /// The operation, as it was last heard of.
        operation: Box<ClusterOperation>,
    },
    /// No leader was found before the deadline; nothing was written.
    #[error("{}", not_leader(.leader, .address))]
    NotLeader {
        /// Node id of the leader, as far as the node asked knows; may be empty.
        leader: String,
        /// The leader's address, as host:port; may be empty.
        address: String,
    },
    /// The cluster cannot serve the request now.
    #[error("the cluster cannot serve this now: {message}; try again")]
    Unavailable {
        /// Why not.
        message: String,
    },
    /// A queue, a disk or a quota of the node is full.
    #[error("the node has no room for more: {message}; try again later")]
    ResourceExhausted {
        /// What is full.
        message: String,
    },
    /// There was no answer within the request timeout.
    #[error("no answer from {endpoint} within {after:?}: try again, or allow more time")]
    Timeout {
        /// The endpoint asked last.
        endpoint: String,
        /// The request timeout.
        after: Duration,
    },
    /// The node's answer makes no sense.
    #[error("the node answered {message}: do client and server have the same version?")]
    BadResponse {
        /// What it answered.
        message: String,
    },
    /// Any other failure that a node reported.
    #[error("the node failed the request with {:?}: {}", .0.code(), .0.message())]
    Other(Box<Status>),
}

impl Error {
    /// What the status of a call to `endpoint` means.
    pub(crate) fn from_call(status: Status, endpoint: &Endpoint) -> Self {
        if is_connect(&status) {
            return Self::Connect { endpoint: endpoint.to_string(), source: Arc::new(status) };
        }
        if let Some(source) = status.source() {
            let message = format!("the connection to {endpoint} broke ({})", root(source));
            return Self::Unavailable { message };
        }
        Self::from_answer(status)
    }

    /// What a status that a node sent means.
    fn from_answer(status: Status) -> Self {
        let detail = detail_of(&status);
        Self::from_detail(detail, status)
    }

    fn from_detail(detail: Option<Detail>, status: Status) -> Self {
        let message = status.message().to_owned();
        match (detail, status.code()) {
            (Some(Detail::NotLeader(not_leader)), _) => {
                Self::NotLeader { leader: not_leader.leader, address: not_leader.address }
            }
            (Some(Detail::PluginError(plugin)), _) => {
                Self::Plugin { kind: plugin.kind(), code: plugin.code, message: plugin.message }
            }
            (Some(Detail::InvalidArgument(invalid)), _) => {
                Self::InvalidArgument { field: invalid.field, message }
            }
            (None, Code::InvalidArgument) => {
                Self::InvalidArgument { field: "request".to_owned(), message }
            }
            (Some(Detail::NotFound(_)), _) | (None, Code::NotFound) => Self::NotFound { message },
            (Some(Detail::Conflict(_)), _) => Self::Conflict { message },
            (Some(Detail::StaleRouting(_) | Detail::ShardUnavailable(_)), _)
            | (None, Code::Unavailable | Code::DeadlineExceeded) => Self::Unavailable { message },
            (Some(Detail::ResourceExhausted(_)), _) | (None, Code::ResourceExhausted) => {
                Self::ResourceExhausted { message }
            }
            (None, _) => Self::Other(Box::new(status)),
        }
    }

    /// Whether it says of nodes only that they cannot answer now.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::NotLeader { .. }
                | Self::Unavailable { .. }
                | Self::ResourceExhausted { .. }
                | Self::Timeout { .. }
        )
    }

    /// This error as that of a comparison: the plugin's refusal because of the version
    /// has a name of its own.
    pub(crate) fn of_comparison(self) -> Self {
        match self {
            Self::Plugin { kind: Kind::Failed, code: VERSION_MISMATCH, message } => {
                Self::VersionMismatch { message }
            }
            other => other,
        }
    }
}

/// The failure of one operation of a batch.
impl From<OperationError> for Error {
    fn from(error: OperationError) -> Self {
        let status = Status::new(Code::from(error.code), error.message);
        Self::from_detail(error.detail.and_then(|detail| detail.detail), status)
    }
}

/// Whether no connection could be made, so that nothing was sent.
pub(crate) fn is_connect(status: &Status) -> bool {
    in_chain::<ConnectError>(status)
}

/// Whether the error or one of its sources is an `E`.
fn in_chain<E: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<E>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The first cause of an error.
fn root<'a>(mut error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// What a plugin did that failed so.
fn verb(kind: Kind) -> &'static str {
    match kind {
        Kind::Failed => "refused the command",
        Kind::Panic => "panicked",
        Kind::Trap => "trapped",
        Kind::OutOfFuel => "ran out of fuel",
        Kind::MemoryLimit => "reached its memory limit",
        Kind::CallDepth => "nested its calls too deeply",
        Kind::BadCall => "broke the plugin ABI",
        Kind::Unspecified => "failed",
    }
}

/// The message of [`Error::NotLeader`].
fn not_leader(leader: &str, address: &str) -> impl fmt::Display {
    if address.is_empty() {
        "the shard has no leader that the node asked knows of: try again once one is elected"
            .to_owned()
    } else {
        format!("the node asked does not lead the shard: ask {leader} at {address}")
    }
}

#[cfg(test)]
mod tests;
