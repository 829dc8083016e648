//! Commands on their way to the shard's leader, wherever it is, and back.
//!
//! This node's replica is asked first if it leads or no leader is known, else the
//! leader's node is. Who turns out not to lead names who does; without a leader a
//! new one is waited for. A proposal is made again only if it certainly had no
//! effect.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use raft_lite::{Command, CommandOutcome, NodeId, Proposal, Rejection, RequestError};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout_at},
};

use super::{
    CallOptions, Service, ServiceError,
    routing::ShardRoute,
    state_machine::{Item, Reply},
};

/// Bytes of commands that are proposed as one.
const PROPOSAL_BYTES: usize = 1 << 20;
/// Pauses while there is no leader.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A command, and whether it only removes.
type Proposed = (Command, bool);

/// Cuts commands into proposals of bounded size; a large one goes alone.
fn proposals(commands: impl Iterator<Item = Proposed>) -> Vec<Vec<Proposed>> {
    let mut proposals = Vec::new();
    let mut current: Vec<Proposed> = Vec::new();
    let mut bytes = 0;
    for command in commands {
        if !current.is_empty() && bytes + command.0.size() > PROPOSAL_BYTES {
            proposals.push(std::mem::take(&mut current));
            bytes = 0;
        }
        bytes += command.0.size();
        current.push(command);
    }
    if !current.is_empty() {
        proposals.push(current);
    }
    proposals
}

fn command(item: Item) -> Proposed {
    let makes_room = item.makes_room();
    let Item { slot, payload, once, .. } = item;
    let mut command = Command { slot: slot.0, payload, ..Default::default() };
    if let Some(once) = once {
        command.session = once.session;
        command.sequence = once.sequence;
        command.not_after_ms = once.not_after_ms;
        command.acked_below = once.acked_below;
    }
    (command, makes_room)
}

/// Pauses that grow from one to the next.
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Pauses(SHORTEST_PAUSE)
    }

    pub(super) async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

impl Service {
    /// Proposes commands of one shard, in order, and waits until they are applied.
    /// Many or large ones go as several proposals, one after the other, so that no
    /// log entry gets too large.
    pub(super) async fn propose(
        &self,
        route: &ShardRoute,
        items: Vec<Item>,
        options: CallOptions,
    ) -> Result<Vec<Reply>, ServiceError> {
        let deadline = Instant::now() + self.limits.timeout;
        let count = items.len();
        let mut replies: Vec<Reply> = Vec::with_capacity(count);
        for proposed in proposals(items.into_iter().map(command)) {
            let makes_room = proposed.iter().all(|(_, makes_room)| *makes_room);
            let (commands, which): (Vec<Command>, Vec<bool>) = proposed.into_iter().unzip();
            match self.propose_one(route, &commands, makes_room, deadline, options).await {
                Ok(outcomes) => replies.extend(outcomes.into_iter().map(|o| reply(o, route))),
                Err(error @ ServiceError::DiskFull { .. }) if which.contains(&true) => {
                    // None took effect. Those that make room need not wait for the others.
                    let removing = commands.into_iter().zip(&which).filter(|(_, which)| **which);
                    let removing: Vec<Command> = removing.map(|(command, _)| command).collect();
                    let removed = self.propose_one(route, &removing, true, deadline, options).await;
                    let failed = removed.as_ref().err().cloned();
                    let mut outcomes = removed.unwrap_or_default().into_iter();
                    replies.extend(which.into_iter().map(|makes_room| {
                        let outcome = if makes_room { outcomes.next() } else { None };
                        match outcome {
                            Some(outcome) => reply(outcome, route),
                            None => {
                                Err(failed.clone().filter(|_| makes_room).unwrap_or(error.clone()))
                            }
                        }
                    }));
                    if let Some(error) = failed {
                        replies.resize(count, Err(error));
                        break;
                    }
                }
                Err(error) => {
                    // What comes after it must not take effect before it.
                    replies.resize(count, Err(error));
                    break;
                }
            }
        }
        Ok(replies)
    }

