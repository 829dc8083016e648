//! The cluster under load: connections to its nodes, and calls over them.
//!
//! Calls are those of any gRPC client, without retries, redirects or coalescing:
//! what a node answers is what is counted.

use std::{error::Error, time::Duration};

use futures::future::join_all;
use raft_kv_client::Endpoint;
use raft_kv_proto::{
    detail_of,
    v1::{
        self, error_detail::Detail, kv_client::KvClient, operation::Operation as WireOperation,
        operation_result::Result as WireResult,
    },
};
use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint as Transport},
};

use crate::{args::Args, workload::Operation};

/// Room for many calls in flight before the sender waits for the receiver.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// No endpoint answers.
#[derive(Debug, thiserror::Error)]
#[error("no node answers at {endpoints}: is it running? ({reason})")]
pub struct Unreachable {
    endpoints: String,
    reason: String,
}

/// The keys to be read could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the keys: {0}; --no-load leaves that out")]
pub struct CannotLoad(pub String);

/// The nodes that answer, and connections to them.
#[derive(Debug)]
pub struct Cluster {
    /// As many to each endpoint as asked for, the endpoints taking turns.
    pub connections: Vec<Connection>,
    /// The endpoints that do not answer, and why.
    pub unreachable: Vec<(Endpoint, String)>,
}

impl Cluster {
    /// Connects to the nodes; later on, a broken connection is made anew.
    ///
    /// # Errors
    /// If no endpoint answers within the timeout of a call.
    pub async fn connect(args: &Args) -> Result<Self, Unreachable> {
        let first = args.endpoints.iter().map(|endpoint| connect(endpoint, args.timeout));
        let mut channels = Vec::new();
        let mut answering = Vec::new();
        let mut unreachable = Vec::new();
        for (endpoint, result) in args.endpoints.iter().zip(join_all(first).await) {
            match result {
                Ok(channel) => {
                    channels.push(channel);
                    answering.push(endpoint);
                }
                Err(error) => unreachable.push((endpoint.clone(), root(&error))),
            }
        }
        if answering.is_empty() {
            let endpoints: Vec<String> = args.endpoints.iter().map(Endpoint::to_string).collect();
            let reason = unreachable.into_iter().next().map(|(_, reason)| reason);
            return Err(Unreachable {
                endpoints: endpoints.join(", "),
                reason: reason.unwrap_or_default(),
            });
        }
        let wanted = args.concurrency.min(answering.len() * args.connections);
        channels.truncate(wanted);
        for place in channels.len()..wanted {
            let endpoint = answering[place % answering.len()];
            match connect(endpoint, args.timeout).await {
                Ok(channel) => channels.push(channel),
                Err(error) => {
                    let (endpoints, reason) = (endpoint.to_string(), root(&error));
                    return Err(Unreachable { endpoints, reason });
                }
            }
        }
        let connection = |channel| Connection::new(channel, args.timeout);
        Ok(Self { connections: channels.into_iter().map(connection).collect(), unreachable })
    }

    /// The connection that a caller uses.
    pub fn connection_of(&self, caller: usize) -> &Connection {
        &self.connections[caller % self.connections.len()]
    }
}

async fn connect(
    endpoint: &Endpoint,
    connect_timeout: Duration,
) -> Result<Channel, tonic::transport::Error> {
    Transport::from_shared(endpoint.url())?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
}

/// What a call did.
#[derive(Debug, Default)]
pub struct Answer {
    /// Operations that succeeded.
    pub done: u64,
    /// Gets among them of keys that do not exist.
    pub missing: u64,
    pub failures: Vec<Failure>,
}

/// Why operations failed.
#[derive(Debug)]
pub struct Failure {
    /// The detail's name, the gRPC code, `Timeout`, or `Connection`.
    pub kind: String,
    pub message: String,
    /// How many failed so.
    pub operations: u64,
}

impl Answer {
    fn failed(operations: usize, kind: impl Into<String>, message: impl Into<String>) -> Self {
        let (kind, message) = (kind.into(), message.into());
        let failure = Failure { kind, message, operations: operations as u64 };
        Self { failures: vec![failure], ..Self::default() }
    }

