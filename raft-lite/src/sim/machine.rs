//! A state machine that remembers what it applied, with the group's members, and
//! forgets from some point on when its node crashes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rand::{Rng, rngs::SmallRng};

use super::planted::{self, Bug};
use crate::{
    config::GroupDescriptor,
    entry::EntryKind,
    membership::Membership,
    snapshot::SnapshotMeta,
    startup::ReplicaRecord,
    state_machine::{
        ApplyError, CommandOutcome, Effects, GroupEntries, Rejection, SnapshotReply, StateMachine,
    },
    types::{GroupId, INITIAL_POSITION, Index, LogPosition, ReplicaId},
};

/// An applied entry: where it was and the numbers of its commands.
pub(super) type Applied = (LogPosition, Vec<u64>);

/// The epoch of a group's first members.
const FIRST_EPOCH: u64 = 1;

#[derive(Clone, Debug)]
struct Replica {
    id: ReplicaId,
    membership: Membership,
    epoch: u64,
    applied: Vec<Applied>,
    /// How much of the list is on disk.
    persisted: usize,
    started: bool,
    /// Where a snapshot was installed.
    installed: Option<LogPosition>,
    /// Every membership that it had, and with which length of the list.
    memberships: Vec<(usize, u64, Membership)>,
}

impl Replica {
    fn position(&self) -> LogPosition {
        self.applied.last().map_or(INITIAL_POSITION, |(position, _)| *position)
    }
}

#[derive(Default)]
struct State {
    replicas: BTreeMap<GroupId, Replica>,
    destroyed: BTreeMap<GroupId, ReplicaId>,
    /// How many snapshots were installed.
    installed: u64,
    /// How many were made and not released.
    held: u64,
    /// Snapshots asked for and not made yet.
    wanted: Vec<(GroupId, SnapshotReply)>,
}

/// The data of all snapshots of all nodes, by number.
#[derive(Default)]
pub(super) struct Pool {
    data: Mutex<Vec<(u64, Vec<Applied>)>>,
}

pub(super) struct SimMachine {
    state: Mutex<State>,
    pool: Arc<Pool>,
}

impl SimMachine {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        SimMachine { state: Mutex::default(), pool }
    }

    /// A group's replica that is there from the beginning.
    pub(super) fn found(&self, group: GroupId, id: ReplicaId, membership: Membership) {
        let replica = Replica {
            id,
            membership: membership.clone(),
            epoch: FIRST_EPOCH,
            applied: Vec::new(),
            persisted: 0,
            started: false,
            installed: None,
            memberships: vec![(0, FIRST_EPOCH, membership)],
        };
        self.state.lock().unwrap().replicas.insert(group, replica);
    }

    /// All replicas on record, for a start of the node.
    pub(super) fn descriptors(&self) -> Vec<GroupDescriptor> {
        let state = &mut *self.state.lock().unwrap();
        // What was removed and not yet destroyed is destroyed first.
        let gone = state.replicas.extract_if(.., |_, r| r.membership.was_removed(r.id));
        for (group, replica) in gone {
            state.destroyed.insert(group, replica.id);
        }
        state.replicas.iter().map(|(group, replica)| descriptor(*group, replica)).collect()
    }

    pub(super) fn note_started(&self) {
        for replica in self.state.lock().unwrap().replicas.values_mut() {
            replica.started = true;
        }
    }

    /// Loses a random part of what was not on disk, and all that was asked.
    pub(super) fn crash(&self, rng: &mut SmallRng) {
        let mut state = self.state.lock().unwrap();
        state.wanted.clear();
        state.held = 0;
        for replica in state.replicas.values_mut() {
            let kept = rng.random_range(replica.persisted..=replica.applied.len());
            let ahead = replica.applied.get(kept).cloned();
            replica.applied.truncate(kept);
            replica.persisted = kept;
            if let Some(lost) = ahead
                && planted::is(Bug::AppliedAheadOfData)
            {
                // Its position reached the disk and its data did not.
                replica.applied.push((lost.0, Vec::new()));
            }
            let remembered = |(at, _, _): &(usize, u64, Membership)| {
                *at <= kept && !(planted::is(Bug::OldMembershipAfterRestart) && *at > 0)
            };
            let last = replica.memberships.iter().rposition(remembered).unwrap_or(0);
            let (_, epoch, membership) = replica.memberships[last].clone();
            (replica.epoch, replica.membership) = (epoch, membership);
        }
    }

    /// Everything of a group applied and not lost.
    pub(super) fn applied(&self, group: GroupId) -> Vec<Applied> {
        self.with_applied(group, 0, <[Applied]>::to_vec)
    }

    /// Looks at what was applied from a place in the list on.
    pub(super) fn with_applied<T>(
        &self,
        group: GroupId,
        from: usize,
        look: impl FnOnce(&[Applied]) -> T,
    ) -> T {
        let state = self.state.lock().unwrap();
        let applied = state.replicas.get(&group).map_or(&[][..], |replica| &replica.applied);
        look(&applied[from.min(applied.len())..])
    }

    pub(super) fn replica(&self, group: GroupId) -> Option<ReplicaId> {
        self.state.lock().unwrap().replicas.get(&group).map(|replica| replica.id)
    }

    pub(super) fn installed(&self) -> u64 {
        self.state.lock().unwrap().installed
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.state.lock().unwrap().held
    }

    /// Makes the snapshots that were asked for.
    pub(super) fn make_wanted(&self) {
        let wanted = std::mem::take(&mut self.state.lock().unwrap().wanted);
        for (group, reply) in wanted {
            reply(self.snapshot(group));
        }
    }

    fn snapshot(&self, group: GroupId) -> Result<SnapshotMeta, ApplyError> {
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        let replica = state.replicas.get(&group).ok_or_else(|| no_replica(group))?;
        let mut data = self.pool.data.lock().unwrap();
        let number = data.len() as u64;
        data.push((replica.epoch, replica.applied.clone()));
        let stale = planted::is(Bug::StaleMembershipInSnapshot);
        let (_, _, first) = &replica.memberships[0];
        Ok(SnapshotMeta {
            position: replica.position(),
            membership: if stale { first.clone() } else { replica.membership.clone() },
            data: Bytes::copy_from_slice(&number.to_be_bytes()),
        })
    }
}

