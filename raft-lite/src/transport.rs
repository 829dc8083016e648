//! How messages leave the node.

use crate::{message::RaftMessage, types::NodeId};

/// Carries messages to other nodes.
///
/// Sending never blocks and may lose, delay, reorder or duplicate messages:
/// Raft copes. What can not be sent now is dropped.
pub trait Transport: Send + Sync {
    /// Sends messages of any groups to a node.
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>);
}

/// For a cluster of one node: there is nobody to send to.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(&self, _to: NodeId, _messages: Vec<RaftMessage>) {}
}
