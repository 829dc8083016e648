//! The steps of a merge: the replicas of both shards on the same nodes, the target
//! prepared, the source frozen everywhere, and taken in; or all of it undone.
//!
//! The target's log alone decides. What is undone is cancelled there first, and only then
//! does the source go on.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use raft_lite::GroupId;
use tokio::time::sleep;

use super::{Attempt, FIND_WITHIN, MERGE_WITHIN, failed, steps::next_spread};
use crate::{
    failpoint,
    machine::{Refusal, ShardChange},
    meta::{MetaState, Operation, OperationStep},
    service::{
        Service, ServiceError,
        orders::{self, ChangeOutcome, Look},
    },
    storage::{MergeId, Phase, ShardRecord},
};

/// Attempts before a merge is given up.
const ATTEMPTS: u64 = 8;
/// For so long the replicas may take to be well before a merge is given up.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at whether all replicas are frozen.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What is waited for once the target has taken the source in.
const BEING_TOLD: &str = "the cluster is being told of the merge";

fn ids(operation: &Operation) -> (GroupId, GroupId, MergeId) {
    let source = operation.sources.first().copied().unwrap_or_default();
    (GroupId(source), GroupId(operation.group), operation.merge())
}

fn nodes_of(record: &ShardRecord) -> BTreeSet<String> {
    record.nodes.values().cloned().collect()
}

impl Service {
    /// One attempt of a merge's next step. Wherever it stands, a source that the cluster
    /// knows to be no more is merged.
    pub(super) async fn merge(
        &self,
        copy: &MetaState,
        operation: &Operation,
        started: Instant,
    ) -> Result<Attempt, ServiceError> {
        let source = operation.sources.first();
        if source.is_some_and(|source| copy.ended.contains_key(&GroupId(*source))) {
            return Ok(next_source(operation));
        }
        match operation.step() {
            OperationStep::Prepare => self.prepare(operation, started).await,
            OperationStep::Freeze | OperationStep::Absorb => {
                self.freeze_and_absorb(operation).await
            }
            OperationStep::RollBack => self.roll_back(operation).await,
            _ => self.align(copy, operation).await,
        }
    }

    /// Moves the source's replicas to where the target's are.
    async fn align(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let (source, target, _) = ids(operation);
        if operation.sources.is_empty() {
            return Attempt::done();
        }
        if operation.cancelled {
            return Attempt::undone("it was cancelled");
        }
        let (Some(from), Some(into)) = (copy.shards.get(&source), copy.shards.get(&target)) else {
            return Attempt::undone("one of the shards is gone");
        };
        let nodes: Vec<String> = into.nodes.values().cloned().collect();
        match next_spread(from, &nodes) {
            None if from.settled_nodes().is_some() && into.settled_nodes().is_some() => {
                failpoint::hit("merge-prepare").await;
                Ok(Attempt::Next(OperationStep::Prepare))
            }
            None => Attempt::wait("the shards' replicas are changing"),
            Some(wanted) => {
                let message = self.move_once(source, &wanted).await?;
                Attempt::wait(message.unwrap_or_else(|| "the shards are being aligned".to_owned()))
            }
        }
    }

    async fn look_both(&self, operation: &Operation) -> Result<(Look, Look), ServiceError> {
        let (source, target, _) = ids(operation);
        let from = self.look(source, FIND_WITHIN).await.map_err(failed)?;
        let into = self.look(target, FIND_WITHIN).await.map_err(failed)?;
        Ok((from, into))
    }

