//! What a worker is told, by whom.

use bytes::Bytes;

use crate::{
    applier::Notice,
    entry::Command,
    group::MemberProgress,
    message::RaftMessage,
    proposal::{PendingChange, PendingProposal, PendingRead, Permit, RequestError},
    snapshot::SnapshotMeta,
    state_machine::ApplyError,
    types::{GroupId, NodeId, ReplicaId},
};

/// What a worker is told.
pub(crate) enum Input {
    Propose(PendingProposal),
    Read(GroupId, PendingRead),
    /// From another node, for any groups of this worker.
    Messages(NodeId, Vec<RaftMessage>, Option<Permit>),
    Change(PendingChange),
    /// Ask a voter to take over the leadership.
    Transfer(GroupId, ReplicaId, Answer<()>),
    /// How far the members have come.
    Progress(GroupId, Answer<Vec<MemberProgress>>),
    /// Remove a replica that does not belong to its group any more.
    Remove(GroupId, ReplicaId),
    /// From an applier.
    Notice(Notice),
    /// A snapshot was made for replicas that are far behind.
    SnapshotMade(GroupId, Result<SnapshotMeta, ApplyError>),
    /// The data of the snapshot being fetched is here.
    Fetched(GroupId, Result<Bytes, String>),
    /// No more inputs follow.
    Stop,
}

/// Called with the outcome of a small request; dropped if the node is stopping.
pub(crate) type Answer<T> = Box<dyn FnOnce(Result<T, RequestError>) + Send>;

impl Input {
    /// Bytes of what it may add to the log.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Input::Propose(proposal) => proposal.commands.iter().map(Command::size).sum(),
            Input::Messages(_, messages, _) => messages.iter().map(RaftMessage::size).sum(),
            _ => 0,
        }
    }

    /// There is no room for it.
    pub(crate) fn refuse(self) {
        match self {
            Input::Propose(proposal) => proposal.reply.send(Err(RequestError::Overloaded)),
            Input::Read(_, read) => read.send(Err(RequestError::Overloaded)),
            Input::Change(change) => change.reply.send(Err(RequestError::Overloaded)),
            Input::Transfer(_, _, answer) => answer(Err(RequestError::Overloaded)),
            Input::Progress(_, answer) => answer(Err(RequestError::Overloaded)),
            // Raft sends its messages again. The others wait for room.
            Input::Messages(..)
            | Input::Remove(..)
            | Input::Notice(_)
            | Input::SnapshotMade(..)
            | Input::Fetched(..)
            | Input::Stop => {}
        }
    }
}
