//! Snapshots of shards: made into files for others, and taken in from others.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use raft_lite::{GroupDescriptor, GroupId, ReplicaId, SnapshotMeta, SnapshotReply};

use super::{Machine, Shard, apply::host_failure};
use crate::storage::{
    ApplyState, ExportedFile, OwnedSnapshot, ShardRecord, SnapshotData, SnapshotFile, folder_of,
};

/// The plugin's module travels along: the node may not have it.
const PLUGIN_FILE: &str = "plugin.wasm";

type AnyError = Box<dyn std::error::Error>;
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Starts the thread that makes snapshots, one after the other; it ends when nobody can
/// ask any more.
pub(super) fn start_maker() -> io::Result<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let run = move || jobs.into_iter().for_each(|job| job());
    thread::Builder::new().name("snapshot".to_owned()).spawn(run)?;
    Ok(sender)
}

impl Machine {
    /// Has a snapshot made on the thread for that.
    pub(super) fn start_snapshot(&self, group: GroupId, reply: SnapshotReply) {
        let storage = Arc::clone(&self.storage);
        let (folders, plugins) = (Arc::clone(&self.snapshots), Arc::clone(&self.plugins));
        let shards = Arc::clone(&self.shards);
        let replica_of = move || shards.read().get(&group).map(|shard| shard.record.replica);
        let make = move || -> Result<SnapshotMeta, AnyError> {
            let (id, folder) = folders.create()?;
            let replica = replica_of();
            let made = make(Arc::new(OwnedSnapshot::new(storage)), group, id, &folder, &|record| {
                let module = plugins.bytes(&record.plugin)?;
                fs::write(folder.join(PLUGIN_FILE), &module)?;
                Ok(module.len() as u64)
            });
            // A removal deletes files under the snapshot that is being read.
            let made = made.and_then(|made| match replica_of() == replica {
                true => Ok(made),
                false => Err("the replica was removed meanwhile".into()),
            });
            if made.is_err() {
                folders.remove(id);
            }
            made
        };
        let job = move || {
            let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or(Err("it panicked".into()));
            reply(made.map_err(|error| host_failure(group, &*error)));
        };
        // The thread lives as long as this.
        let _ = self.snapshot_maker.send(Box::new(job));
    }

    /// Removes a snapshot that was made.
    pub(super) fn forget_snapshot(&self, snapshot: &SnapshotMeta) {
        if let Ok(data) = SnapshotData::decode(snapshot.data.clone()) {
            self.snapshots.remove(data.id);
        }
    }

    /// Removes fetched data.
    pub(super) fn forget_fetched(&self, fetched: &[u8]) {
        if let Some(id) = folder_of(fetched) {
            self.snapshots.remove(id);
        }
    }

    /// See [`raft_lite::StateMachine::install_snapshot`].
    pub(super) fn install(
        &self,
        group: GroupId,
        replica: ReplicaId,
        snapshot: &SnapshotMeta,
        fetched: &Bytes,
    ) -> Result<GroupDescriptor, AnyError> {
        let data = SnapshotData::decode(snapshot.data.clone())?;
        let source = ShardRecord::decode(&data.record)?;
        let state = ApplyState::decode(&data.state).ok_or("its state makes no sense")?;
        if source.group != group
            || state.applied != snapshot.position
            || source.membership != snapshot.membership
        {
            return Err("its description contradicts itself".into());
        }
        let folder = folder_of(fetched).map(|id| self.snapshots.folder(id));
        let folder = folder.ok_or("there is no such data")?;
        let is_stored = self.plugins.module(&source.plugin).is_ok();
        if !is_stored {
            let module = fs::read(folder.join(PLUGIN_FILE))?;
            let stored = self.plugins.add(&module, Path::new("a snapshot"))?;
            if stored != source.plugin {
                return Err("the plugin that came with it is another".into());
            }
        }
        let record = ShardRecord { replica, started: false, applied_by_snapshot: true, ..source };
        let names = data.files.into_iter().map(|file| file.name);
        let files: Vec<String> = names.filter(|name| name != PLUGIN_FILE).collect();
        self.storage.ingest(&folder, &files, &record, &state)?;
        let shard = Shard {
            module: self.plugins.module(&record.plugin)?,
            record,
            limits: Default::default(),
            applied: Arc::new(Mutex::new(state)),
            sessions: Arc::default(),
        };
        let descriptor = shard.record.descriptor(state.applied);
        self.shards.write().insert(group, Arc::new(shard));
        Ok(descriptor)
    }

    /// See [`raft_lite::StateMachine::destroy_replica`].
    pub(super) fn destroy(&self, group: GroupId, replica: ReplicaId) -> Result<(), AnyError> {
        let shard = self.shard(group).filter(|shard| shard.record.replica == replica);
        let Some(shard) = shard else { return Ok(()) };
        self.shards.write().remove(&group);
        self.tombstones.write().insert(group, replica);
        let mut writes = crate::storage::WriteSet::new();
        writes.bury(group, replica);
        self.storage.write(writes)?;
        self.storage.flush()?;
        Ok(self.storage.wipe(&shard.record.slots)?)
    }

    /// The newest replica of each group that was removed from this node.
    pub(super) fn tombstone(&self, group: GroupId) -> Option<ReplicaId> {
        self.tombstones.read().get(&group).copied()
    }
}

/// Writes a group's state into files.
fn make(
    snapshot: Arc<OwnedSnapshot>,
    group: GroupId,
    id: u64,
    folder: &Path,
    add_plugin: &dyn Fn(&ShardRecord) -> Result<u64, AnyError>,
) -> Result<SnapshotMeta, AnyError> {
    let state = snapshot.apply_state(group)?;
    let record = snapshot.record(group)?.ok_or("this node has no replica of it")?;
    let exported = snapshot.export(&record.slots, folder)?;
    let file = |ExportedFile { name, bytes }| SnapshotFile { name, bytes };
    let mut files: Vec<SnapshotFile> = exported.into_iter().map(file).collect();
    let bytes = add_plugin(&record)?;
    files.push(SnapshotFile { name: PLUGIN_FILE.to_owned(), bytes });
    let data = SnapshotData { id, files, record: record.encode(), state: state.encode().to_vec() };
    Ok(SnapshotMeta {
        position: state.applied,
        membership: record.membership,
        data: data.encode_to_vec().into(),
    })
}
