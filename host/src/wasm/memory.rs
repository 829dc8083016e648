//! A storage in memory: for trying plugins without a node.

use std::{any::Any, collections::BTreeMap, ops::Bound};

use super::{
    error::StorageError,
    storage::{PluginStorage, RowFn, ScanId, ScanRange},
};

type Row = (Vec<u8>, Vec<u8>);

/// Keys written by a command, each with its new value, or none if it was removed.
pub type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// State, the running command's layer over it, and what each command wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStorage {
    /// Stored keys begin with their slot.
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    slot: u32,
    layer: Writes,
    /// Rows still to come of each open scan, the next one last.
    scans: BTreeMap<u8, Vec<Row>>,
    /// What each command that was sealed wrote, in order.
    sealed: Vec<Writes>,
}

impl MemoryStorage {
    /// The storage that an executor gave back.
    pub fn back(storage: Box<dyn PluginStorage>) -> Option<MemoryStorage> {
        let any: Box<dyn Any> = storage;
        any.downcast::<MemoryStorage>().ok().map(|storage| *storage)
    }

    /// What each command that succeeded since the last call wrote, in order.
    pub fn take_writes(&mut self) -> Vec<Writes> {
        std::mem::take(&mut self.sealed)
    }

    /// All rows stored, their keys behind the slot (4 bytes, big endian).
    pub fn rows(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.state
    }

    /// Sets a row or removes it, without a command.
    pub fn set(&mut self, slot: u32, key: &[u8], value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.state.insert(stored(slot, key), value),
            None => self.state.remove(&stored(slot, key)),
        };
    }

    /// Stores a row without a command.
    pub fn insert(&mut self, slot: u32, key: &[u8], value: &[u8]) {
        self.state.insert(stored(slot, key), value.to_vec());
    }

    fn stored(&self, key: &[u8]) -> Vec<u8> {
        stored(self.slot, key)
    }

    /// The rows of the slot within a range, with the running command's writes.
    fn rows_within(&self, range: &ScanRange<'_>) -> Vec<Row> {
        let start = self.stored(range.start);
        let end = range.end.map_or(Bound::Unbounded, |end| Bound::Excluded(self.stored(end)));
        if matches!(&end, Bound::Excluded(end) if *end <= start) {
            return Vec::new();
        }
        let within = (Bound::Included(start), end);
        let slot = self.slot.to_be_bytes();
        let of_slot = |key: &&Vec<u8>| key.starts_with(&slot);
        let mut rows: BTreeMap<_, _> = self
            .state
            .range(within.clone())
            .take_while(|(key, _)| of_slot(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        for (key, value) in self.layer.range(within) {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        rows.into_iter().map(|(key, value)| (key[4..].to_vec(), value)).collect()
    }
}

fn stored(slot: u32, key: &[u8]) -> Vec<u8> {
    [&slot.to_be_bytes()[..], key].concat()
}

impl PluginStorage for MemoryStorage {
    fn begin(&mut self, slot: u32) {
        self.slot = slot;
    }

    fn seal(&mut self) {
        let layer = std::mem::take(&mut self.layer);
        for (key, value) in &layer {
            match value {
                Some(value) => self.state.insert(key.clone(), value.clone()),
                None => self.state.remove(key),
            };
        }
        self.sealed.push(layer);
    }

    fn discard(&mut self) {
        self.layer.clear();
    }

    fn get(&mut self, key: &[u8], read: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), StorageError> {
        let key = self.stored(key);
        match self.layer.get(&key) {
            Some(written) => read(written.as_deref()),
            None => read(self.state.get(&key).map(Vec::as_slice)),
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.layer.insert(self.stored(key), Some(value.to_vec()));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StorageError> {
        self.layer.insert(self.stored(key), None);
        Ok(())
    }

    fn scan_open(&mut self, scan: ScanId, range: ScanRange<'_>) -> Result<usize, StorageError> {
        let mut rows = self.rows_within(&range);
        if !range.reverse {
            rows.reverse();
        }
        self.scans.insert(scan.0, rows);
        let in_range = |key: &[u8]| key >= range.start && range.end.is_none_or(|end| key < end);
        Ok(self.layer.keys().filter(|key| in_range(&key[4..])).count())
    }

    fn scan_next(&mut self, scan: ScanId, row: &mut RowFn<'_>) -> Result<(), StorageError> {
        let rows = self.scans.entry(scan.0).or_default();
        while let Some((key, value)) = rows.last() {
            if row(key, value).is_break() {
                return Ok(());
            }
            rows.pop();
        }
        Ok(())
    }

    fn scan_close(&mut self, scan: ScanId) {
        self.scans.remove(&scan.0);
    }
}
