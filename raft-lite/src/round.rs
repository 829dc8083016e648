//! What one worker round gathers over all its groups.

use std::collections::BTreeMap;

use crate::{
    applier::ApplyTask, clock::BootTime, log_store::LogWrite, message::RaftMessage,
    transport::Transport, types::NodeId,
};

pub(crate) struct Round {
    /// When the round began.
    pub(crate) now: BootTime,
    /// The wall clock then.
    pub(crate) unix_millis: u64,
    /// Everything to store, for all groups.
    pub(crate) write: LogWrite,
    /// Whether the write must be durable before the round goes on. Only a commit
    /// index may be written without.
    pub(crate) must_sync: bool,
    /// Bytes of entries in the write.
    pub(crate) appended_bytes: usize,
    /// Committed entries and reads for the appliers, in order.
    pub(crate) apply: Vec<ApplyTask>,
    outbox: BTreeMap<NodeId, Vec<RaftMessage>>,
}

impl Round {
    pub(crate) fn new(now: BootTime, unix_millis: u64) -> Self {
        Round {
            now,
            unix_millis,
            write: LogWrite::new(),
            must_sync: false,
            appended_bytes: 0,
            apply: Vec::new(),
            outbox: BTreeMap::new(),
        }
    }

    pub(crate) fn send(&mut self, to: NodeId, message: RaftMessage) {
        self.outbox.entry(to).or_default().push(message);
    }

    /// Sends what was gathered so far, one batch a node.
    pub(crate) fn flush(&mut self, transport: &dyn Transport) {
        while let Some((node, messages)) = self.outbox.pop_first() {
            transport.send(node, messages);
        }
    }
}