fn descriptor(group: GroupId, replica: &Replica) -> GroupDescriptor {
    let applied = replica.position();
    GroupDescriptor {
        group,
        replica: replica.id,
        membership: replica.membership.clone(),
        epoch: replica.epoch,
        record: ReplicaRecord {
            applied,
            started: replica.started,
            applied_by_snapshot: replica.installed == Some(applied),
        },
    }
}

fn no_replica(group: GroupId) -> ApplyError {
    ApplyError { group, message: "there is no replica".to_owned() }
}

impl StateMachine for SimMachine {
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError> {
        let mut state = self.state.lock().unwrap();
        for group in batch {
            let replica =
                state.replicas.get_mut(&group.group).ok_or_else(|| no_replica(group.group))?;
            for entry in &group.entries {
                let expected = replica.position().index.next();
                assert_eq!(entry.position.index, expected, "entries have a gap");
                let mut numbers = Vec::new();
                let mut changed = false;
                if let Some(payload) = &entry.payload {
                    if payload.kind == EntryKind::Membership as i32 {
                        let change = payload.membership.as_ref().unwrap();
                        let after = replica.membership.after(change);
                        effects.outcomes.push(match after {
                            Ok(after) if payload.epoch == replica.epoch => {
                                replica.membership = after;
                                replica.epoch += 1;
                                effects.epochs.insert(group.group, replica.epoch);
                                changed = true;
                                CommandOutcome::Applied(Bytes::new())
                            }
                            _ => CommandOutcome::Rejected(Rejection::StaleEpoch),
                        });
                    }
                    for command in &payload.commands {
                        let number = command.payload.as_ref().try_into().unwrap();
                        numbers.push(u64::from_be_bytes(number));
                        let index = entry.position.index.0.to_be_bytes();
                        effects
                            .outcomes
                            .push(CommandOutcome::Applied(Bytes::copy_from_slice(&index)));
                    }
                }
                replica.applied.push((entry.position, numbers));
                // There is a log that the entry came from.
                replica.started = true;
                if changed {
                    replica.persisted = replica.applied.len();
                    let now = (replica.applied.len(), replica.epoch, replica.membership.clone());
                    replica.memberships.push(now);
                }
            }
        }
        Ok(())
    }

    fn request_flush(&self) {}

    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError> {
        let mut state = self.state.lock().unwrap();
        let replica = state.replicas.get_mut(&group).ok_or_else(|| no_replica(group))?;
        // Being asked is as good a moment as any for a flush to have happened.
        replica.persisted = replica.applied.len();
        Ok(replica.position().index)
    }

    fn make_snapshot(&self, group: GroupId, reply: SnapshotReply) {
        self.state.lock().unwrap().wanted.push((group, reply));
    }

    fn release_snapshot(&self, _group: GroupId, _snapshot: &SnapshotMeta) {
        self.state.lock().unwrap().held -= 1;
    }

    fn admits_snapshot(&self, _: GroupId, _: ReplicaId, _: &SnapshotMeta) -> bool {
        true
    }

    fn never_lost(&self, _group: GroupId) -> bool {
        false
    }

    fn install_snapshot(
        &self,
        group: GroupId,
        id: ReplicaId,
        snapshot: &SnapshotMeta,
        fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError> {
        let number = u64::from_be_bytes(fetched.as_ref().try_into().unwrap());
        let (epoch, applied) = self.pool.data.lock().unwrap()[number as usize].clone();
        let membership = snapshot.membership.clone();
        let mut state = self.state.lock().unwrap();
        let replica = Replica {
            id,
            membership: membership.clone(),
            epoch,
            persisted: applied.len(),
            memberships: vec![(applied.len(), epoch, membership)],
            applied,
            // A new replica has no log yet.
            started: state.replicas.get(&group).is_some_and(|before| before.started),
            installed: Some(snapshot.position),
        };
        assert_eq!(replica.position(), snapshot.position);
        let described = descriptor(group, &replica);
        state.replicas.insert(group, replica);
        state.installed += 1;
        Ok(described)
    }

    fn discard_fetched(&self, _fetched: &Bytes) {}

    fn destroy_replica(&self, group: GroupId, replica: ReplicaId) -> Result<(), ApplyError> {
        let mut state = self.state.lock().unwrap();
        state.replicas.remove(&group);
        let last = state.destroyed.entry(group).or_insert(replica);
        *last = (*last).max(replica);
        Ok(())
    }

    fn last_destroyed(&self, group: GroupId) -> Option<ReplicaId> {
        if planted::is(Bug::DestroyedReplicaComesBack) {
            return None;
        }
        self.state.lock().unwrap().destroyed.get(&group).copied()
    }
}