    /// Bars changes of the target.
    async fn prepare(
        &self,
        operation: &Operation,
        started: Instant,
    ) -> Result<Attempt, ServiceError> {
        if operation.cancelled {
            return Ok(Attempt::Next(OperationStep::RollBack));
        }
        let (_, target, merge) = ids(operation);
        let (from, into) = self.look_both(operation).await?;
        if into.record.phase == (Phase::Prepared { merge }) {
            return Ok(Attempt::Next(OperationStep::Freeze));
        }
        if from.record.plugin != into.record.plugin {
            return Attempt::undone(Refusal::OtherPlugin.to_string());
        }
        let nodes = nodes_of(&into.record);
        if nodes_of(&from.record) != nodes
            || from.record.settled_nodes().is_none()
            || into.record.settled_nodes().is_none()
        {
            return Ok(Attempt::Next(OperationStep::Align));
        }
        if !from.all_caught_up || !into.all_caught_up {
            // It would have to be undone at once.
            if started.elapsed() >= READY_WITHIN {
                return Attempt::undone("not all replicas of both shards are up");
            }
            return Attempt::wait("not all replicas of both shards are up");
        }
        // What comes now has to be on the disk: let there be little of it.
        self.flush_nodes(&into.record).await;
        let prepare = ShardChange::Prepare { merge, nodes };
        let epoch = into.record.epoch;
        match self.change_shard(target, epoch, &prepare, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) => {
                failpoint::hit("merge-prepared").await;
                Ok(Attempt::Next(OperationStep::Freeze))
            }
            ChangeOutcome::StaleEpoch => Attempt::wait("the target changed meanwhile"),
            ChangeOutcome::Refused(refusal, _) => Attempt::wait(refusal.to_string()),
        }
    }

    /// Freezes the source, waits until all its replicas are, and has the target take it in.
    async fn freeze_and_absorb(&self, operation: &Operation) -> Result<Attempt, ServiceError> {
        let (source, target, merge) = ids(operation);
        let into = self.look(target, FIND_WITHIN).await.map_err(failed)?;
        if into.record.absorbed.contains(&source) {
            return Attempt::wait(BEING_TOLD);
        }
        if into.record.phase != (Phase::Prepared { merge }) || operation.cancelled {
            return Ok(Attempt::Next(OperationStep::RollBack));
        }
        failpoint::hit("merge-freeze").await;
        let deadline = Instant::now() + MERGE_WITHIN;
        let from = self.look(source, FIND_WITHIN).await.map_err(failed)?;
        let frozen = match from.record.phase {
            Phase::Frozen(frozen) if frozen.merge == merge => frozen,
            Phase::Serving => {
                let nodes = nodes_of(&into.record);
                let freeze = ShardChange::Freeze { merge, target, nodes };
                let epoch = from.record.epoch;
                let frozen = self.change_shard(source, epoch, &freeze, FIND_WITHIN).await;
                match frozen.map_err(failed)? {
                    ChangeOutcome::Applied(record) => match record.phase {
                        Phase::Frozen(frozen) => frozen,
                        _ => return Attempt::wait("the source changed meanwhile"),
                    },
                    ChangeOutcome::StaleEpoch => {
                        return Attempt::wait("the source changed meanwhile");
                    }
                    ChangeOutcome::Refused(..) => {
                        return Ok(Attempt::Next(OperationStep::RollBack));
                    }
                }
            }
            _ => return Ok(Attempt::Next(OperationStep::RollBack)),
        };
        failpoint::hit("merge-frozen").await;
        if !self.all_frozen(&from.record, merge, deadline).await {
            return Ok(Attempt::Next(OperationStep::RollBack));
        }
        failpoint::hit("merge-absorb").await;
        let absorb = ShardChange::Absorb { merge, source, frozen_at: frozen.index };
        let epoch = into.record.epoch;
        match self.change_shard(target, epoch, &absorb, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) | ChangeOutcome::Refused(Refusal::Absorbed, _) => {
                failpoint::hit("merge-absorbed").await;
                Attempt::wait(BEING_TOLD)
            }
            ChangeOutcome::StaleEpoch => Attempt::wait("the target changed meanwhile"),
            ChangeOutcome::Refused(..) => Ok(Attempt::Next(OperationStep::RollBack)),
        }
    }

    /// Whether every replica of the source reports that it is frozen, before a deadline.
    async fn all_frozen(&self, source: &ShardRecord, merge: MergeId, deadline: Instant) -> bool {
        let mut left: BTreeSet<_> = source.nodes.keys().copied().collect();
        loop {
            let asked = left.iter().map(|node| async move {
                let answer = self.order(*node, orders::look_at(source.group)).await.ok()?;
                let record = ShardRecord::decode(&answer.replica?.record).ok()?;
                let is_frozen = matches!(record.phase, Phase::Frozen(f) if f.merge == merge);
                is_frozen.then_some(*node)
            });
            let asked = futures::future::join_all(asked);
            let Ok(answers) = tokio::time::timeout_at(deadline.into(), asked).await else {
                return false;
            };
            let frozen: BTreeSet<_> = answers.into_iter().flatten().collect();
            left.retain(|node| !frozen.contains(node));
            if left.is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Undoes what was begun, and begins again unless that was often enough.
    async fn roll_back(&self, operation: &Operation) -> Result<Attempt, ServiceError> {
        let (source, target, merge) = ids(operation);
        failpoint::hit("merge-cancel").await;
        let into = self.look(target, FIND_WITHIN).await.map_err(failed)?;
        let cancel = ShardChange::Cancel { merge, source };
        let epoch = into.record.epoch;
        match self.change_shard(target, epoch, &cancel, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) => {}
            ChangeOutcome::Refused(Refusal::Absorbed, _) => return Attempt::wait(BEING_TOLD),
            _ => return Attempt::wait("the target changed meanwhile"),
        }
        failpoint::hit("merge-unfreeze").await;
        let from = self.look(source, FIND_WITHIN).await.map_err(failed)?;
        let unfreeze = ShardChange::Unfreeze { merge };
        let epoch = from.record.epoch;
        match self.change_shard(source, epoch, &unfreeze, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) => {}
            _ => return Attempt::wait("the source changed meanwhile"),
        }
        if operation.cancelled || operation.attempt + 1 >= ATTEMPTS {
            let why = match operation.cancelled {
                true => "it was cancelled",
                false => "the replicas of the source could not all be frozen in time",
            };
            return Attempt::undone(why);
        }
        let mut again = operation.clone();
        again.attempt += 1;
        again.set_step(OperationStep::Align);
        again.message = "not all replicas could be frozen in time: it begins again".to_owned();
        Ok(Attempt::Changed(Box::new(again)))
    }
}

/// The source is merged: the next one, or the end.
fn next_source(operation: &Operation) -> Attempt {
    let mut after = operation.clone();
    if !after.sources.is_empty() {
        after.sources.remove(0);
    }
    after.attempt = 0;
    after.message.clear();
    after.set_step(OperationStep::Align);
    Attempt::Changed(Box::new(after))
}
