//! A node in the test's own process: the services over a map, with faults that
//! tests ask for.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use raft_kv_proto::{
    status_with_detail,
    v1::{
        self, admin_server::AdminServer, error_detail::Detail, kv_server::KvServer,
        state_machine_server::StateMachineServer,
    },
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, transport::Server};

mod services;

/// A get or put of this key is never answered.
pub const HANGING_KEY: &str = "hang";

/// Pairs in a page of a scan.
const PAGE_PAIRS: usize = 2;
/// Pages after which the node ends a call, for the client to ask again.
const CALL_PAGES: usize = 2;

/// What a node holds, and how it shall misbehave.
#[derive(Default)]
pub struct Node {
    pairs: Mutex<BTreeMap<Bytes, (Bytes, u64)>>,
    last_version: Mutex<u64>,
    /// Given, one each, to the next requests instead of an answer.
    faults: Mutex<VecDeque<Status>>,
    requests: AtomicUsize,
    /// What the writes carried, in the order they came.
    writes: Mutex<Vec<v1::Once>>,
    /// Streams opened so far, and routing tables given.
    streams: AtomicUsize,
    routings: AtomicUsize,
    routing: Mutex<Option<v1::RoutingResponse>>,
    breaks: AtomicBool,
    /// Answers even what it would never answer.
    never_hangs: AtomicBool,
    stopping: watch::Sender<bool>,
    itself: Mutex<Weak<Node>>,
}

impl Node {
    /// What the writes carried, in the order they came.
    pub fn writes(&self) -> Vec<v1::Once> {
        self.writes.lock().unwrap().clone()
    }

    /// How many streams were opened.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    /// How often the routing table was asked for.
    pub fn routings(&self) -> usize {
        self.routings.load(Ordering::SeqCst)
    }

    /// Answers from now on that this address leads the only shard.
    pub fn set_leader(&self, address: &str) {
        let shard = v1::ShardRoute {
            name: "shard_0".into(),
            slots: vec![v1::SlotRange { start: 0, end: 256 }],
            leader: "node".into(),
            address: address.into(),
        };
        let routing = v1::RoutingResponse { slots: 256, shards: vec![shard], ..Default::default() };
        *self.routing.lock().unwrap() = Some(routing);
    }

    /// Carries the next write out and breaks the stream instead of answering.
    pub fn break_after_next_write(&self) {
        self.breaks.store(true, Ordering::SeqCst);
    }

    /// Answers everything from now on.
    pub fn never_hang(&self) {
        self.never_hangs.store(true, Ordering::SeqCst);
    }

    /// A request to a key that is never answered does not return from here.
    async fn hang_on(&self, key: &Bytes) {
        if *key == HANGING_KEY && !self.never_hangs.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
    }

    fn note(&self, once: Option<v1::Once>) {
        self.writes.lock().unwrap().extend(once);
    }

    fn apply(&self, apply: v1::ApplyRequest) -> Result<v1::ApplyResponse, Status> {
        self.note(apply.once);
        if apply.command == "refuse" {
            return Err(refused("as told".into()));
        }
        let response = [b"applied ", &apply.command[..]].concat().into();
        Ok(v1::ApplyResponse { response })
    }

    /// Fails the next requests with these.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Status>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// How many requests have come in.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Whether the node has the key.
    pub fn has(&self, key: &str) -> bool {
        self.pairs.lock().unwrap().contains_key(key.as_bytes())
    }

    fn begin(&self) -> Result<(), Status> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        match self.faults.lock().unwrap().pop_front() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    fn put(&self, put: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        self.note(put.once);
        if put.key.is_empty() {
            return Err(status_with_detail(
                Code::InvalidArgument,
                "a key has 1 byte at least",
                Detail::InvalidArgument(v1::InvalidArgument {
                    field: "key".into(),
                    limit: "1 B".into(),
                }),
            ));
        }
        let mut pairs = self.pairs.lock().unwrap();
        let current = pairs.get(&put.key).map_or(0, |(_, version)| *version);
        if put.expected_version.is_some_and(|expected| expected != current) {
            return Err(refused(format!("the version is {current}")));
        }
        let mut last_version = self.last_version.lock().unwrap();
        *last_version += 1;
        pairs.insert(put.key, (put.value, *last_version));
        Ok(v1::PutResponse { version: *last_version })
    }

