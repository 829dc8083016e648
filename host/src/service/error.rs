//! The one vocabulary of errors that clients are given. It is mapped to gRPC and
//! to HTTP in one place each, under `api`.

use raft_lite::{CommandFailure, Rejection, RequestError};

use crate::{machine::QueryError, meta::MetaError, wasm::PluginFailure};

pub use crate::wasm::FailureKind;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The request itself is wrong. Nothing happened.
    #[error("{message}")]
    InvalidArgument {
        /// The field that is wrong.
        field: String,
        /// What is allowed.
        limit: String,
        /// What is the matter, for people.
        message: String,
    },
    /// Another node leads the shard, or none does. Nothing happened.
    #[error("this node does not lead shard {shard}{}", at_leader(.leader))]
    NotLeader {
        /// The shard.
        shard: String,
        /// The leader's id and address, if known.
        leader: Option<(String, String)>,
    },
    /// The shard can not serve the request now. Nothing happened.
    #[error("shard {shard} is unavailable: {reason}")]
    ShardUnavailable {
        /// The shard.
        shard: String,
        /// Why.
        reason: String,
    },
    /// The shard does not own the key's slot any more. Nothing happened.
    #[error("shard {shard} does not own the key's slot any more")]
    StaleRouting {
        /// The shard that was asked.
        shard: String,
        /// Version of this node's routing table.
        version: u64,
        /// The shard that owns the slot, as far as known.
        owner: String,
        /// Id and address of its leader's node, if known.
        leader: Option<(String, String)>,
    },
    /// The shard is about to be merged into another, or deleted, or gets another plugin. Nothing
    /// happened.
    #[error("shard {shard} is frozen: it is merged into another, deleted, or gets another plugin")]
    Frozen {
        /// The shard.
        shard: String,
    },
    /// What is named does not exist.
    #[error("there is no {what} {name}")]
    NotFound {
        /// `shard`, `node` or `operation`.
        what: String,
        /// What it would be called.
        name: String,
    },
    /// It can not be as things are. Nothing happened.
    #[error("{message}")]
    Conflict {
        /// What stands in the way.
        message: String,
    },
    /// The plugin refused or failed the command. Nothing was written.
    #[error("the plugin {}: {message}", verb(.kind))]
    Plugin {
        /// How it failed.
        kind: FailureKind,
        /// The plugin's own code.
        code: u32,
        /// What it said.
        message: String,
    },
    /// The shard runs another plugin than the request is meant for. Nothing
    /// happened.
    #[error(
        "shard {shard} runs the plugin {plugin}, not the key-value store: \
         use the StateMachine service"
    )]
    OtherPlugin {
        /// The shard.
        shard: String,
        /// What its plugin calls itself.
        plugin: String,
    },
    /// Too much is waiting. Nothing happened.
    #[error("the node has too much to do: {resource}; try again later")]
    ResourceExhausted {
        /// What is used up.
        resource: String,
    },
    /// A disk is nearly full. Nothing happened.
    #[error(
        "the disk of node {node} is nearly full: shard {shard} takes reads and deletes only; free \
         space there, or move the replica away"
    )]
    DiskFull {
        /// The shard.
        shard: String,
        /// The node.
        node: String,
    },
    /// Whether the write took effect is not known.
    #[error("the outcome is unknown: {reason}")]
    OutcomeUnknown {
        /// Why.
        reason: String,
    },
    /// The node failed.
    #[error("internal error: {0}")]
    Internal(String),
}

fn at_leader(leader: &Option<(String, String)>) -> String {
    match leader {
        Some((node, address)) => format!(": {node} at {address} does"),
        None => ", and knows of no leader".to_owned(),
    }
}

fn verb(kind: &FailureKind) -> &'static str {
    match kind {
        FailureKind::Failed => "refused the command",
        FailureKind::Panic => "panicked",
        FailureKind::Trap => "trapped",
        FailureKind::OutOfFuel => "ran out of fuel",
        FailureKind::MemoryLimit => "reached its memory limit",
        FailureKind::CallDepth => "recursed too deeply",
        FailureKind::BadCall => "broke the rules of the plugin ABI",
    }
}

