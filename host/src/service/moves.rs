//! Replicas that come and go, and leaders that hand over.
//!
//! Moving a replica is a sequence of steps at the shard's leader. Each looks at what there
//! is and does one thing, so that it does not matter who asks for them, and how often.

use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_lite::{
    CommandOutcome, MemberProgress, Membership, MembershipChange, NewReplica, ReplicaId,
    RequestError, Role,
};
use tokio::{sync::oneshot, time::sleep};

use super::{Service, routing::ShardRoute};
use crate::storage::node_number;

/// Between two looks at how far things have come.
const PAUSE: Duration = Duration::from_millis(20);
/// A leader that does not take over within this does not at all.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(5);

/// Where a replica is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Id of the node that it leaves, if any.
    pub from: Option<String>,
    /// Id of the node that it comes to, if any.
    pub to: Option<String>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
enum NextMove {
    Done,
    Wait(String),
    Change(MembershipChange),
    HandOver(ReplicaId),
}

/// How a move stands after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Nothing is left to be done.
    pub done: bool,
    /// What it waits for, for people.
    pub message: String,
}

impl Service {
    /// Takes one step of a move, at the shard's leader.
    pub(super) async fn move_step(
        &self,
        route: &ShardRoute,
        wanted: &Move,
    ) -> Result<Moved, RequestError> {
        let members = self.members_of(route)?;
        let progress = self.progress(route).await?;
        let own = members.replica_on(self.info.number).unwrap_or_default();
        let message = match next_move(&members, &progress, own, wanted) {
            NextMove::Done => return Ok(Moved { done: true, message: String::new() }),
            NextMove::Wait(reason) => reason,
            NextMove::HandOver(to) => {
                self.hand_over(route, to).await?;
                "another replica is taking over the leadership".to_owned()
            }
            NextMove::Change(change) => {
                self.change_members(route, change).await?;
                "the shard's replicas are changing".to_owned()
            }
        };
        Ok(Moved { done: false, message })
    }

    /// Has a node's replica take over a shard's leadership, at the leader.
    pub(super) async fn transfer_here(
        &self,
        route: &ShardRoute,
        node: &str,
    ) -> Result<ReplicaId, RequestError> {
        let (members, number) = (self.members_of(route)?, node_number(node));
        let voter = members.voters.iter().find(|(_, on)| **on == number);
        let Some((&replica, _)) = voter else {
            let message = format!("node {node} has no voting replica of it");
            return Err(RequestError::Refused(message));
        };
        if number != self.info.number {
            self.hand_over(route, replica).await?;
        }
        Ok(replica)
    }

