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
//! | structural | exact epoch | exact epoch |

mod apply;
mod executors;
mod plugin_storage;
mod plugins;
mod query;
mod sessions;

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, RwLock};
use raft_lite::{GroupId, ReplicaRecord};

use crate::{
    storage::{ApplyState, ShardRecord, Storage, StorageError, WriteSet},
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
}

/// All shards on this node. See the module.
pub struct Machine {
    storage: Arc<Storage>,
    shards: RwLock<BTreeMap<GroupId, Arc<Shard>>>,
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
    /// Threads that apply entries.
    pub appliers: usize,
    /// Threads that serve requests.
    pub servers: usize,
}

impl Threads {
    /// Plugin executors that so many threads need.
    pub fn executors(&self) -> usize {
        self.appliers + 2 * self.servers
    }
}

impl Machine {
    /// The shards on record in `storage`, with their plugins from `plugins`.
    pub fn open(
        storage: Arc<Storage>,
        plugins: &PluginStore,
        threads: Threads,
    ) -> Result<Self, OpenError> {
        let pool = |max| ExecutorPool::new(plugins.engine().clone(), max);
        let machine = Machine {
            storage,
            shards: RwLock::default(),
            appliers: pool(threads.appliers),
            inline_readers: pool(threads.servers),
            long_readers: pool(threads.servers),
        };
        for record in machine.storage.records()? {
            machine.add(record, plugins)?;
        }
        Ok(machine)
    }

    /// Puts new shards on record, durably, before anything else knows of them.
    pub fn create(
        &self,
        records: Vec<ShardRecord>,
        plugins: &PluginStore,
    ) -> Result<(), OpenError> {
        let mut writes = WriteSet::new();
        for record in &records {
            writes.put_record(record);
            writes.put_apply_state(record.group, &ApplyState::INITIAL);
        }
        self.storage.write(writes)?;
        self.storage.flush()?;
        for record in records {
            self.add(record, plugins)?;
        }
        Ok(())
    }

    fn add(&self, record: ShardRecord, plugins: &PluginStore) -> Result<(), OpenError> {
        let applied = Arc::new(Mutex::new(self.storage.apply_state(record.group)?));
        let module = plugins.module(&record.plugin)?;
        let group = record.group;
        let sessions = Arc::default();
        let shard = Shard { record, module, limits: Limits::default(), applied, sessions };
        self.shards.write().insert(group, Arc::new(shard));
        Ok(())
    }

    /// Notes that the shards' Raft logs exist from now on: if one is missing
    /// later, it was lost.
    pub fn note_started(&self) -> Result<(), StorageError> {
        let mut writes = WriteSet::new();
        let mut shards = self.shards.write();
        let fresh: Vec<GroupId> =
            shards.values().filter(|s| !s.record.started).map(|s| s.record.group).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        for group in fresh {
            let shard = &shards[&group];
            let started = Shard {
                record: ShardRecord { started: true, ..shard.record.clone() },
                module: shard.module.clone(),
                limits: shard.limits,
                // Shared: an applier may be at work with the shard as it was.
                applied: Arc::clone(&shard.applied),
                sessions: Arc::clone(&shard.sessions),
            };
            writes.put_record(&started.record);
            shards.insert(group, Arc::new(started));
        }
        self.storage.write(writes)?;
        self.storage.flush()
    }

    /// All shards, in the order of their groups.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().cloned().collect()
    }

    /// A group's shard.
    pub fn shard(&self, group: GroupId) -> Option<Arc<Shard>> {
        self.shards.read().get(&group).cloned()
    }

    /// What raft-lite needs to know of a shard's replica at start-up.
    pub fn replica_record(shard: &Shard) -> ReplicaRecord {
        ReplicaRecord {
            applied: shard.applied().applied,
            started: shard.record.started,
            applied_by_snapshot: shard.record.applied_by_snapshot,
        }
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
}

#[cfg(test)]
mod tests;
