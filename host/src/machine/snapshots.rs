//! Snapshots of shards: made into files for others, and taken in from others.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Sender, channel},
    },
    thread,
};

use bytes::Bytes;
use prost::Message;
use raft_lite::{GroupDescriptor, GroupId, ReplicaId, SnapshotMeta, SnapshotReply};

use super::{Machine, apply::host_failure, structural::in_the_way};
use crate::{
    meta::{META_GROUP, MetaState},
    storage::{
        ApplyState, Arrival, ExportedFile, OwnedSnapshot, ShardRecord, SlotRange, SnapshotData,
        SnapshotFile, StorageError, WriteSet, folder_of, normalized, without,
    },
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
                if record.group == META_GROUP {
                    return Ok(None);
                }
                let module = plugins.bytes(&record.plugin)?;
                fs::write(folder.join(PLUGIN_FILE), &module)?;
                Ok(Some(module.len() as u64))
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
        if self.plugins.module(&source.plugin).is_err() && group != META_GROUP {
            let module = fs::read(folder.join(PLUGIN_FILE))?;
            let stored = self.plugins.add(&module, Path::new("a snapshot"))?;
            if stored != source.plugin {
                return Err("the plugin that came with it is another".into());
            }
        }
        let record = ShardRecord { replica, started: false, applied_by_snapshot: true, ..source };
        let meta = data.meta.as_deref().map(MetaState::decode).transpose()?;
        let names = data.files.into_iter().map(|file| file.name);
        let files: Vec<String> = names.filter(|name| name != PLUGIN_FILE).collect();
        let _turn = self.changing.lock();
        let buried = self.stands_in_the_way(group, snapshot)?;
        let arrival =
            Arrival { record: &record, state: &state, meta: data.meta.as_deref(), buried: &buried };
        if let Some(present) = self.shard(group) {
            present.switching.store(true, Ordering::Release);
        }
        self.storage.ingest(&folder, &files, &arrival)?;
        let before = self.shard(group).map(|shard| shard.record.slots.clone()).unwrap_or_default();
        let shard = self.shard_of(record, state)?;
        let descriptor = shard.record.descriptor(state.applied);
        {
            let mut shards = self.shards.write();
            shards.insert(group, Arc::new(shard));
            buried.iter().for_each(|(source, _)| drop(shards.remove(source)));
        }
        self.tombstones.write().extend(buried);
        if let Some(meta) = meta {
            self.meta.send_replace(Some(Arc::new(meta)));
        }
        self.note_change();
        // What it lost belongs to others now, here or elsewhere.
        self.wipe_unowned(&before)?;
        Ok(descriptor)
    }

    /// What else has to go when a snapshot is taken in: replicas of shards that were
    /// merged into this one.
    ///
    /// # Errors
    /// If a replica owns slots that the snapshot covers: it has to change first.
    pub(super) fn stands_in_the_way(
        &self,
        group: GroupId,
        snapshot: &SnapshotMeta,
    ) -> Result<Vec<(GroupId, ReplicaId)>, AnyError> {
        let data = SnapshotData::decode(snapshot.data.clone())?;
        let record = ShardRecord::decode(&data.record)?;
        let replicas = self.replicas();
        let records = replicas.iter().map(|shard| &shard.record);
        let others = records.filter(|other| other.group != group);
        match in_the_way(&record, others) {
            Err(other) => Err(format!("group {other} owns some of its slots here").into()),
            Ok(absorbed) => {
                let replica = |group: &GroupId| {
                    let shard = replicas.iter().find(|shard| shard.record.group == *group);
                    shard.map(|shard| (*group, shard.record.replica))
                };
                Ok(absorbed.iter().filter_map(replica).collect())
            }
        }
    }

    /// Removes what is stored in those of these slots that no replica here owns.
    pub(super) fn wipe_unowned(&self, slots: &[SlotRange]) -> Result<(), StorageError> {
        let owned = self.replicas();
        let owned = normalized(owned.iter().flat_map(|shard| shard.record.slots.iter().copied()));
        let lost = without(&normalized(slots.iter().copied()), &owned);
        if lost.is_empty() { Ok(()) } else { self.storage.wipe(&lost) }
    }

    /// See [`raft_lite::StateMachine::destroy_replica`].
    pub(super) fn destroy(&self, group: GroupId, replica: ReplicaId) -> Result<(), AnyError> {
        let shard = self.shard(group).filter(|shard| shard.record.replica == replica);
        let Some(shard) = shard else { return Ok(()) };
        let _turn = self.changing.lock();
        self.shards.write().remove(&group);
        self.tombstones.write().insert(group, replica);
        let mut writes = WriteSet::new();
        writes.bury(group, replica);
        if group == META_GROUP {
            writes.delete_meta();
            self.meta.send_replace(None);
        }
        self.note_change();
        self.storage.write(writes)?;
        self.storage.flush()?;
        Ok(self.wipe_unowned(&shard.record.slots)?)
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
    add_plugin: &dyn Fn(&ShardRecord) -> Result<Option<u64>, AnyError>,
) -> Result<SnapshotMeta, AnyError> {
    let state = snapshot.apply_state(group)?;
    let record = snapshot.record(group)?.ok_or("this node has no replica of it")?;
    let meta = match group {
        META_GROUP => Some(snapshot.meta()?.ok_or("this node has no state of it")?),
        _ => None,
    };
    let exported = snapshot.export(&record.slots, folder)?;
    let file = |ExportedFile { name, bytes }| SnapshotFile { name, bytes };
    let mut files: Vec<SnapshotFile> = exported.into_iter().map(file).collect();
    if let Some(bytes) = add_plugin(&record)? {
        files.push(SnapshotFile { name: PLUGIN_FILE.to_owned(), bytes });
    }
    let (stored, state_bytes) = (record.encode(), state.encode().to_vec());
    let data = SnapshotData { id, files, record: stored, state: state_bytes, meta };
    Ok(SnapshotMeta {
        position: state.applied,
        membership: record.membership,
        data: data.encode_to_vec().into(),
    })
}
