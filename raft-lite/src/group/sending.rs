//! What a replica's messages carry besides `raft`'s own fields, and what is kept
//! from them.

use std::mem;

use raft::{
    ProgressState,
    eraftpb::{self, MessageType},
};

use super::{Group, is_leader_contact};
use crate::{
    message::{Envelope, RaftMessage},
    round::Round,
    sim::planted::{self, Bug},
    types::{Index, ReplicaId},
};

impl Group {
    pub(super) fn send(&mut self, messages: Vec<eraftpb::Message>, round: &mut Round) {
        if messages.is_empty() {
            return;
        }
        let marks = self.marks_heartbeats();
        let mut leads_round = None;
        if self.is_leader() {
            let spared = self.least_needed().max(self.retained_after());
            self.replicated_by_all = self.replicated_by_all.max(spared);
            leads_round = Some(self.lease.stamp(round.now));
        }
        for mut message in self.cut_large(messages) {
            let Some(node) = self.node_of(ReplicaId(message.to)) else {
                continue;
            };
            match message.get_msg_type() {
                MessageType::MsgTimeoutNow => {
                    // From here on another replica may lead without waiting.
                    self.lease.give_up();
                    self.shared.set_lease_end(None);
                }
                MessageType::MsgSnapshot => {
                    self.installers.insert(ReplicaId(message.to), round.now);
                }
                _ => {}
            }
            if leads_round.is_some() {
                self.hide_unapplied(&mut message);
            }
            let envelope = Envelope {
                replicated_by_all: self.replicated_by_all.0,
                round: leads_round.unwrap_or_else(|| self.seen_round(message.term)),
                installing: self.installing.0,
                asleep: marks && is_heartbeat(message.get_msg_type()),
            };
            let message = RaftMessage::from_raft(self.id(), message, envelope);
            round.send(node, message);
        }
    }

    /// Cuts appends that `raft` has merged into ones of bounded size, so that what is
    /// urgent need not wait long for them.
    fn cut_large(&self, messages: Vec<eraftpb::Message>) -> Vec<eraftpb::Message> {
        let mut cut = Vec::with_capacity(messages.len());
        for mut message in messages {
            if message.get_msg_type() != MessageType::MsgAppend || message.entries.len() < 2 {
                cut.push(message);
                continue;
            }
            let entries: Vec<eraftpb::Entry> = message.take_entries().into();
            let mut bytes = 0;
            for entry in entries {
                let size = entry.data.len() as u64 + entry.context.len() as u64;
                if let Some(last) = message.entries.last()
                    && bytes + size > self.max_message_bytes
                {
                    let (index, log_term) = (last.index, last.term);
                    let next = eraftpb::Message { index, log_term, ..header(&message) };
                    cut.push(mem::replace(&mut message, next));
                    bytes = 0;
                }
                bytes += size;
                message.entries.push(entry);
            }
            cut.push(message);
        }
        cut
    }

    /// Keeps from a follower what this leader, which answers reads by itself, has
    /// committed and not yet applied: the follower would let it be read.
    fn hide_unapplied(&self, message: &mut eraftpb::Message) {
        let shown = self.shown().0;
        match message.get_msg_type() {
            MessageType::MsgReadIndexResp => message.index = message.index.min(shown),
            kind if is_leader_contact(kind) => message.commit = message.commit.min(shown),
            _ => {}
        }
    }

    /// Up to where this leader's log may have been read: what it applied, and what
    /// came before it led.
    pub(super) fn shown(&self) -> Index {
        if planted::is(Bug::LeaseReadDuringUnappliedSplit) {
            return Index(u64::MAX);
        }
        self.shared.applied().max(self.shared.lead_start())
    }

    /// Notes the newest round of the present term's leader.
    pub(super) fn note_round(&mut self, round: u64) {
        let term = self.node.raft.term;
        let newest = if self.leader_round.0 == term { self.leader_round.1 } else { 0 };
        self.leader_round = (term, newest.max(round));
    }

    /// The newest round seen of the leader of a term; 0 if none was.
    pub(super) fn seen_round(&self, term: u64) -> u64 {
        if self.leader_round.0 == term { self.leader_round.1 } else { 0 }
    }

    /// The index up to which every replica is known to hold the log durably, or
    /// will once it has installed its snapshot.
    pub(super) fn least_needed(&self) -> Index {
        let raft = &self.node.raft;
        let needed = raft.prs().iter().map(|(id, progress)| match progress.state {
            _ if *id == raft.id => raft.raft_log.persisted,
            ProgressState::Snapshot => progress.matched.max(progress.pending_snapshot),
            ProgressState::Probe | ProgressState::Replicate => progress.matched,
        });
        Index(needed.min().unwrap_or(0))
    }
}

/// An append without its entries.
fn header(append: &eraftpb::Message) -> eraftpb::Message {
    eraftpb::Message {
        msg_type: append.msg_type,
        to: append.to,
        from: append.from,
        term: append.term,
        commit: append.commit,
        ..Default::default()
    }
}

fn is_heartbeat(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse)
}