impl ServiceError {
    /// A wrong field.
    pub fn invalid(field: &str, limit: &str, message: &str) -> Self {
        ServiceError::InvalidArgument {
            field: field.to_owned(),
            limit: limit.to_owned(),
            message: message.to_owned(),
        }
    }

    /// What a response that the default plugin should have given, but did not,
    /// means.
    pub(super) fn foreign_response(error: impl std::fmt::Display) -> Self {
        ServiceError::Internal(format!(
            "the shard's plugin does not answer like the key-value store ({error}); \
             use the StateMachine service for other plugins"
        ))
    }

    /// Whether nothing happened, and the same request will do better once the routing table
    /// is newer, or a merge is over.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, ServiceError::StaleRouting { .. } | ServiceError::Frozen { .. })
    }

    /// `node` is the id and address of the one that the error names.
    pub(super) fn of_request(
        error: RequestError,
        shard: &str,
        node: Option<(String, String)>,
    ) -> Self {
        let shard = shard.to_owned();
        match error {
            RequestError::NotLeader { .. } => ServiceError::NotLeader { shard, leader: node },
            RequestError::DiskFull { node: number } => {
                let node = node.map_or_else(|| number.to_string(), |(id, _)| id);
                ServiceError::DiskFull { shard, node }
            }
            RequestError::Overloaded => {
                ServiceError::ResourceExhausted { resource: format!("queue of shard {shard}") }
            }
            RequestError::Unavailable(reason) => ServiceError::ShardUnavailable { shard, reason },
            RequestError::OutcomeUnknown(reason) => ServiceError::OutcomeUnknown { reason },
            RequestError::Refused(reason) => ServiceError::Conflict {
                message: format!("shard {shard} refuses the change: {reason}"),
            },
            RequestError::Stopping => {
                ServiceError::OutcomeUnknown { reason: RequestError::Stopping.to_string() }
            }
        }
    }

    pub(super) fn of_rejection(rejection: Rejection, shard: &str) -> Self {
        let shard = shard.to_owned();
        match rejection {
            Rejection::SlotNotOwned => {
                ServiceError::StaleRouting { shard, version: 0, owner: String::new(), leader: None }
            }
            Rejection::StaleEpoch => ServiceError::ShardUnavailable {
                shard,
                reason: "it or its members changed meanwhile".to_owned(),
            },
            Rejection::Frozen => ServiceError::Frozen { shard },
            Rejection::Answered => ServiceError::InvalidArgument {
                field: "sequence".to_owned(),
                limit: "not below what the session has acknowledged".to_owned(),
                message: "the client has said before that it needs no result of this write"
                    .to_owned(),
            },
            Rejection::Expired => ServiceError::InvalidArgument {
                field: "not_after".to_owned(),
                limit: "a time not yet passed".to_owned(),
                message: "the command's time had passed before it could take effect".to_owned(),
            },
        }
    }

    pub(super) fn of_query(error: QueryError, shard: &str) -> Self {
        match error {
            QueryError::NoShard(_) => ServiceError::of_rejection(Rejection::SlotNotOwned, shard),
            QueryError::Frozen | QueryError::Switching => {
                ServiceError::of_rejection(Rejection::Frozen, shard)
            }
            QueryError::Host(error) => ServiceError::Internal(error.to_string()),
            QueryError::Storage(error) => ServiceError::Internal(error.to_string()),
        }
    }
}

impl From<MetaError> for ServiceError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::NotFound { what, name } => {
                ServiceError::NotFound { what: what.to_owned(), name }
            }
            MetaError::Conflict(message) => ServiceError::Conflict { message },
            MetaError::Invalid { field, message } => {
                ServiceError::invalid(field, "what makes sense as things are", &message)
            }
        }
    }
}

impl From<PluginFailure> for ServiceError {
    fn from(failure: PluginFailure) -> Self {
        let PluginFailure { kind, code, message } = failure;
        ServiceError::Plugin { kind, code, message }
    }
}

impl From<CommandFailure> for ServiceError {
    fn from(failure: CommandFailure) -> Self {
        let CommandFailure { kind, code, message } = failure;
        match FailureKind::ALL.into_iter().find(|known| *known as u32 == kind) {
            Some(kind) => ServiceError::Plugin { kind, code, message },
            None => ServiceError::Internal(format!("unknown kind of plugin failure {kind}")),
        }
    }
}
