//! Commands and queries for any plugin: the path that everything else takes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use raft_lite::GroupId;

use super::{
    CallOptions, Consistency, Once, Service, ServiceError, WriteOptions, check_length,
    propose::Pauses, routing::ShardRoute,
};
use crate::{metrics::OperationKind, storage::Slot};

/// One of many requests that go together.
#[derive(Clone, Debug)]
pub struct Request {
    /// The routing key.
    pub key: Bytes,
    /// What the plugin is given.
    pub payload: Bytes,
    /// Command or query.
    pub kind: RequestKind,
    /// Of a command: told from itself when it is sent again.
    pub once: Option<Once>,
    /// What it counts as.
    pub operation: OperationKind,
}

/// What a request asks of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Change the state, through the log.
    Apply,
    /// Read the state.
    Query(Consistency),
}

/// One request on the shortest way.
pub(super) struct One {
    pub(super) payload: Bytes,
    pub(super) kind: RequestKind,
    pub(super) once: Option<Once>,
}

/// What the plugin is given of one request, and where.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) slot: Slot,
    pub(super) payload: Bytes,
    pub(super) once: Option<Once>,
    pub(super) operation: OperationKind,
}

impl Item {
    /// Whether it only removes, so that it is taken even while a disk is nearly full.
    pub(super) fn makes_room(&self) -> bool {
        self.operation == OperationKind::Delete
    }
}

/// Requests of one kind for one shard, with their places among all.
pub struct ShardRequests {
    kind: RequestKind,
    route: Arc<ShardRoute>,
    places: Vec<usize>,
    items: Vec<Item>,
    /// How many there are of each kind of operation.
    counts: BTreeMap<OperationKind, u64>,
}

pub(super) type Reply = Result<Bytes, ServiceError>;

/// The longest time that a write which can be sent again may stay open.
const LONGEST_ONCE: Duration = Duration::from_secs(3600);

impl Service {
    /// Runs a command in the slot of `key`.
    pub async fn apply(&self, key: &[u8], command: Bytes, options: WriteOptions) -> Reply {
        self.check_key(key)?;
        self.check_payload(RequestKind::Apply, &command)?;
        let one = One { payload: command, kind: RequestKind::Apply, once: options.once };
        self.run_one(key, one, options.call, OperationKind::Apply).await
    }

    /// Answers a query in the slot of `key`.
    pub async fn query(
        &self,
        key: &[u8],
        request: Bytes,
        consistency: Consistency,
        options: CallOptions,
    ) -> Reply {
        self.check_key(key)?;
        let kind = RequestKind::Query(consistency);
        self.check_payload(kind, &request)?;
        let one = One { payload: request, kind, once: None };
        self.run_one(key, one, options, OperationKind::Query).await
    }

    /// Checks a request for any plugin.
    pub fn check_request(&self, request: &Request) -> Result<(), ServiceError> {
        self.check_key(&request.key)?;
        self.check_payload(request.kind, &request.payload)
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
        one: One,
        options: CallOptions,
        operation: OperationKind,
    ) -> Reply {
        let started = Instant::now();
        check_once(one.once)?;
        let (slot, route) = {
            let table = self.table();
            let (slot, route) = table.route(key)?;
            (slot, Arc::clone(route))
        };
        let item = Item { slot, payload: one.payload, once: one.once, operation };
        let replies = self.run_on_shard(one.kind, &route, vec![item], options).await;
        let reply = replies.and_then(|mut replies| {
            replies.pop().unwrap_or_else(|| Err(ServiceError::Internal("no reply".to_owned())))
        });
        route.metrics.observe(operation, 1, started.elapsed(), reply.is_ok());
        reply
    }

