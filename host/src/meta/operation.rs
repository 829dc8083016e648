//! Operations: what somebody asked for that takes several steps.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use raft_lite::GroupId;

use crate::storage::{MergeId, Slot, SlotRange};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum TaskKind {
    /// Nothing.
    Nothing = 0,
    /// A new shard, of slots that no shard owns or of half of another's.
    Create = 1,
    /// A shard in two.
    Split = 2,
    /// A replica from one node to another.
    Migrate = 3,
    /// Shards into one of them.
    Merge = 4,
    /// A shard, and what is in it, goes.
    Delete = 5,
    /// A replica more.
    AddReplica = 6,
    /// A replica less.
    RemoveReplica = 7,
    /// A node gives up all its replicas, and goes.
    RemoveNode = 8,
    /// A node more.
    AddNode = 9,
    /// A plugin comes to all nodes.
    AddPlugin = 10,
    /// Shards run another plugin.
    ActivatePlugin = 11,
    /// Shards run the plugin again that they ran before.
    RollBackPlugin = 12,
    /// A replica that differs from the others is made anew.
    Rebuild = 13,
}

impl TaskKind {
    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Nothing => "nothing",
            TaskKind::Create => "create",
            TaskKind::Split => "split",
            TaskKind::Migrate => "migrate",
            TaskKind::Merge => "merge",
            TaskKind::Delete => "delete",
            TaskKind::AddReplica => "add_replica",
            TaskKind::RemoveReplica => "remove_replica",
            TaskKind::RemoveNode => "remove_node",
            TaskKind::AddNode => "add_node",
            TaskKind::AddPlugin => "add_plugin",
            TaskKind::ActivatePlugin => "activate_plugin",
            TaskKind::RollBackPlugin => "roll_back_plugin",
            TaskKind::Rebuild => "rebuild",
        }
    }
}

/// What was asked for, by names.
#[derive(Clone, PartialEq, Message)]
pub struct Task {
    /// What is to be done.
    #[prost(enumeration = "TaskKind", tag = "1")]
    pub kind: i32,
    /// The shard: to split, migrate, delete, or merge into.
    #[prost(string, tag = "2")]
    pub shard: String,
    /// Name of the shard that comes to be.
    #[prost(string, tag = "3")]
    pub new_shard: String,
    /// The node that gives a replica up, or goes.
    #[prost(string, tag = "4")]
    pub from: String,
    /// The node that gets a replica.
    #[prost(string, tag = "5")]
    pub to: String,
    /// The nodes that a new shard is to be on.
    #[prost(string, repeated, tag = "6")]
    pub nodes: Vec<String>,
    /// The shards to merge; those whose plugin changes, all if there are none.
    #[prost(string, repeated, tag = "7")]
    pub sources: Vec<String>,
    /// Whether data may be lost.
    #[prost(bool, tag = "8")]
    pub force: bool,
    /// What the plugin is called that comes, or that shards are to run.
    #[prost(string, tag = "9")]
    pub plugin: String,
    /// Its version.
    #[prost(string, tag = "10")]
    pub version: String,
    /// The shard that is to run it first, and alone for a while; empty if none is.
    #[prost(string, tag = "11")]
    pub canary: String,
    /// For how long, in milliseconds.
    #[prost(uint64, tag = "12")]
    pub canary_ms: u64,
    /// Fuel for each command; 0 for what every shard has unless it says otherwise.
    #[prost(uint64, tag = "13")]
    pub fuel: u64,
    /// Bytes of memory of an instance; 0 as above.
    #[prost(uint64, tag = "14")]
    pub memory_bytes: u64,
}

