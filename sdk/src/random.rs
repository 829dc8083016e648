//! A generator of random numbers that is the same on every replica.

/// Random numbers from a seed: xoshiro256++ of Blackman and Vigna, <https://prng.di.unimi.it>.
///
/// The same seed gives the same numbers on every replica and in every version of this crate, so that
/// what a command decides by them is part of its result. They are not fit for secrets: whoever knows
/// the seed knows them all.
///
/// ```
/// # use raft_kv_sdk::{Context, Random};
/// fn roll(context: &Context<'_>) -> u64 {
///     context.random().below(6) + 1
/// }
/// # let mut random = Random::from_seed([7; 32]);
/// # assert!(random.below(6) < 6);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random([u64; 4]);

impl Random {
    /// A generator that begins with `seed`, read as four little-endian numbers.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let mut state = [0; 4];
        for (word, bytes) in state.iter_mut().zip(seed.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("a chunk has 8 bytes"));
        }
        // From all zeros the generator would give nothing but zeros.
        Self(if state == [0; 4] { [0x9E37_79B9_7F4A_7C15, 0, 0, 0] } else { state })
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number from 0 to `bound - 1`, each as likely as the others.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        // The numbers below `uneven` would make the first remainders more likely.
        let uneven = bound.wrapping_neg() % bound;
        loop {
            let number = self.next_u64();
            if number >= uneven {
                return number % bound;
            }
        }
    }

    /// Fills `bytes` with random ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Puts `items` into a random order, each as likely as the others.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn the_numbers_are_those_of_the_published_algorithm() {
        let mut seed = [0; 32];
        for word in 0..4 {
            seed[8 * word] = word as u8 + 1;
        }
        let mut random = Random::from_seed(seed);
        // From the state 1, 2, 3, 4, as other implementations give them.
        for expected in [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386] {
            assert_eq!(random.next_u64(), expected);
        }
    }

    #[test]
    fn numbers_below_a_bound_all_occur_about_equally_often() {
        let mut random = Random::from_seed([9; 32]);
        let mut counts = [0; 6];
        for _ in 0..6_000 {
            counts[random.below(6) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_seed_of_zeros_is_a_seed_like_any_other() {
        let mut random = Random::from_seed([0; 32]);
        let numbers: Vec<u64> = (0..8).map(|_| random.next_u64()).collect();
        assert!(numbers.iter().filter(|number| **number != 0).count() > 4);
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Random::from_seed([1; 32]).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<u32>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<u32>>());
    }

    #[test]
    fn filling_uses_as_many_bytes_as_there_are() {
        let (mut short, mut long) = ([0; 5], [0; 16]);
        Random::from_seed([3; 32]).fill(&mut short);
        Random::from_seed([3; 32]).fill(&mut long);
        assert_eq!(short, long[..5]);
        assert_ne!(long, [0; 16]);
    }
}
