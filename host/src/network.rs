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
mod orders;
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
use parking_lot::{Mutex, RwLock};
use raft_kv_proto::v1;
use raft_lite::{
    Command, CommandOutcome, FetchReply, GroupId, MultiRaft, NodeId, RaftMessage, RequestError,
    Transport,
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::AbortHandle,
};
use tonic::transport::Channel;

pub use birth::{BirthError, Born, Founding, Introduction, Member, find_cluster};
pub use coalesce::Coalesced;
pub use fetch::Chunks;
use fetch::Pace;
pub use inbound::Answers;
pub use orders::{MetaCopies, ScannedPages, join_cluster};
use outbox::Outbox;
pub use wire::{error_to_wire, outcome_from_wire, outcome_to_wire};

use crate::storage::{SnapshotFolders, node_number};

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
    /// The number of this node's data folder.
    pub folder: u64,
    /// All other nodes, as far as known.
    pub peers: Vec<PeerConfig>,
    /// Where this node reaches others, if not at their addresses.
    pub detours: BTreeMap<String, String>,
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
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
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
    /// Keeps the connection.
    dialer: OnceLock<AbortHandle>,
    /// For orders; connects when it is used.
    channel: OnceLock<Channel>,
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
        let peer = |config: &PeerConfig| (config.number, Arc::new(Peer::new(config.clone())));
        let peers = RwLock::new(config.peers.iter().map(peer).collect());
        let snapshot_rate = config.snapshot_bytes_per_second;
        Arc::new(Network {
            config,
            peers,
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
        self.peers.read().values().for_each(|peer| self.dial(peer));
    }

    fn dial(&self, peer: &Arc<Peer>) {
        let hello = self.hello(&peer.config.node_id);
        let dialer = self.runtime.spawn(dial::keep_connected(Arc::clone(peer), hello));
        // Each is dialled once.
        let _ = peer.dialer.set(dialer.abort_handle());
    }

    /// Takes note of which other nodes there are, by their ids and addresses.
    pub fn set_nodes<'a>(&self, nodes: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut peers = self.peers.write();
        let mut gone = std::mem::take(&mut *peers);
        for (node, address) in nodes.filter(|(node, _)| *node != self.config.node_id) {
            let number = node_number(node);
            let known = gone.remove(&number);
            let peer = match known {
                Some(peer) if peer.config.address == address => peer,
                known => {
                    gone.extend(known.map(|peer| (number, peer)));
                    let dial = self.config.detours.get(node).map_or(address, String::as_str);
                    let (node_id, dial) = (node.to_owned(), dial.to_owned());
                    let config = PeerConfig { node_id, number, address: address.to_owned(), dial };
                    let peer = Arc::new(Peer::new(config));
                    if self.raft.get().is_some() {
                        self.dial(&peer);
                    }
                    peer
                }
            };
            peers.insert(number, peer);
        }
        drop(peers);
        gone.values().for_each(|peer| peer.hang_up("it is not a node of the cluster any more"));
    }

    /// Ends the calls of other nodes.
    pub fn hang_up(&self) {
        self.hung_up.send_replace(true);
    }

    /// Closes all connections. What waits for an answer is told so.
    pub fn stop(&self) {
        for peer in self.peers.read().values() {
            peer.hang_up("the node is stopping");
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
        let Some(peer) = self.peers.read().get(&to).cloned() else {
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
        Forwarding { receiver, place: Some((peer, id)) }
    }

    /// All other nodes.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let status = |peer: &Arc<Peer>| PeerStatus {
            node_id: peer.config.node_id.clone(),
            address: peer.config.address.clone(),
            connected: peer.connected.load(Ordering::Relaxed),
            dropped_messages: peer.outbox.dropped(),
        };
        self.peers.read().values().map(status).collect()
    }

    /// One of these nodes that there is a connection to.
    pub fn any_of(&self, nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
        let peers = self.peers.read();
        let is_connected = |node: &NodeId| {
            peers.get(node).is_some_and(|peer| peer.connected.load(Ordering::Relaxed))
        };
        let nodes: Vec<NodeId> = nodes.filter(is_connected).collect();
        (!nodes.is_empty()).then(|| nodes[rand::random_range(0..nodes.len())])
    }

    /// Some node that there is a connection to.
    pub fn any_peer(&self) -> Option<NodeId> {
        let nodes: Vec<NodeId> = self.peers.read().keys().copied().collect();
        self.any_of(nodes.into_iter())
    }

    /// Id and address of another node.
    pub fn peer(&self, number: NodeId) -> Option<PeerConfig> {
        self.peers.read().get(&number).map(|peer| peer.config.clone())
    }

    /// How long a replica waits for its leader, in milliseconds.
    pub fn election_timeout_ms(&self) -> u64 {
        self.config.election_timeout.as_millis() as u64
    }

    /// The number of this node's data folder.
    pub fn folder(&self) -> u64 {
        self.config.folder
    }
}

impl Transport for Network {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        if let Some(peer) = self.peers.read().get(&to) {
            peer.outbox.push_messages(messages);
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        self.peers.read().keys().copied().collect()
    }

    fn fetch_snapshot(&self, from: NodeId, group: GroupId, data: Bytes, reply: FetchReply) {
        let Some(peer) = self.peers.read().get(&from).cloned() else {
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
    fn new(config: PeerConfig) -> Self {
        Peer {
            config,
            outbox: Outbox::new(),
            connected: AtomicBool::new(false),
            next_request: AtomicU64::new(0),
            dialer: OnceLock::new(),
            channel: OnceLock::new(),
            waiting: Mutex::default(),
        }
    }

    /// Ends the connection for good.
    fn hang_up(&self, reason: &str) {
        if let Some(dialer) = self.dialer.get() {
            dialer.abort();
        }
        self.disconnect(reason);
    }

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
