//! A cluster in one thread, everything of which is decided by one seed.
//!
//! It drives the very workers and appliers that the threads of a node drive, on
//! in-memory logs that lose what was not synced, over a network that loses,
//! delays, reorders and duplicates messages. After each step the invariants in
//! [`invariants`] are checked. A failing seed fails again in the same way.

mod invariants;
mod machine;
mod network;
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    applier::{Applier, ApplyTask},
    clock::{BootTime, Clock},
    config::{Config, GroupDescriptor},
    entry::Command,
    log_store::{LogStore, MemoryLogStore},
    proposal::{Budget, PendingProposal, PendingRead, PendingReply, RequestError},
    runtime::prepare_logs,
    shared::GroupShared,
    state_machine::CommandOutcome,
    types::{GroupId, INITIAL_POSITION, Index, NodeId, ReplicaId},
    worker::{Input, Worker, WorkerParts},
};

use invariants::Invariants;
use machine::SimMachine;
use network::{Network, SimTransport};

/// Virtual time, common to all nodes.
#[derive(Default)]
struct SimClock {
    nanos: AtomicU64,
}

impl Clock for SimClock {
    fn now(&self) -> BootTime {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn unix_millis(&self) -> u64 {
        self.now().as_millis() as u64
    }
}

/// What survives a crash of a node, and the running rest if it is up.
struct SimNode {
    log: Arc<MemoryLogStore>,
    machine: Arc<SimMachine>,
    running: Option<Running>,
}

struct Running {
    worker: Worker,
    applier: Applier,
    /// What the worker handed over and the applier has not come to.
    queue: VecDeque<ApplyTask>,
    woken: Receiver<GroupId>,
    shared: BTreeMap<GroupId, Arc<GroupShared>>,
}

/// What a client did and was told.
#[derive(Default)]
struct History {
    /// Commands acknowledged, by group.
    acknowledged: BTreeMap<GroupId, Vec<u64>>,
    /// Reads answered: the number of commands acknowledged when each was asked,
    /// and the index the read saw.
    reads: Vec<(GroupId, usize, NodeId, Index)>,
    /// The highest index that a read saw.
    seen: BTreeMap<GroupId, Index>,
    /// How many of them a leader answered by its lease.
    lease_reads: usize,
    refused: usize,
}

impl History {
    /// A read was answered; no read may see less than one that was answered before
    /// it was asked.
    fn read(&mut self, read: (GroupId, usize, NodeId, Index), before: Index) {
        let (group, _, node, index) = read;
        assert!(
            index >= before,
            "a read of group {group} at node {node} saw index {index}, but one that was answered \
             before it was asked saw {before}"
        );
        let seen = self.seen.entry(group).or_default();
        *seen = (*seen).max(index);
        self.reads.push(read);
    }
}

struct Sim {
    rng: SmallRng,
    clock: Arc<SimClock>,
    network: Arc<Mutex<Network>>,
    nodes: BTreeMap<NodeId, SimNode>,
    groups: Vec<GroupId>,
    history: Arc<Mutex<History>>,
    invariants: Invariants,
    next_command: u64,
    restarts: u64,
    /// How likely a node is to crash in a round.
    crash_in_round: f64,
    seed: u64,
}

impl Sim {
    fn new(seed: u64, nodes: u64, groups: u64) -> Self {
        let mut sim = Sim {
            rng: SmallRng::seed_from_u64(seed),
            clock: Arc::new(SimClock::default()),
            network: Arc::default(),
            nodes: BTreeMap::new(),
            groups: (1..=groups).map(GroupId).collect(),
            history: Arc::default(),
            invariants: Invariants::default(),
            next_command: 0,
            restarts: 0,
            crash_in_round: 0.0,
            seed,
        };
        for id in (1..=nodes).map(NodeId) {
            let node = SimNode {
                log: Arc::new(MemoryLogStore::new()),
                machine: Arc::new(SimMachine::new()),
                running: None,
            };
            sim.nodes.insert(id, node);
        }
        for id in (1..=nodes).map(NodeId) {
            sim.start(id);
        }
        sim
    }