    /// Validated requests (or why they are not valid), grouped by shard. Each has a
    /// result of its own, in their order. Commands of one shard take effect in the
    /// order given and share log entries. Queries do not wait for the commands
    /// beside them.
    pub(super) async fn run_checked(
        &self,
        requests: Vec<Result<Request, ServiceError>>,
        options: CallOptions,
    ) -> Vec<Reply> {
        let mut replies: Vec<Option<Reply>> = Vec::new();
        replies.resize_with(requests.len(), || None);
        let (refused, groups) = self.group_by_shard(requests);
        for (place, error) in refused {
            replies[place] = Some(Err(error));
        }
        let running = groups.into_iter().map(|group| self.run_group(group, options));
        for (place, reply) in futures::future::join_all(running).await.into_iter().flatten() {
            replies[place] = Some(reply);
        }
        let lost = || Err(ServiceError::Internal("no reply".to_owned()));
        replies.into_iter().map(|reply| reply.unwrap_or_else(lost)).collect()
    }

    /// Groups requests that passed their checks by shard and kind; the other places
    /// have their error already. Of the groups, those of commands come first.
    pub fn group_by_shard(
        &self,
        requests: Vec<Result<Request, ServiceError>>,
    ) -> (Vec<(usize, ServiceError)>, Vec<ShardRequests>) {
        let mut refused = Vec::new();
        let mut groups: BTreeMap<(u8, GroupId), ShardRequests> = BTreeMap::new();
        let table = self.table();
        for (place, request) in requests.into_iter().enumerate() {
            let routed = request.and_then(|request| {
                check_once(request.once)?;
                let (slot, route) = table.route(&request.key)?;
                let order = match request.kind {
                    RequestKind::Apply => 0,
                    RequestKind::Query(Consistency::Linearizable) => 1,
                    RequestKind::Query(Consistency::Stale) => 2,
                };
                let group = groups.entry((order, route.group)).or_insert_with(|| {
                    let (kind, route) = (request.kind, Arc::clone(route));
                    let counts = BTreeMap::new();
                    ShardRequests { kind, route, places: vec![], items: vec![], counts }
                });
                *group.counts.entry(request.operation).or_default() += 1;
                group.places.push(place);
                let Request { payload, once, operation, .. } = request;
                group.items.push(Item { slot, payload, once, operation });
                Ok(())
            });
            if let Err(error) = routed {
                refused.push((place, error));
            }
        }
        (refused, groups.into_values().collect())
    }

    /// Carries out the requests of one group. Each place has its reply.
    pub async fn run_group(
        &self,
        group: ShardRequests,
        options: CallOptions,
    ) -> Vec<(usize, Result<Bytes, ServiceError>)> {
        let started = Instant::now();
        let ShardRequests { kind, route, places, items, counts } = group;
        let replies = self.run_on_shard(kind, &route, items, options).await;
        let (took, succeeded) = (started.elapsed(), replies.is_ok());
        for (operation, count) in counts {
            route.metrics.observe(operation, count, took, succeeded);
        }
        match replies {
            Ok(replies) => places.into_iter().zip(replies).collect(),
            Err(error) => places.into_iter().map(|place| (place, Err(error.clone()))).collect(),
        }
    }

    /// Requests of one kind for one shard. Those that meet a shard which has changed
    /// meanwhile are carried out by whichever owns their slots now, unless the client
    /// wants to do that itself.
    async fn run_on_shard(
        &self,
        kind: RequestKind,
        route: &ShardRoute,
        items: Vec<Item>,
        options: CallOptions,
    ) -> Result<Vec<Reply>, ServiceError> {
        let deadline = Instant::now() + self.limits.timeout;
        let asked: Vec<(Slot, OperationKind)> =
            items.iter().map(|item| (item.slot, item.operation)).collect();
        let kept = (!options.direct).then(|| items.clone());
        let first = self.run_once(kind, route, items, options).await;
        let is_passing = match &first {
            Ok(replies) => replies.iter().any(is_passing),
            Err(error) => error.is_passing(),
        };
        let mut replies = match first {
            Ok(replies) => replies,
            Err(error) if !is_passing => return Err(error),
            Err(error) => vec![Err(error); asked.len()],
        };
        if is_passing {
            match kept {
                Some(items) => self.run_again(kind, items, &mut replies, deadline).await,
                None => self.name_owners(&asked, &mut replies),
            }
        }
        for ((slot, operation), reply) in asked.into_iter().zip(&mut replies) {
            if let Err(error) = reply {
                self.explain(error, slot, operation);
            }
        }
        Ok(replies)
    }

