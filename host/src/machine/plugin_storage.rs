//! The overlay as the sandbox wants it.

use crate::{
    storage::{Overlay, Slot},
    wasm::{PluginStorage, RowFn, ScanId, ScanRange, StorageError},
};

impl PluginStorage for Overlay {
    fn begin(&mut self, slot: u32) {
        Overlay::begin(self, Slot(slot));
    }

    fn seal(&mut self) {
        Overlay::seal(self);
    }

    fn discard(&mut self) {
        Overlay::discard(self);
    }

    fn get(&mut self, key: &[u8], read: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), StorageError> {
        Overlay::get(self, key, read).map_err(StorageError::new)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        Overlay::put(self, key, value);
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StorageError> {
        Overlay::delete(self, key);
        Ok(())
    }

    fn scan_open(&mut self, scan: ScanId, range: ScanRange<'_>) -> Result<usize, StorageError> {
        Ok(Overlay::scan_open(self, scan.0, range.start, range.end, range.reverse))
    }

    fn scan_next(&mut self, scan: ScanId, row: &mut RowFn<'_>) -> Result<(), StorageError> {
        Overlay::scan_next(self, scan.0, row).map_err(StorageError::new)
    }

    fn scan_close(&mut self, scan: ScanId) {
        Overlay::scan_close(self, scan.0);
    }
}
