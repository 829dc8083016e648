//! A merge that was cancelled in the target's log is never carried out after: its source
//! goes on by itself as soon as it was (`DESIGN.md`, section 5; tikv#8034 is what happens
//! otherwise).

use std::collections::BTreeMap;

use crate::{sim::machine::Change, types::Index};

#[derive(Default)]
pub(in crate::sim) struct CancelIsFinal {
    /// Where the target's log has each operation's first cancel, and its absorb.
    cancelled: BTreeMap<u64, Index>,
    absorbed: BTreeMap<u64, Index>,
}

impl CancelIsFinal {
    /// A change took effect at an index of its group's log.
    pub(in crate::sim) fn check(&mut self, at: Index, change: &Change) {
        let operation = match change {
            Change::Cancel { operation } => {
                let first = self.cancelled.entry(*operation).or_insert(at);
                *first = at.min(*first);
                operation
            }
            Change::Absorb { operation, .. } => {
                let first = *self.absorbed.entry(*operation).or_insert(at);
                assert_eq!(first, at, "operation {operation} absorbs twice");
                operation
            }
            _ => return,
        };
        let both = (self.cancelled.get(operation), self.absorbed.get(operation));
        if let (Some(cancelled), Some(absorbed)) = both {
            panic!(
                "operation {operation} was cancelled at {cancelled} and carried out at {absorbed}"
            );
        }
    }

    /// Whether a cancel of the operation took effect.
    pub(in crate::sim) fn is_cancelled(&self, operation: u64) -> bool {
        self.cancelled.contains_key(&operation)
    }

    /// Whether its absorb did, on some replica.
    pub(in crate::sim) fn is_absorbed(&self, operation: u64) -> bool {
        self.absorbed.contains_key(&operation)
    }
}