    /// Carries out the requests that met a shard which changed, until none does.
    async fn run_again(
        &self,
        kind: RequestKind,
        items: Vec<Item>,
        replies: &mut [Reply],
        deadline: Instant,
    ) {
        let mut pauses = Pauses::new();
        loop {
            pauses.pause().await;
            if Instant::now() >= deadline {
                return;
            }
            let table = self.table();
            let mut groups: BTreeMap<GroupId, (Arc<ShardRoute>, Vec<usize>)> = BTreeMap::new();
            let mut unowned = Vec::new();
            for place in (0..items.len()).filter(|place| is_passing(&replies[*place])) {
                match table.owner(items[place].slot) {
                    Ok(route) => {
                        let new = || (Arc::clone(route), Vec::new());
                        groups.entry(route.group).or_insert_with(new).1.push(place);
                    }
                    Err(error) => unowned.push((place, error)),
                }
            }
            for (place, error) in unowned {
                replies[place] = Err(error);
            }
            if groups.is_empty() {
                return;
            }
            for (route, places) in groups.into_values() {
                let again = places.iter().map(|place| items[*place].clone()).collect();
                let options = CallOptions::default();
                let results = self.run_once(kind, &route, again, options).await;
                let results = results.unwrap_or_else(|error| vec![Err(error); places.len()]);
                for (place, result) in places.into_iter().zip(results) {
                    replies[place] = result;
                }
            }
        }
    }

    /// Tells clients that go to the leaders themselves where to go.
    fn name_owners(&self, asked: &[(Slot, OperationKind)], replies: &mut [Reply]) {
        let table = self.table();
        for ((slot, _), reply) in asked.iter().zip(replies) {
            if let Err(ServiceError::StaleRouting { version, owner, leader, .. }) = reply
                && let Ok(route) = table.owner(*slot)
            {
                *version = table.version();
                *owner = route.name.to_string();
                *leader = self.leader_of(route).and_then(|node| self.node_at(node));
            }
        }
    }

    /// Requests of one kind for one shard.
    async fn run_once(
        &self,
        kind: RequestKind,
        route: &ShardRoute,
        items: Vec<Item>,
        options: CallOptions,
    ) -> Result<Vec<Reply>, ServiceError> {
        match kind {
            RequestKind::Apply => self.propose(route, items, options).await,
            RequestKind::Query(consistency) => self.read(route, items, consistency, options).await,
        }
    }
}

fn is_passing(reply: &Reply) -> bool {
    reply.as_ref().is_err_and(ServiceError::is_passing)
}

/// Checks what makes a write take effect once.
fn check_once(once: Option<Once>) -> Result<(), ServiceError> {
    let Some(once) = once else { return Ok(()) };
    let refuse = |field: &str, limit: &str| {
        let message = format!("{field} is out of bounds: it has to be {limit}");
        Err(ServiceError::invalid(field, limit, &message))
    };
    let latest = SystemTime::now() + LONGEST_ONCE;
    let latest = latest.duration_since(UNIX_EPOCH).map_or(u64::MAX, |time| time.as_millis() as u64);
    if once.session == 0 {
        return refuse("session", "above 0");
    }
    if once.not_after_ms == 0 || once.not_after_ms > latest {
        return refuse("not_after_ms", "a time within the next hour");
    }
    if once.acked_below > once.sequence {
        return refuse("acked_below", "at most the write's own sequence number");
    }
    Ok(())
}
