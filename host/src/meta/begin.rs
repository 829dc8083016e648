//! How operations begin: what was asked for is checked against what there is, and the
//! numbers of what comes to be are given.

use super::{
    META_GROUP, META_NAME, REPLICAS,
    command::{Begin, MetaError},
    operation::{Operation, OperationStep, Task, TaskKind},
    state::MetaState,
};
use crate::storage::{ShardRecord, SlotRange, count, split_at};

/// Names that mean something else where shards are named.
const RESERVED: [&str; 2] = [META_NAME, "merge"];

/// Longest name of a shard.
const NAME_CHARS: usize = 64;

pub(super) fn conflict<T>(message: String) -> Result<T, MetaError> {
    Err(MetaError::Conflict(message))
}

pub(super) fn invalid<T>(field: &'static str, message: String) -> Result<T, MetaError> {
    Err(MetaError::Invalid { field, message })
}

/// Checks the form of a new shard's name.
pub fn check_name(field: &'static str, name: &str) -> Result<(), MetaError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_CHARS || !name.chars().all(allowed) {
        let message =
            format!("{name:?}: a shard's name has 1 to 64 letters, digits, '-', '_' or '.'");
        return invalid(field, message);
    }
    match RESERVED.contains(&name) {
        true => invalid(field, format!("{name:?} is not free to be a shard's name")),
        false => Ok(()),
    }
}

/// Checks the form of a node's id.
///
/// # Errors
/// If it is none; the message says what one is.
pub fn check_node_id(id: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !id.is_empty() && id.len() <= 64 && id.chars().all(allowed) {
        true => Ok(()),
        false => Err(format!("{id:?}: an id has 1 to 64 letters, digits, '-', '_' or '.'")),
    }
}

impl MetaState {
    /// Puts an operation on record; gives its number.
    pub(super) fn begin(&mut self, begin: Begin, now_ms: u64) -> Result<u64, MetaError> {
        let Begin { task, request_id, reason } = begin;
        let mut operation = Operation {
            id: self.next_operation,
            request_id,
            reason,
            started_ms: now_ms,
            ..Operation::default()
        };
        let step = match task.kind() {
            TaskKind::Nothing => return invalid("request", "it asks for nothing".to_owned()),
            TaskKind::Create => self.begin_create(&task, &mut operation)?,
            TaskKind::Split => self.begin_split(&task, &mut operation)?,
            TaskKind::Migrate => self.begin_move(&task, Some(&task.from), Some(&task.to))?,
            TaskKind::AddReplica => self.begin_move(&task, None, Some(&task.to))?,
            TaskKind::RemoveReplica => self.begin_move(&task, Some(&task.from), None)?,
            TaskKind::Merge => self.begin_merge(&task, &mut operation)?,
            TaskKind::Delete => {
                self.user_shard(&task.shard)?;
                OperationStep::Retire
            }
            TaskKind::RemoveNode => self.begin_remove_node(&task)?,
            TaskKind::AddPlugin => {
                self.plugin_named(&task.plugin, &task.version)?;
                OperationStep::Spread
            }
            TaskKind::ActivatePlugin => self.begin_activate(&task)?,
            TaskKind::RollBackPlugin => self.begin_roll_back(&task)?,
            TaskKind::Rebuild => self.begin_rebuild(&task)?,
            TaskKind::AddNode => return invalid("request", "nodes are added at once".to_owned()),
        };
        if !task.shard.is_empty() {
            operation.group = self.shard_named(&task.shard)?.group.0;
        }
        operation.set_step(step);
        operation.task = task;
        if operation.task.kind() == TaskKind::RollBackPlugin {
            operation.task.version = self.version_run(&operation.task)?;
        }
        if operation.task.kind() == TaskKind::Create {
            operation.task.nodes = self.nodes_of_new(&operation.task);
        }
        let busy = operation.groups().find_map(|group| self.operation_on(group));
        if let Some(other) = busy {
            let (id, what) = (other.id, other.description());
            return conflict(format!(
                "operation {id} is under way: {what}; wait for it, or cancel it"
            ));
        }
        if operation.child != 0 {
            self.next_group += 1;
        }
        self.next_operation += 1;
        let id = operation.id;
        self.operations.insert(id, operation);
        Ok(id)
    }

    /// A shard that is not meta.
    pub(super) fn user_shard(&self, name: &str) -> Result<&ShardRecord, MetaError> {
        let shard = self.shard_named(name)?;
        match shard.group == META_GROUP {
            true => {
                invalid("shard_id", format!("{name} keeps the cluster itself and stays as it is"))
            }
            false => Ok(shard),
        }
    }

    fn check_new_name(&self, field: &'static str, name: &str) -> Result<(), MetaError> {
        check_name(field, name)?;
        if self.shard_named(name).is_ok() {
            return conflict(format!("there is a shard {name} already"));
        }
        let running = self.operations.values().filter(|operation| operation.is_running());
        match running.into_iter().find(|operation| operation.task.new_shard == name) {
            Some(other) => conflict(format!("operation {} is making a shard {name}", other.id)),
            None => Ok(()),
        }
    }

