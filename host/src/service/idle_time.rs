//! The time of shards that are idle.
//!
//! A shard's replicated time is that of the last entry applied, so it stands still while
//! nothing is written. A read whose answer depends on the time, because a value it met is
//! to be gone at some time, must not be answered by a time that has long passed: then an
//! entry without commands, which carries the leader's clock, moves it on first. What does
//! not depend on the time never costs an entry, and neither do stale reads.

use std::{sync::atomic::Ordering, time::Instant};

use raft_kv_plugin_kv::protocol;

use super::{CallOptions, Service, ServiceError, routing::ShardRoute, unix_ms};
use crate::{
    machine::{Query, QueryReply, ShardReader},
    storage::Slot,
};

/// How far a shard's time may be behind this node's clock for a read that depends on it.
const LONGEST_LAG_MS: u64 = 250;

/// Whether a shard's time is too far behind, and an entry may mend that. A leader's clock
/// may be behind this node's for good: then an entry now and then has to do.
pub(super) fn lags(route: &ShardRoute, time_ms: u64) -> bool {
    let now_ms = unix_ms();
    let is_behind = now_ms > time_ms.saturating_add(LONGEST_LAG_MS);
    is_behind && now_ms.abs_diff(route.moved_on_ms.load(Ordering::Relaxed)) > LONGEST_LAG_MS
}

impl Service {
    /// Moves a shard's replicated time on to its leader's clock.
    pub(super) async fn move_time_on(&self, route: &ShardRoute) -> Result<(), ServiceError> {
        let deadline = Instant::now() + self.limits.timeout;
        // It takes hardly any room, and reads go on while a disk is nearly full.
        let moved = self.propose_one(route, &[], true, deadline, CallOptions::default()).await;
        match moved {
            Ok(_) => {
                route.moved_on_ms.store(unix_ms(), Ordering::Relaxed);
                Ok(())
            }
            // Of a read, nothing is left behind.
            Err(ServiceError::OutcomeUnknown { reason }) => {
                Err(ServiceError::ShardUnavailable { shard: route.name.to_string(), reason })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a value of these slots is to be gone between a state's time and now.
    pub(super) async fn is_expiring(
        &self,
        route: &ShardRoute,
        reader: ShardReader,
        slots: &[Slot],
    ) -> Result<(ShardReader, bool), ServiceError> {
        let query = protocol::Query::Expiring { until_ms: unix_ms() }.encode();
        let request = bytes::Bytes::from(query);
        let query = |slot: &Slot| Query { slot: *slot, request: request.clone() };
        let queries: Vec<Query> = slots.iter().map(query).collect();
        let asking = move || {
            let answers = reader.query(&queries, false);
            (reader, answers)
        };
        let (reader, answers) = self.run_long(asking).await?;
        let answers = answers.map_err(|error| ServiceError::of_query(error, &route.name))?;
        let is_expiring = |reply: QueryReply| match reply {
            QueryReply::Done(Ok(response)) => protocol::decode_expiring(&response).unwrap_or(false),
            // A plugin too old to know the question has no such values.
            QueryReply::Done(Err(_)) | QueryReply::SlotNotOwned | QueryReply::TooLong => false,
        };
        Ok((reader, answers.replies.into_iter().any(is_expiring)))
    }
}
