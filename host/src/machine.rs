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
//! | change of members | the rules of `Membership::after`, promoted learners caught up | those rules, exact epoch |

mod apply;
mod executors;
mod plugin_storage;
mod plugins;
mod query;
mod sessions;
mod snapshots;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, mpsc::Sender},
};

use parking_lot::{Mutex, RwLock};
use raft_lite::{GroupDescriptor, GroupId, ReplicaId};

use crate::{
    storage::{
        ApplyState, MAX_SLOTS, ShardRecord, Slot, SlotRange, SnapshotFolders, Storage,
        StorageError, WriteSet,
    },
    wasm::{Limits, PluginModule},
};

use executors::ExecutorPool;
pub use plugins::{DEFAULT_PLUGIN, PluginFileError, PluginStore};
pub use query::{Query, QueryError, QueryReply, ShardReader};
use sessions::Sessions;

/// A shard's replica on this node.
pub struct Shard {
    record: ShardRecord,
    module: PluginModule,
    limits: Limits,
    /// How far it got; changed only by the thread that applies its entries.
    applied: Arc<Mutex<ApplyState>>,
    /// What clients were answered lately; for the same thread.
    sessions: Arc<Mutex<Sessions>>,
}

impl Shard {
    /// What the shard is.
    pub fn record(&self) -> &ShardRecord {
        &self.record
    }

    /// The plugin it runs.
    pub fn module(&self) -> &PluginModule {
        &self.module
    }

    /// How far the replica got.
    pub fn applied(&self) -> ApplyState {
        *self.applied.lock()
    }

    /// The same replica with another record.
    fn with_record(&self, record: ShardRecord) -> Shard {
        Shard {
            record,
            module: self.module.clone(),
            limits: self.limits,
            // Shared: an applier may be at work with the shard as it was.
            applied: Arc::clone(&self.applied),
            sessions: Arc::clone(&self.sessions),
        }
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
    ) -> Result<Self, OpenError> {
        let pool = |max| ExecutorPool::new(plugins.engine().clone(), max);
        let machine = Machine {
            tombstones: RwLock::new(storage.tombstones()?),
            changing: Mutex::default(),
            snapshot_maker: snapshots::start_maker().map_err(OpenError::Thread)?,
            snapshots,
            storage,
            shards: Arc::default(),
            appliers: pool(threads.appliers + 1),
            inline_readers: pool(threads.servers),
            long_readers: pool(threads.servers),
            plugins,
        };
        for record in machine.storage.records()? {
            machine.add(record)?;
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

    /// Puts the first shards on record, durably, before anything else knows of them.
    pub fn create(&self, records: Vec<ShardRecord>) -> Result<(), OpenError> {
        let mut writes = WriteSet::new();
        writes.put_founded();
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
        let applied = Arc::new(Mutex::new(self.storage.apply_state(record.group)?));
        let module = self.plugins.module(&record.plugin)?;
        let group = record.group;
        let sessions = Arc::default();
        let shard = Shard { record, module, limits: Limits::default(), applied, sessions };
        self.shards.write().insert(group, Arc::new(shard));
        Ok(())
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
            self.shards().into_iter().filter(|shard| !shard.record.started).collect();
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
    }

    /// What raft-lite has to know of the replicas on record.
    pub fn descriptors(&self) -> Vec<GroupDescriptor> {
        let descriptor = |shard: &Arc<Shard>| shard.record.descriptor(shard.applied().applied);
        self.shards().iter().map(descriptor).collect()
    }

    /// All shards, in the order of their groups.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().cloned().collect()
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
