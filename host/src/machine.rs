//! The replicated state machine of all shards on this node: storage and plugins
//! joined.
//!
//! Applying a batch of log entries: each command is checked (does the shard own
//! its slot, is it frozen, has the command expired), the rest run in the shard's
//! plugin over the overlay, and data and applied position go to RocksDB in one
//! write. Nothing is visible or acknowledged before that write.
//!
//! What each kind of entry is checked for, and where:
//!
//! | entry | when proposed | when applied |
//! |---|---|---|
//! | commands | slot routed to this shard | each: slot owned, shard not frozen, `not_after` not passed, not answered before |
//! | change of members | the rules of `Membership::after`, promoted learners caught up, exact epoch | those rules, exact epoch, shard neither prepared nor frozen nor retired |
//! | leaving a joint configuration | the group is joint | exact epoch |
//! | split | leader, exact epoch, not joint, no other change under way | exact epoch, serving, all replicas voters, slots owned, some left |
//! | prepare, freeze | the same | exact epoch, serving, all replicas voters, on just the nodes named |
//! | absorb | the same | exact epoch, prepared for this merge; the replica of the other shard here is frozen for it, by the entry named |
//! | cancel | the same | exact epoch, the other shard not taken in; raises the epoch in any case |
//! | unfreeze | the same | exact epoch; raises the epoch in any case |
//! | activate | the same, and the module compiled on every node with a replica | exact epoch, serving, the state carried over within the limits; waits for the module |
//! | retire | the same | exact epoch, serving, all replicas voters, empty unless forced |
//! | meta's commands | none | each by its own rule (`meta`) |

mod activation;
mod apply;
mod checkpoints;
mod cluster;
mod compiler;
mod executors;
mod meter;
mod plugin_storage;
mod plugins;
mod query;
mod sessions;
mod snapshots;
mod structural;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::Sender,
    },
};

use parking_lot::{Mutex, RwLock};
use raft_lite::{GroupDescriptor, GroupId, ReplicaId};
use tokio::sync::watch;

use crate::{
    meta::{META_GROUP, MetaState},
    storage::{
        Allowance, ApplyState, MAX_SLOTS, PluginId, ShardRecord, Slot, SlotRange, SnapshotFolders,
        Storage, StorageError, WriteSet,
    },
    wasm::{Limits, PluginModule},
};

pub use activation::{CarriedOver, NotCarriedOver};
use checkpoints::Checkpoints;
pub use compiler::{COMPILE, CompileError, CompileLimits, Compiler, compile_in_this_process};
use executors::ExecutorPool;
pub use meter::{PluginCounts, PluginMeter};
pub use plugins::{DEFAULT_PLUGIN, PluginFileError, PluginStore, plugin_id};
pub use query::{Freshness, Query, QueryError, QueryReplies, QueryReply, ShardReader};
use sessions::Sessions;
pub use structural::{Refusal, ShardChange};

/// A shard's replica on this node.
pub struct Shard {
    record: ShardRecord,
    /// None for the cluster's own group.
    plugin: Option<ShardPlugin>,
    /// How far it got; changed only by the thread that applies its entries.
    applied: Arc<Mutex<ApplyState>>,
    /// What clients were answered lately; for the same thread.
    sessions: Arc<Mutex<Sessions>>,
    /// What is stored is about to be another plugin's; set before it is written.
    switching: AtomicBool,
    /// The state hash at some indexes, to be compared with the other replicas'.
    checkpoints: Arc<Mutex<Checkpoints>>,
}

/// What gives a shard's commands their meaning.
#[derive(Clone)]
struct ShardPlugin {
    module: PluginModule,
    limits: Limits,
    meter: Arc<PluginMeter>,
}

impl Shard {
    /// What the shard is.
    pub fn record(&self) -> &ShardRecord {
        &self.record
    }

    /// The plugin it runs; the cluster's own group has none.
    pub fn module(&self) -> Option<&PluginModule> {
        self.plugin.as_ref().map(|plugin| &plugin.module)
    }

    /// How far the replica got.
    pub fn applied(&self) -> ApplyState {
        *self.applied.lock()
    }

    /// The state hash at some indexes, the newest last.
    pub fn checkpoints(&self) -> Vec<(u64, u64)> {
        let applied = self.applied();
        let mut checkpoints = self.checkpoints.lock().to_vec();
        let newest = (applied.applied.index.0, applied.state_hash);
        if checkpoints.last() != Some(&newest) {
            checkpoints.push(newest);
        }
        checkpoints
    }

    /// Commands that failed here by the plugin's fault since the node started.
    pub fn plugin_faults(&self) -> u64 {
        self.plugin.as_ref().map_or(0, |plugin| plugin.meter.faults())
    }

