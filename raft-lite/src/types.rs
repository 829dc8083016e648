//! Names for what could be mixed up: groups, replicas, nodes, positions in a log.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A Raft group; unique in the cluster and never reused.
    GroupId
);
number!(
    /// One replica of a group; unique in the cluster and never reused, so that a
    /// message to a destroyed replica can be told from one to its successor.
    ReplicaId
);
number!(
    /// A node: the process that hosts replicas of many groups.
    NodeId
);
number!(
    /// A position in a group's log.
    Index
);
number!(
    /// A Raft term.
    Term
);

impl Index {
    /// The position after this one.
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

/// An entry's place in the log: its index and the term it was proposed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Index of the entry.
    pub index: Index,
    /// Term of the entry.
    pub term: Term,
}

/// Where every group's log begins: the position before its first entry.
///
/// It is above zero so that a replica that was never initialised (position 0)
/// can not be mistaken for one that holds the group's initial state, and so is
/// always given a snapshot. The same choice as TiKV's `RAFT_INIT_LOG_INDEX`.
pub const INITIAL_POSITION: LogPosition = LogPosition { index: Index(5), term: Term(5) };

/// What a replica must not forget between two steps: Raft's hard state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// The replica voted for in `term`, if any.
    pub vote: Option<ReplicaId>,
    /// The highest index known to be committed.
    pub commit: Index,
}
