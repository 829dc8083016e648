//! Which values end when: an index in the slot's own storage, by which those that are over are
//! removed.
//!
//! A value that is over is not there for anybody ([`Value::is_there`](super::Value::is_there)), so
//! removing it only gives room back, and is done in passing: who puts a value with a time to live
//! removes a few that are over.
//!
//! An entry of the index is a key of its own: eight bytes `0xff`, the time of the end as a big-endian
//! `u64`, and the key whose value ends then. Users may have keys of any bytes, these included, and
//! old data does: so an entry and a user's value can share a row, and each leaves the other alone
//! ([`row`](super::row)). Only a key that begins like an entry has to be looked up for that before it
//! is put. Entries lie at the end of the slot, where a scan comes last, if at all.
//!
//! Each value that ends has its entry; an entry may outlive its value, because a put without a time
//! to live does not look at what it replaces. It goes when its time has come.

use raft_kv_sdk::{Buffer, Context, Failure, MAX_KEY_LEN, QueryContext};

use super::row::{self, Row};
use crate::protocol::failure;

/// What the keys of entries begin with.
const PREFIX: [u8; 8] = [0xff; 8];

/// Bytes of an entry's key before the key it is about.
const HEADER_LEN: usize = PREFIX.len() + 8;

/// Most entries that one put takes out of the index.
const REMOVED_AT_ONCE: usize = 8;

/// Most rows that one put looks at for that: users' values may lie between the entries.
const LOOKED_AT: usize = 64;

/// Bytes of values that are over after which a put looks at no further one.
const READ_BYTES: usize = 1 << 20;

/// Whether a key is one of the index, besides what it is to users.
pub(super) fn is_entry(context: &Context<'_>, key: &[u8]) -> bool {
    key.len() >= HEADER_LEN && key.starts_with(&PREFIX) && is_stored_entry(context, key)
}

#[cold]
fn is_stored_entry(context: &Context<'_>, key: &[u8]) -> bool {
    context.get(key).is_some_and(|stored| Row::parse(&stored).is_ok_and(|row| row.is_entry))
}

/// Notes that the value of `key` ends.
#[inline(never)]
pub(super) fn note(context: &Context<'_>, key: &[u8], ends_ms: u64) -> Result<(), Failure> {
    if HEADER_LEN + key.len() > MAX_KEY_LEN {
        let message = format!("the key has {} bytes, too many to have a time to live", key.len());
        return Err(Failure::new(failure::MALFORMED, message));
    }
    let entry = entry_key(ends_ms, key);
    let found = context.get(&entry);
    if let Some(found) = &found
        && Row::parse(found)?.is_entry
    {
        return Ok(());
    }
    let mut stored = Buffer::new();
    row::write_entry(&mut stored);
    stored.extend_from_slice(found.as_deref().map(Vec::as_slice).unwrap_or_default());
    context.put(&entry, &stored);
    Ok(())
}

/// Takes out the entry of a value that was removed.
#[inline(never)]
pub(super) fn forget(context: &Context<'_>, key: &[u8], ends_ms: u64) -> Result<(), Failure> {
    remove_entry(context, &entry_key(ends_ms, key))
}

/// Removes a few values that are over, those first that have been for longest.
#[inline(never)]
pub(super) fn remove_some(context: &Context<'_>) -> Result<(), Failure> {
    let now_ms = context.time_ms();
    let (mut removed, mut looked_at, mut read) = (0, 0, 0);
    let mut rows = due(context, 0, now_ms);
    while let Some(found) = rows.next_row() {
        if let Some(key) = key_of_entry(&found) {
            read += remove_if_over(context, key, now_ms);
            remove_entry(context, found.key)?;
            removed += 1;
        }
        looked_at += 1;
        if removed == REMOVED_AT_ONCE || looked_at == LOOKED_AT || read >= READ_BYTES {
            break;
        }
    }
    Ok(())
}

/// Whether a value may end after the present time and not after `until_ms`.
pub(super) fn is_due(context: &QueryContext<'_>, until_ms: u64) -> bool {
    let Some(from_ms) = context.time_ms().checked_add(1) else { return false };
    let mut rows = due(context, from_ms, until_ms);
    while let Some(found) = rows.next_row() {
        if key_of_entry(&found).is_some() {
            return true;
        }
    }
    false
}

/// The key that a row is about, if it is an entry.
fn key_of_entry<'a>(found: &raft_kv_sdk::Row<'a>) -> Option<&'a [u8]> {
    let is_entry = Row::parse(found.value).is_ok_and(|row| row.is_entry);
    found.key.get(HEADER_LEN..).filter(|_| is_entry)
}

/// The rows where the entries of these times lie, the last time included.
fn due<'c, 'h>(
    context: &'c QueryContext<'h>,
    from_ms: u64,
    until_ms: u64,
) -> raft_kv_sdk::Rows<'c, 'h> {
    // The shortest key about the empty key comes first, and none shorter is an entry.
    let range = context.scan().prefix(&PREFIX).start(&entry_key(from_ms, b""));
    match until_ms.checked_add(1) {
        Some(end_ms) => range.end(&entry_key(end_ms, b"")).rows(),
        None => range.rows(),
    }
}

/// Removes the value of `key` if it is over; says how many bytes that took.
fn remove_if_over(context: &Context<'_>, key: &[u8], now_ms: u64) -> usize {
    let Some(stored) = context.get(key) else { return 0 };
    let Ok(row) = Row::parse(&stored) else { return stored.len() };
    let is_over = |value: &super::Value<'_>| value.ends_ms.is_some_and(|end| end <= now_ms);
    if row.value.as_ref().is_some_and(is_over) {
        super::remove(context, key, &row);
    }
    stored.len()
}

/// Takes an entry out of the index, and leaves alone a user's value under the same key.
fn remove_entry(context: &Context<'_>, entry: &[u8]) -> Result<(), Failure> {
    let Some(stored) = context.get(entry) else { return Ok(()) };
    let row = Row::parse(&stored)?;
    if !row.is_entry {
        return Ok(());
    }
    match row.value {
        None => context.delete(entry),
        Some(value) => {
            let mut kept = Buffer::new();
            value.write(&mut kept);
            context.put(entry, &kept);
        }
    }
    Ok(())
}

fn entry_key(ends_ms: u64, key: &[u8]) -> Buffer {
    let mut entry = Buffer::new();
    entry.reserve(HEADER_LEN + key.len());
    entry.extend_from_slice(&PREFIX);
    entry.extend_from_slice(&ends_ms.to_be_bytes());
    entry.extend_from_slice(key);
    entry
}
