//! Snapshots: how a replica that is new, or too far behind for the log, gets the
//! group's state.
//!
//! The leader's message only describes a snapshot. The data is fetched apart, by
//! way of [`Transport::fetch_snapshot`](crate::Transport::fetch_snapshot), while
//! the replica goes on as it is. Once all of it is there, the replica is taken out
//! of service, the state machine installs the data, the log begins anew after the
//! snapshot, and the replica starts as it would after a restart: installing a
//! snapshot is no protocol of its own.
//!
//! A snapshot is installed only if the replica's log does not hold its last entry:
//! what a replica has acknowledged is never dropped.

use bytes::Bytes;
use prost::Message;
use raft::eraftpb;

use crate::{
    membership::{Membership, WireMembership},
    types::{Index, LogPosition, Term},
};

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry it covers.
    pub position: LogPosition,
    /// The group's members then.
    pub membership: Membership,
    /// The state machine's own description of the data: what it needs to fetch it.
    pub data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct WireMeta {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(message, optional, tag = "3")]
    membership: Option<WireMembership>,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

impl SnapshotMeta {
    pub(crate) fn encode(&self) -> Bytes {
        let meta = WireMeta {
            index: self.position.index.0,
            term: self.position.term.0,
            membership: Some(WireMembership::from(&self.membership)),
            data: self.data.clone(),
        };
        meta.encode_to_vec().into()
    }

    /// `None` if the bytes describe no snapshot.
    pub(crate) fn decode(bytes: Bytes) -> Option<Self> {
        let meta = WireMeta::decode(bytes).ok()?;
        let position = LogPosition { index: Index(meta.index), term: Term(meta.term) };
        let membership = Membership::from(meta.membership?);
        let is_one = meta.index > 0 && meta.term > 0 && !membership.voters.is_empty();
        is_one.then_some(SnapshotMeta { position, membership, data: meta.data })
    }

    /// The snapshot as `raft` knows it.
    pub(crate) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut snapshot = eraftpb::Snapshot { data: self.encode(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.position.index.0;
        metadata.term = self.position.term.0;
        metadata.set_conf_state(self.membership.conf_state());
        snapshot
    }
}
