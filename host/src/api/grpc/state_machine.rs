//! `raftkv.v1.StateMachine`.

use std::sync::Arc;

use futures::{
    FutureExt, Stream, StreamExt, future::BoxFuture, stream::BoxStream, stream::FuturesUnordered,
};
use raft_kv_proto::v1::{
    self, pipeline_request::Request as ProtoRequest, pipeline_response::Result as ProtoResult,
    state_machine_server::StateMachine,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    atomic,
    kv::{consistency, delete, get, get_response, increment, increment_response, once, put},
    options,
    status::{operation_error, oversized_message, status_of},
};
use crate::service::{
    self, AtomicReply, CallOptions, KvKind, LeaderRoute, Operation, OperationKind, OperationReply,
    RequestKind, Service, ServiceError, SlotRange, WriteOptions, unix_ms,
};

/// Requests of a pipeline that are taken together, at most.
const CHUNK_REQUESTS: usize = 512;
/// Groups of requests of one shard that may be under way at once in one pipeline.
const GROUPS_UNDER_WAY: usize = 64;
/// Answers that wait for the client to read them.
const ANSWERS_WAITING: usize = 1024;

pub(super) struct StateMachineApi {
    pub(super) service: Arc<Service>,
}

type Answers = Vec<v1::PipelineResponse>;

#[tonic::async_trait]
impl StateMachine for StateMachineApi {
    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let call = options(request.metadata());
        let v1::ApplyRequest { key, command, once: sent } = request.into_inner();
        let write = WriteOptions { call, once: once(sent) };
        let response = self.service.apply(&key, command, write).await.map_err(status_of)?;
        Ok(Response::new(v1::ApplyResponse { response }))
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryResponse>, Status> {
        let call = options(request.metadata());
        let v1::QueryRequest { key, request, consistency: freshness } = request.into_inner();
        let freshness = consistency(freshness).map_err(status_of)?;
        let response = self.service.query(&key, request, freshness, call).await;
        Ok(Response::new(v1::QueryResponse { response: response.map_err(status_of)? }))
    }

