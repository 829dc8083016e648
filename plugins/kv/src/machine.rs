//! What the commands and queries of [`protocol`](crate::protocol) mean.
//!
//! Stored under each key: its version, a little-endian `u64`, and the raw value. So the answer to a
//! get is what is stored, as it is.
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
//! [`version::pack`](crate::protocol::version::pack): unique within a log, and growing with it.
//!
//! Version 0 belongs to no value and stands for "no value": expecting it puts only an absent key.

use raft_kv_sdk::{
    Buffer, Context, Failure, MAX_KEY_LEN, MAX_VALUE_LEN, QueryContext, Response, StateMachine,
};

use crate::protocol::{Command, Malformed, PageWriter, Put, Query, Scan, failure, version};

/// Bytes of a stored value before the caller's: its version.
const VERSION_LEN: usize = 8;

/// The key-value state machine.
pub struct KeyValue;

impl StateMachine for KeyValue {
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
        match Command::decode(command).map_err(malformed)? {
            Command::Put(put) => self::put(context, &put),
            Command::Delete { key } => delete(context, key),
        }
    }

    fn query(context: &QueryContext<'_>, request: &[u8]) -> Result<Response, Failure> {
        match Query::decode(request).map_err(malformed)? {
            Query::Get { key } => get(context, key),
            Query::Scan(scan) => self::scan(context, &scan),
        }
    }
}

fn put(context: &Context<'_>, put: &Put<'_>) -> Result<Response, Failure> {
    check_key(put.key)?;
    if put.value.len() > MAX_VALUE_LEN - VERSION_LEN {
        let message = format!("the value has {} bytes, too many", put.value.len());
        return Err(Failure::new(failure::MALFORMED, message));
    }
    if let Some(expected) = put.expected {
        check_version(context, put.key, expected)?;
    }
    let Some(version) = version::pack(context.log_index(), context.position()) else {
        return Err(Failure::new(failure::ENTRY_TOO_LONG, "the entry has too many commands"));
    };
    let mut stored = Buffer::new();
    stored.reserve(VERSION_LEN + put.value.len());
    stored.extend_from_slice(&version.to_le_bytes());
    stored.extend_from_slice(put.value);
    context.put(put.key, &stored);
    Ok(version.to_le_bytes().into())
}

fn check_version(context: &Context<'_>, key: &[u8], expected: u64) -> Result<(), Failure> {
    let found = match context.get(key) {
        Some(stored) => Some(split(&stored)?.0),
        None => None,
    };
    let message = match found {
        Some(version) if version == expected => return Ok(()),
        None if expected == version::NONE => return Ok(()),
        Some(version) => format!("version is {version}, expected {expected}"),
        None => format!("key does not exist, expected version {expected}"),
    };
    Err(Failure::new(failure::VERSION_MISMATCH, message))
}

fn delete(context: &Context<'_>, key: &[u8]) -> Result<Response, Failure> {
    check_key(key)?;
    let existed = context.contains(key);
    if existed {
        context.delete(key);
    }
    Ok([u8::from(existed)].into())
}

fn get(context: &QueryContext<'_>, key: &[u8]) -> Result<Response, Failure> {
    check_key(key)?;
    let Some(stored) = context.get(key) else {
        return Ok(Response::empty());
    };
    split(&stored)?;
    Ok(stored.into())
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
        let (version, value) = split(row.value)?;
        if !writer.push(row.key, version, value) {
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

/// A stored value's version and the caller's bytes.
fn split(stored: &[u8]) -> Result<(u64, &[u8]), Failure> {
    match stored.split_first_chunk() {
        Some((version, value)) => Ok((u64::from_le_bytes(*version), value)),
        None => Err(Failure::new(
            failure::FOREIGN_VALUE,
            "the stored value has no version: another plugin wrote it",
        )),
    }
}

fn malformed(what: Malformed) -> Failure {
    Failure::new(failure::MALFORMED, what.to_string())
}
