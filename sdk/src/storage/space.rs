//! Where a collection keeps its rows: the keys that begin with its kind and its name.

use super::{Key, KeyBytes, Value};
use crate::{Buffer, Context, Failure, MAX_KEY_LEN, MAX_VALUE_LEN, QueryContext, codes};

/// The first byte of a collection's keys.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Map = 1,
    Counter = 2,
    Index = 3,
    Queue = 4,
}

/// The keys of one collection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    kind: Kind,
    name: &'static str,
}

impl Space {
    pub(super) const fn new(kind: Kind, name: &'static str) -> Self {
        Self { kind, name }
    }

    /// What all keys of the collection begin with.
    pub(super) fn prefix(&self) -> Buffer {
        let mut prefix = Buffer::new();
        prefix.push(self.kind as u8);
        self.name.encode_key(&mut prefix);
        prefix
    }

    /// The stored key of `key`.
    pub(super) fn key(&self, key: &(impl KeyBytes + ?Sized)) -> Result<Buffer, Failure> {
        let mut bytes = self.prefix();
        key.encode_key(&mut bytes);
        if bytes.len() <= MAX_KEY_LEN {
            return Ok(bytes);
        }
        let message = format!("a key of `{}` has {} bytes, too many", self.name, bytes.len());
        Err(Failure::new(codes::TOO_LONG, message))
    }

    pub(super) fn get<V: Value>(
        &self,
        context: &QueryContext<'_>,
        key: &[u8],
    ) -> Result<Option<V>, Failure> {
        let stored = context.get(key);
        stored.map(|bytes| self.read_value(&bytes)).transpose()
    }

    pub(super) fn put(
        &self,
        context: &Context<'_>,
        key: &[u8],
        value: &impl Value,
    ) -> Result<(), Failure> {
        let mut bytes = Buffer::new();
        value.encode_value(&mut bytes).map_err(|problem| {
            Failure::new(codes::UNWRITABLE, format!("a value of `{}`: {problem}", self.name))
        })?;
        if bytes.len() > MAX_VALUE_LEN {
            let message = format!("a value of `{}` has {} bytes, too many", self.name, bytes.len());
            return Err(Failure::new(codes::TOO_LONG, message));
        }
        context.put(key, &bytes);
        Ok(())
    }

    /// Reads what follows the prefix in a stored key.
    pub(super) fn read_key<K: Key>(&self, mut bytes: &[u8]) -> Result<K, Failure> {
        let key = K::decode_key(&mut bytes);
        key.filter(|_| bytes.is_empty()).ok_or_else(|| self.unreadable("a key", "another type"))
    }

    pub(super) fn read_value<V: Value>(&self, bytes: &[u8]) -> Result<V, Failure> {
        V::decode_value(bytes).map_err(|problem| self.unreadable("a value", &problem))
    }

    pub(super) fn unreadable(&self, what: &str, problem: &str) -> Failure {
        let message = format!("{what} stored in `{}` cannot be read: {problem}", self.name);
        Failure::new(codes::UNREADABLE, message)
    }
}
