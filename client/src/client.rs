//! The handle that users hold, and how it is made.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use raft_kv_proto::{
    DIRECT_METADATA,
    v1::{
        self, admin_client::AdminClient, kv_client::KvClient,
        state_machine_client::StateMachineClient,
    },
};
use tonic::{
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::Channel,
};

use crate::{
    atomic::Atomic,
    batch,
    call::{Cluster, mismatched},
    channel::Pool,
    endpoint::{Endpoint, IntoEndpoints},
    error::{Error, Result},
    operation::{Operation, Outcome, PutOptions, consistency},
    pipeline::{Reply, Request},
    scan::Scan,
    value::{IntoBytes, Version, Versioned},
};

/// Above the largest message that a server sends or takes: several of the
/// largest values, or a page of a scan, and their overhead.
const MAX_MESSAGE_BYTES: usize = 72 << 20;

const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of a cluster. Clones are cheap; they share their connections, their
/// routing table and their session.
///
/// Keys are 1 B to 64 KiB of any bytes, values up to 8 MiB, unless the server is
/// configured otherwise. Reads are linearizable unless their name says `stale`.
///
/// Requests of any number of tasks for single keys share one stream to each node;
/// use one client for all of them. A request that is dropped before its answer
/// came is given up: a write may take effect all the same.
#[derive(Clone, Debug)]
pub struct RaftKVClient {
    cluster: Arc<Cluster>,
}

/// How to make a [`RaftKVClient`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    request_timeout: Duration,
    connect_timeout: Duration,
}

impl ClientBuilder {
    /// Adds endpoints; they are tried in the order given.
    pub fn endpoints(mut self, endpoints: impl IntoEndpoints) -> Self {
        self.endpoints.extend(endpoints.into_endpoints());
        self
    }

    /// Sets how long a request may take, with all its attempts; 10 s unless set.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how long making a connection may take; 3 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connects to the endpoints, and asks first the first of them that answers.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if one of them is none, and [`Error::Connect`]
    /// if no node answers at any of them.
    pub async fn connect(self) -> Result<RaftKVClient> {
        let endpoints = Endpoint::parse_list(&self.endpoints)?;
        let pool = Pool::connect(endpoints, self.connect_timeout).await?;
        let cluster = Cluster::new(pool, self.request_timeout).await;
        Ok(RaftKVClient { cluster: Arc::new(cluster) })
    }
}

