//! The guard: it compares what the replicas of each shard say their state is. A replica that differs
//! from the majority is taken out of service at once and made anew; without a majority none of them
//! serves any more, and people are told.
//!
//! What is compared is the rolling hash over everything applied (indexes, write sets, responses) at the
//! same index. That finds commands whose outcome differs from replica to replica: a plugin that is not
//! deterministic, or a defect of the host. It does not find a disk that changes what is stored.

use std::collections::{BTreeMap, BTreeSet};

use raft_kv_proto::v1::{FenceOrder, Order, order::Kind};
use raft_lite::{GroupId, ReplicaId};

use super::reports::Seen;
use crate::{
    meta::{Begin, Change, MetaState, Task, TaskKind},
    service::Service,
    storage::{ShardRecord, node_number},
};

/// What a replica said of its state.
#[derive(Debug)]
struct Said {
    node: String,
    replica: ReplicaId,
    /// The hash by index.
    hashes: BTreeMap<u64, u64>,
}

/// Replicas of a shard whose states differ.
#[derive(Debug, PartialEq, Eq)]
struct Divergence {
    index: u64,
    /// Those to be taken out of service.
    differ: Vec<(String, ReplicaId)>,
    /// Whether the others are a majority.
    is_minority: bool,
}

impl Service {
    /// Compares the replicas that reported, and acts on what differs.
    pub(super) async fn compare_replicas(&self, copy: &MetaState, seen: &Seen) {
        let mut said: BTreeMap<GroupId, Vec<Said>> = BTreeMap::new();
        for (node, report) in &seen.nodes {
            for replica in report.replicas.iter().filter(|replica| replica.halted.is_empty()) {
                let Ok(record) = ShardRecord::decode(&replica.record) else { continue };
                let hashes = replica.checkpoints.iter().map(|c| (c.index, c.state_hash)).collect();
                let one = Said { node: node.clone(), replica: record.replica, hashes };
                said.entry(record.group).or_default().push(one);
            }
        }
        for shard in copy.user_shards() {
            let Some(said) = said.get(&shard.group) else { continue };
            if let Some(divergence) = compare(said, shard.membership.voters.len()) {
                self.act_on(copy, shard, divergence).await;
            }
        }
    }

    async fn act_on(&self, copy: &MetaState, shard: &ShardRecord, divergence: Divergence) {
        let Divergence { index, differ, is_minority } = divergence;
        let name = &shard.name;
        for (node, replica) in differ {
            let reason = match is_minority {
                true => format!("its state at index {index} is not that of the other replicas"),
                false => format!(
                    "the replicas' states at index {index} differ, and none is that of a majority: \
                     find out which is right, and make the shard anew from it"
                ),
            };
            tracing::error!("guard: shard {name} on node {node} is taken out of service: {reason}");
            self.metrics.count_fenced(name);
            let order = FenceOrder { group: shard.group.0, replica: replica.0, reason };
            let order = Order { kind: Some(Kind::Fence(order)) };
            if let Err(error) = self.order(node_number(&node), order).await {
                tracing::warn!("guard: node {node} does not answer: {error}");
            }
            if is_minority && copy.operation_on(shard.group).is_none() {
                let mut task = Task { shard: name.clone(), from: node, ..Task::default() };
                task.set_kind(TaskKind::Rebuild);
                let reason = format!("guard: its state at index {index} differs from the others'");
                let begin = Begin { task, request_id: 0, reason };
                if let Err(error) = self.tell_meta(Change::Begin(begin)).await {
                    tracing::warn!("guard: the replica is not made anew: {error}");
                }
            }
        }
    }
}

/// Whether replicas differ at some index, of `voters` that a majority is counted from.
fn compare(said: &[Said], voters: usize) -> Option<Divergence> {
    let majority = voters / 2 + 1;
    let indexes: BTreeSet<u64> = said.iter().flat_map(|one| one.hashes.keys().copied()).collect();
    for index in indexes.into_iter().rev() {
        let mut by_hash: BTreeMap<u64, Vec<&Said>> = BTreeMap::new();
        for one in said {
            if let Some(hash) = one.hashes.get(&index) {
                by_hash.entry(*hash).or_default().push(one);
            }
        }
        if by_hash.len() < 2 {
            continue;
        }
        let agreed = by_hash.iter().find(|(_, same)| same.len() >= majority).map(|(hash, _)| *hash);
        let reported: usize = by_hash.values().map(Vec::len).sum();
        let largest = by_hash.values().map(Vec::len).max().unwrap_or(0);
        // Those that have not reported might make one.
        let may_agree = largest + voters.saturating_sub(reported) >= majority;
        if agreed.is_none() && may_agree {
            continue;
        }
        let differ = by_hash.into_iter().filter(|(hash, _)| Some(*hash) != agreed);
        let differ = differ.flat_map(|(_, same)| same);
        return Some(Divergence {
            index,
            differ: differ.map(|one| (one.node.clone(), one.replica)).collect(),
            is_minority: agreed.is_some(),
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(node: u64, hashes: &[(u64, u64)]) -> Said {
        let hashes = hashes.iter().copied().collect();
        Said { node: format!("node{node}"), replica: ReplicaId(node), hashes }
    }

    fn differ(said: &[Said], voters: usize) -> Option<(u64, Vec<u64>, bool)> {
        let found = compare(said, voters)?;
        let nodes = found.differ.into_iter().map(|(_, replica)| replica.0).collect();
        Some((found.index, nodes, found.is_minority))
    }

    #[test]
    fn replicas_that_agree_or_are_at_other_indexes_do_not_differ() {
        let one = [said(1, &[(64, 5), (90, 7)]), said(2, &[(64, 5), (91, 8)]), said(3, &[(64, 5)])];
        assert_eq!(differ(&one, 3), None);
        assert_eq!(differ(&[said(1, &[(64, 5)])], 3), None);
        assert_eq!(differ(&[], 3), None);
    }

    #[test]
    fn who_differs_from_the_majority_is_named() {
        let replicas =
            [said(1, &[(64, 5), (128, 6)]), said(2, &[(64, 5), (128, 6)]), said(3, &[(128, 9)])];
        assert_eq!(differ(&replicas, 3), Some((128, vec![3], true)));
    }

    #[test]
    fn two_of_three_that_differ_wait_for_the_third() {
        let two = [said(1, &[(64, 5)]), said(2, &[(64, 6)])];
        assert_eq!(differ(&two, 3), None);
        let late =
            [said(1, &[(64, 5), (128, 1)]), said(2, &[(64, 6), (128, 2)]), said(3, &[(64, 6)])];
        assert_eq!(differ(&late, 3), Some((64, vec![1], true)));
    }

    #[test]
    fn without_a_majority_all_are_out() {
        let replicas = [said(1, &[(64, 1)]), said(2, &[(64, 2)]), said(3, &[(64, 3)])];
        assert_eq!(differ(&replicas, 3), Some((64, vec![1, 2, 3], false)));
        let pair = [said(1, &[(64, 1)]), said(2, &[(64, 2)])];
        assert_eq!(differ(&pair, 2), Some((64, vec![1, 2], false)));
    }
}
