//! No two replicas of a node own the same slot: they would share its data (`DESIGN.md`,
//! section 3; TiKV keeps the same for overlapping regions, tikv#6460).

use std::collections::BTreeMap;

use crate::{
    sim::machine::{SimMachine, Slot},
    types::{GroupId, NodeId},
};

/// To be called when a replica came or went, or a slot changed hands.
pub(in crate::sim) fn check_local_ownership(node: NodeId, machine: &SimMachine) {
    let mut owners: BTreeMap<Slot, GroupId> = BTreeMap::new();
    for (group, _) in machine.replicas() {
        for slot in machine.with_record(group, |record| record.slots.clone()).unwrap_or_default() {
            let other = owners.insert(slot, group);
            assert!(
                other.is_none(),
                "node {node} has two owners of slot {slot}: groups {} and {group}",
                other.unwrap_or_default()
            );
        }
    }
}
