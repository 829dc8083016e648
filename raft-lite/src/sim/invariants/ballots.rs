//! The term on disk never goes back, and within a term the vote never changes: else
//! a replica could vote twice (Raft paper, section 5.2).

use std::collections::BTreeMap;

use crate::{
    log_store::LogState,
    types::{GroupId, HardState, NodeId, ReplicaId},
};

#[derive(Default)]
pub(in crate::sim) struct Ballots {
    last: BTreeMap<(NodeId, GroupId, Option<ReplicaId>), HardState>,
}

impl Ballots {
    /// `replica` is the one that is here; a node may have voted for one that is not.
    pub(in crate::sim) fn check(
        &mut self,
        node: NodeId,
        group: GroupId,
        replica: Option<ReplicaId>,
        state: &LogState,
    ) {
        let now = state.hard_state;
        let voted = replica.and_then(|_| self.last.remove(&(node, group, None)));
        let first = voted.unwrap_or(now);
        let before = self.last.entry((node, group, replica)).or_insert(first);
        let vote_stays = now.term > before.term || before.vote.is_none() || before.vote == now.vote;
        assert!(
            now.term >= before.term && vote_stays,
            "node {node} forgot its vote in group {group}: {before:?}, then {now:?}"
        );
        *before = now;
    }
}
