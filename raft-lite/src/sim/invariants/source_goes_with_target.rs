//! A source of a merge is destroyed only after its node's replica of the target has
//! absorbed it, or has gone for good: else the target, which has yet to apply the
//! absorb there, would not find the data (`DESIGN.md`, section 5; CockroachDB, "Range
//! merges", keeps the right-hand replica for the same reason).

use super::CancelIsFinal;
use crate::{
    sim::machine::{Merge, Record, SimMachine},
    types::{GroupId, NodeId},
};

impl CancelIsFinal {
    /// A replica was destroyed, other than by an absorb; `record` is what it was.
    pub(in crate::sim) fn check_destroyed(
        &self,
        (node, machine): (NodeId, &SimMachine),
        group: GroupId,
        record: &Record,
    ) {
        let Merge::Frozen { operation, target, .. } = record.merge else { return };
        // One that lags behind may not know that it goes on.
        if self.is_cancelled(operation) {
            return;
        }
        assert!(
            self.is_absorbed(operation),
            "node {node} destroyed group {group}, which waits for group {target} to absorb it"
        );
        let has_absorbed =
            machine.with_record(target, |target| target.absorbed.contains_key(&group));
        assert!(
            has_absorbed != Some(false),
            "node {node} destroyed group {group}, which its group {target} has yet to absorb"
        );
    }
}
