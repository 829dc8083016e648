//! Scans: a [`Scan`] says which rows, [`Rows`] walks through them.
//!
//! Rows cross from the host to the plugin many at a time, into one buffer. The first crossing asks
//! for few and each further one for twice as many, so that a scan that stops early reads little
//! ahead, and a long one crosses seldom.

use std::cmp::Ordering;

use crate::{Buffer, MAX_KEY_LEN, QueryContext};

/// Bytes asked for at the first crossing.
const FIRST_CHUNK: usize = 4 * 1024;

/// Most bytes asked for at one crossing, unless a single row has more.
const LAST_CHUNK: usize = 64 * 1024;

/// Bytes of a row before its key: the lengths of key and value.
const ROW_HEADER: usize = 8;

/// A scan about to begin. Each limit narrows it: `scan().prefix(p).after(k)` gives the keys that
/// begin with `p` and come after `k`.
#[must_use = "a scan does nothing until `rows` opens it"]
pub struct Scan<'c, 'h> {
    context: &'c QueryContext<'h>,
    start: Buffer,
    end: Option<Buffer>,
    reverse: bool,
}

impl<'c, 'h> Scan<'c, 'h> {
    pub(crate) fn new(context: &'c QueryContext<'h>) -> Self {
        Self { context, start: Buffer::new(), end: None, reverse: false }
    }

    /// Only keys that begin with `prefix`.
    pub fn prefix(self, prefix: &[u8]) -> Self {
        let scan = self.start(prefix);
        match successor(prefix) {
            Some(end) => scan.end(&end),
            None => scan,
        }
    }

    /// Only keys at or after `key`.
    pub fn start(mut self, key: &[u8]) -> Self {
        if key > self.start.as_slice() {
            self.start.clear();
            self.start.extend_from_slice(key);
        }
        self
    }

    /// Only keys after `key`, as for going on where an earlier scan ended.
    pub fn after(self, key: &[u8]) -> Self {
        if key.len() < MAX_KEY_LEN {
            let mut next = Buffer::from(key);
            next.push(0);
            return self.start(&next);
        }
        // No key is longer, so that the next one cannot begin with this one.
        match successor(key) {
            Some(next) => self.start(&next),
            None => self.end(&[]),
        }
    }

    /// Only keys before `key`.
    pub fn end(mut self, key: &[u8]) -> Self {
        if self.end.as_ref().is_none_or(|end| key < end.as_slice()) {
            self.end = Some(key.into());
        }
        self
    }

    /// From the last row to the first.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Opens the scan. It does not see what the same command writes from here on.
    ///
    /// At most [`MAX_OPEN_SCANS`](crate::MAX_OPEN_SCANS) can be open at once; one closes when its
    /// [`Rows`] came to their end or were dropped.
    #[must_use]
    pub fn rows(self) -> Rows<'c, 'h> {
        let empty = self.end.as_ref().is_some_and(|end| self.start.cmp(end) != Ordering::Less);
        let handle = (!empty).then(|| {
            self.context.backend().scan_open(&ScanRange {
                start: &self.start,
                end: self.end.as_deref().map(Vec::as_slice),
                reverse: self.reverse,
            })
        });
        Rows { context: self.context, handle, chunk: Buffer::new(), at: 0, ask: FIRST_CHUNK }
    }
}

/// Which rows a scan covers, as the host is told.
#[derive(Clone, Copy, Debug)]
pub struct ScanRange<'a> {
    /// First key, included.
    pub start: &'a [u8],
    /// Last key, excluded; `None` for no upper bound.
    pub end: Option<&'a [u8]>,
    /// From the last row to the first.
    pub reverse: bool,
}

/// One row of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// The rows of an open scan.
///
/// Not an `Iterator`, because a row lives in the buffer that the next ones will be read into:
///
/// ```
/// # use raft_kv_sdk::QueryContext;
/// fn count(context: &QueryContext<'_>, prefix: &[u8]) -> u64 {
///     let mut count = 0;
///     let mut rows = context.scan().prefix(prefix).rows();
///     while let Some(_row) = rows.next_row() {
///         count += 1;
///     }
///     count
/// }
/// ```
pub struct Rows<'c, 'h> {
    context: &'c QueryContext<'h>,
    /// `None` when there is nothing more to come.
    handle: Option<u32>,
    /// Whole rows, each `u32` key length, `u32` value length, key, value.
    chunk: Buffer,
    /// Where in `chunk` the next row begins.
    at: usize,
    /// How many bytes to ask for next.
    ask: usize,
}

impl Rows<'_, '_> {
    /// The next row, or `None` at the end.
    pub fn next_row(&mut self) -> Option<Row<'_>> {
        if self.at == self.chunk.len() && !self.refill() {
            return None;
        }
        let key_at = self.at + ROW_HEADER;
        let value_at = key_at + self.len_at(self.at);
        self.at = value_at + self.len_at(self.at + 4);
        Some(Row { key: &self.chunk[key_at..value_at], value: &self.chunk[value_at..self.at] })
    }

    fn len_at(&self, at: usize) -> usize {
        let bytes = self.chunk[at..].first_chunk().expect("the host gives whole rows only");
        u32::from_le_bytes(*bytes) as usize
    }

    /// Reads more rows and says whether there were any.
    fn refill(&mut self) -> bool {
        let Some(handle) = self.handle else {
            return false;
        };
        self.at = 0;
        self.chunk.clear();
        self.context.backend().scan_next(handle, self.ask, &mut self.chunk);
        self.ask = LAST_CHUNK.min(2 * self.ask);
        if self.chunk.is_empty() {
            self.close();
        }
        !self.chunk.is_empty()
    }

    fn close(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.context.backend().scan_close(handle);
        }
    }
}

impl Drop for Rows<'_, '_> {
    fn drop(&mut self) {
        self.close();
    }
}

/// The smallest key above every key that begins with `prefix`, if there is one.
pub(crate) fn successor(prefix: &[u8]) -> Option<Buffer> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut next = Buffer::from(&prefix[..=last]);
    next[last] += 1;
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::successor;

    #[test]
    fn the_successor_of_a_prefix_drops_trailing_0xff() {
        assert_eq!(successor(b"ab"), Some(b"ac".as_slice().into()));
        assert_eq!(successor(b"a\xff\xff"), Some(b"b".as_slice().into()));
        assert_eq!(successor(b"\xff"), None);
        assert_eq!(successor(b""), None);
    }
}
