//! Many key-value operations as one command: all of them take effect, or none.
//!
//! A command sees one slot, so all keys have to have the same routing key: then they are
//! together wherever slots move.

use bytes::Bytes;
use raft_kv_plugin_kv::protocol;
use raft_kv_proto::routing_key;

use super::{
    Consistency, Request, RequestKind, Service, ServiceError, WriteOptions,
    batch::{KvKind, Operation, OperationReply},
    check_length,
    kv::{Expected, PutTerms, check_ttl},
};
use crate::metrics::OperationKind;

/// Most bytes of a key that a message repeats.
const SHOWN_BYTES: usize = 64;

/// Conditions, and operations that all take effect if all conditions hold.
#[derive(Clone, Debug, Default)]
pub struct AtomicRequest {
    /// Looked at before anything is done.
    pub compares: Vec<Compare>,
    /// In the order they take effect.
    pub operations: Vec<Operation>,
}

/// What is demanded of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What has to be true of it.
    pub condition: Condition,
}

/// What has to be true of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has a value.
    Exists,
    /// Its value has this version; 0: it has none.
    Version(u64),
}

/// What became of an atomic request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtomicReply {
    /// All conditions held: what each operation came to.
    Held(Vec<OperationReply>),
    /// A condition did not hold; nothing was done.
    Failed {
        /// Its place among the conditions, from 0.
        compare: u32,
        /// The version of the key's value; 0 if it has none.
        version: u64,
    },
}

impl AtomicRequest {
    fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let compares = self.compares.iter().map(|compare| &compare.key);
        compares.chain(self.operations.iter().map(Operation::key))
    }

    /// The kinds of its operations, which [`AtomicReply::read`] needs.
    pub fn kinds(&self) -> Vec<KvKind> {
        self.operations.iter().map(Operation::kind).collect()
    }

    fn encode(&self) -> Result<Bytes, ServiceError> {
        let mut compares = Vec::new();
        for Compare { key, condition } in &self.compares {
            let condition = match condition {
                Condition::Exists => protocol::Condition::Exists,
                Condition::Version(version) => protocol::Condition::Version(*version),
            };
            protocol::Atomic::push_compare(&mut compares, &protocol::Compare { key, condition });
        }
        let mut operations = Vec::new();
        for operation in &self.operations {
            protocol::Atomic::push_operation(&mut operations, &plain(operation)?);
        }
        let atomic = protocol::Atomic::new(&compares, &operations);
        let atomic = atomic.map_err(|error| ServiceError::Internal(error.to_string()))?;
        Ok(protocol::Command::Atomic(atomic).encode().into())
    }
}

/// An operation as the plugin takes it; it has no terms that are those of the whole.
fn plain(operation: &Operation) -> Result<protocol::AtomicOperation<'_>, ServiceError> {
    use protocol::{AtomicOperation, Command, Put};
    Ok(match operation {
        Operation::Put { key, value, terms, once: None } if terms.expected == Expected::Any => {
            let PutTerms { ttl_ms, .. } = *terms;
            AtomicOperation::Write(Command::Put(Put { key, value, expected: None, ttl_ms }))
        }
        Operation::Delete { key, expected: Expected::Any, once: None } => {
            AtomicOperation::Write(Command::Delete { key, expected: None })
        }
        Operation::Increment { key, delta, once: None } => {
            AtomicOperation::Write(Command::Increment { key, delta: *delta })
        }
        Operation::Get { key, consistency: Consistency::Linearizable } => {
            AtomicOperation::Get { key }
        }
        _ => {
            let limit = "without `once`, `expected_version` and `consistency`";
            let message = "an operation of an atomic request has terms of its own: conditions go \
                           into `compares`, and `once` is that of the whole request";
            return Err(ServiceError::invalid("operations", limit, message));
        }
    })
}

impl AtomicReply {
    /// What the plugin's response says of operations of these kinds.
    pub fn read(response: &Bytes, kinds: &[KvKind]) -> Result<Self, ServiceError> {
        let outcome = protocol::decode_atomic(response).map_err(ServiceError::foreign_response)?;
        let ranges = match outcome {
            protocol::AtomicOutcome::Failed { compare, version } => {
                return Ok(AtomicReply::Failed { compare, version });
            }
            protocol::AtomicOutcome::Held(ranges) if ranges.len() == kinds.len() => ranges,
            protocol::AtomicOutcome::Held(ranges) => {
                let text = format!("{} results of {} operations", ranges.len(), kinds.len());
                return Err(ServiceError::foreign_response(text));
            }
        };
        let replies = ranges.into_iter().zip(kinds);
        let replies = replies.map(|(range, kind)| kind.reply(response.slice(range)));
        replies.collect::<Result<_, _>>().map(AtomicReply::Held)
    }
}

