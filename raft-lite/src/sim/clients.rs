//! Clients that write and read, and an operator who changes members and moves
//! leaders.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rand::Rng;

use super::{
    Sim,
    history::{How, Operation},
    machine::{Place, Slot},
    pick,
};
use crate::{
    clock::Clock,
    entry::Command,
    group::MemberProgress,
    membership::{Membership, MembershipChange, NewReplica},
    proposal::{
        Budget, Change, PendingChange, PendingProposal, PendingRead, PendingReply, ProposalReply,
        ReadReply, RequestError,
    },
    shared::{GroupStatus, Role},
    state_machine::CommandOutcome,
    types::{GroupId, Index, NodeId, ReplicaId},
    worker::Input,
};

/// A read that is half done.
pub(super) struct Look {
    operation: Operation,
    /// Which start of the node it belongs to.
    start: u64,
    how: How,
    /// What it saw, if the lease is still to be looked at; else the state is.
    place: Option<Place>,
}

impl Sim {
    pub(super) fn random_group(&mut self) -> GroupId {
        if self.groups.is_empty() {
            // The last one was deleted, and its successor is not there yet.
            return GroupId(self.rng.random_range(1..=self.meta.groups()));
        }
        *pick(&mut self.rng, &self.groups)
    }

    fn random_slot(&mut self) -> Slot {
        self.rng.random_range(0..self.slots)
    }

    /// A group that a slot belongs to, as some node knows.
    fn believed_owner(&mut self, slot: Slot) -> GroupId {
        let owners = self.nodes.values().filter_map(|node| node.machine.owner(slot));
        let owners: BTreeSet<GroupId> = owners.collect();
        if owners.is_empty() || self.chance(0.02) {
            return self.random_group();
        }
        *pick(&mut self.rng, &owners.into_iter().collect::<Vec<_>>())
    }

    /// Gives a node an input, if it is at work.
    pub(super) fn hand(&mut self, node: NodeId, input: Input) {
        let node = self.nodes.get_mut(&node).unwrap();
        if node.is_at_work()
            && let Some(running) = node.running.as_mut()
        {
            running.worker.handle(input);
        }
    }

    /// A node that takes itself for the leader.
    pub(super) fn leader(&self, group: GroupId) -> Option<(NodeId, GroupStatus)> {
        let at_work = self.nodes.iter().filter(|(_, node)| node.is_at_work());
        let statuses =
            at_work.filter_map(|(id, node)| Some((*id, node.status(group, node.clock.now())?.0)));
        statuses.filter(|(_, status)| status.role == Role::Leader).max_by_key(|(_, s)| s.term)
    }

    /// Proposes a command with a number of its own, mostly where the leader is.
    pub(super) fn propose(&mut self) {
        let slot = self.random_slot();
        let group = self.believed_owner(slot);
        let node = match self.leader(group) {
            Some((leader, _)) if self.rng.random_bool(0.8) => leader,
            _ => self.random_node(),
        };
        self.write_slot(slot, group, node);
    }

    /// Proposes a command at a node, for a slot that its group owns there.
    #[cfg(test)]
    pub(super) fn write(&mut self, group: GroupId, node: NodeId) {
        let record = self.nodes[&node].machine.record(group).unwrap();
        let slots: Vec<Slot> = record.slots.into_iter().collect();
        let slot = *pick(&mut self.rng, &slots);
        self.write_slot(slot, group, node);
    }

    fn write_slot(&mut self, slot: Slot, group: GroupId, node: NodeId) {
        let number = self.next_command;
        self.next_command += 1;
        let history = Arc::clone(&self.history);
        let operation = history.lock().begin(slot, group, node);
        let reply = Box::new(move |result: Result<Vec<CommandOutcome>, RequestError>| {
            let mut history = history.lock();
            match result.as_deref() {
                Ok([CommandOutcome::Applied(place)]) => {
                    history.wrote(operation, number, Place::decode(place.clone()));
                }
                Ok([CommandOutcome::Rejected(_)]) => history.rejected += 1,
                Ok(other) => panic!("command {number} had the outcomes {other:?}"),
                Err(_) => history.refused += 1,
            }
        });
        let command = Command {
            slot,
            payload: Bytes::copy_from_slice(&number.to_be_bytes()),
            ..Default::default()
        };
        let (commands, reply) = (vec![command], pending(reply));
        self.hand(
            node,
            Input::Propose(PendingProposal { group, commands, makes_room: false, reply }),
        );
    }

    /// Asks for a linearizable read at some node.
    pub(super) fn read(&mut self) {
        let (slot, id) = (self.random_slot(), self.random_node());
        let group = self.believed_owner(slot);
        let node = &self.nodes[&id];
        if !node.is_at_work() {
            return;
        }
        let operation = self.history.lock().begin(slot, group, id);
        let Some((status, reads_locally)) = node.status(group, node.clock.now()) else { return };
        let start = node.starts;
        if reads_locally {
            // The state is taken first, and the clock looked at some time after.
            if let Some(place) = node.machine.look(group, slot, false) {
                let look = Look { operation, start, how: How::Lease, place: Some(place) };
                self.looks.lock().push(look);
            }
            return;
        }
        let how = if status.role == Role::Leader { How::Leader } else { How::Follower };
        let looks = Arc::clone(&self.looks);
        let reply = Box::new(move |result: Result<Index, RequestError>| {
            if result.is_ok() {
                looks.lock().push(Look { operation, start, how, place: None });
            }
        });
        self.ask(group, id, reply);
    }

