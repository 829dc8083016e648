//! How a request finds a node that carries it out.
//!
//! A request for one key goes over the pipeline of the node that leads the key's
//! shard. If that is not known or the node rests, the table is fetched anew, and
//! failing that the request takes a detour: any other node forwards it. Calls
//! that concern many keys, or none, go to the preferred node, which forwards
//! them. Each failed attempt is followed by another, elsewhere if need be, until
//! the request's deadline; [`Attempts`] says when.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_kv_proto::v1;
use tokio::time::{timeout, timeout_at};
use tonic::{Response, Status, transport::Channel};

use crate::{
    atomic,
    attempts::Attempts,
    channel::{Node, Pool},
    client::{kv, machine, set_direct},
    error::{Error, Result},
    failure::{Failure, Kind},
    pipeline::{Lost, Reply, Request},
    routing::Routing,
    session::{Session, Ticket, VALIDITY_SLACK},
};

/// How long a node may take before another is asked as well: for a request for
/// one key, and for a call for many.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_WITH_CALLS: Duration = Duration::from_secs(2);
/// How long making a client waits for the routing table.
const FIRST_REFRESH: Duration = Duration::from_millis(500);
/// Requests larger than this do not share a stream with others: they would hold
/// them up, and a node that refuses them may end the stream.
const LARGEST_SHARED_BYTES: usize = 256 << 10;

/// A cluster, as its callers see it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pool: Pool,
    routing: Routing,
    session: Arc<Session>,
    pub request_timeout: Duration,
}

/// Whom to ask.
#[derive(Debug)]
struct Target {
    node: Arc<Node>,
    /// Whether it is asked as the leader, and so not to forward.
    is_leader: bool,
    /// Whether it is asked because the leader cannot be.
    is_detour: bool,
}

impl Target {
    fn leader(node: Arc<Node>) -> Self {
        Self { node, is_leader: true, is_detour: false }
    }
}

impl Cluster {
    /// A cluster whose routing table is here if a node gives it soon.
    pub async fn new(pool: Pool, request_timeout: Duration) -> Self {
        let (routing, session) = (Routing::default(), Session::new());
        let cluster = Self { pool, routing, session, request_timeout };
        // Without a table, any node forwards what it is asked.
        let _ = timeout(FIRST_REFRESH, cluster.routing.refresh(&cluster.pool)).await;
        cluster
    }

    /// Numbers for the writes of a request that begins now.
    pub fn ticket(&self, writes: usize) -> Ticket {
        let validity = (self.request_timeout + VALIDITY_SLACK).as_millis();
        let validity = u64::try_from(validity).unwrap_or(u64::MAX);
        let now = self.routing.unix_ms(Instant::now());
        self.session.begin(writes, now.saturating_add(validity))
    }

