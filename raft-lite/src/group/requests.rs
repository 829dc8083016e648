//! The requests under way in a group: proposals until they are handed to the
//! applier, reads until the leader is known to lead and their index is applied.

use std::mem;

use raft::eraftpb::{self, MessageType};

use super::{Group, InFlight, UnconfirmedReads};
use crate::{
    clock::BootTime,
    entry::{Command, EntryKind, Payload},
    proposal::{PendingProposal, PendingRead, RequestError},
    types::{Index, NodeId},
};

impl Group {
    /// Accepts commands; they are proposed when the round is collected.
    pub(crate) fn propose(&mut self, proposal: PendingProposal) {
        if !proposal.makes_room
            && self.is_leader()
            && let Some(node) = self.full_disk()
        {
            return proposal.reply.send(Err(RequestError::DiskFull { node }));
        }
        self.rouse();
        self.proposals.push(proposal);
    }

    /// A node of a member whose disk is nearly full.
    fn full_disk(&self) -> Option<NodeId> {
        let own = self.node_of(self.shared.replica)?;
        self.liveness.full_disk(own, || self.membership.members().into_values().collect())
    }

    /// Accepts a linearizable read.
    pub(crate) fn read(&mut self, read: PendingRead) {
        self.rouse();
        self.new_reads.push(read);
    }

    /// Answers everything that only a leader can answer.
    pub(super) fn fail_requests(&mut self, reason: &str, of_reads: RequestError) {
        for in_flight in mem::take(&mut self.in_flight) {
            for (reply, _) in in_flight.replies {
                reply.send(Err(RequestError::OutcomeUnknown(reason.to_owned())));
            }
        }
        let unconfirmed = mem::take(&mut self.unconfirmed);
        for read in unconfirmed.into_values().flat_map(|waiting| waiting.reads) {
            read.send(Err(of_reads.clone()));
        }
    }

    /// Merges the proposals that wait into as few entries as their sizes allow.
    pub(super) fn propose_waiting(&mut self, unix_millis: u64) {
        if self.proposals.is_empty() {
            return;
        }
        if !self.is_leader() {
            let error = self.not_leader();
            for proposal in self.proposals.drain(..) {
                proposal.reply.send(Err(error.clone()));
            }
            return;
        }
        self.last_time_ms = self.last_time_ms.max(unix_millis);
        let mut waiting = mem::take(&mut self.proposals).into_iter().peekable();
        while let Some(first) = waiting.next() {
            let mut bytes = proposal_bytes(&first);
            let mut merged = vec![first];
            while let Some(next) =
                waiting.next_if(|next| bytes + proposal_bytes(next) <= self.max_entry_bytes)
            {
                bytes += proposal_bytes(&next);
                merged.push(next);
            }
            self.propose_entry(merged);
        }
    }

    fn propose_entry(&mut self, merged: Vec<PendingProposal>) {
        let mut payload = Payload {
            kind: EntryKind::Commands as i32,
            epoch: self.epoch,
            time_ms: self.last_time_ms,
            ..Default::default()
        };
        let mut replies = Vec::with_capacity(merged.len());
        for proposal in merged {
            replies.push((proposal.reply, proposal.commands.len()));
            payload.commands.extend(proposal.commands);
        }
        if self.node.raft.lead_transferee.is_some() {
            let reason = "its leadership is being handed over".to_owned();
            for (reply, _) in replies {
                reply.send(Err(RequestError::Unavailable(reason.clone())));
            }
            return;
        }
        self.limit_in_flight();
        match self.node.propose(Vec::new(), payload.encode_entry()) {
            Ok(()) => {
                let position = self.last_position();
                self.in_flight.push_back(InFlight { position, replies });
            }
            Err(error) => {
                tracing::debug!(group = self.id().0, "proposal dropped: {error}");
                for (reply, _) in replies {
                    reply.send(Err(RequestError::Overloaded));
                }
            }
        }
    }

    /// Asks the leader's confirmation for the reads that wait.
    pub(super) fn ask_reads(&mut self, now: BootTime) {
        if self.new_reads.is_empty() {
            return;
        }
        if self.node.raft.leader_id == raft::INVALID_ID {
            let error = self.not_leader();
            for read in self.new_reads.drain(..) {
                read.send(Err(error.clone()));
            }
            return;
        }
        // Before the first commit of its term a leader drops reads silently: they
        // wait here until then. A follower's are asked again after a while.
        if self.is_leader() && !self.node.raft.commit_to_current_term() {
            return;
        }
        let context = self.next_read_context;
        self.next_read_context = self.next_read_context.wrapping_add(1);
        let reads = mem::take(&mut self.new_reads);
        self.unconfirmed.insert(context, UnconfirmedReads { asked: now, reads });
        self.node.read_index(context.to_be_bytes().to_vec());
    }

    /// Answers a follower's read within the lease, without asking the others.
    /// Returns whether it did.
    pub(super) fn answer_by_lease(&mut self, question: &eraftpb::Message, now: BootTime) -> bool {
        let raft = &self.node.raft;
        if !self.is_leader() || !raft.commit_to_current_term() || !self.shared.lease_holds(now) {
            return false;
        }
        let mut answer = eraftpb::Message {
            to: question.from,
            from: raft.id,
            term: raft.term,
            index: raft.raft_log.committed,
            entries: question.entries.clone(),
            ..Default::default()
        };
        answer.set_msg_type(MessageType::MsgReadIndexResp);
        self.answers.push(answer);
        // The follower can answer once it knows that the index is committed.
        let known = raft.prs().get(question.from).map(|progress| progress.committed_index);
        if known.is_some_and(|known| known < self.shown().0.min(raft.raft_log.committed)) {
            self.node.raft.send_append(question.from);
        }
        true
    }

    /// Takes back reads whose confirmation did not come in time: the message may
    /// have been lost. They are asked again under a new context.
    pub(super) fn retry_stale_reads(&mut self, now: BootTime) {
        let timeout = self.election_timeout;
        let stale = self.unconfirmed.extract_if(.., |_, waiting| now >= waiting.asked + timeout);
        let stale: Vec<_> = stale.flat_map(|(_, waiting)| waiting.reads).collect();
        self.new_reads.extend(stale);
    }

    pub(super) fn confirm_reads(&mut self, index: Index, context: &[u8]) {
        let Ok(context) = context.try_into().map(u64::from_be_bytes) else {
            return;
        };
        if let Some(waiting) = self.unconfirmed.remove(&context) {
            self.confirmed.push((index, waiting.reads));
        }
    }

    /// Answers everything that waits, because the replica goes out of service.
    pub(crate) fn abandon(&mut self, reason: &str) {
        self.fail_requests(reason, RequestError::Unavailable(reason.to_owned()));
        let proposals = self.proposals.drain(..).map(|proposal| proposal.reply);
        for reply in proposals.chain(self.changes.drain(..).map(|change| change.reply)) {
            reply.send(Err(RequestError::Unavailable(reason.to_owned())));
        }
        let confirmed = mem::take(&mut self.confirmed).into_iter().flat_map(|(_, reads)| reads);
        for read in mem::take(&mut self.new_reads).into_iter().chain(confirmed) {
            read.send(Err(RequestError::Unavailable(reason.to_owned())));
        }
    }
}

fn proposal_bytes(proposal: &PendingProposal) -> usize {
    proposal.commands.iter().map(Command::size).sum()
}
