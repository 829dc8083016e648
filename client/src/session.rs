//! A client's session: the numbers that make its writes take effect once.
//!
//! Invariants:
//! - a number is given to one write, which keeps it however often it is sent;
//! - `acked_below` never passes a write whose result is still waited for.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use raft_kv_proto::v1::Once;

/// A session; clones of a client share it.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    window: Mutex<Window>,
}

/// The writes from the oldest that is waited for to the newest.
#[derive(Debug)]
struct Window {
    /// Number of the oldest.
    first: u64,
    /// Of each from there on, whether it is over.
    over: VecDeque<bool>,
}

/// A write under way. Its result is needed until this is dropped.
#[derive(Debug)]
pub(crate) struct Write {
    session: Arc<Session>,
    once: Once,
}

impl Session {
    /// A new session.
    pub(crate) fn new() -> Arc<Self> {
        let window = Window { first: 1, over: VecDeque::new() };
        let id = rand::random_range(1..=u64::MAX);
        Arc::new(Session { id, window: Mutex::new(window) })
    }

    /// Begins a write that must not take effect after `not_after_ms`.
    pub(crate) fn begin(self: &Arc<Self>, not_after_ms: u64) -> Write {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = window.first + window.over.len() as u64;
        window.over.push_back(false);
        let acked_below = window.first;
        drop(window);
        let once = Once { session: self.id, sequence, not_after_ms, acked_below };
        Write { session: Arc::clone(self), once }
    }
}

impl Write {
    /// What is sent with the write.
    pub(crate) fn once(&self) -> Once {
        self.once
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        let mut window = self.session.window.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (self.once.sequence - window.first) as usize;
        window.over[place] = true;
        while window.over.front() == Some(&true) {
            window.over.pop_front();
            window.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(write: &Write) -> (u64, u64) {
        (write.once().sequence, write.once().acked_below)
    }

    #[test]
    fn the_oldest_write_under_way_holds_the_rest_back() {
        let session = Session::new();
        let first = session.begin(9);
        let second = session.begin(9);
        let third = session.begin(9);
        assert_eq!([&first, &second, &third].map(numbers), [(1, 1), (2, 1), (3, 1)]);
        drop(second);
        assert_eq!(numbers(&session.begin(9)), (4, 1));
        drop(first);
        // The third is the oldest now; the fourth was over at once.
        assert_eq!(numbers(&session.begin(9)), (5, 3));
        drop(third);
        assert_eq!(numbers(&session.begin(9)), (6, 6));
    }

    #[test]
    fn sessions_are_told_apart() {
        let (one, other) = (Session::new(), Session::new());
        assert_ne!(one.begin(9).once().session, 0);
        assert_ne!(one.begin(9).once().session, other.begin(9).once().session);
    }
}
