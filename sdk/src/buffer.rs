//! Byte buffers that are used again: a [`Buffer`] gives its memory back to a small pool when it is
//! dropped, so that a batch of commands of ordinary size allocates nothing once it is under way.
//!
//! The pool is the one thing that outlives a command, and no result may depend on it. It holds no
//! content: a buffer leaves the pool empty. It does make a difference to the fuel used, because a
//! value that does not fit is asked for twice. That difference is bounded by
//! [`KEPT_BUFFERS`] buffers growing a few times each, some ten thousand units of fuel, far below the
//! half of the limit that the host keeps in reserve for a fresh instance.
//!
//! Making and dropping one is part of each function that does it, except in modules that are to be small.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Capacity of a new buffer, in bytes: enough for most keys and values to fit at the first call.
const FIRST_CAPACITY: usize = 1024;

/// How many idle buffers are kept.
const KEPT_BUFFERS: usize = 8;

/// A buffer that grew beyond this, in bytes, is freed instead of kept, so that one large value does
/// not use up the instance's memory for good.
const KEPT_CAPACITY: usize = 256 * 1024;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

/// The idle buffers. In an array, so that keeping one never allocates.
struct Pool {
    buffers: [Vec<u8>; KEPT_BUFFERS],
    count: usize,
}

impl Pool {
    const fn new() -> Self {
        Self { buffers: [const { Vec::new() }; KEPT_BUFFERS], count: 0 }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        self.count = self.count.checked_sub(1)?;
        Some(std::mem::take(self.buffers.get_mut(self.count)?))
    }

    /// Keeps a buffer, or frees it if there are enough.
    #[inline]
    fn keep(&mut self, buffer: Vec<u8>) {
        if let Some(place) = self.buffers.get_mut(self.count) {
            // What was there has no memory.
            std::mem::forget(std::mem::replace(place, buffer));
            self.count += 1;
        }
    }
}

/// A growable byte buffer, used like the `Vec<u8>` it derefs to.
///
/// Values read from storage come in one; returned as the response, it is not copied again.
#[derive(Debug, Eq)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// An empty buffer, with some room.
    #[must_use]
    #[cfg_attr(all(target_arch = "wasm32", feature = "small-allocator"), inline(never))]
    #[cfg_attr(not(all(target_arch = "wasm32", feature = "small-allocator")), inline)]
    pub fn new() -> Self {
        // A `borrow_mut` would bring its panic's text into every module.
        let kept = POOL.try_with(|pool| pool.try_borrow_mut().ok()?.take());
        Self(kept.ok().flatten().unwrap_or_else(Self::fresh))
    }

    /// Memory for one more buffer. Rare, and not to be part of each function that wants a buffer.
    #[cold]
    #[inline(never)]
    fn fresh() -> Vec<u8> {
        Vec::with_capacity(FIRST_CAPACITY)
    }

    /// The bytes as a plain vector, which does not return to the pool.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Buffer {
    #[cfg_attr(all(target_arch = "wasm32", feature = "small-allocator"), inline(never))]
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if !(FIRST_CAPACITY..=KEPT_CAPACITY).contains(&bytes.capacity()) {
            return;
        }
        bytes.clear();
        // The pool is gone only while its thread ends; then the buffer is simply freed.
        let _ = POOL.try_with(|pool| pool.try_borrow_mut().map(|mut pool| pool.keep(bytes)));
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.as_slice().into()
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Buffer {
    fn eq(&self, other: &T) -> bool {
        self.0 == other.as_ref()
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::new();
        buffer.extend_from_slice(bytes);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, KEPT_BUFFERS, KEPT_CAPACITY, POOL};

    fn kept() -> usize {
        POOL.with_borrow(|pool| pool.count)
    }

    #[test]
    fn a_dropped_buffer_is_used_again_and_comes_back_empty() {
        let mut buffer = Buffer::new();
        buffer.extend_from_slice(b"something");
        let memory = buffer.as_ptr();
        drop(buffer);
        let again = Buffer::new();
        assert_eq!(again.as_ptr(), memory);
        assert!(again.is_empty());
    }

    #[test]
    fn the_pool_keeps_neither_many_buffers_nor_large_ones() {
        drop((0..2 * KEPT_BUFFERS).map(|_| Buffer::new()).collect::<Vec<_>>());
        assert_eq!(kept(), KEPT_BUFFERS);
        let _taken = Buffer::new();
        drop(Buffer::from(Vec::with_capacity(KEPT_CAPACITY + 1)));
        assert_eq!(kept(), KEPT_BUFFERS - 1);
    }

    #[test]
    fn a_buffer_turned_into_a_vector_leaves_the_pool_alone() {
        let before = kept();
        assert_eq!(Buffer::from(b"kept".as_slice()).into_vec(), b"kept");
        assert_eq!(kept(), before.saturating_sub(1));
    }
}
