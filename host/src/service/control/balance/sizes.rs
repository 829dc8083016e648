//! Shards that are large or busy are split, and small ones that came of that go back.

use std::{collections::BTreeMap, time::Instant};

use raft_lite::GroupId;

use super::{Balancer, Decision};
use crate::{
    meta::{MetaState, Task, TaskKind},
    storage::{ShardRecord, count},
};

/// A load must last for so many looks.
const LOADED_LOOKS: u32 = 5;
/// What stands behind the name of a shard that the balancer made.
const CHILD_MARK: &str = "-part";

impl Balancer {
    fn bytes_of(&self, group: GroupId) -> u64 {
        let of_group = self.seen.values().filter_map(|seen| seen.replicas.get(&group));
        of_group.map(|replica| replica.bytes).max().unwrap_or(0)
    }

    pub(super) fn note_loads(&mut self, now: Instant) {
        let mut answered: BTreeMap<GroupId, u64> = BTreeMap::new();
        for (group, replica) in self.seen.values().flat_map(|seen| &seen.replicas) {
            *answered.entry(*group).or_default() += replica.operations;
        }
        let limit = self.config.split_operations;
        self.loads = answered
            .into_iter()
            .map(|(group, answered)| {
                let looks = match self.loads.get(&group) {
                    Some((before, at, looks)) if limit > 0 => {
                        let seconds = now.duration_since(*at).as_secs_f64().max(0.1);
                        let rate = answered.saturating_sub(*before) as f64 / seconds;
                        if rate >= limit as f64 { looks + 1 } else { 0 }
                    }
                    _ => 0,
                };
                (group, (answered, now, looks))
            })
            .collect();
    }

    pub(super) fn split_large(
        &self,
        copy: &MetaState,
        shards: &[&ShardRecord],
    ) -> Option<Decision> {
        shards.iter().filter(|shard| count(&shard.slots) >= 2).find_map(|shard| {
            let bytes = self.bytes_of(shard.group);
            let looks = self.loads.get(&shard.group).map_or(0, |(_, _, looks)| *looks);
            let (reason, why) = if bytes >= self.config.split_bytes {
                ("size", format!("it has {bytes} bytes"))
            } else if looks >= LOADED_LOOKS {
                ("load", "it answers many operations".to_owned())
            } else {
                return None;
            };
            let parent = shard.name.split(CHILD_MARK).next().unwrap_or_default();
            let new_shard = format!("{parent}{CHILD_MARK}{}", copy.next_group);
            let mut task = Task { shard: shard.name.clone(), new_shard, ..Task::default() };
            task.set_kind(TaskKind::Split);
            Some(Decision::Begin(task, reason, why))
        })
    }

    /// Shards that the balancer made and that have become small go back.
    pub(super) fn merge_small(
        &mut self,
        shards: &[&ShardRecord],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let found = shards.iter().find_map(|source| {
            let (parent, _) = source.name.split_once(CHILD_MARK)?;
            let target = shards.iter().find(|shard| shard.name == parent)?;
            let is_small = |shard: &ShardRecord| {
                let is_idle = self.loads.get(&shard.group).is_none_or(|(_, _, looks)| *looks == 0);
                self.bytes_of(shard.group) < self.config.merge_bytes && is_idle
            };
            (is_small(source) && is_small(target)).then_some((source, target))
        });
        let (source, target) = found?;
        let what = format!("{} is small", source.name);
        // Splitting and merging in turn would help nobody.
        let lasts = self.lasts(what, wrong, self.config.settle * 30);
        lasts.then(|| {
            let sources = vec![source.name.clone()];
            let mut task = Task { shard: target.name.clone(), sources, ..Task::default() };
            task.set_kind(TaskKind::Merge);
            Decision::Begin(task, "small", "both shards are small".to_owned())
        })
    }
}
