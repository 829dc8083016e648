//! A cluster in one thread, everything of which is decided by one seed.
//!
//! It drives the very workers and appliers that the threads of a node drive, on
//! in-memory logs that lose what was not synced, over a network that loses,
//! delays, reorders and duplicates messages, with clocks that drift and processes
//! that stand still, while replicas come and go, groups are split and merged, and
//! clients write and read. After each step the invariants in `sim/invariants` are
//! checked. A failing seed fails again in the same way.
//!
//! ```text
//! cargo run --release -p raft-lite --example sim -- --seeds 1000 --from 1
//! ```

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "it is a test")]

mod clients;
mod climate;
mod clock;
mod controller;
mod history;
mod invariants;
mod log;
mod machine;
mod meta;
mod network;
mod node;
mod peace;
pub(crate) mod planted;
mod storm;
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    config::Config,
    log_store::LogStore,
    membership::Membership,
    types::{GroupId, Index, NodeId, ReplicaId},
};

use clients::Look;
use climate::Climate;
use controller::{Controller, Mail};
use history::History;
use invariants::{Invariants, check_local_ownership};
use machine::{Change, Event, Pool, Slot};
use meta::Meta;
use network::Network;
use node::SimNode;

/// How a storm goes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Nodes, some of which have replicas at the beginning.
    pub nodes: u64,
    /// Raft groups.
    pub groups: u64,
    /// Steps of the storm; peace follows.
    pub steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { nodes: 5, groups: 2, steps: 1000 }
    }
}

/// What happened in a storm and the peace after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps, those of the peace included.
    pub steps: u64,
    /// Commands acknowledged.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads that a leader answered by its lease.
    pub lease_reads: u64,
    /// Reads that a follower answered.
    pub follower_reads: u64,
    /// Changes of members that took effect.
    pub changes: u64,
    /// Snapshots installed.
    pub snapshots: u64,
    /// Leaders elected.
    pub elections: u64,
    /// Crashes of nodes.
    pub crashes: u64,
    /// Groups split.
    pub splits: u64,
    /// Groups absorbed.
    pub merges: u64,
    /// Merges begun and rolled back.
    pub cancelled: u64,
    /// Replicas of absorbed groups that went with a snapshot.
    pub went_with_snapshot: u64,
    /// Groups deleted.
    pub deletions: u64,
}

impl Summary {
    fn count(&mut self, change: &Change) {
        match change {
            Change::Split { .. } => self.splits += 1,
            Change::Absorb { .. } => self.merges += 1,
            Change::Cancel { .. } => self.cancelled += 1,
            Change::Delete => self.deletions += 1,
            Change::Prepare { .. } | Change::Freeze { .. } | Change::Unfreeze { .. } => {}
        }
    }
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.lease_reads += other.lease_reads;
        self.follower_reads += other.follower_reads;
        self.changes += other.changes;
        self.snapshots += other.snapshots;
        self.elections += other.elections;
        self.crashes += other.crashes;
        self.splits += other.splits;
        self.merges += other.merges;
        self.cancelled += other.cancelled;
        self.went_with_snapshot += other.went_with_snapshot;
        self.deletions += other.deletions;
    }
}

/// Lets a storm loose on a cluster, then heals it and waits for it to settle.
///
/// # Panics
/// If an invariant is broken, a history is not linearizable, or the cluster makes
/// no progress once it is healed.
pub fn run(seed: u64, options: Options) -> Summary {
    let mut rng = SmallRng::seed_from_u64(seed);
    let climate = Climate::draw(&mut rng);
    let mut sim = Sim::new(seed, climate, options.nodes, options.groups);
    sim.storm(options.steps);
    sim.settle();
    sim.check_history();
    sim.check_slots();
    sim.rest();
    sim.summary()
}

/// Slots there are, at the least; at least one for each group at the beginning.
const FEWEST_SLOTS: Slot = 12;

/// So much true time passes in a step, at most.
const LONGEST_STEP: Duration = Duration::from_millis(10);

