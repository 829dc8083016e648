//! How much may be under way to a follower, by bytes. `raft` counts messages; how
//! many it may send is set so that their entries fit. What is proposed in the same
//! round is not counted yet.

use super::Group;
use crate::types::Index;

/// Messages that may be under way to a follower, however small they are.
pub(super) const MAX_MESSAGES: usize = 256;

impl Group {
    /// Before something is proposed: as many more messages may leave as there is room
    /// for.
    pub(super) fn limit_in_flight(&mut self) {
        let others = self.node.raft.prs().iter().map(|(id, progress)| (*id, progress));
        let limit = |(id, progress): (u64, &raft::Progress)| {
            let room = self.room(progress.matched, progress.next_idx);
            let more = if room == 0 { 0 } else { self.messages_in(room) };
            (id, progress.ins.count() + more)
        };
        let limits: Vec<_> = others.map(limit).collect();
        for (id, messages) in limits {
            self.node.raft.adjust_max_inflight_msgs(id, messages.clamp(1, MAX_MESSAGES));
        }
    }

    /// Before a follower's answer is taken in, which may send it all that it lacks:
    /// how many messages it was then holds is not known, so that all of them count.
    pub(super) fn limit_burst(&mut self, to: u64, matched: u64) {
        let Some(progress) = self.node.raft.prs().get(to) else { return };
        let room = self.room(matched.max(progress.matched), progress.next_idx);
        let messages = self.messages_in(room).clamp(1, MAX_MESSAGES);
        self.node.raft.adjust_max_inflight_msgs(to, messages);
    }

    /// Bytes that may still leave for a follower that has the log up to `matched` and
    /// was sent all before `next`.
    fn room(&self, matched: u64, next: u64) -> u64 {
        let sent = Index(next.saturating_sub(1));
        let under_way = self.node.store().bytes_between(Index(matched), sent);
        self.max_in_flight_bytes.saturating_sub(under_way)
    }

    fn messages_in(&self, bytes: u64) -> usize {
        (bytes / self.max_message_bytes.max(1)) as usize + 1
    }
}
