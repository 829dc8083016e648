//! The state machine that groups replicate: what raft-lite asks of its user.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    config::GroupDescriptor,
    entry::Payload,
    snapshot::SnapshotMeta,
    types::{GroupId, Index, LogPosition, ReplicaId},
};

/// A committed entry.
#[derive(Clone, Debug)]
pub struct CommittedEntry {
    /// Where it is in its group's log.
    pub position: LogPosition,
    /// What it carries; `None` for the empty entry of a new leader, which
    /// changes nothing but the applied position.
    pub payload: Option<Payload>,
}

/// Committed entries of one group, contiguous and in order.
#[derive(Clone, Debug)]
pub struct GroupEntries {
    /// The group.
    pub group: GroupId,
    /// The entries, never empty.
    pub entries: Vec<CommittedEntry>,
}

/// What became of one command. Part of the replicated state: the same on every
/// replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// The plugin's response.
    Applied(Bytes),
    /// The plugin failed the command; its writes were dropped.
    Failed(CommandFailure),
    /// The command was not given to the plugin.
    Rejected(Rejection),
}

/// How a plugin failed a command. `kind` and `code` are the state machine's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandFailure {
    /// The kind of failure.
    pub kind: u32,
    /// The plugin's code.
    pub code: u32,
    /// What went wrong, for people.
    pub message: String,
}

/// Why a command was not given to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The shard does not own the command's slot (any more).
    SlotNotOwned,
    /// The shard is frozen: it is being merged into another.
    Frozen,
    /// The command's `not_after` had passed.
    Expired,
    /// The client has said that it needs no results of commands so far back.
    Answered,
    /// The shard or its members changed since this change was proposed.
    StaleEpoch,
}

impl Rejection {
    const ALL: [Rejection; 5] = [
        Rejection::SlotNotOwned,
        Rejection::Frozen,
        Rejection::Expired,
        Rejection::Answered,
        Rejection::StaleEpoch,
    ];

    /// A number that stands for the reason, on the wire and in hashes.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The reason that a number stands for.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|rejection| rejection.number() == number)
    }
}

/// What applying a batch did besides changing state.
#[derive(Debug, Default)]
pub struct Effects {
    /// One for each command in order, and one for each structural entry or change of
    /// members ([`Payload::outcomes`]).
    pub outcomes: Vec<CommandOutcome>,
    /// The epochs of groups after changes that took effect; one for every group whose
    /// epoch changed in the batch.
    pub epochs: BTreeMap<GroupId, u64>,
    /// Replicas that a split made on this node; they are on record, on disk.
    pub born: Vec<GroupDescriptor>,
    /// Replicas that went with a change, because their group was absorbed; off the
    /// record, buried, on disk.
    pub gone: Vec<(GroupId, ReplicaId)>,
}

/// A host failure while applying: disk, memory, damaged state. The replica must
/// not go on, and nothing may be acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("cannot apply log entries of group {group}: {message}")]
pub struct ApplyError {
    /// The group whose entries were being applied.
    pub group: GroupId,
    /// What went wrong.
    pub message: String,
}

/// The state of many groups, changed only by their logs.
///
/// Contract:
/// - `apply` is called for each group with contiguous entries, in order, by one
///   thread at a time; different groups may be applied by different threads.
/// - Results depend only on the group's entries so far: not on how they were
///   batched, on time, on randomness or on other groups.
/// - An `apply` that returned is visible to reads, and data and applied position
///   reach the disk together: what survives a crash is the state after some
///   prefix of the log.
pub trait StateMachine: Send + Sync {
    /// Applies entries of several groups, and adds what came of it to `effects`.
    ///
    /// A change takes effect, with [`CommandOutcome::Applied`], only if its epoch is
    /// the shard's, which it raises; that of members also only if
    /// [`Membership::after`](crate::Membership::after) allows it. Changes that took
    /// effect are on disk when this returns, with the replicas that they made or
    /// removed on this node. A change comes alone, in a batch of its own, and all
    /// changes of the node come one after the other.
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError>;

    /// Asks that what is applied be brought to the disk soon, so that logs can be
    /// truncated. Does not wait for it.
    fn request_flush(&self);

    /// The applied index that would be found after a crash right now: the log up
    /// to it is not needed any more.
    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError>;

    /// Makes a snapshot of a group's state as it is now or a little later. Does not
    /// block.
    fn make_snapshot(&self, group: GroupId, reply: SnapshotReply);

    /// A snapshot that was made is not needed any more.
    fn release_snapshot(&self, group: GroupId, snapshot: &SnapshotMeta);

    /// Whether a snapshot may be installed here now: false as long as another replica
    /// here owns what it covers. Asked before its data is fetched, before the replica is
    /// taken out of service, and once more right before [`install_snapshot`]; if it must
    /// not be, the leader offers it again.
    ///
    /// [`install_snapshot`]: StateMachine::install_snapshot
    fn admits_snapshot(&self, group: GroupId, replica: ReplicaId, snapshot: &SnapshotMeta) -> bool;

    /// Whether this node still has everything it ever had of a group. A replica of it
    /// that is a *voter* and is not here was never here then: a split made it elsewhere,
    /// and this node's parent was overtaken by a snapshot. It may be made by a snapshot.
    /// Otherwise replicas are made as learners only.
    fn never_lost(&self, group: GroupId) -> bool;

    /// Replaces a group's state by a snapshot whose data was fetched, or makes a new
    /// replica of it. All of it is on disk when this returns: after a crash the
    /// state is that before, or the snapshot. `fetched` is what the fetch gave. Called
    /// in the order of the group's entries, and never while a change is being applied.
    ///
    /// Replicas of other groups that go with it, because the group had absorbed theirs,
    /// are buried in the same step: [`last_destroyed`](StateMachine::last_destroyed)
    /// tells of them.
    fn install_snapshot(
        &self,
        group: GroupId,
        replica: ReplicaId,
        snapshot: &SnapshotMeta,
        fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError>;

    /// Fetched data is not needed.
    fn discard_fetched(&self, fetched: &Bytes);

    /// Removes a replica and its state. That it was here is on disk first, and
    /// stays there. Called in the order of the group's entries.
    fn destroy_replica(&self, group: GroupId, replica: ReplicaId) -> Result<(), ApplyError>;

    /// The newest replica of a group that was ever removed from this node.
    fn last_destroyed(&self, group: GroupId) -> Option<ReplicaId>;
}

/// Called exactly once, from any thread.
pub type SnapshotReply = Box<dyn FnOnce(Result<SnapshotMeta, ApplyError>) + Send>;
