//! What waits to be sent to one node, bounded by bytes.
//!
//! Invariants:
//! - appends of a group keep their order; everything else may overtake them, and
//!   leaves first;
//! - nothing is kept while there is no connection.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use raft_kv_proto::v1::{ForwardRequest, ForwardResponse, PeerFrame};
use raft_lite::{RaftMessage, RequestError};
use tokio::sync::Notify;

/// Bytes of each kind that may wait.
const WAITING_BYTES: usize = 64 << 20;
/// Bytes after which a frame is closed: what comes next waits for as long as it
/// takes to send one.
const FRAME_BYTES: usize = 512 << 10;

pub(super) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    open: bool,
    /// Number of the connection that may take frames.
    connection: u64,
    /// All messages but appends.
    messages: Queue<RaftMessage>,
    appends: Queue<RaftMessage>,
    requests: Queue<ForwardRequest>,
    responses: Queue<ForwardResponse>,
}

struct Queue<T> {
    waiting: VecDeque<(usize, T)>,
    bytes: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { waiting: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds an item unless there is no room; one that is larger than all the room
    /// is let in alone.
    fn push(&mut self, bytes: usize, item: T) -> bool {
        if self.bytes > 0 && self.bytes + bytes > WAITING_BYTES {
            return false;
        }
        self.bytes += bytes;
        self.waiting.push_back((bytes, item));
        true
    }

    /// Takes items until `taken` reaches the size of a frame.
    fn take(&mut self, taken: &mut usize) -> Vec<T> {
        let mut items = Vec::new();
        while *taken < FRAME_BYTES
            && let Some((bytes, item)) = self.waiting.pop_front()
        {
            self.bytes -= bytes;
            *taken += bytes;
            items.push(item);
        }
        items
    }
}

/// Why something is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    Disconnected,
    Full,
}

impl NotTaken {
    /// What that means for a request to `node`.
    pub(super) fn of_request(self, node: &str) -> RequestError {
        match self {
            NotTaken::Full => RequestError::Overloaded,
            NotTaken::Disconnected => RequestError::Unavailable(format!(
                "this node has no connection to its leader {node}"
            )),
        }
    }
}

impl Outbox {
    pub(super) fn new() -> Self {
        Outbox { state: Mutex::default(), filled: Notify::new(), dropped: AtomicU64::new(0) }
    }

    /// A connection is being made: frames are for it alone from now on. Returns its
    /// number.
    pub(super) fn begin(&self) -> u64 {
        let mut state = self.state.lock();
        state.connection += 1;
        state.connection
    }

    /// The connection is there: what is given from now on is kept for it.
    pub(super) fn open(&self) {
        self.state.lock().open = true;
    }

    /// There is none any more. Returns the requests that never left.
    pub(super) fn close(&self) -> Vec<ForwardRequest> {
        let mut state = self.state.lock();
        let connection = state.connection + 1;
        let left = std::mem::replace(&mut *state, State { connection, ..State::default() });
        drop(state);
        self.filled.notify_one();
        left.requests.waiting.into_iter().map(|(_, request)| request).collect()
    }

