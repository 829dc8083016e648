//! The cluster's plugins: how a module comes in, how each node gets those that the cluster knows, and
//! what there is to say of them.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use raft_kv_proto::v1::{SwitchTrial, TrySwitchOrder};
use raft_lite::{GroupId, RequestError};
use serde::Serialize;
use tokio::{task, time::timeout};

use super::{Service, ServiceError, status::Plugin};
use crate::{
    machine::{CarriedOver, NotCarriedOver, PluginFileError, PluginMeter},
    meta::{
        Begin, Change, HavePlugin, MetaState, PluginDescription, PluginEntry, PutPlugin, Task,
        TaskKind,
    },
    metrics::PluginFigures,
    storage::{Allowance, PluginId, node_number},
    wasm::{MAX_MODULE_BYTES, ModuleHash, PluginModule},
};

/// Between two looks at which plugins are missing here, if nothing changes.
const INTERVAL: Duration = Duration::from_secs(2);

/// A plugin, as the cluster knows it.
#[derive(Clone, Debug, Serialize)]
pub struct PluginView {
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the module, in hex.
    pub sha256: String,
    /// SHA-256 of its sources, in hex, if it says so.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_hash: String,
    /// Bytes of the module.
    pub bytes: u64,
    /// Whether it carries over the state of other versions.
    pub migrates: bool,
    /// When it was made known, milliseconds since 1970.
    pub uploaded_unix_ms: u64,
    /// The nodes that have it compiled.
    pub nodes: Vec<String>,
    /// The nodes that can not run it, and why.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub refusals: std::collections::BTreeMap<String, String>,
    /// The shards that run it.
    pub active: Vec<ActiveShard>,
    /// The shards that ran it before what they run now.
    pub previous: Vec<String>,
}

/// A shard that runs a plugin.
#[derive(Clone, Debug, Serialize)]
pub struct ActiveShard {
    /// Its name.
    pub shard_id: String,
    /// The index from which on it does, as plugins see indexes.
    pub index: u64,
}

/// What an activation is asked for.
#[derive(Clone, Debug, Default)]
pub struct Activation {
    /// What the plugin calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Names of the shards; none for all.
    pub shards: Vec<String>,
    /// The shard that is to run it first, and alone for a while.
    pub canary: String,
    /// For how long, in milliseconds.
    pub canary_ms: u64,
    /// Fuel for each command; 0 for the default.
    pub fuel: u64,
    /// Bytes of memory of an instance; 0 for the default.
    pub memory_bytes: u64,
    /// Even if shards have data of another plugin that nobody carries over.
    pub force: bool,
}

impl Activation {
    pub(super) fn task(self) -> Task {
        let Activation { name, version, shards, canary, canary_ms, .. } = self;
        let mut task = Task { plugin: name, version, canary, canary_ms, ..Task::default() };
        task.sources = shards;
        (task.fuel, task.memory_bytes, task.force) = (self.fuel, self.memory_bytes, self.force);
        task.set_kind(TaskKind::ActivatePlugin);
        task
    }
}

/// What switching a shard would do.
#[derive(Clone, Debug, Serialize)]
pub struct ShardTrial {
    /// The shard.
    pub shard_id: String,
    /// Why it would be refused; empty if it would not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub refusal: String,
    /// Slots with data that `migrate` was asked to carry over.
    pub slots: u64,
    /// Rows it wrote.
    pub rows: u64,
    /// Bytes of keys and values it wrote.
    pub bytes: u64,
    /// Fuel it used.
    pub fuel: u64,
    /// Microseconds it took.
    pub micros: u64,
}

impl Service {
    /// Checks, compiles and stores a module, makes it known to the cluster, and begins the operation
    /// that brings it to all nodes; gives its number.
    ///
    /// # Errors
    /// If the module is refused, or another one has its name and version; nothing has changed then.
    pub async fn upload_plugin(
        &self,
        module: Bytes,
        request_id: u64,
    ) -> Result<(u64, Plugin), ServiceError> {
        if module.len() > MAX_MODULE_BYTES {
            let limit = format!("at most {MAX_MODULE_BYTES} bytes");
            let message =
                format!("the module has {} bytes, the limit is {MAX_MODULE_BYTES}", module.len());
            return Err(ServiceError::invalid("module", &limit, &message));
        }
        let compiled = self.add_module(module.clone()).await.map_err(|error| match error {
            Refused::Module(reason) => {
                ServiceError::invalid("module", "a module that a node can run", &reason)
            }
            Refused::Node(reason) => ServiceError::Internal(reason),
        })?;
        self.make_plugin_known(&compiled, module.len()).await?;
        let plugin = Plugin::of(&compiled);
        let (name, version) = (plugin.name.clone(), plugin.version.clone());
        let mut task = Task { plugin: name, version, ..Task::default() };
        task.set_kind(TaskKind::AddPlugin);
        let begin = Begin { task, request_id, reason: "user".to_owned() };
        let operation = self.tell_meta(Change::Begin(begin)).await?.operation;
        Ok((operation, plugin))
    }

