//! The ABI's imports, and the backend of a context in WebAssembly: it has no data, each of its
//! methods is one call of the host.
//!
//! Two rules of the ABI are kept here: a pointer goes with the number of bytes that may be read or
//! written there, and a size beyond the room that was given means that nothing was written.

use std::marker::PhantomData;

use crate::context::{Level, Place};
use crate::scan::ScanRange;
use crate::{Buffer, Failure};

mod raw {
    #[link(wasm_import_module = "raftkv_v1")]
    unsafe extern "C" {
        pub fn exchange(
            response: *const u8,
            response_len: usize,
            buf: *mut u8,
            cap: usize,
            place: *mut u8,
        ) -> i64;
        pub fn get(key: *const u8, key_len: usize, buf: *mut u8, cap: usize) -> i64;
        pub fn get_many(keys: *const u8, keys_len: usize, buf: *mut u8, cap: usize) -> i64;
        pub fn put(key: *const u8, key_len: usize, value: *const u8, value_len: usize);
        pub fn delete(key: *const u8, key_len: usize);
        pub fn scan_open(
            start: *const u8,
            start_len: usize,
            end: *const u8,
            end_len: isize,
            flags: u32,
        ) -> u32;
        pub fn scan_next(handle: u32, buf: *mut u8, cap: usize) -> i64;
        pub safe fn scan_close(handle: u32);
        pub fn fail(code: u32, ptr: *const u8, len: usize);
        pub fn context(buf: *mut u8, cap: usize) -> i64;
        pub fn log(level: u32, ptr: *const u8, len: usize);
        pub fn abort(ptr: *const u8, len: usize) -> !;
    }
}

/// `end_len` of a scan without an upper bound.
const NO_END: isize = -1;

/// Size of the context record, and of the part of it that says where a command stands.
const CONTEXT_LEN: usize = 64;
const PLACE_LEN: usize = 24;

/// The host, as a context sees it.
pub struct Backend<'h>(PhantomData<&'h mut ()>);

impl Backend<'_> {
    pub const fn new() -> Self {
        Self(PhantomData)
    }

    pub fn get(&self, key: &[u8], value: &mut Vec<u8>) -> bool {
        append(value, |buf, cap| {
            // SAFETY: `key` is a slice, and `append` gives a buffer of `cap` bytes.
            unsafe { raw::get(key.as_ptr(), key.len(), buf, cap) }
        })
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        // SAFETY: `key` is a slice, and a buffer of 0 bytes is not written to.
        let size = unsafe { raw::get(key.as_ptr(), key.len(), std::ptr::null_mut(), 0) };
        size >= 0
    }

    pub fn get_many<'k>(&self, keys: impl Iterator<Item = &'k [u8]>, values: &mut Vec<u8>) {
        let mut list = Buffer::new();
        for key in keys {
            list.extend_from_slice(&(key.len() as u32).to_le_bytes());
            list.extend_from_slice(key);
        }
        append(values, |buf, cap| {
            // SAFETY: `list` is a slice, and `append` gives a buffer of `cap` bytes.
            unsafe { raw::get_many(list.as_ptr(), list.len(), buf, cap) }
        });
    }

    pub fn put(&self, key: &[u8], value: &[u8]) {
        // SAFETY: both are slices.
        unsafe { raw::put(key.as_ptr(), key.len(), value.as_ptr(), value.len()) }
    }

    pub fn delete(&self, key: &[u8]) {
        // SAFETY: `key` is a slice.
        unsafe { raw::delete(key.as_ptr(), key.len()) }
    }

    pub fn scan_open(&self, range: &ScanRange<'_>) -> u32 {
        let (end, end_len) = match range.end {
            Some(end) => (end.as_ptr(), end.len() as isize),
            None => (std::ptr::null(), NO_END),
        };
        let flags = u32::from(range.reverse);
        // SAFETY: both bounds are slices, and an `end_len` of -1 stands for no end at all.
        unsafe { raw::scan_open(range.start.as_ptr(), range.start.len(), end, end_len, flags) }
    }

    /// Appends whole rows of at most `max_bytes` in all, or a single one that has more.
    ///
    /// The room offered does not hang on how much the buffer happens to have, so that the rows read
    /// ahead, and their fuel, are the same in every instance.
    pub fn scan_next(&self, handle: u32, max_bytes: usize, rows: &mut Vec<u8>) {
        let mut cap = max_bytes;
        loop {
            rows.reserve(cap);
            let start = rows.len();
            // SAFETY: there are `cap` bytes of room behind the rows.
            let size =
                unsafe { raw::scan_next(handle, rows.as_mut_ptr().add(start), cap) } as usize;
            if size <= cap {
                // SAFETY: the host wrote `size` bytes there, within the capacity.
                unsafe { rows.set_len(start + size) };
                return;
            }
            cap = size;
        }
    }

    pub fn scan_close(&self, handle: u32) {
        raw::scan_close(handle);
    }

    pub fn place(&self) -> Place {
        Place::read(&context())
    }

    pub fn seed(&self) -> [u8; 32] {
        field(&context(), 32)
    }

    pub fn log(&self, level: Level, message: &str) {
        // SAFETY: `message` is a slice.
        unsafe { raw::log(level as u32, message.as_ptr(), message.len()) }
    }
}

