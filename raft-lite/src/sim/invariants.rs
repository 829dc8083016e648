//! What must hold after every step, one rule a file.

mod ballots;
mod committed_stays;
mod election_safety;
mod leader_completeness;
mod lease_exclusivity;
mod log_matching;
mod no_resurrection;
mod state_machine_safety;

pub(super) use ballots::Ballots;
pub(super) use committed_stays::CommittedStays;
pub(super) use election_safety::ElectionSafety;
pub(super) use lease_exclusivity::LeaseExclusivity;
pub(super) use log_matching::LogMatching;
pub(super) use no_resurrection::NoResurrection;
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
}
