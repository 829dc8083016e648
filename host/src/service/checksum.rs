//! Checksums over what this node stores of a shard.

use super::{Service, ServiceError};
use crate::machine::Freshness;

/// A checksum and the state it was taken of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The last entry applied to that state.
    pub applied_index: u64,
    /// XXH3 over the keys and values in order.
    pub checksum: u64,
    /// How many keys there are, those that the host keeps included.
    pub keys: u64,
}

impl Service {
    /// The checksum of a shard: equal on all replicas at equal applied indexes.
    /// Reads the whole shard.
    pub async fn checksum(&self, shard: &str) -> Result<Checksum, ServiceError> {
        let table = self.table();
        let route = table.named(shard)?;
        let reader = self.machine.reader(route.group, Freshness::Any);
        let reader = reader.map_err(|error| ServiceError::of_query(error, &route.name))?;
        let taken = self.run_long(move || reader.checksum()).await?;
        let (applied, checksum, keys) =
            taken.map_err(|error| ServiceError::of_query(error, &route.name))?;
        Ok(Checksum { applied_index: applied.0, checksum, keys })
    }
}
