//! What the commands and queries of [`protocol`](crate::protocol) mean.
//!
//! Stored under each key: its version, a little-endian `u64`, and the raw value ([`row`]). So the
//! answer to a get is what is stored, as it is. A value with a time to live has the time of its end
//! between the two, and from that replicated time on it is not there, whether it still takes up room
//! or not ([`expiry`]).
//!
//! # Versions
//!
//! The version of a value says which put wrote it, and compare-and-put rests on that: a value still
//! has the version that the caller knows only if nobody wrote the key since. The bare log index would
//! not do, because the host merges commands into entries. Of two puts of one key in one entry the
//! first caller would be told the index N, the second would overwrite the value, again with N, and a
//! compare-and-put of the first caller, expecting N, would wipe out a value nobody compared. Telling
//! the two puts apart when the second one comes would cost every put a read of the old value.
//! Therefore a version is the log index and the position within the entry, packed by
//! [`version::pack`](crate::protocol::version::pack): unique within a log, and growing with it. The
//! writes of one atomic command share a version: nobody sees what lies between them.
//!
//! Version 0 belongs to no value and stands for "no value": expecting it puts only an absent key.
//!
//! # Speed
//!
//! Most commands are plain puts. What such a one does not need is kept out of its functions
//! (`inline(never)`, `cold`): in WebAssembly a function with much in it is slow to enter.

mod atomic;
mod expiry;
mod number;
mod row;

use raft_kv_sdk::{
    Buffer, Context, Failure, MAX_KEY_LEN, MAX_VALUE_LEN, QueryContext, Response, StateMachine,
};

use crate::protocol::{Command, Malformed, PageWriter, Put, Query, Scan, failure, version};
use row::{MAX_HEADER_LEN, Row, Value};

/// The key-value state machine.
pub struct KeyValue;

impl StateMachine for KeyValue {
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
        match Command::decode(command).map_err(malformed)? {
            Command::Atomic(atomic) => atomic::run(context, &atomic),
            command => write(context, &command),
        }
    }

    fn query(context: &QueryContext<'_>, request: &[u8]) -> Result<Response, Failure> {
        match Query::decode(request).map_err(malformed)? {
            Query::Get { key } => get(context, key),
            Query::Scan(scan) => self::scan(context, &scan),
            Query::Expiring { until_ms } => {
                Ok([u8::from(expiry::is_due(context, until_ms))].into())
            }
        }
    }
}

/// Carries out a command that writes one key.
#[inline]
fn write(context: &Context<'_>, command: &Command<'_>) -> Result<Response, Failure> {
    match command {
        Command::Put(put) => self::put(context, put),
        Command::Delete { key, expected } => delete(context, key, *expected),
        Command::Increment { key, delta } => number::increment(context, key, *delta),
        Command::Atomic(_) => unreachable!("an atomic command is none of one key"),
    }
}

fn put(context: &Context<'_>, put: &Put<'_>) -> Result<Response, Failure> {
    check_key(put.key)?;
    if put.value.len() > MAX_VALUE_LEN - MAX_HEADER_LEN {
        let message = format!("the value has {} bytes, too many", put.value.len());
        return Err(Failure::new(failure::MALFORMED, message));
    }
    if let Some(expected) = put.expected {
        check_version(context, put.key, expected)?;
    }
    let version = next_version(context)?;
    let ends_ms = put.ttl_ms.map(|ttl_ms| context.time_ms().saturating_add(ttl_ms));
    if ends_ms.is_some() {
        expiry::remove_some(context)?;
    }
    store(context, put.key, &Value { version, ends_ms, bytes: put.value });
    if let Some(ends_ms) = ends_ms {
        expiry::note(context, put.key, ends_ms)?;
    }
    Ok(version.to_le_bytes().into())
}

/// The version of what this command writes.
#[inline]
fn next_version(context: &Context<'_>) -> Result<u64, Failure> {
    let too_long = || Failure::new(failure::ENTRY_TOO_LONG, "the entry has too many commands");
    version::pack(context.log_index(), context.position()).ok_or_else(too_long)
}