    /// Tells the cluster of a module of so many bytes that is here, compiled.
    async fn make_plugin_known(
        &self,
        module: &PluginModule,
        bytes: usize,
    ) -> Result<(), ServiceError> {
        let (node, folder) = (self.info.node_id.clone(), self.network.folder());
        let put = PutPlugin { description: describe_plugin(module, bytes), node, folder };
        self.tell_meta(Change::PutPlugin(put)).await?;
        Ok(())
    }

    async fn add_module(&self, module: Bytes) -> Result<PluginModule, Refused> {
        let plugins = Arc::clone(self.machine.plugins());
        let add = move || -> Result<PluginModule, PluginFileError> {
            let id = plugins.add(&module, Path::new("the module"))?;
            plugins.module(&id)
        };
        let added = task::spawn_blocking(add).await.map_err(|e| Refused::Node(e.to_string()))?;
        Ok(added?)
    }

    async fn tell_have(&self, plugin: &[u8], refusal: String) -> Result<(), ServiceError> {
        let have = HavePlugin {
            plugin: Bytes::copy_from_slice(plugin),
            node: self.info.node_id.clone(),
            folder: self.network.folder(),
            refusal,
        };
        self.tell_meta(Change::HavePlugin(have)).await?;
        Ok(())
    }

    /// The module of a plugin that this node has.
    pub fn module_of_plugin(&self, plugin: &[u8]) -> Result<Bytes, ServiceError> {
        let id: PluginId = plugin.try_into().map_err(|_| {
            ServiceError::invalid("plugin", "32 bytes", "a plugin's hash has 32 bytes")
        })?;
        let bytes = self.machine.plugins().bytes(&id);
        bytes.map(Bytes::from).map_err(|_| ServiceError::NotFound {
            what: "plugin".to_owned(),
            name: ModuleHash(id).to_string(),
        })
    }

    /// All plugins that the cluster knows, by name and age.
    pub fn plugin_views(&self) -> Vec<PluginView> {
        let copy = self.copy.borrow().clone();
        let mut views: Vec<PluginView> =
            copy.plugins.iter().map(|(id, entry)| view_of(&copy, id, entry)).collect();
        views.sort_by_key(|view| (view.name.clone(), view.uploaded_unix_ms));
        views
    }

    /// What each version of a plugin has done here since the node started.
    pub(super) fn plugin_figures(&self) -> Vec<PluginFigures> {
        let figures = |(module, meter): (PluginModule, Arc<PluginMeter>)| {
            let counts = meter.counts();
            let failed = counts.failed.into_iter();
            let failed = failed.map(|(kind, count)| (kind.to_string().replace(' ', "_"), count));
            let manifest = &module.info().manifest;
            PluginFigures {
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                commands: [("ok".to_owned(), counts.succeeded)].into_iter().chain(failed).collect(),
                queries: counts.queries,
                fuel: counts.fuel,
                apply_time: counts.apply_time,
                query_time: counts.query_time,
                memory_bytes: counts.memory_bytes,
            }
        };
        self.machine.plugins().meters().into_iter().map(figures).collect()
    }

    /// What an activation would do to each shard, tried on its present state.
    ///
    /// # Errors
    /// If there is no such plugin or shard.
    pub async fn try_activation(
        &self,
        activation: Activation,
    ) -> Result<Vec<ShardTrial>, ServiceError> {
        let copy = self.copy.borrow().clone();
        let allowance = Allowance { fuel: activation.fuel, memory_bytes: activation.memory_bytes };
        let (plugin, _) = copy.plugin_named(&activation.name, &activation.version)?;
        for name in &activation.shards {
            copy.shard_named(name)?;
        }
        let force = activation.force;
        let mut trials = Vec::new();
        for shard in copy.shards_of(&activation.task()) {
            let tried = self.try_switch(shard.group, &plugin, allowance, force).await?;
            let SwitchTrial { refusal, slots, rows, bytes, fuel, micros } = tried;
            let shard_id = shard.name.clone();
            trials.push(ShardTrial { shard_id, refusal, slots, rows, bytes, fuel, micros });
        }
        Ok(trials)
    }

