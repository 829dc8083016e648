//! What clients were answered, so that a command that is sent again takes effect
//! once.
//!
//! Each slot keeps, for each session that wrote to it, a row: the outcomes of its
//! commands that the client may still ask for. The row lies in the slot's range, so
//! it moves with the slot. A command that is there already is answered from the
//! row, failures included, and does not run.
//!
//! Invariants:
//! - an outcome is kept until the client has said that it needs it no more
//!   (`acked_below`), or the command's `not_after` has passed: from then on the
//!   command is rejected before it is looked up;
//! - a row is kept until `not_after` of every command it has seen has passed, so
//!   that `acked_below` is never forgotten too early;
//! - a row after a command depends on the entries so far alone, not on how they
//!   were batched.

use std::collections::{BTreeMap, btree_map::Entry};

use prost::Message;
use raft_lite::{Command, CommandFailure, CommandOutcome, Rejection};

use crate::storage::{Slot, Storage, StorageError, WriteSet};

/// Rows of a shard that are kept in memory.
const ROWS_IN_MEMORY: usize = 1 << 14;

/// A session in a slot.
pub(super) type RowKey = (Slot, u64);

/// One session's row in one slot, as stored.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Row {
    /// The client needs no outcome below this sequence number.
    #[prost(uint64, tag = "1")]
    acked_below: u64,
    /// `not_after` of all its commands is at most this.
    #[prost(uint64, tag = "2")]
    expires_ms: u64,
    /// In the order of their sequence numbers.
    #[prost(message, repeated, tag = "3")]
    answered: Vec<Answered>,
}

/// A command's outcome.
#[derive(Clone, PartialEq, Message)]
struct Answered {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(uint64, tag = "2")]
    not_after_ms: u64,
    /// The plugin's response, unless it failed.
    #[prost(bytes = "bytes", tag = "3")]
    response: bytes::Bytes,
    #[prost(message, optional, tag = "4")]
    failure: Option<Failure>,
    /// In memory alone: the place among the batch's calls of the one that is to
    /// give the outcome, plus one.
    #[prost(uint64, tag = "15")]
    pending: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Failure {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    code: u32,
    #[prost(string, tag = "3")]
    message: String,
}

/// What is to be done with a command.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Admission {
    /// It runs, as the batch's next call.
    Run,
    /// It has this outcome already.
    Known(CommandOutcome),
    /// It has the outcome of the call at this place of the batch.
    SameAs(usize),
    Rejected(Rejection),
}

/// The rows that were used lately, and what a batch makes of them.
#[derive(Default)]
pub(super) struct Sessions {
    /// As they are stored. A row that was looked for in vain is an empty one.
    rows: BTreeMap<RowKey, Row>,
}

/// A batch's rows: nothing of it counts before the batch is stored.
#[derive(Default)]
pub(super) struct BatchRows {
    rows: BTreeMap<RowKey, BatchRow>,
}

#[derive(Default)]
struct BatchRow {
    row: Row,
    changed: bool,
}

impl Sessions {
    /// What is to be done with a command of a session, as call `next_call` of its
    /// batch if it runs, at replicated time `now_ms`.
    pub(super) fn admit(
        &self,
        batch: &mut BatchRows,
        storage: &Storage,
        command: &Command,
        (now_ms, next_call): (u64, usize),
    ) -> Result<Admission, StorageError> {
        let key = (Slot(command.slot), command.session);
        let row = match batch.rows.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                let row = match self.rows.get(&key) {
                    Some(row) => row.clone(),
                    None => load(storage, key)?,
                };
                place.insert(BatchRow { row, changed: false })
            }
        };
        let admission = row.row.admit(command, now_ms, next_call);
        row.changed |= !matches!(admission, Admission::Rejected(_));
        Ok(admission)
    }

    /// The batch was stored.
    pub(super) fn keep(&mut self, batch: BatchRows) {
        if self.rows.len() + batch.rows.len() > ROWS_IN_MEMORY {
            self.rows.clear();
        }
        let changed = batch.rows.into_iter().filter(|(_, row)| row.changed);
        self.rows.extend(changed.map(|(key, row)| (key, row.row)));
    }

    /// Forgets, in a batch's rows, the sessions of a slot whose time has passed.
    pub(super) fn sweep(
        &self,
        batch: &mut BatchRows,
        storage: &Storage,
        slot: Slot,
        now_ms: u64,
    ) -> Result<(), StorageError> {
        let mut stored = Vec::new();
        storage.sessions(slot, &mut |session, row| stored.push((session, decode(row))))?;
        for (session, row) in stored {
            let row = BatchRow { row: row?, changed: false };
            batch.rows.entry((slot, session)).or_insert(row);
        }
        let of_slot = batch.rows.range_mut((slot, 0)..=(slot, u64::MAX));
        for (_, row) in of_slot.filter(|(_, row)| row.row.expires_ms < now_ms) {
            *row = BatchRow { row: Row::default(), changed: true };
        }
        Ok(())
    }
}

