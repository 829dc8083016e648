//! RocksDB, as this program uses it: one column family, no write-ahead log.

use std::{collections::BTreeMap, path::Path};

use raft_lite::{GroupId, ReplicaId};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, Options, ReadOptions, ReadTier,
    WriteBatch, WriteOptions,
};

use super::{
    keys::{self, Slot, SlotRange},
    record::{ApplyState, ShardRecord},
};

/// The failure of the node's storage. It stops the replica it hits.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database can not be opened.
    #[error("cannot open the database in {path}: {source}")]
    Open {
        /// Its folder.
        path: String,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// A read or write failed.
    #[error("the database failed: {0}")]
    Database(#[from] rocksdb::Error),
    /// A client's session makes no sense.
    #[error("the record of a client's session is damaged: {0}")]
    Session(String),
    /// A file of a snapshot can not be written or read.
    #[error("cannot use the file {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// What was read makes no sense.
    #[error("the record of group {group} is damaged: {reason}")]
    Damaged {
        /// The group.
        group: GroupId,
        /// What is wrong with it.
        reason: String,
    },
}

/// Settings of the database.
#[derive(Clone, Copy, Debug)]
pub struct StorageOptions {
    /// Size of one memtable; a structural entry waits for it to be flushed.
    pub memtable_bytes: usize,
    /// Size of the cache of uncompressed blocks.
    pub block_cache_bytes: usize,
}

impl Default for StorageOptions {
    fn default() -> Self {
        StorageOptions { memtable_bytes: 32 << 20, block_cache_bytes: 256 << 20 }
    }
}

/// Takes a row.
type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StorageError> + 'a;

/// The node's database.
pub struct Storage {
    pub(super) db: DB,
    pub(super) options: Options,
    write_options: WriteOptions,
}

impl Storage {
    /// Opens the database in `path`, making it if there is none.
    pub fn open(path: &Path, options: StorageOptions) -> Result<Self, StorageError> {
        let options = database_options(options);
        let db = DB::open(&options, path)
            .map_err(|source| StorageError::Open { path: path.display().to_string(), source })?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        Ok(Storage { db, options, write_options })
    }

    /// Calls `read` with the value stored under a key, or with none.
    pub(super) fn get<R>(
        &self,
        key: &[u8],
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, StorageError> {
        let value = self.db.get_pinned(key)?;
        Ok(read(value.as_deref()))
    }

    /// Writes everything in `writes`, or nothing.
    pub fn write(&self, writes: WriteSet) -> Result<(), StorageError> {
        Ok(self.db.write_opt(writes.batch, &self.write_options)?)
    }

    /// Brings everything written so far to the disk.
    pub fn flush(&self) -> Result<(), StorageError> {
        Ok(self.db.flush()?)
    }

    /// Begins to bring what was written so far to the disk, and does not wait.
    pub fn start_flush(&self) -> Result<(), StorageError> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        Ok(self.db.flush_opt(&options)?)
    }

    /// All replicas on record, in the order of their groups.
    pub fn records(&self) -> Result<Vec<ShardRecord>, StorageError> {
        let mut records = Vec::new();
        self.each(keys::record_bounds(), &mut |key, value| {
            let record = ShardRecord::decode(value).map_err(|reason| {
                let group = keys::group_of(key).unwrap_or_default();
                StorageError::Damaged { group, reason }
            })?;
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    }

    /// The newest replica of each group that was removed from this node.
    pub fn tombstones(&self) -> Result<BTreeMap<GroupId, ReplicaId>, StorageError> {
        let mut tombstones = BTreeMap::new();
        self.each(keys::tombstone_bounds(), &mut |key, value| {
            let group = keys::group_of(key).unwrap_or_default();
            let replica = value.try_into().map(u64::from_le_bytes);
            let strange =
                |_| StorageError::Damaged { group, reason: "of a removed replica".into() };
            tombstones.insert(group, ReplicaId(replica.map_err(strange)?));
            Ok(())
        })?;
        Ok(tombstones)
    }

    /// Whether the cluster's first shards were ever put on record here.
    pub fn is_founded(&self) -> Result<bool, StorageError> {
        self.get(&keys::founded_key(), |value| value.is_some())
    }

    /// The state of the cluster's own group, if this node has a replica of it.
    pub fn meta(&self) -> Result<Option<Vec<u8>>, StorageError> {
        self.get(&keys::meta_key(), |value| value.map(<[u8]>::to_vec))
    }

    /// Bytes that the rows of these slots take up on disk, roughly.
    pub fn approximate_bytes(&self, ranges: &[SlotRange]) -> u64 {
        let bounds: Vec<[[u8; 2]; 2]> = ranges.iter().map(|r| keys::range_bounds(*r)).collect();
        let ranges: Vec<rocksdb::Range<'_>> =
            bounds.iter().map(|[low, high]| rocksdb::Range::new(low, high)).collect();
        self.db.get_approximate_sizes(&ranges).into_iter().sum()
    }

    /// Calls `row` with each row within bounds, in order.
    fn each(&self, [low, high]: [[u8; 3]; 2], row: &mut EachRow<'_>) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(low);
        options.set_iterate_upper_bound(high);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item() {
            row(key, value)?;
            iterator.next();
        }
        Ok(iterator.status()?)
    }

    /// Removes everything that is stored in these slots. Whoever owned them must be
    /// off the record, on the disk: files are deleted first, and with them what
    /// deletes older rows.
    pub fn wipe(&self, ranges: &[SlotRange]) -> Result<(), StorageError> {
        let mut writes = WriteSet::new();
        for range in ranges.iter().filter(|range| range.start < range.end) {
            let [low, high] = keys::range_bounds(*range);
            self.db.delete_file_in_range(low, high)?;
            writes.batch.delete_range(low, high);
        }
        self.write(writes)
    }

    /// How far a group's replica got.
    pub fn apply_state(&self, group: GroupId) -> Result<ApplyState, StorageError> {
        self.read_apply_state(group, ReadOptions::default())
    }

    /// How far a group's replica got, of what would survive a crash now.
    pub fn persisted_apply_state(&self, group: GroupId) -> Result<ApplyState, StorageError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        self.read_apply_state(group, options)
    }

    pub(super) fn read_apply_state(
        &self,
        group: GroupId,
        options: ReadOptions,
    ) -> Result<ApplyState, StorageError> {
        match self.db.get_pinned_opt(keys::applied_key(group), &options)? {
            None => Ok(ApplyState::INITIAL),
            Some(bytes) => ApplyState::decode(&bytes).ok_or_else(|| StorageError::Damaged {
                group,
                reason: format!("its applied position has {} bytes", bytes.len()),
            }),
        }
    }

    /// Calls `read` with a session's row in a slot, or with none.
    pub fn session<R>(
        &self,
        slot: Slot,
        session: u64,
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, StorageError> {
        self.get(&keys::session_key(slot, session), read)
    }

    /// Calls `read` with each session in a slot and its row.
    pub fn sessions(
        &self,
        slot: Slot,
        read: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(), StorageError> {
        let [low, high] = keys::session_bounds(slot);
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(low);
        options.set_iterate_upper_bound(high);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek_to_first();
        while let (Some(key), Some(row)) = (iterator.key(), iterator.value()) {
            let session = key.get(low.len()..).and_then(|session| session.try_into().ok());
            let strange = || StorageError::Session("its key is too short".to_owned());
            read(u64::from_be_bytes(session.ok_or_else(strange)?), row);
            iterator.next();
        }
        Ok(iterator.status()?)
    }

    /// A property of RocksDB's, as a number.
    fn property(&self, name: &str) -> u64 {
        self.db.property_int_value(name).ok().flatten().unwrap_or(0)
    }

    /// Bytes of memory in memtables and the block cache.
    pub fn memory_bytes(&self) -> u64 {
        self.property("rocksdb.cur-size-all-mem-tables")
            + self.property("rocksdb.block-cache-usage")
    }
}

/// Changes to be written as one.
#[derive(Default)]
pub struct WriteSet {
    batch: WriteBatch,
}

impl WriteSet {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> u64 {
        self.batch.size_in_bytes() as u64
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put(key, value);
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        self.batch.delete(key);
    }

    /// Notes how far a group's replica got.
    pub fn put_apply_state(&mut self, group: GroupId, state: &ApplyState) {
        self.put(&keys::applied_key(group), &state.encode());
    }

    /// Sets a session's row in a slot.
    pub fn put_session(&mut self, slot: Slot, session: u64, row: &[u8]) {
        self.put(&keys::session_key(slot, session), row);
    }

    /// Removes a session's row in a slot.
    pub fn delete_session(&mut self, slot: Slot, session: u64) {
        self.delete(&keys::session_key(slot, session));
    }

    /// Notes that the cluster's first shards were put on record.
    pub fn put_founded(&mut self) {
        self.put(&keys::founded_key(), &[]);
    }

    /// Takes a replica off the record, for good.
    pub fn bury(&mut self, group: GroupId, replica: ReplicaId) {
        self.put(&keys::tombstone_key(group), &replica.0.to_le_bytes());
        self.delete(&keys::record_key(group));
        self.delete(&keys::applied_key(group));
    }

    /// Sets the state of the cluster's own group.
    pub fn put_meta(&mut self, state: &[u8]) {
        self.put(&keys::meta_key(), state);
    }

    /// Removes the state of the cluster's own group.
    pub fn delete_meta(&mut self) {
        self.delete(&keys::meta_key());
    }

    /// Puts a replica on record.
    pub fn put_record(&mut self, record: &ShardRecord) {
        self.put(&keys::record_key(record.group), &record.encode());
    }
}

fn database_options(settings: StorageOptions) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(settings.block_cache_bytes));
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(settings.memtable_bytes);
    options.set_max_write_buffer_number(4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(1024);
    // Everything is in one column family, and there is no write-ahead log whose
    // order would have to be kept with others'.
    options.set_atomic_flush(false);
    options
}

#[cfg(test)]
mod tests {
    use raft_lite::{Index, LogPosition, Term};

    use super::*;

    fn state(index: u64) -> ApplyState {
        let applied = LogPosition { index: Index(index), term: Term(6) };
        ApplyState { applied, time_ms: 1, state_hash: 2 }
    }

    #[test]
    fn only_what_was_flushed_counts_as_persisted() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path(), StorageOptions::default()).unwrap();
        let group = GroupId(1);
        let write = |index| {
            let mut writes = WriteSet::new();
            writes.put_apply_state(group, &state(index));
            storage.write(writes).unwrap();
        };
        write(10);
        assert_eq!(storage.apply_state(group).unwrap(), state(10));
        assert_eq!(storage.persisted_apply_state(group).unwrap(), ApplyState::INITIAL);
        storage.flush().unwrap();
        write(11);
        assert_eq!(storage.apply_state(group).unwrap(), state(11));
        assert_eq!(storage.persisted_apply_state(group).unwrap(), state(10));
    }
}
