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
}

/// What a put expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    Any,
    /// A value of this version; 0 means no value.
    Version(u64),
}

impl Service {
    /// Sets a key. Returns the version written.
    pub async fn put(
        &self,
        key: &[u8],
        value: &Bytes,
        expected: Expected,
        options: WriteOptions,
    ) -> Result<u64, ServiceError> {
        let command = self.put_command(key, value, expected)?;
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
    pub async fn delete(&self, key: &[u8], options: WriteOptions) -> Result<bool, ServiceError> {
        let command = self.delete_command(key)?;
        read_delete(&self.write(key, command, options, OperationKind::Delete).await?)
    }

    async fn write(
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
    fn check_is_kv(&self, key: &[u8]) -> Result<(), ServiceError> {
        let table = self.table();
        let (_, route) = table.route(key)?;
        route.check_is_kv()
    }

    pub(super) fn put_command(
        &self,
        key: &[u8],
        value: &Bytes,
        expected: Expected,
    ) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_value(value)?;
        self.check_is_kv(key)?;
        let expected = match expected {
            Expected::Any => None,
            Expected::Version(version) => Some(version),
        };
        let put = protocol::Put { key, value, expected, ttl_ms: None };
        Ok(protocol::Command::Put(put).encode().into())
    }

    pub(super) fn delete_command(&self, key: &[u8]) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_is_kv(key)?;
        Ok(protocol::Command::Delete { key, expected: None }.encode().into())
    }

    pub(super) fn get_request(&self, key: &[u8]) -> Result<Bytes, ServiceError> {
        self.check_key(key)?;
        self.check_is_kv(key)?;
        Ok(protocol::Query::Get { key }.encode().into())
    }
}

pub(super) fn read_put(response: &[u8]) -> Result<u64, ServiceError> {
    protocol::decode_put(response).map_err(ServiceError::foreign_response)
}

pub(super) fn read_delete(response: &[u8]) -> Result<bool, ServiceError> {
    protocol::decode_delete(response).map_err(ServiceError::foreign_response)
}

pub(super) fn read_get(response: Bytes) -> Result<Option<Versioned>, ServiceError> {
    let found = protocol::decode_get(&response).map_err(ServiceError::foreign_response)?;
    let versioned = |found: protocol::Found| Versioned {
        value: response.slice(found.value),
        version: found.version,
    };
    Ok(found.map(versioned))
}