impl BatchRows {
    /// Puts the calls' outcomes, by their places, into the rows and adds those to
    /// `writes`.
    pub(super) fn finish(&mut self, outcomes: &[CommandOutcome], writes: &mut WriteSet) {
        let changed = self.rows.iter_mut().filter(|(_, row)| row.changed);
        for ((slot, session), BatchRow { row, .. }) in changed {
            for answered in row.answered.iter_mut().filter(|answered| answered.pending != 0) {
                let place = std::mem::take(&mut answered.pending) as usize - 1;
                answered.set(&outcomes[place]);
            }
            if *row == Row::default() {
                writes.delete_session(*slot, *session);
            } else {
                writes.put_session(*slot, *session, &row.encode_to_vec());
            }
        }
    }
}

impl Row {
    fn admit(&mut self, command: &Command, now_ms: u64, next_call: usize) -> Admission {
        if command.not_after_ms < now_ms {
            return Admission::Rejected(Rejection::Expired);
        }
        if command.sequence < self.acked_below {
            return Admission::Rejected(Rejection::Answered);
        }
        self.expires_ms = self.expires_ms.max(command.not_after_ms);
        self.acked_below = self.acked_below.max(command.acked_below);
        let acked_below = self.acked_below;
        self.answered.retain(|a| a.sequence >= acked_below && a.not_after_ms >= now_ms);
        match self.answered.binary_search_by_key(&command.sequence, |a| a.sequence) {
            Ok(place) => self.answered[place].admission(),
            Err(place) => {
                let answered = Answered {
                    sequence: command.sequence,
                    not_after_ms: command.not_after_ms,
                    pending: next_call as u64 + 1,
                    ..Answered::default()
                };
                self.answered.insert(place, answered);
                Admission::Run
            }
        }
    }
}

impl Answered {
    fn admission(&self) -> Admission {
        if self.pending != 0 {
            return Admission::SameAs(self.pending as usize - 1);
        }
        Admission::Known(match self.failure.clone() {
            None => CommandOutcome::Applied(self.response.clone()),
            Some(Failure { kind, code, message }) => {
                CommandOutcome::Failed(CommandFailure { kind, code, message })
            }
        })
    }

    fn set(&mut self, outcome: &CommandOutcome) {
        match outcome {
            CommandOutcome::Applied(response) => self.response = response.clone(),
            CommandOutcome::Failed(failure) => {
                let CommandFailure { kind, code, message } = failure.clone();
                self.failure = Some(Failure { kind, code, message });
            }
            CommandOutcome::Rejected(_) => unreachable!("a call was not rejected"),
        }
    }
}

fn load(storage: &Storage, (slot, session): RowKey) -> Result<Row, StorageError> {
    storage.session(slot, session, |row| row.map_or_else(|| Ok(Row::default()), decode))?
}

