//! The state of all shards on this node, in one RocksDB column family.
//!
//! Data, group records and applied positions are written together, without a
//! write-ahead log: the Raft log is the write-ahead log. What survives a crash
//! is therefore the state after some prefix of each group's log, and replaying
//! the log from the applied position brings the rest back.
//!
//! This module knows nothing of WebAssembly; `machine` joins the two.

mod db;
mod files;
mod folders;
mod keys;
mod overlay;
mod record;
mod slots;
mod transfer;
mod view;

pub use db::{Storage, StorageError, StorageOptions, WriteSet};
pub(crate) use files::{draft_of, folder_bytes, write_durably};
pub use folders::{SnapshotData, SnapshotFile, SnapshotFolders, fetched, folder_of};
pub use keys::{MAX_SLOTS, Slot, SlotRange, data_key, slot_of};
pub use overlay::{Overlay, RowSink, ScanBounds};
pub use record::{
    Allowance, ApplyState, Frozen, MergeId, Phase, PluginId, ShardRecord, first_replica,
    node_number,
};
pub use slots::{count, normalized, overlap, split_at, without};
pub use transfer::{Arrival, ExportedFile};
pub use view::{OwnedIterator, OwnedSnapshot, ReadView};