    fn config(&self) -> Config {
        Config {
            apply_backlog_bytes: 2048,
            compact_threshold_entries: 8,
            seed: self.seed ^ self.restarts,
            ..Default::default()
        }
    }

    fn descriptors(&self, node: NodeId) -> Vec<GroupDescriptor> {
        let voters: BTreeMap<ReplicaId, NodeId> =
            self.nodes.keys().map(|node| (ReplicaId(node.0), *node)).collect();
        let describe = |group: &GroupId| GroupDescriptor {
            group: *group,
            replica: ReplicaId(node.0),
            voters: voters.clone(),
            epoch: 1,
            record: self.nodes[&node].machine.record(*group),
        };
        self.groups.iter().map(describe).collect()
    }

    /// Starts a node from what its disk holds.
    fn start(&mut self, id: NodeId) {
        self.restarts += 1;
        let descriptors = self.descriptors(id);
        let config = self.config();
        let node = self.nodes.get_mut(&id).unwrap();
        let (runnable, quarantined) = prepare_logs(&*node.log, descriptors).unwrap();
        assert!(quarantined.is_empty(), "a crash must not damage a replica: {quarantined:?}");
        node.machine.note_started();
        let parts = WorkerParts {
            config,
            log: Arc::clone(&node.log) as Arc<dyn LogStore>,
            state_machine: Arc::clone(&node.machine) as _,
            transport: Arc::new(SimTransport::new(id, Arc::clone(&self.network))),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        };
        let (wake, woken) = channel();
        let wake = Box::new(move |group| wake.send(group).expect("the node holds the other end"));
        let mut worker = Worker::new(parts.clone(), true);
        let mut shared = BTreeMap::new();
        for (descriptor, log) in runnable {
            let group = descriptor.group;
            shared.insert(group, worker.add_group(descriptor, log).unwrap());
        }
        let applier = Applier::new(parts.state_machine, wake);
        let queue = VecDeque::new();
        node.running = Some(Running { worker, applier, queue, woken, shared });
    }

    /// Stops a node as a power failure would: what was not synced is lost, from
    /// some point on.
    fn crash(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.running.take().is_none() {
            return;
        }
        node.log.crash(self.rng.random_range(0..4));
        node.machine.crash(&mut self.rng);
    }

    /// Advances time a little and lets every node that is up run a round.
    fn step(&mut self) {
        let nanos = self.rng.random_range(100_000..10_000_000);
        self.clock.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.deliver();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            // Now and then a node is slow.
            if self.rng.random_bool(0.9) {
                self.run(id);
            }
        }
        self.check();
    }

    fn deliver(&mut self) {
        let due = self.network.lock().unwrap().due(self.clock.now(), &mut self.rng);
        for (from, to, message) in due {
            if let Some(running) = self.nodes.get_mut(&to).and_then(|node| node.running.as_mut()) {
                running.worker.handle(Input::Messages(from, vec![message]));
            }
        }
    }

    /// Runs a round of a node and then its applier, which may lag behind. Now and
    /// then the node crashes in the middle of the round: after the messages that
    /// may leave early, before the log is written.
    fn run(&mut self, id: NodeId) {
        let crashes = self.rng.random_bool(self.crash_in_round);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(running) = node.running.as_mut() else { return };
        for group in running.woken.try_iter() {
            running.worker.handle(Input::Wake(group));
        }
        node.log.fail_writes(crashes);
        let round = running.worker.round();
        node.log.fail_writes(false);
        match round {
            Ok(tasks) => running.queue.extend(tasks),
            Err(_) => return self.crash(id),
        }
        let count = self.rng.random_range(0..=running.queue.len());
        running.applier.run(running.queue.drain(..count).collect());
    }

    fn check(&mut self) {
        for (id, node) in &self.nodes {
            for shared in node.running.iter().flat_map(|running| running.shared.values()) {
                let status = shared.status();
                assert_eq!(status.halted, None, "seed {}: node {id} halted", self.seed);
                self.invariants.one_leader_a_term(self.seed, *id, &status);
            }
            for group in &self.groups {
                let state = node.log.state(*group).unwrap();
                self.invariants.ballots_never_go_back(self.seed, *id, *group, state);
                self.invariants.applied_entries_agree(self.seed, *id, *group, &node.machine);
            }
        }
    }

