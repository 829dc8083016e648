//! The steps of all operations but merges.

use std::{collections::BTreeSet, time::Instant};

use raft_kv_proto::v1::{MoveOrder, order::Kind};
use raft_lite::{GroupId, Membership, NodeId, ReplicaId};

use super::{Attempt, FIND_WITHIN, failed};
use crate::{
    failpoint,
    machine::{Refusal, ShardChange},
    meta::{Begin, Change, META_GROUP, MetaState, Operation, OperationStep, Task, TaskKind},
    service::{
        Service, ServiceError,
        moves::Move,
        orders::{self, ChangeOutcome},
        unix_ms,
    },
    storage::{Frozen, Phase, ShardRecord, first_replica, node_number},
};

/// Sub-operations that empty a node at once.
const DRAINS_AT_ONCE: usize = 2;

impl Service {
    /// One attempt of an operation's next step.
    pub(super) async fn attempt(
        &self,
        copy: &MetaState,
        operation: &Operation,
        started: Instant,
    ) -> Result<Attempt, ServiceError> {
        match operation.step() {
            OperationStep::Begin => Attempt::undone("it has no first step"),
            OperationStep::Found => self.found(copy, operation).await,
            OperationStep::Split => self.split(copy, operation).await,
            OperationStep::Move => self.move_replicas(copy, operation).await,
            OperationStep::Align
            | OperationStep::Prepare
            | OperationStep::Freeze
            | OperationStep::Absorb
            | OperationStep::RollBack => self.merge(copy, operation, started).await,
            OperationStep::Retire => self.retire(operation).await,
            OperationStep::Drain => self.drain(copy, operation).await,
            OperationStep::Spread => self.spread(copy, operation).await,
            OperationStep::Activate => self.activate_next(copy, operation).await,
            OperationStep::Watch => self.watch_canary(copy, operation).await,
            OperationStep::Revert => self.revert_next(copy, operation).await,
            OperationStep::Expel | OperationStep::Readmit => self.rebuild(copy, operation).await,
            OperationStep::Leave => {
                self.tell_meta(Change::DropNode(operation.task.from.clone())).await?;
                Attempt::done()
            }
        }
    }

    /// Has the first replica of a new shard made. It serves nobody before the cluster
    /// knows of it.
    async fn found(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let (group, merge) = (GroupId(operation.child), operation.merge());
        if operation.cancelled {
            self.tell_meta(Change::EndShard(group.0)).await?;
            return Attempt::undone("it was cancelled");
        }
        if copy.ended.contains_key(&group) {
            return Attempt::undone("the shard was ended");
        }
        if let Some(known) = copy.shards.get(&group) {
            if known.phase == Phase::Serving {
                return Ok(Attempt::Next(OperationStep::Move));
            }
            failpoint::hit("create-open").await;
            let look = self.look(group, FIND_WITHIN).await.map_err(failed)?;
            let open = ShardChange::Unfreeze { merge };
            self.change_shard(group, look.record.epoch, &open, FIND_WITHIN)
                .await
                .map_err(failed)?;
            return Attempt::wait("the shard is being opened");
        }
        let Some(node) = operation.task.nodes.first() else {
            return Attempt::undone("there is no node to put it on");
        };
        let entry = copy.node_named(node)?;
        let number = node_number(node);
        let plugin = copy.user_shards().next().map_or(self.default_plugin, |shard| shard.plugin);
        // Like one that is frozen, it takes nothing until it is opened.
        let closed = Frozen {
            merge,
            target: GroupId(u64::MAX),
            index: Default::default(),
            time_ms: 0,
            state_hash: 0,
        };
        let record = ShardRecord {
            group,
            name: operation.task.new_shard.clone(),
            epoch: 1 + copy.shards.values().map(|shard| shard.epoch).max().unwrap_or(0),
            slots: operation.slot_ranges(),
            membership: Membership::of_voters([(first_replica(group), number)].into()),
            nodes: [(number, node.clone())].into(),
            plugin,
            phase: Phase::Frozen(closed),
            // Beyond those that earlier owners of its slots can have shown: milliseconds pass faster
            // than a log grows.
            index_base: unix_ms(),
            ..ShardRecord::default()
        };
        self.order(number, orders::found(&record, entry.folder)).await.map_err(failed)?;
        Attempt::wait(format!("node {node} is making the first replica"))
    }

