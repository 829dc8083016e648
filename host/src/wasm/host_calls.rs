//! The imports of `raftkv_v1`: the only way out of the sandbox.
//!
//! Every call follows one order: check that it is allowed now, check its buffers, charge for it and
//! for the bytes that its arguments move, act. So a length that makes no sense is told as such, not
//! as a want of fuel. What a read finds is charged once it was found, before the plugin goes on.
//!
//! Nothing here allocates on the way of a successful `get`, `put` or `delete`; a `respond` copies its
//! bytes once, because they outlive the instance.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use wasmtime::{Caller, Linker};

use super::abi;
use super::error::{FailureKind, HostError, Stop};
use super::fuel::{self, charge};
use super::limits::{MAX_LOG_LINE_BYTES, MAX_MESSAGE_BYTES, MAX_RESPONSE_BYTES};
use super::state::{GuestState, LogTurn, Phase};
use super::storage::ScanRange;

type Guest<'a> = Caller<'a, GuestState>;

/// Scratch space beyond this is given back after use.
const MAX_KEPT_SCRATCH_BYTES: usize = 64 << 10;

/// Puts all imports into `linker`.
pub(super) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let module = abi::IMPORT_MODULE;
    linker
        .func_wrap(module, "next_command", next_command)?
        .func_wrap(module, "exchange", exchange)?
        .func_wrap(module, "get", get)?
        .func_wrap(module, "get_many", get_many)?
        .func_wrap(module, "put", put)?
        .func_wrap(module, "delete", delete)?
        .func_wrap(module, "scan_open", scan_open)?
        .func_wrap(module, "scan_next", scan_next)?
        .func_wrap(module, "scan_close", scan_close)?
        .func_wrap(module, "respond", respond)?
        .func_wrap(module, "fail", fail)?
        .func_wrap(module, "context", context)?
        .func_wrap(module, "log", log)?
        .func_wrap(module, "abort", abort)?;
    Ok(())
}

/// The plugin's memory and the host's state, side by side.
fn parts<'a>(guest: &'a mut Guest<'_>) -> wasmtime::Result<(&'a mut [u8], &'a mut GuestState)> {
    let Some(memory) = guest.data().memory else {
        let defect = wasmtime::Error::msg("a host call before the memory was known");
        return Err(wasmtime::Error::new(Stop::Host(HostError::Wasmtime(defect))));
    };
    Ok(memory.data_and_store_mut(guest))
}

/// The bytes that a buffer names, if they lie in memory. An empty buffer may point anywhere: it
/// touches nothing, and languages differ in where their empty slices point.
fn window(memory: &[u8], what: &str, ptr: u32, len: u32) -> wasmtime::Result<Range<usize>> {
    if len == 0 {
        return Ok(0..0);
    }
    let (start, end) = (u64::from(ptr), u64::from(ptr) + u64::from(len));
    if end > memory.len() as u64 {
        let size = memory.len();
        let message =
            format!("{what}: {len} bytes at {ptr} are outside the memory of {size} bytes");
        return Err(Stop::bad_call(message));
    }
    Ok(start as usize..end as usize)
}

/// A key's bytes.
fn key_window(memory: &[u8], ptr: u32, len: u32) -> wasmtime::Result<Range<usize>> {
    check_key(len as usize)?;
    window(memory, "key", ptr, len)
}

fn check_key(len: usize) -> wasmtime::Result<()> {
    if len <= abi::MAX_KEY_BYTES {
        return Ok(());
    }
    let message = format!("a key of {len} bytes, allowed are {}", abi::MAX_KEY_BYTES);
    Err(Stop::bad_call(message))
}

/// Writes `bytes` to the beginning of the buffer if they fit, and tells their size either way.
fn deliver(buffer: &mut [u8], bytes: &[u8]) -> i64 {
    if let Some(target) = buffer.get_mut(..bytes.len()) {
        target.copy_from_slice(bytes);
    }
    bytes.len() as i64
}

