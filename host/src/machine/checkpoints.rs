//! The rolling state hash of a replica at indexes that all replicas note: those that are compared.

use std::collections::VecDeque;

use raft_lite::Index;

/// At each multiple of these the hash is noted: replicas that are close together find a common one
/// among the first, those that are far apart among the second.
const INTERVALS: [u64; 2] = [64, 4096];
/// So many of each are kept.
const KEPT: usize = 12;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Checkpoints([VecDeque<(u64, u64)>; 2]);

impl Checkpoints {
    /// Whether the hash after this entry is to be noted.
    pub(super) fn is_one(index: Index) -> bool {
        index.0.is_multiple_of(INTERVALS[0])
    }

    /// Notes the hash after an entry.
    pub(super) fn note(&mut self, index: u64, state_hash: u64) {
        for (kept, interval) in self.0.iter_mut().zip(INTERVALS) {
            if index.is_multiple_of(interval) {
                kept.push_back((index, state_hash));
            }
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
    }

    /// All that are kept, in order.
    pub(super) fn to_vec(&self) -> Vec<(u64, u64)> {
        let mut all: Vec<(u64, u64)> = self.0.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_some_far_back_are_kept() {
        let mut checkpoints = Checkpoints::default();
        for index in (1..=100_000).filter(|index| Checkpoints::is_one(Index(*index))) {
            checkpoints.note(index, index + 1);
        }
        let kept = checkpoints.to_vec();
        assert_eq!(kept.last(), Some(&(99_968, 99_969)));
        assert_eq!(kept.first(), Some(&(53_248, 53_249)));
        assert!(kept.is_sorted() && kept.len() <= 2 * KEPT);
    }
}
