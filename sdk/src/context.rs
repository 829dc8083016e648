//! What a command or a query may do: storage, and where in the log it stands.
//!
//! [`QueryContext`] is the read half; [`Context`] derefs to it and adds writing. So a function that
//! takes a `&QueryContext` serves commands and queries alike, and a query that writes does not
//! compile. Both are handles: their methods take `&self`, so that a command can write while it scans.
//!
//! Where the calls go is the matter of the backend: the ABI's imports in WebAssembly, a
//! [`native::Host`](crate::native::Host) elsewhere.

use std::cell::OnceCell;
use std::ops::Deref;

#[cfg(target_arch = "wasm32")]
use crate::imports::Backend;
#[cfg(not(target_arch = "wasm32"))]
use crate::native::Backend;
use crate::{Buffer, Random, Scan, Values};

/// Where a command stands in its shard's log, the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the entry in its shard's log; in a query, of the last entry applied.
    pub log_index: u64,
    /// Replicated time in milliseconds since 1970-01-01 UTC; never goes back.
    pub time_ms: u64,
    /// The slot the command runs in.
    pub slot: u32,
    /// Position of the command among those of its entry, from 0.
    pub position: u32,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something is broken.
    Error = 0,
    /// Something is odd.
    Warn = 1,
    /// Worth knowing.
    Info = 2,
    /// For the plugin's author.
    Debug = 3,
}

/// The read half of a [`Context`]: all that a query has. Writing with it does not compile:
///
/// ```compile_fail
/// fn answer(context: &raft_kv_sdk::QueryContext<'_>) {
///     context.put(b"key", b"value");
/// }
/// ```
pub struct QueryContext<'h> {
    backend: Backend<'h>,
    /// Fetched when first asked for, unless it came with the command.
    place: OnceCell<Place>,
}

impl<'h> QueryContext<'h> {
    pub(crate) fn new(backend: Backend<'h>, place: Option<Place>) -> Self {
        Self { backend, place: place.map_or_else(OnceCell::new, OnceCell::from) }
    }

    pub(crate) const fn backend(&self) -> &Backend<'h> {
        &self.backend
    }

    /// The value of `key`, if it has one.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Buffer> {
        let mut value = Buffer::new();
        self.get_into(key, &mut value).then_some(value)
    }

    /// Appends the value of `key` to `buffer` and says whether there is one.
    pub fn get_into(&self, key: &[u8], buffer: &mut Buffer) -> bool {
        self.backend.get(key, buffer)
    }

    /// Whether `key` has a value. Cheaper than [`get`](Self::get): the value is not moved.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.backend.contains(key)
    }

    /// The values of many keys, in the order asked, with one call of the host.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Values {
        let mut found = Buffer::new();
        self.backend.get_many(keys.iter().map(AsRef::as_ref), &mut found);
        Values::new(found)
    }

    /// A scan over the slot's keys in byte order, to be narrowed and then opened with
    /// [`rows`](Scan::rows).
    pub fn scan(&self) -> Scan<'_, 'h> {
        Scan::new(self)
    }

    /// Index of the command's entry in its shard's log; in a query, of the last entry applied.
    #[must_use]
    #[inline]
    pub fn log_index(&self) -> u64 {
        self.place().log_index
    }

    /// Replicated time in milliseconds since 1970-01-01 UTC: the same on every replica, never going
    /// back; in a query, that of the last entry applied.
    #[must_use]
    #[inline]
    pub fn time_ms(&self) -> u64 {
        self.place().time_ms
    }

    /// The slot whose keys this command sees.
    #[must_use]
    #[inline]
    pub fn slot(&self) -> u32 {
        self.place().slot
    }

    /// Position of the command among those of its entry, from 0.
    #[must_use]
    #[inline]
    pub fn position(&self) -> u32 {
        self.place().position
    }

    /// Random bytes, the same on every replica and different for every command.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.backend.seed()
    }

    /// Random numbers from the [`seed`](Self::seed), the same on every replica. Each call begins anew:
    /// a command makes one generator and hands it on.
    #[must_use]
    pub fn random(&self) -> Random {
        Random::from_seed(self.seed())
    }

    /// A line for the log of the node. Each replica writes its own; it is no part of the result.
    pub fn log(&self, level: Level, message: &str) {
        self.backend.log(level, message);
    }

    #[inline]
    fn place(&self) -> &Place {
        self.place.get_or_init(|| self.backend.place())
    }
}

/// What a command may do: everything a query may, and write.
///
/// A command sees its own writes and those of all commands before it.
pub struct Context<'h>(QueryContext<'h>);

impl<'h> Context<'h> {
    pub(crate) fn new(backend: Backend<'h>, place: Option<Place>) -> Self {
        Self(QueryContext::new(backend, place))
    }

    /// Sets `key` to `value`.
    ///
    /// A key longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN) or a value longer than
    /// [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN) ends the command as a `bad call`.
    #[inline]
    pub fn put(&self, key: &[u8], value: &[u8]) {
        self.backend().put(key, value);
    }

    /// Removes `key`; nothing happens if it has no value.
    #[inline]
    pub fn delete(&self, key: &[u8]) {
        self.backend().delete(key);
    }
}

impl<'h> Deref for Context<'h> {
    type Target = QueryContext<'h>;

    fn deref(&self) -> &QueryContext<'h> {
        &self.0
    }
}
