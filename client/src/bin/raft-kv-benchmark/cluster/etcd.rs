//! etcd doing the same work: puts, and gets that are linearizable unless asked
//! otherwise, as RaftKV's are. A batch is a transaction without a condition.

use std::{error::Error as _, time::Duration};

use etcd_client::{Client, ConnectOptions, Error, KvClient, Txn, TxnOp, TxnOpResponse};
use raft_kv_client::Endpoint;

use super::{Answer, Broken, channels::Unreachable, root, within};
use crate::{args::Args, workload::Operation};

/// Operations in a transaction at most, unless etcd is configured otherwise
/// (`--max-txn-ops`).
pub const MAX_TXN_OPERATIONS: usize = 128;

/// An HTTP/2 connection to a node, which its clones share.
#[derive(Clone)]
pub struct Etcd {
    client: KvClient,
    timeout: Duration,
}

// The client has no `Debug` of its own.
impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects to a node.
    ///
    /// # Errors
    /// If it does not answer within the timeout of a call.
    pub async fn connect(endpoint: &Endpoint, args: &Args) -> Result<Self, Unreachable> {
        let options = ConnectOptions::new().with_connect_timeout(args.timeout);
        let unreachable = |reason| Unreachable::new(std::slice::from_ref(endpoint), reason);
        let client = Client::connect([endpoint.url()], Some(options))
            .await
            .map_err(|error| unreachable(root(&error)))?;
        let mut status = client.maintenance_client();
        let answer = tokio::time::timeout(args.timeout, status.status()).await;
        match answer {
            Ok(Ok(_)) => Ok(Self { client: client.kv_client(), timeout: args.timeout }),
            Ok(Err(error)) => Err(unreachable(root(&error))),
            Err(_) => Err(unreachable(format!("no answer within {:?}", args.timeout))),
        }
    }

    /// Carries out one operation with a call of its own.
    pub async fn single(&mut self, operation: Operation) -> Answer {
        let call = async {
            let mut answer = Answer::default();
            match operation {
                Operation::Put { key, value } => {
                    self.client.put(key, value, None).await?;
                    answer.put();
                }
                Operation::Get { key } => {
                    let response = self.client.get(key, None).await?;
                    answer.got(!response.kvs().is_empty());
                }
            }
            Ok(answer)
        };
        within(self.timeout, 1, call).await
    }

    /// Carries out many operations with one call.
    pub async fn batch(&mut self, operations: Vec<Operation>) -> Answer {
        let count = operations.len();
        let operations = operations.into_iter().map(|operation| match operation {
            Operation::Put { key, value } => TxnOp::put(key, value, None),
            Operation::Get { key } => TxnOp::get(key, None),
        });
        let txn = Txn::new().and_then(operations.collect::<Vec<_>>());
        let call = async {
            let mut answer = Answer::default();
            for response in self.client.txn(txn).await?.op_responses() {
                match response {
                    TxnOpResponse::Get(response) => answer.got(!response.kvs().is_empty()),
                    _ => answer.put(),
                }
            }
            Ok(answer)
        };
        within(self.timeout, count, call).await
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        match error {
            // A node's status has no source: this one was made on this side.
            Error::GRpcStatus(status) => match status.source() {
                Some(source) => Self::new("Connection", root(source)),
                None => Self::new(format!("{:?}", status.code()), status.message()),
            },
            Error::TransportError(error) => Self::new("Connection", root(&error)),
            error => Self::new("Other", error.to_string()),
        }
    }
}
