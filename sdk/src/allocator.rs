//! The allocator that the feature `small-allocator` gives a module: some hundred bytes of code instead of
//! the standard library's nine thousand.
//!
//! Blocks have sizes that are powers of two; each size has a list of those that are free. Nothing is
//! split, joined or given back. So a module needs up to twice the memory it asks for, and more if it
//! uses many sizes one after the other: it is for plugins whose messages are small.

use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// Size of the smallest block, in bytes: it has room for the link of a list.
const MIN_BLOCK: usize = 16;

/// Blocks that must be aligned to more than this, in bytes, are not used again.
const MAX_ALIGN: usize = 16;

/// Where memory comes from.
pub trait Source {
    /// Gives at least `bytes` more bytes, aligned to [`MAX_ALIGN`]; `None` if there are no more.
    fn grow(&mut self, bytes: usize) -> Option<Fresh>;
}

/// Memory that nobody uses yet.
pub struct Fresh {
    pub start: NonNull<u8>,
    pub len: usize,
}

/// The blocks that are free, and the memory that was never used.
pub struct Blocks {
    /// The first free block of each size, by the logarithm of the size. Each holds the next one's
    /// address.
    free: [*mut u8; usize::BITS as usize],
    unused: *mut u8,
    unused_len: usize,
}

impl Blocks {
    pub const fn new() -> Self {
        let free = [ptr::null_mut(); usize::BITS as usize];
        Self { free, unused: ptr::null_mut(), unused_len: 0 }
    }

    /// A block for `layout`, or null if there is no more memory.
    pub fn allocate(&mut self, layout: Layout, source: &mut impl Source) -> *mut u8 {
        let Some(size) = block_size(layout.size()) else {
            return ptr::null_mut();
        };
        let list = size.trailing_zeros() as usize;
        let block = self.free[list];
        if layout.align() > MAX_ALIGN || block.is_null() {
            return self.cut(size, layout.align().max(MAX_ALIGN), source);
        }
        // SAFETY: the block is free, so it holds the next one's address, and nobody else uses it.
        self.free[list] = unsafe { block.cast::<*mut u8>().read() };
        block
    }

    /// Frees a block.
    ///
    /// # Safety
    /// It came from [`allocate`](Self::allocate) with the same layout, and nobody uses it any more.
    pub unsafe fn free(&mut self, block: *mut u8, layout: Layout) {
        if let (Some(size), true) = (block_size(layout.size()), layout.align() <= MAX_ALIGN) {
            let list = size.trailing_zeros() as usize;
            // SAFETY: the block is aligned and large enough for an address, and now ours.
            unsafe { block.cast::<*mut u8>().write(self.free[list]) };
            self.free[list] = block;
        }
    }

    /// Cuts a block off the memory that was never used. What is left of it when it is too short is
    /// given up.
    fn cut(&mut self, size: usize, align: usize, source: &mut impl Source) -> *mut u8 {
        let mut skipped = self.unused.align_offset(align);
        if skipped.saturating_add(size) > self.unused_len {
            let Some(fresh) = source.grow(size.saturating_add(align - MAX_ALIGN)) else {
                return ptr::null_mut();
            };
            let follows = self.unused.wrapping_add(self.unused_len) == fresh.start.as_ptr();
            self.unused_len = if follows { self.unused_len + fresh.len } else { fresh.len };
            self.unused = if follows { self.unused } else { fresh.start.as_ptr() };
            skipped = self.unused.align_offset(align);
        }
        let block = self.unused.wrapping_add(skipped);
        self.unused = block.wrapping_add(size);
        self.unused_len -= skipped + size;
        block
    }
}

/// The size of the block for `size` bytes; `None` if there is none so large.
fn block_size(size: usize) -> Option<usize> {
    size.max(MIN_BLOCK).checked_next_power_of_two()
}

#[cfg(target_arch = "wasm32")]
mod global {
    use std::alloc::{GlobalAlloc, Layout};
    use std::arch::wasm32::memory_grow;
    use std::cell::UnsafeCell;
    use std::ptr::NonNull;

    use super::{Blocks, Fresh, Source, block_size};

    const PAGE_BYTES: usize = 64 * 1024;

    /// The module's linear memory.
    struct Memory;

    impl Source for Memory {
        fn grow(&mut self, bytes: usize) -> Option<Fresh> {
            let pages = bytes.div_ceil(PAGE_BYTES);
            let before = memory_grow::<0>(pages);
            let start = NonNull::new(before.checked_mul(PAGE_BYTES)? as *mut u8)?;
            Some(Fresh { start, len: pages * PAGE_BYTES })
        }
    }