/// At most `limit` bytes of `text` as a string, cut at a character.
fn clip(text: &[u8], limit: usize) -> String {
    let mut out = String::from_utf8_lossy(&text[..text.len().min(limit)]).into_owned();
    let cut = text.len() > limit;
    // The cut may have split a character, and what replaces stray bytes is longer than they are.
    while out.len() > limit || (cut && out.ends_with(char::REPLACEMENT_CHARACTER)) {
        out.pop();
    }
    out
}

fn next_command(guest: Guest<'_>, buf: u32, cap: u32) -> wasmtime::Result<i64> {
    let next = Next { what: "next_command", buf, cap, place: abi::NO_PLACE };
    turn(guest, None, next)
}

fn exchange(
    guest: Guest<'_>,
    response: u32,
    response_len: u32,
    buf: u32,
    cap: u32,
    place: u32,
) -> wasmtime::Result<i64> {
    let response = (response_len > 0).then_some((response, response_len));
    turn(guest, response, Next { what: "exchange", buf, cap, place })
}

/// Where the next command goes, and which call asked for it.
struct Next {
    what: &'static str,
    buf: u32,
    cap: u32,
    place: u32,
}

/// Takes the running command's response, if there is one in this call, ends it, and gives the next.
fn turn(mut guest: Guest<'_>, response: Option<(u32, u32)>, next: Next) -> wasmtime::Result<i64> {
    let fuel = guest.get_fuel()?;
    let (memory, state) = parts(&mut guest)?;
    let response = match response {
        None => None,
        Some((ptr, len)) => {
            state.running(next.what)?;
            Some(response_window(memory, ptr, len)?)
        }
    };
    let buffer = window(memory, next.what, next.buf, next.cap)?;
    let place = match next.place {
        abi::NO_PLACE => None,
        place => Some(window(memory, "place", place, abi::PLACE_BYTES as u32)?),
    };
    let moved = fuel::moved(response.as_ref().map_or(0, |response| response.len()));
    let left = fuel::pay(fuel, fuel::CALL + moved, state)?;
    let limit = state.fuel_per_command;
    let ended = state.phase == Phase::Running;
    if ended {
        state.job.fuel += limit.saturating_sub(left);
        match response {
            Some(response) => state.end_with(Bytes::copy_from_slice(&memory[response])),
            None => state.end(),
        }
    }
    // Once between two commands: asking again and again does not fill the tank.
    let between = if ended { limit } else { left };
    let (size, left) = match state.call() {
        None => {
            state.phase = Phase::Over;
            (abi::NONE, between)
        }
        Some(call) if call.payload.len() > next.cap as usize => {
            (call.payload.len() as i64, between)
        }
        Some(call) => {
            let size = deliver(&mut memory[buffer], &call.payload);
            let mut cost = fuel::moved(size as usize);
            if let Some(place) = place {
                deliver(&mut memory[place], &call.place());
                cost += fuel::moved(abi::PLACE_BYTES);
                state.job.asked_context = true;
            }
            state.begin();
            (size, fuel::pay(limit, cost, state)?)
        }
    };
    guest.set_fuel(left)?;
    Ok(size)
}

fn get(mut guest: Guest<'_>, key: u32, key_len: u32, buf: u32, cap: u32) -> wasmtime::Result<i64> {
    let fuel = guest.get_fuel()?;
    let (memory, state) = parts(&mut guest)?;
    state.running("get")?;
    let key = key_window(memory, key, key_len)?;
    let buffer = window(memory, "get", buf, cap)?;
    let left = fuel::pay(fuel, fuel::CALL + fuel::READ, state)?;
    // The value is written where the key may still lie.
    state.scratch.clear();
    state.scratch.extend_from_slice(&memory[key]);
    let mut size = abi::NONE;
    let mut read = |value: Option<&[u8]>| {
        if let Some(value) = value {
            size = deliver(&mut memory[buffer.clone()], value);
        }
    };
    state.job.storage.get(&state.scratch, &mut read).map_err(Stop::storage)?;
    let value_len = usize::try_from(size).unwrap_or(0);
    let left = fuel::pay(left, fuel::moved(key_len as usize + value_len), state)?;
    guest.set_fuel(left)?;
    Ok(size)
}

