//! The nodes of a cluster and the connections to them: one HTTP/2 connection
//! each, made when first needed and made anew when it breaks.
//!
//! A node that cannot be reached, or that has fallen silent, *rests* for a while:
//! others are asked instead. When the rest is over one request tries it; the
//! node's first sign of life ends its rest.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, stream::FuturesOrdered};
use tonic::transport::{Channel, Endpoint as Transport};

use crate::{
    endpoint::Endpoint,
    error::{Error, Result},
    pipeline::Pipeline,
};

/// Room for the largest values, and for many requests in flight, before the
/// sender must wait for the receiver.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Requests that may wait for the connection before callers wait for room.
const QUEUED_REQUESTS: usize = 4096;
/// A peer that is gone without a word is found out after these two together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node rests after the first connection that failed, doubling with
/// each more, and after it fell silent.
const SHORTEST_REST: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_millis(100);
const REST_OF_SILENT: Duration = Duration::from_secs(1);
/// Nodes known at most, besides those given.
const LEARNED_NODES: usize = 256;

/// A node that can be asked.
#[derive(Debug)]
pub(crate) struct Node {
    pub endpoint: Endpoint,
    pub channel: Channel,
    /// For requests that are not to be forwarded.
    pub direct: Pipeline,
    /// For requests that the node forwards to the shard's leader.
    pub forwarding: Pipeline,
    pub health: Arc<Health>,
}

impl Node {
    fn new(endpoint: Endpoint, channel: Channel, born: Instant) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            channel,
            direct: Pipeline::new(true),
            forwarding: Pipeline::new(false),
            health: Arc::new(Health::new(born)),
        })
    }
}

/// Whether a node is worth asking.
#[derive(Debug)]
pub(crate) struct Health {
    born: Instant,
    /// Milliseconds after `born` until which the node rests; 0 if it does not.
    resting_until: AtomicU64,
    failed_connections: AtomicU32,
}

impl Health {
    fn new(born: Instant) -> Self {
        Self { born, resting_until: AtomicU64::new(0), failed_connections: AtomicU32::new(0) }
    }