    type PipelineStream = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let (answers, receiver) = mpsc::channel(ANSWERS_WAITING);
        let pipeline =
            Pipeline { service: Arc::clone(&self.service), options: options(request.metadata()) };
        tokio::spawn(run_pipeline(pipeline, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn routing(
        &self,
        _request: Request<v1::RoutingRequest>,
    ) -> Result<Response<v1::RoutingResponse>, Status> {
        let (cluster_id, slots) = self.service.cluster();
        let (version, leaders) = self.service.leaders();
        Ok(Response::new(v1::RoutingResponse {
            cluster_id: cluster_id.to_owned(),
            version,
            slots,
            shards: leaders.into_iter().map(shard_route).collect(),
            unix_ms: unix_ms(),
            nodes: self.service.node_addresses(),
        }))
    }
}

fn shard_route(route: LeaderRoute) -> v1::ShardRoute {
    let range = |range: SlotRange| v1::SlotRange { start: range.start.0, end: range.end.0 };
    let (leader, address) = route.leader.unwrap_or_default();
    let slots = route.slots.into_iter().map(range).collect();
    v1::ShardRoute { name: route.shard, slots, leader, address }
}

/// What all requests of a pipeline have in common.
#[derive(Clone)]
struct Pipeline {
    service: Arc<Service>,
    options: CallOptions,
}

/// Takes what has arrived, starts it in the order it came, and answers as it
/// ends. A client that does not read its answers is not read from either.
async fn run_pipeline(
    pipeline: Pipeline,
    requests: impl Stream<Item = Result<v1::PipelineRequest, Status>> + Unpin,
    answers: mpsc::Sender<Result<v1::PipelineResponse, Status>>,
) {
    let mut chunks = requests.ready_chunks(CHUNK_REQUESTS).fuse();
    let mut under_way: FuturesUnordered<BoxFuture<'static, Answers>> = FuturesUnordered::new();
    let mut failure = None;
    let stopped = pipeline.service.stopped();
    tokio::pin!(stopped);
    loop {
        let done = tokio::select! {
            // What is under way is answered still.
            () = &mut stopped => break,
            chunk = chunks.next(), if failure.is_none() && under_way.len() < GROUPS_UNDER_WAY => {
                let Some(chunk) = chunk else { break };
                let (chunk, error) = until_error(chunk);
                failure = error;
                start_chunk(&pipeline, chunk, &mut under_way)
            }
            Some(done) = under_way.next() => done,
            else => break,
        };
        if send_all(&answers, done).await.is_err() {
            return;
        }
    }
    while let Some(done) = under_way.next().await {
        if send_all(&answers, done).await.is_err() {
            return;
        }
    }
    if let Some(mut status) = failure {
        if status.code() == Code::OutOfRange {
            status = oversized_message(pipeline.service.limits().message_bytes());
        }
        // The client may be gone.
        let _ = answers.send(Err(status)).await;
    }
}

/// The requests before the first failure of the stream, and that failure.
fn until_error(
    chunk: Vec<Result<v1::PipelineRequest, Status>>,
) -> (Vec<v1::PipelineRequest>, Option<Status>) {
    let mut requests = Vec::with_capacity(chunk.len());
    for request in chunk {
        match request {
            Ok(request) => requests.push(request),
            Err(status) => return (requests, Some(status)),
        }
    }
    (requests, None)
}

async fn send_all(
    answers: &mpsc::Sender<Result<v1::PipelineResponse, Status>>,
    done: Answers,
) -> Result<(), mpsc::error::SendError<Result<v1::PipelineResponse, Status>>> {
    for answer in done {
        answers.send(Ok(answer)).await?;
    }
    Ok(())
}

/// Starts the requests of a chunk, those of each shard together. Returns the
/// answers that are there at once; the rest is under way.
fn start_chunk(
    pipeline: &Pipeline,
    chunk: Vec<v1::PipelineRequest>,
    under_way: &mut FuturesUnordered<BoxFuture<'static, Answers>>,
) -> Answers {
    let service = &pipeline.service;
    let mut tags = Vec::with_capacity(chunk.len());
    let mut requests = Vec::with_capacity(chunk.len());
    for v1::PipelineRequest { tag, request } in chunk {
        let (kind, request) = parse(service, request);
        tags.push((tag, kind));
        requests.push(request);
    }
    let tags: Arc<[(u64, Kind)]> = tags.into();
    let (refused, groups) = service.group_by_shard(requests);
    let mut answers: Answers =
        refused.into_iter().map(|(place, error)| answer(&tags[place], Err(error))).collect();
    for group in groups {
        let (pipeline, tags) = (pipeline.clone(), Arc::clone(&tags));
        let running = async move {
            let replies = pipeline.service.run_group(group, pipeline.options).await;
            replies.into_iter().map(|(place, reply)| answer(&tags[place], reply)).collect()
        };
        // The first poll proposes, of all that is in the group: so commands keep
        // their order. It must not be cut short to be fair to others.
        let mut running = tokio::task::unconstrained(running).boxed();
        match running.as_mut().now_or_never() {
            Some(done) => answers.extend::<Answers>(done),
            None => under_way.push(running),
        }
    }
    answers
}

/// What a request of a pipeline asks for, and so how its answer looks.
enum Kind {
    Apply,
    Query,
    Kv(KvKind),
    /// With the kinds of its operations.
    Atomic(Vec<KvKind>),
}

fn parse(
    service: &Service,
    request: Option<ProtoRequest>,
) -> (Kind, Result<service::Request, ServiceError>) {
    let kv = |operation: Operation| (Kind::Kv(operation.kind()), service.request_of(&operation));
    match request {
        Some(ProtoRequest::Put(request)) => kv(put(request)),
        Some(ProtoRequest::Delete(request)) => kv(delete(request)),
        Some(ProtoRequest::Increment(request)) => kv(increment(request)),
        Some(ProtoRequest::Get(request)) => match get(request) {
            Ok(operation) => kv(operation),
            Err(error) => (Kind::Kv(KvKind::Get), Err(error)),
        },
        Some(ProtoRequest::Atomic(request)) => match atomic::request(request) {
            Ok((request, once)) => {
                let (kinds, request) = (request.kinds(), service.atomic_request(&request));
                (Kind::Atomic(kinds), request.map(|request| service::Request { once, ..request }))
            }
            Err(error) => (Kind::Atomic(Vec::new()), Err(error)),
        },
        Some(ProtoRequest::Apply(v1::ApplyRequest { key, command, once: sent })) => {
            let once = once(sent);
            let (kind, operation) = (RequestKind::Apply, OperationKind::Apply);
            let request = service::Request { key, payload: command, kind, once, operation };
            (Kind::Apply, checked(service, request))
        }
        Some(ProtoRequest::Query(v1::QueryRequest { key, request, consistency: number })) => {
            let request = consistency(number).map(|consistency| service::Request {
                key,
                payload: request,
                kind: RequestKind::Query(consistency),
                once: None,
                operation: OperationKind::Query,
            });
            (Kind::Query, request.and_then(|request| checked(service, request)))
        }
        None => {
            let error = ServiceError::invalid("request", "one of the kinds", "it is empty");
            (Kind::Query, Err(error))
        }
    }
}

fn checked(service: &Service, request: service::Request) -> Result<service::Request, ServiceError> {
    service.check_request(&request)?;
    Ok(request)
}

fn answer(
    (tag, kind): &(u64, Kind),
    reply: Result<bytes::Bytes, ServiceError>,
) -> v1::PipelineResponse {
    let result = reply.and_then(|response| {
        Ok(match kind {
            Kind::Apply => ProtoResult::Apply(v1::ApplyResponse { response }),
            Kind::Query => ProtoResult::Query(v1::QueryResponse { response }),
            Kind::Kv(kind) => match kind.reply(response)? {
                OperationReply::Put(version) => ProtoResult::Put(v1::PutResponse { version }),
                OperationReply::Get(found) => ProtoResult::Get(get_response(found)),
                OperationReply::Delete(existed) => {
                    ProtoResult::Delete(v1::DeleteResponse { existed })
                }
                OperationReply::Increment(number) => {
                    ProtoResult::Increment(increment_response(number))
                }
            },
            Kind::Atomic(kinds) => {
                ProtoResult::Atomic(atomic::response(AtomicReply::read(&response, kinds)?))
            }
        })
    });
    match result {
        Ok(result) => v1::PipelineResponse { tag: *tag, result: Some(result) },
        Err(error) => failed(*tag, error),
    }
}

fn failed(tag: u64, error: ServiceError) -> v1::PipelineResponse {
    v1::PipelineResponse { tag, result: Some(ProtoResult::Error(operation_error(error))) }
}
