//! Values that are numbers: decimal text of a signed 64-bit number, so that who puts `5` or gets the
//! value needs to know of nothing.

use std::io::Write as _;

use raft_kv_sdk::{Buffer, Context, Failure, Response};

use super::row::{Row, Value};
use crate::protocol::failure;

/// Longest decimal text of a number: nineteen digits and a sign.
const MAX_TEXT_LEN: usize = 20;

/// Most bytes of a value that a message repeats.
const SHOWN_BYTES: usize = 40;

/// Adds to the number that is a key's value, 0 if it has none. How long it lives stays as it was.
#[inline(never)]
pub(super) fn increment(
    context: &Context<'_>,
    key: &[u8],
    delta: i64,
) -> Result<Response, Failure> {
    super::check_key(key)?;
    let stored = context.get(key);
    let found = match &stored {
        Some(stored) => Row::parse(stored)?.value.filter(|value| value.is_there(context)),
        None => None,
    };
    let before = found.as_ref().map_or(Ok(0), |value| parse(value.bytes))?;
    let after = before.checked_add(delta).ok_or_else(|| {
        let message = format!("{before} and {delta} is more than a number of 64 bits can hold");
        Failure::new(failure::OVERFLOW, message)
    })?;
    let mut text = Buffer::new();
    text.reserve(MAX_TEXT_LEN);
    write!(*text, "{after}").expect("a vector takes what is written");
    let version = super::next_version(context)?;
    // The index has its time already.
    let ends_ms = found.and_then(|value| value.ends_ms);
    super::store(context, key, &Value { version, ends_ms, bytes: &text });
    let mut response = version.to_le_bytes().to_vec();
    response.extend_from_slice(&after.to_le_bytes());
    Ok(response.into())
}

/// The number that a value is.
fn parse(value: &[u8]) -> Result<i64, Failure> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        let shown = value[..value.len().min(SHOWN_BYTES)].escape_ascii();
        let more = if value.len() > SHOWN_BYTES { "…" } else { "" };
        let message = format!(
            "the value \"{shown}\"{more} is not the decimal text of a signed 64-bit number"
        );
        Failure::new(failure::NOT_A_NUMBER, message)
    })
}
