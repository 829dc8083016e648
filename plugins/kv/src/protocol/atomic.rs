//! Atomic commands: conditions on keys, and operations that all take effect if all conditions hold.

use std::ops::Range;

use super::reader::Reader;
use super::request::{GET, push_with_len};
use super::response::{bool, end};
use super::{Command, Malformed, Query};

const EXISTS: u8 = 0;
const HAS_VERSION: u8 = 1;

/// What an atomic command demands of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What has to be true of it.
    pub condition: Condition,
}

/// What has to be true of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has a value.
    Exists,
    /// Its value has this version; [`NONE`](super::version::NONE): it has no value.
    Version(u64),
}

/// One operation of an atomic command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOperation<'a> {
    /// A put, a delete or an increment.
    Write(Command<'a>),
    /// Reads a key, as the operations before this one left it.
    Get {
        /// The key.
        key: &'a [u8],
    },
}

/// Conditions and operations, encoded; checked as a whole when they are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic<'a> {
    compares: &'a [u8],
    operations: &'a [u8],
}

impl<'a> Atomic<'a> {
    /// A command of what [`push_compare`](Self::push_compare) and
    /// [`push_operation`](Self::push_operation) wrote.
    pub fn new(compares: &'a [u8], operations: &'a [u8]) -> Result<Self, Malformed> {
        let atomic = Self { compares, operations };
        let mut rest = Reader::new(compares);
        while !rest.is_empty() {
            compare(&mut rest)?;
        }
        let mut rest = Reader::new(operations);
        while !rest.is_empty() {
            operation(&mut rest)?;
        }
        Ok(atomic)
    }

    /// Appends a condition.
    ///
    /// # Panics
    /// If the key has 4 GiB or more.
    pub fn push_compare(compares: &mut Vec<u8>, compare: &Compare<'_>) {
        let (kind, version) = match compare.condition {
            Condition::Exists => (EXISTS, 0),
            Condition::Version(version) => (HAS_VERSION, version),
        };
        compares.push(kind);
        compares.extend_from_slice(&version.to_le_bytes());
        push_with_len(compares, compare.key);
    }

    /// Appends an operation.
    ///
    /// # Panics
    /// If it has 4 GiB or more.
    pub fn push_operation(operations: &mut Vec<u8>, operation: &AtomicOperation<'_>) {
        match operation {
            AtomicOperation::Write(command) => push_with_len(operations, &command.encode()),
            AtomicOperation::Get { key } => push_with_len(operations, &Query::Get { key }.encode()),
        }
    }

    /// The conditions, in the order given.
    pub fn compares(&self) -> impl Iterator<Item = Compare<'a>> + use<'a> {
        let mut rest = Reader::new(self.compares);
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| compare(&mut rest).expect("all were checked"))
        })
    }

    /// The operations, in the order they take effect.
    pub fn operations(&self) -> impl Iterator<Item = AtomicOperation<'a>> + use<'a> {
        let mut rest = Reader::new(self.operations);
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| operation(&mut rest).expect("all were checked"))
        })
    }

    pub(super) fn encode_into(&self, bytes: &mut Vec<u8>) {
        push_with_len(bytes, self.compares);
        bytes.extend_from_slice(self.operations);
    }

    pub(super) const fn encoded_len(&self) -> usize {
        4 + self.compares.len() + self.operations.len()
    }

    pub(super) fn decode(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let compares_len = reader.u32("length of the compares")?;
        let compares = reader.bytes(compares_len, "compares")?;
        Self::new(compares, reader.rest())
    }
}

fn compare<'a>(reader: &mut Reader<'a>) -> Result<Compare<'a>, Malformed> {
    let kind = reader.u8("condition")?;
    let version = reader.u64("version of a compare")?;
    let key_len = reader.u32("length of a compare's key")?;
    let key = reader.bytes(key_len, "key of a compare")?;
    let condition = match kind {
        EXISTS => Condition::Exists,
        HAS_VERSION => Condition::Version(version),
        kind => return Err(Malformed::UnknownCondition(kind)),
    };
    Ok(Compare { key, condition })
}

fn operation<'a>(reader: &mut Reader<'a>) -> Result<AtomicOperation<'a>, Malformed> {
    let len = reader.u32("length of an operation")?;
    let bytes = reader.bytes(len, "operation")?;
    match bytes {
        [GET, key @ ..] => Ok(AtomicOperation::Get { key }),
        // None within another: looked at before it is decoded, so that depth costs nothing.
        [tag @ super::request::ATOMIC, ..] => Err(Malformed::UnknownTag(*tag)),
        bytes => Command::decode(bytes).map(AtomicOperation::Write),
    }
}

/// What became of an atomic command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtomicOutcome {
    /// All conditions held: where in the response the response to each operation is.
    Held(Vec<Range<usize>>),
    /// A condition did not hold; nothing was done.
    Failed {
        /// Its place among the conditions, from 0.
        compare: u32,
        /// The version of the key's value; [`NONE`](super::version::NONE) if it has none.
        version: u64,
    },
}

impl AtomicOutcome {
    pub(crate) const HELD: u8 = 1;

    /// The response of a command whose condition at `compare` did not hold.
    pub(crate) fn failed(compare: u32, version: u64) -> Vec<u8> {
        let mut response = vec![0];
        response.extend_from_slice(&compare.to_le_bytes());
        response.extend_from_slice(&version.to_le_bytes());
        response
    }
}

/// What became of an atomic command.
pub fn decode_atomic(response: &[u8]) -> Result<AtomicOutcome, Malformed> {
    let mut reader = Reader::new(response);
    if !bool(&mut reader, "flag of conditions")? {
        let compare = reader.u32("failed condition")?;
        let version = reader.u64("version")?;
        end(reader, "version")?;
        return Ok(AtomicOutcome::Failed { compare, version });
    }
    let mut ranges = Vec::new();
    let mut at = 1;
    while !reader.is_empty() {
        let len = reader.u32("length of a response")?;
        reader.bytes(len, "response of an operation")?;
        let start = at + 4;
        at = start + len as usize;
        ranges.push(start..at);
    }
    Ok(AtomicOutcome::Held(ranges))
}
