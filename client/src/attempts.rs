//! One request from its first attempt to its deadline: how long each attempt may
//! take, how long to pause before the next, and what to report in the end.
//!
//! Invariant: an error that says that nothing happened is reported only if that
//! is so of all attempts.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    error::{Error, Result},
    failure::{Failure, Kind},
};

/// The first retry is immediate; those after it wait, at most so long.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a request follows a hint to a leader without a pause.
const HASTY_HOPS: u32 = 3;
/// An attempt that goes by way of another node, while the leader cannot be
/// reached, is given no longer than this, so that a new leader is found soon.
const DETOUR: Duration = Duration::from_millis(300);
/// Detours that may take too long before they are given twice the time.
const DETOURS_OF_EQUAL_LENGTH: u32 = 4;

/// The attempts of one request.
#[derive(Debug)]
pub(crate) struct Attempts {
    pub deadline: Instant,
    /// How long the first attempt may take.
    patience: Duration,
    /// Attempts that ran out of time.
    late: u32,
    pause: Duration,
    hops: u32,
    /// How the last attempt failed.
    last: Option<Failure>,
    /// The failure of an attempt that may have been carried out.
    doubt: Option<Error>,
}

impl Attempts {
    /// Attempts from now on, the first of which may take `patience`, or half of
    /// the request's time.
    pub fn new(now: Instant, request_timeout: Duration, patience: Duration) -> Self {
        Self {
            deadline: now + request_timeout,
            patience: patience.min(request_timeout / 2),
            late: 0,
            pause: Duration::ZERO,
            hops: 0,
            last: None,
            doubt: None,
        }
    }

    /// Until when an attempt may go on that begins now. Each time one ran out of
    /// time the next may take twice as long.
    pub fn until(&self, now: Instant, is_detour: bool) -> Instant {
        let time = self.patience * (1 << self.late.min(8));
        let detour = DETOUR * (1 << (self.late / DETOURS_OF_EQUAL_LENGTH).min(8));
        let time = if is_detour { time.min(detour) } else { time };
        self.deadline.min(now + time)
    }

    /// Takes note of a failed attempt. Gives what it says about the next one.
    ///
    /// # Errors
    /// If there shall be none.
    pub fn failed(&mut self, failure: Failure) -> Result<&Kind> {
        if matches!(failure.kind, Kind::Unknown) {
            self.doubt = Some(failure.error.clone());
        }
        if matches!(failure.error, Error::Timeout { .. }) {
            self.late += 1;
        }
        let is_final = matches!(failure.kind, Kind::Final | Kind::Expired);
        self.last = Some(failure);
        if is_final || Instant::now() >= self.deadline {
            return Err(self.verdict());
        }
        Ok(&self.last.as_ref().expect("it was just set").kind)
    }

    /// Whether an attempt that failed may have been carried out.
    pub fn is_doubtful(&self) -> bool {
        self.doubt.is_some()
    }

    /// Whether a hint to a leader may be followed without a pause.
    pub fn may_hop(&mut self) -> bool {
        self.hops += 1;
        self.hops <= HASTY_HOPS
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// If the deadline comes first.
    pub async fn pause(&mut self) -> Result<()> {
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
        if Instant::now() + pause >= self.deadline {
            return Err(self.verdict());
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        Ok(())
    }

    /// What became of the request: the last failure, unless that claims that
    /// nothing happened and an earlier one leaves that open.
    fn verdict(&mut self) -> Error {
        let last = self.last.take().expect("a verdict follows a failed attempt");
        match self.doubt.take() {
            Some(doubt) if last.is_without_effect() => doubt,
            _ => last.error,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    fn attempts(timeout: Duration) -> Attempts {
        Attempts::new(Instant::now(), timeout, Duration::from_secs(1))
    }

    fn answered(code: Code) -> Failure {
        let endpoint = "127.0.0.1:5001".parse().unwrap();
        Failure::from_call(Status::new(code, "x"), &endpoint)
    }

    #[test]
    fn a_doubt_outlives_a_later_failure_without_effect() {
        let mut attempts = attempts(Duration::from_secs(60));
        attempts.failed(answered(Code::DeadlineExceeded)).unwrap();
        attempts.failed(answered(Code::ResourceExhausted)).unwrap();
        assert!(matches!(attempts.verdict(), Error::Unavailable { .. }));
        let mut attempts = self::attempts(Duration::from_secs(60));
        attempts.failed(answered(Code::ResourceExhausted)).unwrap();
        assert!(matches!(attempts.verdict(), Error::ResourceExhausted { .. }));
    }

    #[test]
    fn a_final_failure_and_one_after_the_deadline_end_the_request() {
        let mut in_time = attempts(Duration::from_secs(60));
        assert!(matches!(in_time.failed(answered(Code::Internal)), Err(Error::Other(_))));
        let mut late = attempts(Duration::ZERO);
        let error = late.failed(answered(Code::Unavailable));
        assert!(matches!(error, Err(Error::Unavailable { .. })));
    }

    #[test]
    fn attempts_grow_longer_and_end_at_the_deadline() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut attempts = Attempts::new(now, 10 * second, second);
        assert_eq!(attempts.until(now, false), now + second);
        assert_eq!(attempts.until(now, true), now + DETOUR);
        attempts.late = 2;
        assert_eq!(attempts.until(now, false), now + 4 * second);
        assert_eq!(attempts.until(now, true), now + DETOUR);
        assert_eq!(attempts.until(now + 9 * second, false), now + 10 * second);
        assert_eq!(Attempts::new(now, second, second).until(now, false), now + second / 2);
    }
}
