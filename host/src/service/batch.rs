//! Many key-value operations in one call.
//!
//! Operations on the same key take effect in the order given; others at once.
//! They run in waves: a wave ends where an operation has to see, or must not be
//! seen by, an earlier one on its key. Writes of one key need no new wave: the
//! log keeps their order.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;

use super::{
    Consistency, Request, RequestKind, Service, ServiceError,
    kv::{Expected, Versioned, read_delete, read_get, read_put},
};

/// One operation of a batch.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// What must be there before.
        expected: Expected,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: Bytes,
        /// How fresh the answer must be.
        consistency: Consistency,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationReply {
    /// The version written.
    Put(u64),
    /// The value found.
    Get(Option<Versioned>),
    /// Whether the key existed.
    Delete(bool),
}

impl Operation {
    fn key(&self) -> &Bytes {
        match self {
            Operation::Put { key, .. } | Operation::Get { key, .. } | Operation::Delete { key } => {
                key
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Operation::Put { key, value, .. } => key.len() + value.len(),
            Operation::Get { key, .. } | Operation::Delete { key } => key.len(),
        }
    }

    fn is_read(&self) -> bool {
        matches!(self, Operation::Get { .. })
    }
}

impl Service {
    /// Carries out operations; each has a result of its own, in their order.
    pub async fn batch(
        &self,
        operations: Vec<Operation>,
    ) -> Result<Vec<Result<OperationReply, ServiceError>>, ServiceError> {
        let limit = self.limits.batch_operations;
        if operations.len() > limit {
            let message =
                format!("the batch has {} operations, the limit is {limit}", operations.len());
            return Err(ServiceError::invalid("operations", &format!("at most {limit}"), &message));
        }
        let bytes = operations.iter().map(Operation::bytes).sum();
        super::check_length("operations", bytes, self.limits.request_bytes)?;
        let mut results = Vec::with_capacity(operations.len());
        let deadline = Instant::now() + self.limits.timeout;
        for wave in waves(operations) {
            if Instant::now() >= deadline {
                let late = || ServiceError::ResourceExhausted {
                    resource: "the time for one batch".to_owned(),
                };
                results.extend(wave.iter().map(|_| Err(late())));
                continue;
            }
            let requests = wave.iter().map(|operation| self.request_of(operation)).collect();
            let replies = self.run_checked(requests).await;
            results.extend(wave.iter().zip(replies).map(|(operation, reply)| {
                let response = reply?;
                Ok(match operation {
                    Operation::Put { .. } => OperationReply::Put(read_put(&response)?),
                    Operation::Get { .. } => OperationReply::Get(read_get(response)?),
                    Operation::Delete { .. } => OperationReply::Delete(read_delete(&response)?),
                })
            }));
        }
        Ok(results)
    }

    fn request_of(&self, operation: &Operation) -> Result<Request, ServiceError> {
        let key = operation.key().clone();
        let (payload, kind) = match operation {
            Operation::Put { key, value, expected } => {
                (self.put_command(key, value, *expected)?, RequestKind::Apply)
            }
            Operation::Get { key, consistency } => {
                (self.get_request(key)?, RequestKind::Query(*consistency))
            }
            Operation::Delete { key } => (self.delete_command(key)?, RequestKind::Apply),
        };
        Ok(Request { key, payload, kind })
    }
}

/// Cuts operations into waves.
fn waves(operations: Vec<Operation>) -> Vec<Vec<Operation>> {
    let mut waves = Vec::new();
    let mut wave = Vec::new();
    // For each key of the wave whether it is read or written in it.
    let mut touched: BTreeMap<Bytes, bool> = BTreeMap::new();
    for operation in operations {
        let is_read = operation.is_read();
        if touched.get(operation.key()).is_some_and(|was_read| *was_read != is_read) {
            waves.push(std::mem::take(&mut wave));
            touched.clear();
        }
        touched.insert(operation.key().clone(), is_read);
        wave.push(operation);
    }
    waves.push(wave);
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Operation {
        Operation::Put { key: key.into(), value: Bytes::new(), expected: Expected::Any }
    }

    fn get(key: &'static str) -> Operation {
        Operation::Get { key: key.into(), consistency: Consistency::Linearizable }
    }

    fn lengths(operations: Vec<Operation>) -> Vec<usize> {
        waves(operations).iter().map(Vec::len).collect()
    }

    #[test]
    fn operations_on_different_keys_share_a_wave() {
        assert_eq!(lengths(vec![put("a"), get("b"), put("c"), put("a")]), [4]);
    }

    #[test]
    fn a_read_after_a_write_of_its_key_waits_and_the_other_way_round() {
        assert_eq!(lengths(vec![put("a"), get("a"), put("a")]), [1, 1, 1]);
        assert_eq!(lengths(vec![get("a"), get("a"), get("b"), put("a"), put("b")]), [3, 2]);
    }
}
