//! Queries: which state they may be answered from, and where they run.

use std::time::Instant;

use raft_lite::RequestError;
use tokio::{sync::oneshot, task, time::timeout_at};

use super::{
    CallOptions, Consistency, Service, ServiceError,
    propose::Pauses,
    routing::ShardRoute,
    state_machine::{Item, Reply},
};
use crate::machine::{Query, QueryReply, ShardReader};

/// Queries that are answered on the thread that received them, if they are short.
const INLINE_QUERIES: usize = 64;

impl Service {
    /// Answers queries of one shard from one of its states.
    pub(super) async fn read(
        &self,
        route: &ShardRoute,
        items: Vec<Item>,
        consistency: Consistency,
        options: CallOptions,
    ) -> Result<Vec<Reply>, ServiceError> {
        let reader = self.reader(route, consistency, options).await?;
        let query = |Item { slot, payload, .. }| Query { slot, request: payload };
        let queries: Vec<Query> = items.into_iter().map(query).collect();
        let of_query = |error| ServiceError::of_query(error, &route.name);
        let inline = if queries.len() <= INLINE_QUERIES {
            let replies = reader.query(&queries, true).map_err(of_query)?;
            (!replies.contains(&QueryReply::TooLong)).then_some(replies)
        } else {
            None
        };
        let replies = match inline {
            Some(replies) => replies,
            None => {
                let long = self.run_long(move || reader.query(&queries, false)).await?;
                long.map_err(of_query)?
            }
        };
        let reply = |reply| match reply {
            QueryReply::Done(result) => Ok(result?),
            QueryReply::SlotNotOwned => {
                Err(ServiceError::of_rejection(raft_lite::Rejection::SlotNotOwned, &route.name))
            }
            QueryReply::TooLong => {
                Err(ServiceError::Internal("a query was cut short without a limit".to_owned()))
            }
        };
        Ok(replies.into_iter().map(reply).collect())
    }

    /// Runs a read that may take long where nobody waits behind it, if not too
    /// many do already.
    pub(super) async fn run_long<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        let Ok(_permit) = self.long_reads.try_acquire() else {
            let resource = "threads for long reads".to_owned();
            return Err(ServiceError::ResourceExhausted { resource });
        };
        task::spawn_blocking(work).await.map_err(|error| ServiceError::Internal(error.to_string()))
    }

    /// A state of the shard that holds everything acknowledged before now; any
    /// state, if a stale one will do.
    pub(super) async fn reader(
        &self,
        route: &ShardRoute,
        consistency: Consistency,
        options: CallOptions,
    ) -> Result<ShardReader, ServiceError> {
        if self.machine.shard(route.group).is_none() {
            // Reads are answered from a replica: the client is sent to another node.
            let leader = self.anybody(route);
            return Err(self.request_error(RequestError::NotLeader { leader }, route));
        }
        let open = || {
            let reader = self.machine.reader(route.group);
            reader.map_err(|error| ServiceError::of_query(error, &route.name))
        };
        if consistency == Consistency::Stale {
            return open();
        }
        if self.raft.could_read(route.group) {
            // The state is taken before the lease is looked at: in between, time may
            // have passed.
            let reader = open()?;
            if self.raft.could_read(route.group) {
                return Ok(reader);
            }
        }
        self.read_barrier(route, options).await?;
        open()
    }

    /// Waits until this node's replica holds everything that was acknowledged
    /// before now.
    async fn read_barrier(
        &self,
        route: &ShardRoute,
        options: CallOptions,
    ) -> Result<(), ServiceError> {
        let leader = self.raft.leader(route.group);
        if options.direct && leader.is_some_and(|leader| leader != self.info.number) {
            return Err(self.request_error(RequestError::NotLeader { leader }, route));
        }
        let deadline = Instant::now() + self.limits.timeout;
        let mut pauses = Pauses::new();
        loop {
            let (sender, receiver) = oneshot::channel();
            // The receiver may have given up.
            self.raft.read(route.group, Box::new(move |result| drop(sender.send(result))));
            let result = match timeout_at(deadline.into(), receiver).await {
                Ok(result) => result.unwrap_or(Err(RequestError::Stopping)),
                Err(_) => {
                    return Err(ServiceError::ShardUnavailable {
                        shard: route.name.to_string(),
                        reason: "its leader could not confirm in time that it leads".to_owned(),
                    });
                }
            };
            match result {
                Ok(_) => return Ok(()),
                // A new leader is waited for.
                Err(RequestError::NotLeader { .. }) if !options.direct => pauses.pause().await,
                // Nothing of a read is left behind: it can be asked elsewhere.
                Err(RequestError::Stopping) => {
                    return Err(ServiceError::ShardUnavailable {
                        shard: route.name.to_string(),
                        reason: RequestError::Stopping.to_string(),
                    });
                }
                Err(error) => return Err(self.request_error(error, route)),
            }
            if Instant::now() >= deadline {
                let none = RequestError::NotLeader { leader: None };
                return Err(self.request_error(none, route));
            }
        }
    }
}