fn get_many(
    mut guest: Guest<'_>,
    keys: u32,
    keys_len: u32,
    buf: u32,
    cap: u32,
) -> wasmtime::Result<i64> {
    let (memory, state) = parts(&mut guest)?;
    state.running("get_many")?;
    let keys = window(memory, "keys", keys, keys_len)?;
    let buffer = window(memory, "get_many", buf, cap)?;
    charge(&mut guest, fuel::CALL + fuel::moved(keys.len()))?;
    let (memory, state) = parts(&mut guest)?;
    let keys = memory[keys].to_vec();
    // Collected first: until the whole size is known, nothing may be written.
    let mut out = std::mem::take(&mut state.scratch);
    out.clear();
    let mut size = 0;
    let mut rest = &keys[..];
    while !rest.is_empty() {
        let key = split_key(&mut rest)?;
        charge(&mut guest, fuel::READ)?;
        let (_, state) = parts(&mut guest)?;
        let before = size;
        let mut read = |value: Option<&[u8]>| {
            let len = value.map_or(abi::NO_VALUE, |value| value.len() as u32);
            let value = value.unwrap_or_default();
            size += 4 + value.len();
            if size <= cap as usize {
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(value);
            }
        };
        state.job.storage.get(key, &mut read).map_err(Stop::storage)?;
        charge(&mut guest, fuel::moved(size - before))?;
    }
    let (memory, state) = parts(&mut guest)?;
    if size <= cap as usize {
        deliver(&mut memory[buffer], &out);
    }
    if out.capacity() <= MAX_KEPT_SCRATCH_BYTES {
        state.scratch = out;
    }
    Ok(size as i64)
}

/// Takes the next key off the list that `get_many` was given.
fn split_key<'a>(rest: &mut &'a [u8]) -> wasmtime::Result<&'a [u8]> {
    let cut_short = || Stop::bad_call("`get_many`: the list of keys is cut short");
    let (len, after) = rest.split_first_chunk::<4>().ok_or_else(cut_short)?;
    let len = u32::from_le_bytes(*len) as usize;
    check_key(len)?;
    let (key, after) = after.split_at_checked(len).ok_or_else(cut_short)?;
    *rest = after;
    Ok(key)
}

fn put(
    mut guest: Guest<'_>,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
) -> wasmtime::Result<()> {
    let fuel = guest.get_fuel()?;
    let (memory, state) = parts(&mut guest)?;
    state.writing("put")?;
    let key = key_window(memory, key, key_len)?;
    if value_len as usize > abi::MAX_VALUE_BYTES {
        let message = format!("a value of {value_len} bytes, allowed are {}", abi::MAX_VALUE_BYTES);
        return Err(Stop::bad_call(message));
    }
    let value = window(memory, "value", value, value_len)?;
    let bytes = key.len() + value.len();
    let left = fuel::pay(fuel, fuel::CALL + fuel::WRITE + fuel::moved(bytes), state)?;
    state.write(bytes)?;
    state.job.storage.put(&memory[key], &memory[value]).map_err(Stop::storage)?;
    guest.set_fuel(left)
}

fn delete(mut guest: Guest<'_>, key: u32, key_len: u32) -> wasmtime::Result<()> {
    let fuel = guest.get_fuel()?;
    let (memory, state) = parts(&mut guest)?;
    state.writing("delete")?;
    let key = key_window(memory, key, key_len)?;
    let left = fuel::pay(fuel, fuel::CALL + fuel::WRITE + fuel::moved(key.len()), state)?;
    state.write(key.len())?;
    state.job.storage.delete(&memory[key]).map_err(Stop::storage)?;
    guest.set_fuel(left)
}

