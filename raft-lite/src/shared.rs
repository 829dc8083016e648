//! What a group's worker, its applier and everybody else know in common.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use crate::{
    clock::BootTime,
    membership::{Membership, MembershipChange},
    types::{GroupId, Index, NodeId, ReplicaId, Term},
};

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It follows a leader, or waits for one.
    Follower = 0,
    /// It stands for election.
    Candidate = 1,
    /// It leads.
    Leader = 2,
}

/// A group's state as last published by its worker, for status and routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The replica on this node.
    pub replica: ReplicaId,
    /// Its part.
    pub role: Role,
    /// The leader it knows of.
    pub leader: Option<ReplicaId>,
    /// Its term.
    pub term: Term,
    /// The highest index it knows to be committed.
    pub commit: Index,
    /// The highest index it applied.
    pub applied: Index,
    /// The group's members.
    pub membership: Arc<Membership>,
    /// How often the shard or its members changed.
    pub epoch: u64,
    /// Whether it sleeps, because the group has nothing to do.
    pub asleep: bool,
    /// Why the replica does not work, if it does not.
    pub halted: Option<String>,
}

/// A change of a group that took effect in the state machine.
#[derive(Debug)]
pub(crate) struct AppliedChange {
    pub(crate) index: Index,
    /// What it made of the group's members, if it was a change of them.
    pub(crate) change: Option<MembershipChange>,
    /// The epoch after it.
    pub(crate) epoch: u64,
}

/// Published by the worker after each round that changed something, and by the
/// applier after each batch.
#[derive(Debug)]
pub(crate) struct GroupShared {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    role: AtomicU8,
    leader: AtomicU64,
    term: AtomicU64,
    commit: AtomicU64,
    applied: AtomicU64,
    /// Index of the first entry of the term this replica leads in; none unless it
    /// leads.
    lead_start: AtomicU64,
    /// Until when this replica may answer reads by itself, in nanoseconds of boot
    /// time; 0 if it may not.
    lease_end: AtomicU64,
    /// This replica answered reads by itself since its worker last looked.
    was_read: AtomicBool,
    asleep: AtomicBool,
    /// There is no other voter that could come to lead.
    sole_voter: AtomicBool,
    /// The group's members and epoch, as far as the worker knows.
    members: RwLock<(Arc<Membership>, u64)>,
    /// Changes that the applier has applied and the worker has not taken up.
    changes: Mutex<VecDeque<AppliedChange>>,
    has_changes: AtomicBool,
    /// Bytes of entries handed to the applier and not yet applied.
    apply_backlog: AtomicUsize,
    /// The worker holds entries back until the backlog is smaller.
    pub(crate) wants_wake: AtomicBool,
    halted: OnceLock<String>,
}

impl GroupShared {
    pub(crate) fn new(
        group: GroupId,
        replica: ReplicaId,
        applied: Index,
        membership: Membership,
        epoch: u64,
    ) -> Self {
        GroupShared {
            group,
            replica,
            role: AtomicU8::new(Role::Follower as u8),
            leader: AtomicU64::new(0),
            term: AtomicU64::new(0),
            commit: AtomicU64::new(0),
            applied: AtomicU64::new(applied.0),
            lead_start: AtomicU64::new(u64::MAX),
            lease_end: AtomicU64::new(0),
            was_read: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            sole_voter: AtomicBool::new(membership.is_sole_voter(replica)),
            members: RwLock::new((Arc::new(membership), epoch)),
            changes: Mutex::default(),
            has_changes: AtomicBool::new(false),
            apply_backlog: AtomicUsize::new(0),
            wants_wake: AtomicBool::new(false),
            halted: OnceLock::new(),
        }
    }

    pub(crate) fn publish(&self, role: Role, leader: u64, term: u64, commit: u64) {
        self.role.store(role as u8, Ordering::Relaxed);
        self.leader.store(leader, Ordering::Relaxed);
        self.term.store(term, Ordering::Relaxed);
        self.commit.store(commit, Ordering::Release);
    }

    pub(crate) fn role(&self) -> Role {
        match self.role.load(Ordering::Relaxed) {
            2 => Role::Leader,
            1 => Role::Candidate,
            _ => Role::Follower,
        }
    }

    pub(crate) fn set_lead_start(&self, index: Option<Index>) {
        self.lead_start.store(index.map_or(u64::MAX, |index| index.0), Ordering::Release);
    }

    /// Index of the first entry of the term this replica leads in; beyond all others
    /// unless it leads.
    pub(crate) fn lead_start(&self) -> Index {
        Index(self.lead_start.load(Ordering::Acquire))
    }

