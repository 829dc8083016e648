//! Reading a fixed state of the database.
//!
//! RocksDB's snapshots and iterators borrow the database; a plugin's storage
//! must own what it reads. These types keep the database alive beside them.
#![allow(unsafe_code)]

use std::{mem, sync::Arc};

use raft_lite::GroupId;
use rocksdb::{DBRawIterator, ReadOptions, Snapshot};

use super::{
    db::{Storage, StorageError},
    keys,
    overlay::{RowSink, ScanBounds},
    record::{ApplyState, ShardRecord},
};

/// The state of the database at one moment.
pub struct OwnedSnapshot {
    // Declared before `storage`, so dropped before it.
    snapshot: Snapshot<'static>,
    storage: Arc<Storage>,
}

impl OwnedSnapshot {
    /// The state now.
    pub fn new(storage: Arc<Storage>) -> Self {
        let snapshot = storage.db.snapshot();
        // SAFETY: the snapshot borrows the database within `storage`, which lives
        // behind an `Arc` that this value holds for as long as the snapshot, and
        // so neither moves nor is dropped before it.
        let snapshot = unsafe { mem::transmute::<Snapshot<'_>, Snapshot<'static>>(snapshot) };
        OwnedSnapshot { snapshot, storage }
    }
}

impl OwnedSnapshot {
    /// How far a group's replica had got.
    pub fn apply_state(&self, group: GroupId) -> Result<ApplyState, StorageError> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        self.storage.read_apply_state(group, options)
    }

    /// The state of the cluster's own group, if this node had a replica of it.
    pub fn meta(&self) -> Result<Option<Vec<u8>>, StorageError> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        let found = self.storage.db.get_pinned_opt(keys::meta_key(), &options)?;
        Ok(found.map(|bytes| bytes.to_vec()))
    }

    /// A group's replica as it was on record.
    pub fn record(&self, group: GroupId) -> Result<Option<ShardRecord>, StorageError> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        let found = self.storage.db.get_pinned_opt(keys::record_key(group), &options)?;
        let decode = |bytes: rocksdb::DBPinnableSlice<'_>| ShardRecord::decode(&bytes);
        found.map(decode).transpose().map_err(|reason| StorageError::Damaged { group, reason })
    }

    /// The database below.
    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// Where reads go: the latest state, or a snapshot.
#[derive(Clone)]
pub enum ReadView {
    /// Whatever was written last. For those who are the only writers of what
    /// they read.
    Latest(Arc<Storage>),
    /// The state at one moment.
    Snapshot(Arc<OwnedSnapshot>),
}

impl ReadView {
    /// Calls `read` with the value stored under a key, or with none.
    pub(super) fn get<R>(
        &self,
        key: &[u8],
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, StorageError> {
        match self {
            ReadView::Latest(storage) => storage.get(key, read),
            ReadView::Snapshot(snapshot) => {
                let mut options = ReadOptions::default();
                options.set_snapshot(&snapshot.snapshot);
                let value = snapshot.storage.db.get_pinned_opt(key, &options)?;
                Ok(read(value.as_deref()))
            }
        }
    }

    /// An iterator over the stored keys within `bounds`.
    pub(super) fn iterate(&self, bounds: &ScanBounds) -> OwnedIterator {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(bounds.start.as_slice());
        options.set_iterate_upper_bound(bounds.end.as_slice());
        let (storage, snapshot) = match self {
            ReadView::Latest(storage) => (storage, None),
            ReadView::Snapshot(snapshot) => {
                options.set_snapshot(&snapshot.snapshot);
                (&snapshot.storage, Some(Arc::clone(snapshot)))
            }
        };
        let iterator = storage.db.raw_iterator_opt(options);
        // SAFETY: the iterator borrows the database within `storage`, which lives
        // behind an `Arc` that the returned value holds for as long as it. The
        // snapshot, if any, is kept alive in the same way.
        let iterator =
            unsafe { mem::transmute::<DBRawIterator<'_>, DBRawIterator<'static>>(iterator) };
        let mut iterator = OwnedIterator {
            iterator,
            reverse: bounds.reverse,
            _snapshot: snapshot,
            _storage: Arc::clone(storage),
        };
        iterator.rewind();
        iterator
    }

    /// Offers the rows within `bounds`, in order, until `row` breaks.
    pub fn scan(&self, bounds: &ScanBounds, row: &mut RowSink<'_>) -> Result<(), StorageError> {
        let mut iterator = self.iterate(bounds);
        while let Some((key, value)) = iterator.row()? {
            if row(key, value).is_break() {
                break;
            }
            iterator.advance();
        }
        Ok(())
    }
}

/// An iterator over stored keys, in either direction.
pub struct OwnedIterator {
    // Declared before what it borrows from, so dropped before it.
    iterator: DBRawIterator<'static>,
    reverse: bool,
    _snapshot: Option<Arc<OwnedSnapshot>>,
    _storage: Arc<Storage>,
}

/// A stored key and its value.
pub(super) type Row<'a> = (&'a [u8], &'a [u8]);

impl OwnedIterator {
    fn rewind(&mut self) {
        if self.reverse {
            self.iterator.seek_to_last();
        } else {
            self.iterator.seek_to_first();
        }
    }

    /// The row the iterator stands at, if any is left.
    pub(super) fn row(&self) -> Result<Option<Row<'_>>, StorageError> {
        match self.iterator.item() {
            Some(row) => Ok(Some(row)),
            None => {
                self.iterator.status()?;
                Ok(None)
            }
        }
    }

    pub(super) fn advance(&mut self) {
        if self.reverse {
            self.iterator.prev();
        } else {
            self.iterator.next();
        }
    }
}