impl RaftKVClient {
    /// Connects to a cluster, with the defaults of [`RaftKVClient::builder`].
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn new(endpoints: impl IntoEndpoints) -> Result<Self> {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// A builder without endpoints and with the default timeouts.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            endpoints: Vec::new(),
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        }
    }

    /// Sets a key. The write is durable on a majority when this returns the
    /// key's new version.
    pub async fn put(&self, key: impl IntoBytes, value: impl IntoBytes) -> Result<Version> {
        self.put_with(key, value, PutOptions::new()).await
    }

    /// Sets a key that is gone after `ttl`, by the cluster's clock.
    pub async fn put_with_ttl(
        &self,
        key: impl IntoBytes,
        value: impl IntoBytes,
        ttl: Duration,
    ) -> Result<Version> {
        self.put_with(key, value, PutOptions::new().ttl(ttl)).await
    }

    /// Sets a key if its version is `expected`; [`Version::ABSENT`], or 0, if it
    /// must not exist.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`] if it has another version.
    pub async fn compare_and_put(
        &self,
        key: impl IntoBytes,
        expected: impl Into<Version>,
        value: impl IntoBytes,
    ) -> Result<Version> {
        self.put_with(key, value, PutOptions::new().if_version(expected)).await
    }

    /// Sets a key, on a condition or for a time.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`] if the condition does not hold.
    pub async fn put_with(
        &self,
        key: impl IntoBytes,
        value: impl IntoBytes,
        options: PutOptions,
    ) -> Result<Version> {
        let ticket = self.cluster.ticket(1);
        let put = options.request(key.into_bytes(), value.into_bytes(), Some(ticket.once(0)));
        match self.cluster.run(Request::Put(put)).await {
            Ok(Reply::Put(response)) => Ok(Version(response.version)),
            Ok(_) => Err(mismatched()),
            Err(error) if options.is_comparison() => Err(error.of_comparison()),
            Err(error) => Err(error),
        }
    }

    /// The value of a key; `None` if it does not exist.
    pub async fn get(&self, key: impl IntoBytes) -> Result<Option<Bytes>> {
        let found = self.get_with_version(key).await?;
        Ok(found.map(|versioned| versioned.value))
    }

    /// The value and version of a key; `None` if it does not exist.
    pub async fn get_with_version(&self, key: impl IntoBytes) -> Result<Option<Versioned>> {
        self.read(key.into_bytes(), false).await
    }

    /// The value and version that a key had at some earlier time; `None` if it
    /// did not exist then. Any replica answers, even without a leader.
    pub async fn get_stale(&self, key: impl IntoBytes) -> Result<Option<Versioned>> {
        self.read(key.into_bytes(), true).await
    }

    async fn read(&self, key: Bytes, stale: bool) -> Result<Option<Versioned>> {
        let get = v1::GetRequest { key, consistency: consistency(stale).into() };
        match self.cluster.run(Request::Get(get)).await? {
            Reply::Get(response) => Ok(Versioned::from_response(response)),
            _ => Err(mismatched()),
        }
    }

    /// Removes a key; tells whether it existed.
    pub async fn delete(&self, key: impl IntoBytes) -> Result<bool> {
        self.delete_if(key.into_bytes(), None).await
    }

    /// Removes a key if its version is `expected`.
    ///
    /// # Errors
    /// [`Error::VersionMismatch`] if it has another version, or does not exist.
    pub async fn compare_and_delete(
        &self,
        key: impl IntoBytes,
        expected: impl Into<Version>,
    ) -> Result<()> {
        let deleted = self.delete_if(key.into_bytes(), Some(expected.into())).await;
        deleted.map(drop).map_err(Error::of_comparison)
    }

    async fn delete_if(&self, key: Bytes, expected: Option<Version>) -> Result<bool> {
        let ticket = self.cluster.ticket(1);
        let once = Some(ticket.once(0));
        let expected_version = expected.map(|version| version.0);
        let delete = v1::DeleteRequest { key, once, expected_version };
        match self.cluster.run(Request::Delete(delete)).await? {
            Reply::Delete(response) => Ok(response.existed),
            _ => Err(mismatched()),
        }
    }

    /// Adds to the number that is a key's value, and gives the sum. The value is the
    /// number's decimal text, so that it can be put and got as such. A key that does
    /// not exist counts as 0; one that has a time to live keeps it.
    ///
    /// # Errors
    /// [`Error::Plugin`] if the value is not the text of a signed 64-bit number (code
    /// 5), or the sum is none (code 6).
    pub async fn increment(&self, key: impl IntoBytes, delta: i64) -> Result<i64> {
        let ticket = self.cluster.ticket(1);
        let once = Some(ticket.once(0));
        let increment = v1::IncrementRequest { key: key.into_bytes(), delta, once };
        match self.cluster.run(Request::Increment(increment)).await? {
            Reply::Increment(response) => Ok(response.value),
            _ => Err(mismatched()),
        }
    }

    /// Begins a request whose operations all take effect or none, if all its
    /// conditions hold. Its keys have to share a `{tag}`, or be the same key.
    pub fn atomic(&self) -> Atomic {
        Atomic::new(self.cluster.clone())
    }

    /// The pairs whose key starts with `prefix`, all pairs if it is empty, in
    /// byte order of their keys: a snapshot per shard for each call it takes.
    pub fn scan(&self, prefix: impl IntoBytes) -> Scan {
        Scan::new(self.cluster.clone(), prefix.into_bytes())
    }

    /// Carries out many operations in one call. There is one result for each,
    /// in the order given; those on the same key take effect in that order.
    /// There is no atomicity: some may fail while others take effect.
    ///
    /// # Errors
    /// The outer error is that of the whole call.
    pub async fn batch(
        &self,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Result<Vec<Result<Outcome>>> {
        let operations: Vec<Operation> = operations.into_iter().collect();
        let comparisons: Vec<bool> = operations.iter().map(Operation::is_comparison).collect();
        let writes = operations.iter().filter(|operation| !operation.is_read()).count();
        let ticket = self.cluster.ticket(writes);
        let mut onces = (0..writes).map(|place| ticket.once(place));
        let operations = operations.into_iter();
        let request = v1::BatchRequest {
            operations: operations.map(|operation| operation.into_wire(&mut onces)).collect(),
        };
        let outcomes = batch::send(&self.cluster, request).await?;
        if outcomes.len() != comparisons.len() {
            let message = format!("{} of {} operations", outcomes.len(), comparisons.len());
            return Err(Error::BadResponse { message });
        }
        let outcomes = outcomes.into_iter().zip(comparisons);
        Ok(outcomes
            .map(|(outcome, comparison)| match outcome {
                Err(error) if comparison => Err(error.of_comparison()),
                outcome => outcome,
            })
            .collect())
    }

    /// Runs a command of the cluster's plugin on every replica of the shard that
    /// `key` is routed to, and gives its response.
    ///
    /// # Errors
    /// [`Error::Plugin`] if the plugin refuses or fails.
    pub async fn apply(&self, key: impl IntoBytes, command: impl IntoBytes) -> Result<Bytes> {
        let ticket = self.cluster.ticket(1);
        let apply = v1::ApplyRequest {
            key: key.into_bytes(),
            command: command.into_bytes(),
            once: Some(ticket.once(0)),
        };
        match self.cluster.run(Request::Apply(apply)).await? {
            Reply::Apply(response) => Ok(response.response),
            _ => Err(mismatched()),
        }
    }

    /// Runs a read-only request of the cluster's plugin, linearizably, on the
    /// shard that `key` is routed to, and gives its response.
    ///
    /// # Errors
    /// [`Error::Plugin`] if the plugin refuses or fails.
    pub async fn query(&self, key: impl IntoBytes, request: impl IntoBytes) -> Result<Bytes> {
        let query = v1::QueryRequest {
            key: key.into_bytes(),
            request: request.into_bytes(),
            consistency: consistency(false).into(),
        };
        match self.cluster.run(Request::Query(query)).await? {
            Reply::Query(response) => Ok(response.response),
            _ => Err(mismatched()),
        }
    }

    /// What one of the nodes knows of itself and its shards.
    pub async fn status(&self) -> Result<v1::StatusResponse> {
        let status = |channel, request| async move { admin(channel).status(request).await };
        let request = v1::StatusRequest {};
        Ok(self.cluster.call(request, status).await?.answer)
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}

/// The key-value service over a connection.
pub(crate) fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The state machine service over a connection.
pub(crate) fn machine(channel: Channel) -> StateMachineClient<Channel> {
    StateMachineClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Says that a call is not to be forwarded.
pub(crate) fn set_direct(metadata: &mut MetadataMap) {
    let key = AsciiMetadataKey::from_static(DIRECT_METADATA);
    metadata.insert(key, AsciiMetadataValue::from_static("1"));
}

/// The administrator's service over a connection.
pub(crate) fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}
