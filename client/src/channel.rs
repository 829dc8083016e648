//! The connections to the nodes: one HTTP/2 connection each, made when first
//! needed and made anew when it breaks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream::FuturesOrdered};
use tonic::transport::{Channel, Endpoint as Transport};

use crate::{
    endpoint::Endpoint,
    error::{Error, Result},
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

/// A node that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub endpoint: Endpoint,
    pub channel: Channel,
}

/// The nodes of a cluster: those given, and those that others named as leaders.
#[derive(Debug)]
pub(crate) struct Pool {
    connect_timeout: Duration,
    /// The nodes given; never empty.
    given: Vec<Node>,
    /// Index in `given` of the node to ask first.
    preferred: AtomicUsize,
    learned: Mutex<BTreeMap<Endpoint, Node>>,
}

impl Pool {
    /// Connects to all `endpoints` at once and prefers the first in order that
    /// answers. Fails with [`Error::Connect`] if none does.
    pub async fn connect(endpoints: Vec<Endpoint>, connect_timeout: Duration) -> Result<Self> {
        let mut given = Vec::new();
        let mut connections = FuturesOrdered::new();
        for endpoint in &endpoints {
            let transport = transport(endpoint, connect_timeout)?;
            given.push(Node { endpoint: endpoint.clone(), channel: transport.connect_lazy() });
            connections.push_back(async move { transport.connect().await });
        }
        let preferred = first_to_answer(&endpoints, &mut given, connections).await?;
        Ok(Self {
            connect_timeout,
            given,
            preferred: AtomicUsize::new(preferred),
            learned: Mutex::default(),
        })
    }

    /// The node to ask first.
    pub fn preferred(&self) -> Node {
        self.given[self.preferred.load(Ordering::Relaxed)].clone()
    }

    /// All nodes known, the preferred one first.
    pub fn all(&self) -> Vec<Node> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut nodes = self.given.clone();
        nodes.rotate_left(preferred);
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.extend(learned.values().cloned());
        nodes
    }

    /// The node to ask after `failed` could not serve a request. If it was the
    /// preferred one, the next one given becomes that.
    pub fn after(&self, failed: &Node) -> Node {
        let all = self.all();
        let place = all.iter().position(|node| node.endpoint == failed.endpoint);
        let next = all[place.map_or(0, |place| place + 1) % all.len()].clone();
        let preferred = self.preferred.load(Ordering::Relaxed);
        if self.given[preferred].endpoint == failed.endpoint {
            // If another caller has moved on already, its choice stands.
            let _ = self.preferred.compare_exchange(
                preferred,
                (preferred + 1) % self.given.len(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        next
    }

    /// The node at `address`, which another node named.
    pub fn at(&self, address: &str) -> Result<Node> {
        self.node(&address.parse()?)
    }

    /// The node at an endpoint.
    pub fn node(&self, endpoint: &Endpoint) -> Result<Node> {
        if let Some(node) = self.given.iter().find(|node| node.endpoint == *endpoint) {
            return Ok(node.clone());
        }
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = learned.get(endpoint) {
            return Ok(node.clone());
        }
        let node = Node {
            endpoint: endpoint.clone(),
            channel: transport(endpoint, self.connect_timeout)?.connect_lazy(),
        };
        learned.insert(endpoint.clone(), node.clone());
        Ok(node)
    }
}

/// Index of the first node that answers; it is given its connection.
async fn first_to_answer(
    endpoints: &[Endpoint],
    nodes: &mut [Node],
    mut connections: impl Stream<Item = Result<Channel, tonic::transport::Error>> + Unpin,
) -> Result<usize> {
    let mut first_error = None;
    for (index, node) in nodes.iter_mut().enumerate() {
        match connections.next().await {
            Some(Ok(channel)) => {
                node.channel = channel;
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
