//! The group's members: changing them, moving the leadership among them, and
//! telling those who were removed.
//!
//! A change is proposed by the leader, one at a time. When the state machine has
//! applied it, the worker gives it to `raft` before anything after it counts as
//! applied. A joint configuration is left by an entry of its own, which the leader
//! proposes again and again until it is applied.

use raft::{ProgressState, SnapshotStatus, StateRole};

use super::{Group, GroupError};
use crate::{
    clock::BootTime,
    entry::{EntryKind, Payload},
    membership::MembershipChange,
    message::RaftMessage,
    proposal::RequestError,
    snapshot::SnapshotMeta,
    types::{Index, LogPosition, NodeId, ReplicaId},
};

/// Election timeouts without a leader after which a replica asks whether it was
/// removed.
const INQUIRY_TIMEOUTS: u32 = 4;

/// Election timeouts without an answer after which a leader does nothing more for a
/// member that is far behind.
const SILENCE_TIMEOUTS: u32 = 8;

/// How far a member has come, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    /// The member.
    pub replica: ReplicaId,
    /// The node it lives on.
    pub node: NodeId,
    /// Whether its vote counts.
    pub is_voter: bool,
    /// The last index it is known to hold.
    pub matched: Index,
    /// Whether it holds all but a few entries, and is heard of.
    pub is_caught_up: bool,
    /// Whether it is being given a snapshot.
    pub gets_snapshot: bool,
}

impl Group {
    /// Whether a message may come from `from`; remembers where its sender lives. A
    /// sender that was removed is told so.
    pub(crate) fn admit_sender(&mut self, from: NodeId, message: &RaftMessage) -> bool {
        let sender = message.from();
        if self.membership.was_removed(sender) {
            let removed = RaftMessage::removed(self.id(), self.shared.replica, sender);
            self.control.push((from, removed));
            return false;
        }
        match self.membership.node_of(sender) {
            Some(node) if node == from => true,
            Some(_) => {
                tracing::warn!(
                    group = self.id().0,
                    "dropped a Raft message of a replica not of its node"
                );
                false
            }
            // A member that this replica has not heard of: it lags behind.
            None => {
                self.strangers.insert(sender, from);
                true
            }
        }
    }

    /// Lets a change of members take effect.
    pub(super) fn take_up_members(
        &mut self,
        change: &MembershipChange,
        epoch: u64,
    ) -> Result<(), GroupError> {
        let wrong = |reason: String| GroupError::WrongMembers(reason);
        let after = self.membership.after(change).map_err(|error| wrong(error.to_string()))?;
        let state = self.node.apply_conf_change(&self.membership.to_raft(change))?;
        if !after.is_conf_state(&state) {
            return Err(wrong(format!("{after:?} and {state:?}")));
        }
        self.strangers.retain(|replica, _| after.node_of(*replica).is_none());
        self.membership = after;
        self.shared.set_membership(self.membership.clone(), epoch);
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader
            && !self.membership.halves().any(|half| half.contains_key(&self.shared.replica))
        {
            // `raft` must not go on leading a group it does not belong to.
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        self.after_step();
        Ok(())
    }

    /// Asks the others whether this replica still is a member, if it has not heard of
    /// a leader for long.
    pub(super) fn inquire(&mut self, now: BootTime) {
        let silence = self.election_timeout * INQUIRY_TIMEOUTS;
        if self.is_leader() || now < self.last_contact.max(self.inquired) + silence {
            return;
        }
        self.inquired = now;
        self.control.extend(self.inquiries());
    }

    /// Messages to all other members that ask whether this replica still is one. Those
    /// that sleep are woken by them.
    pub(crate) fn inquiries(&self) -> Vec<(NodeId, RaftMessage)> {
        let own = self.shared.replica;
        let others = self.membership.members().into_iter().filter(|(replica, _)| *replica != own);
        let inquiry = |replica| RaftMessage::inquiry(self.id(), own, replica);
        others.map(|(replica, node)| (node, inquiry(replica))).collect()
    }

    /// Whether this replica was removed, and is to be destroyed.
    pub(crate) fn is_removed(&self) -> bool {
        self.membership.was_removed(self.shared.replica)
    }

    /// Leaves a joint configuration, if there is one and this replica leads.
    pub(super) fn leave_joint(&mut self) {
        if self.membership.is_joint() && self.is_leader() && !self.node.raft.has_pending_conf() {
            // Refused now, it is proposed again at the next tick.
            let _ = self.propose_change_of_members(&MembershipChange::leave_joint());
        }
    }

    pub(super) fn propose_change_of_members(
        &mut self,
        change: &MembershipChange,
    ) -> Result<LogPosition, RequestError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        let refused = |reason: String| RequestError::Refused(reason);
        if self.node.raft.has_pending_conf() {
            return Err(refused("another change of its members is under way".to_owned()));
        }
        self.membership.after(change).map_err(|error| refused(error.to_string()))?;
        for replica in &change.promote {
            if !self.is_caught_up(*replica) {
                return Err(refused(format!("replica {replica} has not caught up")));
            }
        }
        let payload = Payload {
            kind: EntryKind::Membership as i32,
            epoch: self.epoch,
            time_ms: self.last_time_ms,
            membership: Some(change.clone()),
            ..Default::default()
        };
        let raft_change = self.membership.to_raft(change);
        let pending = self.node.raft.pending_conf_index;
        match self.node.propose_conf_change(payload.encode_entry(), raft_change) {
            Ok(()) => Ok(self.last_position()),
            Err(_) => {
                // raft-rs 0.7.0 takes it for pending although it is not in the log, and
                // would refuse all later ones until something else is.
                self.node.raft.pending_conf_index = pending;
                Err(RequestError::Overloaded)
            }
        }
    }