    /// Proposes a command with a number of its own at some node.
    fn propose(&mut self) {
        let group = self.groups[self.rng.random_range(0..self.groups.len())];
        let id = self.random_node();
        let number = self.next_command;
        self.next_command += 1;
        let history = Arc::clone(&self.history);
        let Some(running) = self.nodes.get_mut(&id).and_then(|node| node.running.as_mut()) else {
            return;
        };
        let reply = Box::new(move |result: Result<Vec<CommandOutcome>, RequestError>| {
            let mut history = history.lock().unwrap();
            match result {
                Ok(outcomes) => {
                    let echo = Bytes::copy_from_slice(&number.to_be_bytes());
                    assert_eq!(outcomes, [CommandOutcome::Applied(echo)]);
                    history.acknowledged.entry(group).or_default().push(number);
                }
                Err(_) => history.refused += 1,
            }
        });
        let permit = Budget::new(1 << 20).take(1).unwrap();
        let command = Command {
            payload: Bytes::copy_from_slice(&number.to_be_bytes()),
            ..Default::default()
        };
        running.worker.handle(Input::Propose(PendingProposal {
            group,
            commands: vec![command],
            reply: PendingReply::new(reply, permit),
        }));
    }

    /// Asks for a linearizable read at some node.
    fn read(&mut self) {
        let group = self.groups[self.rng.random_range(0..self.groups.len())];
        let id = self.random_node();
        let history = Arc::clone(&self.history);
        let (acknowledged, before) = {
            let history = history.lock().unwrap();
            let acknowledged = history.acknowledged.get(&group).map_or(0, Vec::len);
            (acknowledged, history.seen.get(&group).copied().unwrap_or_default())
        };
        let Some(running) = self.nodes.get_mut(&id).and_then(|node| node.running.as_mut()) else {
            return;
        };
        let shared = &running.shared[&group];
        if shared.reads_locally(self.clock.now()) {
            let seen = (group, acknowledged, id, shared.applied());
            let mut history = self.history.lock().unwrap();
            history.read(seen, before);
            history.lease_reads += 1;
            return;
        }
        let reply = Box::new(move |result: Result<Index, RequestError>| {
            if let Ok(index) = result {
                history.lock().unwrap().read((group, acknowledged, id, index), before);
            }
        });
        let permit = Budget::new(1 << 20).take(1).unwrap();
        running.worker.handle(Input::Read(group, PendingRead::new(reply, permit)));
    }

    fn random_node(&mut self) -> NodeId {
        NodeId(self.rng.random_range(1..=self.nodes.len() as u64))
    }

    /// Runs without faults until every node applied the same, or too long.
    fn heal_and_settle(&mut self) {
        self.crash_in_round = 0.0;
        self.network.lock().unwrap().heal();
        let down: Vec<NodeId> =
            self.nodes.iter().filter(|(_, n)| n.running.is_none()).map(|(id, _)| *id).collect();
        for id in down {
            self.start(id);
        }
        for _ in 0..4000 {
            self.step();
            if self.is_settled() {
                return;
            }
        }
        panic!("seed {}: the cluster made no progress after it was healed", self.seed);
    }

    fn is_settled(&self) -> bool {
        self.groups.iter().all(|group| {
            let replicas =
                || self.nodes.values().map(|node| &node.running.as_ref().unwrap().shared[group]);
            let statuses: Vec<_> = replicas().map(|shared| shared.status()).collect();
            let first = &statuses[0];
            // A new leader's log may hold more than it knows to be committed.
            replicas().any(|shared| shared.leads_settled())
                && first.applied > INITIAL_POSITION.index
                && statuses.iter().all(|s| {
                    s.leader == first.leader && s.applied == first.applied && s.commit == s.applied
                })
        })
    }
}
