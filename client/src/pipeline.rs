//! One stream of requests to a node, which all callers share.
//!
//! A request goes out at once; what is asked meanwhile goes along with the next
//! one. Answers come in any order and find their callers by their tags. When the
//! stream breaks, every request on it is told so, and the next one makes a new
//! stream.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::StreamExt;
use raft_kv_proto::{
    DIRECT_METADATA,
    v1::{
        PipelineRequest, PipelineResponse, pipeline_request::Request,
        pipeline_response::Result as Answer,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tonic::{Status, metadata::MetadataValue};

use crate::{
    channel::Node,
    client::{MAX_MESSAGE_BYTES, machine},
    endpoint::Endpoint,
    error::{Error, Result},
};

/// Requests that may wait to be sent; then callers wait.
const QUEUED_REQUESTS: usize = 8192;

/// The streams of a client, by the node and by whether requests are forwarded.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    streams: Mutex<BTreeMap<(Endpoint, bool), Arc<Pipeline>>>,
}

/// A stream to a node.
#[derive(Debug)]
struct Pipeline {
    requests: mpsc::Sender<PipelineRequest>,
    next_tag: AtomicU64,
    callers: Arc<Callers>,
}

/// Those who wait for answers.
#[derive(Debug, Default)]
struct Callers {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Answer>>>>,
    broken: AtomicBool,
}

impl Pipelines {
    /// Asks `node` and waits for the answer until `deadline`. `direct`: a node
    /// that does not lead says so, instead of asking the leader.
    pub(crate) async fn ask(
        &self,
        node: &Node,
        direct: bool,
        request: Request,
        deadline: Instant,
    ) -> Result<Answer> {
        let length = request.encoded_len();
        if length > MAX_MESSAGE_BYTES {
            // It must not break the stream for all others.
            let message = format!("{length} bytes, at most {MAX_MESSAGE_BYTES} can be sent");
            return Err(Error::InvalidArgument { field: "request".to_owned(), message });
        }
        let pipeline = self.to(node, direct);
        let tag = pipeline.next_tag.fetch_add(1, Ordering::Relaxed);
        let place = Place { callers: &pipeline.callers, tag };
        let answer = place.take()?;
        let exchange = async {
            let request = PipelineRequest { tag, request: Some(request) };
            // If the stream is gone, the place was answered.
            let _ = pipeline.requests.send(request).await;
            answer.await
        };
        match timeout_at(deadline, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(broken(&node.endpoint, "it ended")),
            Err(_) => Err(Error::Timeout {
                endpoint: node.endpoint.to_string(),
                // Filled in by who knows how long was waited in all.
                after: std::time::Duration::ZERO,
            }),
        }
    }

    /// The stream to a node, made if there is none.
    fn to(&self, node: &Node, direct: bool) -> Arc<Pipeline> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node.endpoint.clone(), direct);
        if let Some(found) = streams.get(&key)
            && !found.callers.broken.load(Ordering::Acquire)
        {
            return Arc::clone(found);
        }
        let (requests, receiver) = mpsc::channel(QUEUED_REQUESTS);
        let callers = Arc::new(Callers::default());
        tokio::spawn(run(node.clone(), direct, receiver, Arc::clone(&callers)));
        let pipeline = Arc::new(Pipeline { requests, next_tag: AtomicU64::new(0), callers });
        streams.insert(key, Arc::clone(&pipeline));
        pipeline
    }
}

/// A caller's place among those who wait, given back when dropped.
struct Place<'a> {
    callers: &'a Callers,
    tag: u64,
}

impl Place<'_> {
    fn take(&self) -> Result<oneshot::Receiver<Result<Answer>>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.callers.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock: whoever breaks the stream answers all who wait.
        if self.callers.broken.load(Ordering::Acquire) {
            let message = "the connection broke".to_owned();
            return Err(Error::Unavailable { message });
        }
        waiting.insert(self.tag, sender);
        Ok(receiver)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.callers.answer(self.tag, None);
    }
}

impl Callers {
    /// Gives a caller its answer, or takes its place away.
    fn answer(&self, tag: u64, answer: Option<Result<Answer>>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag);
        if let Some((caller, answer)) = waiting.zip(answer) {
            // The caller may have given up.
            let _ = caller.send(answer);
        }
    }

    /// Tells all who wait that the stream is gone.
    fn fail(&self, error: &Error) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.broken.store(true, Ordering::Release);
        let callers = std::mem::take(&mut *waiting);
        drop(waiting);
        for caller in callers.into_values() {
            // The caller may have given up.
            let _ = caller.send(Err(error.clone()));
        }
    }
}

/// Runs a stream until it ends.
async fn run(
    node: Node,
    direct: bool,
    requests: mpsc::Receiver<PipelineRequest>,
    callers: Arc<Callers>,
) {
    let error = match exchange(&node, direct, requests, &callers).await {
        Ok(()) => broken(&node.endpoint, "the node ended it"),
        Err(status) => match Error::from_call(status, &node.endpoint) {
            error @ (Error::Connect { .. } | Error::Unavailable { .. }) => error,
            // Whatever the stream failed of, of each request the outcome is unknown.
            error => broken(&node.endpoint, &error.to_string()),
        },
    };
    callers.fail(&error);
}

async fn exchange(
    node: &Node,
    direct: bool,
    mut requests: mpsc::Receiver<PipelineRequest>,
    callers: &Callers,
) -> Result<(), Status> {
    let sent = futures::stream::poll_fn(move |context| requests.poll_recv(context));
    let mut call = tonic::Request::new(sent);
    if direct {
        call.metadata_mut().insert(DIRECT_METADATA, MetadataValue::from_static("1"));
    }
    let mut answers = machine(node.channel.clone()).pipeline(call).await?.into_inner();
    while let Some(answer) = answers.next().await {
        let PipelineResponse { tag, result } = answer?;
        let answer = match result {
            Some(Answer::Error(error)) => Err(Error::from(error)),
            Some(answer) => Ok(answer),
            None => Err(Error::BadResponse { message: "with nothing".to_owned() }),
        };
        callers.answer(tag, Some(answer));
    }
    Ok(())
}

fn broken(endpoint: &Endpoint, why: &str) -> Error {
    Error::Unavailable { message: format!("the stream to {endpoint} broke: {why}") }
}
