//! What makes a write take effect once, however often it is sent: the client's
//! session, the numbers of its writes, and which of them are still outstanding.
//!
//! Invariants:
//! - A number is given to one write only.
//! - `acked_below` never exceeds the number of a write whose caller still waits
//!   for its result. A write is outstanding until its [`Ticket`] is dropped,
//!   whether it was answered, given up or cancelled.
//! - What is sent again carries the very same [`Once`].

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use raft_kv_proto::v1::Once;

/// How much longer than its request timeout a write stays valid, for clocks that
/// differ and for copies of it that are late.
pub(crate) const VALIDITY_SLACK: Duration = Duration::from_secs(30);

/// The writes of one client; its clones share it.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    window: Mutex<Window>,
}

/// The numbers given and not yet settled. They are taken out in order, so that
/// each costs a constant time.
#[derive(Debug)]
struct Window {
    /// The least outstanding number; the next to be given if none is.
    first: u64,
    /// Whether `first` and those after it are outstanding; the front always is.
    outstanding: VecDeque<bool>,
}

/// The numbers of the writes of one request. They are outstanding until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    session: Arc<Session>,
    numbers: Range<u64>,
    not_after_ms: u64,
    acked_below: u64,
}

impl Session {
    /// A session that no other client has.
    pub fn new() -> Arc<Self> {
        let window = Window { first: 1, outstanding: VecDeque::new() };
        Arc::new(Self { id: rand::random_range(1..=u64::MAX), window: Mutex::new(window) })
    }

    /// Numbers for so many writes, valid until `not_after_ms` by the cluster's
    /// clock, in milliseconds since 1970.
    pub fn begin(self: &Arc<Self>, writes: usize, not_after_ms: u64) -> Ticket {
        let mut window = self.window();
        let next = window.first + window.outstanding.len() as u64;
        let length = window.outstanding.len() + writes;
        window.outstanding.resize(length, true);
        Ticket {
            session: self.clone(),
            numbers: next..next + writes as u64,
            not_after_ms,
            acked_below: window.first,
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// What to send along with the write at this place of the request.
    ///
    /// # Panics
    /// If the ticket is for fewer writes.
    pub fn once(&self, place: usize) -> Once {
        let sequence = self.numbers.start + place as u64;
        assert!(self.numbers.contains(&sequence), "a ticket has a number for each write");
        Once {
            session: self.session.id,
            sequence,
            not_after_ms: self.not_after_ms,
            acked_below: self.acked_below,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.window().settle(self.numbers.clone());
    }
}

impl Window {
    fn settle(&mut self, numbers: Range<u64>) {
        for number in numbers {
            let place = usize::try_from(number - self.first).expect("the window fits in memory");
            self.outstanding[place] = false;
        }
        while self.outstanding.front() == Some(&false) {
            self.outstanding.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_one_and_sessions_differ() {
        let session = Session::new();
        let (first, second) = (session.begin(1, 7), session.begin(1, 8));
        assert_eq!((first.once(0).sequence, second.once(0).sequence), (1, 2));
        assert_eq!((first.once(0).not_after_ms, second.once(0).not_after_ms), (7, 8));
        assert_eq!(first.once(0).session, second.once(0).session);
        assert_ne!(first.once(0).session, 0);
        assert_ne!(first.once(0).session, Session::new().begin(1, 7).once(0).session);
    }

    #[test]
    fn nothing_outstanding_is_ever_acknowledged() {
        let session = Session::new();
        let acked_below = || session.begin(1, 1).once(0).acked_below;
        let first = session.begin(1, 1);
        let second = session.begin(1, 1);
        let third = session.begin(1, 1);
        assert_eq!(acked_below(), 1);
        drop(second);
        assert_eq!(acked_below(), 1, "the first is outstanding");
        drop(first);
        assert_eq!(acked_below(), 3, "the third is the least outstanding");
        drop(third);
        // Three numbers above the third's were given to look at the window.
        assert_eq!(acked_below(), 7);
    }

    #[test]
    fn a_ticket_stays_as_it_was_when_others_are_settled() {
        let session = Session::new();
        let first = session.begin(1, 1);
        let second = session.begin(1, 1);
        let before = second.once(0);
        drop(first);
        assert_eq!(second.once(0), before);
    }

    #[test]
    fn the_writes_of_a_batch_are_outstanding_together() {
        let session = Session::new();
        let single = session.begin(1, 1);
        let batch = session.begin(3, 1);
        let sequences: Vec<u64> = (0..3).map(|place| batch.once(place).sequence).collect();
        assert_eq!(sequences, [2, 3, 4]);
        drop(single);
        assert_eq!(session.begin(0, 1).acked_below, 2);
        drop(batch);
        assert_eq!(session.begin(1, 1).once(0).sequence, 5);
        assert_eq!(session.begin(0, 1).acked_below, 6);
    }

    #[test]
    fn the_window_is_empty_once_all_is_settled() {
        let session = Session::new();
        let tickets: Vec<Ticket> = (0..1000).map(|_| session.begin(1, 1)).collect();
        let (even, odd): (Vec<_>, Vec<_>) =
            tickets.into_iter().partition(|ticket| ticket.numbers.start % 2 == 0);
        drop(even);
        assert_eq!(session.window().outstanding.len(), 1000);
        drop(odd);
        let window = session.window();
        assert_eq!((window.first, window.outstanding.len()), (1001, 0));
    }
}
