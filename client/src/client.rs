//! The handle that users hold, and how it is made.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use raft_kv_proto::v1::{
    self, admin_client::AdminClient, kv_client::KvClient, pipeline_request::Request,
    pipeline_response::Result as Answer, state_machine_client::StateMachineClient,
};
use tonic::transport::Channel;

use crate::{
    call::{Cluster, Waits, is_worth_resending, may_have_effect},
    channel::Pool,
    endpoint::{Endpoint, IntoEndpoints},
    error::{Error, Result},
    operation::{Operation, Outcome, consistency},
    scan::Scan,
    session::Write,
    value::{IntoBytes, Version, Versioned},
};

/// Above the largest message that a server sends or takes: several of the
/// largest values, or a page of a scan, and their overhead.
pub(crate) const MAX_MESSAGE_BYTES: usize = 72 << 20;

const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of a cluster. Clones are cheap and share their connections.
///
/// Keys are 1 B to 64 KiB of any bytes, values up to 8 MiB, unless the server is
/// configured otherwise. Reads are linearizable unless their name says `stale`.
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
        let cluster = Arc::new(Cluster::new(pool, self.request_timeout));
        // Without it requests go to any node, which does what is needed.
        cluster.routing.refresh(&cluster.pool, cluster.routing.mark()).await;
        Ok(RaftKVClient { cluster })
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
        self.put_if(key.into_bytes(), value.into_bytes(), None).await
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
        self.put_if(key.into_bytes(), value.into_bytes(), Some(expected.into()))
            .await
            .map_err(Error::of_comparison)
    }

    async fn put_if(&self, key: Bytes, value: Bytes, expected: Option<Version>) -> Result<Version> {
        let write = self.cluster.begin_write();
        let put = v1::PutRequest {
            key: key.clone(),
            value,
            expected_version: expected.map(|version| version.0),
            once: Some(write.once()),
        };
        match self.cluster.ask(&key, Request::Put(put)).await? {
            Answer::Put(put) => Ok(Version(put.version)),
            _ => Err(another_answer()),
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
        let get = v1::GetRequest { key: key.clone(), consistency: consistency(stale).into() };
        match self.cluster.ask(&key, Request::Get(get)).await? {
            Answer::Get(get) => Ok(Versioned::from_response(get)),
            _ => Err(another_answer()),
        }
    }

    /// Removes a key; tells whether it existed.
    pub async fn delete(&self, key: impl IntoBytes) -> Result<bool> {
        let (key, write) = (key.into_bytes(), self.cluster.begin_write());
        let delete = v1::DeleteRequest { key: key.clone(), once: Some(write.once()) };
        match self.cluster.ask(&key, Request::Delete(delete)).await? {
            Answer::Delete(delete) => Ok(delete.existed),
            _ => Err(another_answer()),
        }
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
        // Held until the results are there.
        let mut writes = Vec::new();
        let operations = operations.into_iter().map(|operation| {
            let write = (!operation.is_read()).then(|| self.cluster.begin_write());
            let once = write.as_ref().map(Write::once);
            writes.extend(write);
            operation.into_wire(once)
        });
        let request = v1::BatchRequest { operations: operations.collect() };
        let outcomes = self.send_batch(request).await?;
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

    /// Sends a batch, and all of it again as long as that may mend a part that
    /// failed: what took effect does not take effect again, and the order is kept.
    async fn send_batch(&self, request: v1::BatchRequest) -> Result<Vec<Result<Outcome>>> {
        let deadline = self.cluster.deadline();
        let mut waits = Waits::new();
        let mut maybe_done = false;
        loop {
            let batch = |channel, request| async move { kv(channel).batch(request).await };
            let called = self.cluster.call(deadline, request.clone(), batch).await?;
            maybe_done |= called.maybe_done;
            let results = called.answer.results.into_iter();
            let outcomes: Vec<Result<Outcome>> = results.map(Outcome::from_result).collect();
            let failed = |outcome: &Result<Outcome>, wanted: fn(&Error) -> bool| {
                outcome.as_ref().is_err_and(wanted)
            };
            let mendable = outcomes.iter().any(|outcome| failed(outcome, is_worth_resending));
            maybe_done |= outcomes.iter().any(|outcome| failed(outcome, may_have_effect));
            if !mendable || !waits.wait(deadline).await {
                let verdict = |error| self.cluster.verdict(error, maybe_done);
                return Ok(outcomes.into_iter().map(|o| o.map_err(verdict)).collect());
            }
        }
    }

    /// Runs a command of the cluster's plugin on every replica of the shard that
    /// `key` is routed to, and gives its response.
    ///
    /// # Errors
    /// [`Error::Plugin`] if the plugin refuses or fails.
    pub async fn apply(&self, key: impl IntoBytes, command: impl IntoBytes) -> Result<Bytes> {
        let (key, write) = (key.into_bytes(), self.cluster.begin_write());
        let (command, once) = (command.into_bytes(), Some(write.once()));
        let apply = v1::ApplyRequest { key: key.clone(), command, once };
        match self.cluster.ask(&key, Request::Apply(apply)).await? {
            Answer::Apply(apply) => Ok(apply.response),
            _ => Err(another_answer()),
        }
    }

    /// Runs a read-only request of the cluster's plugin, linearizably, on the
    /// shard that `key` is routed to, and gives its response.
    ///
    /// # Errors
    /// [`Error::Plugin`] if the plugin refuses or fails.
    pub async fn query(&self, key: impl IntoBytes, request: impl IntoBytes) -> Result<Bytes> {
        let (key, request) = (key.into_bytes(), request.into_bytes());
        let consistency = consistency(false).into();
        let query = v1::QueryRequest { key: key.clone(), request, consistency };
        match self.cluster.ask(&key, Request::Query(query)).await? {
            Answer::Query(query) => Ok(query.response),
            _ => Err(another_answer()),
        }
    }

    /// What one of the nodes knows of itself and its shards.
    pub async fn status(&self) -> Result<v1::StatusResponse> {
        let status = |channel, request| async move { admin(channel).status(request).await };
        let request = v1::StatusRequest {};
        let deadline = self.cluster.deadline();
        Ok(self.cluster.call(deadline, request, status).await?.answer)
    }
}

fn another_answer() -> Error {
    Error::BadResponse { message: "something that was not asked".to_owned() }
}

/// The key-value service over a connection.
pub(crate) fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub(crate) fn machine(channel: Channel) -> StateMachineClient<Channel> {
    StateMachineClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}
