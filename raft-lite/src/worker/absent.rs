//! Replicas that are not in service: those that come by a snapshot, those whose
//! state is being replaced by one, and those that are being destroyed.
//!
//! For them a worker speaks without promising anything: it says that the replica is
//! alive, so that the leader offers it a snapshot and waits for it to be installed.
//! It acknowledges no entry and confirms no read, and gives no vote but for a replica
//! that never was here (`votes.rs`).
//!
//! A replica is made only as a learner, unless the node has never lost anything: a
//! voter that is not here has lost what it voted for and acknowledged, and must not come
//! back. Nor must one that was destroyed.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{Input, Slot, Worker};
use crate::{
    applier::ApplyTask,
    config::GroupDescriptor,
    log_store::{Durability, LogChange, LogState},
    message::RaftMessage,
    round::Round,
    shared::GroupShared,
    snapshot::SnapshotMeta,
    startup::first_hard_state,
    state_machine::ApplyError,
    types::{GroupId, HardState, INITIAL_POSITION, Index, NodeId, ReplicaId},
};

/// A snapshot on its way into a replica.
struct Install {
    from: NodeId,
    /// The leader's offer, to be answered once the snapshot is installed.
    offer: RaftMessage,
    snapshot: SnapshotMeta,
}

/// A snapshot that an applier is installing.
struct Installing {
    install: Install,
    /// The hard state of the replica that it replaces.
    before: HardState,
    /// That replica: it goes on if the snapshot must not be installed.
    replaced: Option<Slot>,
}

#[derive(Default)]
pub(super) struct Absentees {
    /// Snapshots whose data is being fetched.
    fetching: BTreeMap<GroupId, Install>,
    installing: BTreeMap<GroupId, Installing>,
    /// Replicas that an applier is removing.
    destroying: BTreeMap<GroupId, ReplicaId>,
    /// Work for the appliers and messages, for the next round.
    tasks: Vec<ApplyTask>,
    answers: Vec<(NodeId, RaftMessage)>,
}

impl Absentees {
    /// Hands over what there is to do and to send.
    pub(super) fn collect(&mut self, round: &mut Round) {
        round.apply.append(&mut self.tasks);
        for (node, message) in self.answers.drain(..) {
            round.send(node, message);
        }
    }

    /// Sends messages in the next round.
    pub(super) fn ask(&mut self, messages: Vec<(NodeId, RaftMessage)>) {
        self.answers.extend(messages);
    }

    /// Whether an applier has the group's replica in its hands.
    pub(super) fn has(&self, group: GroupId) -> bool {
        self.installing.contains_key(&group) || self.destroying.contains_key(&group)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.answers.is_empty()
    }

    /// Index of the snapshot on its way into a replica; 0 if there is none.
    fn index_of(&self, group: GroupId) -> Index {
        let install =
            self.fetching.get(&group).or(self.installing.get(&group).map(|one| &one.install));
        install.map_or(Index(0), |install| install.snapshot.position.index)
    }
}

impl Worker {
    /// Takes in a message for a replica that is not in service here.
    pub(super) fn receive_for_absent(&mut self, from: NodeId, message: RaftMessage) {
        let (id, to) = (message.group(), message.to());
        if self.is_gone(id, to) || message.is_removal() {
            return;
        }
        // A replica that is out of service for a reason is not made anew.
        let is_replaced = self.absent.installing.contains_key(&id);
        if !is_replaced && self.parts.registry.get(id).is_some() {
            return;
        }
        let now = self.parts.clock.now();
        let timeout = self.parts.config.election_timeout();
        if message.asks_for_vote() && !is_replaced {
            if self.expected.is_overdue(id, now, timeout) && self.parts.state_machine.never_lost(id)
            {
                self.vote_for_absent(from, &message);
            }
            return self.expected.keep_vote(from, message, now);
        }
        if message.appends_after(INITIAL_POSITION.index)
            && !is_replaced
            && self.expected.may_be_born(id, now, timeout)
        {
            return;
        }
        if let Some(answer) = message.answer_of_absent(self.absent.index_of(id).0) {
            return self.absent.answers.push((from, answer));
        }
        if let Some(snapshot) = message.snapshot()
            && !is_replaced
            && self.may_be_made(id, to, &snapshot)
        {
            self.fetch(from, message, snapshot);
        }
    }