fn context() -> [u8; CONTEXT_LEN] {
    let mut record = [0; CONTEXT_LEN];
    // SAFETY: `record` has that many bytes.
    unsafe { raw::context(record.as_mut_ptr(), CONTEXT_LEN) };
    record
}

impl Place {
    /// Reads what the first bytes of the context record say.
    #[inline]
    fn read(record: &[u8]) -> Self {
        Self {
            log_index: u64::from_le_bytes(field(record, 0)),
            time_ms: u64::from_le_bytes(field(record, 8)),
            slot: u32::from_le_bytes(field(record, 16)),
            position: u32::from_le_bytes(field(record, 20)),
        }
    }
}

fn field<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    *record[at..].first_chunk().expect("the field lies within the record")
}

/// Ends the running command with its response and reads the next into `command`, or says that there
/// is none.
pub fn exchange(response: &[u8], command: &mut Vec<u8>) -> bool {
    turn(response, command, std::ptr::null_mut())
}

/// The same, and says where the next one stands.
#[inline]
pub fn exchange_placed(response: &[u8], command: &mut Vec<u8>) -> Option<Place> {
    let mut record = [0; PLACE_LEN];
    turn(response, command, record.as_mut_ptr()).then(|| Place::read(&record))
}

/// `place` has room for [`PLACE_LEN`] bytes, or is null.
#[cfg_attr(feature = "small-allocator", inline(never))]
fn turn(mut response: &[u8], command: &mut Vec<u8>, place: *mut u8) -> bool {
    command.clear();
    append(command, |buf, cap| {
        // It is taken by the first call, whether the command fits or not.
        let response = std::mem::take(&mut response);
        // SAFETY: `response` is a slice, and `append` gives a buffer of `cap` bytes; the caller vouches
        // for `place`.
        unsafe { raw::exchange(response.as_ptr(), response.len(), buf, cap, place) }
    })
}

/// Makes the running command fail.
pub fn fail(failure: &Failure) {
    // SAFETY: the message is a slice.
    unsafe { raw::fail(failure.code, failure.message.as_ptr(), failure.message.len()) }
}

/// Ends the running command and this instance with the text of a panic.
pub fn abort(text: &str) -> ! {
    // SAFETY: `text` is a slice.
    unsafe { raw::abort(text.as_ptr(), text.len()) }
}

/// Lets `call` write into the spare room of `bytes`, twice if it was too small, and says whether there
/// was anything (an empty value is something).
fn append(bytes: &mut Vec<u8>, mut call: impl FnMut(*mut u8, usize) -> i64) -> bool {
    loop {
        let room = bytes.spare_capacity_mut();
        let cap = room.len();
        let size = call(room.as_mut_ptr().cast(), cap);
        if size < 0 {
            return false;
        }
        let size = size as usize;
        if size <= cap {
            // SAFETY: the host wrote `size` bytes behind the first `len`, within the capacity.
            unsafe { bytes.set_len(bytes.len() + size) };
            return true;
        }
        bytes.reserve(size);
    }
}
