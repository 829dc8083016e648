//! What clients saw of keys, each of which one writer overwrites with growing
//! numbers, and whether that is linearizable.
//!
//! For such a register that is easy to tell (Herlihy and Wing, "Linearizability",
//! 1990): a read gives at least what was acknowledged before it began, at most what
//! was sent before it ended, and no less than any read that ended before it began.

use std::{sync::Mutex, time::Instant};

/// What clients saw of some keys.
#[derive(Debug)]
pub struct History {
    registers: Vec<Mutex<Register>>,
}

#[derive(Debug, Default)]
struct Register {
    /// When the write of each number, from 1 on, was sent.
    sent: Vec<Instant>,
    /// When it was acknowledged.
    acknowledged: Vec<Instant>,
    reads: Vec<Read>,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    began: Instant,
    ended: Instant,
    number: u64,
}

impl History {
    /// Of so many keys, numbered from 0 on, which are not there yet.
    pub fn new(keys: usize) -> Self {
        History { registers: (0..keys).map(|_| Mutex::default()).collect() }
    }

    /// The writer of a key sends its next number: this one.
    pub fn send(&self, key: usize) -> u64 {
        let mut register = self.registers[key].lock().unwrap();
        register.sent.push(Instant::now());
        register.sent.len() as u64
    }

    /// The number sent last was acknowledged.
    pub fn acknowledge(&self, key: usize) {
        self.registers[key].lock().unwrap().acknowledged.push(Instant::now());
    }

    /// A read that began then gave this number just now; 0 for no value.
    pub fn read(&self, key: usize, began: Instant, number: u64) {
        let read = Read { began, ended: Instant::now(), number };
        self.registers[key].lock().unwrap().reads.push(read);
    }

    /// Writes acknowledged, and reads answered.
    pub fn counts(&self) -> (usize, usize) {
        let counts = self.registers.iter().map(|register| {
            let register = register.lock().unwrap();
            (register.acknowledged.len(), register.reads.len())
        });
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    }

    /// Checks everything seen so far.
    ///
    /// # Panics
    /// If it is not linearizable.
    pub fn check(&self) {
        for (key, register) in self.registers.iter().enumerate() {
            if let Some(violation) = register.lock().unwrap().violation() {
                panic!("key {key}: {violation}");
            }
        }
    }
}

impl Register {
    fn violation(&self) -> Option<String> {
        let mut by_end = self.reads.clone();
        by_end.sort_by_key(|read| read.ended);
        let mut largest = 0;
        // The largest number that was read by the end of each read.
        let seen: Vec<u64> = by_end
            .iter()
            .map(|read| {
                largest = largest.max(read.number);
                largest
            })
            .collect();
        for read in &self.reads {
            let acknowledged = self.acknowledged.partition_point(|at| *at < read.began) as u64;
            let sent = self.sent.partition_point(|at| *at < read.ended) as u64;
            let before = by_end.partition_point(|other| other.ended < read.began);
            let seen = before.checked_sub(1).map_or(0, |last| seen[last]);
            let Read { number, began, ended } = *read;
            let took = ended - began;
            if number < acknowledged {
                return Some(format!(
                    "a read that took {took:?} gave {number}, but {acknowledged} was acknowledged \
                     before it"
                ));
            }
            if number > sent {
                return Some(format!("{number} was read before it was sent"));
            }
            if number < seen {
                return Some(format!(
                    "a read that took {took:?} gave {number}, but {seen} was read before it"
                ));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key that was set to 1 and 2.
    fn written() -> History {
        let history = History::new(1);
        for number in 1..=2 {
            assert_eq!(history.send(0), number);
            history.acknowledge(0);
        }
        history
    }

    fn violation(history: &History) -> Option<String> {
        history.registers[0].lock().unwrap().violation()
    }

    #[test]
    fn a_read_may_see_what_was_acknowledged_or_is_under_way() {
        let history = written();
        history.send(0);
        history.read(0, Instant::now(), 2);
        history.read(0, Instant::now(), 3);
        assert_eq!(violation(&history), None);
    }

    #[test]
    fn a_read_that_began_early_may_see_less() {
        let began = Instant::now();
        let history = written();
        history.read(0, began, 0);
        assert_eq!(violation(&history), None);
    }

    #[test]
    fn stale_reads_and_reads_from_nowhere_are_found() {
        let history = written();
        history.read(0, Instant::now(), 1);
        assert!(violation(&history).unwrap().contains("2 was acknowledged before it"));
        let history = written();
        history.read(0, Instant::now(), 3);
        assert!(violation(&history).unwrap().contains("3 was read before it was sent"));
    }

    #[test]
    fn reads_that_go_back_are_found() {
        let history = written();
        history.send(0);
        history.read(0, Instant::now(), 3);
        history.read(0, Instant::now(), 2);
        assert!(violation(&history).unwrap().contains("3 was read before it"));
    }
}
