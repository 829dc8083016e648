//! Which other nodes are alive, as far as their signs of life tell.
//!
//! A node tells each other one, for all groups at once, that it is alive and which of
//! its starts it is: that stands in for the heartbeats of the groups that sleep
//! (`group/quiescence.rs`). Silence is counted in this node's own ticks, so that a
//! node which stood still does not take the others for dead.

use std::collections::BTreeMap;

use parking_lot::RwLock;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::types::NodeId;

/// A node that was never heard of has been silent for so long.
const FOR_EVER: usize = usize::MAX;

/// What all workers of a node know of the other nodes.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Tells this start of this node from its others.
    start: u64,
    peers: RwLock<BTreeMap<NodeId, PeerLife>>,
}

/// What is known of another node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerLife {
    /// Ticks since it was last heard.
    pub(crate) silent_ticks: usize,
    /// The start it said it was.
    pub(crate) start: u64,
}

impl Liveness {
    pub(crate) fn new(seed: u64) -> Self {
        Liveness { start: SmallRng::seed_from_u64(seed).random(), peers: RwLock::default() }
    }

    /// Which start of this node it is.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// A tick passes.
    pub(crate) fn tick(&self) {
        for peer in self.peers.write().values_mut() {
            peer.silent_ticks = peer.silent_ticks.saturating_add(1);
        }
    }

    /// A node said that it is alive, and which of its starts it is.
    pub(crate) fn heard(&self, node: NodeId, start: u64) {
        self.peers.write().insert(node, PeerLife { silent_ticks: 0, start });
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
