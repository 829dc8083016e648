//! What must hold after every step, one rule a file.

use super::{
    machine::{Event, Merge, SimMachine},
    node::SimNode,
};
use crate::{
    clock::Clock,
    types::{GroupId, NodeId},
};

mod ballots;
mod cancel_is_final;
mod committed_stays;
mod election_safety;
mod leader_completeness;
mod lease_exclusivity;
mod local_ownership;
mod log_matching;
mod no_resurrection;
mod serving_exclusivity;
mod slot_agreement;
mod source_goes_with_target;
mod state_machine_safety;

pub(super) use ballots::Ballots;
pub(super) use cancel_is_final::CancelIsFinal;
pub(super) use committed_stays::CommittedStays;
pub(super) use election_safety::ElectionSafety;
pub(super) use lease_exclusivity::LeaseExclusivity;
pub(super) use local_ownership::check_local_ownership;
pub(super) use log_matching::LogMatching;
pub(super) use no_resurrection::NoResurrection;
pub(super) use serving_exclusivity::ServingExclusivity;
pub(super) use slot_agreement::SlotAgreement;
pub(super) use state_machine_safety::StateMachineSafety;

/// All of them, with what each has seen so far.
#[derive(Default)]
pub(super) struct Invariants {
    pub(super) elections: ElectionSafety,
    pub(super) logs: LogMatching,
    pub(super) committed: CommittedStays,
    pub(super) applied: StateMachineSafety,
    pub(super) ballots: Ballots,
    pub(super) leases: LeaseExclusivity,
    pub(super) destroyed: NoResurrection,
    pub(super) merges: CancelIsFinal,
    pub(super) serving: ServingExclusivity,
    pub(super) slots: SlotAgreement,
}

impl Invariants {
    /// Something happened to a node's state.
    pub(super) fn check_event(&mut self, node: (NodeId, &SimMachine), event: Event) {
        match event {
            Event::Wrote(slot, place, number) => self.slots.check(slot, place, number),
            Event::Changed(_, at, change) => self.merges.check(at, &change),
            Event::WentWithSnapshot => {}
            Event::Destroyed(group, record) => self.merges.check_destroyed(node, group, &record),
        }
    }

    /// Looks at a replica at work. Returns whether it is a leader that was not seen before.
    pub(super) fn check_running(&mut self, id: NodeId, node: &SimNode, group: GroupId) -> bool {
        let Some((status, reads_locally)) = node.status(group, node.clock.now()) else {
            return false;
        };
        assert_eq!(status.halted, None, "node {id} halted a replica of group {group}");
        self.committed.check(id, &status, &node.log);
        let is_new = self.elections.check(id, &status);
        if is_new {
            self.committed.check_leader(id, &status, &node.log);
        }
        self.leases.note(id, &status, reads_locally);
        if reads_locally {
            node.machine.with_record(group, |record| {
                if !matches!(record.merge, Merge::Frozen { .. }) {
                    self.serving.note(id, group, &record.slots);
                }
            });
        }
        is_new
    }
}