    /// Gets one proposal to whoever leads.
    pub(super) async fn propose_one(
        &self,
        route: &ShardRoute,
        commands: &[Command],
        makes_room: bool,
        deadline: Instant,
        options: CallOptions,
    ) -> Result<Vec<CommandOutcome>, ServiceError> {
        let mut pauses = Pauses::new();
        let mut target = self.leader_of(route).or_else(|| self.anybody(route));
        loop {
            let asking = self.ask(target, route, commands, makes_room, options);
            let Ok(result) = timeout_at(deadline.into(), asking).await else {
                let reason = format!("no answer from shard {} in time", route.name);
                return Err(ServiceError::OutcomeUnknown { reason });
            };
            let error = match result {
                Ok(outcomes) => {
                    self.note_leader(route, target);
                    return Ok(outcomes);
                }
                Err(error) => error,
            };
            let (next, had_no_effect) = match &error {
                RequestError::NotLeader { leader } => (*leader, true),
                // There is no connection to the node that is taken for the leader, or it
                // has no replica any more, or hands its leadership over.
                RequestError::Unavailable(_) if self.is_other(target) || !self.is_halted(route) => {
                    route.hint.store(0, Ordering::Relaxed);
                    (None, true)
                }
                _ => (None, false),
            };
            if !had_no_effect || options.direct || Instant::now() + LONGEST_PAUSE > deadline {
                return Err(self.request_error(error, route));
            }
            if self.table().group(route.group).is_none() {
                // It was merged into another, or deleted.
                return Err(ServiceError::of_rejection(Rejection::SlotNotOwned, &route.name));
            }
            // A leader that has just been named is worth an immediate attempt.
            if next.is_none() || next == target {
                pauses.pause().await;
            }
            target = next.or_else(|| self.leader_of(route)).or_else(|| self.anybody(route));
        }
    }

    /// Gives one command to a group as it is.
    pub(super) async fn propose_raw(
        &self,
        route: &ShardRoute,
        payload: Bytes,
    ) -> Result<Bytes, ServiceError> {
        let deadline = Instant::now() + self.limits.timeout;
        let commands = [Command { payload, ..Command::default() }];
        // What the cluster knows of itself takes little room.
        let options = CallOptions::default();
        let outcomes = self.propose_one(route, &commands, true, deadline, options).await?;
        let none = || ServiceError::Internal("a command had no outcome".to_owned());
        reply(outcomes.into_iter().next().ok_or_else(none)?, route)
    }

    /// The node that leads a shard, as far as known here.
    pub(super) fn leader_of(&self, route: &ShardRoute) -> Option<NodeId> {
        let known = self.raft.leader(route.group);
        if known.is_some() || self.machine.shard(route.group).is_some() {
            return known;
        }
        // What was heard may be from before the shard moved, or of this node itself.
        let heard = NodeId(route.hint.load(Ordering::Relaxed));
        Some(heard).filter(|node| *node != self.info.number && route.nodes.contains(node))
    }

    /// A node that took a request for a shard leads it.
    pub(super) fn note_leader(&self, route: &ShardRoute, node: Option<NodeId>) {
        if let Some(node) = node
            && route.hint.load(Ordering::Relaxed) != node.0
        {
            route.hint.store(node.0, Ordering::Relaxed);
        }
    }

    /// Another node, if this one has no replica of the shard: it may know more.
    pub(super) fn anybody(&self, route: &ShardRoute) -> Option<NodeId> {
        match self.machine.shard(route.group) {
            Some(_) => None,
            None => self.network.any_of(route.nodes.iter().copied()),
        }
    }

    fn is_other(&self, node: Option<NodeId>) -> bool {
        node.is_some_and(|node| node != self.info.number)
    }

    async fn ask(
        &self,
        target: Option<NodeId>,
        route: &ShardRoute,
        commands: &[Command],
        makes_room: bool,
        options: CallOptions,
    ) -> Result<Vec<CommandOutcome>, RequestError> {
        if options.direct && self.machine.shard(route.group).is_none() {
            return Err(RequestError::NotLeader { leader: target });
        }
        match target.filter(|node| *node != self.info.number && !options.direct) {
            Some(node) => {
                self.network.forward(node, route.group, commands, makes_room).outcome().await
            }
            None => {
                let (sender, receiver) = oneshot::channel();
                self.raft.propose(Proposal {
                    group: route.group,
                    commands: commands.to_vec(),
                    makes_room,
                    // The receiver may have given up.
                    reply: Box::new(move |result| drop(sender.send(result))),
                });
                receiver.await.unwrap_or(Err(RequestError::Stopping))
            }
        }
    }

    pub(super) fn request_error(&self, error: RequestError, route: &ShardRoute) -> ServiceError {
        let node = match &error {
            RequestError::NotLeader { leader: Some(node) } | RequestError::DiskFull { node } => {
                self.node_at(*node)
            }
            _ => None,
        };
        ServiceError::of_request(error, &route.name, node)
    }

    /// Id and address of a node.
    pub(super) fn node_at(&self, node: NodeId) -> Option<(String, String)> {
        if node == self.info.number {
            return Some((self.info.node_id.clone(), self.info.address.clone()));
        }
        self.network.peer(node).map(|peer| (peer.node_id, peer.address))
    }
}

fn reply(outcome: CommandOutcome, route: &ShardRoute) -> Reply {
    match outcome {
        CommandOutcome::Applied(response) => Ok(response),
        CommandOutcome::Failed(failure) => Err(failure.into()),
        CommandOutcome::Rejected(rejection) => {
            Err(ServiceError::of_rejection(rejection, &route.name))
        }
    }
}
