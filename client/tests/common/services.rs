//! The gRPC services of the test node.

use raft_kv_proto::{
    DIRECT_METADATA,
    v1::{
        kv_server::Kv, operation::Operation, operation_result, pipeline_request::Request as Asked,
        pipeline_response::Result as Given, state_machine_server::StateMachine,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Iter, wrappers::ReceiverStream};
use tonic::{Request, Response, Streaming};

use super::*;

type Answer<T> = Result<Response<T>, Status>;

fn is_direct<T>(request: &Request<T>) -> bool {
    request.metadata().get(DIRECT_METADATA).is_some()
}

fn operation_error(status: &Status) -> v1::OperationError {
    v1::OperationError {
        code: status.code().into(),
        message: status.message().into(),
        detail: Some(v1::ErrorDetail { detail: raft_kv_proto::detail_of(status) }),
    }
}

impl Node {
    /// Carries one request out.
    async fn answer(&self, direct: bool, asked: Asked) -> Result<Given, Status> {
        self.begin_at(direct)?;
        let (key, given) = match asked {
            Asked::Put(put) => {
                self.note(put.once.as_ref());
                hang_on(&put.key).await;
                (put.key.clone(), self.store.put(put).map(Given::Put))
            }
            Asked::Get(get) => {
                hang_on(&get.key).await;
                (get.key.clone(), Ok(Given::Get(self.store.get(&get))))
            }
            Asked::Delete(delete) => {
                self.note(delete.once.as_ref());
                (delete.key.clone(), Ok(Given::Delete(self.store.delete(&delete))))
            }
            Asked::Increment(increment) => {
                self.note(increment.once.as_ref());
                let key = increment.key.clone();
                (key, Ok(Given::Increment(self.store.increment(increment))))
            }
            Asked::Atomic(_) => return Err(Status::unimplemented("atomic requests")),
            Asked::Apply(apply) => {
                self.note(apply.once.as_ref());
                (apply.key.clone(), self.store.apply(&apply).map(Given::Apply))
            }
            Asked::Query(query) => {
                let response = [b"asked ", &query.request[..]].concat().into();
                (query.key.clone(), Ok(Given::Query(v1::QueryResponse { response })))
            }
        };
        self.until_released(&key).await;
        given
    }
}

/// Carries a call of its own out.
macro_rules! alone {
    ($node:expr, $request:expr, $kind:ident) => {{
        let direct = is_direct(&$request);
        match $node.answer(direct, Asked::$kind($request.into_inner())).await? {
            Given::$kind(response) => Ok(Response::new(response)),
            other => panic!("{other:?}"),
        }
    }};
}

#[tonic::async_trait]
impl Kv for Node {
    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        alone!(self, request, Put)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        alone!(self, request, Get)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        alone!(self, request, Delete)
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Answer<v1::IncrementResponse> {
        alone!(self, request, Increment)
    }

    async fn atomic(&self, request: Request<v1::AtomicRequest>) -> Answer<v1::AtomicResponse> {
        alone!(self, request, Atomic)
    }

    type ScanStream = Iter<std::vec::IntoIter<Result<v1::ScanResponse, Status>>>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Answer<Self::ScanStream> {
        self.begin()?;
        let pages = self.store.scan(request.get_ref());
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Answer<v1::BatchResponse> {
        use operation_result::Result as Wire;
        self.begin()?;
        let results = request.into_inner().operations.into_iter().map(|operation| {
            let result = match operation.operation.unwrap() {
                Operation::Put(put) => {
                    self.note(put.once.as_ref());
                    self.store.put(put).map(Wire::Put)
                }
                Operation::Get(get) => Ok(Wire::Get(self.store.get(&get))),
                Operation::Delete(delete) => {
                    self.note(delete.once.as_ref());
                    Ok(Wire::Delete(self.store.delete(&delete)))
                }
                Operation::Increment(increment) => {
                    self.note(increment.once.as_ref());
                    Ok(Wire::Increment(self.store.increment(increment)))
                }
            };
            let result = result.unwrap_or_else(|status| Wire::Error(operation_error(&status)));
            v1::OperationResult { result: Some(result) }
        });
        Ok(Response::new(v1::BatchResponse { results: results.collect() }))
    }
}

/// The machine's services share the node with the tasks of its pipelines.
pub struct Machine(pub Arc<Node>);

#[tonic::async_trait]
impl StateMachine for Machine {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        alone!(self.0, request, Apply)
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answer<v1::QueryResponse> {
        alone!(self.0, request, Query)
    }

    async fn routing(&self, _: Request<v1::RoutingRequest>) -> Answer<v1::RoutingResponse> {
        let node = &self.0;
        node.routings.fetch_add(1, SeqCst);
        let at_once = node.routings_at_once.fetch_add(1, SeqCst) + 1;
        node.most_routings_at_once.fetch_max(at_once, SeqCst);
        node.until_released(&Bytes::from_static(ROUTING_KEY.as_bytes())).await;
        node.routings_at_once.fetch_sub(1, SeqCst);
        let routing = node.routing.lock().unwrap().clone();
        routing.map(Response::new).ok_or_else(|| Status::unimplemented("no routing"))
    }

    type PipelineStream = ReceiverStream<Result<v1::PipelineResponse, Status>>;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Answer<Self::PipelineStream> {
        let node = self.0.clone();
        node.streams.fetch_add(1, SeqCst);
        let (answers, receiver) = mpsc::channel(1024);
        let direct = is_direct(&request);
        let mut requests = request.into_inner();
        let mut stops = node.stops.subscribe();
        tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            let mut stopped = std::pin::pin!(stops.changed());
            loop {
                let request = tokio::select! {
                    _ = &mut stopped => return,
                    request = requests.message() => request,
                };
                let Ok(Some(v1::PipelineRequest { tag, request })) = request else {
                    return;
                };
                let (node, answers) = (node.clone(), answers.clone());
                tasks.spawn(async move {
                    let given = node.answer(direct, request.unwrap()).await;
                    let given = given.unwrap_or_else(|s| Given::Error(operation_error(&s)));
                    let answer = v1::PipelineResponse { tag, result: Some(given) };
                    let _ = answers.send(Ok(answer)).await;
                });
                while tasks.try_join_next().is_some() {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