    /// The same replica with another record.
    fn with_record(&self, record: ShardRecord) -> Shard {
        Shard {
            record,
            plugin: self.plugin.clone(),
            // Shared: an applier may be at work with the shard as it was.
            applied: Arc::clone(&self.applied),
            sessions: Arc::clone(&self.sessions),
            switching: AtomicBool::new(false),
            checkpoints: Arc::clone(&self.checkpoints),
        }
    }

    /// The same replica with other slots. What was known of the clients of those that it
    /// had, or has got, is known no more.
    fn with_slots(&self, record: ShardRecord) -> Shard {
        Shard { sessions: Arc::default(), ..self.with_record(record) }
    }

    /// Whether what is stored may be another plugin's than the one that is known here.
    fn is_switching(&self) -> bool {
        self.switching.load(Ordering::Acquire)
    }
}

/// All shards on this node. See the module.
pub struct Machine {
    storage: Arc<Storage>,
    plugins: Arc<PluginStore>,
    snapshots: Arc<SnapshotFolders>,
    /// The newest replica of each group that was removed from this node.
    tombstones: RwLock<BTreeMap<GroupId, ReplicaId>>,
    /// Held while what is on record changes, and with it `shards`.
    changing: Mutex<()>,
    snapshot_maker: Sender<snapshots::Job>,
    shards: Arc<RwLock<BTreeMap<GroupId, Arc<Shard>>>>,
    /// The state of the cluster's own group, if this node has a replica of it.
    meta: watch::Sender<Option<Arc<MetaState>>>,
    /// Counts the changes of records, for those who go by them.
    changes: watch::Sender<u64>,
    /// Groups below this may have had replicas here that were lost.
    fresh_from: AtomicU64,
    /// For the threads that apply entries.
    appliers: ExecutorPool,
    /// For queries on the threads that receive them.
    inline_readers: ExecutorPool,
    /// For queries that take long, on threads of their own.
    long_readers: ExecutorPool,
}

/// How many threads of each kind use the machine at once.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    /// Threads that apply entries, besides the one for what takes long.
    pub appliers: usize,
    /// Threads that serve requests.
    pub servers: usize,
}

impl Threads {
    /// Plugin executors that so many threads need.
    pub fn executors(&self) -> usize {
        self.appliers + 1 + 2 * self.servers
    }
}

impl Machine {
    /// The shards on record in `storage`, with their plugins from `plugins`.
    pub fn open(
        storage: Arc<Storage>,
        plugins: Arc<PluginStore>,
        snapshots: Arc<SnapshotFolders>,
        threads: Threads,
        fresh_from: GroupId,
    ) -> Result<Self, OpenError> {
        let pool = |max| ExecutorPool::new(plugins.engine().clone(), max);
        let machine = Machine {
            tombstones: RwLock::new(storage.tombstones()?),
            changing: Mutex::default(),
            snapshot_maker: snapshots::start_maker().map_err(OpenError::Thread)?,
            snapshots,
            storage,
            shards: Arc::default(),
            meta: watch::Sender::default(),
            changes: watch::Sender::default(),
            fresh_from: AtomicU64::new(fresh_from.0),
            appliers: pool(threads.appliers + 1),
            inline_readers: pool(threads.servers),
            long_readers: pool(threads.servers),
            plugins,
        };
        for record in machine.storage.records()? {
            machine.add(record)?;
        }
        if let Some(state) = machine.storage.meta()? {
            let damaged = |reason| StorageError::Damaged { group: META_GROUP, reason };
            let state = MetaState::decode(&state).map_err(damaged)?;
            machine.meta.send_replace(Some(Arc::new(state)));
        }
        if !machine.tombstones.read().is_empty() {
            // The node may have stopped before it was through with a removal.
            machine.storage.wipe(&machine.unowned())?;
        }
        Ok(machine)
    }

    /// Whether the cluster's first shards were put on record here, those that are
    /// gone by now included.
    pub fn is_founded(&self) -> Result<bool, StorageError> {
        Ok(!self.shards.read().is_empty() || self.storage.is_founded()?)
    }

    /// Puts the first shards on record, durably, before anything else knows of them; with
    /// them the state of the cluster's own group, if this node has a replica of it.
    pub fn create(
        &self,
        records: Vec<ShardRecord>,
        meta: Option<MetaState>,
    ) -> Result<(), OpenError> {
        let mut writes = WriteSet::new();
        writes.put_founded();
        if let Some(meta) = meta {
            writes.put_meta(&meta.encode());
            self.meta.send_replace(Some(Arc::new(meta)));
        }
        for record in &records {
            writes.put_record(record);
            writes.put_apply_state(record.group, &ApplyState::INITIAL);
        }
        self.storage.write(writes)?;
        self.storage.flush()?;
        for record in records {
            self.add(record)?;
        }
        Ok(())
    }

