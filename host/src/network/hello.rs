//! Who may talk to whom.

use raft_kv_proto::v1::Hello;
use raft_lite::NodeId;

use super::{Network, PROTOCOL};

/// Why a node is not talked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// It speaks another version of the protocol.
    #[error(
        "node {from} speaks version {found} of the protocol between nodes, this node {me} version \
         {PROTOCOL}: run the same version of RaftKV on both"
    )]
    Protocol {
        /// The other node.
        from: String,
        /// This node.
        me: String,
        /// Its version.
        found: u32,
    },
    /// It belongs to another cluster.
    #[error(
        "node {from} belongs to cluster {found}, this node {me} to cluster {mine}: one of them has \
         the wrong data folder or the wrong address"
    )]
    Cluster {
        /// The other node.
        from: String,
        /// This node.
        me: String,
        /// Its cluster.
        found: String,
        /// This node's cluster.
        mine: String,
    },
    /// It looks for somebody else.
    #[error("node {from} looks for node {to}, but this is node {me}: is the address right?")]
    Recipient {
        /// The other node.
        from: String,
        /// Whom it looks for.
        to: String,
        /// This node.
        me: String,
    },
    /// It is not a node of the cluster.
    #[error("node {from} is not a node of this cluster")]
    Unknown {
        /// The other node.
        from: String,
    },
    /// Its elections take another time.
    #[error(
        "node {from} has an election timeout of {found} ms, this node {me} of {mine} ms: give all \
         nodes the same tick-ms and election-ticks"
    )]
    ElectionTimeout {
        /// The other node.
        from: String,
        /// This node.
        me: String,
        /// Its election timeout.
        found: u64,
        /// This node's.
        mine: u64,
    },
}

impl Network {
    /// Checks how a call from another node begins. Returns who calls.
    pub(super) fn check_hello(&self, hello: &Hello) -> Result<NodeId, Refused> {
        let (from, me) = (hello.from.clone(), self.config.node_id.clone());
        let mine = self.hello("");
        if hello.protocol != mine.protocol {
            return Err(Refused::Protocol { from, me, found: hello.protocol });
        }
        if hello.cluster_id != mine.cluster_id {
            let (found, mine) = (hello.cluster_id.clone(), mine.cluster_id);
            return Err(Refused::Cluster { from, me, found, mine });
        }
        if hello.to != me {
            return Err(Refused::Recipient { from, to: hello.to.clone(), me });
        }
        if hello.election_timeout_ms != mine.election_timeout_ms {
            let (found, mine) = (hello.election_timeout_ms, mine.election_timeout_ms);
            return Err(Refused::ElectionTimeout { from, me, found, mine });
        }
        let peers = self.peers.read();
        match peers.values().find(|peer| peer.config.node_id == from) {
            Some(peer) => Ok(peer.config.number),
            None => Err(Refused::Unknown { from }),
        }
    }
}
