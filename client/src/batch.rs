//! A batch on its way: sent as a whole, and again as a whole as long as that may
//! mend a part that failed. What took effect does not take effect again, and the
//! order of operations on one key is kept.

use std::{sync::Arc, time::Instant};

use raft_kv_proto::v1::{BatchRequest, OperationResult, operation_result};
use tokio::time::sleep;

use crate::{
    attempts::{LONGEST_PAUSE, SHORTEST_PAUSE},
    call::Cluster,
    client::kv,
    error::{Error, Result},
    failure::{Failure, Kind},
    operation::Outcome,
};

/// Sends a batch, whose writes carry what makes them take effect once, until all of
/// it is answered for good or the request timeout is over. Gives a result for each
/// operation.
pub(crate) async fn send(
    cluster: &Arc<Cluster>,
    request: BatchRequest,
) -> Result<Vec<Result<Outcome>>> {
    let deadline = Instant::now() + cluster.request_timeout;
    let mut pause = SHORTEST_PAUSE;
    let mut doubtful = false;
    loop {
        let batch = |channel, request| async move { kv(channel).batch(request).await };
        let time = deadline.saturating_duration_since(Instant::now());
        let called = cluster.call_within(time, request.clone(), batch).await;
        let called = called.map_err(|error| verdict(error, doubtful, true))?;
        doubtful |= called.doubtful;
        let results: Vec<_> = called.answer.results.into_iter().map(read).collect();
        let failures = || results.iter().filter_map(|result| result.as_ref().err());
        doubtful |= failures().any(|failure| matches!(failure.kind, Kind::Unknown));
        let is_mendable = |failure: &Failure| {
            matches!(failure.kind, Kind::NotLeader(_) | Kind::Stale(_) | Kind::Unknown)
        };
        if !failures().any(is_mendable) || Instant::now() + pause >= deadline {
            let error = |failure: Failure| {
                let without_effect = failure.is_without_effect();
                verdict(failure.error, doubtful, without_effect)
            };
            return Ok(results.into_iter().map(|result| result.map_err(error)).collect());
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn read(result: OperationResult) -> Result<Outcome, Failure> {
    match result.result {
        Some(operation_result::Result::Error(error)) => Err(Failure::from_operation(error)),
        result => Outcome::from_result(OperationResult { result })
            .map_err(|error| Failure { error, kind: Kind::Final }),
    }
}

/// The error, unless it claims that nothing happened and an earlier failure leaves
/// that open.
fn verdict(error: Error, doubtful: bool, claims_no_effect: bool) -> Error {
    if !doubtful || !claims_no_effect || matches!(error, Error::Timeout { .. }) {
        return error;
    }
    let message = format!("{error}; it may have taken effect when it was sent before");
    Error::Unavailable { message }
}