    /// Has the cluster forget a plugin.
    ///
    /// # Errors
    /// If there is no such plugin, or a shard runs it or ran it before.
    pub async fn delete_plugin(&self, name: &str, version: &str) -> Result<(), ServiceError> {
        let copy = self.copy.borrow().clone();
        let (id, _) = copy.plugin_named(name, version)?;
        let running = self.reports().await;
        for (node, report) in &running {
            for replica in &report.replicas {
                let record = crate::storage::ShardRecord::decode(&replica.record);
                if record.is_ok_and(|record| record.plugin == id) {
                    let message = format!("a replica on node {node} runs it");
                    return Err(ServiceError::Conflict { message });
                }
            }
        }
        let silent = copy.nodes.keys().find(|node| !running.contains_key(*node));
        if let Some(node) = silent {
            let message = format!("node {node} does not say whether a replica there needs it");
            return Err(ServiceError::Conflict { message });
        }
        self.tell_meta(Change::DropPlugin(Bytes::copy_from_slice(&id))).await?;
        Ok(())
    }

    /// Tries a switch at this node, which has to lead the shard.
    pub(super) async fn try_switch_here(
        &self,
        order: TrySwitchOrder,
    ) -> Result<SwitchTrial, RequestError> {
        let group = GroupId(order.group);
        let route = self.route_of(group)?;
        if !self.raft.leads_settled(group) {
            let leader = self.leader_of(&route).filter(|leader| *leader != self.info.number);
            return Err(RequestError::NotLeader { leader });
        }
        let plugin = order.plugin.as_ref().try_into();
        let plugin: PluginId =
            plugin.map_err(|_| RequestError::Refused("a plugin's hash has 32 bytes".into()))?;
        let allowance = Allowance { fuel: order.fuel, memory_bytes: order.memory_bytes };
        let machine = Arc::clone(&self.machine);
        let work = move || {
            let tried = machine.try_switch(group, &plugin, allowance, order.force);
            tried.map_err(|error| error.to_string())
        };
        let tried = task::spawn_blocking(work).await.map_err(|error| error.to_string());
        let tried = tried.and_then(|tried| tried).map_err(RequestError::Unavailable)?;
        Ok(trial_of(tried))
    }

    /// Sees to it that this node has the plugins that the cluster knows, that the cluster knows of
    /// those which shards here run, and that those it has forgotten go.
    pub(super) async fn keep_plugins(self: Arc<Self>) {
        let mut copies = self.copy.subscribe();
        let mut known = BTreeSet::new();
        loop {
            let copy = copies.borrow_and_update().clone();
            if copy.version > 0 && copy.nodes.contains_key(&self.info.node_id) {
                self.make_known(&copy).await;
                self.get_missing(&copy).await;
                self.remove_forgotten(&copy, &mut known);
            }
            if let Ok(Err(_)) = timeout(INTERVAL, copies.changed()).await {
                return;
            }
        }
    }

    /// Tells the cluster of plugins that shards here run and that it does not know: it was born
    /// before it kept them.
    async fn make_known(&self, copy: &MetaState) {
        for shard in self.machine.shards() {
            let Some(module) = shard.module() else { continue };
            if copy.plugins.contains_key(&module.hash().0) {
                continue;
            }
            let bytes = self.machine.plugins().bytes(&module.hash().0).map_or(0, |b| b.len());
            if let Err(error) = self.make_plugin_known(module, bytes).await {
                tracing::debug!("cannot make {module} known: {error}");
                return;
            }
        }
    }

    async fn get_missing(&self, copy: &MetaState) {
        let node = &self.info.node_id;
        for (id, entry) in &copy.plugins {
            if copy.has_plugin(node, id) && self.machine.plugins().has(id) {
                continue;
            }
            let refusal = match self.get_plugin(copy, id).await {
                Ok(_) => String::new(),
                Err(Refused::Module(reason)) => reason,
                Err(Refused::Node(reason)) => {
                    let PluginDescription { name, version, .. } = &entry.description;
                    tracing::warn!("cannot get plugin {name} {version}: {reason}");
                    continue;
                }
            };
            if entry.refusals.get(node).is_some_and(|known| *known == refusal) {
                continue;
            }
            if let Err(error) = self.tell_have(id, refusal).await {
                tracing::debug!("cannot say that this node has a plugin: {error}");
            }
        }
    }

