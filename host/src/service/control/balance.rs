//! The balancer: it keeps as many replicas as there should be, spreads them and the
//! leaders over the nodes, and splits what is large and merges what is small. Everything
//! it does is an operation with a reason, logged and counted.

mod sizes;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_kv_proto::v1::{NodeReport, ReplicaReport, TransferOrder, order::Kind};
use raft_lite::GroupId;

use super::{FIND_WITHIN, reports};
use crate::{
    meta::{
        Begin, Change, META_GROUP, META_NAME, META_REPLICAS, MetaState, REPLICAS, Task, TaskKind,
    },
    service::Service,
    storage::{ShardRecord, node_number},
};

/// Between two decisions.
const DECIDE_EVERY: Duration = Duration::from_millis(250);
/// Operations of its own that run at once.
const AT_ONCE: usize = 2;
/// A node that has not reported for so long is down.
const DOWN_AFTER: Duration = Duration::from_secs(12);

/// When the balancer does what.
#[derive(Clone, Copy, Debug)]
pub struct BalancerConfig {
    /// A node gone for longer is replaced.
    pub replace_after: Duration,
    /// What is missing or uneven for so long is mended.
    pub settle: Duration,
    /// A shard with more bytes is split.
    pub split_bytes: u64,
    /// A shard that answers more operations a second is split; 0 for never.
    pub split_operations: u64,
    /// Shards with fewer bytes, made by a split of the balancer's, are merged again.
    pub merge_bytes: u64,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        BalancerConfig {
            replace_after: Duration::from_secs(300),
            settle: Duration::from_secs(10),
            split_bytes: 4 << 30,
            split_operations: 100_000,
            merge_bytes: 16 << 20,
        }
    }
}

/// What was seen of a node.
struct Seen {
    at: Instant,
    replicas: BTreeMap<GroupId, ReplicaSeen>,
}

/// What was seen of a replica.
struct ReplicaSeen {
    leads: bool,
    bytes: u64,
    operations: u64,
    halted: String,
}

impl Seen {
    /// What a node said when it was asked at `at`.
    fn of(report: NodeReport, at: Instant) -> Self {
        let replica = |report: ReplicaReport| {
            let record = ShardRecord::decode(&report.record).ok()?;
            let seen = ReplicaSeen {
                leads: report.leads,
                bytes: report.bytes,
                operations: report.operations,
                halted: report.halted,
            };
            Some((record.group, seen))
        };
        let replicas = report.replicas.into_iter().filter_map(replica).collect();
        Seen { at, replicas }
    }
}

/// See the module.
pub(super) struct Balancer {
    config: BalancerConfig,
    began: Instant,
    decided: Instant,
    /// Something was seen since a leader was last asked to hand over.
    may_transfer: bool,
    seen: BTreeMap<String, Seen>,
    /// Since when each thing that is not as it should be is so.
    since: BTreeMap<String, Instant>,
    /// Operations answered by each shard's replicas at the last look, and for how many
    /// looks they were too many.
    loads: BTreeMap<GroupId, (u64, Instant, u32)>,
}

/// Something to do.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Decision {
    Begin(Task, &'static str, String),
    Transfer { group: GroupId, shard: String, to: String },
}

impl Balancer {
    pub(super) fn new(config: BalancerConfig) -> Self {
        Balancer {
            config,
            began: Instant::now(),
            decided: Instant::now(),
            may_transfer: false,
            seen: BTreeMap::new(),
            since: BTreeMap::new(),
            loads: BTreeMap::new(),
        }
    }

    /// Takes note of what the nodes said.
    pub(super) fn note(&mut self, seen: reports::Seen, copy: &MetaState) {
        let at = seen.at;
        let reports = seen.nodes.into_iter();
        self.seen.extend(reports.map(|(node, report)| (node, Seen::of(report, at))));
        self.seen.retain(|node, _| copy.nodes.contains_key(node));
        self.note_loads(Instant::now());
        self.may_transfer = true;
    }

