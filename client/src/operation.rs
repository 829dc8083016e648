//! The operations of a batch and what becomes of them.

use bytes::Bytes;
use raft_kv_proto::v1::{self, operation_result};

use crate::{
    error::{Error, Result},
    value::{IntoBytes, Version, Versioned},
};

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Set a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// Only if the key has this version.
        expected: Option<Version>,
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
    },
}

impl Operation {
    /// Sets a key.
    pub fn put(key: impl IntoBytes, value: impl IntoBytes) -> Self {
        Self::Put { key: key.into_bytes(), value: value.into_bytes(), expected: None }
    }

    /// Sets a key if its version is `expected`.
    pub fn compare_and_put(
        key: impl IntoBytes,
        expected: impl Into<Version>,
        value: impl IntoBytes,
    ) -> Self {
        Self::Put {
            key: key.into_bytes(),
            value: value.into_bytes(),
            expected: Some(expected.into()),
        }
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
        Self::Delete { key: key.into_bytes() }
    }

    /// Whether the operation changes nothing.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Self::Get { .. })
    }

    /// Whether the operation is a compare-and-put.
    pub(crate) fn is_comparison(&self) -> bool {
        matches!(self, Self::Put { expected: Some(_), .. })
    }

    /// The operation as it is sent; a write takes the next of `onces`.
    pub(crate) fn into_wire(self, onces: &mut impl Iterator<Item = v1::Once>) -> v1::Operation {
        use v1::operation::Operation as Wire;
        let operation = match self {
            Self::Put { key, value, expected } => Wire::Put(v1::PutRequest {
                key,
                value,
                expected_version: expected.map(|version| version.0),
                once: onces.next(),
            }),
            Self::Get { key, stale } => {
                Wire::Get(v1::GetRequest { key, consistency: consistency(stale).into() })
            }
            Self::Delete { key } => Wire::Delete(v1::DeleteRequest { key, once: onces.next() }),
        };
        v1::Operation { operation: Some(operation) }
    }
}

/// What an operation of a batch did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key was set, and has this version now.
    Put(Version),
    /// The key's value; `None` if it does not exist.
    Get(Option<Versioned>),
    /// Whether the key existed.
    Delete(bool),
}

impl Outcome {
    /// Reads the result of one operation.
    pub(crate) fn from_result(result: v1::OperationResult) -> Result<Self> {
        use operation_result::Result as Wire;
        match result.result {
            Some(Wire::Put(put)) => Ok(Self::Put(Version(put.version))),
            Some(Wire::Get(get)) => Ok(Self::Get(Versioned::from_response(get))),
            Some(Wire::Delete(delete)) => Ok(Self::Delete(delete.existed)),
            Some(Wire::Error(error)) => Err(error.into()),
            None => Err(Error::BadResponse { message: "an operation with nothing".to_owned() }),
        }
    }
}

/// The consistency of a read.
pub(crate) fn consistency(stale: bool) -> v1::Consistency {
    if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable }
}