    fn begin_create(
        &self,
        task: &Task,
        operation: &mut Operation,
    ) -> Result<OperationStep, MetaError> {
        self.check_new_name("shard_id", &task.new_shard)?;
        let mut seen = std::collections::BTreeSet::new();
        for node in &task.nodes {
            let entry = self.node_named(node)?;
            if !seen.insert(node) {
                return invalid("nodes", format!("node {node} is named twice"));
            }
            if entry.draining {
                return conflict(format!("node {node} is being removed"));
            }
        }
        operation.child = self.next_group;
        let reserved = |range: &SlotRange| {
            let mut running = self.operations.values().filter(|other| other.is_running());
            running
                .any(|o| o.slot_ranges().iter().any(|r| r.start < range.end && range.start < r.end))
        };
        let free: Vec<SlotRange> = self.unowned().into_iter().filter(|r| !reserved(r)).collect();
        if !free.is_empty() {
            operation.slots = pairs(&free);
            return Ok(OperationStep::Found);
        }
        let idle = self.user_shards().filter(|shard| self.operation_on(shard.group).is_none());
        let largest = idle
            .filter(|shard| shard.may_change())
            .max_by_key(|shard| (count(&shard.slots), std::cmp::Reverse(shard.group)));
        let Some(parent) = largest.filter(|shard| count(&shard.slots) >= 2) else {
            return conflict("every slot is owned, and no shard can be split now".to_owned());
        };
        let (_, upper) = split_at(&parent.slots, count(&parent.slots).div_ceil(2));
        operation.slots = pairs(&upper);
        operation.group = parent.group.0;
        Ok(OperationStep::Split)
    }

    /// The nodes that a new shard is to be on: those asked for, or those with the fewest
    /// replicas.
    fn nodes_of_new(&self, task: &Task) -> Vec<String> {
        if !task.nodes.is_empty() {
            return task.nodes.clone();
        }
        let mut nodes: Vec<&String> =
            self.nodes.iter().filter(|(_, node)| !node.draining).map(|(id, _)| id).collect();
        nodes.sort_by_key(|node| self.replicas_on(node));
        nodes.into_iter().take(REPLICAS).cloned().collect()
    }

    fn begin_split(
        &self,
        task: &Task,
        operation: &mut Operation,
    ) -> Result<OperationStep, MetaError> {
        let parent = self.user_shard(&task.shard)?;
        self.check_new_name("new_shards", &task.new_shard)?;
        let slots = count(&parent.slots);
        if slots < 2 {
            return conflict(format!("shard {} has one slot, which can not be split", parent.name));
        }
        let (_, upper) = split_at(&parent.slots, slots.div_ceil(2));
        operation.slots = pairs(&upper);
        operation.child = self.next_group;
        Ok(OperationStep::Split)
    }

    fn begin_move(
        &self,
        task: &Task,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<OperationStep, MetaError> {
        let shard = self.shard_named(&task.shard)?;
        let has = |node: &str| shard.nodes.values().any(|on| on == node);
        if let Some(from) = from {
            // A replica may be left of a node that was forgotten.
            if !has(from) {
                self.node_named(from)?;
                return conflict(format!("node {from} has no replica of shard {}", shard.name));
            }
        }
        if let Some(to) = to {
            let entry = self.node_named(to)?;
            if has(to) {
                return conflict(format!(
                    "node {to} has a replica of shard {} already",
                    shard.name
                ));
            }
            if entry.draining {
                return conflict(format!("node {to} is being removed"));
            }
        }
        if to.is_none() && shard.membership.voters.len() < 2 {
            let message =
                format!("it is the last replica of shard {}: delete the shard", shard.name);
            return conflict(message);
        }
        Ok(OperationStep::Move)
    }

    fn begin_merge(
        &self,
        task: &Task,
        operation: &mut Operation,
    ) -> Result<OperationStep, MetaError> {
        let target = self.user_shard(&task.shard)?;
        for name in &task.sources {
            let source = self.user_shard(name)?;
            if source.plugin != target.plugin {
                return conflict(format!("{name} and {} run different plugins", target.name));
            }
            if source.group != target.group && !operation.sources.contains(&source.group.0) {
                operation.sources.push(source.group.0);
            }
        }
        if operation.sources.is_empty() {
            let message = format!("there is nothing to merge into {}", target.name);
            return invalid("sources", message);
        }
        Ok(OperationStep::Align)
    }

    fn begin_rebuild(&self, task: &Task) -> Result<OperationStep, MetaError> {
        let shard = self.shard_named(&task.shard)?;
        if !shard.nodes.values().any(|on| *on == task.from) {
            return conflict(format!("node {} has no replica of shard {}", task.from, task.shard));
        }
        if shard.membership.voters.len() < 2 {
            return conflict(format!(
                "it is the last replica of shard {}: there is nothing to make it from",
                shard.name
            ));
        }
        Ok(OperationStep::Expel)
    }

    fn begin_remove_node(&mut self, task: &Task) -> Result<OperationStep, MetaError> {
        self.node_named(&task.from)?;
        if self.nodes.values().filter(|node| !node.draining).count() < 2 {
            return conflict(format!("node {} is the last one", task.from));
        }
        let running = self.operations.values().filter(|operation| operation.is_running());
        let same =
            |o: &&Operation| o.task.kind() == TaskKind::RemoveNode && o.task.from == task.from;
        if let Some(other) = running.into_iter().find(same) {
            return conflict(format!("operation {} is removing node {}", other.id, task.from));
        }
        if let Some(node) = self.nodes.get_mut(&task.from) {
            node.draining = true;
        }
        Ok(OperationStep::Drain)
    }
}

fn pairs(ranges: &[SlotRange]) -> Vec<u32> {
    ranges.iter().flat_map(|range| [range.start.0, range.end.0]).collect()
}
