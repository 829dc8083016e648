//! Running a plugin natively, on a host of one's own: how plugins are tested without a cluster, and
//! how the cost of WebAssembly is measured.

use std::cell::RefCell;

use crate::values::ABSENT;
use crate::{
    Context, Failure, Level, Migrate, Migration, Place, QueryContext, Response, ScanRange,
    StateMachine,
};

/// What a command is given when it runs natively: the ABI's imports as a trait.
///
/// The methods cannot fail, because a plugin could do nothing about it. A host whose storage fails
/// remembers that, answers anything, and throws the outcome of the command away afterwards.
pub trait Host {
    /// Where the running command stands in the log.
    fn place(&self) -> Place;

    /// Random bytes, different for every command.
    fn seed(&self) -> [u8; 32];

    /// Appends the value of `key` to `value` and says whether there is one.
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> bool;

    /// Whether `key` has a value.
    fn contains(&mut self, key: &[u8]) -> bool {
        self.get(key, &mut Vec::new())
    }

    /// Sets `key` to `value`.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key`; nothing happens if it has no value.
    fn delete(&mut self, key: &[u8]);

    /// Opens a scan, which does not see later writes of the same command, and returns its handle.
    /// The range is never empty: `start < end`.
    fn scan_open(&mut self, range: &ScanRange<'_>) -> u32;

    /// Appends whole rows in the ABI's layout (see [`append_row`]), of at most `max_bytes` in all but
    /// at least one; none at the end of the scan.
    fn scan_next(&mut self, handle: u32, max_bytes: usize, rows: &mut Vec<u8>);

    /// Closes a scan.
    fn scan_close(&mut self, handle: u32);

    /// A line for the log of the node.
    fn log(&mut self, level: Level, message: &str);
}

/// Runs one command. What it wrote is the host's to keep or, if it failed, to drop.
pub fn apply<M: StateMachine>(host: &mut dyn Host, command: &[u8]) -> Result<Response, Failure> {
    M::apply(&Context::new(Backend::new(host), None), command)
}

/// Answers one query. It does not call [`Host::put`] or [`Host::delete`].
pub fn query<M: StateMachine>(host: &mut dyn Host, request: &[u8]) -> Result<Response, Failure> {
    M::query(&QueryContext::new(Backend::new(host), None), request)
}

/// Carries a slot over. What it wrote is the host's to keep or, if it failed, to drop.
pub fn migrate<M: Migrate>(
    host: &mut dyn Host,
    migration: &Migration<'_>,
) -> Result<Response, Failure> {
    M::migrate(&Context::new(Backend::new(host), None), migration)?;
    Ok(Response::empty())
}

/// Appends one row in the layout of [`Host::scan_next`]: `u32` key length, `u32` value length, both
/// little-endian, key, value.
pub fn append_row(rows: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    rows.reserve(row_len(key, value));
    rows.extend_from_slice(&len_prefix(key));
    rows.extend_from_slice(&len_prefix(value));
    rows.extend_from_slice(key);
    rows.extend_from_slice(value);
}

/// Length of a row in the layout of [`Host::scan_next`].
#[must_use]
pub const fn row_len(key: &[u8], value: &[u8]) -> usize {
    8 + key.len() + value.len()
}

fn len_prefix(bytes: &[u8]) -> [u8; 4] {
    let len = u32::try_from(bytes.len()).expect("keys and values are far shorter than 4 GiB");
    len.to_le_bytes()
}

/// The host, as a context sees it. The cell lets a command write while it scans; no borrow outlives
/// the call it is made for.
pub(crate) struct Backend<'h>(RefCell<&'h mut dyn Host>);

impl<'h> Backend<'h> {
    pub(crate) fn new(host: &'h mut dyn Host) -> Self {
        Self(RefCell::new(host))
    }

    pub(crate) fn get(&self, key: &[u8], value: &mut Vec<u8>) -> bool {
        self.0.borrow_mut().get(key, value)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.0.borrow_mut().contains(key)
    }

    pub(crate) fn get_many<'k>(&self, keys: impl Iterator<Item = &'k [u8]>, values: &mut Vec<u8>) {
        let mut host = self.0.borrow_mut();
        for key in keys {
            let at = values.len();
            values.extend_from_slice(&ABSENT.to_le_bytes());
            if host.get(key, values) {
                let len = len_prefix(&values[at + 4..]);
                values[at..at + 4].copy_from_slice(&len);
            }
        }
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8]) {
        self.0.borrow_mut().put(key, value);
    }

    pub(crate) fn delete(&self, key: &[u8]) {
        self.0.borrow_mut().delete(key);
    }

    pub(crate) fn scan_open(&self, range: &ScanRange<'_>) -> u32 {
        self.0.borrow_mut().scan_open(range)
    }

    pub(crate) fn scan_next(&self, handle: u32, max_bytes: usize, rows: &mut Vec<u8>) {
        self.0.borrow_mut().scan_next(handle, max_bytes, rows);
    }

    pub(crate) fn scan_close(&self, handle: u32) {
        self.0.borrow_mut().scan_close(handle);
    }

    pub(crate) fn place(&self) -> Place {
        self.0.borrow().place()
    }

    pub(crate) fn seed(&self) -> [u8; 32] {
        self.0.borrow().seed()
    }

    pub(crate) fn log(&self, level: Level, message: &str) {
        self.0.borrow_mut().log(level, message);
    }
}