fn decode(row: &[u8]) -> Result<Row, StorageError> {
    Row::decode(row).map_err(|error| StorageError::Session(error.to_string()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::StorageOptions;

    const SLOT: u32 = 3;

    fn command(sequence: u64, acked_below: u64, not_after_ms: u64) -> Command {
        Command {
            slot: SLOT,
            session: 9,
            sequence,
            acked_below,
            not_after_ms,
            ..Default::default()
        }
    }

    fn applied(text: &'static str) -> CommandOutcome {
        CommandOutcome::Applied(Bytes::from_static(text.as_bytes()))
    }

    fn failed() -> CommandOutcome {
        CommandOutcome::Failed(CommandFailure { kind: 1, code: 7, message: "no".into() })
    }

    struct Fixture {
        storage: Storage,
        sessions: Sessions,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let storage = Storage::open(folder.path(), StorageOptions::default()).unwrap();
            Fixture { storage, sessions: Sessions::default(), _folder: folder }
        }

        /// Admits commands as one batch at a time; those that run have the outcomes
        /// given, in order.
        fn batch(
            &mut self,
            now_ms: u64,
            commands: &[Command],
            outcomes: &[CommandOutcome],
        ) -> Vec<Admission> {
            let mut rows = BatchRows::default();
            let mut calls = 0;
            let mut admissions = Vec::new();
            for command in commands {
                let admitted =
                    self.sessions.admit(&mut rows, &self.storage, command, (now_ms, calls));
                let admitted = admitted.unwrap();
                calls += usize::from(admitted == Admission::Run);
                admissions.push(admitted);
            }
            assert_eq!(calls, outcomes.len());
            let mut writes = WriteSet::new();
            rows.finish(outcomes, &mut writes);
            self.storage.write(writes).unwrap();
            self.sessions.keep(rows);
            admissions
        }

        /// As after a restart.
        fn forget(&mut self) {
            self.sessions = Sessions::default();
        }

        fn rows(&self) -> usize {
            let mut count = 0;
            self.storage.sessions(Slot(SLOT), &mut |_, _| count += 1).unwrap();
            count
        }
    }

    #[test]
    fn a_command_sent_again_has_its_first_outcome() {
        let mut fixture = Fixture::new();
        let commands = [command(3, 0, 100), command(1, 0, 100), command(2, 0, 100)];
        let outcomes = [applied("three"), failed(), applied("two")];
        assert!(fixture.batch(10, &commands, &outcomes).iter().all(|a| *a == Admission::Run));
        for _ in 0..2 {
            let again = fixture.batch(20, &commands, &[]);
            let known: Vec<_> = outcomes.iter().cloned().map(Admission::Known).collect();
            assert_eq!(again, known);
            fixture.forget();
        }
    }

    #[test]
    fn the_same_command_twice_in_a_batch_runs_once() {
        let mut fixture = Fixture::new();
        let commands = [command(1, 0, 100), command(2, 0, 100), command(1, 0, 100)];
        let admissions = fixture.batch(10, &commands, &[applied("one"), applied("two")]);
        assert_eq!(admissions, [Admission::Run, Admission::Run, Admission::SameAs(0)]);
    }

    #[test]
    fn what_the_client_has_is_forgotten_and_not_run_again() {
        let mut fixture = Fixture::new();
        fixture.batch(10, &[command(1, 0, 100)], &[applied("one")]);
        fixture.batch(10, &[command(2, 2, 100)], &[applied("two")]);
        let late = fixture.batch(10, &[command(1, 0, 100)], &[]);
        assert_eq!(late, [Admission::Rejected(Rejection::Answered)]);
        let row = &fixture.sessions.rows[&(Slot(SLOT), 9)];
        assert_eq!(row.answered.len(), 1);
    }

    #[test]
    fn a_command_whose_time_has_passed_is_rejected() {
        let mut fixture = Fixture::new();
        fixture.batch(10, &[command(1, 0, 100)], &[applied("one")]);
        let late = fixture.batch(101, &[command(1, 0, 100), command(2, 0, 100)], &[]);
        let expired = Admission::Rejected(Rejection::Expired);
        assert_eq!(late, [expired.clone(), expired]);
    }

    #[test]
    fn a_session_is_forgotten_once_all_its_commands_time_has_passed() {
        let mut fixture = Fixture::new();
        fixture.batch(10, &[command(1, 0, 100)], &[applied("one")]);
        fixture.batch(10, &[command(2, 2, 200)], &[applied("two")]);
        for (now, left) in [(200, 1), (201, 0)] {
            fixture.forget();
            let mut rows = BatchRows::default();
            let swept = fixture.sessions.sweep(&mut rows, &fixture.storage, Slot(SLOT), now);
            swept.unwrap();
            let mut writes = WriteSet::new();
            rows.finish(&[], &mut writes);
            fixture.storage.write(writes).unwrap();
            assert_eq!(fixture.rows(), left, "at {now}");
        }
    }
}
