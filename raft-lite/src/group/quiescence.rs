//! Sleep: a group with nothing to do neither ticks nor sends, on any replica.
//!
//! A leader that has been idle for a while asks its followers to fall asleep, by a
//! mark in its heartbeats. A follower that holds and has applied all there is does so
//! and says it in its answer; once all have, the leader does too. From there on only
//! the nodes' signs of life tell that the leader is there ([`Liveness`]).
//!
//! Any request, and any message that is not part of falling asleep, wakes a replica.
//! A leader that wakes sends heartbeats, which wake the others. If the node of a
//! member falls silent or has started anew, its groups wake.
//!
//! Invariants:
//! - only a group sleeps of which every replica holds and has applied the same, and
//!   all of whose members' nodes are heard;
//! - a leader that sleeps has no lease;
//! - waking does not campaign: the election clock stands where the signs of life of
//!   the leader's node put it, and goes on from there.
//!
//! A replica that is awake while its leader sleeps does no harm and does not stay so:
//! it misses the heartbeats and asks for votes, which wakes the leader.
//!
//! [`Liveness`]: crate::liveness::Liveness

use std::collections::BTreeSet;

use raft::{
    ProgressState, StateRole,
    eraftpb::{self, MessageType},
};

use super::{Group, is_echo};
use crate::{
    message::Envelope,
    types::{Index, NodeId, ReplicaId},
};

#[derive(Debug, Default)]
pub(super) struct Quiescence {
    phase: Phase,
    /// Ticks without anything to do.
    idle_ticks: usize,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Awake,
    /// The leader asks the others to fall asleep.
    Drowsy {
        /// Answers to rounds after this one count.
        since: u64,
        asleep: BTreeSet<ReplicaId>,
    },
    Asleep,
}

impl Group {
    pub(crate) fn is_asleep(&self) -> bool {
        matches!(self.quiescence.phase, Phase::Asleep)
    }

    /// Whether heartbeats are marked: a leader's asks its receiver to fall asleep, a
    /// follower's answer says that it did.
    pub(super) fn marks_heartbeats(&self) -> bool {
        !matches!(self.quiescence.phase, Phase::Awake)
    }

    /// There is something to do.
    pub(super) fn rouse(&mut self) {
        if self.is_asleep() {
            self.wake();
        } else {
            self.quiescence = Quiescence::default();
        }
    }

    fn wake(&mut self) {
        self.quiescence = Quiescence::default();
        self.shared.set_asleep(false);
        let silence = self.leader_node().map_or(usize::MAX, |node| self.liveness.silence(node));
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader {
            raft.election_elapsed = 0;
            raft.ping();
        } else {
            raft.election_elapsed = silence.min(raft.election_timeout());
        }
    }

    fn fall_asleep(&mut self) {
        self.quiescence.phase = Phase::Asleep;
        self.shared.set_asleep(true);
        self.shared.set_lease_end(None);
        // All of it is applied, and nobody will ask for it.
        self.evict_cache();
    }

    /// Another node fell silent, or has started anew: what its replica knew of this
    /// group's sleep is gone. Returns whether that woke this replica.
    pub(crate) fn note_gone(&mut self, node: NodeId) -> bool {
        if !self.is_asleep() || !self.membership.members().values().any(|other| *other == node) {
            return false;
        }
        let led = self.leader_node() == Some(node);
        self.wake();
        if led {
            self.node.raft.election_elapsed = self.node.raft.election_timeout();
        }
        true
    }

    /// Wakes a replica that sleeps, unless the message is part of falling asleep.
    /// Returns whether the message is to be taken in.
    pub(super) fn wake_by(&mut self, message: &eraftpb::Message, envelope: &Envelope) -> bool {
        if !self.is_asleep() {
            return true;
        }
        let kind = message.get_msg_type();
        let is_of_term = message.term == self.node.raft.term;
        if is_of_term && self.is_leader() && is_echo(kind) && !message.reject {
            // It answers what was sent before all fell asleep.
            return false;
        }
        let asks_to_sleep = kind == MessageType::MsgHeartbeat && envelope.asleep;
        if !(is_of_term && asks_to_sleep) {
            self.wake();
        }
        true
    }

