//! `raftkv.v1.Raft`: other nodes.

use std::sync::Arc;

use raft_kv_proto::v1::{self, raft_server::Raft};
use tonic::{Request, Response, Status, Streaming};

use crate::network::{Answers, Introduction, Network};

pub(super) struct RaftApi {
    /// None before the cluster is born.
    pub(super) network: Option<Arc<Network>>,
    pub(super) introduction: Introduction,
}

#[tonic::async_trait]
impl Raft for RaftApi {
    async fn meet(
        &self,
        request: Request<v1::MeetRequest>,
    ) -> Result<Response<v1::MeetResponse>, Status> {
        Ok(Response::new(self.introduction.meet(request.get_ref())?))
    }

    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let Some(network) = self.network.as_ref().map(Arc::clone) else {
            return Err(Status::unavailable("the node belongs to no cluster yet"));
        };
        Ok(Response::new(network.accept(request.into_inner()).await?))
    }
}
