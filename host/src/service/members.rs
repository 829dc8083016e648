//! Replicas that come and go, and leaders that hand over, as an operator asks for.
//!
//! What takes several steps is asked of the leader and looks, before each step, at
//! what there is: asked again it goes on, also at another leader.

use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_lite::{
    CommandOutcome, MemberProgress, Membership, MembershipChange, NewReplica, NodeId, ReplicaId,
    RequestError, Role,
};
use tokio::{sync::oneshot, time::sleep};

use super::{Service, ServiceError, routing::ShardRoute};

/// Between two looks at how far things have come.
const PAUSE: Duration = Duration::from_millis(50);
/// A leader that does not take over within this does not at all.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(5);

impl Service {
    /// Gives a node a replica of a shard, and makes it a voter once it has caught up.
    ///
    /// # Errors
    /// If the shard or the node does not exist, this node does not lead the shard, or
    /// another change is under way. What was begun stays, and goes on when asked again.
    pub async fn add_replica(&self, shard: &str, node: &str) -> Result<ReplicaId, ServiceError> {
        let (route, number) = (self.shard_named(shard)?, self.node_named(node)?);
        loop {
            let members = self.members_of(route)?;
            let replica = members.replica_on(number);
            let change = match replica {
                Some(replica) if members.voters.contains_key(&replica) && !members.is_joint() => {
                    return Ok(replica);
                }
                Some(replica) if members.learners.contains_key(&replica) => {
                    let progress = self.progress(route).await?;
                    let is_ready = progress.iter().any(|p| p.replica == replica && p.is_caught_up);
                    is_ready.then(|| MembershipChange {
                        promote: vec![replica.0],
                        ..MembershipChange::default()
                    })
                }
                // The leader is about to leave the joint configuration.
                _ if members.is_joint() => None,
                _ => Some(MembershipChange {
                    add: vec![NewReplica {
                        replica: members.next_replica.0,
                        node: number.0,
                        context: Bytes::copy_from_slice(node.as_bytes()),
                    }],
                    ..MembershipChange::default()
                }),
            };
            match change {
                Some(change) => self.change_members(route, &members, change).await?,
                None => sleep(PAUSE).await,
            }
        }
    }

    /// Takes a node's replica out of a shard.
    ///
    /// # Errors
    /// As [`Service::add_replica`]; also if the node has no replica, or it is the last
    /// voter.
    pub async fn remove_replica(&self, shard: &str, node: &str) -> Result<ReplicaId, ServiceError> {
        let (route, number) = (self.shard_named(shard)?, self.node_named(node)?);
        let mut removed = None;
        loop {
            let members = self.members_of(route)?;
            let Some(replica) = members.replica_on(number) else {
                return removed.ok_or_else(|| {
                    let message = format!("node {node} has no replica of shard {shard}");
                    ServiceError::invalid("node", "a node with a replica of the shard", &message)
                });
            };
            removed = Some(replica);
            if members.is_joint() {
                sleep(PAUSE).await;
                continue;
            }
            if number == self.info.number
                && let Some(next) = self.successor(route, replica).await?
            {
                self.hand_over(route, next).await?;
                continue;
            }
            let change =
                MembershipChange { remove: vec![replica.0], ..MembershipChange::default() };
            self.change_members(route, &members, change).await?;
        }
    }

    /// Has a node's replica take over a shard's leadership.
    ///
    /// # Errors
    /// As [`Service::add_replica`]; also if the node has no vote, or does not take over
    /// in time.
    pub async fn transfer_leader(
        &self,
        shard: &str,
        node: &str,
    ) -> Result<ReplicaId, ServiceError> {
        let (route, number) = (self.shard_named(shard)?, self.node_named(node)?);
        let members = self.members_of(route)?;
        let voter = members.voters.iter().find(|(_, on)| **on == number);
        let Some((&replica, _)) = voter else {
            let message = format!("node {node} has no voting replica of shard {shard}");
            return Err(ServiceError::invalid("node", "a node with a voting replica", &message));
        };
        if number != self.info.number {
            self.hand_over(route, replica).await?;
        }
        Ok(replica)
    }