impl Service {
    /// Carries out operations all together, if all conditions hold.
    pub async fn atomic(
        &self,
        request: AtomicRequest,
        options: WriteOptions,
    ) -> Result<AtomicReply, ServiceError> {
        let kinds = request.kinds();
        let Request { key, payload, operation, .. } = self.atomic_request(&request)?;
        let response = self.write(&key, payload, options, operation).await?;
        AtomicReply::read(&response, &kinds)
    }

    /// An atomic request as the shard's plugin is asked for it.
    pub fn atomic_request(&self, request: &AtomicRequest) -> Result<Request, ServiceError> {
        let count = request.compares.len() + request.operations.len();
        let limit = self.limits.batch_operations;
        if request.operations.is_empty() || count > limit {
            let message = format!(
                "the request has {} operations and {} conditions, the limit is {limit} together",
                request.operations.len(),
                request.compares.len()
            );
            let limit = format!("1 to {limit}, with the conditions");
            return Err(ServiceError::invalid("operations", &limit, &message));
        }
        request.keys().try_for_each(|key| self.check_key(key))?;
        for operation in &request.operations {
            if let Operation::Put { value, terms, .. } = operation {
                self.check_value(value)?;
                check_ttl(terms.ttl_ms)?;
            }
        }
        let compared = request.compares.iter().map(|compare| compare.key.len()).sum::<usize>();
        let bytes = request.operations.iter().map(Operation::bytes).sum::<usize>() + compared;
        // As one command it may be as large as the largest put.
        check_length("operations", bytes, self.limits.key_bytes + self.limits.value_bytes)?;
        let key = check_together(request)?;
        self.check_is_kv(&key)?;
        let payload = request.encode()?;
        let (kind, operation) = (RequestKind::Apply, OperationKind::Atomic);
        Ok(Request { key, payload, kind, once: None, operation })
    }
}

/// Checks that all keys live together for good; gives one of them.
fn check_together(request: &AtomicRequest) -> Result<Bytes, ServiceError> {
    let mut keys = request.keys();
    let Some(first) = keys.next() else {
        return Err(ServiceError::Internal("an atomic request without a key".to_owned()));
    };
    match keys.find(|key| routing_key(key) != routing_key(first)) {
        None => Ok(first.clone()),
        Some(other) => {
            let (first, other) = (shown(first), shown(other));
            let message = format!(
                "the keys \"{first}\" and \"{other}\" need not live together: an atomic request \
                 is for keys that share a {{tag}}, such as \"{{x}}a\" and \"{{x}}b\", or for one key"
            );
            Err(ServiceError::invalid("operations", "keys of one routing key", &message))
        }
    }
}

fn shown(key: &[u8]) -> String {
    let shown = key[..key.len().min(SHOWN_BYTES)].escape_ascii().to_string();
    if key.len() > SHOWN_BYTES { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Operation {
        let (key, value) = (key.into(), Bytes::new());
        Operation::Put { key, value, terms: PutTerms::default(), once: None }
    }

    fn exists(key: &'static str) -> Compare {
        Compare { key: key.into(), condition: Condition::Exists }
    }

    #[test]
    fn keys_live_together_if_their_routing_key_is_the_same() {
        let check = |compares: Vec<Compare>, operations| {
            check_together(&AtomicRequest { compares, operations })
        };
        assert!(check(vec![], vec![put("a"), put("a")]).is_ok());
        assert!(check(vec![exists("b{x}")], vec![put("{x}a"), put("x")]).is_ok());
        for (compares, operations) in [
            (vec![], vec![put("{x}a"), put("{y}a")]),
            (vec![exists("{y}a")], vec![put("{x}a")]),
            (vec![], vec![put("a"), put("b")]),
        ] {
            let error = check(compares, operations).unwrap_err().to_string();
            assert!(error.contains("{tag}"), "{error}");
        }
        let long = "k".repeat(1000).leak();
        let error = check(vec![], vec![put("a"), put(long)]).unwrap_err().to_string();
        assert!(error.len() < 400, "{error}");
    }

    #[test]
    fn operations_have_no_terms_of_their_own() {
        let key = Bytes::from("a");
        assert!(plain(&put("a")).is_ok());
        let terms = PutTerms { ttl_ms: Some(5), ..PutTerms::default() };
        let value = Bytes::new();
        let with_ttl = Operation::Put { key: key.clone(), value: value.clone(), terms, once: None };
        assert!(plain(&with_ttl).is_ok());
        let expected = Expected::Version(7);
        let terms = PutTerms { expected, ttl_ms: None };
        let stale = Consistency::Stale;
        for operation in [
            Operation::Put { key: key.clone(), value, terms, once: None },
            Operation::Delete { key: key.clone(), expected, once: None },
            Operation::Get { key, consistency: stale },
        ] {
            assert!(plain(&operation).is_err(), "{operation:?}");
        }
    }
}