    fn is_caught_up(&self, replica: u64) -> bool {
        let raft = &self.node.raft;
        raft.prs().get(replica).is_some_and(|progress| {
            // One that holds nothing at all lags behind whatever the log's length.
            self.is_heard(ReplicaId(replica), self.now)
                && progress.matched > 0
                && progress.state != ProgressState::Snapshot
                && progress.matched + self.promotion_lag_entries >= raft.raft_log.last_index()
        })
    }

    /// How far all members have come.
    pub(crate) fn progress(&self) -> Result<Vec<MemberProgress>, RequestError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        let raft = &self.node.raft;
        let members = self.membership.members();
        Ok(members
            .into_iter()
            .filter_map(|(replica, node)| {
                let progress = raft.prs().get(replica.0)?;
                let is_own = replica == self.shared.replica;
                Some(MemberProgress {
                    replica,
                    node,
                    is_voter: self.membership.voters.contains_key(&replica),
                    matched: Index(progress.matched),
                    is_caught_up: is_own || self.is_caught_up(replica.0),
                    gets_snapshot: progress.state == ProgressState::Snapshot,
                })
            })
            .collect())
    }

    /// Asks a voter to take over the leadership. It does so as soon as it has all
    /// of the log; if it does not within an election timeout, nothing changes.
    pub(crate) fn transfer(&mut self, to: ReplicaId) -> Result<(), RequestError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        if !self.membership.voters.contains_key(&to) {
            return Err(RequestError::Refused(format!("replica {to} is no voter")));
        }
        if to != self.shared.replica {
            self.rouse();
            self.node.transfer_leader(to.0);
            self.after_step();
        }
        Ok(())
    }

    /// Whether a snapshot is to be made for replicas that are far behind.
    pub(crate) fn take_wanted_snapshot(&mut self) -> bool {
        self.is_leader() && self.node.mut_store().take_wanted_snapshot()
    }

    /// A snapshot was made, or could not be: then `raft` asks again. Gives the one
    /// that it replaces.
    pub(crate) fn snapshot_made(&mut self, made: Option<SnapshotMeta>) -> Option<SnapshotMeta> {
        self.node.mut_store().snapshot_made(made)
    }

    /// Takes back the snapshot if nobody is being given it.
    pub(crate) fn take_unused_snapshot(&mut self, now: BootTime) -> Option<SnapshotMeta> {
        let raft = &self.node.raft;
        // Who has not caught up after a snapshot still needs the log that is kept for it.
        let start = self.node.store().start().index.max(self.retention.floor());
        let is_wanted = raft.prs().iter().any(|(id, progress)| {
            *id != raft.id
                && self.is_heard(ReplicaId(*id), now)
                && (progress.state == ProgressState::Snapshot || progress.matched < start.0)
        });
        if self.is_leader() && is_wanted {
            return None;
        }
        self.node.mut_store().take_snapshot()
    }

    /// Whether a member answered this leader lately.
    fn is_heard(&self, replica: ReplicaId, now: BootTime) -> bool {
        let patience = self.election_timeout * SILENCE_TIMEOUTS;
        self.heard.get(&replica).is_some_and(|last| now < *last + patience)
    }

    /// Gives up on snapshots of members that fell silent: nothing is kept for them.
    pub(super) fn forget_silent_installers(&mut self, now: BootTime) {
        let silent: Vec<ReplicaId> =
            self.installers.keys().copied().filter(|id| !self.is_heard(*id, now)).collect();
        for replica in silent {
            self.installers.remove(&replica);
            self.node.report_snapshot(replica.0, SnapshotStatus::Failure);
        }
    }

    /// Whether the snapshot would bring this replica further, so that it is worth
    /// fetching and installing.
    pub(crate) fn wants(&self, snapshot: &SnapshotMeta) -> Result<bool, GroupError> {
        let beyond = snapshot.position.index.0 > self.node.raft.raft_log.committed;
        Ok(beyond && !self.node.store().holds(snapshot.position)?)
    }

    /// Notes which snapshot is being fetched for this replica; 0 for none.
    pub(crate) fn set_installing(&mut self, index: Index) {
        self.installing = index;
    }

    /// A member said which snapshot it is fetching or installing. If it is none, and
    /// it was offered one a while ago, the offer was lost or came to nothing.
    pub(super) fn note_installing(&mut self, from: ReplicaId, installing: Index, now: BootTime) {
        let raft = &self.node.raft;
        let Some(progress) = raft.prs().get(from.0) else { return };
        if progress.state != ProgressState::Snapshot {
            self.installers.remove(&from);
            return;
        }
        let pending = progress.pending_snapshot;
        let last = self.installers.entry(from).or_insert(now);
        if installing.0 == pending {
            *last = now;
        } else if now >= *last + self.election_timeout {
            self.installers.remove(&from);
            self.node.report_snapshot(from.0, SnapshotStatus::Failure);
        }
    }
}