    /// A leader's heartbeat was taken in, which asks to fall asleep if it is marked.
    pub(super) fn follow_into_sleep(&mut self, heartbeat: &Heartbeat) {
        let raft = &self.node.raft;
        let agrees = heartbeat.asks_to_sleep
            && raft.state == StateRole::Follower
            && raft.leader_id == heartbeat.from
            && heartbeat.commit == raft.raft_log.last_index()
            && heartbeat.round == self.seen_round(raft.term)
            && self.installing == Index(0)
            && self.has_nothing_to_do()
            && self.hears_all_members();
        match (agrees, self.is_asleep()) {
            (true, false) => self.fall_asleep(),
            (false, true) => self.wake(),
            _ => {}
        }
    }

    /// A follower answered in this term.
    pub(super) fn note_asleep(&mut self, from: ReplicaId, envelope: &Envelope) {
        if let Phase::Drowsy { since, asleep } = &mut self.quiescence.phase
            && envelope.round > *since
        {
            if envelope.asleep {
                asleep.insert(from);
            } else {
                asleep.remove(&from);
            }
            self.sleep_if_all_do();
        }
    }

    fn sleep_if_all_do(&mut self) {
        let Phase::Drowsy { asleep, .. } = &self.quiescence.phase else { return };
        let raft = &self.node.raft;
        let sleeps = |id: u64| id == raft.id || asleep.contains(&ReplicaId(id));
        let all_sleep = raft.prs().iter().all(|(id, _)| sleeps(*id));
        if all_sleep && self.is_idle() {
            self.fall_asleep();
        }
    }

    /// The leader's part at each tick: looks whether the group could sleep.
    pub(super) fn tick_towards_sleep(&mut self) {
        if self.quiesce_after_ticks == 0 || !self.is_leader() {
            return;
        }
        let was_read = self.shared.take_was_read();
        if was_read || !self.is_idle() {
            return self.rouse();
        }
        self.quiescence.idle_ticks += 1;
        if self.quiescence.idle_ticks >= self.quiesce_after_ticks {
            if matches!(self.quiescence.phase, Phase::Awake) {
                let (since, asleep) = (self.lease.round(), BTreeSet::new());
                self.quiescence.phase = Phase::Drowsy { since, asleep };
                self.node.raft.ping();
            }
            self.sleep_if_all_do();
        }
    }

    /// Whether this leader has nothing to do, and neither has any follower.
    fn is_idle(&self) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let all_have = raft.prs().iter().all(|(id, progress)| {
            *id == raft.id
                || (progress.state != ProgressState::Snapshot && progress.matched == last)
        });
        raft.lead_transferee.is_none()
            && all_have
            && self.has_nothing_to_do()
            && self.hears_all_members()
    }

    /// Whether all there is is applied here, and nobody waits for anything.
    fn has_nothing_to_do(&self) -> bool {
        let log = &self.node.raft.raft_log;
        let last = log.last_index();
        let nobody_waits = self.proposals.is_empty()
            && self.changes.is_empty()
            && self.in_flight.is_empty()
            && self.new_reads.is_empty()
            && self.unconfirmed.is_empty()
            && self.confirmed.is_empty()
            && self.answers.is_empty()
            && self.control.is_empty();
        nobody_waits
            && log.committed == last
            && log.persisted == last
            && self.shared.applied() == Index(last)
            && !self.shared.has_changes()
            && !self.membership.is_joint()
    }

    /// Whether signs of life come from all members' nodes.
    fn hears_all_members(&self) -> bool {
        let most = self.node.raft.election_timeout() / 2;
        let is_heard = |(replica, node): (&ReplicaId, &NodeId)| {
            *replica == self.shared.replica || self.liveness.silence(*node) <= most
        };
        self.membership.members().iter().all(is_heard)
    }
}

/// What a heartbeat that was taken in said.
pub(super) struct Heartbeat {
    pub(super) from: u64,
    pub(super) commit: u64,
    pub(super) round: u64,
    pub(super) asks_to_sleep: bool,
}
