//! RaftKV as a user of its client library has it: one client that all callers
//! share, with its routing, coalescing, sessions and retries.

use raft_kv_client::{Error, Operation as Call, Outcome, RaftKVClient};

use super::{Answer, Broken, answer_of, channels::Unreachable};
use crate::{args::Args, workload::Operation};

/// The client, which its clones share.
#[derive(Clone, Debug)]
pub struct Library {
    client: RaftKVClient,
}

impl Library {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// If no endpoint answers within the timeout of a call.
    pub async fn connect(args: &Args) -> Result<Self, Unreachable> {
        let endpoints: Vec<String> = args.endpoints.iter().map(ToString::to_string).collect();
        let client = RaftKVClient::builder()
            .endpoints(endpoints)
            .request_timeout(args.timeout)
            .connect_timeout(args.timeout)
            .connect()
            .await
            .map_err(|error| Unreachable::new(&args.endpoints, error.to_string()))?;
        Ok(Self { client })
    }

    /// Carries out one operation.
    pub async fn single(&mut self, operation: Operation) -> Answer {
        let mut answer = Answer::default();
        let result = match operation {
            Operation::Put { key, value } => {
                self.client.put(key, value).await.map(|_| answer.put())
            }
            Operation::Get { key } => {
                self.client.get(key).await.map(|value| answer.got(value.is_some()))
            }
        };
        answer_of(1, result.map(|()| answer).map_err(Broken::from))
    }

    /// Carries out many operations with one call.
    pub async fn batch(&mut self, operations: Vec<Operation>) -> Answer {
        let count = operations.len();
        let calls = operations.into_iter().map(|operation| match operation {
            Operation::Put { key, value } => Call::put(key, value),
            Operation::Get { key } => Call::get(key),
        });
        let result = self.client.batch(calls).await.map(|outcomes| {
            let mut answer = Answer::default();
            for outcome in outcomes {
                match outcome {
                    Ok(Outcome::Get(found)) => answer.got(found.is_some()),
                    Ok(Outcome::Put(_) | Outcome::Delete(_) | Outcome::Increment(..)) => {
                        answer.put()
                    }
                    Err(error) => answer.refused(error.into()),
                }
            }
            answer
        });
        answer_of(count, result.map_err(Broken::from))
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Connect { .. } => "Connection",
            Error::InvalidArgument { .. } => "InvalidArgument",
            Error::VersionMismatch { .. } | Error::Plugin { .. } => "PluginError",
            Error::NotLeader { .. } => "NotLeader",
            Error::Unavailable { .. } => "Unavailable",
            Error::ResourceExhausted { .. } => "ResourceExhausted",
            Error::Timeout { .. } => "Timeout",
            Error::BadResponse { .. } => "BadResponse",
            _ => "Other",
        };
        Self::new(kind, error.to_string())
    }
}
