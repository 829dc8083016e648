//! Responses. Decoding gives ranges into the response, not slices of it, so that a caller who holds
//! it in a shared buffer can hand out parts without a copy.

use std::ops::Range;

use super::Malformed;
use super::reader::Reader;

/// Bytes of a row before its key: two lengths and the version.
const ROW_HEADER: usize = 4 + 4 + 8;

/// Flag of a version: a time of 8 bytes follows it.
pub(crate) const HAS_TIME: u64 = 1 << 63;

/// What a get found: a version, and where in the response the value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value's version.
    pub version: u64,
    /// In how many milliseconds the value is gone, by replicated time; none if it stays.
    pub ttl_ms: Option<u64>,
    /// The value's bytes in the response.
    pub value: Range<usize>,
}

/// One row of a scan's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRow {
    /// The key's bytes in the response.
    pub key: Range<usize>,
    /// The value's bytes in the response.
    pub value: Range<usize>,
    /// The value's version.
    pub version: u64,
}

/// The version that a put gave its value.
pub fn decode_put(response: &[u8]) -> Result<u64, Malformed> {
    let mut reader = Reader::new(response);
    let version = reader.u64("version")?;
    end(reader, "version")?;
    Ok(version)
}

/// Whether the key that a delete removed was there.
pub fn decode_delete(response: &[u8]) -> Result<bool, Malformed> {
    let mut reader = Reader::new(response);
    let existed = bool(&mut reader, "flag of existence")?;
    end(reader, "flag of existence")?;
    Ok(existed)
}

/// What an increment made of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incremented {
    /// The number now.
    pub value: i64,
    /// Its version.
    pub version: u64,
}

/// What an increment did.
pub fn decode_increment(response: &[u8]) -> Result<Incremented, Malformed> {
    let mut reader = Reader::new(response);
    let version = reader.u64("version")?;
    let value = reader.i64("number")?;
    end(reader, "number")?;
    Ok(Incremented { value, version })
}

/// What a get found, if the key has a value.
pub fn decode_get(response: &[u8]) -> Result<Option<Found>, Malformed> {
    if response.is_empty() {
        return Ok(None);
    }
    let mut reader = Reader::new(response);
    let word = reader.u64("version")?;
    let ttl_ms = match word & HAS_TIME {
        0 => None,
        _ => Some(reader.u64("time to live")?),
    };
    let start = response.len() - reader.rest().len();
    Ok(Some(Found { version: word & !HAS_TIME, ttl_ms, value: start..response.len() }))
}

/// Whether a value may be gone by the time asked for.
pub fn decode_expiring(response: &[u8]) -> Result<bool, Malformed> {
    let mut reader = Reader::new(response);
    let expiring = bool(&mut reader, "flag")?;
    end(reader, "flag")?;
    Ok(expiring)
}

/// The response to a scan, checked as a whole when it is decoded.
#[derive(Clone, Copy, Debug)]
pub struct ScanPage<'a> {
    response: &'a [u8],
    more: bool,
}

impl<'a> ScanPage<'a> {
    /// Checks all of the response and gives access to its rows.
    pub fn decode(response: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(response);
        let more = bool(&mut reader, "flag of more")?;
        let mut at = 1;
        while at < response.len() {
            at = row(response, at)?.value.end;
        }
        Ok(Self { response, more })
    }

    /// Whether there are more rows than fitted the limits.
    #[must_use]
    pub const fn more(&self) -> bool {
        self.more
    }

    /// The rows, in key order.
    pub fn rows(&self) -> impl Iterator<Item = PageRow> + use<'a> {
        let response = self.response;
        let mut at = 1;
        std::iter::from_fn(move || {
            if at == response.len() {
                return None;
            }
            let row = row(response, at).expect("decode checked every row");
            at = row.value.end;
            Some(row)
        })
    }
}

/// Writes the response to a scan within its limits.
pub struct PageWriter<'a> {
    page: &'a mut Vec<u8>,
    rows_left: u32,
    max_bytes: usize,
}

impl<'a> PageWriter<'a> {
    /// Begins a page in the empty `page`.
    pub fn new(page: &'a mut Vec<u8>, max_rows: u32, max_bytes: u32) -> Self {
        page.push(u8::from(false));
        Self { page, rows_left: max_rows, max_bytes: max_bytes as usize }
    }

    /// Appends a row if the limits allow it; else marks the page as having more to come and says
    /// `false`.
    pub fn push(&mut self, key: &[u8], version: u64, value: &[u8]) -> bool {
        let len = ROW_HEADER + key.len() + value.len();
        let first = self.page.len() == 1;
        if self.rows_left == 0 || (!first && self.page.len() + len > self.max_bytes) {
            self.page[0] = u8::from(true);
            return false;
        }
        self.rows_left -= 1;
        self.page.reserve(len);
        self.page.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.page.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.page.extend_from_slice(&version.to_le_bytes());
        self.page.extend_from_slice(key);
        self.page.extend_from_slice(value);
        true
    }
}

/// The row that begins at `at`, which is no more than the length of the page.
fn row(page: &[u8], at: usize) -> Result<PageRow, Malformed> {
    let mut reader = Reader::new(&page[at..]);
    let key_len = reader.u32("length of a key")?;
    let value_len = reader.u32("length of a value")?;
    let version = reader.u64("version of a row")?;
    reader.bytes(key_len, "key of a row")?;
    reader.bytes(value_len, "value of a row")?;
    let key_at = at + ROW_HEADER;
    let value_at = key_at + key_len as usize;
    Ok(PageRow { key: key_at..value_at, value: value_at..value_at + value_len as usize, version })
}

pub(super) fn bool(reader: &mut Reader<'_>, part: &'static str) -> Result<bool, Malformed> {
    match reader.u8(part)? {
        0 => Ok(false),
        1 => Ok(true),
        byte => Err(Malformed::NotABool(byte)),
    }
}

pub(super) fn end(reader: Reader<'_>, after: &'static str) -> Result<(), Malformed> {
    if reader.rest().is_empty() { Ok(()) } else { Err(Malformed::Trailing(after)) }
}