fn scan_open(
    mut guest: Guest<'_>,
    start: u32,
    start_len: u32,
    end: u32,
    end_len: u32,
    flags: u32,
) -> wasmtime::Result<u32> {
    let (memory, state) = parts(&mut guest)?;
    state.running("scan_open")?;
    if flags & !abi::SCAN_REVERSE != 0 {
        return Err(Stop::bad_call(format!("`scan_open`: unknown flags in {flags:#x}")));
    }
    let start = key_window(memory, start, start_len)?;
    let bounded = end_len != abi::NO_END;
    let end = if bounded { Some(key_window(memory, end, end_len)?) } else { None };
    let Some(scan) = state.free_scan() else {
        let message = format!("more than {} scans open at once", abi::MAX_OPEN_SCANS);
        return Err(Stop::bad_call(message));
    };
    let bytes = start.len() + end.as_ref().map_or(0, |end| end.len());
    charge(&mut guest, fuel::CALL + fuel::SEEK + fuel::moved(bytes))?;
    let (memory, state) = parts(&mut guest)?;
    let range = ScanRange {
        start: &memory[start],
        end: end.map(|end| &memory[end]),
        reverse: flags & abi::SCAN_REVERSE != 0,
    };
    let copied = state.job.storage.scan_open(scan, range).map_err(Stop::storage)?;
    state.scan_opened(scan);
    charge(&mut guest, fuel::COPY * copied as u64)?;
    Ok(u32::from(scan.0))
}

fn scan_next(mut guest: Guest<'_>, handle: u32, buf: u32, cap: u32) -> wasmtime::Result<i64> {
    let (memory, state) = parts(&mut guest)?;
    state.running("scan_next")?;
    let scan = state.scan(handle)?;
    let buffer = window(memory, "scan_next", buf, cap)?;
    charge(&mut guest, fuel::CALL)?;
    let affordable = guest.get_fuel()?;
    let (memory, state) = parts(&mut guest)?;
    let buffer = &mut memory[buffer];
    let mut written = 0;
    let mut too_large = None;
    let mut cost = 0;
    let mut take = |key: &[u8], value: &[u8]| {
        let size = 8 + key.len() + value.len();
        let fits = size <= buffer.len() - written;
        if !fits && written > 0 {
            return ControlFlow::Break(());
        }
        // Also when not even one row fits: it was read all the same.
        cost += fuel::READ + fuel::moved(size);
        if !fits {
            too_large = Some(size);
            return ControlFlow::Break(());
        }
        if cost > affordable {
            return ControlFlow::Break(());
        }
        write_row(&mut buffer[written..written + size], key, value);
        written += size;
        ControlFlow::Continue(())
    };
    state.job.storage.scan_next(scan, &mut take).map_err(Stop::storage)?;
    charge(&mut guest, cost)?;
    Ok(too_large.unwrap_or(written) as i64)
}

/// Fills `row`, which has just the right size.
fn write_row(row: &mut [u8], key: &[u8], value: &[u8]) {
    let (lengths, data) = row.split_at_mut(8);
    lengths[..4].copy_from_slice(&(key.len() as u32).to_le_bytes());
    lengths[4..].copy_from_slice(&(value.len() as u32).to_le_bytes());
    let (key_part, value_part) = data.split_at_mut(key.len());
    key_part.copy_from_slice(key);
    value_part.copy_from_slice(value);
}

fn scan_close(mut guest: Guest<'_>, handle: u32) -> wasmtime::Result<()> {
    let state = guest.data_mut();
    state.running("scan_close")?;
    let scan = state.scan(handle)?;
    charge(&mut guest, fuel::CALL)?;
    let state = guest.data_mut();
    state.close_scan(scan);
    Ok(())
}