    fn add(&self, record: ShardRecord) -> Result<(), OpenError> {
        let state = self.storage.apply_state(record.group)?;
        let shard = self.shard_of(record, state)?;
        self.replace(shard);
        Ok(())
    }

    /// A replica that got so far.
    fn shard_of(&self, record: ShardRecord, state: ApplyState) -> Result<Shard, PluginFileError> {
        let plugin = match record.group {
            META_GROUP => None,
            _ => Some(self.shard_plugin(self.plugins.module(&record.plugin)?, record.allowance)),
        };
        let applied = Arc::new(Mutex::new(state));
        let switching = AtomicBool::new(false);
        let (sessions, checkpoints) = Default::default();
        Ok(Shard { record, plugin, applied, sessions, switching, checkpoints })
    }

    fn shard_plugin(&self, module: PluginModule, allowance: Allowance) -> ShardPlugin {
        let meter = self.plugins.meter(&module.hash().0);
        ShardPlugin { module, limits: limits_of(allowance), meter }
    }

    /// The slots that no shard on this node owns.
    fn unowned(&self) -> Vec<SlotRange> {
        let shards = self.shards.read();
        let mut owned: Vec<SlotRange> =
            shards.values().flat_map(|shard| shard.record.slots.iter().copied()).collect();
        owned.sort_by_key(|range| range.start);
        let mut start = Slot(0);
        let mut gaps = Vec::new();
        for range in owned {
            gaps.push(SlotRange { start, end: range.start });
            start = range.end;
        }
        gaps.push(SlotRange { start, end: Slot(MAX_SLOTS) });
        gaps
    }

    /// Notes that the shards' Raft logs exist from now on: if one is missing
    /// later, it was lost.
    pub fn note_started(&self) -> Result<(), StorageError> {
        let _turn = self.changing.lock();
        let fresh: Vec<Arc<Shard>> =
            self.replicas().into_iter().filter(|shard| !shard.record.started).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let mut writes = WriteSet::new();
        for shard in fresh {
            let record = ShardRecord { started: true, ..shard.record.clone() };
            writes.put_record(&record);
            self.replace(shard.with_record(record));
        }
        self.storage.write(writes)?;
        self.storage.flush()
    }

    fn replace(&self, shard: Shard) {
        self.shards.write().insert(shard.record.group, Arc::new(shard));
        self.note_change();
    }

    /// Tells those who go by the shards' records that some changed.
    fn note_change(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Follows the changes of records.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Follows the state of the cluster's own group, as long as this node has a replica
    /// of it.
    pub fn meta(&self) -> watch::Receiver<Option<Arc<MetaState>>> {
        self.meta.subscribe()
    }

    /// What raft-lite has to know of the replicas on record.
    pub fn descriptors(&self) -> Vec<GroupDescriptor> {
        let descriptor = |shard: &Arc<Shard>| shard.record.descriptor(shard.applied().applied);
        self.replicas().iter().map(descriptor).collect()
    }

    /// All replicas, in the order of their groups.
    pub fn replicas(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().cloned().collect()
    }

    /// All shards, in the order of their groups: the cluster's own group is none.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        let shards = self.shards.read();
        let plugins = shards.values().filter(|shard| shard.plugin.is_some());
        plugins.cloned().collect()
    }

    /// Groups below this may have had replicas on this node that were lost.
    pub fn set_fresh_from(&self, group: GroupId) {
        self.fresh_from.store(group.0, Ordering::Relaxed);
    }

    /// A module that is compiled here, by its hash.
    pub fn plugin(&self, id: &PluginId) -> Option<PluginModule> {
        self.plugins.loaded(id)
    }

    /// The plugin modules of this node.
    pub fn plugins(&self) -> &Arc<PluginStore> {
        &self.plugins
    }

    /// What a module calls itself; empty if it is not stored here.
    pub fn plugin_name(&self, id: &PluginId) -> String {
        self.plugin(id).map(|module| module.info().manifest.name.clone()).unwrap_or_default()
    }

    /// A group's shard.
    pub fn shard(&self, group: GroupId) -> Option<Arc<Shard>> {
        self.shards.read().get(&group).cloned()
    }

    /// The database below.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }
}

/// What a shard's commands may use.
fn limits_of(Allowance { fuel, memory_bytes }: Allowance) -> Limits {
    let default = Limits::default();
    Limits {
        fuel_per_command: if fuel == 0 { default.fuel_per_command } else { fuel },
        memory_bytes: if memory_bytes == 0 { default.memory_bytes } else { memory_bytes as usize },
    }
}

/// Why the shards on record can not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A shard's plugin is missing or damaged.
    #[error(transparent)]
    Plugin(#[from] PluginFileError),
    /// A thread can not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

#[cfg(test)]
mod tests;
