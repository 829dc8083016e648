//! A shard's state as files: written from a snapshot of one database, taken in by
//! another.
//!
//! The files cut the shard's slots into pieces that do not overlap. Each begins by
//! deleting whatever is stored in its piece, so that taking them in replaces what
//! was there before; the group's record goes in with them, in one step.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use raft_lite::{GroupId, ReplicaId};
use rocksdb::{IngestExternalFileOptions, SstFileWriter};

use super::{
    db::{Storage, StorageError},
    keys::{self, SlotRange},
    overlay::ScanBounds,
    record::{ApplyState, ShardRecord},
    view::{OwnedSnapshot, ReadView},
};

/// A file is closed once it has so many bytes of rows.
const FILE_BYTES: u64 = 32 << 20;

/// A file with a part of a shard's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedFile {
    /// Its name within its folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// A replica that comes with files.
pub struct Arrival<'a> {
    /// What it is.
    pub record: &'a ShardRecord,
    /// How far it got.
    pub state: &'a ApplyState,
    /// The state of the cluster's own group, if it is a replica of that.
    pub meta: Option<&'a [u8]>,
    /// Replicas that are gone then: of shards that were merged into this one.
    pub buried: &'a [(GroupId, ReplicaId)],
}

impl OwnedSnapshot {
    /// Writes everything that was stored in some slots into files in `folder`.
    pub fn export(
        self: Arc<Self>,
        ranges: &[SlotRange],
        folder: &Path,
    ) -> Result<Vec<ExportedFile>, StorageError> {
        let view = ReadView::Snapshot(Arc::clone(&self));
        let mut files = Vec::new();
        for range in ranges {
            let bounds = ScanBounds::whole_range(*range);
            let [low, high] = keys::range_bounds(*range);
            let mut rows = view.iterate(&bounds);
            let mut start = low.to_vec();
            let mut is_done = false;
            while !is_done {
                let name = format!("{:06}.sst", files.len());
                let path = folder.join(&name);
                let mut writer = SstFileWriter::create(&self.storage().options);
                writer.open(&path)?;
                let mut written = 0;
                let mut end = high.to_vec();
                is_done = true;
                while let Some((key, value)) = rows.row()? {
                    if written >= FILE_BYTES {
                        end = key.to_vec();
                        is_done = false;
                        break;
                    }
                    writer.put(key, value)?;
                    written += (key.len() + value.len()) as u64;
                    rows.advance();
                }
                writer.delete_range(&start, &end)?;
                writer.finish()?;
                let bytes = path.metadata().map_err(|source| file_error(&path, source))?.len();
                files.push(ExportedFile { name, bytes });
                start = end;
            }
        }
        Ok(files)
    }
}