    /// Another voter that could lead.
    async fn successor(
        &self,
        route: &ShardRoute,
        own: ReplicaId,
    ) -> Result<Option<ReplicaId>, ServiceError> {
        let progress = self.progress(route).await?;
        let others = progress.iter().filter(|p| p.replica != own && p.is_voter && p.is_caught_up);
        Ok(others.max_by_key(|p| p.matched).map(|p| p.replica))
    }

    /// Waits until another voter leads.
    async fn hand_over(&self, route: &ShardRoute, to: ReplicaId) -> Result<(), ServiceError> {
        let (sender, receiver) = oneshot::channel();
        // The receiver may have given up.
        let reply = move |result| drop(sender.send(result));
        self.raft.transfer_leader(route.group, to, reply);
        self.answered(receiver.await, route)?;
        let deadline = Instant::now() + TAKE_OVER_WITHIN;
        while Instant::now() < deadline {
            let leader = self.raft.status(route.group).and_then(|status| status.leader);
            if leader == Some(to) {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        Err(ServiceError::ShardUnavailable {
            shard: route.name.to_string(),
            reason: format!("replica {to} did not take over the leadership in time"),
        })
    }

    /// Makes a change that the shard's `members` gave reason to.
    async fn change_members(
        &self,
        route: &ShardRoute,
        members: &Membership,
        change: MembershipChange,
    ) -> Result<(), ServiceError> {
        let promotes = !change.promote.is_empty();
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| drop(sender.send(result)));
        self.raft.change_members(route.group, change, reply);
        let answer = receiver.await;
        if let Ok(Err(RequestError::Refused(_))) = &answer {
            // An earlier change may have taken effect that is not published yet, and a
            // learner may have fallen behind again.
            sleep(PAUSE).await;
            if promotes || self.members_of(route)? != *members {
                return Ok(());
            }
        }
        let outcomes = self.answered(answer, route)?;
        match outcomes.into_iter().next() {
            Some(CommandOutcome::Rejected(rejection)) => {
                Err(ServiceError::of_rejection(rejection, &route.name))
            }
            _ => Ok(()),
        }
    }

    async fn progress(&self, route: &ShardRoute) -> Result<Vec<MemberProgress>, ServiceError> {
        let (sender, receiver) = oneshot::channel();
        self.raft.progress(route.group, move |result| drop(sender.send(result)));
        self.answered(receiver.await, route)
    }

    fn answered<T>(
        &self,
        answer: Result<Result<T, RequestError>, oneshot::error::RecvError>,
        route: &ShardRoute,
    ) -> Result<T, ServiceError> {
        let answer = answer.unwrap_or(Err(RequestError::Stopping));
        answer.map_err(|error| self.request_error(error, route))
    }

    /// The members of a shard, at its leader.
    fn members_of(&self, route: &ShardRoute) -> Result<Membership, ServiceError> {
        let status = self.raft.status(route.group);
        match status {
            Some(status) if status.role == Role::Leader => Ok((*status.membership).clone()),
            _ => {
                let leader = self.raft.leader(route.group).or_else(|| self.anybody(route));
                Err(self.request_error(RequestError::NotLeader { leader }, route))
            }
        }
    }

    /// A shard, by its name.
    pub(super) fn shard_named(&self, shard: &str) -> Result<&ShardRoute, ServiceError> {
        let route = self.routing.shards().iter().find(|route| &*route.name == shard);
        route.ok_or_else(|| {
            let message = format!("there is no shard {shard:?}");
            ServiceError::invalid("shard", "the name of a shard", &message)
        })
    }

    /// The number of a node of the cluster, by its id.
    fn node_named(&self, node: &str) -> Result<NodeId, ServiceError> {
        if node == self.info.node_id {
            return Ok(self.info.number);
        }
        let number = crate::storage::node_number(node);
        let known = self.network.peer(number).filter(|peer| peer.node_id == node);
        known.map(|peer| peer.number).ok_or_else(|| {
            let message = format!("there is no node {node:?} in the cluster");
            ServiceError::invalid("node", "the id of a node", &message)
        })
    }
}
