//! The answer to `get_many`: for each key a `u32` length ([`ABSENT`] if it has no value) and the
//! value's bytes, in the order asked.

use crate::Buffer;

/// The length that stands for "no value".
pub(crate) const ABSENT: u32 = u32::MAX;

/// The values of the keys that were asked for, in that order.
#[derive(Debug)]
pub struct Values(Buffer);

impl Values {
    pub(crate) const fn new(bytes: Buffer) -> Self {
        Self(bytes)
    }

    /// Goes through the values; `None` stands for a key without one.
    pub fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (len, after) = rest.split_first_chunk()?;
            let len = u32::from_le_bytes(*len);
            if len == ABSENT {
                rest = after;
                return Some(None);
            }
            let (value, after) = after.split_at(len as usize);
            rest = after;
            Some(Some(value))
        })
    }
}
