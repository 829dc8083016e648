//! The key-value store: the default plugin's commands with types.

use bytes::Bytes;
use raft_kv_plugin_kv::protocol;

use super::{
    CallOptions, Consistency, RequestKind, Service, ServiceError, WriteOptions, state_machine::One,
};
use crate::metrics::OperationKind;

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// Its version: grows with each write of the key.
    pub version: u64,
    /// In how many milliseconds it is gone, by replicated time; none if it stays.
    pub ttl_ms: Option<u64>,
}

/// What a put or a delete expects to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    #[default]
    Any,
    /// A value of this version; 0 means no value.
    Version(u64),
}

impl Expected {
    fn version(self) -> Option<u64> {
        match self {
            Expected::Any => None,
            Expected::Version(version) => Some(version),
        }
    }
}

/// On what terms a key is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutTerms {
    /// What must be there before.
    pub expected: Expected,
    /// In how many milliseconds it is gone, not 0; none if it stays.
    pub ttl_ms: Option<u64>,
}

/// A number after an increment, and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The number.
    pub value: i64,
    /// Its version.
    pub version: u64,
}

impl Service {
    /// Sets a key. Returns the version written.
    pub async fn put(
        &self,
        key: &[u8],
        value: &Bytes,
        terms: PutTerms,
        options: WriteOptions,
    ) -> Result<u64, ServiceError> {
        let command = self.put_command(key, value, terms)?;
        read_put(&self.write(key, command, options, OperationKind::Put).await?)
    }

    /// Reads a key.
    pub async fn get(
        &self,
        key: &[u8],
        consistency: Consistency,
        options: CallOptions,
    ) -> Result<Option<Versioned>, ServiceError> {
        let request = self.get_request(key)?;
        let one = One { payload: request, kind: RequestKind::Query(consistency), once: None };
        read_get(self.run_one(key, one, options, OperationKind::Get).await?)
    }

    /// Removes a key. Returns whether it existed.
    pub async fn delete(
        &self,
        key: &[u8],
        expected: Expected,
        options: WriteOptions,
    ) -> Result<bool, ServiceError> {
        let command = self.delete_command(key, expected)?;
        read_delete(&self.write(key, command, options, OperationKind::Delete).await?)
    }

    /// Adds to the number that is a key's value.
    pub async fn increment(
        &self,
        key: &[u8],
        delta: i64,
        options: WriteOptions,
    ) -> Result<Number, ServiceError> {
        let command = self.increment_command(key, delta)?;
        read_increment(&self.write(key, command, options, OperationKind::Increment).await?)
    }

    pub(super) async fn write(
        &self,
        key: &[u8],
        payload: Bytes,
        options: WriteOptions,
        operation: OperationKind,
    ) -> Result<Bytes, ServiceError> {
        let one = One { payload, kind: RequestKind::Apply, once: options.once };
        self.run_one(key, one, options.call, operation).await
    }

    /// Another plugin would make something of the store's commands, but not this.
    pub(super) fn check_is_kv(&self, key: &[u8]) -> Result<(), ServiceError> {
        let table = self.table();
        let (_, route) = table.route(key)?;
        route.check_is_kv()
    }

    pub(super) fn put_command(
        &self,
        key: &[u8],
        value: &Bytes,
        terms: PutTerms,
    ) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_value(value)?;
        check_ttl(terms.ttl_ms)?;
        self.check_is_kv(key)?;
        let PutTerms { expected, ttl_ms } = terms;
        let put = protocol::Put { key, value, expected: expected.version(), ttl_ms };
        Ok(protocol::Command::Put(put).encode().into())
    }

    pub(super) fn delete_command(
        &self,
        key: &[u8],
        expected: Expected,
    ) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_is_kv(key)?;
        let expected = expected.version();
        Ok(protocol::Command::Delete { key, expected }.encode().into())
    }

    pub(super) fn increment_command(&self, key: &[u8], delta: i64) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_is_kv(key)?;
        Ok(protocol::Command::Increment { key, delta }.encode().into())
    }

    pub(super) fn get_request(&self, key: &[u8]) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_is_kv(key)?;
        Ok(protocol::Query::Get { key }.encode().into())
    }
}

pub(super) fn check_ttl(ttl_ms: Option<u64>) -> Result<(), ServiceError> {
    match ttl_ms {
        Some(0) => Err(ServiceError::invalid("ttl_ms", "above 0", "the time to live is 0")),
        _ => Ok(()),
    }
}

pub(super) fn read_put(response: &[u8]) -> Result<u64, ServiceError> {
    protocol::decode_put(response).map_err(ServiceError::foreign_response)
}

pub(super) fn read_delete(response: &[u8]) -> Result<bool, ServiceError> {
    protocol::decode_delete(response).map_err(ServiceError::foreign_response)
}

pub(super) fn read_increment(response: &[u8]) -> Result<Number, ServiceError> {
    let protocol::Incremented { value, version } =
        protocol::decode_increment(response).map_err(ServiceError::foreign_response)?;
    Ok(Number { value, version })
}

pub(super) fn read_get(response: Bytes) -> Result<Option<Versioned>, ServiceError> {
    let found = protocol::decode_get(&response).map_err(ServiceError::foreign_response)?;
    let versioned = |found: protocol::Found| Versioned {
        value: response.slice(found.value),
        version: found.version,
        ttl_ms: found.ttl_ms,
    };
    Ok(found.map(versioned))
}
