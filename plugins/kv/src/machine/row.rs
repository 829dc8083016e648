//! What is stored under a key: a user's value, an entry of the index of times, or both.
//!
//! | stored | bytes |
//! |---|---|
//! | a value | `version u64`, value |
//! | a value with a time to live | `version u64` with its highest bit set, `end u64` in milliseconds since 1970, value |
//! | an entry of the index | `0 u64` |
//! | both | `0 u64`, then the value as above |
//!
//! Version 0.1.0 wrote the first kind alone, and no value has version 0: whatever it wrote reads as
//! what it was.

use raft_kv_sdk::{Buffer, Failure, QueryContext, Response};

use crate::protocol::{failure, version};

/// Flag of a stored version: the time of the value's end follows.
const HAS_END: u64 = crate::protocol::HAS_TIME;

/// Bytes of a version, and of a time.
const WORD_LEN: usize = 8;

/// Most bytes of a row before the user's.
pub(super) const MAX_HEADER_LEN: usize = 3 * WORD_LEN;

/// What is stored under a key.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// The key is one of the index of times, too.
    pub(super) is_entry: bool,
    /// The user's value, which may be over.
    pub(super) value: Option<Value<'a>>,
}

/// A user's value.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) version: u64,
    /// From this replicated time on it is not there.
    pub(super) ends_ms: Option<u64>,
    pub(super) bytes: &'a [u8],
}

impl<'a> Row<'a> {
    /// Reads what is stored.
    pub(super) fn parse(stored: &'a [u8]) -> Result<Self, Failure> {
        match take_word(stored)? {
            (version::NONE, []) => Ok(Self { is_entry: true, value: None }),
            (version::NONE, rest) => Ok(Self { is_entry: true, value: Some(Value::parse(rest)?) }),
            _ => Ok(Self { is_entry: false, value: Some(Value::parse(stored)?) }),
        }
    }
}

impl<'a> Value<'a> {
    fn parse(stored: &'a [u8]) -> Result<Self, Failure> {
        let (word, rest) = take_word(stored)?;
        if word & HAS_END == 0 {
            return Ok(Self { version: word, ends_ms: None, bytes: rest });
        }
        let (ends_ms, bytes) = take_word(rest)?;
        Ok(Self { version: word & !HAS_END, ends_ms: Some(ends_ms), bytes })
    }

    /// Appends the value as it is stored.
    #[inline]
    pub(super) fn write(&self, stored: &mut Vec<u8>) {
        let flag = if self.ends_ms.is_some() { HAS_END } else { 0 };
        stored.extend_from_slice(&(self.version | flag).to_le_bytes());
        if let Some(ends_ms) = self.ends_ms {
            stored.extend_from_slice(&ends_ms.to_le_bytes());
        }
        stored.extend_from_slice(self.bytes);
    }

    /// Whether the value's time is not over. The time is asked for only where it matters: of a query
    /// that asks, the host takes it that its answer changes as time goes on.
    pub(super) fn is_there(&self, context: &QueryContext<'_>) -> bool {
        self.ends_ms.is_none_or(|ends_ms| ends_ms > context.time_ms())
    }
}

/// Appends what makes a row an entry of the index.
pub(super) fn write_entry(stored: &mut Vec<u8>) {
    stored.extend_from_slice(&version::NONE.to_le_bytes());
}

/// The answer to a get that found `stored`: mostly just that.
pub(super) fn into_answer(
    context: &QueryContext<'_>,
    mut stored: Buffer,
) -> Result<Response, Failure> {
    let row = Row::parse(&stored)?;
    let Some(value) = row.value else { return Ok(Response::empty()) };
    if !value.is_there(context) {
        return Ok(Response::empty());
    }
    let left_ms = value.ends_ms.map(|ends_ms| ends_ms - context.time_ms());
    if row.is_entry {
        stored.drain(..WORD_LEN);
    }
    if let Some(left_ms) = left_ms {
        stored[WORD_LEN..2 * WORD_LEN].copy_from_slice(&left_ms.to_le_bytes());
    }
    Ok(stored.into())
}

fn take_word(stored: &[u8]) -> Result<(u64, &[u8]), Failure> {
    match stored.split_first_chunk() {
        Some((word, rest)) => Ok((u64::from_le_bytes(*word), rest)),
        None => Err(Failure::new(
            failure::FOREIGN_VALUE,
            "the stored value has no version: another plugin wrote it",
        )),
    }
}
