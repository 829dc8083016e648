//! The gRPC services of the test node.

use futures::{FutureExt, StreamExt, stream::BoxStream};
use raft_kv_proto::v1::{
    admin_server::Admin, kv_server::Kv, operation::Operation, operation_result,
    pipeline_request::Request as PipelineItem, pipeline_response,
    state_machine_server::StateMachine,
};
use tokio_stream::Iter;
use tonic::{Request, Response, Streaming};

use super::*;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kv for Node {
    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        self.begin()?;
        self.hang_on(&request.get_ref().key).await;
        Node::put(self, request.into_inner()).map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        self.begin()?;
        self.hang_on(&request.get_ref().key).await;
        Ok(Response::new(Node::get(self, request.get_ref())))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        self.begin()?;
        Ok(Response::new(Node::delete(self, request.get_ref())))
    }

    type ScanStream = Iter<std::vec::IntoIter<Result<v1::ScanResponse, Status>>>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Answer<Self::ScanStream> {
        self.begin()?;
        let pages = Node::scan(self, request.get_ref());
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Answer<v1::BatchResponse> {
        use operation_result::Result as Wire;
        self.begin()?;
        let results = request.into_inner().operations.into_iter().map(|operation| {
            let result = match operation.operation.unwrap() {
                Operation::Put(put) => Node::put(self, put).map(Wire::Put),
                Operation::Get(get) => Ok(Wire::Get(Node::get(self, &get))),
                Operation::Delete(delete) => Ok(Wire::Delete(Node::delete(self, &delete))),
            };
            let result = result.unwrap_or_else(|status| Wire::Error(operation_error(&status)));
            v1::OperationResult { result: Some(result) }
        });
        Ok(Response::new(v1::BatchResponse { results: results.collect() }))
    }
}

#[tonic::async_trait]
impl StateMachine for Node {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        self.begin()?;
        Node::apply(self, request.into_inner()).map(Response::new)
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answer<v1::QueryResponse> {
        self.begin()?;
        let response = [b"asked ", &request.get_ref().request[..]].concat().into();
        Ok(Response::new(v1::QueryResponse { response }))
    }

    type PipelineStream = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Answer<Self::PipelineStream> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let Some(node) = self.itself.lock().unwrap().upgrade() else {
            return Err(Status::internal("the node is gone"));
        };
        let mut stopping = self.stopping.subscribe();
        let answers = request.into_inner().map(move |request| {
            let node = node.clone();
            async move {
                let v1::PipelineRequest { tag, request } = request?;
                let result = match pipelined(&node, request.unwrap()).await {
                    Ok(result) => result,
                    Err(status) if status.code() == Code::Aborted => return Err(status),
                    Err(status) => pipeline_response::Result::Error(operation_error(&status)),
                };
                Ok(v1::PipelineResponse { tag, result: Some(result) })
            }
        });
        let over = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        let answers = answers.buffer_unordered(1000).take_until(over.boxed());
        Ok(Response::new(answers.boxed()))
    }

    async fn routing(&self, _: Request<v1::RoutingRequest>) -> Answer<v1::RoutingResponse> {
        self.routings.fetch_add(1, Ordering::SeqCst);
        match self.routing.lock().unwrap().clone() {
            Some(routing) => Ok(Response::new(routing)),
            None => Err(Status::unimplemented("no routing")),
        }
    }
}

async fn pipelined(
    node: &Node,
    request: PipelineItem,
) -> Result<pipeline_response::Result, Status> {
    use pipeline_response::Result as Wire;
    node.begin()?;
    Ok(match request {
        PipelineItem::Put(put) => {
            node.hang_on(&put.key).await;
            let response = node.put(put)?;
            if node.breaks.swap(false, Ordering::SeqCst) {
                return Err(Status::aborted("the stream breaks"));
            }
            Wire::Put(response)
        }
        PipelineItem::Get(get) => {
            node.hang_on(&get.key).await;
            Wire::Get(node.get(&get))
        }
        PipelineItem::Delete(delete) => Wire::Delete(node.delete(&delete)),
        PipelineItem::Apply(apply) => Wire::Apply(node.apply(apply)?),
        PipelineItem::Query(query) => {
            let response = [b"asked ", &query.request[..]].concat().into();
            Wire::Query(v1::QueryResponse { response })
        }
    })
}

fn operation_error(status: &Status) -> v1::OperationError {
    v1::OperationError {
        code: status.code().into(),
        message: status.message().into(),
        detail: Some(v1::ErrorDetail { detail: raft_kv_proto::detail_of(status) }),
    }
}

#[tonic::async_trait]
impl Admin for Node {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.begin()?;
        let shard = |name: &str, start, end| v1::ShardStatus {
            name: name.into(),
            group: 1,
            slots: vec![v1::SlotRange { start, end }],
            leader: "node1".into(),
            role: "leader".into(),
            term: 3,
            commit_index: 17,
            applied_index: 16,
            plugin: Some(v1::PluginInfo {
                name: "kv".into(),
                version: "0.1.0".into(),
                sha256: "00".into(),
            }),
            ..Default::default()
        };
        let quarantined = v1::ShardStatus {
            leader: String::new(),
            role: "quarantined".into(),
            plugin: None,
            reason: "its state differs".into(),
            ..shard("shard_10", 128, 256)
        };
        Ok(Response::new(v1::StatusResponse {
            node_id: "node1".into(),
            address: "127.0.0.1:5001".into(),
            version: "0.1.0".into(),
            uptime_seconds: 125,
            slots: 256,
            disk_usage_bytes: 1536,
            shards: vec![shard("shard_0", 0, 128), quarantined],
            ..Default::default()
        }))
    }

    async fn checksum(&self, _: Request<v1::ChecksumRequest>) -> Answer<v1::ChecksumResponse> {
        Err(Status::unimplemented("no checksums"))
    }
}