/// How far an operation has come: what is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum OperationStep {
    /// Not begun.
    Begin = 0,
    /// The first replica of a new shard is to be made.
    Found = 1,
    /// The shard is to be split.
    Split = 2,
    /// The shard's replicas are to be moved to where they belong.
    Move = 3,
    /// The replicas of a shard are to be moved to where the target's are.
    Align = 4,
    /// The target of a merge is to be told.
    Prepare = 5,
    /// The source of a merge is to be frozen.
    Freeze = 6,
    /// The source is to be taken in.
    Absorb = 7,
    /// What was begun is to be undone.
    RollBack = 8,
    /// The shard is to be retired.
    Retire = 9,
    /// A node's replicas are to be moved away.
    Drain = 10,
    /// The node is to be forgotten.
    Leave = 11,
    /// All nodes are to get the plugin.
    Spread = 12,
    /// The next shard is to run the plugin.
    Activate = 13,
    /// The first shard that runs it is watched.
    Watch = 14,
    /// The shards that run it are to run what they ran before.
    Revert = 15,
    /// A node's replica is to leave the shard.
    Expel = 16,
    /// It is to get a new one.
    Readmit = 17,
}

impl OperationStep {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            OperationStep::Begin => "begin",
            OperationStep::Found => "found",
            OperationStep::Split => "split",
            OperationStep::Move => "move",
            OperationStep::Align => "align",
            OperationStep::Prepare => "prepare",
            OperationStep::Freeze => "freeze",
            OperationStep::Absorb => "absorb",
            OperationStep::RollBack => "roll back",
            OperationStep::Retire => "retire",
            OperationStep::Drain => "drain",
            OperationStep::Leave => "leave",
            OperationStep::Spread => "spread",
            OperationStep::Activate => "activate",
            OperationStep::Watch => "watch",
            OperationStep::Revert => "revert",
            OperationStep::Expel => "expel",
            OperationStep::Readmit => "readmit",
        }
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Outcome {
    /// It is under way.
    Running = 0,
    /// It is done.
    Done = 1,
    /// What it had begun was undone.
    RolledBack = 2,
}

impl Outcome {
    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Running => "running",
            Outcome::Done => "done",
            Outcome::RolledBack => "rolled_back",
        }
    }
}

/// An operation on record.
#[derive(Clone, PartialEq, Message)]
pub struct Operation {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The number that whoever asked gave it: asked again, it is the same operation.
    #[prost(uint64, tag = "2")]
    pub request_id: u64,
    /// What was asked for.
    #[prost(message, required, tag = "3")]
    pub task: Task,
    /// The group it is about.
    #[prost(uint64, tag = "4")]
    pub group: u64,
    /// The group that comes to be.
    #[prost(uint64, tag = "5")]
    pub child: u64,
    /// The groups that are still to be merged, the next one first.
    #[prost(uint64, repeated, tag = "6")]
    pub sources: Vec<u64>,
    /// The slots of the shard that comes to be: starts and ends, in turn.
    #[prost(uint32, repeated, tag = "7")]
    pub slots: Vec<u32>,
    /// What is to be done next.
    #[prost(enumeration = "OperationStep", tag = "8")]
    pub step: i32,
    /// How many steps were taken.
    #[prost(uint64, tag = "9")]
    pub steps: u64,
    /// How it stands, for people.
    #[prost(string, tag = "10")]
    pub message: String,
    /// Who asked for it, and why.
    #[prost(string, tag = "11")]
    pub reason: String,
    /// When it began, milliseconds since 1970.
    #[prost(uint64, tag = "12")]
    pub started_ms: u64,
    /// When it ended; 0 before.
    #[prost(uint64, tag = "13")]
    pub ended_ms: u64,
    /// How it ended.
    #[prost(enumeration = "Outcome", tag = "14")]
    pub outcome: i32,
    /// Somebody wants it undone.
    #[prost(bool, tag = "15")]
    pub cancelled: bool,
    /// What to change of a shard's replicas: the node each comes from, the node it goes to.
    #[prost(uint64, tag = "16")]
    pub attempt: u64,
    /// The groups whose plugin it changes or has changed.
    #[prost(btree_map = "uint64, message", tag = "17")]
    pub switched: BTreeMap<u64, Switch>,
    /// When the watching of the canary ends, milliseconds since 1970.
    #[prost(uint64, tag = "18")]
    pub watched_until_ms: u64,
    /// Commands that had failed by the plugin's fault when it began.
    #[prost(uint64, tag = "19")]
    pub faults_before: u64,
    /// Why it is being undone; empty if it is not.
    #[prost(string, tag = "20")]
    pub fault: String,
}

