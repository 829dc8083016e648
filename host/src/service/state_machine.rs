//! Commands and queries for any plugin: the path that everything else takes.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use raft_lite::{Command, CommandOutcome, NodeId, Proposal, RequestError};
use tokio::{
    sync::oneshot,
    task,
    time::{timeout, timeout_at},
};

use super::{Consistency, Service, ServiceError, check_length, routing::ShardRoute};
use crate::{
    machine::{Query, QueryReply},
    metrics::OperationKind,
    storage::Slot,
};

/// One of many requests that go together.
#[derive(Clone, Debug)]
pub struct Request {
    /// The routing key.
    pub key: Bytes,
    /// What the plugin is given.
    pub payload: Bytes,
    /// Command or query.
    pub kind: RequestKind,
}

/// What a request asks of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Change the state, through the log.
    Apply,
    /// Read the state.
    Query(Consistency),
}

/// Requests of one shard, with their places among all.
struct ShardRequests {
    route: ShardRoute,
    places: Vec<usize>,
    payloads: Vec<(Slot, Bytes)>,
}

type Reply = Result<Bytes, ServiceError>;

/// Queries that are answered on the thread that received them, if they are short.
const INLINE_QUERIES: usize = 64;
/// Bytes of commands that are proposed as one.
const PROPOSAL_BYTES: usize = 1 << 20;

/// Cuts commands into proposals of bounded size; a large one goes alone.
fn proposals(commands: impl Iterator<Item = Command>) -> Vec<Vec<Command>> {
    let mut proposals = Vec::new();
    let mut current = Vec::new();
    let mut bytes = 0;
    for command in commands {
        if !current.is_empty() && bytes + command.size() > PROPOSAL_BYTES {
            proposals.push(std::mem::take(&mut current));
            bytes = 0;
        }
        bytes += command.size();
        current.push(command);
    }
    if !current.is_empty() {
        proposals.push(current);
    }
    proposals
}

impl Service {
    /// Runs a command in the slot of `key`.
    pub async fn apply(&self, key: &[u8], command: Bytes) -> Reply {
        self.check_key(key)?;
        self.check_payload(RequestKind::Apply, &command)?;
        self.run_one(key, command, RequestKind::Apply, OperationKind::Apply).await
    }

    /// Answers a query in the slot of `key`.
    pub async fn query(&self, key: &[u8], request: Bytes, consistency: Consistency) -> Reply {
        self.check_key(key)?;
        let kind = RequestKind::Query(consistency);
        self.check_payload(kind, &request)?;
        self.run_one(key, request, kind, OperationKind::Query).await
    }

    /// Runs many requests at once; each has a result of its own, in their order.
    /// Commands of one shard take effect in the order given and share log
    /// entries. Queries do not wait for the commands beside them.
    pub async fn run_many(&self, requests: Vec<Request>) -> Vec<Reply> {
        let checked = requests.into_iter().map(|request| {
            self.check_key(&request.key)?;
            self.check_payload(request.kind, &request.payload)?;
            Ok(request)
        });
        self.run_checked(checked.collect()).await
    }

    fn check_payload(&self, kind: RequestKind, payload: &Bytes) -> Result<(), ServiceError> {
        let field = match kind {
            RequestKind::Apply => "command",
            RequestKind::Query(_) => "request",
        };
        // A command carries at most a key and a value and what the plugin's format adds.
        let limit = self.limits.key_bytes + self.limits.value_bytes + 1024;
        check_length(field, payload.len(), limit)
    }

    /// One validated request on the shortest way.
    pub(super) async fn run_one(
        &self,
        key: &[u8],
        payload: Bytes,
        kind: RequestKind,
        operation: OperationKind,
    ) -> Reply {
        let started = Instant::now();
        let (slot, route) = self.routing.route(key)?;
        let replies = self.run_on_shard(kind, route, vec![(slot, payload)]).await;
        let reply = replies.and_then(|mut replies| {
            replies.pop().unwrap_or_else(|| Err(ServiceError::Internal("no reply".to_owned())))
        });
        self.metrics.observe(operation, route.ordinal, 1, started.elapsed(), reply.is_ok());
        reply
    }

    /// Validated requests (or why they are not valid), grouped by shard.
    pub(super) async fn run_checked(
        &self,
        requests: Vec<Result<Request, ServiceError>>,
    ) -> Vec<Reply> {
        let mut replies: Vec<Option<Reply>> = Vec::new();
        replies.resize_with(requests.len(), || None);
        // By kind first: commands are proposed before queries are answered.
        let mut groups: BTreeMap<(u8, usize), (RequestKind, ShardRequests)> = BTreeMap::new();
        for (place, request) in requests.into_iter().enumerate() {
            let routed = request.and_then(|request| {
                let (slot, route) = self.routing.route(&request.key)?;
                let kind = match request.kind {
                    RequestKind::Apply => 0,
                    RequestKind::Query(Consistency::Linearizable) => 1,
                    RequestKind::Query(Consistency::Stale) => 2,
                };
                let (_, group) = groups.entry((kind, route.ordinal)).or_insert_with(|| {
                    let route = route.clone();
                    (request.kind, ShardRequests { route, places: vec![], payloads: vec![] })
                });
                group.places.push(place);
                group.payloads.push((slot, request.payload));
                Ok(())
            });
            if let Err(error) = routed {
                replies[place] = Some(Err(error));
            }
        }
        let running = groups.into_values().map(|(kind, group)| self.run_group(kind, group));
        for (place, reply) in futures::future::join_all(running).await.into_iter().flatten() {
            replies[place] = Some(reply);
        }
        let lost = || Err(ServiceError::Internal("no reply".to_owned()));
        replies.into_iter().map(|reply| reply.unwrap_or_else(lost)).collect()
    }