    fn got(&mut self, response: &v1::GetResponse) {
        self.done += 1;
        self.missing += u64::from(!response.found);
    }
}

/// An HTTP/2 connection to a node, which its clones share.
#[derive(Clone, Debug)]
pub struct Connection {
    client: KvClient<Channel>,
    timeout: Duration,
}

impl Connection {
    fn new(channel: Channel, timeout: Duration) -> Self {
        let client = KvClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Self { client, timeout }
    }

    /// Carries out one operation with a call of its own.
    pub async fn single(&mut self, operation: Operation) -> Answer {
        let call = async {
            let mut answer = Answer::default();
            match operation {
                Operation::Put { key, value } => {
                    let put = v1::PutRequest { key, value, expected_version: None, once: None };
                    self.client.put(put).await?;
                    answer.done += 1;
                }
                Operation::Get { key } => {
                    let get =
                        v1::GetRequest { key, consistency: v1::Consistency::Linearizable.into() };
                    answer.got(self.client.get(get).await?.get_ref());
                }
            }
            Ok(answer)
        };
        within(self.timeout, 1, call).await
    }

    /// Carries out many operations with one call.
    pub async fn batch(&mut self, operations: Vec<Operation>) -> Answer {
        let count = operations.len();
        let operations = operations.into_iter().map(to_wire).collect();
        let call = async {
            let response = self.client.batch(v1::BatchRequest { operations }).await?;
            Ok(from_results(count, response.into_inner().results))
        };
        within(self.timeout, count, call).await
    }
}

/// The answer to a call of so many operations, if there is one in time.
async fn within(
    limit: Duration,
    operations: usize,
    call: impl Future<Output = Result<Answer, Status>>,
) -> Answer {
    match timeout(limit, call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) => match status.source() {
            // A node's status has no source: this one was made on this side.
            Some(source) => Answer::failed(operations, "Connection", root(source)),
            None => {
                let kind = kind(status.code(), detail_of(&status).as_ref());
                Answer::failed(operations, kind, status.message())
            }
        },
        Err(_) => Answer::failed(operations, "Timeout", format!("no answer within {limit:?}")),
    }
}

fn to_wire(operation: Operation) -> v1::Operation {
    let operation = match operation {
        Operation::Put { key, value } => {
            WireOperation::Put(v1::PutRequest { key, value, expected_version: None, once: None })
        }
        Operation::Get { key } => WireOperation::Get(v1::GetRequest {
            key,
            consistency: v1::Consistency::Linearizable.into(),
        }),
    };
    v1::Operation { operation: Some(operation) }
}

fn from_results(count: usize, results: Vec<v1::OperationResult>) -> Answer {
    if results.len() != count {
        let message = format!("{} results for {count} operations", results.len());
        return Answer::failed(count, "BadResponse", message);
    }
    let mut answer = Answer::default();
    for result in results {
        match result.result {
            Some(WireResult::Put(_) | WireResult::Delete(_)) => answer.done += 1,
            Some(WireResult::Get(response)) => answer.got(&response),
            Some(WireResult::Error(error)) => {
                let detail = error.detail.and_then(|detail| detail.detail);
                let kind = kind(Code::from(error.code), detail.as_ref());
                answer.failures.push(Failure { kind, message: error.message, operations: 1 });
            }
            None => {
                let (kind, message) = ("BadResponse".to_owned(), "a result of nothing".to_owned());
                answer.failures.push(Failure { kind, message, operations: 1 });
            }
        }
    }
    answer
}

/// The name of a failure that a node reported.
fn kind(code: Code, detail: Option<&Detail>) -> String {
    match detail {
        Some(Detail::NotLeader(_)) => "NotLeader".to_owned(),
        Some(Detail::StaleRouting(_)) => "StaleRouting".to_owned(),
        Some(Detail::ShardUnavailable(_)) => "ShardUnavailable".to_owned(),
        Some(Detail::PluginError(_)) => "PluginError".to_owned(),
        Some(Detail::InvalidArgument(_)) => "InvalidArgument".to_owned(),
        Some(Detail::ResourceExhausted(_)) => "ResourceExhausted".to_owned(),
        None => format!("{code:?}"),
    }
}

/// What the first cause of an error says.
fn root(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
