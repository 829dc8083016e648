//! The gRPC services of the test node.

use raft_kv_proto::v1::{
    admin_server::Admin, kv_server::Kv, operation::Operation, operation_result,
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
        hang_on(&request.get_ref().key).await;
        Node::put(self, request.into_inner()).map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        self.begin()?;
        hang_on(&request.get_ref().key).await;
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
            let result = result.unwrap_or_else(|status| {
                Wire::Error(v1::OperationError {
                    code: status.code().into(),
                    message: status.message().into(),
                    detail: Some(v1::ErrorDetail { detail: raft_kv_proto::detail_of(&status) }),
                })
            });
            v1::OperationResult { result: Some(result) }
        });
        Ok(Response::new(v1::BatchResponse { results: results.collect() }))
    }
}

#[tonic::async_trait]
impl StateMachine for Node {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        self.begin()?;
        let command = request.into_inner().command;
        if command == "refuse" {
            return Err(refused("as told".into()));
        }
        let response = [b"applied ", &command[..]].concat().into();
        Ok(Response::new(v1::ApplyResponse { response }))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answer<v1::QueryResponse> {
        self.begin()?;
        let response = [b"asked ", &request.get_ref().request[..]].concat().into();
        Ok(Response::new(v1::QueryResponse { response }))
    }

    type PipelineStream = Iter<std::vec::IntoIter<Result<v1::PipelineResponse, Status>>>;

    async fn pipeline(
        &self,
        _: Request<Streaming<v1::PipelineRequest>>,
    ) -> Answer<Self::PipelineStream> {
        Err(Status::unimplemented("no pipelines"))
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
}
