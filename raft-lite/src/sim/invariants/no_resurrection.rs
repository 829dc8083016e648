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
    /// To be called with all replicas of a node when one came or went.
    pub(in crate::sim) fn check(&mut self, node: NodeId, replicas: &[(GroupId, ReplicaId)]) {
        for (group, replica) in replicas {
            let before = self.seen.insert((node, *group), (*replica, true));
            if let Some((last, was_there)) = before {
                let is_fresh = *replica > last || (*replica == last && was_there);
                assert!(
                    is_fresh,
                    "node {node} has replica {replica} of group {group} again, after {last} was \
                     destroyed"
                );
            }
        }
        for ((on, group), (last, is_there)) in &mut self.seen {
            *is_there &= *on != node || replicas.contains(&(*group, *last));
        }
    }
}
