//! What must hold after every step.

use std::collections::BTreeMap;

use super::machine::SimMachine;
use crate::{
    log_store::LogState,
    shared::{GroupStatus, Role},
    types::{GroupId, HardState, Index, NodeId, Term},
};

#[derive(Default)]
pub(super) struct Invariants {
    leaders: BTreeMap<(GroupId, Term), NodeId>,
    applied: BTreeMap<(GroupId, Index), (Term, Vec<u64>)>,
    checked: BTreeMap<(NodeId, GroupId), usize>,
    ballots: BTreeMap<(NodeId, GroupId), HardState>,
}

impl Invariants {
    /// Election safety: at most one leader is elected in a term (Raft paper,
    /// figure 3).
    pub(super) fn one_leader_a_term(&mut self, seed: u64, node: NodeId, status: &GroupStatus) {
        if status.role != Role::Leader {
            return;
        }
        let leader = *self.leaders.entry((status.group, status.term)).or_insert(node);
        assert_eq!(
            leader, node,
            "seed {seed}: two leaders of group {} in term {}",
            status.group, status.term
        );
    }

    /// State machine safety: no two replicas ever apply different entries at the
    /// same index, and what was applied stays (Raft paper, figure 3).
    pub(super) fn applied_entries_agree(
        &mut self,
        seed: u64,
        node: NodeId,
        group: GroupId,
        machine: &SimMachine,
    ) {
        let applied = machine.applied(group);
        let checked = self.checked.entry((node, group)).or_default();
        // After a crash the list is shorter: what is applied again is checked again.
        for (position, numbers) in applied.iter().skip((*checked).min(applied.len())) {
            let agreed = self
                .applied
                .entry((group, position.index))
                .or_insert_with(|| (position.term, numbers.clone()));
            assert_eq!(
                *agreed,
                (position.term, numbers.clone()),
                "seed {seed}: node {node} applied another entry at index {} of group {group}",
                position.index
            );
        }
        *checked = applied.len();
    }

    /// The term on disk never goes back, and within a term the vote never changes:
    /// else a replica could vote twice (Raft paper, section 5.2).
    pub(super) fn ballots_never_go_back(
        &mut self,
        seed: u64,
        node: NodeId,
        group: GroupId,
        state: Option<LogState>,
    ) {
        let Some(now) = state.map(|state| state.hard_state) else { return };
        let before = self.ballots.entry((node, group)).or_insert(now);
        let vote_stays = now.term > before.term || before.vote.is_none() || before.vote == now.vote;
        assert!(
            now.term >= before.term && vote_stays,
            "seed {seed}: node {node} forgot its vote in group {group}: {before:?}, then {now:?}"
        );
        *before = now;
    }

    /// Where a command took effect.
    pub(super) fn index_of(&self, group: GroupId, number: u64) -> Option<Index> {
        self.applied
            .range((group, Index(0))..=(group, Index(u64::MAX)))
            .find(|(_, (_, numbers))| numbers.contains(&number))
            .map(|((_, index), _)| *index)
    }
}
