//! Random seeds of commands.

use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Where a command's random seed comes from: the same on every replica, different for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// It is given.
    Given([u8; 32]),
    /// It follows from where the command stands in its shard's log. Few commands want theirs, so it is
    /// made when one asks.
    At {
        /// The shard's group.
        group: u64,
        /// The log index of its entry.
        index: u64,
        /// Its position in the entry.
        position: u32,
    },
}

impl Seed {
    /// The seed itself.
    pub fn bytes(&self) -> [u8; 32] {
        let (group, index, position) = match *self {
            Seed::Given(seed) => return seed,
            Seed::At { group, index, position } => (group, index, position),
        };
        let mut place = [0; 20];
        place[..8].copy_from_slice(&group.to_le_bytes());
        place[8..16].copy_from_slice(&index.to_le_bytes());
        place[16..].copy_from_slice(&position.to_le_bytes());
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(&xxh3_128_with_seed(&place, 0).to_le_bytes());
        seed[16..].copy_from_slice(&xxh3_128_with_seed(&place, 1).to_le_bytes());
        seed
    }
}