struct Sim {
    rng: SmallRng,
    /// True time.
    now: Duration,
    network: Arc<Mutex<Network>>,
    pool: Arc<Pool>,
    nodes: BTreeMap<NodeId, SimNode>,
    /// The groups that have a replica somewhere.
    groups: Vec<GroupId>,
    slots: Slot,
    meta: Meta,
    controllers: [Controller; 2],
    mail: Vec<Mail>,
    /// Leaders that the others confirmed, for a controller that looks at their state.
    confirmed: Arc<parking_lot::Mutex<BTreeMap<GroupId, (NodeId, u64)>>>,
    /// What `groups` was found from.
    versions: BTreeMap<NodeId, u64>,
    looks: Arc<parking_lot::Mutex<Vec<Look>>>,
    /// Structural changes that took effect, by kind.
    changed: BTreeSet<(GroupId, Index)>,
    history: Arc<parking_lot::Mutex<History>>,
    invariants: Invariants,
    next_command: u64,
    starts: u64,
    climate: Climate,
    /// Clients write.
    is_busy: bool,
    /// The node that came to lead last, if it is to be struck, and the step.
    doomed: Option<(NodeId, u64)>,
    /// How likely a node is to crash at a given point of a round.
    crashes: f64,
    seed: u64,
    summary: Summary,
}

impl Sim {
    fn new(seed: u64, climate: Climate, nodes: u64, groups: u64) -> Self {
        let mut sim = Sim {
            rng: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            network: Arc::new(Mutex::new(Network::new(nodes))),
            pool: Arc::default(),
            nodes: BTreeMap::new(),
            groups: (1..=groups).map(GroupId).collect(),
            slots: FEWEST_SLOTS.max(groups as Slot),
            meta: Meta::new(groups),
            controllers: Default::default(),
            mail: Vec::new(),
            confirmed: Arc::default(),
            versions: BTreeMap::new(),
            looks: Arc::default(),
            changed: BTreeSet::new(),
            history: Arc::default(),
            invariants: Invariants::default(),
            next_command: 0,
            starts: 0,
            climate,
            is_busy: true,
            doomed: None,
            crashes: 0.0,
            seed,
            summary: Summary::default(),
        };
        let founders = (1..=nodes.min(climate.founders)).map(|id| (ReplicaId(id), NodeId(id)));
        let membership = Membership::of_voters(founders.collect());
        for id in (1..=nodes).map(NodeId) {
            let node = SimNode::new(id, Arc::clone(&sim.pool), &mut sim.rng);
            for (number, group) in sim.groups.iter().enumerate() {
                let slots = (number as Slot..sim.slots).step_by(groups as usize).collect();
                node.machine.create(*group, (membership.clone(), slots), 0);
            }
            sim.nodes.insert(id, node);
        }
        for id in (1..=nodes).map(NodeId) {
            sim.start(id);
        }
        sim
    }

    fn config(&self) -> Config {
        Config {
            tick_interval: Duration::from_millis(20),
            apply_backlog_bytes: 2048,
            compact_threshold_entries: 8,
            compact_interval_ticks: 8,
            log_bytes_for_laggards: 4096,
            log_bytes_for_snapshots: 8192,
            promotion_lag_entries: 8,
            // An entry or two a message, for more states in between.
            max_message_bytes: self.climate.max_message_bytes,
            max_in_flight_bytes: self.climate.max_in_flight_bytes,
            max_uncommitted_bytes: 4096,
            quiesce_after_ticks: self.climate.quiesce_after_ticks,
            seed: self.seed ^ (self.starts << 32),
            ..Default::default()
        }
    }

    /// Starts a node from what its disk holds.
    fn start(&mut self, id: NodeId) {
        self.starts += 1;
        let config = self.config();
        let node = self.nodes.get_mut(&id).unwrap();
        node.start(id, config, Arc::clone(&self.network));
        self.invariants.applied.forget(id);
    }

