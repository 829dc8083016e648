//! What the cluster knows of itself: its nodes, its shards, which slots they own, and
//! the operations under way.
//!
//! This is the state of the group *meta*, a Raft group like any other whose state
//! machine is this module instead of a plugin. Every node keeps a copy.
//!
//! The shards' own logs decide what becomes of them; meta is told, and keeps for each
//! shard the newest record it was told of. Invariants:
//! - a record of an older epoch never replaces a newer one;
//! - a slot has one owner at most: of two shards that claim it, the one with the higher
//!   epoch;
//! - a group that ended (deleted, or merged into another) never comes back, and its
//!   number is never given again;
//! - an operation takes part in no other's shards while it runs, those that change plugins excepted:
//!   of these, one at a time changes any;
//! - name and version stand for one module, as long as it is known.
//!
//! Nothing here does input or output.

mod begin;
mod command;
mod operation;
mod plugin;
mod state;
#[cfg(test)]
mod tests;

use raft_lite::GroupId;

pub use begin::check_node_id;
pub use command::{
    Begin, Change, HavePlugin, MetaCommand, MetaError, MetaReply, Observe, PutNode, PutPlugin, Step,
};
pub use operation::{Operation, OperationStep, Outcome, Switch, Task, TaskKind};
pub use plugin::{PluginDescription, PluginEntry};
pub use state::{Ended, MetaState, NodeEntry};

/// The group that keeps this.
pub const META_GROUP: GroupId = GroupId(0);
/// Its name.
pub const META_NAME: &str = "meta";
/// Nodes that replicate it, at most.
pub const META_REPLICAS: usize = 5;
/// Nodes that replicate a shard, if there are so many.
pub const REPLICAS: usize = 3;
