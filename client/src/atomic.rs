//! Requests whose operations all take effect or none.

use std::{iter, sync::Arc, time::Duration};

use raft_kv_proto::v1::{self, compare::Condition, operation::Operation as Wire};

use crate::{
    call::{Cluster, mismatched},
    error::{Error, Result},
    operation::{Operation, Outcome, PutOptions},
    pipeline::{Reply, Request},
    value::{IntoBytes, Version},
};

/// Conditions, and operations that all take effect if all conditions hold; made by
/// [`RaftKVClient::atomic`](crate::RaftKVClient::atomic).
///
/// All keys have to share a `{tag}`, or be the same key. Operations take effect in the
/// order given, each sees what those before it did, and nobody sees a part of them.
///
/// ```no_run
/// # use raft_kv_client::{AtomicOutcome, RaftKVClient, Error};
/// # async fn example(client: RaftKVClient) -> Result<(), Error> {
/// let moved = client
///     .atomic()
///     .if_exists("{order 7}paid")
///     .if_absent("{order 7}sent")
///     .put("{order 7}sent", "today")
///     .increment("{order 7}steps", 1);
/// match moved.send().await? {
///     AtomicOutcome::Held(outcomes) => println!("{outcomes:?}"),
///     AtomicOutcome::Failed { compare, .. } => println!("condition {compare} does not hold"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an atomic request does nothing until it is sent"]
pub struct Atomic {
    cluster: Arc<Cluster>,
    compares: Vec<v1::Compare>,
    operations: Vec<Operation>,
}

/// What became of an atomic request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtomicOutcome {
    /// All conditions held: what each operation did.
    Held(Vec<Outcome>),
    /// A condition did not hold, and nothing was done.
    Failed {
        /// The first that did not, counted from 0 in the order they were given.
        compare: usize,
        /// The version of its key; [`Version::ABSENT`] if that does not exist.
        version: Version,
    },
}

impl Atomic {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, compares: Vec::new(), operations: Vec::new() }
    }

    /// Only if the key has this version; [`Version::ABSENT`], or 0, if it must not exist.
    pub fn if_version(self, key: impl IntoBytes, version: impl Into<Version>) -> Self {
        self.compare(key, Condition::Version(version.into().0))
    }

    /// Only if the key does not exist.
    pub fn if_absent(self, key: impl IntoBytes) -> Self {
        self.compare(key, Condition::Exists(false))
    }

    /// Only if the key exists.
    pub fn if_exists(self, key: impl IntoBytes) -> Self {
        self.compare(key, Condition::Exists(true))
    }

    fn compare(mut self, key: impl IntoBytes, condition: Condition) -> Self {
        let condition = Some(condition);
        self.compares.push(v1::Compare { key: key.into_bytes(), condition });
        self
    }

    /// Sets a key.
    pub fn put(self, key: impl IntoBytes, value: impl IntoBytes) -> Self {
        self.then(Operation::put(key, value))
    }

    /// Sets a key that is gone after `ttl`.
    pub fn put_with_ttl(self, key: impl IntoBytes, value: impl IntoBytes, ttl: Duration) -> Self {
        self.then(Operation::put_with(key, value, PutOptions::new().ttl(ttl)))
    }

    /// Reads a key, as the operations before this one left it.
    pub fn get(self, key: impl IntoBytes) -> Self {
        self.then(Operation::get(key))
    }

    /// Removes a key.
    pub fn delete(self, key: impl IntoBytes) -> Self {
        self.then(Operation::delete(key))
    }

    /// Adds to the number that is a key's value.
    pub fn increment(self, key: impl IntoBytes, delta: i64) -> Self {
        self.then(Operation::increment(key, delta))
    }

    /// Adds an operation, which must have no condition of its own and read nothing
    /// stale.
    pub fn then(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    /// Sends the request.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the keys do not live together, and
    /// [`Error::Plugin`] if an operation fails; none took effect then.
    pub async fn send(self) -> Result<AtomicOutcome> {
        let Self { cluster, compares, operations } = self;
        let ticket = cluster.ticket(1);
        let count = operations.len();
        let wire = |operation: Operation| operation.into_wire(&mut iter::empty());
        let request = v1::AtomicRequest {
            compares,
            operations: operations.into_iter().map(wire).collect(),
            once: Some(ticket.once(0)),
        };
        let response = match cluster.run(Request::Atomic(request)).await? {
            Reply::Atomic(response) => response,
            _ => return Err(mismatched()),
        };
        if let Some(v1::FailedCompare { compare, version }) = response.failed {
            let compare = compare as usize;
            return Ok(AtomicOutcome::Failed { compare, version: Version(version) });
        }
        let outcomes = response.results.into_iter().map(Outcome::from_result);
        let outcomes = outcomes.collect::<Result<Vec<_>>>()?;
        if !response.held || outcomes.len() != count {
            let message = format!("{} of {count} operations", outcomes.len());
            return Err(Error::BadResponse { message });
        }
        Ok(AtomicOutcome::Held(outcomes))
    }
}

/// The key that a request is routed by; any of its keys will do.
pub(crate) fn key_of(request: &v1::AtomicRequest) -> &[u8] {
    if let Some(compare) = request.compares.first() {
        return &compare.key;
    }
    // A node refuses a request without any.
    request.operations.first().map_or(&[], |operation| parts(operation).0)
}

/// Bytes of all but the first key, about.
pub(crate) fn values_len(request: &v1::AtomicRequest) -> usize {
    let compares: usize = request.compares.iter().map(|compare| compare.key.len()).sum();
    let operations = request.operations.iter().map(parts);
    compares + operations.map(|(key, value)| key.len() + value.len()).sum::<usize>()
}

/// Key and value of an operation.
fn parts(operation: &v1::Operation) -> (&[u8], &[u8]) {
    match &operation.operation {
        Some(Wire::Put(v1::PutRequest { key, value, .. })) => (key, value),
        Some(
            Wire::Get(v1::GetRequest { key, .. })
            | Wire::Delete(v1::DeleteRequest { key, .. })
            | Wire::Increment(v1::IncrementRequest { key, .. }),
        ) => (key, &[]),
        None => (&[], &[]),
    }
}
