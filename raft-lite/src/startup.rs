//! What to do with a replica when the node starts: the state machine's record
//! and the log must fit together, and the state machine decides which replicas
//! there are.

use crate::{
    log_store::LogState,
    types::{HardState, LogPosition},
};

/// What the state machine has on record of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Position of the last entry applied.
    pub applied: LogPosition,
    /// Whether the replica ever started: its log was created then.
    pub started: bool,
    /// Whether `applied` is where a snapshot was installed, so that the log may
    /// lag behind it.
    pub applied_by_snapshot: bool,
}

/// How a replica starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// With its log as it is.
    Resume(LogState),
    /// With a new, empty log.
    Create {
        /// The position before its first entry.
        start: LogPosition,
        /// Its first hard state.
        hard_state: HardState,
    },
    /// Not at all: something is missing that can only be had from its peers.
    Quarantine(String),
}

/// Decides how a replica on record starts, given its log (or why it can not be
/// read).
pub fn decide_startup(record: ReplicaRecord, log: Result<Option<LogState>, String>) -> Startup {
    let log = match log {
        // Nothing but how it voted while it was not here.
        Ok(Some(log)) if log.is_ballot() && !record.started => {
            return create(record.applied, log.hard_state);
        }
        Ok(Some(log)) => log,
        Ok(None) if !record.started => return create(record.applied, HardState::default()),
        Ok(None) => {
            return Startup::Quarantine("its Raft log is missing although it had one".to_owned());
        }
        Err(damage) => return Startup::Quarantine(format!("its Raft log is damaged: {damage}")),
    };
    let applied = record.applied.index;
    if applied < log.start.index {
        return Startup::Quarantine(format!(
            "its state ends at index {applied}, but its Raft log begins after {}",
            log.start.index
        ));
    }
    if record.applied_by_snapshot && applied > log.hard_state.commit {
        // The node stopped between installing the snapshot and beginning the log
        // anew. What the log holds does not lead up to the snapshot.
        return create(record.applied, log.hard_state);
    }
    if applied > log.last.index {
        return Startup::Quarantine(format!(
            "its state was applied up to index {applied}, but its Raft log ends at {}",
            log.last.index
        ));
    }
    if log.hard_state.commit > log.last.index {
        return Startup::Quarantine(format!(
            "its Raft log ends at {}, but entries up to {} were committed",
            log.last.index, log.hard_state.commit
        ));
    }
    Startup::Resume(log)
}

/// A log created after `start`.
fn create(start: LogPosition, before: HardState) -> Startup {
    Startup::Create { start, hard_state: first_hard_state(start, before) }
}

/// The hard state of a log that begins anew after `start`, given the one `before`.
/// A vote that was given stays given: the replica must not vote again in its term.
pub(crate) fn first_hard_state(start: LogPosition, before: HardState) -> HardState {
    let term = start.term.max(before.term);
    let vote = before.vote.filter(|_| term == before.term);
    HardState { term, vote, commit: start.index }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Index, Term};

    fn at(index: u64) -> LogPosition {
        LogPosition { index: Index(index), term: Term(6) }
    }

    fn log(start: u64, last: u64, commit: u64) -> LogState {
        let hard_state = HardState { term: Term(6), vote: None, commit: Index(commit) };
        LogState { hard_state, start: at(start), last: at(last) }
    }

    fn record(applied: u64) -> ReplicaRecord {
        ReplicaRecord { applied: at(applied), started: true, applied_by_snapshot: false }
    }

    fn is_quarantined(startup: Startup) -> bool {
        matches!(startup, Startup::Quarantine(_))
    }

    #[test]
    fn a_log_that_fits_is_resumed() {
        let found = log(5, 20, 18);
        assert_eq!(decide_startup(record(17), Ok(Some(found))), Startup::Resume(found));
        assert_eq!(decide_startup(record(20), Ok(Some(found))), Startup::Resume(found));
    }

    #[test]
    fn a_log_is_created_only_for_a_replica_that_never_started() {
        let fresh = ReplicaRecord { started: false, ..record(5) };
        let hard_state = HardState { term: Term(6), vote: None, commit: Index(5) };
        let created = Startup::Create { start: at(5), hard_state };
        assert_eq!(decide_startup(fresh, Ok(None)), created);
        assert!(is_quarantined(decide_startup(record(5), Ok(None))));
    }

    #[test]
    fn state_ahead_of_the_log_is_quarantined_unless_it_came_from_a_snapshot() {
        let found = log(5, 20, 18);
        assert!(is_quarantined(decide_startup(record(21), Ok(Some(found)))));
        let installed = ReplicaRecord { applied_by_snapshot: true, ..record(21) };
        let hard_state = HardState { term: Term(6), vote: None, commit: Index(21) };
        let created = Startup::Create { start: at(21), hard_state };
        assert_eq!(decide_startup(installed, Ok(Some(found))), created);
    }

    #[test]
    fn a_log_that_does_not_lead_up_to_an_installed_snapshot_is_made_anew() {
        let installed = ReplicaRecord { applied_by_snapshot: true, ..record(19) };
        let created = decide_startup(installed, Ok(Some(log(5, 25, 18))));
        assert!(matches!(created, Startup::Create { start, .. } if start == at(19)));
        let later = log(19, 25, 19);
        assert_eq!(decide_startup(installed, Ok(Some(later))), Startup::Resume(later));
    }

    #[test]
    fn a_vote_given_before_a_snapshot_stays_given() {
        let installed = ReplicaRecord { applied_by_snapshot: true, ..record(21) };
        let mut found = log(5, 20, 18);
        found.hard_state.term = Term(9);
        found.hard_state.vote = Some(crate::types::ReplicaId(3));
        let Startup::Create { hard_state, .. } = decide_startup(installed, Ok(Some(found))) else {
            panic!("the log is made anew");
        };
        assert_eq!(hard_state, HardState { commit: Index(21), ..found.hard_state });
    }

    #[test]
    fn a_vote_given_before_a_replica_was_here_stays_given() {
        let fresh = ReplicaRecord { started: false, ..record(5) };
        let vote = Some(crate::types::ReplicaId(3));
        let hard_state = HardState { term: Term(9), vote, commit: Index(0) };
        let start = LogPosition::default();
        let found = LogState { hard_state, start, last: start };
        let Startup::Create { start, hard_state } = decide_startup(fresh, Ok(Some(found))) else {
            panic!("the log is made anew");
        };
        assert_eq!((start, hard_state.term, hard_state.vote), (at(5), Term(9), vote));
        let had_a_log = ReplicaRecord { started: true, ..fresh };
        assert!(is_quarantined(decide_startup(had_a_log, Ok(Some(found)))));
    }

    #[test]
    fn state_behind_the_start_of_the_log_is_quarantined() {
        assert!(is_quarantined(decide_startup(record(9), Ok(Some(log(10, 20, 18))))));
    }

    #[test]
    fn a_damaged_log_is_quarantined() {
        assert!(is_quarantined(decide_startup(record(9), Err("checksum".into()))));
        assert!(is_quarantined(decide_startup(record(9), Ok(Some(log(5, 20, 21))))));
    }
}
