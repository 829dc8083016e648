//! Group commit: while one thread is writing and syncing, the writes of others
//! gather and go to disk together as the next round, with a single fsync.
//!
//! Invariants:
//! - at most one thread leads, so rounds, and with them writes, have one order;
//! - every request gets exactly one result, even if a commit panics;
//! - after a panic nothing is committed any more: what it left undone is unknown.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
};

use parking_lot::{Condvar, Mutex};

use crate::log_store::{Durability, LogStoreError, LogWrite};

/// Bytes beyond which a round takes no more requests.
const ROUND_LIMIT_BYTES: usize = 32 << 20;

/// The result of one request.
pub(super) type Outcome = Result<(), LogStoreError>;

/// A write that waits for its turn.
pub(super) struct Request {
    pub(super) write: LogWrite,
    pub(super) durability: Durability,
    /// Roughly what the entries in it take up.
    pub(super) entry_bytes: usize,
}

impl Request {
    /// Whether the write appends anything.
    pub(super) fn holds_entries(&self) -> bool {
        self.entry_bytes > 0
    }
}

/// The queue. See the module.
#[derive(Default)]
pub(super) struct CommitQueue {
    state: Mutex<State>,
    round_ended: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Request)>,
    outcomes: HashMap<u64, Outcome>,
    next_ticket: u64,
    is_led: bool,
    has_panicked: bool,
}

impl CommitQueue {
    /// Has a request committed, by this thread or another, and returns its outcome.
    /// `commit` is given a round of requests and returns an outcome for each.
    pub(super) fn submit(
        &self,
        request: Request,
        commit: impl Fn(Vec<Request>) -> Vec<Outcome>,
    ) -> Outcome {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back((ticket, request));
        loop {
            if let Some(outcome) = state.outcomes.remove(&ticket) {
                return outcome;
            }
            if state.is_led {
                self.round_ended.wait(&mut state);
                continue;
            }
            state.is_led = true;
            let (tickets, requests) = state.take_round();
            let outcomes = match state.has_panicked {
                true => None,
                false => {
                    drop(state);
                    let outcomes = catch_unwind(AssertUnwindSafe(|| commit(requests))).ok();
                    state = self.state.lock();
                    outcomes
                }
            };
            state.is_led = false;
            state.end_round(tickets, outcomes);
            self.round_ended.notify_all();
        }
    }
}

impl State {
    /// Takes the oldest requests, at least one, as many as a round may hold.
    fn take_round(&mut self) -> (Vec<u64>, Vec<Request>) {
        let mut bytes = 0;
        let within_limit = self.waiting.iter().take_while(|(_, request)| {
            let is_first = bytes == 0;
            bytes += request.entry_bytes.max(1);
            is_first || bytes <= ROUND_LIMIT_BYTES
        });
        let count = within_limit.count();
        self.waiting.drain(..count).unzip()
    }

    /// Notes the outcomes of a round; there are none if its commit panicked.
    fn end_round(&mut self, tickets: Vec<u64>, outcomes: Option<Vec<Outcome>>) {
        self.has_panicked |= outcomes.is_none();
        let panicked = || Err(LogStoreError::Write("a writer panicked".to_owned()));
        let outcomes = outcomes.unwrap_or_else(|| tickets.iter().map(|_| panicked()).collect());
        self.outcomes.extend(tickets.into_iter().zip(outcomes));
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    fn request(entry_bytes: usize) -> Request {
        Request { write: LogWrite::new(), durability: Durability::Synced, entry_bytes }
    }

    #[test]
    fn requests_made_during_a_commit_share_the_next_round() {
        let queue = CommitQueue::default();
        let rounds = Mutex::new(Vec::new());
        let (leading, released) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let commit = |requests: Vec<Request>| {
                    rounds.lock().push(requests.len());
                    if rounds.lock().len() == 1 {
                        leading.wait();
                        released.wait();
                    }
                    requests.iter().map(|_| Ok(())).collect()
                };
                queue.submit(request(1), commit).unwrap();
            });
            leading.wait();
            for _ in 0..3 {
                scope.spawn(|| {
                    let commit = |requests: Vec<Request>| {
                        rounds.lock().push(requests.len());
                        requests.iter().map(|_| Ok(())).collect()
                    };
                    queue.submit(request(1), commit).unwrap();
                });
            }
            while queue.state.lock().waiting.len() < 3 {
                thread::yield_now();
            }
            released.wait();
        });
        assert_eq!(*rounds.lock(), [1, 3]);
    }

    #[test]
    fn round_is_bounded_but_never_empty() {
        let mut state = State::default();
        for (ticket, bytes) in [(0, ROUND_LIMIT_BYTES * 2), (1, 8), (2, 8)] {
            state.waiting.push_back((ticket, request(bytes)));
        }
        assert_eq!(state.take_round().0, [0]);
        assert_eq!(state.take_round().0, [1, 2]);
    }

    #[test]
    fn nothing_is_committed_after_a_panic() {
        let queue = CommitQueue::default();
        let outcome = queue.submit(request(1), |_| panic!("on purpose"));
        assert!(matches!(outcome, Err(LogStoreError::Write(_))));
        let outcome = queue.submit(request(1), |_| vec![Ok(())]);
        assert!(matches!(outcome, Err(LogStoreError::Write(_))));
    }
}