    struct Allocator(UnsafeCell<Blocks>);

    // SAFETY: a plugin has one thread; the host refuses modules with more.
    unsafe impl Sync for Allocator {}

    // SAFETY: blocks are as large and aligned as asked for, and belong to one caller until freed.
    unsafe impl GlobalAlloc for Allocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: there is one thread, and nothing in there calls back.
            unsafe { &mut *self.0.get() }.allocate(layout, &mut Memory)
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: as above; the caller vouches for the block.
            unsafe { (*self.0.get()).free(block, layout) }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            if block_size(size) == block_size(layout.size()) {
                return block;
            }
            // SAFETY: the caller vouches for the block and the size; the two blocks are different.
            unsafe {
                let other = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                if !other.is_null() {
                    block.copy_to_nonoverlapping(other, size.min(layout.size()));
                    self.dealloc(block, layout);
                }
                other
            }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator(UnsafeCell::new(Blocks::new()));
}

#[cfg(test)]
mod tests {
    use std::alloc::Layout;
    use std::ptr::NonNull;

    use super::{Blocks, Fresh, Source};
    use crate::Random;

    const PAGE: usize = 64 * 1024;

    /// Pages of an arena, which follow each other.
    struct Arena {
        memory: Vec<u128>,
        used: usize,
    }

    impl Arena {
        fn of_pages(pages: usize) -> Self {
            Self { memory: vec![0; pages * PAGE / 16], used: 0 }
        }
    }

    impl Source for Arena {
        fn grow(&mut self, bytes: usize) -> Option<Fresh> {
            let len = bytes.next_multiple_of(PAGE);
            let rest = self.memory.get_mut(self.used / 16..)?;
            if len > rest.len() * 16 {
                return None;
            }
            self.used += len;
            Some(Fresh { start: NonNull::new(rest.as_mut_ptr().cast())?, len })
        }
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("the alignment is a power of two")
    }

    #[test]
    fn blocks_in_use_do_not_overlap_and_keep_what_is_written() {
        let mut random = Random::from_seed([4; 32]);
        let mut arena = Arena::of_pages(400);
        let mut blocks = Blocks::new();
        let mut used: Vec<(*mut u8, Layout, u8)> = Vec::new();
        for step in 0..4_000 {
            if used.len() > 20 || (random.below(3) == 0 && !used.is_empty()) {
                let (block, layout, mark) =
                    used.swap_remove(random.below(used.len() as u64) as usize);
                for at in 0..layout.size() {
                    // SAFETY: the block has that many bytes, all of which were written.
                    assert_eq!(unsafe { block.add(at).read() }, mark);
                }
                // SAFETY: it came from there, and is no longer in the list of those in use.
                unsafe { blocks.free(block, layout) };
                continue;
            }
            let align = 1 << random.below(5);
            let limit = 1 << random.below(15);
            let layout = layout(random.below(limit) as usize, align);
            let block = blocks.allocate(layout, &mut arena);
            assert!(!block.is_null());
            assert_eq!(block as usize % align, 0);
            // SAFETY: the block has that many bytes.
            unsafe { block.write_bytes(step as u8, layout.size()) };
            used.push((block, layout, step as u8));
        }
        assert!(arena.used < 30 * PAGE, "freed blocks are used again: {}", arena.used);
    }

    #[test]
    fn large_alignments_are_kept() {
        let mut arena = Arena::of_pages(8);
        let mut blocks = Blocks::new();
        for align in [32, 4_096, 64] {
            let block = blocks.allocate(layout(10, align), &mut arena);
            assert_eq!(block as usize % align, 0);
            // SAFETY: it came from there.
            unsafe { blocks.free(block, layout(10, align)) };
        }
    }

    #[test]
    fn without_memory_there_is_no_block() {
        let mut arena = Arena::of_pages(1);
        let mut blocks = Blocks::new();
        assert!(blocks.allocate(layout(2 * PAGE, 1), &mut arena).is_null());
        assert!(blocks.allocate(layout(isize::MAX as usize, 1), &mut arena).is_null());
        assert!(!blocks.allocate(layout(PAGE, 1), &mut arena).is_null());
        assert!(blocks.allocate(layout(1, 1), &mut arena).is_null());
    }
}
