//! What one replica knows to be committed at an index, every other that commits it
//! knows, too, and for ever (Raft paper, section 5.4).

use std::collections::BTreeMap;

use crate::{
    shared::GroupStatus,
    sim::log::SimLog,
    types::{GroupId, Index, NodeId, ReplicaId, Term},
};

#[derive(Default)]
pub(in crate::sim) struct CommittedStays {
    pub(super) terms: BTreeMap<(GroupId, Index), Term>,
    /// Up to where each replica was looked at.
    seen: BTreeMap<(NodeId, GroupId, ReplicaId), Index>,
}

impl CommittedStays {
    pub(in crate::sim) fn check(&mut self, node: NodeId, status: &GroupStatus, log: &SimLog) {
        let replica = (node, status.group, status.replica);
        let seen = self.seen.entry(replica).or_default();
        if status.commit <= *seen {
            return;
        }
        for index in (seen.0 + 1..=status.commit.0).map(Index) {
            // Truncated entries were looked at, or came as a snapshot.
            let Some(term) = log.term_at(status.group, index) else { continue };
            let first = *self.terms.entry((status.group, index)).or_insert(term);
            assert_eq!(
                first, term,
                "node {node} committed another entry at index {index} of group {}",
                status.group
            );
        }
        *seen = status.commit;
    }
}
