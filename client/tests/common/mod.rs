//! A node in the test's own process: the services over a map, with faults that
//! tests ask for.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
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
    time::sleep,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, transport::Server};

mod admin;
pub mod program;
mod proxy;
mod services;
mod store;

pub use admin::{Course, Operations};
pub use proxy::Proxy;
pub use store::Store;

/// A get or put of this key is never answered.
pub const HANGING_KEY: &str = "hang";

/// While this key is held, the routing table is not given either.
pub const ROUTING_KEY: &str = "routing";

/// Slots of the keys.
pub const SLOTS: u32 = 256;

/// A node, and how it shall misbehave.
#[derive(Default)]
pub struct Node {
    pub store: Arc<Store>,
    /// Given, one each, to the next requests instead of an answer.
    faults: Mutex<VecDeque<Status>>,
    requests: AtomicUsize,
    /// What the node says of where keys live; nothing if it does not know the call.
    routing: Mutex<Option<v1::RoutingResponse>>,
    routings: AtomicUsize,
    routings_at_once: AtomicUsize,
    most_routings_at_once: AtomicUsize,
    /// The address of the leader of all shards; the node itself if there is none.
    leader: Mutex<Option<String>>,
    streams: AtomicUsize,
    direct_requests: AtomicUsize,
    /// The numbers of the writes that came in, in order.
    onces: Mutex<Vec<v1::Once>>,
    /// Keys whose requests are carried out and not yet answered.
    held: watch::Sender<BTreeSet<Bytes>>,
    /// Changes when the streams are to end.
    stops: watch::Sender<u32>,
}

impl Node {
    /// A node of the cluster that shares this store.
    pub fn of(store: &Arc<Store>) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), ..Self::default() })
    }

    /// Fails the next requests with these.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Status>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// How many requests have come in.
    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    /// How many of them were not to be forwarded.
    pub fn direct_requests(&self) -> usize {
        self.direct_requests.load(SeqCst)
    }

    /// How many pipelines were opened.
    pub fn streams(&self) -> usize {
        self.streams.load(SeqCst)
    }

    /// How often the routing table was asked for.
    pub fn routings(&self) -> usize {
        self.routings.load(SeqCst)
    }

    /// How many asked for it at the same time, at most.
    pub fn most_routings_at_once(&self) -> usize {
        self.most_routings_at_once.load(SeqCst)
    }

    /// The numbers of the writes that came in.
    pub fn onces(&self) -> Vec<v1::Once> {
        self.onces.lock().unwrap().clone()
    }

    /// Whether the node has the key.
    pub fn has(&self, key: &str) -> bool {
        self.store.has(key)
    }

    /// From now on says that one shard has all slots, led at `address`.
    pub fn route_all_to(&self, address: &str) {
        let shard = v1::ShardRoute {
            name: "shard_0".into(),
            slots: vec![v1::SlotRange { start: 0, end: SLOTS }],
            leader: "a node".into(),
            address: address.into(),
        };
        self.route(vec![shard]);
    }

    /// From now on says that these are the shards.
    pub fn route(&self, shards: Vec<v1::ShardRoute>) {
        let mut routing = self.routing.lock().unwrap();
        let version = routing.as_ref().map_or(1, |routing| routing.version + 1);
        *routing = Some(v1::RoutingResponse {
            cluster_id: "cluster".into(),
            version,
            slots: SLOTS,
            shards,
            unix_ms: CLUSTER_TIME_MS,
            nodes: Vec::new(),
        });
    }

    /// From now on the leader is at `address`; at `None` this node leads.
    pub fn follow(&self, address: Option<&str>) {
        *self.leader.lock().unwrap() = address.map(str::to_owned);
    }

    /// Carries requests for the key out, but answers them only when released.
    pub fn hold(&self, key: &str) {
        self.held.send_modify(|held| {
            held.insert(Bytes::copy_from_slice(key.as_bytes()));
        });
    }

    /// Answers the requests for the key.
    pub fn release(&self, key: &str) {
        self.held.send_modify(|held| {
            held.remove(key.as_bytes());
        });
    }

    fn begin(&self) -> Result<(), Status> {
        self.requests.fetch_add(1, SeqCst);
        match self.faults.lock().unwrap().pop_front() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// [`Node::begin`] for a request that may be for the leader only.
    fn begin_at(&self, direct: bool) -> Result<(), Status> {
        self.begin()?;
        if direct {
            self.direct_requests.fetch_add(1, SeqCst);
            if let Some(leader) = &*self.leader.lock().unwrap() {
                return Err(not_leader(leader));
            }
        }
        Ok(())
    }

    fn note(&self, once: Option<&v1::Once>) {
        self.onces.lock().unwrap().extend(once.copied());
    }

    /// Waits while the key is held.
    async fn until_released(&self, key: &Bytes) {
        let mut held = self.held.subscribe();
        // The sender is this node's own.
        let _ = held.wait_for(|held| !held.contains(key)).await;
    }
}

/// The clock that the nodes show.
pub const CLUSTER_TIME_MS: u64 = 5_000_000;

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

/// A request to a key that is never answered does not return from here.
async fn hang_on(key: &Bytes) {
    if *key == HANGING_KEY {
        pending::<()>().await;
    }
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
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let kv = KvServer::from_arc(node.clone()).max_decoding_message_size(72 << 20);
        let machine = StateMachineServer::new(services::Machine(node.clone()))
            .max_decoding_message_size(72 << 20);
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
        self.stop.send(()).unwrap();
        self.node.stops.send_modify(|stops| *stops += 1);
        self.task.await.unwrap();
        self.node
    }
}

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// An address where nothing listens.
pub async fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
