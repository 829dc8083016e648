//! The operations of a batch, or of an atomic request, and what becomes of them.

use std::time::Duration;

use bytes::Bytes;
use raft_kv_proto::v1::{self, operation_result};

use crate::{
    error::{Error, Result},
    value::{IntoBytes, Version, Versioned},
};

/// How a key is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until they are given to a put"]
pub struct PutOptions {
    expected: Option<Version>,
    ttl: Option<Duration>,
}

impl PutOptions {
    /// Whatever the key was, and to stay.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key is gone after this time, by the cluster's clock, to the millisecond; it
    /// has to be above zero.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Only if the key has this version.
    pub fn if_version(mut self, version: impl Into<Version>) -> Self {
        self.expected = Some(version.into());
        self
    }

    /// Only if the key does not exist.
    pub fn if_absent(self) -> Self {
        self.if_version(Version::ABSENT)
    }

    /// Whether there is a condition.
    pub(crate) fn is_comparison(&self) -> bool {
        self.expected.is_some()
    }

    /// The put as it is sent.
    pub(crate) fn request(
        self,
        key: Bytes,
        value: Bytes,
        once: Option<v1::Once>,
    ) -> v1::PutRequest {
        // Rounded up: a time that is not zero is none that a node refuses.
        let ttl_ms = self.ttl.map(|ttl| ttl.as_nanos().div_ceil(1_000_000));
        v1::PutRequest {
            key,
            value,
            expected_version: self.expected.map(|version| version.0),
            once,
            ttl_ms: ttl_ms.map(|ttl_ms| u64::try_from(ttl_ms).unwrap_or(u64::MAX)),
        }
    }
}

/// One operation of a batch or an atomic request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Set a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// On what condition, and for how long.
        options: PutOptions,
    },
    /// Read a key.
    Get {
        /// The key.
        key: Bytes,
        /// Whether any earlier state will do.
        stale: bool,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Bytes,
        /// Only if the key has this version.
        expected: Option<Version>,
    },
    /// Add to the number that is a key's value.
    Increment {
        /// The key.
        key: Bytes,
        /// What to add.
        delta: i64,
    },
}

impl Operation {
    /// Sets a key.
    pub fn put(key: impl IntoBytes, value: impl IntoBytes) -> Self {
        Self::put_with(key, value, PutOptions::new())
    }

    /// Sets a key in a certain way.
    pub fn put_with(key: impl IntoBytes, value: impl IntoBytes, options: PutOptions) -> Self {
        Self::Put { key: key.into_bytes(), value: value.into_bytes(), options }
    }

    /// Sets a key if its version is `expected`.
    pub fn compare_and_put(
        key: impl IntoBytes,
        expected: impl Into<Version>,
        value: impl IntoBytes,
    ) -> Self {
        Self::put_with(key, value, PutOptions::new().if_version(expected))
    }

    /// Reads a key, linearizably.
    pub fn get(key: impl IntoBytes) -> Self {
        Self::Get { key: key.into_bytes(), stale: false }
    }

    /// Reads some earlier state of a key.
    pub fn get_stale(key: impl IntoBytes) -> Self {
        Self::Get { key: key.into_bytes(), stale: true }
    }

    /// Removes a key.
    pub fn delete(key: impl IntoBytes) -> Self {
        Self::Delete { key: key.into_bytes(), expected: None }
    }

    /// Removes a key if its version is `expected`.
    pub fn compare_and_delete(key: impl IntoBytes, expected: impl Into<Version>) -> Self {
        Self::Delete { key: key.into_bytes(), expected: Some(expected.into()) }
    }

    /// Adds to the number that is a key's value; see
    /// [`RaftKVClient::increment`](crate::RaftKVClient::increment).
    pub fn increment(key: impl IntoBytes, delta: i64) -> Self {
        Self::Increment { key: key.into_bytes(), delta }
    }

    /// Whether the operation changes nothing.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Self::Get { .. })
    }

    /// Whether the operation depends on a version.
    pub(crate) fn is_comparison(&self) -> bool {
        match self {
            Self::Put { options, .. } => options.is_comparison(),
            Self::Delete { expected, .. } => expected.is_some(),
            Self::Get { .. } | Self::Increment { .. } => false,
        }
    }

    /// The operation as it is sent; a write takes the next of `onces`, if there is one.
    pub(crate) fn into_wire(self, onces: &mut impl Iterator<Item = v1::Once>) -> v1::Operation {
        use v1::operation::Operation as Wire;
        let operation = match self {
            Self::Put { key, value, options } => {
                Wire::Put(options.request(key, value, onces.next()))
            }
            Self::Get { key, stale } => {
                Wire::Get(v1::GetRequest { key, consistency: consistency(stale).into() })
            }
            Self::Delete { key, expected } => Wire::Delete(v1::DeleteRequest {
                key,
                once: onces.next(),
                expected_version: expected.map(|version| version.0),
            }),
            Self::Increment { key, delta } => {
                Wire::Increment(v1::IncrementRequest { key, delta, once: onces.next() })
            }
        };
        v1::Operation { operation: Some(operation) }
    }
}

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key was set, and has this version now.
    Put(Version),
    /// The key's value; `None` if it does not exist.
    Get(Option<Versioned>),
    /// Whether the key existed.
    Delete(bool),
    /// What the number is now, and its version.
    Increment(i64, Version),
}

impl Outcome {
    /// Reads the result of one operation.
    pub(crate) fn from_result(result: v1::OperationResult) -> Result<Self> {
        use operation_result::Result as Wire;
        match result.result {
            Some(Wire::Put(put)) => Ok(Self::Put(Version(put.version))),
            Some(Wire::Get(get)) => Ok(Self::Get(Versioned::from_response(get))),
            Some(Wire::Delete(delete)) => Ok(Self::Delete(delete.existed)),
            Some(Wire::Increment(v1::IncrementResponse { value, version })) => {
                Ok(Self::Increment(value, Version(version)))
            }
            Some(Wire::Error(error)) => Err(error.into()),
            None => Err(Error::BadResponse { message: "an operation with nothing".to_owned() }),
        }
    }
}

/// The consistency of a read.
pub(crate) fn consistency(stale: bool) -> v1::Consistency {
    if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable }
}