    /// Waits until another voter leads.
    async fn hand_over(&self, route: &ShardRoute, to: ReplicaId) -> Result<(), RequestError> {
        let (sender, receiver) = oneshot::channel();
        // The receiver may have given up.
        let reply = move |result| drop(sender.send(result));
        self.raft.transfer_leader(route.group, to, reply);
        receiver.await.unwrap_or(Err(RequestError::Stopping))?;
        let deadline = Instant::now() + TAKE_OVER_WITHIN;
        while Instant::now() < deadline {
            let leader = self.raft.status(route.group).and_then(|status| status.leader);
            if leader == Some(to) {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
        let message = format!("replica {to} did not take over the leadership in time");
        Err(RequestError::Unavailable(message))
    }

    async fn change_members(
        &self,
        route: &ShardRoute,
        change: MembershipChange,
    ) -> Result<(), RequestError> {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| drop(sender.send(result)));
        self.raft.change_members(route.group, change, reply);
        let outcomes = match receiver.await.unwrap_or(Err(RequestError::Stopping)) {
            // Things have changed since: the next step looks again.
            Err(RequestError::Refused(reason)) => {
                tracing::debug!(group = route.group.0, "a change of replicas is refused: {reason}");
                return Ok(());
            }
            outcomes => outcomes?,
        };
        match outcomes.into_iter().next() {
            Some(CommandOutcome::Applied(_)) => Ok(()),
            _ => {
                let reason = "it takes part in a merge, or changed meanwhile".to_owned();
                Err(RequestError::Unavailable(reason))
            }
        }
    }

    /// How far the members have come, at the leader.
    pub(super) async fn progress(
        &self,
        route: &ShardRoute,
    ) -> Result<Vec<MemberProgress>, RequestError> {
        let (sender, receiver) = oneshot::channel();
        self.raft.progress(route.group, move |result| drop(sender.send(result)));
        receiver.await.unwrap_or(Err(RequestError::Stopping))
    }

    /// The members of a shard, at its leader.
    fn members_of(&self, route: &ShardRoute) -> Result<Membership, RequestError> {
        match self.raft.status(route.group) {
            Some(status) if status.role == Role::Leader => Ok((*status.membership).clone()),
            _ => Err(RequestError::NotLeader { leader: self.leader_of(route) }),
        }
    }
}

/// What is to be done next for a move, at the leader `own`.
fn next_move(
    members: &Membership,
    progress: &[MemberProgress],
    own: ReplicaId,
    wanted: &Move,
) -> NextMove {
    if members.is_joint() {
        return NextMove::Wait("a change of the shard's replicas is being completed".to_owned());
    }
    let on = |node: &Option<String>| {
        node.as_deref().and_then(|node| members.replica_on(node_number(node)))
    };
    let (leaving, coming) = (on(&wanted.from), on(&wanted.to));
    let is_voter = |replica: ReplicaId| members.voters.contains_key(&replica);
    match (&wanted.to, coming) {
        (Some(node), None) => NextMove::Change(MembershipChange {
            add: vec![NewReplica {
                replica: members.next_replica.0,
                node: node_number(node).0,
                context: Bytes::copy_from_slice(node.as_bytes()),
            }],
            ..MembershipChange::default()
        }),
        (Some(node), Some(coming)) if !is_voter(coming) => {
            let is_ready = progress.iter().any(|p| p.replica == coming && p.is_caught_up);
            if !is_ready {
                return NextMove::Wait(format!("the replica on {node} is catching up"));
            }
            let promote = vec![coming.0];
            match leaving.filter(|leaving| is_voter(*leaving)) {
                // It hands over to the new one once that has a vote.
                Some(leaving) if leaving == own && members.voters.len() == 1 => {
                    NextMove::Change(MembershipChange { promote, ..MembershipChange::default() })
                }
                Some(leaving) if leaving == own => hand_over(members, progress, own),
                Some(leaving) => {
                    let remove = vec![leaving.0];
                    let change =
                        MembershipChange { promote, remove, ..MembershipChange::default() };
                    NextMove::Change(change)
                }
                None => {
                    NextMove::Change(MembershipChange { promote, ..MembershipChange::default() })
                }
            }
        }
        _ => match leaving {
            Some(leaving) if leaving == own => hand_over(members, progress, own),
            Some(leaving) => NextMove::Change(MembershipChange {
                remove: vec![leaving.0],
                ..MembershipChange::default()
            }),
            None => NextMove::Done,
        },
    }
}

/// To the voter that has come furthest.
fn hand_over(members: &Membership, progress: &[MemberProgress], own: ReplicaId) -> NextMove {
    let could = |p: &&MemberProgress| p.replica != own && p.is_voter && p.is_caught_up;
    let best = progress.iter().filter(could).max_by_key(|p| p.matched);
    match best {
        Some(best) if members.voters.contains_key(&best.replica) => {
            NextMove::HandOver(best.replica)
        }
        _ => NextMove::Wait("no other replica could lead".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft_lite::{Index, NodeId};

    use super::*;

    fn node(n: u64) -> String {
        format!("node{n}")
    }

    fn part(replicas: &[u64]) -> BTreeMap<ReplicaId, NodeId> {
        replicas.iter().map(|n| (ReplicaId(*n), node_number(&node(*n)))).collect()
    }

    fn members(voters: &[u64], learners: &[u64]) -> Membership {
        Membership {
            voters: part(voters),
            learners: part(learners),
            next_replica: ReplicaId(9),
            ..Membership::default()
        }
    }

    fn progress(members: &Membership, behind: &[u64]) -> Vec<MemberProgress> {
        let all = members.members().into_iter();
        all.map(|(replica, node)| MemberProgress {
            replica,
            node,
            is_voter: members.voters.contains_key(&replica),
            matched: Index(replica.0),
            is_caught_up: !behind.contains(&replica.0),
            gets_snapshot: false,
        })
        .collect()
    }

    fn migrate(from: u64, to: u64) -> Move {
        Move { from: Some(node(from)), to: Some(node(to)) }
    }

    fn next(members: &Membership, own: u64, behind: &[u64], wanted: &Move) -> NextMove {
        next_move(members, &progress(members, behind), ReplicaId(own), wanted)
    }

    #[test]
    fn a_replica_that_moves_learns_first_and_swaps_in_one_change() {
        let wanted = migrate(1, 4);
        let added = next(&members(&[1, 2, 3], &[]), 2, &[], &wanted);
        assert!(matches!(added, NextMove::Change(change) if change.add.len() == 1));
        let learning = members(&[1, 2, 3], &[4]);
        assert!(matches!(next(&learning, 2, &[4], &wanted), NextMove::Wait(_)));
        let swap = MembershipChange { promote: vec![4], remove: vec![1], ..Default::default() };
        assert_eq!(next(&learning, 2, &[], &wanted), NextMove::Change(swap));
        assert_eq!(next(&members(&[2, 3, 4], &[]), 2, &[], &wanted), NextMove::Done);
    }

    #[test]
    fn a_leader_that_leaves_hands_over_first() {
        let wanted = migrate(1, 4);
        let learning = members(&[1, 2, 3], &[4]);
        assert_eq!(next(&learning, 1, &[3], &wanted), NextMove::HandOver(ReplicaId(2)));
        assert!(matches!(next(&learning, 1, &[2, 3], &wanted), NextMove::Wait(_)));
    }

    #[test]
    fn a_sole_replica_moves_by_way_of_two() {
        let wanted = migrate(1, 4);
        let promoted = next(&members(&[1], &[4]), 1, &[], &wanted);
        assert!(matches!(promoted, NextMove::Change(change) if change.remove.is_empty()));
        let both = members(&[1, 4], &[]);
        assert_eq!(next(&both, 1, &[], &wanted), NextMove::HandOver(ReplicaId(4)));
        let removed = next(&both, 4, &[], &wanted);
        assert!(matches!(removed, NextMove::Change(change) if change.remove == [1]));
    }
}
