//! How messages leave the node.

use bytes::Bytes;

use crate::{
    message::RaftMessage,
    types::{GroupId, NodeId},
};

/// Called exactly once, with what names the fetched data to the state machine of
/// this node, or with why it could not be fetched.
pub type FetchReply = Box<dyn FnOnce(Result<Bytes, String>) + Send>;

/// Carries messages to other nodes.
///
/// Sending never blocks and may lose, delay, reorder or duplicate messages:
/// Raft copes. What can not be sent now is dropped.
pub trait Transport: Send + Sync {
    /// Sends messages of any groups to a node.
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>);

    /// All other nodes; they are told now and then that this one is alive.
    fn peers(&self) -> Vec<NodeId>;

    /// Fetches a snapshot's data from a node, all of it and verified, apart from
    /// messages. `data` is what that node's state machine calls it. Does not block.
    fn fetch_snapshot(&self, from: NodeId, group: GroupId, data: Bytes, reply: FetchReply);
}

/// For a cluster of one node: there is nobody to send to.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(&self, _to: NodeId, _messages: Vec<RaftMessage>) {}

    fn peers(&self) -> Vec<NodeId> {
        Vec::new()
    }

    fn fetch_snapshot(&self, _from: NodeId, _group: GroupId, _data: Bytes, reply: FetchReply) {
        reply(Err("there is no other node".to_owned()));
    }
}
