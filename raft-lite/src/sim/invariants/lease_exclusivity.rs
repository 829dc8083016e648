//! While a replica may answer reads by its lease, no other may, and none leads in a
//! later term (Raft dissertation, section 6.4.1).

use std::collections::BTreeMap;

use crate::{
    shared::{GroupStatus, Role},
    types::{GroupId, NodeId, Term},
};

#[derive(Default)]
pub(in crate::sim) struct LeaseExclusivity {
    /// Of the present moment: who holds a lease, and the newest leader.
    holders: BTreeMap<GroupId, (NodeId, Term)>,
    leaders: BTreeMap<GroupId, (NodeId, Term)>,
}

impl LeaseExclusivity {
    /// A node's view of a group now; `holds` if it would answer a read by its lease.
    pub(in crate::sim) fn note(&mut self, node: NodeId, status: &GroupStatus, holds: bool) {
        let (group, term) = (status.group, status.term);
        if status.role == Role::Leader {
            let newest = self.leaders.entry(group).or_insert((node, term));
            if term > newest.1 {
                *newest = (node, term);
            }
        }
        if holds {
            let other = self.holders.insert(group, (node, term));
            assert!(
                other.is_none(),
                "nodes {} and {node} both hold a lease of group {group}",
                other.unwrap_or_default().0
            );
        }
    }

    /// All nodes were looked at.
    pub(in crate::sim) fn check(&mut self) {
        for (group, (holder, term)) in std::mem::take(&mut self.holders) {
            if let Some((leader, newest)) = self.leaders.get(&group) {
                assert!(
                    *newest <= term,
                    "node {holder} holds a lease of group {group} in term {term}, but node \
                     {leader} leads in term {newest}"
                );
            }
        }
        self.leaders.clear();
    }
}
