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
    sync::Arc,
    vec,
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    db::{StorageError, WriteSet},
    keys::{self, DATA_PREFIX_LEN, Slot, SlotRange},
    view::{OwnedIterator, ReadView},
};

/// Takes the next row, or breaks to leave it. Keys are stored keys in
/// [`ReadView::scan`], the plugin's in [`Overlay::scan_next`].
pub type RowSink<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A key or a value. Shared, so that a command's many scans of its many writes hold them once.
type Shared = Arc<[u8]>;
/// A value that was set, or the mark of one that was removed.
type Write = Option<Shared>;
type Layer = BTreeMap<Shared, Write>;

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

    /// Everything that is stored in a range of slots.
    pub(super) fn whole_range(range: SlotRange) -> Self {
        let [start, end] = keys::range_bounds(range);
        ScanBounds { start: start.to_vec(), end: end.to_vec(), reverse: false }
    }

    /// Everything that is stored in a slot, what the host keeps there included.
    pub fn whole_slot(slot: Slot) -> Self {
        let [start, end] = keys::slot_bounds(slot);
        ScanBounds { start: start.to_vec(), end: end.to_vec(), reverse: false }
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

/// A scan in progress: the stored rows, the batch layer's, which do not change
/// while a command runs, and the command layer's as they were at its opening.
struct OverlayScan {
    bounds: ScanBounds,
    stored: OwnedIterator,
    command: Peekable<vec::IntoIter<(Shared, Write)>>,
    /// The stored key taken last; empty before the first.
    last: Vec<u8>,
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
    /// Returns how many rows of the command's own writes were copied for that.
    pub fn scan_open(&mut self, id: u8, start: &[u8], end: Option<&[u8]>, reverse: bool) -> usize {
        let bounds = ScanBounds::new(self.slot, start, end, reverse);
        let rows = layer_range(&self.command, &bounds.start, &bounds.end);
        let mut command: Vec<_> = rows.map(|(k, w)| (k.clone(), w.clone())).collect();
        if reverse {
            command.reverse();
        }
        let copied = command.len();
        let scan = OverlayScan {
            stored: self.view.iterate(&bounds),
            command: command.into_iter().peekable(),
            last: Vec::new(),
            bounds,
        };
        self.scans.insert(id, scan);
        copied
    }

    /// Offers rows of a scan in order until `row` breaks; the row at which it
    /// broke comes first the next time. A scan that is not open has no rows.
    pub fn scan_next(&mut self, id: u8, row: &mut RowSink<'_>) -> Result<(), StorageError> {
        match self.scans.get_mut(&id) {
            Some(scan) => scan.next(&self.batch, row),
            None => Ok(()),
        }
    }

    /// Closes a scan.
    pub fn scan_close(&mut self, id: u8) {
        self.scans.remove(&id);
    }

    /// How many rows of a slot the sealed commands have written, and their bytes.
    pub fn written(&self, slot: Slot) -> (u64, u64) {
        let [start, end] = keys::slot_bounds(slot);
        let rows = layer_range(&self.batch, &start, &end);
        rows.fold((0, 0), |(rows, bytes), (key, write)| {
            let value = write.as_ref().map_or(0, |value| value.len());
            (rows + 1, bytes + (key.len() + value) as u64)
        })
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
    /// Merges the three sources; of rows with the same key the topmost layer's
    /// counts.
    fn next(&mut self, batch: &Layer, row: &mut RowSink<'_>) -> Result<(), StorageError> {
        loop {
            let mut last = mem::take(&mut self.last);
            let in_batch = self.batch_row(batch, &last);
            let stored = self.stored.row()?.map(|(key, value)| (key, Some(value)));
            let command = self.command.peek().map(|(key, write)| (&**key, write.as_deref()));
            let mut first: Option<(&[u8], Option<&[u8]>)> = None;
            for candidate in [command, in_batch, stored].into_iter().flatten() {
                let is_first = first.is_none_or(|(key, _)| {
                    let order = candidate.0.cmp(key);
                    if self.bounds.reverse { order.is_gt() } else { order.is_lt() }
                });
                if is_first {
                    first = Some(candidate);
                }
            }
            let Some((key, value)) = first else { return Ok(()) };
            if let Some(value) = value
                && row(&key[DATA_PREFIX_LEN..], value).is_break()
            {
                self.last = last;
                return Ok(());
            }
            last.clear();
            last.extend_from_slice(key);
            if stored.is_some_and(|(key, _)| key == last) {
                self.stored.advance();
            }
            self.command.next_if(|(key, _)| **key == *last);
            self.last = last;
        }
    }

    /// The batch layer's next row after `last`.
    fn batch_row<'a>(&self, batch: &'a Layer, last: &[u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let ScanBounds { start, end, reverse } = &self.bounds;
        if batch.is_empty() || start >= end {
            return None;
        }
        let (low, high) = match (last.is_empty(), *reverse) {
            (true, _) => (Bound::Included(&**start), Bound::Excluded(&**end)),
            (false, false) => (Bound::Excluded(last), Bound::Excluded(&**end)),
            (false, true) => (Bound::Included(&**start), Bound::Excluded(last)),
        };
        let mut range = batch.range::<[u8], _>((low, high));
        let found = if *reverse { range.next_back() } else { range.next() };
        found.map(|(key, write)| (&**key, write.as_deref()))
    }
}

/// A layer's rows with `start <= key < end`; none if `end` lies before `start`.
fn layer_range<'a>(
    layer: &'a Layer,
    start: &[u8],
    end: &[u8],
) -> impl Iterator<Item = (&'a Shared, &'a Write)> + use<'a> {
    let bounds = (Bound::Included(start), Bound::Excluded(end));
    (start < end).then(|| layer.range::<[u8], _>(bounds)).into_iter().flatten()
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
