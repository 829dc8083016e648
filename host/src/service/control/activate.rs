//! The steps of operations on plugins: a plugin comes to all nodes; shards are switched to it, one
//! after the other; one of them, the canary, first and alone for a while; or all of it is undone.
//!
//! Which shard is switched from what to what is on record before it is: whoever takes the operation up
//! knows what is left to do, and what there is to undo.

use std::time::Duration;

use bytes::Bytes;
use raft_kv_proto::v1::{SwitchTrial, TrySwitchOrder, order::Kind};
use raft_lite::GroupId;

use super::{Attempt, FIND_WITHIN, failed};
use crate::{
    failpoint,
    machine::{Refusal, ShardChange},
    meta::{Change, MetaState, Operation, OperationStep, Switch, TaskKind},
    service::{Service, ServiceError, orders::ChangeOutcome, unix_ms},
    storage::{Allowance, PluginId, ShardRecord},
};

/// A trial may take so long: as long as what it tries.
const TRY_WITHIN: Duration = Duration::from_secs(30);

impl Service {
    /// Waits until the nodes have the plugin.
    pub(super) async fn spread(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let task = &operation.task;
        let is_upload = task.kind() == TaskKind::AddPlugin;
        let (id, entry) = match copy.plugin_named(&task.plugin, &task.version) {
            Ok(found) => found,
            Err(gone) => return Attempt::undone(gone.to_string()),
        };
        let refusal = entry.refusals.iter().next();
        let refusal = refusal.map(|(node, reason)| format!("node {node}: {reason}"));
        let cancelled = operation.cancelled.then(|| "it was cancelled".to_owned());
        if let Some(reason) = refusal.or(cancelled) {
            if is_upload {
                // A shard may run it already: then it stays.
                let dropped = self.tell_meta(Change::DropPlugin(id.to_vec().into())).await;
                tracing::debug!("a plugin is given up: {dropped:?}");
            }
            return Attempt::undone(reason);
        }
        let needs = |node: &String| match is_upload {
            true => copy.nodes.get(node).is_some_and(|node| !node.draining),
            false => copy.shards_of(task).any(|shard| shard.nodes.values().any(|on| on == node)),
        };
        let missing: Vec<&str> = copy
            .nodes
            .keys()
            .filter(|node| needs(node) && !copy.has_plugin(node, &id))
            .map(String::as_str)
            .collect();
        match (missing.as_slice(), is_upload) {
            ([], true) => Attempt::done(),
            ([], false) => Ok(Attempt::Next(OperationStep::Activate)),
            (missing, _) => Attempt::wait(format!("not there yet: {}", missing.join(", "))),
        }
    }

    /// Switches the next shard.
    pub(super) async fn activate_next(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        if operation.cancelled {
            return Ok(give_up(operation, "it was cancelled".to_owned()));
        }
        let begun = operation.switched.iter().find(|(_, switch)| switch.index == 0);
        if let Some((group, switch)) = begun {
            return self.activate(copy, operation, GroupId(*group), switch).await;
        }
        let named = match copy.plugin_named(&operation.task.plugin, &operation.task.version) {
            Ok((id, _)) => id,
            Err(gone) => return Ok(give_up(operation, gone.to_string())),
        };
        let is_left = |shard: &&ShardRecord| {
            !operation.switched.contains_key(&shard.group.0)
                && match operation.task.kind() {
                    TaskKind::RollBackPlugin => shard.plugin == named,
                    _ => (shard.plugin, shard.allowance) != (named, allowance_of(operation)),
                }
        };
        let left: Vec<&ShardRecord> = copy.shards_of(&operation.task).filter(is_left).collect();
        let canary = left.iter().find(|shard| shard.name == operation.task.canary);
        let Some(shard) = canary.or(left.first()) else {
            let label = format!("{} {}", operation.task.plugin, operation.task.version);
            return Ok(Attempt::Over(crate::meta::Outcome::Done, summary(copy, operation, &label)));
        };
        let look = self.look(shard.group, FIND_WITHIN).await.map_err(failed)?;
        let to = match operation.task.kind() {
            TaskKind::RollBackPlugin => match look.record.previous {
                Some(previous) => previous,
                None => {
                    let reason = format!("shard {} ran no other plugin before", shard.name);
                    return Ok(give_up(operation, reason));
                }
            },
            _ => named,
        };
        let mut after = operation.clone();
        let switch = Switch { from: bytes_of(&look.record.plugin), to: bytes_of(&to), index: 0 };
        after.switched.insert(shard.group.0, switch);
        after.message = format!("shard {} is next", shard.name);
        Ok(Attempt::Changed(Box::new(after)))
    }

