//! Applying committed entries.

use std::{any::Any, sync::Arc, vec};

use raft_lite::{
    ApplyError, Command, CommandFailure, CommandOutcome, EntryKind, GroupEntries, GroupId, Index,
    Payload, Rejection, StateMachine,
};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::{Machine, Shard};
use crate::{
    storage::{ApplyState, Overlay, ReadView, Slot, WriteSet},
    wasm::{BatchOutcome, Call, PluginResult},
};

impl StateMachine for Machine {
    fn apply(
        &self,
        batch: &[GroupEntries],
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<(), ApplyError> {
        let mut writes = WriteSet::new();
        let mut progress = Vec::with_capacity(batch.len());
        for group in batch {
            let shard = self.shard(group.group).ok_or_else(|| ApplyError {
                group: group.group,
                message: "this node has no record of it".to_owned(),
            })?;
            let state = self.apply_group(&shard, group, &mut writes, outcomes)?;
            writes.put_apply_state(group.group, &state);
            progress.push((shard, state));
        }
        let first = batch.first().map_or(GroupId(0), |group| group.group);
        self.storage.write(writes).map_err(|error| host_failure(first, &error))?;
        for (shard, state) in progress {
            *shard.applied.lock() = state;
        }
        Ok(())
    }

    fn request_flush(&self) {
        if let Err(error) = self.storage.start_flush() {
            // The next write meets the same trouble, and stops the replica.
            tracing::warn!("cannot flush the database: {error}");
        }
    }

    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError> {
        match self.storage.persisted_apply_state(group) {
            Ok(state) => Ok(state.applied.index),
            Err(error) => Err(host_failure(group, &error)),
        }
    }
}

fn host_failure(group: GroupId, error: &dyn std::error::Error) -> ApplyError {
    ApplyError { group, message: error.to_string() }
}

/// What the checks before the plugin said of a command.
type Verdict = Result<(), Rejection>;

/// What became of a batch's commands, each in the order of the commands it is
/// about.
struct Results {
    /// About all.
    verdicts: vec::IntoIter<Verdict>,
    /// About those that were admitted.
    results: vec::IntoIter<PluginResult>,
    /// About those that succeeded.
    write_hashes: vec::IntoIter<u64>,
}

impl Results {
    /// The outcome of the next command, which is added to the rolling hash.
    fn next(&mut self, hash: &mut u64) -> CommandOutcome {
        match self.verdicts.next().expect("each command has a verdict") {
            Err(rejection) => {
                *hash = xxh3_64_with_seed(&[rejection as u8], *hash);
                CommandOutcome::Rejected(rejection)
            }
            Ok(()) => {
                let result = self.results.next().expect("each call has a result");
                let written = if result.is_ok() { self.write_hashes.next() } else { None };
                *hash = fold(*hash, written.unwrap_or(0), &result);
                outcome_of(result)
            }
        }
    }
}

impl Machine {
    /// Applies one group's entries over an overlay of its own and adds what they
    /// wrote to `writes`.
    fn apply_group(
        &self,
        shard: &Shard,
        group: &GroupEntries,
        writes: &mut WriteSet,
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<ApplyState, ApplyError> {
        let mut state = shard.applied();
        let mut verdicts = Vec::new();
        let mut calls = Vec::new();
        for entry in &group.entries {
            state.applied = entry.position;
            if let Some(payload) = &entry.payload {
                refuse_structural(group.group, payload)?;
                state.time_ms = state.time_ms.max(payload.time_ms);
                admit(shard, &state, &payload.commands, &mut verdicts, &mut calls);
            }
        }
        let overlay = Box::new(Overlay::new(ReadView::Latest(Arc::clone(&self.storage))));
        let outcome = self
            .appliers
            .run(|executor| executor.apply(&shard.module, &shard.limits, calls, overlay))
            .map_err(|error| host_failure(group.group, &error))?;
        let BatchOutcome { results, storage } = outcome;
        let storage: Box<dyn Any> = storage;
        let mut overlay =
            storage.downcast::<Overlay>().expect("the executor gives back what it was given");
        let mut results = Results {
            verdicts: verdicts.into_iter(),
            results: results.into_iter(),
            write_hashes: overlay.take_write_hashes().into_iter(),
        };
        for entry in &group.entries {
            let index = entry.position.index.0.to_le_bytes();
            state.state_hash = xxh3_64_with_seed(&index, state.state_hash);
            let commands = entry.payload.as_ref().map_or(0, |payload| payload.commands.len());
            for _ in 0..commands {
                outcomes.push(results.next(&mut state.state_hash));
            }
        }
        overlay.drain_into(writes);
        Ok(state)
    }
}

/// Structural changes are not proposed by this version; one in the log was
/// written by a newer one.
fn refuse_structural(group: GroupId, payload: &Payload) -> Result<(), ApplyError> {
    if payload.kind == EntryKind::Commands as i32 {
        return Ok(());
    }
    let message = "its log holds a structural change that this version does not know".to_owned();
    Err(ApplyError { group, message })
}

/// Checks an entry's commands one by one and turns those admitted into calls.
fn admit(
    shard: &Shard,
    state: &ApplyState,
    commands: &[Command],
    verdicts: &mut Vec<Verdict>,
    calls: &mut Vec<Call>,
) {
    let record = &shard.record;
    for (position, command) in commands.iter().enumerate() {
        let verdict = if !record.owns(Slot(command.slot)) {
            Err(Rejection::SlotNotOwned)
        } else if record.frozen {
            Err(Rejection::Frozen)
        } else if command.not_after_ms != 0 && state.time_ms > command.not_after_ms {
            Err(Rejection::Expired)
        } else {
            Ok(())
        };
        if verdict.is_ok() {
            let (index, position) = (state.applied.index.0, position as u32);
            calls.push(Call {
                slot: command.slot,
                index,
                time_ms: state.time_ms,
                position,
                seed: seed(record.group, index, position),
                payload: command.payload.clone(),
            });
        }
        verdicts.push(verdict);
    }
}

/// A command's random seed: a function of where it stands in the log.
fn seed(group: GroupId, index: u64, position: u32) -> [u8; 32] {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&group.0.to_le_bytes());
    place[8..16].copy_from_slice(&index.to_le_bytes());
    place[16..].copy_from_slice(&position.to_le_bytes());
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&xxh3_128_with_seed(&place, 0).to_le_bytes());
    seed[16..].copy_from_slice(&xxh3_128_with_seed(&place, 1).to_le_bytes());
    seed
}

/// The rolling state hash after one more command.
fn fold(hash: u64, written: u64, result: &PluginResult) -> u64 {
    let hash = xxh3_64_with_seed(&written.to_le_bytes(), hash);
    match result {
        Ok(response) => xxh3_64_with_seed(response, hash),
        Err(failure) => {
            let hash = xxh3_64_with_seed(&[failure.kind as u8], !hash);
            let hash = xxh3_64_with_seed(&failure.code.to_le_bytes(), hash);
            xxh3_64_with_seed(failure.message.as_bytes(), hash)
        }
    }
}

fn outcome_of(result: PluginResult) -> CommandOutcome {
    match result {
        Ok(response) => CommandOutcome::Applied(response),
        Err(failure) => CommandOutcome::Failed(CommandFailure {
            kind: failure.kind as u32,
            code: failure.code,
            message: failure.message,
        }),
    }
}
