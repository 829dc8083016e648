//! Applying what is no command for a plugin: changes of a shard itself, and the commands
//! of the cluster's own group.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use raft_lite::{
    ApplyError, CommandFailure, CommandOutcome, CommittedEntry, Effects, GroupEntries, GroupId,
    INITIAL_POSITION, Payload, Rejection, ReplicaId,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    Machine, OpenError, Shard,
    activation::{Switched, slots_with_data},
    apply::{Progress, change_members, host_failure, in_service, is_membership, membership_change},
    checkpoints::Checkpoints,
    structural::{Changed, Refusal, ShardChange, Surroundings, first_state},
};
use crate::{
    storage::{ApplyState, ReadView, ShardRecord, WriteSet},
    wasm::FailureKind,
};

type AnyError = Box<dyn std::error::Error>;

impl Surroundings for Machine {
    fn shard(&self, group: GroupId) -> Option<ShardRecord> {
        Machine::shard(self, group).map(|shard| shard.record.clone())
    }

    fn is_empty(&self, record: &ShardRecord) -> Result<bool, String> {
        let view = ReadView::Latest(Arc::clone(&self.storage));
        let slot = slots_with_data(record, &view).next().transpose();
        slot.map(|slot| slot.is_none()).map_err(|error| error.to_string())
    }
}

