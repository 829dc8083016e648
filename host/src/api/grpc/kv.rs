//! `raftkv.v1.Kv`.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use raft_kv_proto::v1::{
    self, kv_server::Kv, operation::Operation as ProtoOperation, operation_result::Result as Proto,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    atomic, options,
    status::{operation_error, status_of},
};
use crate::service::{
    Consistency, Expected, Number, Once, Operation, OperationReply, Pair, PutTerms, ScanRequest,
    Scanner, Service, ServiceError, Versioned, WriteOptions,
};

/// How long a scan waits for its client to take a page.
const SCAN_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct KvApi {
    pub(super) service: Arc<Service>,
}

#[tonic::async_trait]
impl Kv for KvApi {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let call = options(request.metadata());
        let v1::PutRequest { key, value, expected_version, once: sent, ttl_ms } =
            request.into_inner();
        let write = WriteOptions { call, once: once(sent) };
        let terms = PutTerms { expected: expected(expected_version), ttl_ms };
        let put = self.service.put(&key, &value, terms, write);
        let version = put.await.map_err(status_of)?;
        Ok(Response::new(v1::PutResponse { version }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let call = options(request.metadata());
        let request = request.into_inner();
        let consistency = consistency(request.consistency).map_err(status_of)?;
        let found = self.service.get(&request.key, consistency, call).await.map_err(status_of)?;
        Ok(Response::new(get_response(found)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let call = options(request.metadata());
        let v1::DeleteRequest { key, once: sent, expected_version } = request.into_inner();
        let write = WriteOptions { call, once: once(sent) };
        let delete = self.service.delete(&key, expected(expected_version), write);
        let existed = delete.await.map_err(status_of)?;
        Ok(Response::new(v1::DeleteResponse { existed }))
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        let call = options(request.metadata());
        let v1::IncrementRequest { key, delta, once: sent } = request.into_inner();
        let write = WriteOptions { call, once: once(sent) };
        let number = self.service.increment(&key, delta, write).await.map_err(status_of)?;
        Ok(Response::new(increment_response(number)))
    }

    async fn atomic(
        &self,
        request: Request<v1::AtomicRequest>,
    ) -> Result<Response<v1::AtomicResponse>, Status> {
        let call = options(request.metadata());
        let (request, once) = atomic::request(request.into_inner()).map_err(status_of)?;
        let reply = self.service.atomic(request, WriteOptions { call, once }).await;
        Ok(Response::new(atomic::response(reply.map_err(status_of)?)))
    }

    type ScanStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;

    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let consistency = consistency(request.consistency).map_err(status_of)?;
        let limit = (request.limit != 0).then_some(request.limit);
        let (prefix, after) = (request.prefix, request.cursor);
        let request = ScanRequest { prefix, after, limit, consistency };
        let service = Arc::clone(&self.service);
        let scanner = service.scan(request).await.map_err(status_of)?;
        let (pages, receiver) = mpsc::channel(1);
        tokio::spawn(run_scan(service, scanner, pages));
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn batch(
        &self,
        request: Request<v1::BatchRequest>,
    ) -> Result<Response<v1::BatchResponse>, Status> {
        let call = options(request.metadata());
        let operations = request.into_inner().operations;
        let operations = operations.into_iter().enumerate();
        let operations: Result<_, _> = operations.map(|(place, o)| operation(place, o)).collect();
        let operations = operations.map_err(status_of)?;
        let replies = self.service.batch(operations, call).await.map_err(status_of)?;
        let results = replies.into_iter().map(operation_result).collect();
        Ok(Response::new(v1::BatchResponse { results }))
    }
}

/// Sends a scan's pages as the client takes them. A scan holds snapshots, which
/// keep the database from dropping old data: a client that stops reading must
/// come back with its cursor.
async fn run_scan(
    service: Arc<Service>,
    mut scanner: Scanner,
    pages: mpsc::Sender<Result<v1::ScanResponse, Status>>,
) {
    loop {
        let response = match service.scan_page(scanner).await {
            Ok((rest, page)) => {
                scanner = rest;
                scan_response(page, scanner.is_exhausted())
            }
            Err(error) => {
                // The client may be gone.
                let _ = pages.send(Err(status_of(error))).await;
                return;
            }
        };
        if pages.send_timeout(Ok(response), SCAN_PATIENCE).await.is_err() || scanner.is_done() {
            return;
        }
    }
}

fn scan_response(page: Vec<Pair>, exhausted: bool) -> v1::ScanResponse {
    let last = page.last().filter(|_| !exhausted);
    let cursor = last.map(|pair| pair.key.clone()).unwrap_or_default();
    let pair = |Pair { key, value, version }| v1::KeyValue { key, value, version };
    v1::ScanResponse { pairs: page.into_iter().map(pair).collect(), cursor }
}

/// How a write is told from itself when it is sent again.
pub(super) fn once(once: Option<v1::Once>) -> Option<Once> {
    once.map(|once| Once {
        session: once.session,
        sequence: once.sequence,
        not_after_ms: once.not_after_ms,
        acked_below: once.acked_below,
    })
}

fn expected(version: Option<u64>) -> Expected {
    version.map_or(Expected::Any, Expected::Version)
}

/// The consistency a request asks for.
pub(super) fn consistency(number: i32) -> Result<Consistency, ServiceError> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(v1::Consistency::Stale) => Ok(Consistency::Stale),
        Err(_) => Err(ServiceError::invalid(
            "consistency",
            "linearizable (0) or stale (1)",
            &format!("the consistency {number} is not known"),
        )),
    }
}

pub(super) fn operation(place: usize, operation: v1::Operation) -> Result<Operation, ServiceError> {
    match operation.operation {
        Some(ProtoOperation::Put(request)) => Ok(put(request)),
        Some(ProtoOperation::Get(request)) => get(request),
        Some(ProtoOperation::Delete(request)) => Ok(delete(request)),
        Some(ProtoOperation::Increment(request)) => Ok(increment(request)),
        None => Err(ServiceError::invalid(
            "operations",
            "each is a put, a get, a delete or an increment",
            &format!("operation {place} is empty, or of a kind that this node does not know"),
        )),
    }
}

pub(super) fn put(request: v1::PutRequest) -> Operation {
    let v1::PutRequest { key, value, expected_version, once: sent, ttl_ms } = request;
    let terms = PutTerms { expected: expected(expected_version), ttl_ms };
    Operation::Put { key, value, terms, once: once(sent) }
}

pub(super) fn get(request: v1::GetRequest) -> Result<Operation, ServiceError> {
    let consistency = consistency(request.consistency)?;
    Ok(Operation::Get { key: request.key, consistency })
}

pub(super) fn delete(request: v1::DeleteRequest) -> Operation {
    let v1::DeleteRequest { key, once: sent, expected_version } = request;
    Operation::Delete { key, expected: expected(expected_version), once: once(sent) }
}

pub(super) fn increment(request: v1::IncrementRequest) -> Operation {
    let v1::IncrementRequest { key, delta, once: sent } = request;
    Operation::Increment { key, delta, once: once(sent) }
}

fn operation_result(reply: Result<OperationReply, ServiceError>) -> v1::OperationResult {
    let result = match reply {
        Ok(reply) => success(reply),
        Err(error) => Proto::Error(operation_error(error)),
    };
    v1::OperationResult { result: Some(result) }
}

/// The result of an operation that did what it was to do.
pub(super) fn success(reply: OperationReply) -> Proto {
    match reply {
        OperationReply::Put(version) => Proto::Put(v1::PutResponse { version }),
        OperationReply::Get(found) => Proto::Get(get_response(found)),
        OperationReply::Delete(existed) => Proto::Delete(v1::DeleteResponse { existed }),
        OperationReply::Increment(number) => Proto::Increment(increment_response(number)),
    }
}

pub(super) fn increment_response(number: Number) -> v1::IncrementResponse {
    let Number { value, version } = number;
    v1::IncrementResponse { value, version }
}

pub(super) fn get_response(found: Option<Versioned>) -> v1::GetResponse {
    match found {
        Some(Versioned { value, version, ttl_ms }) => {
            v1::GetResponse { found: true, value, version, ttl_ms }
        }
        None => v1::GetResponse::default(),
    }
}
