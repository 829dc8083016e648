//! What meta is told, through its log, and what it answers.

use bytes::Bytes;
use prost::Message;

use super::{
    operation::{Operation, Task},
    plugin::PluginDescription,
};

/// Why a command has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// There is no such thing.
    #[error("there is no {what} {name}")]
    NotFound {
        /// `shard`, `node` or `operation`.
        what: &'static str,
        /// What it would be called.
        name: String,
    },
    /// It is well-formed, and can not be as things are.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        field: &'static str,
        /// What is the matter with it.
        message: String,
    },
}

/// A command.
#[derive(Clone, PartialEq, Message)]
pub struct MetaCommand {
    /// What is to be done.
    #[prost(oneof = "Change", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub change: Option<Change>,
}

/// What a command changes.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Change {
    /// Records of shards, of whatever age.
    #[prost(message, tag = "1")]
    Observe(Observe),
    /// An operation begins.
    #[prost(message, tag = "2")]
    Begin(Begin),
    /// An operation takes a step.
    #[prost(message, tag = "3")]
    Step(Step),
    /// A node is added, or has another address or data folder.
    #[prost(message, tag = "4")]
    PutNode(PutNode),
    /// A node is forgotten, unless it still has replicas.
    #[prost(string, tag = "5")]
    DropNode(String),
    /// The balancer begins operations by itself, or does not.
    #[prost(bool, tag = "6")]
    Balancer(bool),
    /// A shard ended: it is being deleted.
    #[prost(uint64, tag = "7")]
    EndShard(u64),
    /// Somebody wants an operation undone.
    #[prost(uint64, tag = "8")]
    Cancel(u64),
    /// A plugin is made known to the cluster.
    #[prost(message, tag = "9")]
    PutPlugin(PutPlugin),
    /// A node has a plugin, compiled, or can not compile it.
    #[prost(message, tag = "10")]
    HavePlugin(HavePlugin),
    /// A plugin is forgotten, unless a shard runs it or ran it before.
    #[prost(bytes = "bytes", tag = "11")]
    DropPlugin(Bytes),
}

/// See [`Change::PutPlugin`].
#[derive(Clone, PartialEq, Message)]
pub struct PutPlugin {
    /// The plugin.
    #[prost(message, required, tag = "1")]
    pub description: PluginDescription,
    /// The node that has it.
    #[prost(string, tag = "2")]
    pub node: String,
    /// The number of its data folder.
    #[prost(uint64, tag = "3")]
    pub folder: u64,
}

/// See [`Change::HavePlugin`].
#[derive(Clone, PartialEq, Message)]
pub struct HavePlugin {
    /// SHA-256 of the module.
    #[prost(bytes = "bytes", tag = "1")]
    pub plugin: Bytes,
    /// The node.
    #[prost(string, tag = "2")]
    pub node: String,
    /// The number of its data folder.
    #[prost(uint64, tag = "3")]
    pub folder: u64,
    /// Why it can not run the plugin; empty if it can.
    #[prost(string, tag = "4")]
    pub refusal: String,
}

/// See [`Change::Observe`].
#[derive(Clone, PartialEq, Message)]
pub struct Observe {
    /// The records, encoded.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub records: Vec<Bytes>,
}

/// See [`Change::Begin`].
#[derive(Clone, PartialEq, Message)]
pub struct Begin {
    /// What is to be done.
    #[prost(message, required, tag = "1")]
    pub task: Task,
    /// Asked twice with the same number it begins once; 0 for none.
    #[prost(uint64, tag = "2")]
    pub request_id: u64,
    /// Who asks, and why.
    #[prost(string, tag = "3")]
    pub reason: String,
}

/// See [`Change::Step`]. It takes effect only if as many steps were taken before as
/// whoever takes it thinks.
#[derive(Clone, PartialEq, Message)]
pub struct Step {
    /// The operation after the step; of it counts what steps may change.
    #[prost(message, required, tag = "1")]
    pub operation: Operation,
    /// Steps taken before.
    #[prost(uint64, tag = "2")]
    pub after: u64,
}

/// See [`Change::PutNode`].
#[derive(Clone, PartialEq, Message)]
pub struct PutNode {
    /// Its id.
    #[prost(string, tag = "1")]
    pub node: String,
    /// `host:port` that it is reached at.
    #[prost(string, tag = "2")]
    pub address: String,
    /// The number of its data folder; 0 if it is not known yet.
    #[prost(uint64, tag = "3")]
    pub folder: u64,
}

/// What meta answers.
#[derive(Clone, PartialEq, Message)]
pub struct MetaReply {
    /// The operation that was begun.
    #[prost(uint64, tag = "1")]
    pub operation: u64,
    /// The state's version after the command.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The next group's number: all groups below may have been anywhere.
    #[prost(uint64, tag = "3")]
    pub next_group: u64,
    /// Why the command had no effect: 0 if it had, 1 not found, 2 conflict, 3 invalid.
    #[prost(uint32, tag = "4")]
    pub(super) error: u32,
    /// `shard`, `node`, `operation`, or the field that is wrong.
    #[prost(string, tag = "5")]
    pub(super) subject: String,
    /// What is the matter.
    #[prost(string, tag = "6")]
    pub(super) message: String,
}

impl Change {
    /// The command as it stands in the log.
    pub fn to_bytes(self) -> Bytes {
        MetaCommand { change: Some(self) }.encode_to_vec().into()
    }
}

impl MetaReply {
    pub(super) fn refused(self, error: &MetaError) -> Self {
        let (error, subject, message) = match error {
            MetaError::NotFound { what, name } => (1, (*what).to_owned(), name.clone()),
            MetaError::Conflict(message) => (2, String::new(), message.clone()),
            MetaError::Invalid { field, message } => (3, (*field).to_owned(), message.clone()),
        };
        MetaReply { error, subject, message, ..self }
    }

    /// The answer, or why there is none.
    pub fn checked(self) -> Result<Self, MetaError> {
        const SUBJECTS: [&str; 13] = [
            "shard",
            "node",
            "operation",
            "plugin",
            "version",
            "shards",
            "canary",
            "nodes",
            "from",
            "to",
            "new_shards",
            "sources",
            "shard_id",
        ];
        let subject =
            SUBJECTS.into_iter().find(|known| *known == self.subject).unwrap_or("request");
        match self.error {
            0 => Ok(self),
            1 => Err(MetaError::NotFound { what: subject, name: self.message }),
            2 => Err(MetaError::Conflict(self.message)),
            _ => Err(MetaError::Invalid { field: subject, message: self.message }),
        }
    }
}
