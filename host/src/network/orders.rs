//! Small things that one node has another do: calls of their own, beside the one that
//! carries Raft messages.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use raft_kv_proto::v1::{
    Hello, JoinRequest, JoinResponse, MetaCopy, Order, OrderRequest, OrderResponse, ScanShardPage,
    ScanShardRequest, WatchMetaRequest, raft_client::RaftClient,
};
use raft_lite::{NodeId, RequestError};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{Network, Peer, dial, wire};

/// An order takes at most so long, unless it says otherwise.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Copies of the cluster's own state.
pub type MetaCopies = Pin<Box<dyn Stream<Item = Result<MetaCopy, Status>> + Send>>;
/// Pages of a shard's pairs.
pub type ScannedPages = Pin<Box<dyn Stream<Item = Result<ScanShardPage, Status>> + Send>>;

impl Peer {
    fn client(&self) -> Result<RaftClient<Channel>, RequestError> {
        let channel = match self.channel.get() {
            Some(channel) => channel,
            None => {
                let endpoint = dial::endpoint(&self.config.dial);
                let bad =
                    |error: tonic::transport::Error| RequestError::Unavailable(error.to_string());
                let channel = endpoint.map_err(bad)?.connect_lazy();
                self.channel.get_or_init(|| channel)
            }
        };
        Ok(dial::client(channel.clone()))
    }
}

impl Network {
    /// Has another node do something. An error that leaves open whether it did says so.
    pub async fn order(&self, to: NodeId, order: Order) -> Result<OrderResponse, RequestError> {
        let (peer, hello) = self.reach(to)?;
        let node = peer.config.node_id.clone();
        let request = OrderRequest { hello: Some(hello), order: Some(order) };
        let mut client = peer.client()?;
        let answer = timeout(ANSWER_WITHIN, client.order(request)).await;
        let late = || RequestError::OutcomeUnknown(format!("no answer from node {node} in time"));
        let answer = answer.map_err(|_| late())?;
        let response = answer.map_err(|status| failed(&node, &status))?.into_inner();
        match response.error {
            Some(error) => Err(wire::error_from_wire(error)),
            None => Ok(response),
        }
    }

    /// Follows the cluster's own state as another node has it.
    pub async fn watch_meta(
        &self,
        from: NodeId,
        version: u64,
    ) -> Result<Streaming<MetaCopy>, RequestError> {
        let (peer, hello) = self.reach(from)?;
        let request = WatchMetaRequest { hello: Some(hello), version };
        let answer = timeout(ANSWER_WITHIN, peer.client()?.watch_meta(request)).await;
        let late = |_| RequestError::Unavailable("no answer in time".to_owned());
        let copies = answer.map_err(late)?;
        copies.map(tonic::Response::into_inner).map_err(|s| failed(&peer.config.node_id, &s))
    }

    /// Scans slots of a shard that another node has a replica of.
    pub async fn scan_shard(
        &self,
        from: NodeId,
        request: ScanShardRequest,
    ) -> Result<Streaming<ScanShardPage>, RequestError> {
        let (peer, hello) = self.reach(from)?;
        let request = ScanShardRequest { hello: Some(hello), ..request };
        let answer = timeout(ANSWER_WITHIN, peer.client()?.scan_shard(request)).await;
        let late = |_| RequestError::Unavailable("no answer in time".to_owned());
        let pages = answer.map_err(late)?;
        pages.map(tonic::Response::into_inner).map_err(|s| failed(&peer.config.node_id, &s))
    }

    /// Checks who sends an order.
    pub fn check_order(&self, hello: Option<Hello>) -> Result<NodeId, Status> {
        let refused = |error: super::hello::Refused| Status::failed_precondition(error.to_string());
        self.check_hello(&hello.unwrap_or_default()).map_err(refused)
    }

    fn reach(&self, to: NodeId) -> Result<(Arc<Peer>, Hello), RequestError> {
        let peer = self.peers.read().get(&to).cloned();
        let unknown = || RequestError::Unavailable("it is not a node of the cluster".to_owned());
        let peer = peer.ok_or_else(unknown)?;
        let hello = self.hello(&peer.config.node_id);
        Ok((peer, hello))
    }
}

/// Asks a node of a cluster to be made one of it.
pub async fn join_cluster(address: &str, request: JoinRequest) -> Result<JoinResponse, Status> {
    let unreachable = |error: tonic::transport::Error| Status::from_error(error.into());
    let channel = dial::endpoint(address).map_err(unreachable)?.connect().await;
    let mut client = dial::client(channel.map_err(unreachable)?);
    let answer = timeout(ANSWER_WITHIN, client.join(request)).await;
    let late = |_| Status::deadline_exceeded("no answer in time");
    Ok(answer.map_err(late)??.into_inner())
}

/// What a call that failed says of the order: only if the node was never reached, or
/// refused it, did nothing happen for certain.
fn failed(node: &str, status: &Status) -> RequestError {
    let reason = format!("node {node}: {}", dial::describe(status));
    let was_refused = matches!(
        status.code(),
        Code::FailedPrecondition | Code::Unimplemented | Code::InvalidArgument | Code::NotFound
    );
    let text = reason.to_lowercase();
    match was_refused || text.contains("refused") || text.contains("tcp connect") {
        true => RequestError::Unavailable(reason),
        false => RequestError::OutcomeUnknown(reason),
    }
}
