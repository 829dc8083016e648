//! No two replicas ever apply different entries at the same index, and what was
//! applied stays (Raft paper, figure 3).

use std::collections::BTreeMap;

use crate::{
    sim::machine::{Applied, SimMachine},
    types::{GroupId, Index, NodeId, Term},
};

#[derive(Default)]
pub(in crate::sim) struct StateMachineSafety {
    applied: BTreeMap<(GroupId, Index), (Term, Vec<u64>)>,
    /// The last entry of each replica that was looked at, and its place in the list.
    seen: BTreeMap<(NodeId, GroupId), usize>,
}

impl StateMachineSafety {
    pub(in crate::sim) fn check(&mut self, node: NodeId, group: GroupId, machine: &SimMachine) {
        let seen = self.seen.entry((node, group)).or_default();
        let applied = &mut self.applied;
        *seen = machine.with_applied(group, *seen, |new| {
            for (position, numbers) in new {
                let first = applied
                    .entry((group, position.index))
                    .or_insert_with(|| (position.term, numbers.clone()));
                assert!(
                    *first == (position.term, numbers.clone()),
                    "node {node} applied another entry at index {} of group {group}: \
                     {numbers:?} of term {} instead of {first:?}",
                    position.index,
                    position.term,
                );
            }
            *seen + new.len()
        });
    }

    /// A replica may hold less than before, or other data: all of it is looked at
    /// again.
    pub(in crate::sim) fn forget(&mut self, node: NodeId) {
        self.seen.retain(|(seen, _), _| *seen != node);
    }

    /// Everything that was applied, by any replica.
    pub(in crate::sim) fn all(&self, group: GroupId) -> impl Iterator<Item = Applied> {
        let all = (group, Index(0))..=(group, Index(u64::MAX));
        self.applied.range(all).map(|((_, index), (term, numbers))| {
            (crate::types::LogPosition { index: *index, term: *term }, numbers.clone())
        })
    }
}
