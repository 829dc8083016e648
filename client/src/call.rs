//! One request from its first attempt to its answer or its deadline: which
//! failures are worth another attempt, where, and when.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use tonic::{Response, Status, transport::Channel};

use crate::{
    channel::{Node, Pool},
    error::{Error, Result},
};

/// The first retry is immediate; those after it wait, at most so long.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// A cluster, as its callers see it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub pool: Pool,
    pub request_timeout: Duration,
}

/// Whether a request that may have been carried out may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resend {
    /// It changes nothing, or nothing more.
    Allowed,
    /// It would take effect twice.
    Forbidden,
}

/// What to do about a failed attempt.
enum Next<'a> {
    GiveUp,
    /// Ask the node at this address.
    Ask(&'a str),
    /// Ask any other node, or the same one if there is none.
    AskAnother,
}

impl Cluster {
    /// Sends `request` with `send` until it is answered, it fails in a way that
    /// another attempt cannot mend, or the request timeout is over.
    pub async fn call<Q, A, S, F>(&self, resend: Resend, request: Q, send: S) -> Result<A>
    where
        Q: Clone,
        S: Fn(Channel, Q) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let (_, answer) = self.call_with_node(resend, request, send).await?;
        Ok(answer)
    }

    /// [`Cluster::call`] that also gives the node that answered.
    pub async fn call_with_node<Q, A, S, F>(
        &self,
        resend: Resend,
        request: Q,
        send: S,
    ) -> Result<(Node, A)>
    where
        Q: Clone,
        S: Fn(Channel, Q) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.request_timeout;
        let mut node = self.pool.preferred();
        let mut wait = Duration::ZERO;
        loop {
            let answer = send(node.channel.clone(), request.clone());
            let error = match self.answer(&node, deadline, answer).await {
                Ok(answer) => return Ok((node, answer.into_inner())),
                Err(error) => error,
            };
            let next = match next(&error, resend) {
                Next::GiveUp => return Err(error),
                Next::Ask(address) => self.pool.at(address).ok(),
                Next::AskAnother => None,
            };
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            sleep(wait).await;
            wait = (wait * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
            node = next.unwrap_or_else(|| self.pool.after(&node));
        }
    }

    /// What `node` answers before the deadline.
    async fn answer<T>(
        &self,
        node: &Node,
        deadline: Instant,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match timeout(remaining, answer).await {
            Ok(answer) => answer.map_err(|status| Error::from_call(status, &node.endpoint)),
            Err(_) => Err(Error::Timeout {
                endpoint: node.endpoint.to_string(),
                after: self.request_timeout,
            }),
        }
    }
}

/// What to do about `error`. A request that was never sent, or that a node
/// turned away because it does not lead, has had no effect.
fn next(error: &Error, resend: Resend) -> Next<'_> {
    match error {
        Error::NotLeader { address, .. } if address.is_empty() => Next::AskAnother,
        Error::NotLeader { address, .. } => Next::Ask(address),
        Error::Connect { .. } => Next::AskAnother,
        Error::Unavailable { .. } if resend == Resend::Allowed => Next::AskAnother,
        _ => Next::GiveUp,
    }
}
