//! `raftkv.v1.StateMachine`.

use std::sync::Arc;

use futures::{
    FutureExt, Stream, StreamExt, future::BoxFuture, poll, stream::BoxStream,
    stream::FuturesUnordered,
};
use raft_kv_proto::v1::{
    self, pipeline_request::Request as ProtoRequest, pipeline_response::Result as ProtoResult,
    state_machine_server::StateMachine,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    kv::consistency,
    status::{operation_error, oversized_message, status_of},
};
use crate::service::{self, RequestKind, Service, ServiceError};

/// Requests of a pipeline that are taken together, at most.
const CHUNK_REQUESTS: usize = 512;
/// Such groups that may be under way at once in one pipeline.
const CHUNKS_UNDER_WAY: usize = 16;
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
        let v1::ApplyRequest { key, command } = request.into_inner();
        let response = self.service.apply(&key, command).await.map_err(status_of)?;
        Ok(Response::new(v1::ApplyResponse { response }))
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryResponse>, Status> {
        let v1::QueryRequest { key, request, consistency: freshness } = request.into_inner();
        let freshness = consistency(freshness)?;
        let response = self.service.query(&key, request, freshness).await.map_err(status_of)?;
        Ok(Response::new(v1::QueryResponse { response }))
    }

    type PipelineStream = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let (answers, receiver) = mpsc::channel(ANSWERS_WAITING);
        let service = Arc::clone(&self.service);
        tokio::spawn(run_pipeline(service, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

/// Takes what has arrived, starts it in the order it came, and answers as it
/// ends. A client that does not read its answers is not read from either.
async fn run_pipeline(
    service: Arc<Service>,
    requests: impl Stream<Item = Result<v1::PipelineRequest, Status>> + Unpin,
    answers: mpsc::Sender<Result<v1::PipelineResponse, Status>>,
) {
    let mut chunks = requests.ready_chunks(CHUNK_REQUESTS).fuse();
    let mut under_way: FuturesUnordered<BoxFuture<'static, Answers>> = FuturesUnordered::new();
    let mut failure = None;
    loop {
        let done = tokio::select! {
            chunk = chunks.next(), if failure.is_none() && under_way.len() < CHUNKS_UNDER_WAY => {
                let Some(chunk) = chunk else { break };
                let (chunk, error) = until_error(chunk);
                failure = error;
                // The first poll proposes, of all that is in the chunk: so commands
                // keep their order. It must not be cut short to be fair to others.
                let running = run_chunk(Arc::clone(&service), chunk);
                let mut running = tokio::task::unconstrained(running).boxed();
                match poll!(&mut running) {
                    std::task::Poll::Ready(done) => done,
                    std::task::Poll::Pending => {
                        under_way.push(running);
                        continue;
                    }
                }
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
            status = oversized_message(service.limits().message_bytes());
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

async fn run_chunk(service: Arc<Service>, chunk: Vec<v1::PipelineRequest>) -> Answers {
    let mut answers = Vec::new();
    let mut places = Vec::new();
    let mut requests = Vec::new();
    for v1::PipelineRequest { tag, request } in chunk {
        match parse(request) {
            Ok(request) => {
                places.push((tag, request.kind));
                requests.push(request);
            }
            Err(error) => answers.push(failed(tag, error)),
        }
    }
    let replies = service.run_many(requests).await;
    answers.extend(places.into_iter().zip(replies).map(|((tag, kind), reply)| match reply {
        Err(error) => failed(tag, error),
        Ok(response) => {
            let result = match kind {
                RequestKind::Apply => ProtoResult::Apply(v1::ApplyResponse { response }),
                RequestKind::Query(_) => ProtoResult::Query(v1::QueryResponse { response }),
            };
            v1::PipelineResponse { tag, result: Some(result) }
        }
    }));
    answers
}

fn parse(request: Option<ProtoRequest>) -> Result<service::Request, ServiceError> {
    match request {
        Some(ProtoRequest::Apply(v1::ApplyRequest { key, command })) => {
            Ok(service::Request { key, payload: command, kind: RequestKind::Apply })
        }
        Some(ProtoRequest::Query(v1::QueryRequest { key, request, consistency: number })) => {
            let invalid =
                |status: Status| ServiceError::invalid("consistency", "0 or 1", status.message());
            let kind = RequestKind::Query(consistency(number).map_err(invalid)?);
            Ok(service::Request { key, payload: request, kind })
        }
        None => {
            Err(ServiceError::invalid("request", "an apply or a query", "the request is empty"))
        }
    }
}

fn failed(tag: u64, error: ServiceError) -> v1::PipelineResponse {
    v1::PipelineResponse { tag, result: Some(ProtoResult::Error(operation_error(error))) }
}