    /// Raft messages dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn push_messages(&self, messages: Vec<RaftMessage>) {
        let mut dropped = 0;
        let mut state = self.state.lock();
        if state.open {
            for message in messages {
                let queue =
                    if message.is_append() { &mut state.appends } else { &mut state.messages };
                dropped += u64::from(!queue.push(message.size(), message));
            }
        } else {
            dropped = messages.len() as u64;
        }
        drop(state);
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        self.filled.notify_one();
    }

    pub(super) fn push_request(&self, request: ForwardRequest) -> Result<(), NotTaken> {
        let bytes = request.encoded_len();
        self.push(|state| state.requests.push(bytes, request))
    }

    pub(super) fn push_response(&self, response: ForwardResponse) -> Result<(), NotTaken> {
        let bytes = response.encoded_len();
        self.push(|state| state.responses.push(bytes, response))
    }

    fn push(&self, push: impl FnOnce(&mut State) -> bool) -> Result<(), NotTaken> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(NotTaken::Disconnected);
        }
        let taken = push(&mut state);
        drop(state);
        self.filled.notify_one();
        if taken { Ok(()) } else { Err(NotTaken::Full) }
    }

    /// The next frame for a connection, as soon as there is something to send;
    /// none once the connection is over.
    pub(super) async fn next_frame(&self, connection: u64) -> Option<PeerFrame> {
        loop {
            if self.state.lock().connection != connection {
                // The call may have been for the connection after this one.
                self.filled.notify_one();
                return None;
            }
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            self.filled.notified().await;
            // Whoever is ready adds to the same frame.
            tokio::task::yield_now().await;
        }
    }

    fn take_frame(&self) -> Option<PeerFrame> {
        let mut state = self.state.lock();
        let mut taken = 0;
        let mut messages = state.messages.take(&mut taken);
        let responses = state.responses.take(&mut taken);
        let requests = state.requests.take(&mut taken);
        messages.extend(state.appends.take(&mut taken));
        drop(state);
        if messages.is_empty() && responses.is_empty() && requests.is_empty() {
            return None;
        }
        let encode = |message: RaftMessage| Bytes::from(message.encode_to_vec());
        let messages = messages.into_iter().map(encode).collect();
        Some(PeerFrame { hello: None, messages, requests, responses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, bytes: usize) -> ForwardRequest {
        ForwardRequest { id, group: 1, commands: vec![vec![0; bytes].into()], makes_room: false }
    }

    fn message(kind: i32, context: usize) -> RaftMessage {
        // A message as it comes from the wire: kind (2), context (13).
        let mut bytes = vec![0x10, kind as u8];
        prost::encoding::bytes::encode(13, &vec![0u8; context], &mut bytes);
        RaftMessage::decode(bytes.as_slice()).unwrap()
    }

    const APPEND: i32 = 3;
    const HEARTBEAT: i32 = 8;

    #[test]
    fn nothing_is_kept_without_a_connection() {
        let outbox = Outbox::new();
        outbox.push_messages(vec![message(HEARTBEAT, 0)]);
        assert_eq!(outbox.push_request(request(1, 10)), Err(NotTaken::Disconnected));
        assert_eq!(outbox.dropped(), 1);
        assert!(outbox.take_frame().is_none());
        outbox.open();
        assert_eq!(outbox.push_request(request(2, 10)), Ok(()));
        let left: Vec<u64> = outbox.close().into_iter().map(|request| request.id).collect();
        assert_eq!(left, [2]);
        assert_eq!(outbox.push_request(request(3, 10)), Err(NotTaken::Disconnected));
    }

    #[test]
    fn heartbeats_leave_before_large_appends() {
        let outbox = Outbox::new();
        outbox.open();
        let appends = (0..4).map(|_| message(APPEND, FRAME_BYTES)).collect();
        outbox.push_messages(appends);
        outbox.push_messages(vec![message(HEARTBEAT, 3)]);
        let first = outbox.take_frame().unwrap();
        let kinds: Vec<RaftMessage> =
            first.messages.into_iter().map(|m| RaftMessage::decode(m).unwrap()).collect();
        assert_eq!(kinds.len(), 2, "a frame is closed when it is large enough");
        assert!(!kinds[0].is_append() && kinds[1].is_append());
    }

    #[test]
    fn what_waits_is_bounded_by_bytes() {
        let outbox = Outbox::new();
        outbox.open();
        let mut taken = 0;
        while outbox.push_request(request(taken, 1 << 20)).is_ok() {
            taken += 1;
            assert!(taken < 1000, "there is no bound");
        }
        assert_eq!(outbox.push_request(request(taken, 1 << 20)), Err(NotTaken::Full));
        // Kinds do not take each other's room.
        outbox.push_messages(vec![message(HEARTBEAT, 3)]);
        assert_eq!(outbox.dropped(), 0);
        let frame = outbox.take_frame().unwrap();
        assert_eq!((frame.messages.len(), frame.requests.len()), (1, 1));
        assert_eq!(outbox.push_request(request(taken, 1 << 20)), Ok(()));
    }
}
