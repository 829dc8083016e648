//! What became of the calls: counts, latencies and failures.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use crate::cluster::Answer;

/// Longer latencies count as this one, in microseconds.
const LONGEST_MICROS: u64 = 3600 * 1_000_000;
/// Latencies are kept to so many decimal digits.
const DIGITS: u8 = 3;

/// The outcomes of calls so far.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Latencies, in microseconds, of the calls of which an operation succeeded.
    pub latencies: Histogram<u64>,
    /// Operations that succeeded.
    pub operations: u64,
    /// Gets among them of keys that do not exist.
    pub missing: u64,
    /// Operations that failed, by the kind of failure.
    pub errors: BTreeMap<String, Errors>,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// Operations that failed so.
    pub operations: u64,
    /// What the first one said.
    pub message: String,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS)
            .expect("the bounds are in order and the digits are few");
        Self { latencies, operations: 0, missing: 0, errors: BTreeMap::new() }
    }

    /// Counts a call.
    pub fn record(&mut self, latency: Duration, answer: Answer) {
        if answer.done > 0 {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(micros);
        }
        self.operations += answer.done;
        self.missing += answer.missing;
        for failure in answer.failures {
            self.add_errors(failure.kind, failure.operations, failure.message);
        }
    }

    /// Counts what another has counted.
    pub fn merge(&mut self, other: Self) {
        self.latencies.add(other.latencies).expect("all histograms have the same bounds");
        self.operations += other.operations;
        self.missing += other.missing;
        for (kind, errors) in other.errors {
            self.add_errors(kind, errors.operations, errors.message);
        }
    }

    fn add_errors(&mut self, kind: String, operations: u64, message: String) {
        let errors = self.errors.entry(kind).or_insert(Errors { operations: 0, message });
        errors.operations += operations;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Failure;

    fn failed(kind: &str, operations: u64, message: &str) -> Answer {
        let (kind, message) = (kind.to_owned(), message.to_owned());
        Answer { failures: vec![Failure { kind, message, operations }], ..Answer::default() }
    }

    #[test]
    fn only_calls_that_did_something_have_a_latency() {
        let mut tally = Tally::new();
        tally.record(Duration::from_micros(700), Answer { done: 1, ..Answer::default() });
        tally.record(Duration::from_secs(10), failed("Timeout", 1, "no answer"));
        assert_eq!((tally.latencies.len(), tally.latencies.max()), (1, 700));
        assert_eq!(tally.operations, 1);
    }

    #[test]
    fn a_latency_beyond_the_longest_is_the_longest() {
        let mut tally = Tally::new();
        tally.record(Duration::MAX, Answer { done: 1, ..Answer::default() });
        assert!(tally.latencies.max() >= LONGEST_MICROS);
    }

    #[test]
    fn tallies_add_up_and_keep_the_first_message_of_each_kind() {
        let mut one = Tally::new();
        one.record(Duration::from_micros(100), Answer { done: 8, missing: 2, ..Answer::default() });
        one.record(Duration::ZERO, failed("NotLeader", 3, "ask node2"));
        let mut other = Tally::new();
        other.record(
            Duration::from_micros(300),
            Answer { done: 2, missing: 1, ..Answer::default() },
        );
        other.record(Duration::ZERO, failed("NotLeader", 4, "ask node3"));
        other.record(Duration::ZERO, failed("Timeout", 1, "no answer"));
        one.merge(other);

        assert_eq!((one.operations, one.missing), (10, 3));
        assert_eq!((one.latencies.len(), one.latencies.min(), one.latencies.max()), (2, 100, 300));
        let errors = |operations, message: &str| Errors { operations, message: message.to_owned() };
        let expected = [
            ("NotLeader".to_owned(), errors(7, "ask node2")),
            ("Timeout".to_owned(), errors(1, "no answer")),
        ];
        assert!(one.errors.into_iter().eq(expected));
    }
}