    /// A plugin, compiled, from its file or from another node.
    async fn get_plugin(&self, copy: &MetaState, id: &PluginId) -> Result<PluginModule, Refused> {
        let (plugins, wanted) = (Arc::clone(self.machine.plugins()), *id);
        let own = task::spawn_blocking(move || plugins.module(&wanted)).await;
        let own = own.map_err(|error| Refused::Node(error.to_string()))?;
        match own.map_err(Refused::from) {
            // It is not there, or damaged.
            Err(Refused::Node(_)) => {}
            known => return known,
        }
        let holders = copy.holders_of(id).into_iter().map(|node| node_number(&node));
        let holder = self.network.any_of(holders);
        let holder = holder.ok_or_else(|| Refused::Node("no node that has it is up".to_owned()))?;
        let bytes = self.network.fetch_plugin(holder, id).await.map_err(Refused::Node)?;
        if ModuleHash::of(&bytes).0 != *id {
            return Err(Refused::Node("what came is another module".to_owned()));
        }
        self.add_module(bytes.into()).await
    }

    /// Removes modules that the cluster knew and has forgotten.
    fn remove_forgotten(&self, copy: &MetaState, known: &mut BTreeSet<PluginId>) {
        let now: BTreeSet<PluginId> = copy.plugins.keys().copied().collect();
        for id in known.difference(&now) {
            let is_used = |shard: &Arc<crate::machine::Shard>| shard.record().plugin == *id;
            if !self.machine.shards().iter().any(is_used) {
                self.machine.plugins().remove(id);
            }
        }
        *known = now;
    }
}

/// Why a module is not here.
enum Refused {
    /// It is none that can be run.
    Module(String),
    /// The node can not have it now.
    Node(String),
}

impl From<PluginFileError> for Refused {
    fn from(error: PluginFileError) -> Self {
        match error {
            PluginFileError::Module { source, .. } => Refused::Module(source.to_string()),
            PluginFileError::Compile { source, .. } if source.is_refusal() => {
                Refused::Module(source.to_string())
            }
            other => Refused::Node(other.to_string()),
        }
    }
}

/// What a module of so many bytes says of itself, for the cluster to know.
pub fn describe_plugin(module: &PluginModule, bytes: usize) -> PluginDescription {
    let info = module.info();
    let hex = |hash: [u8; 32]| ModuleHash(hash).to_string();
    PluginDescription {
        plugin: Bytes::copy_from_slice(&module.hash().0),
        name: info.manifest.name.clone(),
        version: info.manifest.version.clone(),
        bytes: bytes as u64,
        migrates: info.has_migrate,
        source_hash: info.manifest.source_hash.map(hex).unwrap_or_default(),
    }
}

fn trial_of(tried: Result<CarriedOver, NotCarriedOver>) -> SwitchTrial {
    match tried {
        Ok(CarriedOver { slots, rows, bytes, fuel, micros }) => {
            SwitchTrial { refusal: String::new(), slots, rows, bytes, fuel, micros }
        }
        Err(refusal) => SwitchTrial { refusal: refusal.to_string(), ..SwitchTrial::default() },
    }
}

fn view_of(copy: &MetaState, id: &PluginId, entry: &PluginEntry) -> PluginView {
    let active = copy.user_shards().filter(|shard| shard.plugin == *id);
    let previous = copy.user_shards().filter(|shard| shard.previous == Some(*id));
    let PluginDescription { name, version, bytes, migrates, source_hash, .. } =
        entry.description.clone();
    PluginView {
        name,
        version,
        sha256: ModuleHash(*id).to_string(),
        source_hash,
        bytes,
        migrates,
        uploaded_unix_ms: entry.uploaded_ms,
        nodes: copy.holders_of(id),
        refusals: entry.refusals.clone(),
        active: active
            .map(|shard| ActiveShard { shard_id: shard.name.clone(), index: shard.activated_at })
            .collect(),
        previous: previous.map(|shard| shard.name.clone()).collect(),
    }
}
