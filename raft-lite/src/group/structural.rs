//! Structural changes: what the state machine makes of a group, such as a split of it.
//!
//! A change is proposed by the leader, one at a time, and not together with a change of
//! members. What it means is the state machine's business; the epoch, which each change
//! raises, is what keeps two of them from taking effect one on the other's back. When a
//! change was applied, the worker takes up the new epoch before it proposes anything.

use super::{Group, InFlight};
use crate::{
    entry::{EntryKind, Payload},
    proposal::{Change, PendingChange, RequestError},
    types::{Index, LogPosition, Term},
};

impl Group {
    /// Accepts a change of the group; it is proposed when the round is collected.
    pub(crate) fn change(&mut self, change: PendingChange) {
        self.rouse();
        self.changes.push(change);
    }

    pub(super) fn propose_changes(&mut self, unix_millis: u64) {
        for PendingChange { change, reply, .. } in std::mem::take(&mut self.changes) {
            let proposed = match change {
                Change::Members(change) => self.propose_change_of_members(&change),
                Change::Structural { epoch, change } => {
                    self.last_time_ms = self.last_time_ms.max(unix_millis);
                    self.propose_structural(epoch, change)
                }
            };
            match proposed {
                Ok(position) => {
                    self.in_flight.push_back(InFlight { position, replies: vec![(reply, 1)] });
                }
                Err(error) => reply.send(Err(error)),
            }
        }
    }

    fn propose_structural(
        &mut self,
        epoch: u64,
        change: bytes::Bytes,
    ) -> Result<LogPosition, RequestError> {
        self.check_structural(epoch)?;
        let payload = Payload {
            kind: EntryKind::Structural as i32,
            epoch,
            time_ms: self.last_time_ms,
            structural: change,
            ..Default::default()
        };
        match self.node.propose(payload.encode_entry(), Vec::new()) {
            Ok(()) => {
                self.proposed_structural = self.last_index();
                Ok(self.last_position())
            }
            Err(_) => Err(RequestError::Overloaded),
        }
    }

    /// Whether a change that was thought of at `epoch` can be proposed now.
    fn check_structural(&self, epoch: u64) -> Result<(), RequestError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        if self.node.raft.lead_transferee.is_some() {
            return Err(RequestError::Unavailable(
                "its leadership is being handed over".to_owned(),
            ));
        }
        let refused = |reason: &str| Err(RequestError::Refused(reason.to_owned()));
        if epoch != self.epoch {
            return Err(RequestError::Refused(format!(
                "it is at epoch {} now, not at {epoch}",
                self.epoch
            )));
        }
        if self.membership.is_joint() || self.node.raft.has_pending_conf() {
            return refused("a change of its members is under way");
        }
        if self.node.raft.raft_log.applied < self.proposed_structural.0 {
            return refused("another change of it is under way");
        }
        Ok(())
    }

    /// Where the last entry of the log is, which was proposed by this leader.
    pub(super) fn last_position(&self) -> LogPosition {
        LogPosition { index: self.last_index(), term: Term(self.node.raft.term) }
    }

    /// Tells `raft` what was applied, changes in their places. It must know before it
    /// stands for election and before the log is truncated: it looks through what is
    /// not applied.
    pub(super) fn sync_applied(&mut self) -> Result<(), super::GroupError> {
        // The index is published after the changes up to it.
        let applied = self.shared.applied();
        if self.shared.has_changes() {
            for applied in self.shared.take_changes(applied) {
                self.advance_applied(Index(applied.index.0 - 1));
                match &applied.change {
                    Some(change) => self.take_up_members(change, applied.epoch)?,
                    None => {
                        self.shared.set_epoch(applied.epoch);
                        self.node.mut_store().outdate_snapshot(applied.index);
                    }
                }
                self.epoch = applied.epoch;
                self.advance_applied(applied.index);
                // The others apply it as soon as they know that it is committed, and
                // they are not told of it before it is applied here.
                self.node.ping();
            }
        }
        self.advance_applied(applied);
        Ok(())
    }

    fn advance_applied(&mut self, index: Index) {
        if index.0 > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(index.0);
        }
    }
}