    /// Whether the node may be asked now. At the end of a rest this is so for
    /// one caller only, until the node shows a sign of life.
    pub fn admits(&self, now: Instant) -> bool {
        let until = self.resting_until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let rest = match self.failed_connections.load(Ordering::Relaxed) {
            0 => REST_OF_SILENT,
            failed => rest_after(failed),
        };
        // Of those who find the rest over at once, one goes on.
        self.at(now) >= until
            && self
                .resting_until
                .compare_exchange(until, self.at(now + rest), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether the node is not worth asking now.
    pub fn rests(&self, now: Instant) -> bool {
        self.at(now) < self.resting_until.load(Ordering::Relaxed)
    }

    /// The node showed a sign of life.
    pub fn heard(&self) {
        if self.resting_until.load(Ordering::Relaxed) != 0 {
            self.failed_connections.store(0, Ordering::Relaxed);
            self.resting_until.store(0, Ordering::Relaxed);
        }
    }

    /// No connection to the node could be made.
    pub fn unreachable(&self, now: Instant) {
        let failed = self.failed_connections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.resting_until.store(self.at(now + rest_after(failed)), Ordering::Relaxed);
    }

    /// The node did not answer in time, nor say anything else.
    pub fn silent(&self, now: Instant) {
        self.failed_connections.store(0, Ordering::Relaxed);
        self.resting_until.store(self.at(now + REST_OF_SILENT), Ordering::Relaxed);
    }

    fn at(&self, time: Instant) -> u64 {
        let after = time.saturating_duration_since(self.born).as_millis();
        u64::try_from(after).unwrap_or(u64::MAX).max(1)
    }
}

fn rest_after(failed_connections: u32) -> Duration {
    let doublings = failed_connections.saturating_sub(1).min(8);
    (SHORTEST_REST * (1 << doublings)).min(LONGEST_REST)
}

/// The nodes of a cluster: those given, and those that others named.
#[derive(Debug)]
pub(crate) struct Pool {
    connect_timeout: Duration,
    born: Instant,
    given: usize,
    /// The nodes given, at least one, and then those learned.
    nodes: RwLock<Vec<Arc<Node>>>,
    /// Index in `nodes` of the node to ask first.
    preferred: AtomicUsize,
}

impl Pool {
    /// Connects to all `endpoints` at once and prefers the first in order that
    /// answers. Fails with [`Error::Connect`] if none does.
    pub async fn connect(endpoints: Vec<Endpoint>, connect_timeout: Duration) -> Result<Self> {
        let mut channels = Vec::new();
        let mut connections = FuturesOrdered::new();
        for endpoint in &endpoints {
            let transport = transport(endpoint, connect_timeout)?;
            channels.push(transport.connect_lazy());
            connections.push_back(async move { transport.connect().await });
        }
        let preferred = first_to_answer(&endpoints, &mut channels, connections).await?;
        let born = Instant::now();
        let nodes = endpoints.into_iter().zip(channels);
        let nodes: Vec<_> =
            nodes.map(|(endpoint, channel)| Node::new(endpoint, channel, born)).collect();
        Ok(Self {
            connect_timeout,
            born,
            given: nodes.len(),
            nodes: RwLock::new(nodes),
            preferred: AtomicUsize::new(preferred),
        })
    }

    /// The node to ask if none is known to be better: the preferred one, or while
    /// that rests, another that does not.
    pub fn preferred(&self, now: Instant) -> Arc<Node> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let first = self.preferred.load(Ordering::Relaxed) % nodes.len();
        let mut in_order = nodes[first..].iter().chain(&nodes[..first]);
        in_order.find(|node| node.health.admits(now)).unwrap_or(&nodes[first]).clone()
    }

    /// Prefers the next node, if `failed` is the preferred one.
    pub fn avoid(&self, failed: &Node) {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let preferred = self.preferred.load(Ordering::Relaxed);
        if nodes[preferred % nodes.len()].endpoint == failed.endpoint {
            // If another caller has moved on already, its choice stands.
            let _ = self.preferred.compare_exchange(
                preferred,
                (preferred + 1) % nodes.len(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    /// Takes note of the cluster's nodes, as one of them said. Those that were learned and
    /// are none any more are forgotten; those given stay, since what stands behind them may
    /// have changed.
    pub fn learn<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        // What can not be read can not be asked either.
        let members: Vec<Endpoint> = addresses.filter_map(|address| address.parse().ok()).collect();
        if members.is_empty() {
            return;
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let mut place = 0;
        nodes.retain(|node| {
            place += 1;
            place <= self.given || members.contains(&node.endpoint)
        });
        drop(nodes);
        for member in members {
            let _ = self.node(member);
        }
    }

    /// All nodes known.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node at `address`, which another node named.
    pub fn at(&self, address: &str) -> Result<Arc<Node>> {
        self.node(address.parse()?)
    }

    /// The node behind an endpoint, from now on one of those known.
    fn node(&self, endpoint: Endpoint) -> Result<Arc<Node>> {
        let known = |nodes: &[Arc<Node>]| {
            nodes.iter().find(|node| node.endpoint == endpoint).map(Arc::clone)
        };
        if let Some(node) = known(&self.nodes.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(node);
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = known(&nodes) {
            return Ok(node);
        }
        let channel = transport(&endpoint, self.connect_timeout)?.connect_lazy();
        let node = Node::new(endpoint, channel, self.born);
        if nodes.len() == self.given + LEARNED_NODES {
            // The one learned first; whoever uses it keeps it.
            nodes.remove(self.given);
        }
        nodes.push(node.clone());
        Ok(node)
    }
}

/// Index of the first node that answers; it is given its connection.
async fn first_to_answer(
    endpoints: &[Endpoint],
    channels: &mut [Channel],
    mut connections: impl Stream<Item = Result<Channel, tonic::transport::Error>> + Unpin,
) -> Result<usize> {
    let mut first_error = None;
    for (index, lazy) in channels.iter_mut().enumerate() {
        match connections.next().await {
            Some(Ok(channel)) => {
                *lazy = channel;
                return Ok(index);
            }
            Some(Err(error)) => first_error = first_error.or(Some(error)),
            None => break,
        }
    }
    let names: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
    let error = first_error.expect("the list of endpoints is not empty");
    Err(Error::Connect { endpoint: names.join(", "), source: Arc::new(error) })
}

/// How to connect to an endpoint.
fn transport(endpoint: &Endpoint, connect_timeout: Duration) -> Result<Transport> {
    let transport = Transport::from_shared(endpoint.url()).map_err(|error| {
        let reason = error.to_string();
        let endpoint = endpoint.to_string();
        Error::InvalidEndpoint { endpoint, reason }
    })?;
    Ok(transport
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .buffer_size(QUEUED_REQUESTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_rests_and_then_one_request_tries_it() {
        let born = Instant::now();
        let health = Health::new(born);
        assert!(health.admits(born) && health.admits(born));
        health.silent(born);
        let later = born + REST_OF_SILENT + Duration::from_millis(2);
        assert!(!health.admits(born));
        assert!(health.admits(later));
        assert!(!health.admits(later), "one tries it");
        health.heard();
        assert!(health.admits(later) && health.admits(later));
    }

    #[test]
    fn an_unreachable_node_rests_longer_each_time() {
        let born = Instant::now();
        let health = Health::new(born);
        health.unreachable(born);
        assert!(!health.admits(born + SHORTEST_REST / 2));
        assert!(health.admits(born + SHORTEST_REST * 2));
        for _ in 0..20 {
            health.unreachable(born);
        }
        assert!(!health.admits(born + LONGEST_REST / 2));
        assert!(health.admits(born + LONGEST_REST * 2));
    }
}
