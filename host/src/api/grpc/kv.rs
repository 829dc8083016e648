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
    options,
    status::{operation_error, status_of},
};
use crate::service::{
    Consistency, Expected, Once, Operation, OperationReply, Pair, ScanRequest, Scanner, Service,
    ServiceError, Versioned, WriteOptions,
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
        let v1::PutRequest { key, value, expected_version, once: sent } = request.into_inner();
        let write = WriteOptions { call, once: once(sent) };
        let put = self.service.put(&key, &value, expected(expected_version), write);
        let version = put.await.map_err(status_of)?;
        Ok(Response::new(v1::PutResponse { version }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let call = options(request.metadata());
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
        let found = self.service.get(&request.key, consistency, call).await.map_err(status_of)?;
        Ok(Response::new(get_response(found)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let call = options(request.metadata());
        let v1::DeleteRequest { key, once: sent } = request.into_inner();
        let write = WriteOptions { call, once: once(sent) };
        let existed = self.service.delete(&key, write).await.map_err(status_of)?;
        Ok(Response::new(v1::DeleteResponse { existed }))
    }

    type ScanStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;

    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
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
        let operations = operations
            .into_iter()
            .enumerate()
            .map(|(place, o)| operation(place, o))
            .collect::<Result<_, _>>()?;
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
pub(super) fn consistency(number: i32) -> Result<Consistency, Status> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(v1::Consistency::Stale) => Ok(Consistency::Stale),
        Err(_) => Err(status_of(ServiceError::invalid(
            "consistency",
            "linearizable (0) or stale (1)",
            &format!("the consistency {number} is not known"),
        ))),
    }
}

fn operation(place: usize, operation: v1::Operation) -> Result<Operation, Status> {
    match operation.operation {
        Some(ProtoOperation::Put(request)) => Ok(put(request)),
        Some(ProtoOperation::Get(request)) => get(request),
        Some(ProtoOperation::Delete(request)) => Ok(delete(request)),
        None => Err(status_of(ServiceError::invalid(
            "operations",
            "each is a put, a get or a delete",
            &format!("operation {place} is empty"),
        ))),
    }
}

pub(super) fn put(request: v1::PutRequest) -> Operation {
    let v1::PutRequest { key, value, expected_version, once: sent } = request;
    Operation::Put { key, value, expected: expected(expected_version), once: once(sent) }
}

pub(super) fn get(request: v1::GetRequest) -> Result<Operation, Status> {
    let consistency = consistency(request.consistency)?;
    Ok(Operation::Get { key: request.key, consistency })
}

pub(super) fn delete(request: v1::DeleteRequest) -> Operation {
    Operation::Delete { key: request.key, once: once(request.once) }
}

fn operation_result(reply: Result<OperationReply, ServiceError>) -> v1::OperationResult {
    let result = match reply {
        Ok(OperationReply::Put(version)) => Proto::Put(v1::PutResponse { version }),
        Ok(OperationReply::Get(found)) => Proto::Get(get_response(found)),
        Ok(OperationReply::Delete(existed)) => Proto::Delete(v1::DeleteResponse { existed }),
        Err(error) => Proto::Error(operation_error(error)),
    };
    v1::OperationResult { result: Some(result) }
}

pub(super) fn get_response(found: Option<Versioned>) -> v1::GetResponse {
    match found {
        Some(Versioned { value, version }) => v1::GetResponse { found: true, value, version },
        None => v1::GetResponse::default(),
    }
}
