//! Looking after a cluster: its nodes, its shards, and the operations that change them.
//!
//! An operation is begun at any node and goes on by itself, whichever nodes fail. Here
//! it is begun under a number that nodes know it by, so that a request that is sent
//! again begins nothing new, and then asked for until it has ended.

mod change;
mod plugin;
mod view;

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_kv_proto::v1;
use tokio::time::sleep_until;
use tonic::{Response, Status, transport::Channel};

use crate::{
    call::Cluster,
    client::{RaftKVClient, admin},
    error::{Error, Result},
};

pub use change::Change;
pub use plugin::Activation;
pub use view::{ClusterNode, ClusterOperation, ClusterShard, ClusterState, OperationState};

/// How long an operation is waited for unless said otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a node is asked to wait for the end of an operation before it answers. Less
/// than an attempt of a call may take.
const LONGEST_POLL: Duration = Duration::from_secs(1);
/// How long after an operation was begun a node may not know of it yet.
const LATEST_NEWS: Duration = Duration::from_secs(5);
/// The least time between two questions.
const PAUSE: Duration = Duration::from_millis(100);

type Observer = Arc<dyn Fn(&ClusterOperation) + Send + Sync>;

/// The way to look after a cluster; made by [`RaftKVClient::admin`].
///
/// ```no_run
/// use raft_kv_client::{Change, RaftKVClient};
///
/// # async fn example() -> Result<(), raft_kv_client::Error> {
/// let client = RaftKVClient::new("http://127.0.0.1:5001").await?;
/// let (shard, from, to) = ("shard_0".into(), "node1".into(), "node4".into());
/// client.admin().change(Change::MigrateShard { shard, from, to }).await?;
/// for shard in client.admin().cluster().await?.shards {
///     println!("{} is on {:?}", shard.shard_id, shard.replicas);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotFound`] if something named does not exist, and [`Error::Conflict`] if
/// something stands in the way, such as another operation on the same shard.
#[derive(Clone)]
#[must_use = "it does nothing until it is asked to"]
pub struct Admin {
    cluster: Arc<Cluster>,
    timeout: Duration,
    observer: Option<Observer>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Admin");
        shown.field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Admin {
    /// Sets how long operations are waited for; 10 minutes unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Has an operation that is waited for told each time it is heard of.
    pub fn on_progress(
        mut self,
        observer: impl Fn(&ClusterOperation) + Send + Sync + 'static,
    ) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// The cluster now: nodes, shards, and operations.
    pub async fn cluster(&self) -> Result<ClusterState> {
        let cluster = |channel, request| async move { admin(channel).cluster(request).await };
        let answer = self.cluster.call(v1::ClusterRequest {}, cluster).await?.answer;
        self.cluster.learn(answer.nodes.iter().map(|node| node.address.as_str()));
        ClusterState::try_from(answer)
    }

    /// Changes the cluster: begins an operation and waits until it is done. Nodes may
    /// fail meanwhile.
    ///
    /// # Errors
    /// [`Error::RolledBack`] if it could not be done and was undone, and
    /// [`Error::StillRunning`] if it goes on when the time is up. After any other error
    /// that leaves open whether a request took effect, it may have begun.
    pub async fn change(&self, change: Change) -> Result<ClusterOperation> {
        let deadline = self.deadline();
        let operation = self.begin(change).await?;
        Self::success(self.until_ended(operation, deadline).await?)
    }

    /// Begins an operation, and does not wait for its end.
    pub async fn begin(&self, change: Change) -> Result<ClusterOperation> {
        let time = self.timeout.min(self.cluster.request_timeout);
        let request_id = rand::random_range(1..=u64::MAX);
        let begin = change::Begin { change, timeout_ms: poll_ms(time), request_id };
        operation_in(self.cluster.call_within(time, begin, change::send).await?.answer)
    }

    /// Waits until an operation is done.
    ///
    /// # Errors
    /// As [`Admin::change`].
    pub async fn wait(&self, id: u64) -> Result<ClusterOperation> {
        let deadline = self.deadline();
        let operation = self.operation(id).await?;
        Self::success(self.until_ended(operation, deadline).await?)
    }

    /// An operation as it is now.
    pub async fn operation(&self, id: u64) -> Result<ClusterOperation> {
        let request = v1::OperationRequest { id, timeout_ms: 0 };
        self.ask(self.cluster.request_timeout, request, get).await
    }

    /// Has an operation rolled back, where that is safe, and waits for its end. It may
    /// have been done before that.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it cannot be rolled back any more, and
    /// [`Error::StillRunning`] if it has not ended when the time is up.
    pub async fn cancel(&self, id: u64) -> Result<ClusterOperation> {
        let deadline = self.deadline();
        let time = self.timeout.min(self.cluster.request_timeout);
        let request = v1::OperationRequest { id, timeout_ms: poll_ms(time) };
        let cancel =
            |channel, request| async move { admin(channel).cancel_operation(request).await };
        let operation = self.ask(time, request, cancel).await?;
        self.until_ended(operation, deadline).await
    }

    /// Has a node's replica take over a shard's leadership. Returns the replica's number.
    pub async fn transfer_leader(&self, shard: &str, node: &str) -> Result<u64> {
        let request = change::replica(shard, node);
        let transfer =
            |channel, request| async move { admin(channel).transfer_leader(request).await };
        Ok(self.cluster.call(request, transfer).await?.answer.replica)
    }

    /// Has the cluster spread replicas and leaders over its nodes by itself, or not.
    pub async fn set_balancer(&self, on: bool) -> Result<()> {
        let set = |channel, request| async move { admin(channel).set_balancer(request).await };
        self.cluster.call(v1::SetBalancerRequest { enabled: on }, set).await?;
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The operation, if it was not rolled back.
    fn success(operation: ClusterOperation) -> Result<ClusterOperation> {
        match operation.state {
            OperationState::RolledBack => Err(Error::RolledBack { operation: Box::new(operation) }),
            _ => Ok(operation),
        }
    }

    /// Asks for an operation until it has ended.
    async fn until_ended(
        &self,
        mut operation: ClusterOperation,
        deadline: Instant,
    ) -> Result<ClusterOperation> {
        let known_to_all = Instant::now() + LATEST_NEWS;
        loop {
            if let Some(observer) = &self.observer {
                observer(&operation);
            }
            let now = Instant::now();
            if operation.state != OperationState::Running {
                return Ok(operation);
            }
            if now >= deadline {
                return Err(Error::StillRunning { operation: Box::new(operation) });
            }
            let time = self.cluster.request_timeout.min(deadline - now);
            let request = v1::OperationRequest { id: operation.id, timeout_ms: poll_ms(time) };
            match self.ask(time, request, get).await {
                Ok(known) => operation = known,
                // It goes on, and some node will tell.
                Err(error) if error.is_passing() => {}
                // There is one, which the node that was asked has yet to hear of.
                Err(Error::NotFound { .. }) if now < known_to_all => {}
                Err(error) => return Err(error),
            }
            if operation.state == OperationState::Running {
                sleep_until(deadline.min(now + PAUSE).into()).await;
            }
        }
    }

    async fn ask<S, F>(
        &self,
        time: Duration,
        request: v1::OperationRequest,
        send: S,
    ) -> Result<ClusterOperation>
    where
        S: Fn(Channel, v1::OperationRequest) -> F,
        F: Future<Output = Result<Response<v1::OperationResponse>, Status>>,
    {
        let answer = self.cluster.call_within(time, request, send).await?.answer;
        operation_in(answer.operation)
    }
}

impl RaftKVClient {
    /// The way to look after the cluster.
    pub fn admin(&self) -> Admin {
        let cluster = self.cluster().clone();
        Admin { cluster, timeout: DEFAULT_TIMEOUT, observer: None }
    }

    /// Gives a node a replica of a shard, and waits until it has a vote.
    ///
    /// # Errors
    /// As [`Admin::change`].
    pub async fn add_replica(&self, shard: &str, node: &str) -> Result<()> {
        let (shard, node) = (shard.to_owned(), node.to_owned());
        self.admin().change(Change::AddReplica { shard, node }).await?;
        Ok(())
    }

    /// Takes a node's replica out of a shard.
    ///
    /// # Errors
    /// As [`Admin::change`].
    pub async fn remove_replica(&self, shard: &str, node: &str) -> Result<()> {
        let (shard, node) = (shard.to_owned(), node.to_owned());
        self.admin().change(Change::RemoveReplica { shard, node }).await?;
        Ok(())
    }

    /// [`Admin::transfer_leader`].
    pub async fn transfer_leader(&self, shard: &str, node: &str) -> Result<u64> {
        self.admin().transfer_leader(shard, node).await
    }
}

async fn get(
    channel: Channel,
    request: v1::OperationRequest,
) -> Result<Response<v1::OperationResponse>, Status> {
    admin(channel).operation(request).await
}

/// How long a node may wait before it answers a request that may take so long in all:
/// there has to be time for another attempt, elsewhere.
fn poll_ms(time: Duration) -> u64 {
    let poll = LONGEST_POLL.min(time / 4);
    // To the nodes 0 is their own choice.
    u64::try_from(poll.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn operation_in(operation: Option<v1::ClusterOperation>) -> Result<ClusterOperation> {
    let missing = || Error::BadResponse { message: "without the operation".to_owned() };
    ClusterOperation::try_from(operation.ok_or_else(missing)?)
}