    /// Takes note of where all nodes are.
    pub fn learn<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        self.pool.learn(addresses);
    }

    /// Has a request for one key carried out.
    pub async fn run(self: &Arc<Self>, request: Request) -> Result<Reply> {
        let now = Instant::now();
        let attempts = Attempts::new(now, self.request_timeout, PATIENCE);
        let route = self.routing.route(key_of(&request), now);
        if route.is_old {
            self.refresh_in_background();
        }
        let target = match route.leader {
            Some(leader) if leader.health.admits(now) => Target::leader(leader),
            _ => self.find(key_of(&request), false, attempts.deadline).await,
        };
        let until = attempts.until(now, target.is_detour);
        match self.attempt(&target, request.clone(), now, until).await {
            Ok(reply) => Ok(reply),
            // On the heap, so that requests that succeed at once are small.
            Err(failure) => Box::pin(self.persist(request, target, failure, attempts)).await,
        }
    }

    /// Goes on with a request whose first attempt failed.
    async fn persist(
        &self,
        request: Request,
        mut target: Target,
        mut failure: Failure,
        mut attempts: Attempts,
    ) -> Result<Reply> {
        loop {
            target = self.next(key_of(&request), &target, failure, &mut attempts).await?;
            let now = Instant::now();
            let until = attempts.until(now, target.is_detour);
            match self.attempt(&target, request.clone(), now, until).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => failure = failed,
            }
        }
    }

    /// Whom to ask after a failed attempt, when it is time to.
    async fn next(
        &self,
        key: &[u8],
        asked: &Target,
        failure: Failure,
        attempts: &mut Attempts,
    ) -> Result<Target> {
        if matches!(failure.kind, Kind::Expired) {
            // The clock may have been wrong.
            let refresh = self.routing.refresh(&self.pool);
            let _ = timeout_at(attempts.deadline.into(), refresh).await;
        }
        let mut refresh = false;
        match attempts.failed(failure)? {
            Kind::NotLeader(hint) => {
                let leader = self.routing.heed(&self.pool, key, &asked.node, hint);
                let leader = leader.filter(|node| node.health.admits(Instant::now()));
                if let Some(leader) = leader
                    && attempts.may_hop()
                {
                    return Ok(Target::leader(leader));
                }
                refresh = true;
            }
            Kind::Unreachable | Kind::Unknown => {
                refresh = true;
                self.pool.avoid(&asked.node);
            }
            Kind::Stale(owner) => {
                // Shards have changed: the table is fetched by whoever comes next.
                self.routing.outdate();
                let owner = owner.as_deref().and_then(|address| self.pool.at(address).ok());
                if let Some(owner) = owner.filter(|node| node.health.admits(Instant::now()))
                    && attempts.may_hop()
                {
                    return Ok(Target::leader(owner));
                }
                refresh = true;
            }
            Kind::Refused | Kind::Expired | Kind::Final => {}
        }
        attempts.pause().await?;
        Ok(self.find(key, refresh, attempts.deadline).await)
    }

    /// The leader of a key's shard if it is known and does not rest, after a
    /// refresh if it is not, or if one is asked for. Else any node.
    async fn find(&self, key: &[u8], refresh: bool, deadline: Instant) -> Target {
        let now = Instant::now();
        let mut route = self.routing.route(key, now);
        let admitted = |leader: &Arc<Node>, now| leader.health.admits(now);
        let rests = route.leader.as_ref().is_some_and(|leader| leader.health.rests(now));
        if refresh || rests || (route.is_known && route.leader.is_none()) {
            let _ = timeout_at(deadline.into(), self.routing.refresh(&self.pool)).await;
            route = self.routing.route(key, Instant::now());
        }
        let now = Instant::now();
        match route.leader {
            Some(leader) if admitted(&leader, now) => Target::leader(leader),
            _ => Target {
                node: self.pool.preferred(now),
                is_leader: false,
                is_detour: route.is_known,
            },
        }
    }

    /// Asks a node once.
    async fn attempt(
        &self,
        target: &Target,
        request: Request,
        now: Instant,
        by: Instant,
    ) -> Result<Reply, Failure> {
        let node = &*target.node;
        if size_of(&request) > LARGEST_SHARED_BYTES {
            let answer = call_alone(node.channel.clone(), request, target.is_leader);
            return self.answer(node, by, answer).await;
        }
        let pipeline = if target.is_leader { &node.direct } else { &node.forwarding };
        match pipeline.ask(node, request, now, by).await {
            Ok(Reply::Error(error)) => Err(Failure::from_operation(error)),
            Ok(reply) => Ok(reply),
            Err(Lost::Late) => Err(Failure::late(&node.endpoint, self.request_timeout)),
            Err(Lost::Broken(reason)) => Err(Failure::broken(&node.endpoint, &reason)),
            Err(Lost::Unreachable(status)) => Err(Failure::unreachable(&node.endpoint, status)),
        }
    }

    /// Makes a call with `send` until it is answered, it fails in a way that
    /// another attempt cannot mend, or the request timeout is over. Nodes forward
    /// such calls. What it writes must carry a [`Ticket`]'s numbers.
    pub async fn call<Q, A, S, F>(self: &Arc<Self>, request: Q, send: S) -> Result<Called<A>>
    where
        Q: Clone,
        S: Fn(Channel, Q) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_within(self.request_timeout, request, send).await
    }

    /// [`Cluster::call`] that may take so long.
    pub async fn call_within<Q, A, S, F>(
        self: &Arc<Self>,
        time: Duration,
        request: Q,
        send: S,
    ) -> Result<Called<A>>
    where
        Q: Clone,
        S: Fn(Channel, Q) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut now = Instant::now();
        let mut attempts = Attempts::new(now, time, PATIENCE_WITH_CALLS);
        if self.routing.is_old(now) {
            self.refresh_in_background();
        }
        let mut node = self.pool.preferred(now);
        loop {
            let answer = send(node.channel.clone(), request.clone());
            let failure = match self.answer(&node, attempts.until(now, false), answer).await {
                Ok(answer) => {
                    let (answer, doubtful) = (answer.into_inner(), attempts.is_doubtful());
                    return Ok(Called { node, answer, doubtful });
                }
                Err(failure) => failure,
            };
            let hint = match attempts.failed(failure)? {
                Kind::NotLeader(leader) => self.pool.at(&leader.address).ok(),
                Kind::Unreachable | Kind::Unknown => {
                    // There may be nodes that are not known here.
                    self.routing.outdate();
                    self.refresh_in_background();
                    None
                }
                _ => None,
            };
            node = match hint {
                Some(leader) if attempts.may_hop() => leader,
                _ => {
                    self.pool.avoid(&node);
                    attempts.pause().await?;
                    self.pool.preferred(Instant::now())
                }
            };
            now = Instant::now();
        }
    }

    /// What `node` answers to a call in time.
    async fn answer<T>(
        &self,
        node: &Node,
        by: Instant,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        let failure = match timeout_at(by.into(), answer).await {
            Ok(Ok(answer)) => {
                node.health.heard();
                return Ok(answer);
            }
            Ok(Err(status)) => Failure::from_call(status, &node.endpoint),
            Err(_) => Failure::late(&node.endpoint, self.request_timeout),
        };
        if matches!(failure.kind, Kind::Unreachable) {
            node.health.unreachable(Instant::now());
        }
        Err(failure)
    }

    fn refresh_in_background(self: &Arc<Self>) {
        if self.routing.begin_background() {
            let cluster = self.clone();
            tokio::spawn(async move {
                cluster.routing.refresh(&cluster.pool).await;
                cluster.routing.end_background();
            });
        }
    }
}