    /// Does what is most urgent.
    pub(super) async fn look_after(&mut self, service: &Arc<Service>, copy: &Arc<MetaState>) {
        if !copy.balancer {
            self.since.clear();
        } else if self.decided.elapsed() >= DECIDE_EVERY {
            self.decided = Instant::now();
            self.act(service, copy).await;
        }
    }

    async fn act(&mut self, service: &Service, copy: &MetaState) {
        let own = |o: &&crate::meta::Operation| o.is_running() && o.reason.starts_with("balancer");
        if copy.operations.values().filter(own).count() >= AT_ONCE {
            return;
        }
        let mut wrong = Vec::new();
        let decision = self.decide(service, copy, &mut wrong);
        // What is as it should be again begins anew.
        self.since.retain(|what, _| wrong.contains(what));
        match decision {
            None => {}
            Some(Decision::Begin(task, reason, why)) => {
                let kind = task.kind().name();
                let operation = crate::meta::Operation { task: task.clone(), ..Default::default() };
                tracing::info!("balancer: {}, because {why}", operation.description());
                service.metrics.count_decision(kind, reason);
                let begin = Begin { task, request_id: 0, reason: format!("balancer: {why}") };
                if let Err(error) = service.tell_meta(Change::Begin(begin)).await {
                    tracing::warn!("balancer: it does not begin: {error}");
                }
            }
            Some(Decision::Transfer { group, shard, to }) => {
                tracing::info!("balancer: {to} takes over {shard}, because it leads the fewest");
                service.metrics.count_decision("transfer_leader", "leaders");
                let kind = Kind::Transfer(TransferOrder { group: group.0, to });
                if let Err(error) = service.order_leader(group, kind, FIND_WITHIN).await {
                    tracing::info!("balancer: {shard} is not handed over: {error}");
                }
            }
        }
    }

    /// Whether something has been wrong for a while; it is noted that it is.
    fn lasts(&mut self, what: String, wrong: &mut Vec<String>, least: Duration) -> bool {
        let since = *self.since.entry(what.clone()).or_insert_with(Instant::now);
        wrong.push(what);
        since.elapsed() >= least
    }

    fn is_up(&self, node: &str) -> bool {
        self.seen.get(node).is_some_and(|seen| seen.at.elapsed() < DOWN_AFTER)
    }

    /// The first thing to do, the most urgent first.
    fn decide(
        &mut self,
        service: &Service,
        copy: &MetaState,
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let up: Vec<String> = copy
            .nodes
            .iter()
            .filter(|(id, node)| !node.draining && self.is_up(id))
            .map(|(id, _)| id.clone())
            .collect();
        let free =
            |shard: &&ShardRecord| copy.operation_on(shard.group).is_none() && shard.may_change();
        let shards: Vec<&ShardRecord> = copy.user_shards().filter(free).collect();
        self.keep_meta(copy, &up, wrong)
            .or_else(|| self.replace_gone(service, copy, &shards, wrong))
            .or_else(|| self.drop_lost(copy, &shards, wrong))
            .or_else(|| self.add_missing(service, copy, &shards, &up, wrong))
            .or_else(|| self.spread_replicas(copy, &shards, &up, wrong))
            .or_else(|| self.spread_leaders(copy, &shards, &up, wrong))
            .or_else(|| self.split_large(copy, &shards))
            .or_else(|| self.merge_small(&shards, wrong))
    }