/// Stores a value, and leaves alone what else is stored under its key.
#[inline]
fn store(context: &Context<'_>, key: &[u8], value: &Value<'_>) {
    let mut stored = Buffer::new();
    stored.reserve(MAX_HEADER_LEN + value.bytes.len());
    if expiry::is_entry(context, key) {
        row::write_entry(&mut stored);
    }
    value.write(&mut stored);
    context.put(key, &stored);
}

/// Removes a key's value, and leaves alone what else is stored under the key. `row` is what is
/// stored.
fn remove(context: &Context<'_>, key: &[u8], row: &Row<'_>) {
    match row.is_entry {
        true => {
            let mut stored = Buffer::new();
            row::write_entry(&mut stored);
            context.put(key, &stored);
        }
        false => context.delete(key),
    }
}

#[inline(never)]
fn check_version(context: &QueryContext<'_>, key: &[u8], expected: u64) -> Result<(), Failure> {
    let message = match found_version(context, key)? {
        found if found == expected => return Ok(()),
        version::NONE => format!("key does not exist, expected version {expected}"),
        found => format!("version is {found}, expected {expected}"),
    };
    Err(Failure::new(failure::VERSION_MISMATCH, message))
}

/// The version of a key's value, or the one that stands for none.
fn found_version(context: &QueryContext<'_>, key: &[u8]) -> Result<u64, Failure> {
    let Some(stored) = context.get(key) else { return Ok(version::NONE) };
    let value = Row::parse(&stored)?.value;
    let value = value.filter(|value| value.is_there(context));
    Ok(value.map_or(version::NONE, |value| value.version))
}

#[inline(never)]
fn delete(context: &Context<'_>, key: &[u8], expected: Option<u64>) -> Result<Response, Failure> {
    check_key(key)?;
    if let Some(expected) = expected {
        check_version(context, key, expected)?;
    }
    let Some(stored) = context.get(key) else { return Ok([u8::from(false)].into()) };
    let Ok(row) = Row::parse(&stored) else {
        // Whoever wrote it: it is to go.
        context.delete(key);
        return Ok([u8::from(true)].into());
    };
    let Some(value) = row.value else { return Ok([u8::from(false)].into()) };
    remove(context, key, &row);
    if let Some(ends_ms) = value.ends_ms {
        expiry::forget(context, key, ends_ms)?;
    }
    Ok([u8::from(value.is_there(context))].into())
}

fn get(context: &QueryContext<'_>, key: &[u8]) -> Result<Response, Failure> {
    check_key(key)?;
    let Some(stored) = context.get(key) else {
        return Ok(Response::empty());
    };
    row::into_answer(context, stored)
}

fn scan(context: &QueryContext<'_>, scan: &Scan<'_>) -> Result<Response, Failure> {
    check_key(scan.prefix)?;
    let mut range = context.scan().prefix(scan.prefix);
    if let Some(after) = scan.after {
        check_key(after)?;
        range = range.after(after);
    }
    let mut rows = range.rows();
    let mut page = Buffer::new();
    let mut writer = PageWriter::new(&mut page, scan.max_rows, scan.max_bytes);
    while let Some(row) = rows.next_row() {
        let value = Row::parse(row.value)?.value;
        let Some(value) = value.filter(|value| value.is_there(context)) else { continue };
        if !writer.push(row.key, value.version, value.bytes) {
            break;
        }
    }
    Ok(page.into())
}

/// A longer key would end the command as a bad call; this way the caller learns what is the matter.
fn check_key(key: &[u8]) -> Result<(), Failure> {
    if key.len() <= MAX_KEY_LEN {
        return Ok(());
    }
    Err(Failure::new(failure::MALFORMED, format!("the key has {} bytes, too many", key.len())))
}

#[cold]
fn malformed(what: Malformed) -> Failure {
    Failure::new(failure::MALFORMED, what.to_string())
}