    /// Whether a replica that is not here may be made by a snapshot.
    fn may_be_made(&self, id: GroupId, replica: ReplicaId, snapshot: &SnapshotMeta) -> bool {
        let members = &snapshot.membership;
        members.learners.contains_key(&replica)
            || (members.node_of(replica).is_some() && self.parts.state_machine.never_lost(id))
    }

    /// Whether the replica was here and was destroyed, or is being.
    pub(super) fn is_gone(&self, id: GroupId, replica: ReplicaId) -> bool {
        let destroyed = self.parts.state_machine.last_destroyed(id);
        destroyed.is_some_and(|last| replica <= last) || self.absent.destroying.contains_key(&id)
    }

    /// Fetches the data of a snapshot that the leader offers, one at a time.
    pub(super) fn fetch(&mut self, from: NodeId, offer: RaftMessage, snapshot: SnapshotMeta) {
        let id = offer.group();
        // With a full disk it would not end well; the leader offers it again.
        if self.absent.index_of(id) > Index(0)
            || self.parts.liveness.is_disk_full()
            || !self.parts.state_machine.admits_snapshot(id, offer.to(), &snapshot)
        {
            return;
        }
        tracing::info!(group = id.0, index = snapshot.position.index.0, "fetching a snapshot");
        if let Some(slot) = self.groups.get_mut(&id) {
            slot.group.set_installing(snapshot.position.index);
        }
        let inbox = Arc::clone(&self.parts.inbox);
        let reply = Box::new(move |fetched| inbox(id, Input::Fetched(id, fetched)));
        self.parts.transport.fetch_snapshot(from, id, snapshot.data.clone(), reply);
        self.absent.fetching.insert(id, Install { from, offer, snapshot });
    }

