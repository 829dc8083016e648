//! Which other nodes are alive, as far as their signs of life tell.
//!
//! A node tells each other one, for all groups at once, that it is alive and which of
//! its starts it is: that stands in for the heartbeats of the groups that sleep
//! (`group/quiescence.rs`). Silence is counted in this node's own ticks, so that a
//! node which stood still does not take the others for dead.
//!
//! It also tells whether its disk is nearly full. As long as that of any member of a
//! group is, the leader takes nothing that needs space: what it took, all would have
//! to store.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::RwLock;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{message::RaftMessage, types::NodeId};

/// A node that was never heard of has been silent for so long.
const FOR_EVER: usize = usize::MAX;

/// What all workers of a node know of the other nodes.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Tells this start of this node from its others.
    start: u64,
    /// Ticks of silence after which a node counts as dead.
    dead_after_ticks: usize,
    /// This node's disk is nearly full.
    disk_full: AtomicBool,
    /// Some node's disk is, this one's or another's.
    any_disk_full: AtomicBool,
    peers: RwLock<BTreeMap<NodeId, PeerLife>>,
}

/// What is known of another node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerLife {
    /// Ticks since it was last heard.
    pub(crate) silent_ticks: usize,
    /// The start it said it was.
    pub(crate) start: u64,
    /// Whether it said that its disk is nearly full.
    pub(crate) disk_full: bool,
}

impl Liveness {
    pub(crate) fn new(seed: u64, dead_after_ticks: usize) -> Self {
        Liveness {
            dead_after_ticks,
            start: SmallRng::seed_from_u64(seed).random(),
            disk_full: AtomicBool::new(false),
            any_disk_full: AtomicBool::new(false),
            peers: RwLock::default(),
        }
    }

    /// What this node tells the others.
    pub(crate) fn sign(&self) -> RaftMessage {
        RaftMessage::sign_of_life(self.start, self.disk_full.load(Ordering::Relaxed))
    }

    /// A tick passes.
    pub(crate) fn tick(&self) {
        for peer in self.peers.write().values_mut() {
            peer.silent_ticks = peer.silent_ticks.saturating_add(1);
        }
    }

    /// A node said that it is alive, which of its starts it is, and whether its disk is
    /// nearly full.
    pub(crate) fn heard(&self, node: NodeId, (start, disk_full): (u64, bool)) {
        let mut peers = self.peers.write();
        peers.insert(node, PeerLife { silent_ticks: 0, start, disk_full });
        self.look_at_disks(&peers);
    }

    /// Notes whether this node's disk is nearly full.
    pub(crate) fn set_disk_full(&self, disk_full: bool) {
        self.disk_full.store(disk_full, Ordering::Relaxed);
        self.look_at_disks(&self.peers.read());
    }

    fn look_at_disks(&self, peers: &BTreeMap<NodeId, PeerLife>) {
        let own = self.disk_full.load(Ordering::Relaxed);
        let any = own || peers.values().any(|peer| peer.disk_full);
        self.any_disk_full.store(any, Ordering::Relaxed);
    }

    /// Whether this node's disk is nearly full.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    /// Whether a node has been silent for so long that it counts as dead.
    pub(crate) fn is_dead(&self, peer: &PeerLife) -> bool {
        peer.silent_ticks >= self.dead_after_ticks
    }

    /// One of these nodes whose disk is nearly full; `own` is this one. One that is dead
    /// keeps nobody from writing: it is told no more than a dead one would be.
    pub(crate) fn full_disk(
        &self,
        own: NodeId,
        nodes: impl FnOnce() -> Vec<NodeId>,
    ) -> Option<NodeId> {
        if !self.any_disk_full.load(Ordering::Relaxed) {
            return None;
        }
        let peers = self.peers.read();
        let is_full = |node: &NodeId| match peers.get(node) {
            _ if *node == own => self.disk_full.load(Ordering::Relaxed),
            peer => peer.is_some_and(|peer| peer.disk_full && !self.is_dead(peer)),
        };
        nodes().into_iter().find(is_full)
    }

    /// Ticks since a node was last heard.
    pub(crate) fn silence(&self, node: NodeId) -> usize {
        self.peers.read().get(&node).map_or(FOR_EVER, |peer| peer.silent_ticks)
    }

    /// All nodes that were ever heard.
    pub(crate) fn peers(&self) -> BTreeMap<NodeId, PeerLife> {
        self.peers.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn full_disk(liveness: &Liveness) -> Option<NodeId> {
        liveness.full_disk(OWN, || vec![OWN, OTHER])
    }

    #[test]
    fn a_full_disk_counts_as_long_as_its_node_lives() {
        let liveness = Liveness::new(7, 10);
        liveness.heard(OTHER, (1, true));
        assert_eq!(full_disk(&liveness), Some(OTHER));
        (0..9).for_each(|_| liveness.tick());
        assert_eq!(full_disk(&liveness), Some(OTHER));
        liveness.tick();
        assert_eq!(full_disk(&liveness), None, "the dead keep nobody from writing");
        liveness.heard(OTHER, (2, true));
        assert_eq!(full_disk(&liveness), Some(OTHER));
        liveness.heard(OTHER, (2, false));
        assert_eq!(full_disk(&liveness), None);
        liveness.set_disk_full(true);
        assert_eq!(full_disk(&liveness), Some(OWN));
    }

    #[test]
    fn nodes_never_heard_of_are_silent() {
        let liveness = Liveness::new(7, 10);
        assert_eq!(liveness.silence(OTHER), FOR_EVER);
        liveness.heard(OTHER, (1, false));
        liveness.tick();
        assert_eq!(liveness.silence(OTHER), 1);
    }
}
