//! The nodes' network: one gRPC call from each node to each other one, over which
//! everything between the two goes.
//!
//! On its own call a node sends its Raft messages, of all groups in batches, and
//! the commands it forwards; the answers to those come back on the same call. The
//! other node's Raft messages come on the call that the other node made.
//!
//! - What waits for a node is bounded by its bytes ([`outbox`]). Raft messages
//!   that find no room, or no connection, are dropped: Raft sends them again.
//! - Small messages leave before the large appends that wait.
//! - Each call begins with a hello of both sides. Who speaks another version of
//!   the protocol, belongs to another cluster, is not who it was thought to be, or
//!   measures elections differently, is refused with the reason.
//! - A broken connection is made anew, with growing pauses.

mod birth;
mod coalesce;
mod dial;
mod fetch;
mod hello;
mod inbound;
mod outbox;
mod wire;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use raft_kv_proto::v1;
use raft_lite::{
    Command, CommandOutcome, FetchReply, GroupId, MultiRaft, NodeId, RaftMessage, RequestError,
    Transport,
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::{AbortHandle, JoinSet},
};

pub use birth::{BirthError, Born, Founding, Introduction, Member, find_cluster};
pub use coalesce::Coalesced;
pub use fetch::Chunks;
use fetch::Pace;
pub use inbound::Answers;
use outbox::Outbox;

use crate::storage::SnapshotFolders;

/// Version of what nodes say to each other; only equals talk.
pub const PROTOCOL: u32 = 1;

/// Above the largest frame: a log entry may be as large as a request.
pub const MAX_FRAME_BYTES: usize = 256 << 20;

/// What is known of this node's cluster.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// This node's id.
    pub node_id: String,
    /// The cluster's id.
    pub cluster_id: String,
    /// How long a replica waits for its leader: leases are safe only if it is the
    /// same on all nodes.
    pub election_timeout: Duration,
    /// Bytes of snapshots that this node sends in a second, to all others together.
    pub snapshot_bytes_per_second: u64,
    /// All other nodes.
    pub peers: Vec<PeerConfig>,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its id.
    pub node_id: String,
    /// The number that raft-lite knows it by.
    pub number: NodeId,
    /// `host:port` that clients reach it at.
    pub address: String,
    /// `host:port` that this node reaches it at.
    pub dial: String,
}

/// Outcomes of a forwarded proposal, one for each command.
pub type Forwarded = Result<Vec<CommandOutcome>, RequestError>;

/// This node's connections to all others.
pub struct Network {
    config: NetworkConfig,
    peers: BTreeMap<NodeId, Arc<Peer>>,
    dialers: Mutex<Vec<AbortHandle>>,
    /// Where what comes in goes; set once the groups run.
    raft: OnceLock<Arc<MultiRaft>>,
    /// Whether the others' calls are to end.
    hung_up: watch::Sender<bool>,
    /// Where snapshots are, and how fast they are sent.
    snapshots: Arc<SnapshotFolders>,
    pace: Pace,
    runtime: Handle,
}

/// The way to one other node.
struct Peer {
    config: PeerConfig,
    outbox: Outbox,
    connected: AtomicBool,
    next_request: AtomicU64,
    /// Forwarded proposals that were not answered yet.
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Forwarded>>>,
}

/// What an operator may want to know of the way to another node.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The node's id.
    pub node_id: String,
    /// `host:port` that clients reach it at.
    pub address: String,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Raft messages dropped because there was no room or no connection.
    pub dropped_messages: u64,
}

impl Network {
    /// The network of a node, not connected to anyone yet. To be called within
    /// tokio's runtime.
    pub fn new(config: NetworkConfig, snapshots: Arc<SnapshotFolders>) -> Arc<Self> {
        let peer = |config: &PeerConfig| {
            let peer = Peer {
                config: config.clone(),
                outbox: Outbox::new(),
                connected: AtomicBool::new(false),
                next_request: AtomicU64::new(0),
                waiting: Mutex::default(),
            };
            (config.number, Arc::new(peer))
        };
        let peers = config.peers.iter().map(peer).collect();
        let snapshot_rate = config.snapshot_bytes_per_second;
        Arc::new(Network {
            config,
            peers,
            dialers: Mutex::default(),
            raft: OnceLock::new(),
            hung_up: watch::Sender::new(false),
            snapshots,
            pace: Pace::new(snapshot_rate),
            runtime: Handle::current(),
        })
    }

    /// Begins to connect to the others, and to hand what they send to `raft`.
    pub fn start(self: &Arc<Self>, raft: Arc<MultiRaft>) {
        if self.raft.set(raft).is_err() {
            return;
        }
        let mut dialers = JoinSet::new();
        for peer in self.peers.values() {
            let hello = self.hello(&peer.config.node_id);
            let handle = dialers.spawn(dial::keep_connected(Arc::clone(peer), hello));
            self.dialers.lock().push(handle);
        }
        dialers.detach_all();
    }