    fn get(&self, get: &v1::GetRequest) -> v1::GetResponse {
        match self.pairs.lock().unwrap().get(&get.key) {
            None => v1::GetResponse::default(),
            Some((value, version)) => {
                v1::GetResponse { found: true, value: value.clone(), version: *version }
            }
        }
    }

    fn delete(&self, delete: &v1::DeleteRequest) -> v1::DeleteResponse {
        self.note(delete.once);
        let existed = self.pairs.lock().unwrap().remove(&delete.key).is_some();
        v1::DeleteResponse { existed }
    }

    /// The pages of one call; at most [`CALL_PAGES`], whatever is left.
    fn scan(&self, scan: &v1::ScanRequest) -> Vec<Result<v1::ScanResponse, Status>> {
        let limit = match scan.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let pairs = self.pairs.lock().unwrap();
        let matching: Vec<v1::KeyValue> = pairs
            .iter()
            .filter(|(key, _)| key.starts_with(&scan.prefix) && **key > scan.cursor)
            .map(|(key, (value, version))| v1::KeyValue {
                key: key.clone(),
                value: value.clone(),
                version: *version,
            })
            .collect();
        let given = &matching[..matching.len().min(limit)];
        let last_key = matching.last().map(|pair| &pair.key);
        let pages = given.chunks(PAGE_PAIRS).take(CALL_PAGES).map(|pairs| {
            let cursor = pairs.last().map(|pair| pair.key.clone());
            Ok(v1::ScanResponse {
                pairs: pairs.to_vec(),
                cursor: cursor.filter(|key| Some(key) != last_key).unwrap_or_default(),
            })
        });
        pages.collect()
    }
}

/// A plugin's refusal.
pub fn refused(message: String) -> Status {
    status_with_detail(
        Code::FailedPrecondition,
        message.clone(),
        Detail::PluginError(v1::PluginError {
            kind: v1::plugin_error::Kind::Failed.into(),
            code: 1,
            message,
        }),
    )
}

/// That the node does not lead; the leader is at `address`.
pub fn not_leader(address: &str) -> Status {
    status_with_detail(
        Code::Unavailable,
        "this node does not lead shard_0",
        Detail::NotLeader(v1::NotLeader {
            shard: "shard_0".into(),
            leader: "node2".into(),
            address: address.into(),
        }),
    )
}

/// A running node.
pub struct Running {
    pub node: Arc<Node>,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts a node on a free port.
    pub async fn start() -> Self {
        Self::start_on(Arc::default(), "127.0.0.1:0".parse().unwrap()).await
    }

    /// Starts a node.
    pub async fn start_on(node: Arc<Node>, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        *node.itself.lock().unwrap() = Arc::downgrade(&node);
        node.stopping.send_replace(false);
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let kv = KvServer::from_arc(node.clone()).max_decoding_message_size(72 << 20);
        let machine =
            StateMachineServer::from_arc(node.clone()).max_decoding_message_size(72 << 20);
        let server = Server::builder()
            .add_service(kv)
            .add_service(machine)
            .add_service(AdminServer::from_arc(node.clone()));
        let incoming = TcpListenerStream::new(listener);
        let task = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or_default() };
            server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Self { node, address, stop, task }
    }

    /// Its address as host:port.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Stops the node; gives what it held.
    pub async fn stop(self) -> Arc<Node> {
        self.node.stopping.send_replace(true);
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        self.node
    }
}

/// An address where nothing listens.
pub async fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
