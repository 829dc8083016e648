//! Which operations a caller sends: keys uniformly at random, values of random
//! bytes. The same seed gives the same operations.

use bytes::Bytes;
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

use crate::args::{Args, Phase};

/// Values are stretches of so many random bytes and one value's more: making
/// them costs nothing, and they compress neither alone nor together.
const POOL_BYTES: usize = 1 << 20;

/// One operation on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Put { key: Bytes, value: Bytes },
    Get { key: Bytes },
}

/// What all callers have in common.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    keys: u64,
    /// Share of gets.
    reads: f64,
    value_size: usize,
    pool: Bytes,
}

impl Workload {
    /// The operations of a phase.
    pub fn new(args: &Args, phase: Phase) -> Self {
        let mut pool = vec![0; POOL_BYTES + args.value_size];
        SmallRng::seed_from_u64(args.seed).fill_bytes(&mut pool);
        Self {
            seed: args.seed,
            keys: args.keys as u64,
            reads: match phase {
                Phase::Put => 0.0,
                Phase::Get => 1.0,
                Phase::Mixed => args.read_ratio,
            },
            value_size: args.value_size,
            pool: pool.into(),
        }
    }

    /// The operations of one caller.
    pub fn of_caller(&self, caller: usize) -> Operations {
        let seed = self.seed.wrapping_add(1).wrapping_add(caller as u64);
        Operations { workload: self.clone(), rng: SmallRng::seed_from_u64(seed) }
    }
}

/// The operations of one caller, without an end.
#[derive(Debug)]
pub struct Operations {
    workload: Workload,
    rng: SmallRng,
}

impl Operations {
    /// The next operation.
    pub fn next(&mut self) -> Operation {
        let key = key(self.rng.random_range(0..self.workload.keys));
        match self.rng.random_bool(self.workload.reads) {
            true => Operation::Get { key },
            false => Operation::Put { key, value: self.value() },
        }
    }

    /// Sets the key of this number.
    pub fn put(&mut self, number: u64) -> Operation {
        Operation::Put { key: key(number), value: self.value() }
    }

    fn value(&mut self) -> Bytes {
        let start = self.rng.random_range(0..=POOL_BYTES);
        self.workload.pool.slice(start..start + self.workload.value_size)
    }
}

/// The key of a number: `key-` and 16 hexadecimal digits.
fn key(mut number: u64) -> Bytes {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut key = *b"key-0000000000000000";
    for digit in key[4..].iter_mut().rev() {
        *digit = DIGITS[(number & 15) as usize];
        number >>= 4;
    }
    Bytes::copy_from_slice(&key)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn operations(phase: Phase, caller: usize) -> Operations {
        let args = ["", "--keys=5", "--value-size=9", "--read-ratio=0.25", "--seed=3"];
        Workload::new(&Args::parse_from(args), phase).of_caller(caller)
    }

    #[test]
    fn keys_are_in_hexadecimal() {
        assert_eq!(key(0), "key-0000000000000000");
        assert_eq!(key(0x0123_4567_89ab_cdef), "key-0123456789abcdef");
        assert_eq!(key(u64::MAX), "key-ffffffffffffffff");
    }

    #[test]
    fn every_key_is_chosen_and_every_value_has_the_size() {
        let mut puts = operations(Phase::Put, 0);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let Operation::Put { key, value } = puts.next() else { panic!("a get") };
            assert_eq!(value.len(), 9);
            seen.insert(key);
        }
        assert!(seen.into_iter().eq((0..5).map(key)));
    }

    #[test]
    fn a_mixed_phase_has_its_share_of_gets() {
        let mut mixed = operations(Phase::Mixed, 0);
        let gets = (0..1000).filter(|_| matches!(mixed.next(), Operation::Get { .. })).count();
        assert!((200..300).contains(&gets), "{gets}");
        let mut gets = operations(Phase::Get, 0);
        assert!((0..100).all(|_| matches!(gets.next(), Operation::Get { .. })));
    }

    #[test]
    fn a_caller_repeats_itself_and_not_another() {
        let first = |caller| {
            let mut puts = operations(Phase::Put, caller);
            (0..20).map(|_| puts.next()).collect::<Vec<_>>()
        };
        assert_eq!(first(0), first(0));
        assert_ne!(first(0), first(1));
    }
}
