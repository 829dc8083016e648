//! What callers hand to the runtime, and how they are answered.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

use crate::{
    entry::Command,
    membership::MembershipChange,
    state_machine::CommandOutcome,
    types::{GroupId, Index, NodeId},
};

/// Called exactly once with the outcome of each command of a proposal, in
/// order. Runs on a thread of the runtime: it must be short and not block.
pub type ProposalReply = Box<dyn FnOnce(Result<Vec<CommandOutcome>, RequestError>) + Send>;

/// Called exactly once; with `Ok(index)` when the local replica has applied
/// everything up to `index`, which covers every write acknowledged before the
/// read was asked. Runs on a thread of the runtime: short, not blocking.
pub type ReadReply = Box<dyn FnOnce(Result<Index, RequestError>) + Send>;

/// Commands for one group, to take effect in the order given. They go into one
/// log entry, perhaps together with others'.
pub struct Proposal {
    /// The group whose log they go to.
    pub group: GroupId,
    /// The commands. Without any it moves on nothing but the replicated time, to the
    /// leader's clock.
    pub commands: Vec<Command>,
    /// Whether they only remove: such are taken even while a disk is nearly full.
    pub makes_room: bool,
    /// Who is told the outcome.
    pub reply: ProposalReply,
}

/// Why a request was not carried out, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// This node's replica does not lead the group. Nothing happened.
    #[error("not the leader of the group")]
    NotLeader {
        /// The node whose replica leads, if known.
        leader: Option<NodeId>,
    },
    /// The request makes no sense as the group is now. Nothing happened.
    #[error("refused: {0}")]
    Refused(String),
    /// Too much is waiting already. Nothing happened.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The disk of a member of the group is nearly full. Nothing happened.
    #[error("the disk of node number {node} is nearly full")]
    DiskFull {
        /// The node.
        node: NodeId,
    },
    /// This node has no working replica of the group. Nothing happened.
    #[error("the group can not be served by this node: {0}")]
    Unavailable(String),
    /// It may or may not take effect.
    #[error("the outcome of the request is unknown: {0}")]
    OutcomeUnknown(String),
    /// The node is stopping. The request may or may not take effect.
    #[error("the node is stopping")]
    Stopping,
}

/// A limit on the bytes of requests that were accepted and not yet answered.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Budget { used: AtomicUsize::new(0), limit })
    }

    /// Takes `bytes` out of the budget; `None` if that many are not left. One
    /// request is always let in, however large.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { budget: Arc::clone(self), bytes };
        (before == 0 || before + bytes <= self.limit).then_some(permit)
    }
}

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A proposal on its way through the runtime. Dropping it unanswered tells the
/// caller that the node is stopping.
pub(crate) struct PendingProposal {
    pub(crate) group: GroupId,
    pub(crate) commands: Vec<Command>,
    pub(crate) makes_room: bool,
    pub(crate) reply: PendingReply,
}

/// A change of a group on its way to the leader's log.
pub(crate) struct PendingChange {
    pub(crate) group: GroupId,
    pub(crate) change: Change,
    pub(crate) reply: PendingReply,
}

/// What is to change.
pub(crate) enum Change {
    Members(MembershipChange),
    /// What the state machine defines, for the reasons there were at an epoch.
    Structural {
        epoch: u64,
        change: Bytes,
    },
}

/// The reply of a proposal together with its share of the budget.
pub(crate) struct PendingReply {
    reply: Option<ProposalReply>,
    _permit: Permit,
}

impl PendingReply {
    pub(crate) fn new(reply: ProposalReply, permit: Permit) -> Self {
        PendingReply { reply: Some(reply), _permit: permit }
    }

    pub(crate) fn send(mut self, result: Result<Vec<CommandOutcome>, RequestError>) {
        if let Some(reply) = self.reply.take() {
            reply(result);
        }
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply(Err(RequestError::Stopping));
        }
    }
}

/// A read on its way through the runtime; like [`PendingReply`] it is never
/// dropped unanswered.
pub(crate) struct PendingRead {
    reply: Option<ReadReply>,
    _permit: Permit,
}

impl PendingRead {
    /// What one read takes out of the budget.
    pub(crate) const BYTES: usize = 256;

    pub(crate) fn new(reply: ReadReply, permit: Permit) -> Self {
        PendingRead { reply: Some(reply), _permit: permit }
    }

    pub(crate) fn send(mut self, result: Result<Index, RequestError>) {
        if let Some(reply) = self.reply.take() {
            reply(result);
        }
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply(Err(RequestError::Stopping));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_refuses_what_exceeds_it_and_gets_back_what_was_taken() {
        let budget = Budget::new(10);
        let first = budget.take(8).unwrap();
        assert!(budget.take(3).is_none());
        let second = budget.take(2).unwrap();
        drop(first);
        drop(second);
        assert!(budget.take(10).is_some());
    }

    #[test]
    fn a_request_larger_than_the_whole_budget_gets_through_alone() {
        let budget = Budget::new(10);
        let large = budget.take(100).unwrap();
        assert!(budget.take(1).is_none());
        drop(large);
        assert!(budget.take(1).is_some());
    }
}