impl Machine {
    /// Applies an entry that changes a shard itself.
    pub(super) fn apply_change(
        &self,
        shard: Arc<Shard>,
        (entry, payload): (&CommittedEntry, &Payload),
        writes: &mut WriteSet,
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<Progress, ApplyError> {
        let group = shard.record.group;
        let state = advanced(shard.applied(), entry, payload.time_ms);
        let record = in_service(&shard.record);
        let mut switch = None;
        let (outcome, changed) = if payload.epoch != shard.record.epoch {
            (CommandOutcome::Rejected(Rejection::StaleEpoch), None)
        } else {
            let before = record.as_ref().unwrap_or(&shard.record);
            let fail = |message| ApplyError { group, message };
            let change = ShardChange::decode(&payload.structural).map_err(fail)?;
            let mut applied = change.applied_to(before, state, self).map_err(fail)?;
            let mut reason = None;
            if let (Ok(changed), ShardChange::Activate { force, .. }) = (&applied, &change) {
                match self.switch(&shard, &changed.record, state, *force, writes) {
                    Ok(Ok(carried)) => switch = Some(carried),
                    Ok(Err(refusal)) => {
                        reason = Some(refusal.to_string());
                        applied = Err(Refusal::Migration);
                    }
                    Err(error) => return Err(host_failure(group, &*error)),
                }
            }
            match applied {
                Ok(changed) => {
                    let answer = changed.record.encode().into();
                    (CommandOutcome::Applied(answer), Some(changed))
                }
                Err(refusal) => {
                    let reason = reason.unwrap_or_else(|| refusal.to_string());
                    (refused(refusal, reason), None)
                }
            }
        };
        outcomes.push(outcome);
        let mut progress = Progress { record, ..Progress::new(shard, state) };
        if let Some(changed) = changed {
            self.take_over(&mut progress, changed, writes)
                .map_err(|error| host_failure(group, &*error))?;
        }
        if let Some(Switched { plugin, hash }) = switch {
            progress.plugin = Some(plugin);
            progress.state.state_hash =
                xxh3_64_with_seed(&hash.to_le_bytes(), progress.state.state_hash);
        }
        let flag = [u8::from(progress.is_structural)];
        progress.state.state_hash = xxh3_64_with_seed(&flag, !progress.state.state_hash);
        if Checkpoints::is_one(entry.position.index) {
            progress.checkpoints.push((entry.position.index.0, progress.state.state_hash));
        }
        writes.put_apply_state(group, &progress.state);
        if let Some(record) = &progress.record {
            writes.put_record(record);
        }
        Ok(progress)
    }

    /// Notes what a change that takes effect makes of a shard, and of others.
    fn take_over(
        &self,
        progress: &mut Progress,
        changed: Changed,
        writes: &mut WriteSet,
    ) -> Result<(), AnyError> {
        let Changed { record, state, child, absorbed } = changed;
        progress.is_structural = true;
        progress.state = state;
        if let Some(mut child) = child {
            let node = record.membership.node_of(record.replica);
            let replica = node.and_then(|node| child.membership.replica_on(node));
            child.replica = replica.ok_or("a split's child has no replica here")?;
            let group = child.group;
            let was_here = self.tombstone(group).is_some_and(|last| child.replica <= last);
            if was_here || self.shard(group).is_some() {
                // It was removed before this replica heard that it was made, or came by a
                // snapshot from after it gave these slots away.
                progress.lost = child.slots;
            } else {
                let state = first_state(&progress.state, group);
                writes.put_record(&child);
                writes.put_apply_state(group, &state);
                progress.child = Some(self.shard_of(child, state)?);
            }
        }
        if let Some(source) = absorbed {
            let shard = self.shard(source).ok_or("what is taken in is gone")?;
            let replica = shard.record.replica;
            writes.bury(source, replica);
            progress.absorbed = Some((source, replica));
        }
        progress.record = Some(record);
        Ok(())
    }

    /// Applies commands of the cluster's own group, and changes of its members.
    pub(super) fn apply_meta(
        &self,
        shard: Arc<Shard>,
        group: &GroupEntries,
        writes: &mut WriteSet,
        outcomes: &mut Vec<CommandOutcome>,
    ) -> Result<Progress, ApplyError> {
        let damaged = || ApplyError { group: group.group, message: "it has no state".to_owned() };
        let before = self.meta.borrow().clone().ok_or_else(damaged)?;
        let mut meta = (*before).clone();
        let mut state = shard.applied();
        let mut record = in_service(&shard.record);
        let mut is_structural = false;
        for entry in &group.entries {
            let time_ms = entry.payload.as_ref().map_or(0, |payload| payload.time_ms);
            state = advanced(state, entry, time_ms);
            let Some(payload) = &entry.payload else { continue };
            if is_membership(payload) {
                if let Some(change) = membership_change(group.group, payload)? {
                    let outcome = change_members(&mut record, &shard, payload.epoch, change);
                    is_structural |= matches!(outcome, CommandOutcome::Applied(_));
                    outcomes.push(outcome);
                }
                continue;
            }
            for command in &payload.commands {
                let reply: Bytes =
                    meta.apply(&command.payload, state.time_ms).encode_to_vec().into();
                state.state_hash = xxh3_64_with_seed(&reply, state.state_hash);
                outcomes.push(CommandOutcome::Applied(reply));
            }
        }
        writes.put_apply_state(group.group, &state);
        if let Some(record) = &record {
            writes.put_record(record);
        }
        let meta = (meta.version != before.version).then_some(meta);
        if let Some(meta) = &meta {
            writes.put_meta(&meta.encode());
        }
        Ok(Progress { record, is_structural, meta, ..Progress::new(shard, state) })
    }

    /// Lets everybody see what is stored.
    pub(super) fn publish(
        &self,
        progress: Progress,
        effects: &mut Effects,
    ) -> Result<(), AnyError> {
        let Progress {
            shard, state, sessions, record, child, plugin, absorbed, lost, meta, ..
        } = progress;
        for (index, hash) in progress.checkpoints {
            shard.checkpoints.lock().note(index, hash);
        }
        shard.sessions.lock().keep(sessions);
        *shard.applied.lock() = state;
        if let Some(meta) = meta {
            self.meta.send_replace(Some(Arc::new(meta)));
        }
        let Some(record) = record else { return Ok(()) };
        let group = record.group;
        if record.epoch != shard.record.epoch {
            effects.epochs.insert(group, record.epoch);
        }
        let moves_slots = record.slots != shard.record.slots;
        let mut after =
            if moves_slots { shard.with_slots(record) } else { shard.with_record(record) };
        if plugin.is_some() {
            after.plugin = plugin;
        }
        let is_here = |shards: &std::collections::BTreeMap<GroupId, Arc<Shard>>| {
            shards.get(&group).is_some_and(|now| now.record.replica == after.record.replica)
        };
        {
            // At once: a slot is never seen to have two owners.
            let mut shards = self.shards.write();
            if !is_here(&shards) {
                // Another shard took it in meanwhile.
                return Ok(());
            }
            shards.insert(group, Arc::new(after));
            if let Some(child) = child {
                effects.born.push(child.record.descriptor(INITIAL_POSITION));
                shards.insert(child.record.group, Arc::new(child));
            }
            if let Some((source, _)) = &absorbed {
                shards.remove(source);
            }
        }
        if let Some((source, replica)) = absorbed {
            self.tombstones.write().insert(source, replica);
            effects.gone.push((source, replica));
        }
        self.note_change();
        Ok(self.wipe_unowned(&lost)?)
    }

    /// Puts a shard on record that is made of slots nobody owned. What is stored in them
    /// is removed first.
    ///
    /// # Errors
    /// If a replica here owns some of the slots, or the shard was here before.
    pub fn found_shard(
        &self,
        record: ShardRecord,
    ) -> Result<raft_lite::GroupDescriptor, OpenError> {
        let _turn = self.changing.lock();
        let in_the_way = self
            .replicas()
            .into_iter()
            .find(|other| crate::storage::overlap(&other.record.slots, &record.slots));
        if let Some(other) = in_the_way {
            let reason = format!("{} owns some of its slots here", other.record.name);
            return Err(
                crate::storage::StorageError::Damaged { group: record.group, reason }.into()
            );
        }
        self.storage.wipe(&record.slots)?;
        let mut writes = WriteSet::new();
        writes.put_record(&record);
        writes.put_apply_state(record.group, &ApplyState::INITIAL);
        self.storage.write(writes)?;
        self.storage.flush()?;
        let descriptor = record.descriptor(INITIAL_POSITION);
        self.add(record)?;
        Ok(descriptor)
    }

    /// Whether a replica of the group was here and was removed.
    pub fn was_removed(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.tombstone(group).is_some_and(|last| replica <= last)
    }
}

/// A group's state after one more entry.
fn advanced(mut state: ApplyState, entry: &CommittedEntry, time_ms: u64) -> ApplyState {
    state.applied = entry.position;
    state.time_ms = state.time_ms.max(time_ms);
    let index = entry.position.index.0.to_le_bytes();
    state.state_hash = xxh3_64_with_seed(&index, state.state_hash);
    state
}

fn refused(refusal: Refusal, message: String) -> CommandOutcome {
    CommandOutcome::Failed(CommandFailure {
        kind: FailureKind::Failed as u32,
        code: refusal as u32,
        message,
    })
}
