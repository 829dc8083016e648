//! The plugins that the cluster knows: what they are called, and which nodes have them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::{
    begin::{conflict, invalid},
    command::{HavePlugin, MetaError, PutPlugin},
    operation::{OperationStep, Task, TaskKind},
    state::MetaState,
};
use crate::storage::{PluginId, ShardRecord};

/// What a module says of itself.
#[derive(Clone, PartialEq, Message)]
pub struct PluginDescription {
    /// SHA-256 of the module.
    #[prost(bytes = "bytes", tag = "1")]
    pub plugin: Bytes,
    /// What it calls itself.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Bytes of the module.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// Whether it carries over the state of other versions.
    #[prost(bool, tag = "5")]
    pub migrates: bool,
    /// SHA-256 of its sources, in hex; empty if it does not say.
    #[prost(string, tag = "6")]
    pub source_hash: String,
}

/// A plugin.
#[derive(Clone, PartialEq, Message)]
pub struct PluginEntry {
    /// What it says of itself.
    #[prost(message, required, tag = "1")]
    pub description: PluginDescription,
    /// When it was made known, milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub uploaded_ms: u64,
    /// The nodes that have it compiled, and the numbers of their data folders then.
    #[prost(btree_map = "string, uint64", tag = "3")]
    holders: BTreeMap<String, u64>,
    /// The nodes that can not run it, and why.
    #[prost(btree_map = "string, string", tag = "4")]
    pub refusals: BTreeMap<String, String>,
}

impl PluginEntry {
    /// A plugin that these nodes have, with the numbers of their data folders.
    pub fn held_by(description: PluginDescription, holders: BTreeMap<String, u64>) -> Self {
        PluginEntry { description, uploaded_ms: 0, holders, refusals: BTreeMap::new() }
    }

    /// The module's name.
    pub fn id(&self) -> PluginId {
        id_of(&self.description.plugin).unwrap_or_default()
    }
}

fn id_of(bytes: &[u8]) -> Option<PluginId> {
    bytes.try_into().ok()
}

impl MetaState {
    pub(super) fn put_plugin(&mut self, put: PutPlugin, now_ms: u64) -> Result<bool, MetaError> {
        let PutPlugin { description, node, folder } = put;
        let plugin = description.plugin.clone();
        let Some(id) = id_of(&plugin) else {
            return invalid("plugin", "a plugin's hash has 32 bytes".to_owned());
        };
        if !self.plugins.contains_key(&id) {
            let PluginDescription { name, version, .. } = &description;
            if self.plugin_named(name, version).is_ok() {
                return conflict(format!(
                    "there is another module that calls itself {name} {version}: give this one a \
                     version of its own"
                ));
            }
            let entry = PluginEntry::held_by(description, BTreeMap::new());
            self.plugins.insert(id, PluginEntry { uploaded_ms: now_ms, ..entry });
        }
        self.have_plugin(HavePlugin { plugin, node, folder, refusal: String::new() })
    }

    pub(super) fn have_plugin(&mut self, have: HavePlugin) -> Result<bool, MetaError> {
        let HavePlugin { plugin, node, folder, refusal } = have;
        let not_found = || MetaError::NotFound { what: "plugin", name: String::new() };
        let entry = id_of(&plugin).and_then(|id| self.plugins.get_mut(&id));
        let entry = entry.ok_or_else(not_found)?;
        let before = entry.clone();
        if refusal.is_empty() {
            entry.refusals.remove(&node);
            entry.holders.insert(node, folder);
        } else {
            entry.holders.remove(&node);
            entry.refusals.insert(node, refusal);
        }
        Ok(*entry != before)
    }

    pub(super) fn drop_plugin(&mut self, plugin: &[u8]) -> Result<bool, MetaError> {
        let Some(id) = id_of(plugin) else { return Ok(false) };
        if let Some(shard) = self.user_shards().find(|shard| shard.plugin == id) {
            return conflict(format!("shard {} runs it", shard.name));
        }
        if let Some(shard) = self.user_shards().find(|shard| shard.previous == Some(id)) {
            let message =
                format!("shard {} ran it before, and may have to be rolled back to it", shard.name);
            return conflict(message);
        }
        Ok(self.plugins.remove(&id).is_some())
    }

