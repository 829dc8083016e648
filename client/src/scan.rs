//! Reading ranges of keys, page by page.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use raft_kv_proto::v1::{self, ScanRequest, ScanResponse};
use tokio::time::timeout;
use tonic::Streaming;

use crate::{
    call::Cluster,
    client::kv,
    endpoint::Endpoint,
    error::{Error, Result},
    operation::consistency,
    value::{IntoBytes, KeyValue},
};

/// A scan in the making: the pairs whose key starts with a prefix, in byte
/// order of their keys. [`Scan::collect`] or [`Scan::stream`] carry it out.
#[derive(Clone, Debug)]
#[must_use = "a scan does nothing until it is collected or streamed"]
pub struct Scan {
    cluster: Arc<Cluster>,
    prefix: Bytes,
    limit: Option<u64>,
    after: Bytes,
    stale: bool,
}

impl Scan {
    pub(crate) fn new(cluster: Arc<Cluster>, prefix: Bytes) -> Self {
        Self { cluster, prefix, limit: None, after: Bytes::new(), stale: false }
    }

    /// Gives at most `pairs` pairs.
    pub fn limit(mut self, pairs: u64) -> Self {
        self.limit = Some(pairs);
        self
    }

    /// Begins after this key: the last key of an earlier scan, to continue it.
    pub fn after(mut self, key: impl IntoBytes) -> Self {
        self.after = key.into_bytes();
        self
    }

    /// Takes some earlier state of the cluster instead of the latest.
    pub fn stale(mut self) -> Self {
        self.stale = true;
        self
    }

    /// All pairs at once.
    pub async fn collect(self) -> Result<Vec<KeyValue>> {
        self.stream().try_collect().await
    }

    /// The pairs as they arrive. The request timeout holds for the wait for
    /// each page, not for the whole. After an error the stream ends; a new scan
    /// [`after`](Scan::after) the last key goes on.
    pub fn stream(self) -> ScanStream {
        let pages = Pages {
            remaining: self.limit,
            request: ScanRequest {
                prefix: self.prefix,
                limit: 0,
                cursor: self.after,
                consistency: consistency(self.stale).into(),
            },
            cluster: self.cluster,
            state: State::Closed,
        };
        let pairs = stream::try_unfold(pages, |mut pages| async move {
            let page = pages.next().await?;
            Ok::<_, Error>(page.map(|page| (stream::iter(page.into_iter().map(Ok)), pages)))
        });
        ScanStream(pairs.try_flatten().boxed())
    }
}

/// The pairs of a scan, as they arrive.
#[must_use = "a stream does nothing unless polled"]
pub struct ScanStream(stream::BoxStream<'static, Result<KeyValue>>);

impl ScanStream {
    /// The next pair; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<KeyValue>> {
        self.0.next().await
    }
}

impl Stream for ScanStream {
    type Item = Result<KeyValue>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// The pages of a scan, over as many calls as the server makes of it.
struct Pages {
    cluster: Arc<Cluster>,
    /// The next call; its cursor is where the last one ended.
    request: ScanRequest,
    /// Pairs that may still be given; `None` if there is no limit.
    remaining: Option<u64>,
    state: State,
}

enum State {
    /// A call is to be made.
    Closed,
    /// Pages are coming in.
    Open(Box<Call>),
    Finished,
}

/// A call under way.
struct Call {
    endpoint: Endpoint,
    pages: Streaming<ScanResponse>,
    /// The cursor of the page read last; empty before the first.
    cursor: Bytes,
}

impl Pages {
    /// The next page; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<KeyValue>>> {
        loop {
            if self.remaining == Some(0) {
                self.state = State::Finished;
            }
            match &mut self.state {
                State::Finished => return Ok(None),
                State::Closed => self.state = State::Open(Box::new(self.open().await?)),
                State::Open(call) => match call.next(self.cluster.request_timeout).await? {
                    Some(pairs) => return Ok(Some(self.within_limit(pairs))),
                    None => self.state = next_call(&mut self.request, &call.cursor)?,
                },
            }
        }
    }

    /// Makes a call for what is still to come.
    async fn open(&mut self) -> Result<Call> {
        self.request.limit = self.remaining.unwrap_or(0);
        let scan = |channel, request| async move { kv(channel).scan(request).await };
        let request = self.request.clone();
        let called = self.cluster.call(request, scan).await?;
        let (node, pages) = (called.node, called.answer);
        Ok(Call { endpoint: node.endpoint.clone(), pages, cursor: Bytes::new() })
    }

    /// Cuts a page to what may still be given.
    fn within_limit(&mut self, mut pairs: Vec<v1::KeyValue>) -> Vec<KeyValue> {
        if let Some(remaining) = &mut self.remaining {
            pairs.truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
            *remaining -= pairs.len() as u64;
        }
        pairs.into_iter().map(KeyValue::from).collect()
    }
}

impl Call {
    /// The pairs of the next page; `None` at the end of the call.
    async fn next(&mut self, wait: Duration) -> Result<Option<Vec<v1::KeyValue>>> {
        let page = match timeout(wait, self.pages.message()).await {
            Ok(page) => page.map_err(|status| Error::from_call(status, &self.endpoint))?,
            Err(_) => {
                return Err(Error::Timeout { endpoint: self.endpoint.to_string(), after: wait });
            }
        };
        Ok(page.map(|page| {
            self.cursor = page.cursor;
            page.pairs
        }))
    }
}

/// What comes after a call that ended at `cursor`: nothing if it is empty.
fn next_call(request: &mut ScanRequest, cursor: &Bytes) -> Result<State> {
    if cursor.is_empty() {
        return Ok(State::Finished);
    }
    if *cursor == request.cursor {
        let message = "a scan that does not go on".to_owned();
        return Err(Error::BadResponse { message });
    }
    request.cursor = cursor.clone();
    Ok(State::Closed)
}