    /// The cluster's own group has an odd number of replicas, up to five.
    fn keep_meta(
        &mut self,
        copy: &MetaState,
        up: &[String],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let meta = copy.shards.get(&META_GROUP)?;
        if copy.operation_on(META_GROUP).is_some() {
            return None;
        }
        let settle = self.config.settle;
        if let Some(node) = self.gone(meta, copy) {
            let what = format!("{META_NAME} on {node}");
            let to = up.iter().find(|id| !meta.nodes.values().any(|on| on == *id));
            if self.lasts(what, wrong, self.config.replace_after) {
                let why = format!("node {node} is gone");
                return match to {
                    Some(to) => Some(migrate(META_NAME, &node, to, "gone", why)),
                    None => Some(remove(META_NAME, &node, "gone", why)),
                };
            }
        }
        let wanted = match up.len() {
            0..=2 => 1,
            3 | 4 => 3,
            _ => META_REPLICAS,
        };
        let to = up.iter().find(|id| !meta.nodes.values().any(|on| on == *id))?;
        let is_short = meta.membership.voters.len() < wanted;
        if is_short && self.lasts(format!("{META_NAME} is short"), wrong, settle / 4) {
            let why = format!("{wanted} nodes should replicate the cluster's own group");
            return Some(add(META_NAME, to, "short", why));
        }
        None
    }

    /// A node with a replica of the shard that does not report.
    fn gone(&self, shard: &ShardRecord, copy: &MetaState) -> Option<String> {
        let is_gone = |node: &&String| {
            // A new leader of the cluster's own group has not heard of anybody yet.
            !copy.nodes.contains_key(*node)
                || (!self.is_up(node) && self.began.elapsed() >= DOWN_AFTER)
        };
        shard.nodes.values().find(is_gone).cloned()
    }

    fn replace_gone(
        &mut self,
        service: &Service,
        copy: &MetaState,
        shards: &[&ShardRecord],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let mut decision = None;
        for shard in shards {
            let Some(node) = self.gone(shard, copy) else { continue };
            let lasts = self.lasts(format!("{node} is gone"), wrong, self.config.replace_after);
            if lasts && decision.is_none() {
                let to = service.best_node(copy, shard);
                let why = format!("node {node} has been gone for too long");
                decision = to.map(|to| migrate(&shard.name, &node, &to, "gone", why));
            }
        }
        decision
    }

    /// A replica that its node has lost, or that does not work any more, goes; another is
    /// added then.
    fn drop_lost(
        &mut self,
        copy: &MetaState,
        shards: &[&ShardRecord],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let meta = copy.shards.get(&META_GROUP);
        let meta = meta.filter(|_| copy.operation_on(META_GROUP).is_none());
        let mut found = Vec::new();
        for shard in shards.iter().copied().chain(meta) {
            for node in shard.nodes.values().filter(|node| self.is_up(node)) {
                let own = self.seen[node].replicas.get(&shard.group);
                let lost = copy.nodes.get(node).is_some_and(|n| shard.group.0 < n.fresh_from);
                let why = match own {
                    None if lost => format!("node {node} has lost its replica"),
                    Some(report) if !report.halted.is_empty() => {
                        format!("the replica on {node} does not work: {}", report.halted)
                    }
                    _ => continue,
                };
                found.push((shard, node.clone(), why));
            }
        }
        let mut decision = None;
        for (shard, node, why) in found {
            let replica = shard.membership.replica_on(node_number(&node)).unwrap_or_default();
            let what = format!("replica {replica} of {} on {node} is lost", shard.name);
            let lasts = self.lasts(what.clone(), wrong, self.config.settle);
            // What was seen may be from before this replica came.
            let was_seen_since = self.since[&what] < self.seen[&node].at;
            let is_last = shard.membership.voters.len() <= 1;
            if lasts && was_seen_since && !is_last && decision.is_none() {
                decision = Some(remove(&shard.name, &node, "lost", why));
            }
        }
        decision
    }

