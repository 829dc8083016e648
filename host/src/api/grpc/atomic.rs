//! Atomic requests of `raftkv.v1.Kv`, to and from what the service knows.

use raft_kv_proto::v1::{self, compare::Condition as Proto};

use super::kv::{once, operation, success};
use crate::service::{AtomicReply, AtomicRequest, Compare, Condition, Once, ServiceError};

/// What is asked, and what makes it take effect once.
pub(super) fn request(
    request: v1::AtomicRequest,
) -> Result<(AtomicRequest, Option<Once>), ServiceError> {
    let compares = request.compares.into_iter().enumerate();
    let compares = compares.map(|(place, c)| compare(place, c)).collect::<Result<_, _>>()?;
    let operations = request.operations.into_iter().enumerate();
    let operations = operations.map(|(place, o)| operation(place, o)).collect::<Result<_, _>>()?;
    Ok((AtomicRequest { compares, operations }, once(request.once)))
}

fn compare(place: usize, compare: v1::Compare) -> Result<Compare, ServiceError> {
    let condition = match compare.condition {
        Some(Proto::Version(version)) => Condition::Version(version),
        Some(Proto::Exists(true)) => Condition::Exists,
        Some(Proto::Exists(false)) => Condition::Version(0),
        None => {
            let message = format!("compare {place} has no condition");
            let limit = "each says `version` or `exists`";
            return Err(ServiceError::invalid("compares", limit, &message));
        }
    };
    Ok(Compare { key: compare.key, condition })
}

pub(super) fn response(reply: AtomicReply) -> v1::AtomicResponse {
    match reply {
        AtomicReply::Held(replies) => {
            let result = |reply| v1::OperationResult { result: Some(success(reply)) };
            let results = replies.into_iter().map(result).collect();
            v1::AtomicResponse { held: true, results, failed: None }
        }
        AtomicReply::Failed { compare, version } => {
            let failed = Some(v1::FailedCompare { compare, version });
            v1::AtomicResponse { held: false, results: Vec::new(), failed }
        }
    }
}
