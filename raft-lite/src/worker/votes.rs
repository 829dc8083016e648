//! Votes of replicas that are not here and never were.
//!
//! A replica that a split made elsewhere may never be born here, because the group that
//! was split has left this node, or was overtaken by a snapshot. Then only a leader can
//! bring it, with a snapshot of its own group, and it may take its vote to elect one. It
//! holds nothing and has promised nothing, so it can vote for whoever asks first in a
//! term, if it remembers that: in a log that begins before all others do, and that the
//! replica begins its own with when it comes (TiKV does the same for peers that are not
//! initialised).

use super::Worker;
use crate::{
    log_store::{Durability, LogChange, LogState},
    message::RaftMessage,
    types::{GroupId, HardState, LogPosition, NodeId},
};

impl LogState {
    /// Whether nothing but the vote of a replica is in it that is not here.
    pub(crate) fn is_ballot(&self) -> bool {
        self.start == LogPosition::default()
    }
}

impl Worker {
    /// What a replica that is not here has voted for; nothing if it has not.
    pub(super) fn ballot(&self, id: GroupId) -> HardState {
        let log = self.parts.log.state(id).ok().flatten();
        log.filter(LogState::is_ballot).map(|log| log.hard_state).unwrap_or_default()
    }

    /// Votes in the name of a replica that is not here and never was.
    pub(super) fn vote_for_absent(&mut self, from: NodeId, request: &RaftMessage) {
        let id = request.group();
        if !matches!(self.parts.log.state(id), Ok(log) if log.is_none_or(|log| log.is_ballot())) {
            return;
        }
        let before = self.ballot(id);
        let Some((answer, after)) = request.vote_of_absent(before) else { return };
        if after != before {
            let create = LogChange::Create { start: LogPosition::default(), hard_state: after };
            if !self.write(id, create, Durability::Synced) {
                return;
            }
        }
        tracing::info!(group = id.0, to = request.from().0, "voting for a replica to be");
        self.absent.ask(vec![(from, answer)]);
    }
}