    /// Ends the calls of other nodes.
    pub fn hang_up(&self) {
        self.hung_up.send_replace(true);
    }

    /// Closes all connections. What waits for an answer is told so.
    pub fn stop(&self) {
        for dialer in self.dialers.lock().drain(..) {
            dialer.abort();
        }
        for peer in self.peers.values() {
            peer.disconnect("the node is stopping");
        }
    }

    /// Commands for a group that another node leads. The answer is an error if the
    /// node does not lead it, or can not be reached.
    pub fn forward(
        &self,
        to: NodeId,
        group: GroupId,
        commands: &[Command],
        makes_room: bool,
    ) -> Forwarding {
        let (sender, receiver) = oneshot::channel();
        let Some(peer) = self.peers.get(&to) else {
            let reason = "its leader is not a node of the cluster".to_owned();
            let _ = sender.send(Err(RequestError::Unavailable(reason)));
            return Forwarding { receiver, place: None };
        };
        let id = peer.next_request.fetch_add(1, Ordering::Relaxed);
        let request = wire::forward_request(id, group, commands, makes_room);
        peer.waiting.lock().insert(id, sender);
        if let Err(error) = peer.outbox.push_request(request) {
            peer.answer(id, Err(error.of_request(&peer.config.node_id)));
        }
        Forwarding { receiver, place: Some((Arc::clone(peer), id)) }
    }

    /// All other nodes.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> + '_ {
        self.peers.values().map(|peer| PeerStatus {
            node_id: peer.config.node_id.clone(),
            address: peer.config.address.clone(),
            connected: peer.connected.load(Ordering::Relaxed),
            dropped_messages: peer.outbox.dropped(),
        })
    }

    /// Some node that there is a connection to.
    pub fn any_peer(&self) -> Option<NodeId> {
        let connected = self.peers.values().filter(|p| p.connected.load(Ordering::Relaxed));
        let peers: Vec<NodeId> = connected.map(|peer| peer.config.number).collect();
        (!peers.is_empty()).then(|| peers[rand::random_range(0..peers.len())])
    }

    /// Id and address of another node.
    pub fn peer(&self, number: NodeId) -> Option<&PeerConfig> {
        self.peers.get(&number).map(|peer| &peer.config)
    }
}

impl Transport for Network {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        if let Some(peer) = self.peers.get(&to) {
            peer.outbox.push_messages(messages);
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        self.peers.keys().copied().collect()
    }

    fn fetch_snapshot(&self, from: NodeId, group: GroupId, data: Bytes, reply: FetchReply) {
        let Some(peer) = self.peers.get(&from).map(Arc::clone) else {
            // Not on this thread: it is the one that waits for the reply.
            let failed = Err("it comes from a node that is not of the cluster".to_owned());
            drop(self.runtime.spawn_blocking(move || reply(failed)));
            return;
        };
        let hello = self.hello(&peer.config.node_id);
        let folders = Arc::clone(&self.snapshots);
        self.runtime.spawn(async move {
            let fetched = fetch::fetch(&peer.config, hello, &folders, group, data).await;
            // It may have to wait for room.
            drop(tokio::task::spawn_blocking(move || reply(fetched)).await);
        });
    }
}

impl Peer {
    fn answer(&self, id: u64, result: Forwarded) {
        if let Some(waiting) = self.waiting.lock().remove(&id) {
            // The caller may have given up.
            let _ = waiting.send(result);
        }
    }

    /// Drops what waits to be sent, and answers what waits for answers.
    fn disconnect(&self, reason: &str) {
        self.connected.store(false, Ordering::Relaxed);
        let node = &self.config.node_id;
        for request in self.outbox.close() {
            // It never left.
            let reason = format!("there is no connection to its leader {node}: {reason}");
            self.answer(request.id, Err(RequestError::Unavailable(reason)));
        }
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for sender in waiting.into_values() {
            let reason = format!("the connection to the leader {node} broke: {reason}");
            // The caller may have given up.
            let _ = sender.send(Err(RequestError::OutcomeUnknown(reason)));
        }
    }
}

/// The answer to come of a forwarded proposal. Dropping it forgets the answer.
pub struct Forwarding {
    receiver: oneshot::Receiver<Forwarded>,
    place: Option<(Arc<Peer>, u64)>,
}

impl Forwarding {
    /// Waits for the answer.
    pub async fn outcome(mut self) -> Forwarded {
        (&mut self.receiver).await.unwrap_or(Err(RequestError::Stopping))
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if let Some((peer, id)) = &self.place {
            peer.waiting.lock().remove(id);
        }
    }
}

impl Network {
    fn hello(&self, to: &str) -> v1::Hello {
        v1::Hello {
            protocol: PROTOCOL,
            cluster_id: self.config.cluster_id.clone(),
            from: self.config.node_id.clone(),
            to: to.to_owned(),
            election_timeout_ms: self.config.election_timeout.as_millis() as u64,
        }
    }
}