impl Storage {
    /// Takes in files that were exported elsewhere, which are gone then, puts the
    /// replica they belong to on record, and takes off those that go with it; all of it or
    /// nothing, on disk when this returns.
    pub fn ingest(
        &self,
        folder: &Path,
        files: &[String],
        arrival: &Arrival<'_>,
    ) -> Result<(), StorageError> {
        let Arrival { record, state, meta, buried } = arrival;
        let mut rows = BTreeMap::new();
        rows.insert(keys::applied_key(record.group), Some(state.encode().to_vec()));
        rows.insert(keys::record_key(record.group), Some(record.encode()));
        if let Some(meta) = meta {
            rows.insert(keys::meta_key(), Some(meta.to_vec()));
        }
        for (group, replica) in *buried {
            rows.insert(keys::applied_key(*group), None);
            rows.insert(keys::record_key(*group), None);
            rows.insert(keys::tombstone_key(*group), Some(replica.0.to_le_bytes().to_vec()));
        }
        let path = folder.join("record.sst");
        let mut writer = SstFileWriter::create(&self.options);
        writer.open(&path)?;
        for (key, value) in rows {
            match value {
                Some(value) => writer.put(key, value)?,
                None => writer.delete(key)?,
            }
        }
        writer.finish()?;
        let mut paths: Vec<PathBuf> = files.iter().map(|name| folder.join(name)).collect();
        paths.push(path);
        for path in &paths {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(|source| file_error(path, source))?;
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        options.set_snapshot_consistency(true);
        options.set_allow_global_seqno(true);
        options.set_allow_blocking_flush(true);
        Ok(self.db.ingest_external_file_opts(&options, paths)?)
    }
}

fn file_error(path: &Path, source: std::io::Error) -> StorageError {
    StorageError::File { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::{fs, ops::ControlFlow};

    use raft_lite::Membership;

    use super::*;
    use crate::storage::{Slot, StorageOptions, WriteSet, data_key};

    const RANGE: SlotRange = SlotRange { start: Slot(2), end: Slot(5) };

    fn open(folder: &Path) -> Arc<Storage> {
        Arc::new(Storage::open(&folder.join("state"), StorageOptions::default()).unwrap())
    }

    fn put(storage: &Storage, slot: u32, key: &str, value: &str) {
        let mut writes = WriteSet::new();
        writes.put(&data_key(Slot(slot), key.as_bytes()), value.as_bytes());
        storage.write(writes).unwrap();
    }

    fn rows(storage: &Arc<Storage>, slot: u32) -> Vec<String> {
        let mut rows = Vec::new();
        let bounds = ScanBounds::whole_slot(Slot(slot));
        ReadView::Latest(Arc::clone(storage))
            .scan(&bounds, &mut |_, value| {
                rows.push(String::from_utf8(value.to_vec()).unwrap());
                ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }

    #[test]
    fn what_is_taken_in_replaces_what_was_there_and_nothing_else() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = open(from.path());
        put(&source, 2, "a", "new");
        put(&source, 4, "z", "last");
        put(&source, 5, "a", "not exported");
        let files = Arc::new(OwnedSnapshot::new(Arc::clone(&source)));
        let files = files.export(&[RANGE], from.path()).unwrap();
        put(&source, 2, "later", "x");

        let target = open(to.path());
        put(&target, 1, "a", "stays");
        put(&target, 2, "b", "goes");
        put(&target, 3, "b", "goes");
        put(&target, 5, "a", "stays");
        for file in &files {
            fs::copy(from.path().join(&file.name), to.path().join(&file.name)).unwrap();
        }
        let record = ShardRecord {
            group: GroupId(3),
            replica: ReplicaId(9),
            name: "shard_2".into(),
            epoch: 4,
            slots: vec![RANGE],
            membership: Membership { next_replica: ReplicaId(10), ..Membership::default() },
            plugin: [1; 32],
            applied_by_snapshot: true,
            ..ShardRecord::default()
        };
        let names: Vec<String> = files.into_iter().map(|file| file.name).collect();
        let state = ApplyState::INITIAL;
        let arrival = Arrival { record: &record, state: &state, meta: None, buried: &[] };
        target.ingest(to.path(), &names, &arrival).unwrap();
        let after = |target: &Arc<Storage>| {
            assert_eq!(rows(target, 1), ["stays"]);
            assert_eq!(rows(target, 2), ["new"]);
            assert_eq!(rows(target, 3), Vec::<String>::new());
            assert_eq!(rows(target, 4), ["last"]);
            assert_eq!(rows(target, 5), ["stays"]);
            assert_eq!(target.records().unwrap(), std::slice::from_ref(&record));
        };
        after(&target);
        drop(target);
        // Without a log, only what was on disk is left: the whole of it was.
        after(&open(to.path()));
    }

    #[test]
    fn wiped_slots_are_empty_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let storage = open(folder.path());
        (1..7).for_each(|slot| put(&storage, slot, "a", "x"));
        storage.flush().unwrap();
        storage.wipe(&[RANGE]).unwrap();
        let left: Vec<usize> = (1..7).map(|slot| rows(&storage, slot).len()).collect();
        assert_eq!(left, [1, 0, 0, 0, 1, 1]);
    }
}
