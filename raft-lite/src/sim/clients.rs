//! Clients that write and read, and an operator who changes members and moves
//! leaders.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::Rng;

use super::{Sim, history::How, pick};
use crate::{
    clock::Clock,
    entry::Command,
    group::MemberProgress,
    membership::{Membership, MembershipChange, NewReplica},
    proposal::{
        Budget, Change, PendingChange, PendingProposal, PendingRead, PendingReply, ProposalReply,
        RequestError,
    },
    shared::{GroupStatus, Role},
    state_machine::CommandOutcome,
    types::{GroupId, Index, NodeId, ReplicaId},
    worker::Input,
};

impl Sim {
    pub(super) fn random_group(&mut self) -> GroupId {
        *pick(&mut self.rng, &self.groups)
    }

    /// Gives a node an input, if it is at work.
    fn hand(&mut self, node: NodeId, input: Input) {
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
        let group = self.random_group();
        let node = match self.leader(group) {
            Some((leader, _)) if self.rng.random_bool(0.8) => leader,
            _ => self.random_node(),
        };
        self.write(group, node);
    }

    /// Proposes a command at a node.
    pub(super) fn write(&mut self, group: GroupId, node: NodeId) {
        let number = self.next_command;
        self.next_command += 1;
        let history = Arc::clone(&self.history);
        let began = history.lock().begin(group);
        let reply = Box::new(move |result: Result<Vec<CommandOutcome>, RequestError>| {
            let mut history = history.lock();
            match result.as_deref() {
                Ok([CommandOutcome::Applied(index)]) => {
                    let index = u64::from_be_bytes(index.as_ref().try_into().unwrap());
                    history.wrote(group, began, number, Index(index));
                }
                Ok(other) => panic!("command {number} had the outcomes {other:?}"),
                Err(_) => history.refused += 1,
            }
        });
        let command = Command {
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
        let (group, id) = (self.random_group(), self.random_node());
        let node = &self.nodes[&id];
        if !node.is_at_work() {
            return;
        }
        let began = self.history.lock().begin(group);
        // The state is taken first and the clock looked at after.
        let Some((status, reads_locally)) = node.status(group, node.clock.now()) else { return };
        if reads_locally {
            let mut history = self.history.lock();
            return history.read(group, began, id, How::Lease, status.applied);
        }
        let how = if status.role == Role::Leader { How::Leader } else { How::Follower };
        let history = Arc::clone(&self.history);
        let reply = Box::new(move |result: Result<Index, RequestError>| {
            if let Ok(index) = result {
                history.lock().read(group, began, id, how, index);
            }
        });
        let permit = Budget::new(1 << 20).take(1).unwrap();
        self.hand(id, Input::Read(group, PendingRead::new(reply, permit)));
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

fn pending(reply: ProposalReply) -> PendingReply {
    PendingReply::new(reply, Budget::new(1 << 20).take(1).unwrap())
}
