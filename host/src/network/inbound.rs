//! What other nodes send: their calls, from the hello to the end.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use raft_kv_proto::v1::{ForwardRequest, PeerFrame};
use raft_lite::{GroupId, MultiRaft, NodeId, Proposal, RaftMessage, RequestError};
use tokio::{sync::oneshot, time::timeout};
use tonic::{Status, Streaming};

use super::{Network, outbox::Outbox, wire};

/// Within this a caller has said who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// The answers to another node's call.
pub type Answers = Pin<Box<dyn Stream<Item = Result<PeerFrame, Status>> + Send>>;

impl Network {
    /// Takes another node's call, if it may call.
    pub async fn accept(
        self: Arc<Self>,
        mut frames: Streaming<PeerFrame>,
    ) -> Result<Answers, Status> {
        let first = timeout(HELLO_WITHIN, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(hello) = first.and_then(|frame| frame.hello) else {
            return Err(Status::invalid_argument("the first frame has to hold the hello"));
        };
        let from = self.check_hello(&hello).map_err(|refused| {
            tracing::warn!("refused a call: {refused}");
            Status::failed_precondition(refused.to_string())
        })?;
        let Some(raft) = self.raft.get().map(Arc::clone) else {
            return Err(Status::unavailable("the node is starting"));
        };
        let outbox = Arc::new(Outbox::new());
        let connection = outbox.begin();
        outbox.open();
        let (ended, end) = oneshot::channel::<()>();
        let name = hello.from.clone();
        let reader = Reader { from, raft, outbox: Arc::clone(&outbox) };
        tokio::spawn(async move {
            if let Err(status) = reader.run(frames).await {
                tracing::debug!("the call of node {name} ended: {status}");
            }
            // The answers may have ended before.
            let _ = ended.send(());
        });
        let mine = PeerFrame { hello: Some(self.hello(&hello.from)), ..PeerFrame::default() };
        let first = stream::iter([Ok(mine)]);
        let rest = stream::unfold(outbox, move |outbox| async move {
            let frame = outbox.next_frame(connection).await?;
            Some((Ok(frame), outbox))
        });
        let mut hung_up = self.hung_up.subscribe();
        let over = async move {
            // Either way the call is over.
            tokio::select! {
                _ = end => {}
                _ = hung_up.wait_for(|hung_up| *hung_up) => {}
            }
        };
        Ok(first.chain(rest.take_until(over.boxed())).boxed())
    }
}

/// Reads one call.
struct Reader {
    from: NodeId,
    raft: Arc<MultiRaft>,
    outbox: Arc<Outbox>,
}

impl Reader {
    async fn run(&self, mut frames: Streaming<PeerFrame>) -> Result<(), Status> {
        while let Some(frame) = frames.message().await? {
            self.deliver(frame.messages);
            for request in frame.requests {
                self.propose(request);
            }
        }
        Ok(())
    }

    /// Hands Raft messages over; one that can not be read is as good as lost.
    fn deliver(&self, encoded: Vec<bytes::Bytes>) {
        if encoded.is_empty() {
            return;
        }
        let decode = |bytes| match RaftMessage::decode(bytes) {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::warn!("dropped a Raft message that can not be read: {error}");
                None
            }
        };
        self.raft.deliver(self.from, encoded.into_iter().filter_map(decode).collect());
    }

    fn propose(&self, request: ForwardRequest) {
        let ForwardRequest { id, group, commands, makes_room } = request;
        let outbox = Arc::clone(&self.outbox);
        let reply = Box::new(move |result| {
            // Without room the other node is told nothing, and gives up in time.
            let _ = outbox.push_response(wire::forward_response(id, result));
        });
        match wire::commands(commands) {
            Some(commands) => {
                let group = GroupId(group);
                self.raft.propose(Proposal { group, commands, makes_room, reply });
            }
            None => {
                let reason = "the forwarded commands can not be read".to_owned();
                reply(Err(RequestError::Unavailable(reason)));
            }
        }
    }
}