    async fn split(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let (parent, child) = (GroupId(operation.group), GroupId(operation.child));
        if copy.shards.contains_key(&child) {
            return match operation.task.kind() {
                TaskKind::Create => Ok(Attempt::Next(OperationStep::Move)),
                _ => Attempt::done(),
            };
        }
        let look = self.look(parent, FIND_WITHIN).await.map_err(failed)?;
        let slots = operation.slot_ranges();
        let still_owns = crate::storage::without(&slots, &look.record.slots).is_empty();
        if !still_owns && crate::storage::overlap(&slots, &look.record.slots) {
            return Attempt::undone("the shard does not own these slots any more");
        }
        if !still_owns {
            // It is split: its leader is about to say so.
            return Attempt::wait("the new shard is coming into service");
        }
        if operation.cancelled {
            return Attempt::undone("it was cancelled");
        }
        if look.record.settled_nodes().is_none() {
            return Attempt::wait("the shard's replicas are changing");
        }
        self.flush_nodes(&look.record).await;
        failpoint::hit("split").await;
        let name = operation.task.new_shard.clone();
        let split = ShardChange::Split { child, name, slots };
        let epoch = look.record.epoch;
        match self.change_shard(parent, epoch, &split, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) => Attempt::wait("the new shard is coming into service"),
            ChangeOutcome::StaleEpoch => Attempt::wait("the shard changed meanwhile"),
            ChangeOutcome::Refused(Refusal::WrongSlots, _) => {
                Attempt::undone(Refusal::WrongSlots.to_string())
            }
            ChangeOutcome::Refused(refusal, _) => Attempt::wait(refusal.to_string()),
        }
    }

    /// Has all nodes of a shard bring their state to the disk, so that the change which
    /// follows, which has to, is quick.
    pub(super) async fn flush_nodes(&self, record: &ShardRecord) {
        let nodes = record.nodes.keys().copied();
        let flushes = nodes.map(|node| self.order(node, orders::flush()));
        // Those that can not be reached make the change slower, if anything.
        futures::future::join_all(flushes).await;
    }

    async fn move_replicas(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let task = &operation.task;
        let node = |node: &String| Some(node.clone()).filter(|node| !node.is_empty());
        let (group, wanted) = match task.kind() {
            TaskKind::Create => {
                let group = GroupId(operation.child);
                let Some(shard) = copy.shards.get(&group) else {
                    return Attempt::undone("the shard is gone");
                };
                match next_spread(shard, &task.nodes) {
                    Some(wanted) => (group, wanted),
                    None => return Attempt::done(),
                }
            }
            _ => {
                let wanted = Move { from: node(&task.from), to: node(&task.to) };
                (GroupId(operation.group), wanted)
            }
        };
        let Some(shard) = copy.shards.get(&group) else {
            return Attempt::undone("the shard is gone");
        };
        if operation.cancelled {
            return self.undo_move(copy, shard, wanted).await;
        }
        if let Some(to) = &wanted.to
            && !copy.nodes.contains_key(to)
        {
            return self.undo_move(copy, shard, wanted).await;
        }
        failpoint::hit("migrate").await;
        let is_coming = |(_, on): (&ReplicaId, &NodeId)| {
            wanted.to.as_ref().is_some_and(|to| node_number(to) == *on)
        };
        if shard.membership.learners.iter().any(is_coming) {
            failpoint::hit("migrate-learner").await;
        }
        match self.move_once(group, &wanted).await? {
            None if task.kind() == TaskKind::Create => Attempt::wait("the shard's replicas spread"),
            None => {
                failpoint::hit("migrate-moved").await;
                Attempt::done()
            }
            Some(message) => Attempt::wait(message),
        }
    }

    /// Takes back a move that has not come to give its new replica a vote.
    async fn undo_move(
        &self,
        copy: &MetaState,
        shard: &ShardRecord,
        wanted: Move,
    ) -> Result<Attempt, ServiceError> {
        let reason = "it was cancelled, or the node is gone";
        let coming =
            wanted.to.as_deref().and_then(|to| shard.membership.replica_on(node_number(to)));
        match coming {
            Some(replica) if shard.membership.voters.contains_key(&replica) => {
                // Too late: it is completed.
                let message = self.move_once(shard.group, &wanted).await?;
                if copy.nodes.contains_key(wanted.to.as_deref().unwrap_or_default()) {
                    return match message {
                        None => Attempt::done(),
                        Some(message) => Attempt::wait(message),
                    };
                }
                Attempt::wait("the shard's replicas are changing")
            }
            Some(_) => {
                let back = Move { from: wanted.to, to: None };
                match self.move_once(shard.group, &back).await? {
                    None => Attempt::undone(reason),
                    Some(message) => Attempt::wait(message),
                }
            }
            None => Attempt::undone(reason),
        }
    }

    /// One step of a move at the shard's leader; what it waits for, or nothing if it is
    /// done.
    pub(super) async fn move_once(
        &self,
        group: GroupId,
        wanted: &Move,
    ) -> Result<Option<String>, ServiceError> {
        let order = MoveOrder {
            group: group.0,
            from: wanted.from.clone().unwrap_or_default(),
            to: wanted.to.clone().unwrap_or_default(),
        };
        let response = self.order_leader(group, Kind::Move(order), FIND_WITHIN).await;
        let answer = response.map_err(failed)?.r#move.unwrap_or_default();
        Ok((!answer.done).then_some(answer.message))
    }

    async fn retire(&self, operation: &Operation) -> Result<Attempt, ServiceError> {
        let group = GroupId(operation.group);
        let look = self.look(group, FIND_WITHIN).await.map_err(failed)?;
        if look.record.phase == Phase::Retired {
            failpoint::hit("delete-end").await;
            self.tell_meta(Change::EndShard(group.0)).await?;
            return Attempt::done();
        }
        if operation.cancelled {
            return Attempt::undone("it was cancelled");
        }
        let retire = ShardChange::Retire { force: operation.task.force };
        let epoch = look.record.epoch;
        match self.change_shard(group, epoch, &retire, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) | ChangeOutcome::StaleEpoch => {
                Attempt::wait("the shard is being retired")
            }
            ChangeOutcome::Refused(Refusal::NotEmpty, _) => {
                let name = &operation.task.shard;
                Attempt::undone(format!(
                    "shard {name} is not empty: delete it with force to lose its data"
                ))
            }
            ChangeOutcome::Refused(refusal, _) => Attempt::wait(refusal.to_string()),
        }
    }

    /// Has a node's replicas moved away.
    async fn drain(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let node = &operation.task.from;
        if operation.cancelled {
            return Attempt::undone("it was cancelled");
        }
        let shards: Vec<&ShardRecord> = copy.shards_on(node).collect();
        if shards.is_empty() {
            failpoint::hit("drain-leave").await;
            // Once it is forgotten nobody tells it that its replicas are to go.
            if let Ok(answer) = self.order(node_number(node), orders::report()).await
                && answer.report.is_some_and(|report| !report.replicas.is_empty())
            {
                return Attempt::wait(format!("node {node} is removing its replicas"));
            }
            return Ok(Attempt::Next(OperationStep::Leave));
        }
        let running = copy.operations.values().filter(|o| o.is_running() && o.task.from == *node);
        let under_way = running.filter(|o| o.id != operation.id).count();
        let message = format!("{} replicas are left on node {node}", shards.len());
        let free = shards.iter().filter(|shard| copy.operation_on(shard.group).is_none());
        for shard in free.take(DRAINS_AT_ONCE.saturating_sub(under_way)) {
            let mut task =
                Task { shard: shard.name.clone(), from: node.clone(), ..Task::default() };
            match self.best_node(copy, shard) {
                Some(to) => {
                    task.to = to;
                    task.set_kind(TaskKind::Migrate);
                }
                None if shard.membership.voters.len() > 1 => {
                    task.set_kind(TaskKind::RemoveReplica);
                }
                None => return Attempt::wait("there is no other node that could take a replica"),
            }
            let reason = format!("node {node} is to be removed");
            self.tell_meta(Change::Begin(Begin { task, request_id: 0, reason })).await?;
        }
        Attempt::wait(message)
    }

    /// The node that should get a replica of a shard: one that is up, with the fewest.
    pub(super) fn best_node(&self, copy: &MetaState, shard: &ShardRecord) -> Option<String> {
        let has = |node: &String| shard.nodes.values().any(|on| on == node);
        let could = copy
            .nodes
            .iter()
            .filter(|(id, node)| !node.draining && !has(id) && self.is_reachable(id));
        could
            .map(|(id, _)| id)
            .min_by_key(|id| match shard.group {
                META_GROUP => 0,
                _ => copy.replicas_on(id),
            })
            .cloned()
    }

    /// Whether a node is this one, or there is a connection to it.
    pub(in crate::service) fn is_reachable(&self, node: &str) -> bool {
        let number = node_number(node);
        number == self.info.number || self.network.any_of([number].into_iter()).is_some()
    }
}

/// The next move that brings a shard's replicas to these nodes, if one is missing.
pub(super) fn next_spread(shard: &ShardRecord, nodes: &[String]) -> Option<Move> {
    let wanted: BTreeSet<&str> = nodes.iter().map(String::as_str).collect();
    let there: BTreeSet<&str> = shard.nodes.values().map(String::as_str).collect();
    let is_voter = |node: &str| {
        let number = node_number(node);
        shard.membership.voters.values().any(|on| *on == number)
    };
    let owned = |node: &&str| (*node).to_owned();
    let extra = there.difference(&wanted).next().map(owned);
    let missing = wanted.difference(&there).next().map(owned);
    // One that was begun comes first.
    let begun = there.intersection(&wanted).find(|node| !is_voter(node)).map(owned);
    match (extra, begun.or(missing)) {
        (None, None) => None,
        (from, to) => Some(Move { from, to }),
    }
}
