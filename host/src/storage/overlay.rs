//! The writes of a batch that is being applied, over what is stored.
//!
//! Two ordered layers: the batch layer holds what sealed commands wrote, the
//! command layer what the running command wrote so far. A command reads its own
//! layer first, then the batch layer, then the database. When it is sealed its
//! layer is merged into the batch layer; when it is discarded it leaves no trace.

use std::{
    collections::BTreeMap,
    iter::Peekable,
    mem,
    ops::{Bound, ControlFlow},
    vec,
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    db::{StorageError, WriteSet},
    keys::{self, DATA_PREFIX_LEN, Slot},
    view::{OwnedIterator, ReadView},
};

/// Takes the next row, or breaks to leave it. Keys are stored keys in
/// [`ReadView::scan`], the plugin's in [`Overlay::scan_next`].
pub type RowSink<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A value that was set, or the mark of one that was removed.
type Write = Option<Box<[u8]>>;
type Layer = BTreeMap<Box<[u8]>, Write>;

/// Stored keys `start <= key < end`, and the direction.
#[derive(Clone, Debug)]
pub struct ScanBounds {
    pub(super) start: Vec<u8>,
    pub(super) end: Vec<u8>,
    pub(super) reverse: bool,
}

impl ScanBounds {
    /// The part of a slot's plugin keys from `start` on, up to `end` if given.
    pub fn new(slot: Slot, start: &[u8], end: Option<&[u8]>, reverse: bool) -> Self {
        let start = keys::data_key(slot, start);
        let end = match end {
            Some(end) => keys::data_key(slot, end).max(start.clone()),
            None => keys::data_end(slot).to_vec(),
        };
        ScanBounds { start, end, reverse }
    }
}

/// Layers of writes over a view of the database.
pub struct Overlay {
    view: ReadView,
    batch: Layer,
    command: Layer,
    slot: Slot,
    /// The stored key last looked up, kept for its allocation.
    key: Vec<u8>,
    scans: BTreeMap<u8, OverlayScan>,
    /// Hash of each sealed command's writes, in the order sealed.
    write_hashes: Vec<u64>,
}

/// A scan in progress: the stored rows and a copy of the layers' at its opening.
struct OverlayScan {
    stored: OwnedIterator,
    written: Peekable<vec::IntoIter<(Box<[u8]>, Write)>>,
    reverse: bool,
}

impl Overlay {
    /// No writes over `view`.
    pub fn new(view: ReadView) -> Self {
        Overlay {
            view,
            batch: Layer::new(),
            command: Layer::new(),
            slot: Slot(0),
            key: Vec::new(),
            scans: BTreeMap::new(),
            write_hashes: Vec::new(),
        }
    }

    /// A command begins in `slot`.
    pub fn begin(&mut self, slot: Slot) {
        self.command.clear();
        self.scans.clear();
        self.slot = slot;
    }

    /// The running command's writes count.
    pub fn seal(&mut self) {
        self.write_hashes.push(hash_layer(&self.command));
        // Not `append`: that walks the whole batch layer for each command.
        while let Some((key, write)) = self.command.pop_first() {
            self.batch.insert(key, write);
        }
    }

    /// The running command's writes are dropped. It leaves an empty write set.
    pub fn discard(&mut self) {
        self.command.clear();
    }

    /// Hashes of the write sets sealed since this was last called.
    pub fn take_write_hashes(&mut self) -> Vec<u64> {
        mem::take(&mut self.write_hashes)
    }

    /// Calls `read` with the value of a key of the running command's slot.
    pub fn get<R>(
        &mut self,
        key: &[u8],
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, StorageError> {
        self.locate(key);
        let key = self.key.as_slice();
        for layer in [&self.command, &self.batch] {
            if !layer.is_empty()
                && let Some(write) = layer.get(key)
            {
                return Ok(read(write.as_deref()));
            }
        }
        self.view.get(key, read)
    }

    /// Sets a key of the running command's slot.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, Some(value.into()));
    }

    /// Removes a key of the running command's slot.
    pub fn delete(&mut self, key: &[u8]) {
        self.write(key, None);
    }

    fn write(&mut self, key: &[u8], write: Write) {
        self.locate(key);
        self.command.insert(self.key.as_slice().into(), write);
    }

    /// Makes `self.key` the stored key of a key of the running command's slot.
    fn locate(&mut self, key: &[u8]) {
        self.key.clear();
        self.key.extend_from_slice(&keys::data_prefix(self.slot));
        self.key.extend_from_slice(key);
    }

    /// Opens a scan of the running command's slot. It does not see later writes.
    pub fn scan_open(&mut self, id: u8, start: &[u8], end: Option<&[u8]>, reverse: bool) {
        let bounds = ScanBounds::new(self.slot, start, end, reverse);
        let mut written = Layer::new();
        for layer in [&self.batch, &self.command] {
            let range =
                (Bound::Included(bounds.start.as_slice()), Bound::Excluded(bounds.end.as_slice()));
            if bounds.start < bounds.end {
                written.extend(layer.range::<[u8], _>(range).map(|(k, w)| (k.clone(), w.clone())));
            }
        }
        let mut written: Vec<_> = written.into_iter().collect();
        if reverse {
            written.reverse();
        }
        let stored = self.view.iterate(&bounds);
        let written = written.into_iter().peekable();
        self.scans.insert(id, OverlayScan { stored, written, reverse });
    }

    /// Offers rows of a scan in order until `row` breaks; the row at which it
    /// broke comes first the next time. A scan that is not open has no rows.
    pub fn scan_next(&mut self, id: u8, row: &mut RowSink<'_>) -> Result<(), StorageError> {
        match self.scans.get_mut(&id) {
            Some(scan) => scan.next(row),
            None => Ok(()),
        }
    }

    /// Closes a scan.
    pub fn scan_close(&mut self, id: u8) {
        self.scans.remove(&id);
    }

    /// Adds the sealed commands' writes to `writes`.
    pub fn drain_into(&mut self, writes: &mut WriteSet) {
        for (key, write) in mem::take(&mut self.batch) {
            match write {
                Some(value) => writes.put(&key, &value),
                None => writes.delete(&key),
            }
        }
    }
}

impl OverlayScan {
    /// Merges stored and written rows; a written one hides the stored one.
    fn next(&mut self, row: &mut RowSink<'_>) -> Result<(), StorageError> {
        loop {
            let stored = self.stored.row()?;
            let written = self.written.peek();
            let (take_written, hides_stored) = match (stored, written) {
                (None, None) => return Ok(()),
                (Some(_), None) => (false, false),
                (None, Some(_)) => (true, false),
                (Some((stored, _)), Some((written, _))) => {
                    let order = written.as_ref().cmp(stored);
                    let order = if self.reverse { order.reverse() } else { order };
                    (order.is_le(), order.is_eq())
                }
            };
            let current = if take_written {
                written.and_then(|(key, write)| Some((key.as_ref(), write.as_deref()?)))
            } else {
                stored
            };
            if let Some((key, value)) = current
                && row(&key[DATA_PREFIX_LEN..], value).is_break()
            {
                return Ok(());
            }
            if take_written {
                self.written.next();
            }
            if !take_written || hides_stored {
                self.stored.advance();
            }
        }
    }
}

/// Hash of a write set, in key order.
fn hash_layer(layer: &Layer) -> u64 {
    layer.iter().fold(0, |hash, (key, write)| {
        let hash = xxh3_64_with_seed(key, hash);
        match write {
            Some(value) => xxh3_64_with_seed(value, hash),
            None => !hash,
        }
    })
}

#[cfg(test)]
mod tests;
