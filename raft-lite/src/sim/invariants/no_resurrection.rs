//! A replica that was destroyed is never there again: it would not know what it
//! voted for and acknowledged (TiKV keeps tombstones for that).

use std::collections::BTreeMap;

use crate::types::{GroupId, NodeId, ReplicaId};

#[derive(Default)]
pub(in crate::sim) struct NoResurrection {
    /// The replica last seen on each node, and whether it is still there.
    seen: BTreeMap<(NodeId, GroupId), (ReplicaId, bool)>,
}

impl NoResurrection {
    pub(in crate::sim) fn check(
        &mut self,
        node: NodeId,
        group: GroupId,
        replica: Option<ReplicaId>,
    ) {
        let Some(replica) = replica else {
            if let Some((_, is_there)) = self.seen.get_mut(&(node, group)) {
                *is_there = false;
            }
            return;
        };
        let before = self.seen.insert((node, group), (replica, true));
        if let Some((last, was_there)) = before {
            let is_fresh = replica > last || (replica == last && was_there);
            assert!(
                is_fresh,
                "node {node} has replica {replica} of group {group} again, after {last} was destroyed"
            );
        }
    }
}