    /// Whether the replica leads and has applied an entry of its own term, and so
    /// everything committed before.
    pub(crate) fn leads_settled(&self) -> bool {
        self.halted().is_none() && self.applied() >= self.lead_start()
    }

    pub(crate) fn set_lease_end(&self, end: Option<BootTime>) {
        let nanos = end.map_or(0, |end| end.as_nanos() as u64);
        self.lease_end.store(nanos, Ordering::Release);
    }

    /// Whether no other replica can lead at `now`.
    pub(crate) fn lease_holds(&self, now: BootTime) -> bool {
        self.sole_voter.load(Ordering::Acquire)
            || (now.as_nanos() as u64) < self.lease_end.load(Ordering::Acquire)
    }

    /// Whether the state that was applied before `now` was looked up can be read:
    /// everything acknowledged until then is in it.
    pub(crate) fn reads_locally(&self, now: BootTime) -> bool {
        self.leads_settled() && self.lease_holds(now)
    }

    /// The replica answers a read by itself.
    pub(crate) fn note_read(&self) {
        // Readers must not fight for the cache line.
        if !self.was_read.load(Ordering::Relaxed) {
            self.was_read.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the replica answered reads by itself since this was last asked.
    pub(crate) fn take_was_read(&self) -> bool {
        self.was_read.load(Ordering::Relaxed) && self.was_read.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
    }

    /// The node whose replica leads, as far as known.
    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        let leader = ReplicaId(self.leader.load(Ordering::Relaxed));
        self.members.read().0.node_of(leader)
    }

    /// The worker took up a change of members.
    pub(crate) fn set_membership(&self, membership: Membership, epoch: u64) {
        // While it may be true for the old members or the new ones it is not said.
        let sole_voter = membership.is_sole_voter(self.replica);
        self.sole_voter.store(sole_voter, Ordering::Release);
        *self.members.write() = (Arc::new(membership), epoch);
    }

    /// The worker took up a change that leaves the members as they are.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.members.write().1 = epoch;
    }

    /// The applier applied a change; before it publishes the index.
    pub(crate) fn push_change(&self, change: AppliedChange) {
        let mut changes = self.changes.lock();
        changes.push_back(change);
        self.has_changes.store(true, Ordering::Release);
    }

    pub(crate) fn has_changes(&self) -> bool {
        self.has_changes.load(Ordering::Acquire)
    }

    /// Changes up to an index that was published. Those beyond it are left, so that
    /// who takes one up can also show others that it was applied.
    pub(crate) fn take_changes(&self, applied: Index) -> VecDeque<AppliedChange> {
        let mut changes = self.changes.lock();
        let count = changes.iter().take_while(|change| change.index <= applied).count();
        let later = changes.split_off(count);
        self.has_changes.store(!later.is_empty(), Ordering::Release);
        mem::replace(&mut *changes, later)
    }

    pub(crate) fn applied(&self) -> Index {
        Index(self.applied.load(Ordering::Acquire))
    }

    pub(crate) fn set_applied(&self, index: Index) {
        self.applied.store(index.0, Ordering::Release);
    }

    pub(crate) fn apply_backlog(&self) -> usize {
        self.apply_backlog.load(Ordering::Acquire)
    }

    pub(crate) fn grow_apply_backlog(&self, bytes: usize) {
        self.apply_backlog.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn shrink_apply_backlog(&self, bytes: usize) {
        self.apply_backlog.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Takes the replica out of service for good; the first reason stays.
    pub(crate) fn halt(&self, reason: String) {
        tracing::error!(group = self.group.0, replica = self.replica.0, "replica halted: {reason}");
        // A second reason adds nothing.
        let _ = self.halted.set(reason);
    }

    /// The replica is going out of service: it answers nothing by itself any more.
    pub(crate) fn retire(&self) {
        self.set_lead_start(None);
        self.set_lease_end(None);
        let (term, commit) =
            (self.term.load(Ordering::Relaxed), self.commit.load(Ordering::Relaxed));
        self.publish(Role::Follower, raft::INVALID_ID, term, commit);
    }

    pub(crate) fn halted(&self) -> Option<&str> {
        self.halted.get().map(String::as_str)
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let leader = self.leader.load(Ordering::Relaxed);
        let (membership, epoch) = self.members.read().clone();
        GroupStatus {
            group: self.group,
            replica: self.replica,
            role: self.role(),
            leader: (leader != raft::INVALID_ID).then_some(ReplicaId(leader)),
            term: Term(self.term.load(Ordering::Relaxed)),
            commit: Index(self.commit.load(Ordering::Acquire)),
            applied: self.applied(),
            membership,
            epoch,
            asleep: self.asleep.load(Ordering::Relaxed),
            halted: self.halted().map(str::to_owned),
        }
    }
}
