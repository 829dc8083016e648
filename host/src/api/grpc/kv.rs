//! `raftkv.v1.Kv`.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use raft_kv_proto::v1::{
    self, kv_server::Kv, operation::Operation as ProtoOperation, operation_result::Result as Proto,
};
use tonic::{Request, Response, Status};

use super::status::{operation_error, status_of};
use crate::service::{
    Consistency, Expected, Operation, OperationReply, Pair, ScanRequest, Scanner, Service,
    ServiceError, Versioned,
};

pub(super) struct KvApi {
    pub(super) service: Arc<Service>,
}

#[tonic::async_trait]
impl Kv for KvApi {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let v1::PutRequest { key, value, expected_version } = request.into_inner();
        let put = self.service.put(&key, &value, expected(expected_version));
        let version = put.await.map_err(status_of)?;
        Ok(Response::new(v1::PutResponse { version }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
        let found = self.service.get(&request.key, consistency).await.map_err(status_of)?;
        Ok(Response::new(get_response(found)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let existed = self.service.delete(&request.get_ref().key).await.map_err(status_of)?;
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
        let pages = stream::try_unfold(Some(scanner), move |scanner| {
            next_response(Arc::clone(&service), scanner)
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn batch(
        &self,
        request: Request<v1::BatchRequest>,
    ) -> Result<Response<v1::BatchResponse>, Status> {
        let operations = request.into_inner().operations;
        let operations = operations
            .into_iter()
            .enumerate()
            .map(|(place, o)| operation(place, o))
            .collect::<Result<_, _>>()?;
        let replies = self.service.batch(operations).await.map_err(status_of)?;
        let results = replies.into_iter().map(operation_result).collect();
        Ok(Response::new(v1::BatchResponse { results }))
    }
}

/// One message of a scan and the scan's rest, if there is one.
async fn next_response(
    service: Arc<Service>,
    scanner: Option<Scanner>,
) -> Result<Option<(v1::ScanResponse, Option<Scanner>)>, Status> {
    let Some(scanner) = scanner else { return Ok(None) };
    let (scanner, page) = service.scan_page(scanner).await.map_err(status_of)?;
    let cursor = if scanner.is_exhausted() {
        Bytes::new()
    } else {
        page.last().map(|pair| pair.key.clone()).unwrap_or_default()
    };
    let pair = |Pair { key, value, version }| v1::KeyValue { key, value, version };
    let response = v1::ScanResponse { pairs: page.into_iter().map(pair).collect(), cursor };
    let rest = (!scanner.is_done()).then_some(scanner);
    Ok(Some((response, rest)))
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
        Some(ProtoOperation::Put(put)) => Ok(Operation::Put {
            key: put.key,
            value: put.value,
            expected: expected(put.expected_version),
        }),
        Some(ProtoOperation::Get(get)) => {
            Ok(Operation::Get { key: get.key, consistency: consistency(get.consistency)? })
        }
        Some(ProtoOperation::Delete(delete)) => Ok(Operation::Delete { key: delete.key }),
        None => Err(status_of(ServiceError::invalid(
            "operations",
            "each is a put, a get or a delete",
            &format!("operation {place} is empty"),
        ))),
    }
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

fn get_response(found: Option<Versioned>) -> v1::GetResponse {
    match found {
        Some(Versioned { value, version }) => v1::GetResponse { found: true, value, version },
        None => v1::GetResponse::default(),
    }
}
