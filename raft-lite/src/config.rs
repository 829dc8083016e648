//! Settings of the runtime.

use std::time::Duration;

use crate::{
    membership::Membership,
    shared::GroupShared,
    startup::ReplicaRecord,
    types::{GroupId, ReplicaId},
};

/// Settings that hold for all groups of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that run the groups' Raft rounds; a group belongs to one.
    pub workers: usize,
    /// Threads that apply committed entries; a group belongs to one.
    pub appliers: usize,
    /// Time between two ticks.
    pub tick_interval: Duration,
    /// Ticks without a leader after which a follower stands for election, at the
    /// least; at most twice as many.
    pub election_ticks: usize,
    /// Ticks between two heartbeats.
    pub heartbeat_ticks: usize,
    /// Inputs that may wait at one worker.
    pub inbox_capacity: usize,
    /// Bytes of commands that may be accepted and not yet answered.
    pub proposal_budget_bytes: usize,
    /// Bytes of commands merged into one entry, unless a single proposal has more.
    pub max_entry_bytes: usize,
    /// Bytes of a group's committed entries that may wait to be applied.
    pub apply_backlog_bytes: usize,
    /// Entries that must have become unnecessary before a log is truncated.
    pub compact_threshold_entries: u64,
    /// Ticks between two looks at what can be truncated.
    pub compact_interval_ticks: u64,
    /// Bytes of entries in one message, unless a single one has more.
    pub max_message_bytes: u64,
    /// Bytes of entries that may be under way to a follower of a group, unless a single
    /// message has more.
    pub max_in_flight_bytes: u64,
    /// Bytes of a group's entries that may wait to be committed. What is proposed
    /// beyond is refused with [`RequestError::Overloaded`].
    ///
    /// [`RequestError::Overloaded`]: crate::RequestError::Overloaded
    pub max_uncommitted_bytes: u64,
    /// Bytes of a group's log that are kept for replicas which lag behind; those
    /// further behind are given a snapshot.
    pub log_bytes_for_laggards: usize,
    /// Bytes of a group's log that are kept while a snapshot is being made or given:
    /// whoever gets it has to catch up by the log from there.
    pub log_bytes_for_snapshots: usize,
    /// Entries that a learner may lag behind and be made a voter.
    pub promotion_lag_entries: u64,
    /// Ticks without anything to do after which a group falls asleep; 0 for never.
    pub quiesce_after_ticks: usize,
    /// Seed of everything that is drawn at random.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: 1,
            appliers: 1,
            tick_interval: Duration::from_millis(50),
            election_ticks: 10,
            heartbeat_ticks: 2,
            inbox_capacity: 65_536,
            proposal_budget_bytes: 256 << 20,
            max_entry_bytes: 1 << 20,
            apply_backlog_bytes: 32 << 20,
            compact_threshold_entries: 1024,
            compact_interval_ticks: 64,
            max_message_bytes: 1 << 20,
            max_in_flight_bytes: 32 << 20,
            max_uncommitted_bytes: 64 << 20,
            log_bytes_for_laggards: 64 << 20,
            log_bytes_for_snapshots: 1 << 30,
            promotion_lag_entries: 1024,
            quiesce_after_ticks: 60,
            seed: 0,
        }
    }
}

impl Config {
    /// The least time without a leader after which a follower may stand for
    /// election, and for which a vote is withheld after contact with a leader.
    pub fn election_timeout(&self) -> Duration {
        self.tick_interval * self.election_ticks as u32
    }
}

/// A replica that the state machine has on record.
#[derive(Clone, Debug)]
pub struct GroupDescriptor {
    /// The group.
    pub group: GroupId,
    /// The replica on this node.
    pub replica: ReplicaId,
    /// The group's members, this one among them.
    pub membership: Membership,
    /// The shard's epoch, written into every entry this replica proposes.
    pub epoch: u64,
    /// What is on record of the replica's progress.
    pub record: ReplicaRecord,
}

impl GroupDescriptor {
    /// What is published of the replica before it runs.
    pub(crate) fn shared(&self) -> GroupShared {
        let applied = self.record.applied.index;
        GroupShared::new(self.group, self.replica, applied, self.membership.clone(), self.epoch)
    }
}
