//! One request from its first attempt to its answer or its deadline: which
//! failures are worth another attempt, where, and when.
//!
//! A request for one key goes over the stream to the leader of its shard. If that
//! is not known, not reachable or not the leader any more, it goes to any node,
//! which finds the leader by itself; and the routing table is asked for anew.
//! Everything else is a call of its own to the preferred node.

use std::{future::Future, sync::Arc, time::Duration};

use raft_kv_proto::v1::{pipeline_request::Request, pipeline_response::Result as Answer};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    channel::{Node, Pool},
    error::{Error, Result},
    pipeline::Pipelines,
    routing::Routing,
    session::{Session, Write},
};

/// The first retry is immediate; those after it wait, at most so long.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// A node that does not answer within a part of the request's time is given up,
/// within these bounds.
const ATTEMPTS_IN_TIME: u32 = 5;
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(5);
/// A write is open longer than it is waited for: clocks differ.
const CLOCK_SLACK: Duration = Duration::from_secs(30);

/// A cluster, as its callers see it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub pool: Pool,
    pub routing: Routing,
    pub pipelines: Pipelines,
    pub session: Arc<Session>,
    pub request_timeout: Duration,
}

/// What to do about a failed attempt.
enum Next<'a> {
    GiveUp,
    /// Ask the node at this address.
    Ask(&'a str),
    /// Ask any other node, or the same one if there is none.
    AskAnother,
    /// Ask the same node, later.
    AskAgain,
}

/// The pauses between attempts.
pub(crate) struct Waits(Duration);

impl Waits {
    /// The first is none.
    pub fn new() -> Self {
        Self(Duration::ZERO)
    }

    /// Waits, unless the deadline would pass meanwhile.
    pub async fn wait(&mut self, deadline: Instant) -> bool {
        if Instant::now() + self.0 >= deadline {
            return false;
        }
        if !self.0.is_zero() {
            sleep(self.0.mul_f64(rand::random_range(0.75..1.0))).await;
        }
        self.0 = (self.0 * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        true
    }
}

impl Cluster {
    pub fn new(pool: Pool, request_timeout: Duration) -> Self {
        Self {
            pool,
            routing: Routing::new(),
            pipelines: Pipelines::default(),
            session: Session::new(),
            request_timeout,
        }
    }

    /// Begins a write that takes effect once, however often it is sent.
    pub fn begin_write(&self) -> Write {
        let open_for = self.request_timeout + CLOCK_SLACK;
        self.session.begin(self.routing.cluster_now_ms() + open_for.as_millis() as u64)
    }

    fn attempt_timeout(&self) -> Duration {
        (self.request_timeout / ATTEMPTS_IN_TIME).clamp(SHORTEST_ATTEMPT, LONGEST_ATTEMPT)
    }

