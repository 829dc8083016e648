//! Commands and queries.

use super::reader::{Reader, check_flags};
use super::{Atomic, Malformed};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const COMPARE_AND_DELETE: u8 = 3;
const INCREMENT: u8 = 4;
pub(super) const ATOMIC: u8 = 5;
pub(super) const GET: u8 = 16;
const SCAN: u8 = 17;
const EXPIRING: u8 = 18;

/// Flag of a put: an expected version follows.
const HAS_EXPECTED: u8 = 1;

/// Flag of a put: a time to live follows.
const HAS_TTL: u8 = 2;

/// Flag of a scan: the rest is the key to begin after.
const HAS_AFTER: u8 = 1;

/// What goes through the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Sets a key.
    Put(Put<'a>),
    /// Removes a key.
    Delete {
        /// The key to remove.
        key: &'a [u8],
        /// The version that the key must have now.
        expected: Option<u64>,
    },
    /// Adds to the number that is a key's value.
    Increment {
        /// The key.
        key: &'a [u8],
        /// What to add.
        delta: i64,
    },
    /// Many operations, all or none of them.
    Atomic(Atomic<'a>),
}

/// Sets a key, whatever it was or only if it has the expected version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put<'a> {
    /// The key to set.
    pub key: &'a [u8],
    /// Its new value.
    pub value: &'a [u8],
    /// The version that the key must have now; [`NONE`](super::version::NONE): it must have no value.
    pub expected: Option<u64>,
    /// The value is gone this many milliseconds after the replicated time of the put.
    pub ttl_ms: Option<u64>,
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query<'a> {
    /// Reads a key's value.
    Get {
        /// The key to read.
        key: &'a [u8],
    },
    /// Reads a page of keys and values.
    Scan(Scan<'a>),
    /// Asks whether a value may be gone at a time, in milliseconds since 1970, that is there now.
    Expiring {
        /// The time.
        until_ms: u64,
    },
}

/// Reads the rows of a prefix in key order, as many as the limits let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// What the keys begin with.
    pub prefix: &'a [u8],
    /// The keys come after this one: the last key of the page before.
    pub after: Option<&'a [u8]>,
    /// Most rows in the page.
    pub max_rows: u32,
    /// Most bytes of the whole response. A first row that has more is returned all the same, so that
    /// every page makes progress.
    pub max_bytes: u32,
}

impl<'a> Command<'a> {
    /// Appends the command to `bytes`.
    ///
    /// # Panics
    /// If the key has 4 GiB or more.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.reserve(self.encoded_len());
        match *self {
            Self::Put(Put { key, value, expected, ttl_ms }) => {
                let expected_flag = if expected.is_some() { HAS_EXPECTED } else { 0 };
                let ttl_flag = if ttl_ms.is_some() { HAS_TTL } else { 0 };
                bytes.extend_from_slice(&[PUT, expected_flag | ttl_flag]);
                for number in [expected, ttl_ms].into_iter().flatten() {
                    bytes.extend_from_slice(&number.to_le_bytes());
                }
                push_with_len(bytes, key);
                bytes.extend_from_slice(value);
            }
            Self::Delete { key, expected: None } => {
                bytes.push(DELETE);
                bytes.extend_from_slice(key);
            }
            Self::Delete { key, expected: Some(version) } => {
                bytes.push(COMPARE_AND_DELETE);
                bytes.extend_from_slice(&version.to_le_bytes());
                bytes.extend_from_slice(key);
            }
            Self::Increment { key, delta } => {
                bytes.push(INCREMENT);
                bytes.extend_from_slice(&delta.to_le_bytes());
                bytes.extend_from_slice(key);
            }
            Self::Atomic(atomic) => {
                bytes.push(ATOMIC);
                atomic.encode_into(bytes);
            }
        }
    }

    /// How many bytes [`encode_into`](Self::encode_into) appends.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        match self {
            Self::Put(Put { key, value, expected, ttl_ms }) => {
                let expected_len = if expected.is_some() { 8 } else { 0 };
                let ttl_len = if ttl_ms.is_some() { 8 } else { 0 };
                1 + 1 + expected_len + ttl_len + 4 + key.len() + value.len()
            }
            Self::Delete { key, expected: None } => 1 + key.len(),
            Self::Delete { key, expected: Some(_) } | Self::Increment { key, .. } => {
                1 + 8 + key.len()
            }
            Self::Atomic(atomic) => 1 + atomic.encoded_len(),
        }
    }

    /// The command as bytes of their own.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// The command that `bytes` stand for.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        match reader.u8("tag")? {
            PUT => {
                let flags = reader.u8("flags")?;
                check_flags(flags, HAS_EXPECTED | HAS_TTL)?;
                let expected = match flags & HAS_EXPECTED {
                    0 => None,
                    _ => Some(reader.u64("expected version")?),
                };
                let ttl_ms = match flags & HAS_TTL {
                    0 => None,
                    _ => Some(reader.u64("time to live")?),
                };
                let key_len = reader.u32("length of the key")?;
                let key = reader.bytes(key_len, "key")?;
                Ok(Self::Put(Put { key, value: reader.rest(), expected, ttl_ms }))
            }
            DELETE => Ok(Self::Delete { key: reader.rest(), expected: None }),
            COMPARE_AND_DELETE => {
                let expected = Some(reader.u64("expected version")?);
                Ok(Self::Delete { key: reader.rest(), expected })
            }
            INCREMENT => {
                let delta = reader.i64("number to add")?;
                Ok(Self::Increment { key: reader.rest(), delta })
            }
            ATOMIC => Ok(Self::Atomic(Atomic::decode(reader)?)),
            tag => Err(Malformed::UnknownTag(tag)),
        }
    }
}

