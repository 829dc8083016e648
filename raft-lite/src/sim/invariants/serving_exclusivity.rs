//! Of all replicas in the cluster one at most would answer a read of a slot by its lease:
//! else one of them does not see what another acknowledged. For a split that means that
//! the parent's leader has given the slots up before the child's serves them, and for a
//! merge that every replica of the source was frozen before (CockroachDB, "Range merges",
//! section "Subsumption").

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    sim::machine::Slot,
    types::{GroupId, NodeId},
};

#[derive(Default)]
pub(in crate::sim) struct ServingExclusivity {
    /// Who would serve a slot now.
    servers: BTreeMap<Slot, (NodeId, GroupId)>,
}

impl ServingExclusivity {
    /// A node would answer reads of these slots through a group, right now.
    pub(in crate::sim) fn note(&mut self, node: NodeId, group: GroupId, slots: &BTreeSet<Slot>) {
        for slot in slots {
            let other = self.servers.insert(*slot, (node, group));
            assert!(
                other.is_none(),
                "slot {slot} would be served by {:?} and by {:?}",
                other.unwrap_or_default(),
                (node, group)
            );
        }
    }

    /// All nodes were looked at.
    pub(in crate::sim) fn end(&mut self) {
        self.servers.clear();
    }
}
