//! RaftKV as any gRPC client has it, without retries, redirects or coalescing:
//! what a node answers is what is counted.

use std::{error::Error, time::Duration};

use raft_kv_proto::{
    detail_of,
    v1::{
        self, error_detail::Detail, kv_client::KvClient, operation::Operation as WireOperation,
        operation_result::Result as WireResult,
    },
};
use tonic::{Code, Status, transport::Channel};

use super::{Answer, Broken, root, within};
use crate::workload::Operation;

/// An HTTP/2 connection to a node, which its clones share.
#[derive(Clone, Debug)]
pub struct Unary {
    client: KvClient<Channel>,
    timeout: Duration,
}

impl Unary {
    /// Calls over a connection, each of which may take `timeout`.
    pub fn new(channel: Channel, timeout: Duration) -> Self {
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
                    self.client.put(put(key, value)).await?;
                    answer.put();
                }
                Operation::Get { key } => {
                    let response = self.client.get(get(key)).await?;
                    answer.got(response.get_ref().found);
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
            from_results(count, response.into_inner().results)
        };
        within(self.timeout, count, call).await
    }
}

fn put(key: bytes::Bytes, value: bytes::Bytes) -> v1::PutRequest {
    v1::PutRequest { key, value, ..Default::default() }
}

fn get(key: bytes::Bytes) -> v1::GetRequest {
    v1::GetRequest { key, consistency: v1::Consistency::Linearizable.into() }
}

fn to_wire(operation: Operation) -> v1::Operation {
    let operation = match operation {
        Operation::Put { key, value } => WireOperation::Put(put(key, value)),
        Operation::Get { key } => WireOperation::Get(get(key)),
    };
    v1::Operation { operation: Some(operation) }
}

fn from_results(count: usize, results: Vec<v1::OperationResult>) -> Result<Answer, Broken> {
    if results.len() != count {
        let message = format!("{} results for {count} operations", results.len());
        return Err(Broken::new("BadResponse", message));
    }
    let mut answer = Answer::default();
    for result in results {
        match result.result {
            Some(WireResult::Put(_) | WireResult::Delete(_) | WireResult::Increment(_)) => {
                answer.put();
            }
            Some(WireResult::Get(response)) => answer.got(response.found),
            Some(WireResult::Error(error)) => {
                let detail = error.detail.and_then(|detail| detail.detail);
                let kind = kind(Code::from(error.code), detail.as_ref());
                answer.refused(Broken::new(kind, error.message));
            }
            None => answer.refused(Broken::new("BadResponse", "a result of nothing")),
        }
    }
    Ok(answer)
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        match status.source() {
            // A node's status has no source: this one was made on this side.
            Some(source) => Self::new("Connection", root(source)),
            None => Self::new(kind(status.code(), detail_of(&status).as_ref()), status.message()),
        }
    }
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
        Some(Detail::NotFound(_)) => "NotFound".to_owned(),
        Some(Detail::Conflict(_)) => "Conflict".to_owned(),
        None => format!("{code:?}"),
    }
}
