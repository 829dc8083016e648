//! The storage that commands see, as the sandbox asks for it. The sandbox implements none.

use std::any::Any;
use std::ops::ControlFlow;

use super::error::StorageError;

/// Names one of a command's open scans: 0 to 15, given out by the executor, free again after
/// [`PluginStorage::scan_close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanId(pub u8);

/// The keys that a scan runs over, and which way.
#[derive(Clone, Copy, Debug)]
pub struct ScanRange<'a> {
    /// The first key.
    pub start: &'a [u8],
    /// The first key beyond, or none for the end of the slot. May lie before `start`: no keys then.
    pub end: Option<&'a [u8]>,
    /// From the last key to the first.
    pub reverse: bool,
}

/// Takes the next row of a scan, or breaks to leave it for the next time.
pub type RowFn<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// One shard's storage as commands see it. Keys are the plugin's own.
///
/// Two layers lie over the stored state: the batch layer with the writes of all sealed commands,
/// and on it the running command's layer.
///
/// - Between [`begin`](Self::begin) and [`seal`](Self::seal) or [`discard`](Self::discard) exactly
///   one command runs, and everything it touches lies in its slot.
/// - It reads its own writes and those of every command sealed before it.
/// - What it reads is a function of the state and the sealed commands alone: no caching that shows,
///   no dependence on how the commands were batched.
/// - `discard` leaves no trace. The same command may then begin again.
/// - The executor closes a command's scans before it seals or discards it.
///
/// An error is a failure of this node: the executor gives up, the caller stops the replica.
///
/// An instance owns the storage while a batch runs and gives it back afterwards. Its caller gets its
/// own type back by `let any: Box<dyn Any> = outcome.storage` and `any.downcast()`.
pub trait PluginStorage: Any + Send {
    /// A command in `slot` starts, with an empty layer of its own.
    fn begin(&mut self, slot: u32);

    /// The running command succeeded: its layer goes into the batch layer.
    fn seal(&mut self);

    /// The running command failed: its layer is dropped.
    fn discard(&mut self);

    /// Calls `read` exactly once, with the value of `key` or with none.
    ///
    /// A callback, so that an implementation can lend a pinned block of its cache and the value is
    /// copied once, into the plugin's memory.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn get(&mut self, key: &[u8], read: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), StorageError>;

    /// Sets `key` to `value` in the command's layer.
    ///
    /// # Errors
    /// If the layer cannot take it.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StorageError>;

    /// Removes `key` in the command's layer; removing an absent key is nothing.
    ///
    /// # Errors
    /// If the layer cannot take it.
    fn delete(&mut self, key: &[u8]) -> Result<(), StorageError>;

    /// Opens a scan under an id that is not in use. It does not see writes made after this call.
    ///
    /// Returns how many rows of the running command's own writes had to be copied for that, for
    /// which the command pays: a function of the command alone.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn scan_open(&mut self, scan: ScanId, range: ScanRange<'_>) -> Result<usize, StorageError>;

    /// Offers rows in order until `row` breaks or none is left. A row at which `row` broke was not
    /// taken and comes first the next time.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn scan_next(&mut self, scan: ScanId, row: &mut RowFn<'_>) -> Result<(), StorageError>;

    /// Closes the scan; its id can be used again.
    fn scan_close(&mut self, scan: ScanId);
}

/// Stands in between batches, when an instance has no storage.
pub(super) struct Detached;

impl Detached {
    fn error() -> StorageError {
        StorageError::new("a plugin ran without storage: a defect of the host")
    }
}

impl PluginStorage for Detached {
    fn begin(&mut self, _slot: u32) {}

    fn seal(&mut self) {}

    fn discard(&mut self) {}

    fn get(&mut self, _: &[u8], _: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), StorageError> {
        Err(Detached::error())
    }

    fn put(&mut self, _: &[u8], _: &[u8]) -> Result<(), StorageError> {
        Err(Detached::error())
    }

    fn delete(&mut self, _: &[u8]) -> Result<(), StorageError> {
        Err(Detached::error())
    }

    fn scan_open(&mut self, _: ScanId, _: ScanRange<'_>) -> Result<usize, StorageError> {
        Err(Detached::error())
    }

    fn scan_next(&mut self, _: ScanId, _: &mut RowFn<'_>) -> Result<(), StorageError> {
        Err(Detached::error())
    }

    fn scan_close(&mut self, _: ScanId) {}
}