    async fn run_group(&self, kind: RequestKind, group: ShardRequests) -> Vec<(usize, Reply)> {
        let started = Instant::now();
        let ShardRequests { route, places, payloads } = group;
        let operation = match kind {
            RequestKind::Apply => OperationKind::Apply,
            RequestKind::Query(_) => OperationKind::Query,
        };
        let replies = self.run_on_shard(kind, &route, payloads).await;
        let count = places.len() as u64;
        self.metrics.observe(operation, route.ordinal, count, started.elapsed(), replies.is_ok());
        match replies {
            Ok(replies) => places.into_iter().zip(replies).collect(),
            Err(error) => places.into_iter().map(|place| (place, Err(error.clone()))).collect(),
        }
    }

    /// Requests of one kind for one shard.
    async fn run_on_shard(
        &self,
        kind: RequestKind,
        route: &ShardRoute,
        payloads: Vec<(Slot, Bytes)>,
    ) -> Result<Vec<Reply>, ServiceError> {
        match kind {
            RequestKind::Apply => self.propose(route, payloads).await,
            RequestKind::Query(consistency) => self.read(route, payloads, consistency).await,
        }
    }

    /// Proposes commands of one shard, in order, and waits until they are applied.
    /// Many or large ones go as several proposals, so that no log entry gets too
    /// large.
    async fn propose(
        &self,
        route: &ShardRoute,
        commands: Vec<(Slot, Bytes)>,
    ) -> Result<Vec<Reply>, ServiceError> {
        let command = |(slot, payload): (Slot, Bytes)| Command {
            slot: slot.0,
            payload,
            ..Default::default()
        };
        let mut waiting = Vec::new();
        for commands in proposals(commands.into_iter().map(command)) {
            let (sender, receiver) = oneshot::channel();
            let count = commands.len();
            self.raft.propose(Proposal {
                group: route.group,
                commands,
                // The receiver may have given up.
                reply: Box::new(move |result| drop(sender.send(result))),
            });
            waiting.push((count, receiver));
        }
        let deadline = Instant::now() + self.limits.timeout;
        let mut replies = Vec::new();
        for (count, receiver) in waiting {
            match self.outcomes(receiver, deadline, route).await {
                Ok(outcomes) => replies.extend(outcomes),
                Err(error) => replies.extend((0..count).map(|_| Err(error.clone()))),
            }
        }
        Ok(replies)
    }

    /// Waits for the outcomes of one proposal.
    async fn outcomes(
        &self,
        receiver: oneshot::Receiver<Result<Vec<CommandOutcome>, RequestError>>,
        deadline: Instant,
        route: &ShardRoute,
    ) -> Result<Vec<Reply>, ServiceError> {
        let outcomes = match timeout_at(deadline.into(), receiver).await {
            Ok(Ok(result)) => result.map_err(|error| self.request_error(error, route))?,
            Ok(Err(_)) => return Err(self.request_error(RequestError::Stopping, route)),
            Err(_) => {
                let reason = format!("no answer from shard {} in time", route.name);
                return Err(ServiceError::OutcomeUnknown { reason });
            }
        };
        let reply = |outcome| match outcome {
            CommandOutcome::Applied(response) => Ok(response),
            CommandOutcome::Failed(failure) => Err(failure.into()),
            CommandOutcome::Rejected(rejection) => {
                Err(ServiceError::of_rejection(rejection, &route.name))
            }
        };
        Ok(outcomes.into_iter().map(reply).collect())
    }

    /// Answers queries of one shard from one of its states.
    async fn read(
        &self,
        route: &ShardRoute,
        requests: Vec<(Slot, Bytes)>,
        consistency: Consistency,
    ) -> Result<Vec<Reply>, ServiceError> {
        self.read_barrier(route, consistency).await?;
        let queries: Vec<Query> =
            requests.into_iter().map(|(slot, request)| Query { slot, request }).collect();
        let of_query = |error| ServiceError::of_query(error, &route.name);
        let reader = self.machine.reader(route.group).map_err(of_query)?;
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

    /// Waits until this node's replica holds everything that was acknowledged
    /// before now.
    pub(super) async fn read_barrier(
        &self,
        route: &ShardRoute,
        consistency: Consistency,
    ) -> Result<(), ServiceError> {
        if consistency == Consistency::Stale || self.raft.can_read_now(route.group) {
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        // The receiver may have given up.
        self.raft.read(route.group, Box::new(move |result| drop(sender.send(result))));
        match timeout(self.limits.timeout, receiver).await {
            // Nothing of a read is left behind: it can be asked elsewhere.
            Ok(Err(_)) | Ok(Ok(Err(RequestError::Stopping))) => {
                Err(ServiceError::ShardUnavailable {
                    shard: route.name.to_string(),
                    reason: RequestError::Stopping.to_string(),
                })
            }
            Ok(Ok(result)) => result.map(drop).map_err(|error| self.request_error(error, route)),
            Err(_) => Err(ServiceError::ShardUnavailable {
                shard: route.name.to_string(),
                reason: "its leader could not confirm in time that it still leads".to_owned(),
            }),
        }
    }

    fn request_error(&self, error: RequestError, route: &ShardRoute) -> ServiceError {
        let leader = match &error {
            RequestError::NotLeader { leader: Some(node) } => self.node_name(route, *node),
            _ => None,
        };
        ServiceError::of_request(error, &route.name, leader)
    }

    fn node_name(&self, route: &ShardRoute, node: NodeId) -> Option<String> {
        let shard = self.machine.shard(route.group)?;
        let voters = &shard.record().voters;
        let found = voters.iter().find(|voter| voter.node_number() == node)?;
        Some(found.node.clone())
    }
}