    /// Asks a node from when on its state may be read.
    pub(super) fn ask(&mut self, group: GroupId, node: NodeId, reply: ReadReply) {
        let permit = Budget::new(1 << 20).take(1).unwrap();
        self.hand(node, Input::Read(group, PendingRead::new(reply, permit)));
    }

    /// Goes on with reads, some of them: with the clock, or with the state.
    pub(super) fn look(&mut self) {
        let looks = std::mem::take(&mut *self.looks.lock());
        for look in looks {
            let (operation, node) = (look.operation, &self.nodes[&look.operation.node]);
            if node.starts != look.start {
                continue;
            }
            if !node.is_at_work() || self.rng.random_bool(0.3) {
                self.looks.lock().push(look);
                continue;
            }
            let now = node.clock.now();
            let place = match look.how {
                How::Lease => {
                    let is_valid = node.status(operation.group, now).is_some_and(|(_, can)| can);
                    look.place.filter(|_| is_valid)
                }
                How::Leader | How::Follower => {
                    node.machine.look(operation.group, operation.slot, true)
                }
            };
            if let Some(place) = place {
                self.history.lock().read(operation, look.how, place);
            }
        }
    }

    /// Asks a random voter to take over from a leader.
    pub(super) fn transfer(&mut self) {
        let group = self.random_group();
        let Some((leader, status)) = self.leader(group) else { return };
        let voters: Vec<ReplicaId> = status.membership.voters.keys().copied().collect();
        let to = *pick(&mut self.rng, &voters);
        self.hand(leader, Input::Transfer(group, to, Box::new(drop)));
    }

    /// Adds, promotes or removes a replica.
    pub(super) fn change_members(&mut self) {
        let group = self.random_group();
        let Some((leader, status)) = self.leader(group) else { return };
        let progress = self.progress(group);
        let Some(change) = self.some_change(&status.membership, &progress) else { return };
        let history = Arc::clone(&self.history);
        let reply = Box::new(move |result: Result<Vec<CommandOutcome>, RequestError>| {
            if let Ok([CommandOutcome::Applied(_)]) = result.as_deref() {
                history.lock().changes += 1;
            }
        });
        let change = Change::Members(change);
        let change = PendingChange { group, change, reply: pending(reply) };
        self.hand(leader, Input::Change(change));
    }

    /// Has the replicas removed that do not know that they were, because all members
    /// they know of are gone.
    pub(super) fn remove_the_forgotten(&mut self) {
        for group in self.groups.clone() {
            let Some((_, leader)) = self.leader(group) else { continue };
            let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
            for id in ids {
                let replica = self.nodes[&id].machine.replica(group);
                if let Some(replica) = replica.filter(|id| leader.membership.was_removed(*id)) {
                    self.hand(id, Input::Remove(group, replica));
                }
            }
        }
    }

    /// How far the members have come, as the leader says.
    pub(super) fn progress(&mut self, group: GroupId) -> Vec<MemberProgress> {
        let Some((leader, _)) = self.leader(group) else { return Vec::new() };
        let progress = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::clone(&progress);
        let answer = Box::new(move |result: Result<Vec<MemberProgress>, RequestError>| {
            *answer.lock().unwrap() = result.unwrap_or_default();
        });
        self.hand(leader, Input::Progress(group, answer));
        std::mem::take(&mut *progress.lock().unwrap())
    }

    fn some_change(
        &mut self,
        membership: &Membership,
        progress: &[MemberProgress],
    ) -> Option<MembershipChange> {
        let taken = membership.members();
        let free: Vec<NodeId> =
            self.nodes.keys().filter(|n| !taken.values().any(|t| t == *n)).copied().collect();
        let ready: Vec<u64> = progress
            .iter()
            .filter(|member| !member.is_voter && member.is_caught_up)
            .map(|member| member.replica.0)
            .collect();
        let voters: Vec<u64> = membership.voters.keys().map(|id| id.0).collect();
        let learners: Vec<u64> = membership.learners.keys().map(|id| id.0).collect();
        let mut change = MembershipChange::default();
        match self.rng.random_range(0..10) {
            0..4 if !free.is_empty() => {
                let node = pick(&mut self.rng, &free).0;
                let replica = membership.next_replica.0;
                change.add.push(NewReplica { replica, node, context: Bytes::new() });
            }
            0..8 if !ready.is_empty() => {
                change.promote.push(*pick(&mut self.rng, &ready));
                if voters.len() >= 3 {
                    change.remove.push(*pick(&mut self.rng, &voters));
                }
            }
            8 if voters.len() > 2 => change.remove.push(*pick(&mut self.rng, &voters)),
            9 if !learners.is_empty() => change.remove.push(*pick(&mut self.rng, &learners)),
            _ => return None,
        }
        Some(change)
    }
}

pub(super) fn pending(reply: ProposalReply) -> PendingReply {
    PendingReply::new(reply, Budget::new(1 << 20).take(1).unwrap())
}