    /// Sends a request for `key` until it is answered, it fails in a way that
    /// another attempt cannot mend, or the request timeout is over. A write has to
    /// carry what makes it take effect once.
    pub async fn ask(self: &Arc<Self>, key: &[u8], request: Request) -> Result<Answer> {
        let deadline = self.deadline();
        let leader = self.routing.leader(key).and_then(|leader| self.pool.node(&leader).ok());
        let mut direct = leader.is_some();
        let mut node = leader.unwrap_or_else(|| self.pool.preferred());
        let mut waits = Waits::new();
        let mut maybe_done = false;
        loop {
            let until = deadline.min(Instant::now() + self.attempt_timeout());
            let error = match self.pipelines.ask(&node, direct, request.clone(), until).await {
                Ok(answer) => {
                    if !direct {
                        self.refresh_routing();
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match next(&error) {
                Next::GiveUp => return Err(self.verdict(error, maybe_done)),
                Next::AskAgain => {}
                Next::Ask(address) => {
                    let leader = self.pool.at(address).ok();
                    self.routing.set_leader(key, leader.as_ref().map(|node| node.endpoint.clone()));
                    direct = leader.is_some();
                    node = leader.unwrap_or_else(|| self.pool.after(&node));
                }
                Next::AskAnother => {
                    match error {
                        Error::NotLeader { .. } => self.routing.set_leader(key, None),
                        _ => self.routing.forget(&node.endpoint),
                    }
                    node = self.pool.after(&node);
                    direct = false;
                }
            }
            maybe_done |= may_have_effect(&error);
            if !waits.wait(deadline).await {
                return Err(self.verdict(error, maybe_done));
            }
        }
    }

    /// The error of a request, given whether an attempt may have had an effect: then
    /// none may claim that there was none.
    pub fn verdict(&self, error: Error, maybe_done: bool) -> Error {
        match error {
            Error::Timeout { endpoint, .. } => {
                Error::Timeout { endpoint, after: self.request_timeout }
            }
            Error::NotLeader { .. }
            | Error::Connect { .. }
            | Error::ResourceExhausted { .. }
            | Error::InvalidArgument { .. }
                if maybe_done =>
            {
                let message = format!("{error}; an earlier attempt may have taken effect");
                Error::Unavailable { message }
            }
            error => error,
        }
    }

    /// Asks for the routing table, beside what goes on.
    fn refresh_routing(self: &Arc<Self>) {
        let (cluster, mark) = (Arc::clone(self), self.routing.mark());
        tokio::spawn(async move { cluster.routing.refresh(&cluster.pool, mark).await });
    }

    /// Until when a request that begins now may take.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.request_timeout
    }

    /// Makes a call until it is answered, it fails in a way that another attempt
    /// cannot mend, or the deadline is over. All its writes have to carry what makes
    /// them take effect once.
    pub async fn call<Q, A, S, F>(
        &self,
        deadline: Instant,
        request: Q,
        send: S,
    ) -> Result<Called<A>>
    where
        Q: Clone,
        S: Fn(Channel, Q) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut node = self.pool.preferred();
        let mut waits = Waits::new();
        let mut maybe_done = false;
        loop {
            let until = deadline.min(Instant::now() + 2 * self.attempt_timeout());
            let answer = timeout_at(until, send(node.channel.clone(), request.clone())).await;
            let error = match answer {
                Ok(Ok(answer)) => {
                    return Ok(Called { node, answer: answer.into_inner(), maybe_done });
                }
                Ok(Err(status)) => Error::from_call(status, &node.endpoint),
                Err(_) => Error::Timeout {
                    endpoint: node.endpoint.to_string(),
                    after: self.request_timeout,
                },
            };
            match next(&error) {
                Next::GiveUp => return Err(self.verdict(error, maybe_done)),
                Next::AskAgain => {}
                Next::Ask(address) => {
                    node = self.pool.at(address).unwrap_or_else(|_| self.pool.after(&node));
                }
                Next::AskAnother => node = self.pool.after(&node),
            }
            maybe_done |= may_have_effect(&error);
            if !waits.wait(deadline).await {
                return Err(self.verdict(error, maybe_done));
            }
        }
    }
}

/// A call that was answered.
pub(crate) struct Called<A> {
    /// Who answered.
    pub node: Node,
    pub answer: A,
    /// An earlier attempt may have had an effect.
    pub maybe_done: bool,
}

/// Whether another attempt may mend what went wrong with one operation of many.
/// What the node has no room for is not sent again at once with all the rest.
pub(crate) fn is_worth_resending(error: &Error) -> bool {
    !matches!(error, Error::ResourceExhausted { .. }) && !matches!(next(error), Next::GiveUp)
}

/// What to do about `error`.
fn next(error: &Error) -> Next<'_> {
    match error {
        Error::NotLeader { address, .. } if address.is_empty() => Next::AskAnother,
        Error::NotLeader { address, .. } => Next::Ask(address),
        Error::Connect { .. } | Error::Unavailable { .. } | Error::Timeout { .. } => {
            Next::AskAnother
        }
        // The node does not know what became of it.
        Error::Other(status) if status.code() == Code::DeadlineExceeded => Next::AskAnother,
        Error::ResourceExhausted { .. } => Next::AskAgain,
        _ => Next::GiveUp,
    }
}

/// Whether an attempt that failed so may have had an effect.
pub(crate) fn may_have_effect(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Timeout { .. } | Error::Other(_))
}
