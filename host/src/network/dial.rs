//! Keeping the connection to one node.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, stream};
use http::Uri;
use hyper_util::rt::TokioIo;
use raft_kv_proto::v1::{Hello, PeerFrame, raft_client::RaftClient};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{Coalesced, MAX_FRAME_BYTES, Peer, wire};

/// Making a connection takes at most so long.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Pauses between attempts grow from one to the other.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A node that is gone without a word is found out after these two together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(1000);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(2000);
/// Room for large appends before the sender waits for the receiver.
const WINDOW_BYTES: u32 = 8 << 20;

/// Connects to a node, again and again, until it is aborted.
pub(super) async fn keep_connected(peer: Arc<Peer>, hello: Hello) {
    let mut pause = SHORTEST_PAUSE;
    let mut last_said = String::new();
    let node = peer.config.node_id.clone();
    loop {
        let failure = match connect(&peer, hello.clone()).await {
            Ok(answers) => {
                tracing::info!("connected to node {node} at {}", peer.config.dial);
                pause = SHORTEST_PAUSE;
                last_said.clear();
                read(&peer, answers).await
            }
            Err(status) => describe(&status),
        };
        peer.disconnect(&failure);
        // The same trouble is told once.
        if failure != last_said {
            tracing::warn!("no connection to node {node} at {}: {failure}", peer.config.dial);
            last_said = failure;
        }
        let share = rand::random_range(0.5..1.0);
        sleep(pause.mul_f64(share)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

pub(super) fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES))
}

pub(super) fn client(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel)
        .max_decoding_message_size(MAX_FRAME_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES)
}

/// A connection whose small writes go out together.
async fn open_stream(address: Uri) -> io::Result<TokioIo<Coalesced<TcpStream>>> {
    let authority = address.authority().map(|authority| authority.to_string());
    let opened = TcpStream::connect(authority.unwrap_or_default());
    let stream = timeout(CONNECT_WITHIN, opened).await.map_err(io::Error::from)??;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(Coalesced::new(stream)))
}

/// Makes the call. It counts as made once the other node has said who it is.
async fn connect(peer: &Arc<Peer>, hello: Hello) -> Result<Streaming<PeerFrame>, Status> {
    let unreachable = |error: tonic::transport::Error| Status::from_error(error.into());
    let endpoint = endpoint(&peer.config.dial).map_err(unreachable)?;
    let channel = endpoint.connect_with_connector(service_fn(open_stream)).await;
    let mut client = client(channel.map_err(unreachable)?);
    let wanted = hello.clone();
    let first = PeerFrame { hello: Some(hello), ..PeerFrame::default() };
    let connection = peer.outbox.begin();
    let rest = stream::unfold(Arc::clone(peer), move |peer| async move {
        let frame = peer.outbox.next_frame(connection).await?;
        Some((frame, peer))
    });
    let frames = stream::iter([first]).chain(rest);
    let mut answers = client.exchange(frames).await?.into_inner();
    let answer = answers.message().await?.and_then(|frame| frame.hello);
    let theirs = answer.ok_or_else(|| Status::internal("it did not say who it is"))?;
    if (&theirs.cluster_id, &theirs.from) != (&wanted.cluster_id, &wanted.to) {
        let message = format!("it says it is node {} of {}", theirs.from, theirs.cluster_id);
        return Err(Status::failed_precondition(message));
    }
    peer.outbox.open();
    peer.connected.store(true, Ordering::Relaxed);
    Ok(answers)
}

/// Reads the answers until the call ends. Returns why it did.
async fn read(peer: &Peer, mut answers: Streaming<PeerFrame>) -> String {
    loop {
        match answers.message().await {
            Ok(Some(frame)) => {
                for response in frame.responses {
                    peer.answer(response.id, wire::result(response));
                }
            }
            Ok(None) => return "it ended the call".to_owned(),
            Err(status) => return describe(&status),
        }
    }
}

/// What went wrong, in a few words: the first cause says most.
pub(super) fn describe(status: &Status) -> String {
    let mut source = std::error::Error::source(status);
    while let Some(deeper) = source.and_then(|source| source.source()) {
        source = Some(deeper);
    }
    match source {
        Some(source) => source.to_string(),
        None if status.code() == Code::FailedPrecondition => {
            format!("it refuses this node: {}", status.message())
        }
        None => status.message().to_owned(),
    }
}
