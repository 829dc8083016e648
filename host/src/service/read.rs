//! Queries: which state they may be answered from, and where they run.

use std::{sync::atomic::Ordering, time::Instant};

use raft_kv_proto::v1::{Order, QueryAnswer, QueryOrder, SlotQuery, order::Kind};
use raft_lite::{CommandFailure, CommandOutcome, GroupId, Rejection, RequestError};
use tokio::{sync::oneshot, task, time::timeout_at};

use super::{
    CallOptions, Consistency, Service, ServiceError,
    idle_time::lags,
    propose::Pauses,
    routing::ShardRoute,
    state_machine::{Item, Reply},
};
use crate::{
    machine::{Freshness, Query, QueryReplies, QueryReply, ShardReader},
    metrics::OperationKind,
    network::{outcome_from_wire, outcome_to_wire},
    storage::Slot,
};

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
        if self.machine.shard(route.group).is_none() {
            return self.read_elsewhere(route, items, consistency, options).await;
        }
        let reader = self.reader(route, consistency, options).await?;
        let query = |Item { slot, payload, .. }| Query { slot, request: payload };
        let queries: Vec<Query> = items.into_iter().map(query).collect();
        let time_ms = reader.time_ms();
        let QueryReplies { mut replies, depends_on_time } =
            self.answers(route, reader, &queries).await?;
        let is_fresh = consistency == Consistency::Linearizable;
        if depends_on_time && is_fresh && lags(route, time_ms) {
            self.move_time_on(route).await?;
            let reader = self.reader(route, consistency, options).await?;
            replies = self.answers(route, reader, &queries).await?.replies;
        }
        let reply = |reply| match reply {
            QueryReply::Done(result) => Ok(result?),
            QueryReply::SlotNotOwned => {
                Err(ServiceError::of_rejection(Rejection::SlotNotOwned, &route.name))
            }
            QueryReply::TooLong => {
                Err(ServiceError::Internal("a query was cut short without a limit".to_owned()))
            }
        };
        Ok(replies.into_iter().map(reply).collect())
    }

    /// Answers queries from a state: on this thread, if they are few and short.
    async fn answers(
        &self,
        route: &ShardRoute,
        reader: ShardReader,
        queries: &[Query],
    ) -> Result<QueryReplies, ServiceError> {
        let of_query = |error| ServiceError::of_query(error, &route.name);
        if queries.len() <= INLINE_QUERIES {
            let answers = reader.query(queries, true).map_err(of_query)?;
            if !answers.replies.contains(&QueryReply::TooLong) {
                return Ok(answers);
            }
        }
        let queries = queries.to_vec();
        self.run_long(move || reader.query(&queries, false)).await?.map_err(of_query)
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
        let freshness = match consistency {
            Consistency::Linearizable => Freshness::Latest,
            Consistency::Stale => Freshness::Any,
        };
        let open = || {
            let reader = self.machine.reader(route.group, freshness);
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

    /// Has another node, which has a replica, answer queries.
    async fn read_elsewhere(
        &self,
        route: &ShardRoute,
        items: Vec<Item>,
        consistency: Consistency,
        options: CallOptions,
    ) -> Result<Vec<Reply>, ServiceError> {
        if options.direct && consistency == Consistency::Linearizable {
            let leader = self.leader_of(route).or_else(|| self.anybody(route));
            return Err(self.request_error(RequestError::NotLeader { leader }, route));
        }
        let query = |item: &Item| SlotQuery { slot: item.slot.0, request: item.payload.clone() };
        let order = Order {
            kind: Some(Kind::Query(QueryOrder {
                group: route.group.0,
                queries: items.iter().map(query).collect(),
                stale: consistency == Consistency::Stale,
            })),
        };
        let deadline = Instant::now() + self.limits.timeout;
        let mut pauses = Pauses::new();
        let mut target = self.leader_of(route).or_else(|| self.anybody(route));
        loop {
            let error = match target {
                None => RequestError::NotLeader { leader: None },
                Some(node) => match self.network.order(node, order.clone()).await {
                    Ok(response) => {
                        self.note_leader(route, Some(node));
                        return answers(response.answers, items.len(), route);
                    }
                    Err(error) => error,
                },
            };
            // Nothing of a read is left behind: it can be asked elsewhere.
            route.hint.store(0, Ordering::Relaxed);
            if let RequestError::DiskFull { .. } | RequestError::Overloaded = error {
                return Err(self.request_error(error, route));
            }
            if self.table().group(route.group).is_none_or(|now| now.epoch != route.epoch) {
                return Err(ServiceError::of_rejection(Rejection::SlotNotOwned, &route.name));
            }
            if Instant::now() >= deadline {
                let reason = error.to_string();
                return Err(ServiceError::ShardUnavailable {
                    shard: route.name.to_string(),
                    reason,
                });
            }
            pauses.pause().await;
            target = self.anybody(route);
        }
    }

    /// Answers queries that another node was asked, from this node's replica.
    pub(super) async fn answer_queries(
        &self,
        order: QueryOrder,
    ) -> Result<Vec<QueryAnswer>, RequestError> {
        let table = self.table();
        let gone = || RequestError::Unavailable("it has no replica of the shard".to_owned());
        let group = GroupId(order.group);
        let route = table.group(group).ok_or_else(gone)?;
        if self.machine.shard(group).is_none() {
            return Err(gone());
        }
        let item = |query: SlotQuery| Item {
            slot: Slot(query.slot),
            payload: query.request,
            once: None,
            operation: OperationKind::Query,
        };
        let items = order.queries.into_iter().map(item).collect();
        let consistency = if order.stale { Consistency::Stale } else { Consistency::Linearizable };
        let replies = self.read(route, items, consistency, CallOptions::default()).await;
        let answer = |reply: Reply| -> Result<QueryAnswer, RequestError> {
            let outcome = match reply {
                Ok(response) => CommandOutcome::Applied(response),
                Err(ServiceError::Plugin { kind, code, message }) => {
                    let kind = kind as u32;
                    CommandOutcome::Failed(CommandFailure { kind, code, message })
                }
                Err(ServiceError::StaleRouting { .. }) => {
                    CommandOutcome::Rejected(Rejection::SlotNotOwned)
                }
                Err(error) => return Err(RequestError::Unavailable(error.to_string())),
            };
            Ok(QueryAnswer { outcome: Some(outcome_to_wire(outcome)) })
        };
        match replies {
            Ok(replies) => replies.into_iter().map(answer).collect(),
            Err(ServiceError::ResourceExhausted { .. }) => Err(RequestError::Overloaded),
            Err(error) => Err(RequestError::Unavailable(error.to_string())),
        }
    }

    /// Waits until this node's replica holds everything that was acknowledged
    /// before now.
    async fn read_barrier(
        &self,
        route: &ShardRoute,
        options: CallOptions,
    ) -> Result<(), ServiceError> {
        let leader = self.leader_of(route);
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
                // The replica went away meanwhile.
                Err(RequestError::Unavailable(_)) if self.machine.shard(route.group).is_none() => {
                    return Err(ServiceError::of_rejection(Rejection::SlotNotOwned, &route.name));
                }
                // It is going away: its group is gone already, what it stored is not.
                Err(RequestError::Unavailable(_)) if !self.is_halted(route) => {
                    pauses.pause().await;
                }
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

    /// Whether this node's replica has stopped for good.
    pub(super) fn is_halted(&self, route: &ShardRoute) -> bool {
        self.raft.status(route.group).is_some_and(|status| status.halted.is_some())
    }
}

/// The replies of another node, one for each query.
fn answers(
    answers: Vec<QueryAnswer>,
    count: usize,
    route: &ShardRoute,
) -> Result<Vec<Reply>, ServiceError> {
    let strange = || ServiceError::Internal("another node's answer makes no sense".to_owned());
    let reply = |answer: QueryAnswer| -> Option<Reply> {
        Some(match outcome_from_wire(answer.outcome?)? {
            CommandOutcome::Applied(response) => Ok(response),
            CommandOutcome::Failed(failure) => Err(failure.into()),
            CommandOutcome::Rejected(rejection) => {
                Err(ServiceError::of_rejection(rejection, &route.name))
            }
        })
    };
    let replies: Option<Vec<Reply>> = answers.into_iter().map(reply).collect();
    replies.filter(|replies| replies.len() == count).ok_or_else(strange)
}
