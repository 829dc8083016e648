//! At most one leader is elected in a term (Raft paper, figure 3).

use std::collections::BTreeMap;

use crate::{
    shared::{GroupStatus, Role},
    types::{GroupId, NodeId, Term},
};

#[derive(Default)]
pub(in crate::sim) struct ElectionSafety {
    leaders: BTreeMap<(GroupId, Term), NodeId>,
}

impl ElectionSafety {
    /// Leaders there were.
    pub(in crate::sim) fn count(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Returns whether the leader was not seen before.
    pub(in crate::sim) fn check(&mut self, node: NodeId, status: &GroupStatus) -> bool {
        if status.role != Role::Leader {
            return false;
        }
        let term = (status.group, status.term);
        let before = self.leaders.insert(term, node);
        assert!(
            before.is_none_or(|leader| leader == node),
            "two leaders of group {} in term {}: nodes {} and {node}",
            status.group,
            status.term,
            before.unwrap_or_default(),
        );
        before.is_none()
    }
}
