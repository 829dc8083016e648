//! What a replica takes in: messages, which may be harmful and then do not reach
//! `raft`, and ticks.

use raft::eraftpb::MessageType;

use super::{Group, GroupError, quiescence::Heartbeat};
use crate::{
    clock::BootTime,
    message::RaftMessage,
    sim::planted::{self, Bug},
    types::{Index, NodeId, ReplicaId},
};

/// `raft`'s mark on a vote request that a leader's transfer asked for.
const TRANSFER_CONTEXT: &[u8] = b"CampaignTransfer";

impl Group {
    /// Whether votes are withheld and elections put off.
    fn gate_closed(&self, now: BootTime) -> bool {
        !self.is_sole_voter() && now < self.last_contact + self.election_timeout
    }

    /// The replica never was here before: it has promised nothing to anybody, and need
    /// not wait before it votes or stands for election.
    pub(crate) fn open_gate(&mut self) {
        self.last_contact = self.now.saturating_sub(self.election_timeout);
    }

    /// The replica goes out of service, and may come back: it leads nobody any more.
    pub(crate) fn resign(&mut self) {
        let raft = &mut self.node.raft;
        raft.become_follower(raft.term, raft::INVALID_ID);
        self.after_step();
    }

    /// Stands for election at once.
    pub(crate) fn campaign(&mut self) -> Result<(), GroupError> {
        self.node.campaign()?;
        self.after_step();
        Ok(())
    }

    /// Steps a message from another replica.
    pub(crate) fn step(
        &mut self,
        from: NodeId,
        message: RaftMessage,
        now: BootTime,
    ) -> Result<(), GroupError> {
        self.now = now;
        if !self.admit_sender(from, &message) {
            return Ok(());
        }
        if message.is_inquiry() {
            self.rouse();
            return Ok(());
        }
        let envelope = message.envelope();
        let mut message = match message.into_raft() {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(group = self.id().0, "dropped a Raft message: {error}");
                return Ok(());
            }
        };
        self.sync_applied()?;
        if !self.wake_by(&message, &envelope) {
            return Ok(());
        }
        let kind = message.get_msg_type();
        match kind {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if message.context != TRANSFER_CONTEXT && self.gate_closed(now) =>
            {
                return Ok(());
            }
            MessageType::MsgHeartbeat if message.term >= self.node.raft.term => {
                let (commit, last) = (Index(message.commit), self.last_index());
                if commit > last {
                    return Err(GroupError::CommitBeyondLog { commit, last });
                }
            }
            MessageType::MsgAppendResponse if message.reject => {
                // raft-rs 0.7.0 may move the next index back to the matched one
                // (fixed by tikv/raft-rs#557): what is matched is never asked again.
                if let Some(progress) = self.node.raft.prs().get(message.from) {
                    if message.index <= progress.matched {
                        return Ok(());
                    }
                    message.reject_hint = message.reject_hint.max(progress.matched);
                }
            }
            _ => {}
        }
        if kind == MessageType::MsgReadIndex && self.answer_by_lease(&message, now) {
            return Ok(());
        }
        let (term, from, is_contact) = (message.term, message.from, is_leader_contact(kind));
        if kind == MessageType::MsgAppendResponse && !message.reject {
            self.limit_burst(from, message.index);
        }
        let heartbeat = (kind == MessageType::MsgHeartbeat).then_some(Heartbeat {
            from,
            commit: message.commit,
            round: envelope.round,
            asks_to_sleep: envelope.asleep,
        });
        match self.node.step(message) {
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => {}
            Err(error) => return Err(error.into()),
        }
        if term == self.node.raft.term {
            if is_contact {
                self.last_contact = now;
                self.note_round(envelope.round);
                self.replicated_by_all =
                    self.replicated_by_all.max(Index(envelope.replicated_by_all));
            } else if is_echo(kind) && self.is_leader() {
                if planted::is(Bug::LeaseFromAcknowledgement) {
                    self.lease.count_from(now);
                }
                self.lease.echo(ReplicaId(from), envelope.round);
                self.heard.insert(ReplicaId(from), now);
                self.note_installing(ReplicaId(from), Index(envelope.installing), now);
                if kind == MessageType::MsgHeartbeatResponse {
                    self.note_asleep(ReplicaId(from), &envelope);
                }
            }
        }
        self.after_step();
        if let Some(heartbeat) = heartbeat {
            self.follow_into_sleep(&heartbeat);
        }
        Ok(())
    }

    /// One tick of the logical clock. Returns whether there may be work to do.
    pub(crate) fn tick(&mut self, now: BootTime) -> Result<bool, GroupError> {
        self.now = now;
        self.retry_stale_reads(now);
        self.sync_applied()?;
        self.leave_joint();
        self.forget_silent_installers(now);
        self.inquire(now);
        let raft = &self.node.raft;
        let would_campaign = !self.is_leader()
            && raft.promotable()
            && raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if would_campaign && self.gate_closed(now) {
            return Ok(false);
        }
        self.tick_towards_sleep();
        if self.is_asleep() {
            return Ok(false);
        }
        let ticked = self.node.tick();
        self.after_step();
        let has_work = self.hard_state() != self.written || self.has_to_hand_over();
        Ok(ticked || has_work || self.has_more())
    }
}

/// Whether a message of this kind shows that its sender heard its leader.
pub(super) fn is_echo(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse)
}

/// Whether a message of this kind comes from a leader and resets the vote gate.
pub(super) fn is_leader_contact(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot)
}
