//! What keys and values are made of: the conversions that let callers pass
//! whatever they hold, and what reads give back.

use std::{fmt, time::Duration};

use bytes::Bytes;
use raft_kv_proto::v1;

/// What can be given as a key or a value. What is owned is not copied.
pub trait IntoBytes {
    /// The bytes.
    fn into_bytes(self) -> Bytes;
}

impl IntoBytes for Bytes {
    fn into_bytes(self) -> Bytes {
        self
    }
}

impl IntoBytes for &Bytes {
    fn into_bytes(self) -> Bytes {
        self.clone()
    }
}

impl IntoBytes for Vec<u8> {
    fn into_bytes(self) -> Bytes {
        self.into()
    }
}

impl IntoBytes for String {
    fn into_bytes(self) -> Bytes {
        self.into()
    }
}

impl<const N: usize> IntoBytes for [u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self)
    }
}

/// Implements [`IntoBytes`] by a copy, for what is only borrowed.
macro_rules! into_bytes_by_copy {
    ($($borrowed:ty),*) => {$(
        impl IntoBytes for &$borrowed {
            fn into_bytes(self) -> Bytes {
                Bytes::copy_from_slice(self.as_ref())
            }
        }
    )*};
}
into_bytes_by_copy!(str, String, [u8], Vec<u8>);

impl<const N: usize> IntoBytes for &[u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

/// The version of a key: an opaque number that grows with every write of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// To a comparison: the key must not exist.
    pub const ABSENT: Self = Self(0);
}

impl From<u64> for Version {
    fn from(version: u64) -> Self {
        Self(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and the version of the key that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value; it may be empty.
    pub value: Bytes,
    /// The key's version.
    pub version: Version,
    /// In what time the key is gone, by the cluster's clock; none if it stays.
    pub ttl: Option<Duration>,
}

impl Versioned {
    /// What a response says; `None` if the key does not exist.
    pub(crate) fn from_response(response: v1::GetResponse) -> Option<Self> {
        let v1::GetResponse { found, value, version, ttl_ms } = response;
        let ttl = ttl_ms.map(Duration::from_millis);
        found.then_some(Self { value, version: Version(version), ttl })
    }
}

/// A pair of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Its value; it may be empty.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
}

impl From<v1::KeyValue> for KeyValue {
    fn from(pair: v1::KeyValue) -> Self {
        Self { key: pair.key, value: pair.value, version: Version(pair.version) }
    }
}
