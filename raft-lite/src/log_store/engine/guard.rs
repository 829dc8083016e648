//! Keeps two habits of raft-engine from reaching its users.
//!
//! It panics on some failures, a failed fsync among them: [`without_panic`] makes
//! them errors. And it keeps the block it read last in a thread local that knows
//! only the block's position, not whose file it was in: a thread that reads from
//! two stores, say before and after a simulated restart, can be served the one's
//! entries for the other's. [`with_own_cache`] prevents that.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

thread_local! {
    /// The only store that this thread reads from directly; zero if there is none.
    static CACHE_OWNER: Cell<u64> = const { Cell::new(0) };
}

/// Runs a read of a store where raft-engine's cache holds nothing of another one:
/// on this thread if it reads only from this store, else on one made for it.
pub(super) fn with_own_cache<T: Send>(store: u64, read: impl FnOnce() -> T + Send) -> T {
    if CACHE_OWNER.get() == 0 {
        CACHE_OWNER.set(store);
    }
    if CACHE_OWNER.get() == store {
        return read();
    }
    thread::scope(|scope| scope.spawn(read).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs something of raft-engine and makes a message of whatever goes wrong.
pub(super) fn without_panic<T>(run: impl FnOnce() -> raft_engine::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(panic_text(panic.as_ref())),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("raft-engine panicked: {}", text.unwrap_or("no reason given"))
}
