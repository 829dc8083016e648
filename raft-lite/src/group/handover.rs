//! What leaves a group's log at its end: committed entries go to the applier, and
//! what nobody needs any more is dropped.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use raft::eraftpb;

use super::{Group, GroupError, LEADER_CHANGED};
use crate::{
    applier::{ApplyTask, EntryReplies},
    log_store::LogEntry,
    proposal::RequestError,
    round::Round,
    types::{Index, LogPosition},
};

impl Group {
    /// Hands committed entries to the applier, unless it has too much already:
    /// then only their end is noted, and they are read again later.
    pub(super) fn hand_over(&mut self, committed: Vec<eraftpb::Entry>, round: &mut Round) {
        let (Some(first), Some(last)) = (committed.first(), committed.last()) else { return };
        let contiguous = first.index == self.handed.0 + 1;
        self.committed = Index(last.index);
        if contiguous && self.has_room() {
            self.hand_over_entries(committed.into_iter().map(LogEntry).collect(), round);
        }
    }

    /// Whether the applier has room for more, and is not at a structural entry.
    fn has_room(&self) -> bool {
        !self.is_at_structural() && self.shared.apply_backlog() < self.apply_backlog_bytes
    }

    /// Whether a structural entry was handed over and is not applied.
    fn is_at_structural(&self) -> bool {
        self.shared.applied() < self.structural
    }

    pub(super) fn hand_over_rest(&mut self, round: &mut Round) -> Result<(), GroupError> {
        while self.handed < self.committed || self.is_at_structural() {
            // The flag is set before this is looked at, and the applier does it the
            // other way round: so one of the two sees the other.
            self.shared.wants_wake.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !self.has_room() {
                return Ok(());
            }
            if self.handed == self.committed {
                break;
            }
            let (low, high) = (self.handed.next(), self.committed.next());
            let entries = self.node.store().read(low, high, 4 << 20)?;
            if entries.is_empty() {
                return Err(GroupError::CommittedEntriesMissing(low));
            }
            self.hand_over_entries(entries, round);
        }
        self.shared.wants_wake.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn hand_over_entries(&mut self, mut entries: Vec<LogEntry>, round: &mut Round) {
        if let Some(place) = entries.iter().position(LogEntry::is_structural) {
            // What follows it has to wait until it is applied.
            entries.truncate(place + 1);
            let structural = entries.pop().into_iter().collect();
            self.hand_over_run(entries, false, round);
            self.hand_over_run(structural, true, round);
            self.structural = self.handed;
        } else {
            self.hand_over_run(entries, false, round);
        }
    }

    fn hand_over_run(&mut self, entries: Vec<LogEntry>, structural: bool, round: &mut Round) {
        let Some(last) = entries.last() else { return };
        self.handed = last.index();
        let mut replies = Vec::new();
        while let Some(waiting) =
            self.in_flight.pop_front_if(|waiting| waiting.position.index <= last.index())
        {
            let index = (waiting.position.index.0 - entries[0].index().0) as usize;
            if entries[index].term() == waiting.position.term {
                replies
                    .push(EntryReplies { index: waiting.position.index, replies: waiting.replies });
            } else {
                for (reply, _) in waiting.replies {
                    reply.send(Err(RequestError::OutcomeUnknown(LEADER_CHANGED.to_owned())));
                }
            }
        }
        let bytes = entries.iter().map(LogEntry::size).sum();
        self.shared.grow_apply_backlog(bytes);
        round.apply.push(ApplyTask::Entries {
            group: Arc::clone(&self.shared),
            entries,
            replies,
            bytes,
            structural,
        });
    }

    /// Answers confirmed reads, or lets the applier answer them in its order.
    pub(super) fn hand_over_reads(&mut self, round: &mut Round) {
        let applied = self.shared.applied();
        for (index, reads) in mem::take(&mut self.confirmed) {
            // A structural entry is applied out of the applier's order.
            let is_behind = self.is_at_structural() && index >= self.structural;
            if index <= applied {
                for read in reads {
                    read.send(Ok(applied));
                }
            } else if index <= self.handed && !is_behind {
                let group = Arc::clone(&self.shared);
                round.apply.push(ApplyTask::Reads { group, reads });
            } else {
                self.confirmed.push((index, reads));
            }
        }
    }

    /// Whether something waits to be handed over.
    pub(super) fn has_to_hand_over(&self) -> bool {
        self.handed < self.committed || !self.confirmed.is_empty()
    }

    /// Drops what the cache need not hold, and says up to where the log can be
    /// truncated, given what the state machine has on disk.
    pub(crate) fn compact(
        &mut self,
        persisted: Index,
        threshold: u64,
    ) -> Result<Option<LogPosition>, GroupError> {
        self.sync_applied()?;
        let start = self.node.store().start();
        let target = persisted.min(self.all_have());
        if target.0 < start.index.0 + threshold.max(1) {
            return Ok(None);
        }
        let term = self.node.store().term_at(target)?;
        let position = LogPosition { index: target, term };
        self.node.mut_store().compact(position);
        Ok(Some(position))
    }

    pub(crate) fn evict_cache(&mut self) {
        let applied = self.shared.applied();
        let done = if self.is_leader() { applied.min(self.least_needed()) } else { applied };
        let durable = Index(self.node.raft.raft_log.persisted);
        self.node.mut_store().evict(done, durable);
    }

    /// What no replica needs from this one's log any more, or is spared.
    fn all_have(&self) -> Index {
        if self.is_leader() {
            self.least_needed().max(self.retained_after())
        } else {
            self.replicated_by_all
        }
    }
}