fn respond(mut guest: Guest<'_>, ptr: u32, len: u32) -> wasmtime::Result<()> {
    let fuel = guest.get_fuel()?;
    let (memory, state) = parts(&mut guest)?;
    state.running("respond")?;
    let response = response_window(memory, ptr, len)?;
    let left = fuel::pay(fuel, fuel::CALL + fuel::moved(response.len()), state)?;
    state.set_response(Bytes::copy_from_slice(&memory[response]));
    guest.set_fuel(left)
}

/// A response's bytes.
fn response_window(memory: &[u8], ptr: u32, len: u32) -> wasmtime::Result<Range<usize>> {
    let response = window(memory, "response", ptr, len)?;
    if response.len() > MAX_RESPONSE_BYTES {
        let message = format!("a response of {len} bytes, allowed are {MAX_RESPONSE_BYTES}");
        return Err(Stop::bad_call(message));
    }
    Ok(response)
}

fn fail(mut guest: Guest<'_>, code: u32, ptr: u32, len: u32) -> wasmtime::Result<()> {
    let (memory, state) = parts(&mut guest)?;
    state.running("fail")?;
    let message = window(memory, "message", ptr, len)?;
    charge(&mut guest, fuel::CALL + fuel::moved(message.len()))?;
    let (memory, state) = parts(&mut guest)?;
    state.set_failure(code, clip(&memory[message], MAX_MESSAGE_BYTES));
    Ok(())
}

fn context(mut guest: Guest<'_>, buf: u32, cap: u32) -> wasmtime::Result<i64> {
    let (memory, state) = parts(&mut guest)?;
    state.running("context")?;
    let buffer = window(memory, "context", buf, cap)?;
    charge(&mut guest, fuel::CALL + fuel::moved(abi::CONTEXT_BYTES))?;
    let (memory, state) = parts(&mut guest)?;
    state.job.asked_context = true;
    let context = state.call().map_or([0; abi::CONTEXT_BYTES], |call| call.context());
    Ok(deliver(&mut memory[buffer], &context))
}

fn log(mut guest: Guest<'_>, level: u32, ptr: u32, len: u32) -> wasmtime::Result<()> {
    let (memory, _) = parts(&mut guest)?;
    let line = window(memory, "log line", ptr, len)?;
    if level > 3 {
        return Err(Stop::bad_call(format!("`log`: unknown level {level}")));
    }
    charge(&mut guest, fuel::CALL + fuel::moved(line.len()))?;
    let (memory, state) = parts(&mut guest)?;
    let turn = state.log.take();
    if turn == LogTurn::Drop {
        return Ok(());
    }
    let (plugin, slot) = (&*state.plugin, state.call().map(|call| call.slot));
    let line = clip(&memory[line], MAX_LOG_LINE_BYTES);
    match level {
        0 => tracing::error!(target: "plugin", plugin, slot, "{line}"),
        1 => tracing::warn!(target: "plugin", plugin, slot, "{line}"),
        2 => tracing::info!(target: "plugin", plugin, slot, "{line}"),
        _ => tracing::debug!(target: "plugin", plugin, slot, "{line}"),
    }
    if turn == LogTurn::LogAndWarn {
        tracing::warn!(
            target: "plugin",
            plugin,
            "the plugin logs too much: its lines are dropped for the rest of this second"
        );
    }
    Ok(())
}

fn abort(mut guest: Guest<'_>, ptr: u32, len: u32) -> wasmtime::Result<()> {
    let (memory, _) = parts(&mut guest)?;
    let text = window(memory, "panic text", ptr, len)?;
    charge(&mut guest, fuel::CALL + fuel::moved(text.len()))?;
    let (memory, _) = parts(&mut guest)?;
    Err(Stop::plugin(FailureKind::Panic, clip(&memory[text], MAX_MESSAGE_BYTES)))
}
