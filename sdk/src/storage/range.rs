//! Scans over a collection, in the order of its keys.

use std::borrow::Borrow;
use std::marker::PhantomData;

use super::space::Space;
use super::{Key, KeyBytes, Value};
use crate::{Buffer, Failure, QueryContext, Rows, Scan};

/// A scan over a collection about to begin. Each limit narrows it.
///
/// The limits compare the first element of a tuple, or else the whole key. So `up_to(&5)` on keys
/// `(u64, String)` gives all those whose number is at most 5.
///
/// ```
/// use raft_kv_sdk::storage::Index;
/// use raft_kv_sdk::{Failure, QueryContext};
///
/// const BY_DEADLINE: Index<u64, String> = Index::new("by-deadline");
///
/// fn overdue(context: &QueryContext<'_>) -> Result<Vec<String>, Failure> {
///     let due = BY_DEADLINE.scan(context).up_to(&context.time_ms());
///     due.keys().take(10).map(|row| row.map(|(_deadline, name)| name)).collect()
/// }
/// ```
#[must_use = "a range does nothing until it is iterated over"]
pub struct Range<'c, 'h, K, V> {
    space: Space,
    scan: Scan<'c, 'h>,
    /// Why there is nothing to scan: a limit that is too long.
    failure: Option<Failure>,
    types: PhantomData<fn() -> (K, V)>,
}

impl<'c, 'h, K: Key, V: Value> Range<'c, 'h, K, V> {
    pub(super) fn new(space: Space, context: &'c QueryContext<'h>) -> Self {
        let scan = context.scan().prefix(&space.prefix());
        Self { space, scan, failure: None, types: PhantomData }
    }

    /// Only keys at or above `key`.
    pub fn from<Q: KeyBytes + ?Sized>(self, key: &Q) -> Self
    where
        K::First: Borrow<Q>,
    {
        self.narrow(key, |scan, key| scan.start(key))
    }

    /// Only keys above `key`.
    pub fn above<Q: KeyBytes + ?Sized>(self, key: &Q) -> Self
    where
        K::First: Borrow<Q>,
    {
        self.narrow(key, |scan, key| scan.start(&behind(key)))
    }

    /// Only keys below `key`.
    pub fn below<Q: KeyBytes + ?Sized>(self, key: &Q) -> Self
    where
        K::First: Borrow<Q>,
    {
        self.narrow(key, |scan, key| scan.end(key))
    }

    /// Only keys at or below `key`.
    pub fn up_to<Q: KeyBytes + ?Sized>(self, key: &Q) -> Self
    where
        K::First: Borrow<Q>,
    {
        self.narrow(key, |scan, key| scan.end(&behind(key)))
    }

    /// Only keys equal to `key`: of tuples, those with this first element.
    pub fn at<Q: KeyBytes + ?Sized>(self, key: &Q) -> Self
    where
        K::First: Borrow<Q>,
    {
        self.narrow(key, |scan, key| scan.prefix(key))
    }

    /// Only keys above the whole of `key`, as for going on where an earlier scan ended.
    pub fn after<Q: KeyBytes + ?Sized>(self, key: &Q) -> Self
    where
        K: Borrow<Q>,
    {
        self.narrow(key, |scan, key| scan.after(key))
    }

    /// From the last key to the first.
    pub fn reverse(mut self) -> Self {
        self.scan = self.scan.reverse();
        self
    }

    /// The keys without their values.
    pub fn keys(self) -> impl Iterator<Item = Result<K, Failure>> + use<'c, 'h, K, V> {
        self.into_iter().map(|entry| entry.map(|(key, _)| key))
    }

    fn narrow<Q: KeyBytes + ?Sized>(
        mut self,
        key: &Q,
        limit: impl FnOnce(Scan<'c, 'h>, &[u8]) -> Scan<'c, 'h>,
    ) -> Self {
        match self.space.key(key) {
            Ok(key) => self.scan = limit(self.scan, &key),
            Err(failure) => self.failure = Some(failure),
        }
        self
    }
}

/// The bytes behind all keys that begin with `key`. There are such, because a key begins with the
/// small byte of its kind.
fn behind(key: &[u8]) -> Buffer {
    crate::scan::successor(key).expect("a key does not begin with 0xFF")
}

impl<'c, 'h, K: Key, V: Value> IntoIterator for Range<'c, 'h, K, V> {
    type Item = Result<(K, V), Failure>;
    type IntoIter = Entries<'c, 'h, K, V>;

    /// Opens the scan. It does not see what the same command writes from here on.
    fn into_iter(self) -> Entries<'c, 'h, K, V> {
        Entries {
            prefix_len: self.space.prefix().len(),
            space: self.space,
            rows: self.failure.is_none().then(|| self.scan.rows()),
            failure: self.failure,
            types: PhantomData,
        }
    }
}

/// The keys and values of a [`Range`], one after the other. After a failure there is nothing more.
pub struct Entries<'c, 'h, K, V> {
    space: Space,
    prefix_len: usize,
    /// `None` after a failure.
    rows: Option<Rows<'c, 'h>>,
    failure: Option<Failure>,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value> Iterator for Entries<'_, '_, K, V> {
    type Item = Result<(K, V), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(failure) = self.failure.take() {
            return Some(Err(failure));
        }
        let row = self.rows.as_mut()?.next_row()?;
        let key = self.space.read_key(&row.key[self.prefix_len..]);
        let entry = key.and_then(|key| Ok((key, self.space.read_value(row.value)?)));
        if entry.is_err() {
            self.rows = None;
        }
        Some(entry)
    }
}