    /// Stops a node as a power failure would: what was not synced is lost, from
    /// some point on.
    fn crash(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        self.summary.crashes += u64::from(node.crash(&mut self.rng));
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability.min(1.0))
    }

    /// Advances time a little, lets every node that is up run a round, and looks at
    /// what came of it.
    fn step(&mut self) {
        self.advance();
        self.control();
        self.look();
        self.check();
    }

    fn advance(&mut self) {
        self.summary.steps += 1;
        let time = LONGEST_STEP.mul_f64(self.rng.random_range(0.01..1.0));
        self.now += time;
        for node in self.nodes.values_mut() {
            node.pass(self.now, time);
        }
        self.deliver();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let speed = self.nodes[&id].speed;
            if self.rng.random_bool(speed) {
                self.run_node(id);
            }
        }
    }

    fn deliver(&mut self) {
        let mut network = self.network.lock().unwrap();
        let due = network.due(self.now, &mut self.rng);
        network.end_fetches(self.now, &mut self.rng);
        drop(network);
        for (from, to, message) in due {
            if message.asks_for_vote() && self.chance(self.climate.reboot_asked) {
                self.crash(to);
                self.start(to);
            }
            self.nodes.get_mut(&to).unwrap().receive(from, message);
        }
    }

    /// Runs a round of a node and then its applier, which may lag behind. Now and
    /// then the node crashes in the midst of it.
    fn run_node(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.run(&mut self.rng, self.crashes).is_err() {
            self.crash(id);
        }
    }

    fn check(&mut self) {
        let mut elected = None;
        let mut moved = false;
        for (id, node) in &self.nodes {
            for appended in node.log.take_appended() {
                self.invariants.logs.check(*id, &appended);
            }
            for event in node.machine.take_events() {
                match &event {
                    Event::Changed(group, at, change) if self.changed.insert((*group, *at)) => {
                        self.summary.count(change);
                    }
                    Event::WentWithSnapshot => self.summary.went_with_snapshot += 1,
                    _ => {}
                }
                self.invariants.check_event((*id, &node.machine), event);
            }
            let version = node.machine.version();
            if self.versions.insert(*id, version) != Some(version) {
                moved = true;
                self.invariants.destroyed.check(*id, &node.machine.replicas());
                check_local_ownership(*id, &node.machine);
            }
            for group in node.log.groups() {
                let replica = node.machine.replica(group);
                let state = node.log_state(group).filter(|s| replica.is_some() || s.is_ballot());
                if let Some(state) = state {
                    self.invariants.ballots.check(*id, group, replica, &state);
                }
            }
            for (group, _) in node.machine.replicas() {
                self.invariants.applied.check(*id, group, &node.machine);
            }
            for group in node.groups() {
                elected =
                    self.invariants.check_running(*id, node, group).then_some(*id).or(elected);
            }
        }
        self.summary.elections = self.invariants.elections.count();
        self.invariants.leases.check();
        self.invariants.serving.end();
        if moved {
            let replicas = self.nodes.values().flat_map(|node| node.machine.replicas());
            let groups: BTreeSet<GroupId> = replicas.map(|(group, _)| group).collect();
            self.groups = groups.into_iter().collect();
        }
        if let Some(leader) = elected
            && self.chance(self.climate.strike_elected)
        {
            // At once, or while its followers are brought in line.
            let steps = if self.chance(0.5) { 0 } else { self.rng.random_range(1..8) };
            self.doomed = Some((leader, self.summary.steps + steps));
        }
    }

    fn random_node(&mut self) -> NodeId {
        NodeId(self.rng.random_range(1..=self.nodes.len() as u64))
    }

    fn summary(&self) -> Summary {
        let history = self.history.lock();
        let acknowledged: usize = history.acknowledged.values().map(Vec::len).sum();
        let installed: u64 = self.nodes.values().map(|node| node.machine.installed()).sum();
        Summary {
            acknowledged: acknowledged as u64,
            reads: history.reads as u64,
            lease_reads: history.lease_reads as u64,
            follower_reads: history.follower_reads as u64,
            changes: history.changes as u64,
            snapshots: installed,
            ..self.summary
        }
    }
}

/// One of several, each as likely.
fn pick<'a, T>(rng: &mut SmallRng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}