    /// The data is here: has it installed, if it is still worth it.
    pub(super) fn fetched(&mut self, id: GroupId, fetched: Result<Bytes, String>) {
        let Some(install) = self.absent.fetching.remove(&id) else { return };
        if let Some(slot) = self.groups.get_mut(&id) {
            slot.group.set_installing(Index(0));
        }
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(reason) => {
                // The leader notices that the replica does not install it.
                tracing::warn!(group = id.0, "could not fetch a snapshot: {reason}");
                return;
            }
        };
        let replica = install.offer.to();
        let admits = self.parts.state_machine.admits_snapshot(id, replica, &install.snapshot);
        let hard_state = match self.groups.get(&id) {
            _ if !admits => None,
            Some(slot) if slot.group.shared.replica != replica => None,
            Some(slot) => {
                let hard_state = slot.group.written();
                let wanted = self.guarded(id, |group| group.wants(&install.snapshot));
                (wanted == Some(true)).then_some(hard_state)
            }
            // It may have been destroyed while the data was on its way.
            None if self.is_gone(id, replica) || self.parts.registry.get(id).is_some() => None,
            None => Some(self.ballot(id)),
        };
        let Some(before) = hard_state else {
            self.parts.state_machine.discard_fetched(&fetched);
            return;
        };
        let replaced = self.take_out(id, "it is being given a snapshot");
        self.absent.tasks.push(ApplyTask::Install {
            group: id,
            replica,
            snapshot: install.snapshot.clone(),
            fetched,
        });
        self.absent.installing.insert(id, Installing { install, before, replaced });
    }

    /// The state machine holds the snapshot, on disk: the log begins anew after it,
    /// and the replica starts. Or it must not have it, and the replica goes on.
    pub(super) fn installed(
        &mut self,
        id: GroupId,
        installed: Option<Result<GroupDescriptor, ApplyError>>,
    ) {
        let Some(Installing { install, before, replaced }) = self.absent.installing.remove(&id)
        else {
            return;
        };
        let Some(installed) = installed else { return self.put_back(id, replaced) };
        let (replica, members) = (install.offer.to(), install.snapshot.membership.clone());
        let started = installed.map_err(|error| error.to_string()).and_then(|descriptor| {
            let start = descriptor.record.applied;
            let hard_state = first_hard_state(start, before);
            let log = LogState { hard_state, start, last: start };
            if !self.write(id, LogChange::Create { start, hard_state }, Durability::Synced) {
                return Err("its Raft log could not be written".to_owned());
            }
            self.add_group(descriptor, log).map_err(|error| error.to_string())
        });
        match started {
            Ok(_) => {
                let now = self.parts.clock.now();
                // `raft` finds that it has all of it, and says so.
                self.guarded(id, |group| group.step(install.from, install.offer, now));
            }
            Err(reason) => {
                // It is not tried again: it would fail again, and for ever.
                let shared = self.parts.registry.get(id).unwrap_or_else(|| {
                    Arc::new(GroupShared::new(id, replica, Index(0), members, 0))
                });
                shared.halt(format!("a snapshot could not be installed: {reason}"));
                self.parts.registry.insert(shared);
            }
        }
    }

    /// A replica that was to be replaced goes on, or goes, if its group was absorbed
    /// meanwhile.
    fn put_back(&mut self, id: GroupId, replaced: Option<Slot>) {
        let Some(mut slot) = replaced else { return };
        let shared = &slot.group.shared;
        let is_gone = self.is_gone(id, shared.replica);
        if !is_gone && shared.halted().is_some() {
            return;
        }
        slot.dirty = false;
        self.groups.insert(id, slot);
        self.touch(id);
        if is_gone {
            self.destroy(id, "its group was absorbed by another");
        }
    }

    /// Has a replica removed that does not belong to its group any more.
    pub(super) fn destroy(&mut self, id: GroupId, reason: &str) {
        let Some(slot) = self.groups.get(&id) else { return };
        let replica = slot.group.shared.replica;
        tracing::info!(group = id.0, replica = replica.0, "removing the replica: {reason}");
        self.take_out(id, reason);
        self.absent.destroying.insert(id, replica);
        self.absent.tasks.push(ApplyTask::Destroy { group: id, replica });
    }

    /// Has a replica removed that is out of service, and was removed from its group: it can
    /// be made anew then.
    pub(super) fn destroy_halted(&mut self, id: GroupId, replica: ReplicaId) {
        let found = self.parts.registry.get(id);
        let is_halted =
            found.is_some_and(|shared| shared.replica == replica && shared.halted().is_some());
        if is_halted && !self.absent.destroying.contains_key(&id) {
            tracing::info!(group = id.0, replica = replica.0, "removing the replica, which failed");
            self.absent.destroying.insert(id, replica);
            self.absent.tasks.push(ApplyTask::Destroy { group: id, replica });
        }
    }

    /// The state machine has forgotten the replica: so does the log.
    pub(super) fn destroyed(&mut self, id: GroupId, destroyed: Result<(), ApplyError>) {
        self.absent.destroying.remove(&id);
        match destroyed {
            Ok(()) => self.forget_replica(id),
            Err(error) => {
                if let Some(shared) = self.parts.registry.get(id) {
                    shared.halt(error.to_string());
                }
            }
        }
    }

    /// Nothing is left of a replica but its log, which goes too.
    pub(super) fn forget_replica(&mut self, id: GroupId) {
        self.write(id, LogChange::Clean, Durability::Buffered);
        self.parts.registry.remove(id);
    }

    /// Has a snapshot made for replicas that are far behind.
    pub(super) fn make_snapshot(&mut self, id: GroupId) {
        if self.parts.liveness.is_disk_full() {
            let message = "the disk is nearly full".to_owned();
            return self.snapshot_made(id, Err(ApplyError { group: id, message }));
        }
        let inbox = Arc::clone(&self.parts.inbox);
        let reply = Box::new(move |made| inbox(id, Input::SnapshotMade(id, made)));
        self.parts.state_machine.make_snapshot(id, reply);
    }

    pub(super) fn snapshot_made(&mut self, id: GroupId, made: Result<SnapshotMeta, ApplyError>) {
        if let Err(error) = &made {
            tracing::warn!(group = id.0, "cannot make a snapshot: {error}");
        }
        let unused = match self.group(id) {
            Ok(group) => group.snapshot_made(made.ok()),
            Err(_) => made.ok(),
        };
        if let Some(snapshot) = unused {
            self.parts.state_machine.release_snapshot(id, &snapshot);
        }
    }

    /// Takes a replica out of service; who waits for it is told.
    fn take_out(&mut self, id: GroupId, reason: &str) -> Option<Slot> {
        let mut slot = self.groups.remove(&id)?;
        slot.group.resign();
        slot.group.shared.retire();
        slot.group.abandon(reason);
        Some(slot)
    }
}
