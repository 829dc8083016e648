//! HTTP/2 connections to RaftKV's nodes.

use std::time::Duration;

use futures::future::join_all;
use raft_kv_client::Endpoint;
use tonic::transport::{Channel, Endpoint as Transport};

use super::root;
use crate::args::Args;

/// Room for many calls in flight before the sender waits for the receiver.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// No endpoint answers.
#[derive(Debug, thiserror::Error)]
#[error("no node answers at {endpoints}: is it running? ({reason})")]
pub struct Unreachable {
    endpoints: String,
    reason: String,
}

impl Unreachable {
    pub(super) fn new(endpoints: &[Endpoint], reason: String) -> Self {
        let endpoints: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
        Self { endpoints: endpoints.join(", "), reason }
    }
}

/// Connections to the nodes that answer.
pub(super) struct Channels {
    /// As many to each endpoint as asked for, the endpoints taking turns; never
    /// more than callers.
    pub channels: Vec<Channel>,
    pub answering: Vec<Endpoint>,
    /// The endpoints that do not answer, and why.
    pub unreachable: Vec<(Endpoint, String)>,
}

impl Channels {
    /// Connects to all endpoints.
    ///
    /// # Errors
    /// If none answers within the timeout of a call.
    pub async fn connect(args: &Args) -> Result<Self, Unreachable> {
        let first = args.endpoints.iter().map(|endpoint| connect(endpoint, args.timeout));
        let mut channels = Vec::new();
        let mut answering = Vec::new();
        let mut unreachable = Vec::new();
        for (endpoint, result) in args.endpoints.iter().zip(join_all(first).await) {
            match result {
                Ok(channel) => {
                    channels.push(channel);
                    answering.push(endpoint.clone());
                }
                Err(reason) => unreachable.push((endpoint.clone(), reason)),
            }
        }
        if answering.is_empty() {
            let reason = unreachable.into_iter().next().map(|(_, reason)| reason);
            return Err(Unreachable::new(&args.endpoints, reason.unwrap_or_default()));
        }
        let wanted = args.concurrency.min(answering.len() * args.connections);
        channels.truncate(wanted);
        for place in channels.len()..wanted {
            let endpoint = &answering[place % answering.len()];
            let channel = connect(endpoint, args.timeout)
                .await
                .map_err(|reason| Unreachable::new(std::slice::from_ref(endpoint), reason))?;
            channels.push(channel);
        }
        Ok(Self { channels, answering, unreachable })
    }
}

/// A connection that is made anew when it breaks, or why there is none.
pub(super) async fn connect(
    endpoint: &Endpoint,
    connect_timeout: Duration,
) -> Result<Channel, String> {
    let transport = Transport::from_shared(endpoint.url()).map_err(|error| root(&error))?;
    transport
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
        .map_err(|error| root(&error))
}