    /// A plugin by its name and version.
    pub fn plugin_named(
        &self,
        name: &str,
        version: &str,
    ) -> Result<(PluginId, &PluginEntry), MetaError> {
        let is_it = |plugin: &PluginEntry| {
            (plugin.description.name.as_str(), plugin.description.version.as_str())
                == (name, version)
        };
        let found = self.plugins.iter().find(|(_, plugin)| is_it(plugin));
        let name = format!("{name} {version}");
        let not_found = MetaError::NotFound { what: "plugin", name };
        found.map(|(id, plugin)| (*id, plugin)).ok_or(not_found)
    }

    /// Whether a node has a plugin, compiled, in the data folder that it has now.
    pub fn has_plugin(&self, node: &str, plugin: &PluginId) -> bool {
        let held = self.plugins.get(plugin).and_then(|entry| entry.holders.get(node));
        held.is_some() && held == self.nodes.get(node).map(|node| &node.folder)
    }

    /// The nodes that have a plugin, compiled.
    pub fn holders_of(&self, plugin: &PluginId) -> Vec<String> {
        self.nodes.keys().filter(|node| self.has_plugin(node, plugin)).cloned().collect()
    }

    /// The shards that an operation on plugins is about.
    pub fn shards_of<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = &'a ShardRecord> {
        let is_meant =
            |shard: &&ShardRecord| task.sources.is_empty() || task.sources.contains(&shard.name);
        self.user_shards().filter(is_meant)
    }

    pub(super) fn begin_activate(&self, task: &Task) -> Result<OperationStep, MetaError> {
        self.plugin_named(&task.plugin, &task.version)?;
        self.check_shards(task)?;
        if !task.canary.is_empty() && !self.shards_of(task).any(|s| s.name == task.canary) {
            let message = format!("{} is none of the shards that are to be switched", task.canary);
            return invalid("canary", message);
        }
        Ok(OperationStep::Spread)
    }

    pub(super) fn begin_roll_back(&self, task: &Task) -> Result<OperationStep, MetaError> {
        self.check_shards(task)?;
        let runs_it = |shard: &ShardRecord| {
            self.plugins
                .get(&shard.plugin)
                .is_some_and(|plugin| plugin.description.name == task.plugin)
        };
        let mut shards = self.shards_of(task).filter(|shard| runs_it(shard)).peekable();
        if shards.peek().is_none() {
            let name = task.plugin.clone();
            return match self.plugins.values().any(|plugin| plugin.description.name == name) {
                true => conflict(format!("none of these shards runs plugin {name}")),
                false => Err(MetaError::NotFound { what: "plugin", name }),
            };
        }
        if let Some(first) = shards.find(|shard| shard.previous.is_none()) {
            let name = &first.name;
            return conflict(format!("shard {name} ran no other plugin before: activate one"));
        }
        Ok(OperationStep::Activate)
    }

    /// The version of a plugin that the shards meant by a task run.
    ///
    /// # Errors
    /// If they run several.
    pub(super) fn version_run(&self, task: &Task) -> Result<String, MetaError> {
        let run = self.shards_of(task).filter_map(|shard| self.plugins.get(&shard.plugin));
        let run = run.map(|plugin| &plugin.description).filter(|run| run.name == task.plugin);
        let versions: BTreeSet<&str> = run.map(|run| run.version.as_str()).collect();
        match versions.first() {
            Some(version) if versions.len() == 1 => Ok((*version).to_owned()),
            _ => {
                let versions: Vec<&str> = versions.into_iter().collect();
                let message = format!(
                    "the shards run several versions of {}, {}: name the shards",
                    task.plugin,
                    versions.join(", ")
                );
                invalid("shards", message)
            }
        }
    }

    /// Checks that the shards named exist, and that nobody else is changing plugins.
    fn check_shards(&self, task: &Task) -> Result<(), MetaError> {
        for name in &task.sources {
            self.user_shard(name)?;
        }
        let changes = |kind| matches!(kind, TaskKind::ActivatePlugin | TaskKind::RollBackPlugin);
        let running = self.operations.values().filter(|operation| operation.is_running());
        match running.into_iter().find(|operation| changes(operation.task.kind())) {
            Some(other) => conflict(format!(
                "operation {} is under way: {}; wait for it, or cancel it",
                other.id,
                other.description()
            )),
            None => Ok(()),
        }
    }
}
