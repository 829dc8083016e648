//! A network that loses, delays, reorders and duplicates, and can be cut. Data of
//! snapshots takes longer, and may not arrive at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use rand::{Rng, rngs::SmallRng};

use crate::{
    message::RaftMessage,
    transport::{FetchReply, Transport},
    types::{GroupId, NodeId},
};

/// A message that has left.
struct Travelling {
    arrives: Duration,
    from: NodeId,
    to: NodeId,
    bytes: Vec<u8>,
}

/// Data on its way.
struct Fetch {
    arrives: Duration,
    from: NodeId,
    to: NodeId,
    data: Bytes,
    reply: FetchReply,
}

/// Messages under way, encoded as they would be on a wire.
#[derive(Default)]
pub(super) struct Network {
    /// How many nodes there are.
    pub(super) nodes: u64,
    /// Messages sent so far that belong to a group.
    pub(super) sent_of_groups: u64,
    /// Bytes of messages sent so far to each node.
    pub(super) sent_bytes: BTreeMap<NodeId, usize>,
    /// Sent since messages were last delivered.
    sent: Vec<(NodeId, NodeId, Vec<u8>)>,
    asked: Vec<(NodeId, NodeId, Bytes, FetchReply)>,
    under_way: Vec<Travelling>,
    fetches: Vec<Fetch>,
    /// Directions that are cut: from, to.
    cut: BTreeSet<(NodeId, NodeId)>,
    pub(super) loss: f64,
    pub(super) duplication: f64,
    pub(super) most_delay: Duration,
}

impl Network {
    pub(super) fn new(nodes: u64) -> Self {
        Network { nodes, ..Default::default() }
    }

    /// Takes in what was sent and gives out what arrives by `now`, true time.
    pub(super) fn due(
        &mut self,
        now: Duration,
        rng: &mut SmallRng,
    ) -> Vec<(NodeId, NodeId, RaftMessage)> {
        for (from, to, bytes) in std::mem::take(&mut self.sent) {
            if self.cut.contains(&(from, to)) || rng.random_bool(self.loss) {
                continue;
            }
            let copies = if rng.random_bool(self.duplication) { 2 } else { 1 };
            for _ in 0..copies {
                let delay = self.most_delay.mul_f64(rng.random::<f64>());
                let bytes = bytes.clone();
                self.under_way.push(Travelling { arrives: now + delay, from, to, bytes });
            }
        }
        let (mut due, later): (Vec<Travelling>, _) =
            std::mem::take(&mut self.under_way).into_iter().partition(|m| m.arrives <= now);
        self.under_way = later;
        due.sort_by_key(|message| message.arrives);
        due.into_iter()
            .map(|m| (m.from, m.to, RaftMessage::decode(m.bytes.as_slice()).unwrap()))
            .collect()
    }

    /// Ends the fetches whose data arrives by `now`, or does not.
    pub(super) fn end_fetches(&mut self, now: Duration, rng: &mut SmallRng) {
        for (from, to, data, reply) in std::mem::take(&mut self.asked) {
            let arrives = now + 5 * self.most_delay.mul_f64(rng.random::<f64>());
            self.fetches.push(Fetch { arrives, from, to, data, reply });
        }
        let (due, later): (Vec<Fetch>, _) =
            std::mem::take(&mut self.fetches).into_iter().partition(|f| f.arrives <= now);
        self.fetches = later;
        for fetch in due {
            let is_cut = self.cut.contains(&(fetch.from, fetch.to));
            let result = match is_cut || rng.random_bool(self.loss) {
                true => Err("the connection broke".to_owned()),
                false => Ok(fetch.data),
            };
            (fetch.reply)(result);
        }
    }

    /// Loses what a node has just sent.
    pub(super) fn drop_sent_by(&mut self, node: NodeId) {
        self.sent.retain(|(from, ..)| *from != node);
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// Isolates a node in both directions.
    pub(super) fn isolate(&mut self, node: NodeId, others: impl Iterator<Item = NodeId>) {
        for other in others {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Mends what was cut.
    pub(super) fn mend(&mut self) {
        self.cut.clear();
    }

    /// Mends everything.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0.0;
        self.duplication = 0.0;
        self.most_delay = Duration::from_millis(1);
    }
}

/// A node's way into the network.
pub(super) struct SimTransport {
    from: NodeId,
    others: Vec<NodeId>,
    network: Arc<Mutex<Network>>,
}

impl SimTransport {
    pub(super) fn new(from: NodeId, network: Arc<Mutex<Network>>) -> Self {
        let nodes = network.lock().unwrap().nodes;
        let others = (1..=nodes).map(NodeId).filter(|node| *node != from).collect();
        SimTransport { from, others, network }
    }
}

impl Transport for SimTransport {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        let mut network = self.network.lock().unwrap();
        for message in messages {
            network.sent_of_groups += u64::from(message.life().is_none());
            *network.sent_bytes.entry(to).or_default() += message.size();
            network.sent.push((self.from, to, message.encode_to_vec()));
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        self.others.clone()
    }

    fn fetch_snapshot(&self, from: NodeId, _group: GroupId, data: Bytes, reply: FetchReply) {
        self.network.lock().unwrap().asked.push((from, self.from, data, reply));
    }
}