/// A call that was answered.
#[derive(Debug)]
pub(crate) struct Called<A> {
    /// Who answered.
    pub node: Arc<Node>,
    pub answer: A,
    /// An earlier attempt may have been carried out, too.
    pub doubtful: bool,
}

/// Carries a request out with a call of its own.
async fn call_alone(channel: Channel, request: Request, direct: bool) -> Result<Reply, Status> {
    fn call<T>(request: T, direct: bool) -> tonic::Request<T> {
        let mut request = tonic::Request::new(request);
        if direct {
            set_direct(request.metadata_mut());
        }
        request
    }
    Ok(match request {
        Request::Put(put) => Reply::Put(kv(channel).put(call(put, direct)).await?.into_inner()),
        Request::Get(get) => Reply::Get(kv(channel).get(call(get, direct)).await?.into_inner()),
        Request::Delete(delete) => {
            Reply::Delete(kv(channel).delete(call(delete, direct)).await?.into_inner())
        }
        Request::Increment(increment) => {
            Reply::Increment(kv(channel).increment(call(increment, direct)).await?.into_inner())
        }
        Request::Atomic(atomic) => {
            Reply::Atomic(kv(channel).atomic(call(atomic, direct)).await?.into_inner())
        }
        Request::Apply(apply) => {
            Reply::Apply(machine(channel).apply(call(apply, direct)).await?.into_inner())
        }
        Request::Query(query) => {
            Reply::Query(machine(channel).query(call(query, direct)).await?.into_inner())
        }
    })
}

/// The key that a request is routed by.
fn key_of(request: &Request) -> &[u8] {
    match request {
        Request::Apply(v1::ApplyRequest { key, .. })
        | Request::Query(v1::QueryRequest { key, .. })
        | Request::Put(v1::PutRequest { key, .. })
        | Request::Get(v1::GetRequest { key, .. })
        | Request::Delete(v1::DeleteRequest { key, .. })
        | Request::Increment(v1::IncrementRequest { key, .. }) => key,
        Request::Atomic(request) => atomic::key_of(request),
    }
}

/// About how many bytes a request takes.
fn size_of(request: &Request) -> usize {
    let payload = match request {
        Request::Apply(apply) => apply.command.len(),
        Request::Query(query) => query.request.len(),
        Request::Put(put) => put.value.len(),
        Request::Get(_) | Request::Delete(_) | Request::Increment(_) => 0,
        Request::Atomic(request) => atomic::values_len(request),
    };
    key_of(request).len() + payload
}

/// The error that a node answered another request than was asked.
pub(crate) fn mismatched() -> Error {
    Error::BadResponse { message: "another request than the one asked".to_owned() }
}
