//! `raftkv.v1.Raft`: other nodes.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use raft_kv_proto::v1::{self, raft_server::Raft};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::status::status_of;
use crate::{
    network::{Answers, Chunks, Introduction, MetaCopies, Network, ScannedPages, error_to_wire},
    service::{Pair, Scanner, Service},
};

/// Between two signs of life to whoever follows the cluster's state.
const SIGN_EVERY: Duration = Duration::from_secs(3);

pub(super) struct RaftApi {
    /// None before the cluster is born.
    pub(super) network: Option<Arc<Network>>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) introduction: Introduction,
}

impl RaftApi {
    fn network(&self) -> Result<Arc<Network>, Status> {
        let network = self.network.as_ref().map(Arc::clone);
        network.ok_or_else(unborn)
    }

    fn service(&self) -> Result<Arc<Service>, Status> {
        self.service.as_ref().map(Arc::clone).ok_or_else(unborn)
    }
}

fn unborn() -> Status {
    Status::unavailable("the node belongs to no cluster yet")
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

    async fn order(
        &self,
        request: Request<v1::OrderRequest>,
    ) -> Result<Response<v1::OrderResponse>, Status> {
        let v1::OrderRequest { hello, order } = request.into_inner();
        self.network()?.check_order(hello)?;
        let carried_out = self.service()?.carry_out(order.unwrap_or_default()).await;
        Ok(Response::new(carried_out.unwrap_or_else(|error| v1::OrderResponse {
            error: Some(error_to_wire(error)),
            ..v1::OrderResponse::default()
        })))
    }

    type WatchMetaStream = MetaCopies;

    async fn watch_meta(
        &self,
        request: Request<v1::WatchMetaRequest>,
    ) -> Result<Response<Self::WatchMetaStream>, Status> {
        let v1::WatchMetaRequest { hello, version } = request.into_inner();
        self.network()?.check_order(hello)?;
        let service = self.service()?;
        let stopped = service.stopped();
        let copies =
            stream::unfold((service.watch_meta(), version), |(mut copy, version)| async move {
                let newer = copy.wait_for(|copy| copy.version > version);
                let (state, version) = match timeout(SIGN_EVERY, newer).await {
                    Ok(Ok(copy)) => (copy.encode(), copy.version),
                    Ok(Err(_)) => return None,
                    Err(_) => (Vec::new(), version),
                };
                Some((Ok(v1::MetaCopy { state: state.into() }), (copy, version)))
            });
        Ok(Response::new(copies.take_until(stopped).boxed()))
    }

    type ScanShardStream = ScannedPages;

    async fn scan_shard(
        &self,
        request: Request<v1::ScanShardRequest>,
    ) -> Result<Response<Self::ScanShardStream>, Status> {
        let mut request = request.into_inner();
        self.network()?.check_order(request.hello.take())?;
        let service = self.service()?;
        let scanner = service.scan_here(request).await.map_err(status_of)?;
        let pages = stream::unfold(Some((service, scanner)), |scan| async move {
            let (service, scanner) = scan?;
            if scanner.is_done() {
                return None;
            }
            match service.page_here(scanner).await {
                Ok((scanner, page)) => Some((Ok(page_of(page)), next(service, scanner))),
                Err(error) => Some((Err(status_of(error)), None)),
            }
        });
        Ok(Response::new(pages.boxed()))
    }

    type FetchPluginStream = Chunks;

    async fn fetch_plugin(
        &self,
        request: Request<v1::FetchPluginRequest>,
    ) -> Result<Response<Self::FetchPluginStream>, Status> {
        let v1::FetchPluginRequest { hello, plugin } = request.into_inner();
        self.network()?.check_order(hello)?;
        let module = self.service()?.module_of_plugin(&plugin).map_err(status_of)?;
        Ok(Response::new(self.network()?.send_module(module)))
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let joined = self.service()?.join(request.into_inner()).await;
        joined.map(Response::new).map_err(status_of)
    }
}

fn next(service: Arc<Service>, scanner: Scanner) -> Option<(Arc<Service>, Scanner)> {
    Some((service, scanner))
}

fn page_of(pairs: Vec<Pair>) -> v1::ScanShardPage {
    let pair = |Pair { key, value, version }| v1::ScannedPair { key, value, version };
    v1::ScanShardPage { pairs: pairs.into_iter().map(pair).collect() }
}
