//! Error details in gRPC's richer error model: a `google.rpc.Status` whose
//! `details` hold one [`ErrorDetail`], in the `grpc-status-details-bin` trailer.

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

use crate::v1::{ErrorDetail, error_detail::Detail};

/// Type URL of [`ErrorDetail`] within a `google.rpc.Status`.
const ERROR_DETAIL_URL: &str = "type.googleapis.com/raftkv.v1.ErrorDetail";

/// `google.rpc.Status`, as <https://google.aip.dev/193> defines it.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// Makes a gRPC status that carries `detail`.
pub fn status_with_detail(code: Code, message: impl Into<String>, detail: Detail) -> Status {
    let message = message.into();
    let detail = ErrorDetail { detail: Some(detail) };
    let rich = RpcStatus {
        code: code as i32,
        message: message.clone(),
        details: vec![Any { type_url: ERROR_DETAIL_URL.to_owned(), value: detail.encode_to_vec() }],
    };
    Status::with_details(code, message, Bytes::from(rich.encode_to_vec()))
}

/// The detail that a status carries; `None` if it has none or one of another kind.
pub fn detail_of(status: &Status) -> Option<Detail> {
    let rich = RpcStatus::decode(status.details()).ok()?;
    let any = rich.details.iter().find(|any| any.type_url == ERROR_DETAIL_URL)?;
    ErrorDetail::decode(any.value.as_slice()).ok()?.detail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::NotLeader;

    #[test]
    fn a_detail_survives_the_trip_through_a_status() {
        let detail = Detail::NotLeader(NotLeader {
            shard: "shard_0".into(),
            leader: "node2".into(),
            address: "127.0.0.1:5002".into(),
        });
        let status = status_with_detail(Code::Unavailable, "not the leader", detail.clone());
        assert_eq!(status.message(), "not the leader");
        assert_eq!(detail_of(&status), Some(detail));
    }

    #[test]
    fn a_status_without_or_with_a_garbled_detail_has_none() {
        assert_eq!(detail_of(&Status::internal("x")), None);
        let garbled = Status::with_details(Code::Internal, "x", Bytes::from_static(b"\xff\xff"));
        assert_eq!(detail_of(&garbled), None);
    }
}
