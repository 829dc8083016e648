//! The term on disk never goes back, and within a term the vote never changes: else
//! a replica could vote twice (Raft paper, section 5.2).

use std::collections::BTreeMap;

use crate::{
    log_store::LogState,
    types::{GroupId, HardState, NodeId, ReplicaId},
};

#[derive(Default)]
pub(in crate::sim) struct Ballots {
    last: BTreeMap<(NodeId, GroupId, ReplicaId), HardState>,
}

impl Ballots {
    pub(in crate::sim) fn check(
        &mut self,
        node: NodeId,
        group: GroupId,
        replica: ReplicaId,
        state: &LogState,
    ) {
        let now = state.hard_state;
        let before = self.last.entry((node, group, replica)).or_insert(now);
        let vote_stays = now.term > before.term || before.vote.is_none() || before.vote == now.vote;
        assert!(
            now.term >= before.term && vote_stays,
            "node {node} forgot its vote in group {group}: {before:?}, then {now:?}"
        );
        *before = now;
    }
}
