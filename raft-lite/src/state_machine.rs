//! The state machine that groups replicate: what raft-lite asks of its user.

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
    /// Applies entries of several groups and appends their outcomes to `outcomes`:
    /// one for each command, in order, and one for each change of a shard or its
    /// members ([`Payload::outcomes`]).
    ///
    /// A change takes effect, with [`CommandOutcome::Applied`], only if its epoch is
    /// the shard's, which it raises by one; that of members also only if
    /// [`Membership::after`](crate::Membership::after) allows it. Changes that took
    /// effect are on disk when this returns.
    fn apply(
        &self,
        batch: &[GroupEntries],
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<(), ApplyError>;

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

    /// Replaces a group's state by a snapshot whose data was fetched, or makes a new
    /// replica of it. All of it is on disk when this returns: after a crash the
    /// state is that before, or the snapshot. `fetched` is what the fetch gave. Called
    /// in the order of the group's entries.
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