    /// Switches a shard that is on record as the next one.
    async fn activate(
        &self,
        copy: &MetaState,
        operation: &Operation,
        group: GroupId,
        switch: &Switch,
    ) -> Result<Attempt, ServiceError> {
        let Some(to) = id_of(&switch.to) else {
            return Ok(give_up(operation, "the plugin's hash makes no sense".to_owned()));
        };
        if copy.ended.contains_key(&group) {
            let mut after = operation.clone();
            after.switched.remove(&group.0);
            return Ok(Attempt::Changed(Box::new(after)));
        }
        let record = self.look(group, FIND_WITHIN).await.map_err(failed)?.record;
        let allowance = match operation.task.kind() {
            TaskKind::RollBackPlugin => record.allowance,
            _ => allowance_of(operation),
        };
        if (record.plugin, record.allowance) == (to, allowance) {
            return Ok(self.note_switched(operation, &record).await);
        }
        let missing: Vec<&str> = record
            .nodes
            .values()
            .filter(|node| !copy.has_plugin(node, &to))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return Attempt::wait(format!("not there yet: {}", missing.join(", ")));
        }
        let force = operation.task.force;
        let trial = self.try_switch(group, &to, allowance, force).await?;
        if !trial.refusal.is_empty() {
            let reason = format!("shard {}: {}", record.name, trial.refusal);
            return Ok(give_up(operation, reason));
        }
        self.flush_nodes(&record).await;
        failpoint::hit("activate").await;
        let change = ShardChange::Activate { plugin: to, allowance, force };
        match self.change_shard(group, record.epoch, &change, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(record) => {
                failpoint::hit("activated").await;
                Ok(self.note_switched(operation, &record).await)
            }
            ChangeOutcome::StaleEpoch => Attempt::wait("the shard changed meanwhile"),
            ChangeOutcome::Refused(Refusal::Busy | Refusal::Active, reason) => {
                Attempt::wait(format!("shard {}: {reason}", record.name))
            }
            ChangeOutcome::Refused(_, reason) => {
                Ok(give_up(operation, format!("shard {}: {reason}", record.name)))
            }
        }
    }

    /// A shard runs what it is to run: it is noted from when on.
    async fn note_switched(&self, operation: &Operation, record: &ShardRecord) -> Attempt {
        let mut after = operation.clone();
        if let Some(switch) = after.switched.get_mut(&record.group.0) {
            switch.index = record.activated_at.max(1);
        }
        after.message =
            format!("shard {} runs it from index {} on", record.name, record.activated_at);
        let task = &operation.task;
        if record.name == task.canary && task.canary_ms > 0 {
            after.set_step(OperationStep::Watch);
            after.watched_until_ms = unix_ms() + task.canary_ms;
            after.faults_before = self.faults_of(record.group).await.unwrap_or(0);
        }
        Attempt::Changed(Box::new(after))
    }

    /// Waits whether the canary's commands fail by the plugin's fault.
    pub(super) async fn watch_canary(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        if operation.cancelled {
            return Ok(give_up(operation, "it was cancelled".to_owned()));
        }
        let name = &operation.task.canary;
        let Ok(shard) = copy.shard_named(name) else {
            return Ok(give_up(operation, format!("shard {name} is gone")));
        };
        let faults = self.faults_of(shard.group).await?.saturating_sub(operation.faults_before);
        if faults > 0 {
            let reason = format!(
                "{faults} commands failed by the plugin's fault on the canary, shard {name}"
            );
            return Ok(give_up(operation, reason));
        }
        match unix_ms() >= operation.watched_until_ms {
            true => Ok(Attempt::Next(OperationStep::Activate)),
            false => Attempt::wait(format!("the canary, shard {name}, is watched")),
        }
    }

    /// Has the next shard that was switched run what it ran before.
    pub(super) async fn revert_next(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let Some((group, switch)) = operation.switched.iter().next() else {
            return Attempt::undone(operation.fault.clone());
        };
        let group = GroupId(*group);
        let mut after = operation.clone();
        after.switched.remove(&group.0);
        let (from, to) = (id_of(&switch.from), id_of(&switch.to));
        let (Some(from), Some(to)) = (from, to) else { return Ok(Attempt::Changed(after.into())) };
        if copy.ended.contains_key(&group) || from == to {
            return Ok(Attempt::Changed(after.into()));
        }
        let record = self.look(group, FIND_WITHIN).await.map_err(failed)?.record;
        if record.plugin != to {
            return Ok(Attempt::Changed(after.into()));
        }
        self.flush_nodes(&record).await;
        let allowance = record.allowance;
        let change = ShardChange::Activate { plugin: from, allowance, force: true };
        match self.change_shard(group, record.epoch, &change, FIND_WITHIN).await.map_err(failed)? {
            ChangeOutcome::Applied(_) => Ok(Attempt::Changed(after.into())),
            ChangeOutcome::Refused(Refusal::Migration, reason) => {
                let still = format!("; shard {} stays with it: {reason}", record.name);
                after.fault.push_str(&still);
                Ok(Attempt::Changed(after.into()))
            }
            ChangeOutcome::Refused(_, reason) => Attempt::wait(reason),
            ChangeOutcome::StaleEpoch => Attempt::wait("the shard changed meanwhile"),
        }
    }

    /// What switching a shard would do, tried at its leader.
    pub(in crate::service) async fn try_switch(
        &self,
        group: GroupId,
        plugin: &PluginId,
        allowance: Allowance,
        force: bool,
    ) -> Result<SwitchTrial, ServiceError> {
        let Allowance { fuel, memory_bytes } = allowance;
        let (group_number, plugin) = (group.0, bytes_of(plugin));
        let order = TrySwitchOrder { group: group_number, plugin, fuel, memory_bytes, force };
        let response = self.order_leader(group, Kind::TrySwitch(order), TRY_WITHIN).await;
        Ok(response.map_err(failed)?.trial.unwrap_or_default())
    }

    /// Commands that failed by the plugin's fault at a shard's leader.
    async fn faults_of(&self, group: GroupId) -> Result<u64, ServiceError> {
        Ok(self.look(group, FIND_WITHIN).await.map_err(failed)?.plugin_faults)
    }
}

