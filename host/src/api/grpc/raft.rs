//! `raftkv.v1.Raft`: other nodes.

use std::sync::Arc;

use raft_kv_proto::v1::{self, raft_server::Raft};
use tonic::{Request, Response, Status, Streaming};

use crate::network::{Answers, Chunks, Introduction, Network};

pub(super) struct RaftApi {
    /// None before the cluster is born.
    pub(super) network: Option<Arc<Network>>,
    pub(super) introduction: Introduction,
}

impl RaftApi {
    fn network(&self) -> Result<Arc<Network>, Status> {
        let network = self.network.as_ref().map(Arc::clone);
        network.ok_or_else(|| Status::unavailable("the node belongs to no cluster yet"))
    }
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
        Ok(Response::new(self.network()?.accept(request.into_inner()).await?))
    }

    type FetchSnapshotStream = Chunks;

    async fn fetch_snapshot(
        &self,
        request: Request<v1::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        Ok(Response::new(self.network()?.send_snapshot(request.into_inner()).await?))
    }
}