impl<'a> Query<'a> {
    /// Appends the query to `bytes`.
    ///
    /// # Panics
    /// If the prefix has 4 GiB or more.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.reserve(self.encoded_len());
        match *self {
            Self::Get { key } => {
                bytes.push(GET);
                bytes.extend_from_slice(key);
            }
            Self::Scan(Scan { prefix, after, max_rows, max_bytes }) => {
                bytes.push(SCAN);
                bytes.push(if after.is_some() { HAS_AFTER } else { 0 });
                bytes.extend_from_slice(&max_rows.to_le_bytes());
                bytes.extend_from_slice(&max_bytes.to_le_bytes());
                push_with_len(bytes, prefix);
                bytes.extend_from_slice(after.unwrap_or_default());
            }
            Self::Expiring { until_ms } => {
                bytes.push(EXPIRING);
                bytes.extend_from_slice(&until_ms.to_le_bytes());
            }
        }
    }

    /// How many bytes [`encode_into`](Self::encode_into) appends.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        match self {
            Self::Get { key } => 1 + key.len(),
            Self::Scan(Scan { prefix, after, .. }) => {
                let after_len = match after {
                    Some(after) => after.len(),
                    None => 0,
                };
                1 + 1 + 4 + 4 + 4 + prefix.len() + after_len
            }
            Self::Expiring { .. } => 1 + 8,
        }
    }

    /// The query as bytes of their own.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// The query that `bytes` stand for.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        match reader.u8("tag")? {
            GET => Ok(Self::Get { key: reader.rest() }),
            SCAN => {
                let flags = reader.u8("flags")?;
                check_flags(flags, HAS_AFTER)?;
                let max_rows = reader.u32("limit of rows")?;
                let max_bytes = reader.u32("limit of bytes")?;
                let prefix_len = reader.u32("length of the prefix")?;
                let prefix = reader.bytes(prefix_len, "prefix")?;
                let rest = reader.rest();
                if flags & HAS_AFTER == 0 && !rest.is_empty() {
                    return Err(Malformed::Trailing("prefix"));
                }
                let after = (flags & HAS_AFTER != 0).then_some(rest);
                Ok(Self::Scan(Scan { prefix, after, max_rows, max_bytes }))
            }
            EXPIRING => {
                let until_ms = reader.u64("time")?;
                match reader.is_empty() {
                    true => Ok(Self::Expiring { until_ms }),
                    false => Err(Malformed::Trailing("time")),
                }
            }
            tag => Err(Malformed::UnknownTag(tag)),
        }
    }
}

pub(super) fn push_with_len(bytes: &mut Vec<u8>, part: &[u8]) {
    let len = u32::try_from(part.len()).expect("keys are far shorter than 4 GiB");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(part);
}