/// Undoes what was done, and says why.
fn give_up(operation: &Operation, reason: String) -> Attempt {
    let mut after = operation.clone();
    after.set_step(OperationStep::Revert);
    after.message = format!("it is undone: {reason}");
    after.fault = reason;
    Attempt::Changed(Box::new(after))
}

/// From which index on each shard runs it.
fn summary(copy: &MetaState, operation: &Operation, label: &str) -> String {
    let name = |group: &u64| copy.shards.get(&GroupId(*group)).map(|shard| shard.name.as_str());
    let switched = operation.switched.iter();
    let shards: Vec<String> = switched
        .filter_map(|(group, switch)| Some(format!("{} from index {}", name(group)?, switch.index)))
        .collect();
    match (shards.as_slice(), operation.task.kind()) {
        ([], _) => format!("the shards ran {label} already"),
        (shards, TaskKind::RollBackPlugin) => format!("rolled back: {}", shards.join(", ")),
        (shards, _) => format!("{label}: {}", shards.join(", ")),
    }
}

fn allowance_of(operation: &Operation) -> Allowance {
    Allowance { fuel: operation.task.fuel, memory_bytes: operation.task.memory_bytes }
}

fn bytes_of(plugin: &PluginId) -> Bytes {
    Bytes::copy_from_slice(plugin)
}

fn id_of(bytes: &Bytes) -> Option<PluginId> {
    bytes.as_ref().try_into().ok()
}