    fn add_missing(
        &mut self,
        service: &Service,
        copy: &MetaState,
        shards: &[&ShardRecord],
        up: &[String],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let wanted = REPLICAS.min(up.len());
        let mut decision = None;
        for shard in shards.iter().filter(|shard| shard.membership.voters.len() < wanted) {
            let lasts = self.lasts(format!("{} is short", shard.name), wrong, self.config.settle);
            if lasts && decision.is_none() {
                let to = service.best_node(copy, shard);
                let has = shard.membership.voters.len();
                let why = format!("it has {has} replicas and should have {wanted}");
                decision = to.map(|to| add(&shard.name, &to, "short", why));
            }
        }
        decision
    }

    fn spread_replicas(
        &mut self,
        copy: &MetaState,
        shards: &[&ShardRecord],
        up: &[String],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        let load = |node: &&String| copy.replicas_on(node);
        let (most, least) = (up.iter().max_by_key(load)?, up.iter().min_by_key(load)?);
        let (high, low) = (copy.replicas_on(most), copy.replicas_on(least));
        if high < low + 2 {
            return None;
        }
        let on = |shard: &ShardRecord, node: &str| shard.nodes.values().any(|on| on == node);
        let shard = shards.iter().find(|shard| on(shard, most) && !on(shard, least))?;
        let settle = self.config.settle;
        let lasts = self.lasts(format!("{most} has more than {least}"), wrong, settle);
        let why = format!("{most} has {high} replicas and {least} has {low}");
        lasts.then(|| migrate(&shard.name, most, least, "replicas", why))
    }

    fn spread_leaders(
        &mut self,
        copy: &MetaState,
        shards: &[&ShardRecord],
        up: &[String],
        wrong: &mut Vec<String>,
    ) -> Option<Decision> {
        if !self.may_transfer {
            return None;
        }
        let mut led: BTreeMap<&str, usize> = up.iter().map(|node| (node.as_str(), 0)).collect();
        let mut leader_of = BTreeMap::new();
        for (node, seen) in &self.seen {
            for (group, _) in seen.replicas.iter().filter(|(_, replica)| replica.leads) {
                if *group != META_GROUP && copy.shards.contains_key(group) {
                    *led.entry(node.as_str()).or_default() += 1;
                    leader_of.insert(*group, node.clone());
                }
            }
        }
        let (most, high) = led.iter().max_by_key(|(_, led)| **led)?;
        let (most, high) = ((*most).to_owned(), *high);
        let mut fewer: Vec<(usize, String)> = led
            .iter()
            .filter(|(_, led)| **led + 2 <= high)
            .map(|(n, l)| (*l, (*n).to_owned()))
            .collect();
        fewer.sort();
        let found = fewer.into_iter().find_map(|(_, to)| {
            let number = node_number(&to);
            let could = |shard: &&&ShardRecord| {
                leader_of.get(&shard.group) == Some(&most)
                    && shard.membership.voters.values().any(|on| *on == number)
            };
            shards.iter().find(could).map(|shard| (shard, to))
        });
        let (shard, to) = found?;
        let lasts = self.lasts(format!("{most} leads most"), wrong, self.config.settle);
        self.may_transfer &= !lasts;
        lasts.then(|| Decision::Transfer { group: shard.group, shard: shard.name.clone(), to })
    }
}

fn migrate(shard: &str, from: &str, to: &str, reason: &'static str, why: String) -> Decision {
    let mut task = Task {
        shard: shard.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        ..Task::default()
    };
    task.set_kind(TaskKind::Migrate);
    Decision::Begin(task, reason, why)
}

fn add(shard: &str, to: &str, reason: &'static str, why: String) -> Decision {
    let mut task = Task { shard: shard.to_owned(), to: to.to_owned(), ..Task::default() };
    task.set_kind(TaskKind::AddReplica);
    Decision::Begin(task, reason, why)
}

fn remove(shard: &str, from: &str, reason: &'static str, why: String) -> Decision {
    let mut task = Task { shard: shard.to_owned(), from: from.to_owned(), ..Task::default() };
    task.set_kind(TaskKind::RemoveReplica);
    Decision::Begin(task, reason, why)
}
