//! Many key-value operations in one call.
//!
//! Operations on the same key take effect in the order given; others at once.
//! They run in waves: a wave ends where an operation has to see, or must not be
//! seen by, an earlier one on its key. Writes of one key need no new wave: the
//! log keeps their order.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;

use super::{
    CallOptions, Consistency, Once, Request, RequestKind, Service, ServiceError,
    kv::{Expected, Number, PutTerms, Versioned, read_delete, read_get, read_increment, read_put},
};
use crate::metrics::OperationKind;

/// One operation of a batch.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// On what terms.
        terms: PutTerms,
        /// Told from itself when it is sent again.
        once: Option<Once>,
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
        /// What must be there before.
        expected: Expected,
        /// Told from itself when it is sent again.
        once: Option<Once>,
    },
    /// Adds to the number that is a key's value.
    Increment {
        /// The key.
        key: Bytes,
        /// What to add.
        delta: i64,
        /// Told from itself when it is sent again.
        once: Option<Once>,
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
    /// The number now.
    Increment(Number),
}

/// The kinds of operation of the key-value store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    /// Sets a key.
    Put,
    /// Reads a key.
    Get,
    /// Removes a key.
    Delete,
    /// Adds to a number.
    Increment,
}

impl KvKind {
    /// What the plugin's response to an operation of this kind says.
    pub fn reply(self, response: Bytes) -> Result<OperationReply, ServiceError> {
        Ok(match self {
            KvKind::Put => OperationReply::Put(read_put(&response)?),
            KvKind::Get => OperationReply::Get(read_get(response)?),
            KvKind::Delete => OperationReply::Delete(read_delete(&response)?),
            KvKind::Increment => OperationReply::Increment(read_increment(&response)?),
        })
    }
}

impl Operation {
    pub(super) fn key(&self) -> &Bytes {
        match self {
            Operation::Put { key, .. }
            | Operation::Get { key, .. }
            | Operation::Delete { key, .. }
            | Operation::Increment { key, .. } => key,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> KvKind {
        match self {
            Operation::Put { .. } => KvKind::Put,
            Operation::Get { .. } => KvKind::Get,
            Operation::Delete { .. } => KvKind::Delete,
            Operation::Increment { .. } => KvKind::Increment,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Operation::Put { key, value, .. } => key.len() + value.len(),
            _ => self.key().len(),
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
        options: CallOptions,
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
            let replies = self.run_checked(requests, options).await;
            let replies = wave.iter().zip(replies);
            results.extend(replies.map(|(operation, reply)| operation.kind().reply(reply?)));
        }
        Ok(results)
    }

    /// An operation as the shard's plugin is asked for it.
    pub fn request_of(&self, operation: &Operation) -> Result<Request, ServiceError> {
        let key = operation.key().clone();
        let operation_kind = match operation.kind() {
            KvKind::Put => OperationKind::Put,
            KvKind::Get => OperationKind::Get,
            KvKind::Delete => OperationKind::Delete,
            KvKind::Increment => OperationKind::Increment,
        };
        let (payload, kind, once) = match operation {
            Operation::Put { key, value, terms, once } => {
                (self.put_command(key, value, *terms)?, RequestKind::Apply, *once)
            }
            Operation::Get { key, consistency } => {
                (self.get_request(key)?, RequestKind::Query(*consistency), None)
            }
            Operation::Delete { key, expected, once } => {
                (self.delete_command(key, *expected)?, RequestKind::Apply, *once)
            }
            Operation::Increment { key, delta, once } => {
                (self.increment_command(key, *delta)?, RequestKind::Apply, *once)
            }
        };
        Ok(Request { key, payload, kind, once, operation: operation_kind })
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
        let (key, value) = (key.into(), Bytes::new());
        Operation::Put { key, value, terms: PutTerms::default(), once: None }
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