/// A change of a shard's plugin that is part of an operation.
#[derive(Clone, PartialEq, Message)]
pub struct Switch {
    /// SHA-256 of the plugin that it ran before.
    #[prost(bytes = "bytes", tag = "1")]
    pub from: Bytes,
    /// SHA-256 of the plugin that it is to run.
    #[prost(bytes = "bytes", tag = "2")]
    pub to: Bytes,
    /// The index from which on it does, as plugins see indexes; 0 until then.
    #[prost(uint64, tag = "3")]
    pub index: u64,
}

impl Operation {
    /// Whether it is under way.
    pub fn is_running(&self) -> bool {
        self.outcome() == Outcome::Running
    }

    /// The groups that no other operation may touch meanwhile.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        // The cluster's own group has the number 0: it is meant only if it is named.
        let own = Some(self.group).filter(|group| *group != 0 || !self.task.shard.is_empty());
        let child = Some(self.child).filter(|child| *child != 0);
        let own = own.into_iter().chain(child).filter(|_| self.holds_groups());
        own.chain(self.sources.iter().copied()).map(GroupId)
    }

    fn holds_groups(&self) -> bool {
        !matches!(self.task.kind(), TaskKind::Nothing | TaskKind::RemoveNode | TaskKind::AddNode)
            && !self.changes_plugins()
    }

    /// Whether it is about plugins: other operations on its shards may run meanwhile, since each
    /// change of a shard is valid for one epoch.
    pub fn changes_plugins(&self) -> bool {
        matches!(
            self.task.kind(),
            TaskKind::AddPlugin | TaskKind::ActivatePlugin | TaskKind::RollBackPlugin
        )
    }

    /// The slots of the shard that comes to be.
    pub fn slot_ranges(&self) -> Vec<SlotRange> {
        let (pairs, _) = self.slots.as_chunks::<2>();
        pairs.iter().map(|[a, b]| SlotRange { start: Slot(*a), end: Slot(*b) }).collect()
    }

    /// The merge under way: each source has a number of its own, and so has each attempt.
    pub fn merge(&self) -> MergeId {
        MergeId(self.id << 16 | (self.sources.len() as u64 & 0xff) << 8 | self.attempt & 0xff)
    }

    /// What it does, in a few words.
    pub fn description(&self) -> String {
        let Task { shard, new_shard, from, to, nodes, sources, force, plugin, version, .. } =
            &self.task;
        let on = match sources.as_slice() {
            [] => "all shards".to_owned(),
            some => some.join(", "),
        };
        match self.task.kind() {
            TaskKind::Nothing => String::new(),
            TaskKind::Create => format!("create {new_shard} on {}", nodes.join(", ")),
            TaskKind::Split => format!("split {shard} into {shard} and {new_shard}"),
            TaskKind::Migrate => format!("migrate {shard} from {from} to {to}"),
            TaskKind::Merge => format!("merge {} into {shard}", sources.join(", ")),
            TaskKind::Delete if *force => format!("delete {shard} with its data"),
            TaskKind::Delete => format!("delete {shard}"),
            TaskKind::AddReplica => format!("add a replica of {shard} on {to}"),
            TaskKind::RemoveReplica => format!("remove the replica of {shard} on {from}"),
            TaskKind::RemoveNode => format!("remove {from}"),
            TaskKind::AddNode => format!("add {to}"),
            TaskKind::AddPlugin => format!("add plugin {plugin} {version}"),
            TaskKind::ActivatePlugin => format!("activate plugin {plugin} {version} on {on}"),
            TaskKind::RollBackPlugin => format!("roll back plugin {plugin} on {on}"),
            TaskKind::Rebuild => format!("rebuild the replica of {shard} on {from}"),
        }
    }
}
