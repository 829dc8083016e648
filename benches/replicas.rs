//! Three nodes in one process: real Raft logs with real fsyncs, and a state machine
//! that does nothing. Messages are handed over without a network, so that what is
//! measured is the runtime's own cost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use raft_lite::{
    ApplyError, Command, CommandOutcome, Config, Effects, EngineLogStore, EngineOptions,
    FetchReply, GroupDescriptor, GroupEntries, GroupId, INITIAL_POSITION, Index, Membership,
    MultiRaft, NodeId, Parts, Proposal, RaftMessage, ReplicaId, ReplicaRecord, SnapshotMeta,
    SnapshotReply, StateMachine, SystemClock, Transport,
};

const NODES: u64 = 3;

/// Three nodes with replicas of the same groups.
pub struct Replicas {
    nodes: Vec<Arc<MultiRaft>>,
    /// The node that leads each group.
    leaders: Vec<usize>,
    _folder: tempfile::TempDir,
}

impl Replicas {
    /// Starts them with so many groups, whose commands do nothing, and waits until each has a
    /// leader.
    pub fn start(groups: u64) -> Self {
        Replicas::with(groups, |_| Arc::new(Idle { applied: OnceLock::new(), groups }))
    }

    /// Starts them with one group, which each node, by its place, applies to this.
    pub fn of(machine: impl Fn(usize) -> Arc<dyn StateMachine>) -> Self {
        Replicas::with(1, machine)
    }

    fn with(groups: u64, machine: impl Fn(usize) -> Arc<dyn StateMachine>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let wires: Vec<Arc<Wire>> = (1..=NODES).map(|id| Arc::new(Wire::of(NodeId(id)))).collect();
        let voters: BTreeMap<_, _> = (1..=NODES).map(|id| (ReplicaId(id), NodeId(id))).collect();
        let start = |id: u64| {
            let path = folder.path().join(id.to_string());
            let log = EngineLogStore::open(&path, EngineOptions::default());
            let parts = Parts {
                log: Arc::new(log.expect("a new log opens")),
                state_machine: machine(id as usize - 1),
                transport: Arc::clone(&wires[id as usize - 1]) as _,
                clock: Arc::new(SystemClock),
            };
            let descriptor = |group| GroupDescriptor {
                group: GroupId(group),
                replica: ReplicaId(id),
                membership: Membership::of_voters(voters.clone()),
                epoch: 1,
                record: ReplicaRecord {
                    applied: INITIAL_POSITION,
                    started: false,
                    applied_by_snapshot: false,
                },
            };
            let config = Config { seed: id, ..Config::default() };
            let started = MultiRaft::start(config, parts, (1..=groups).map(descriptor).collect());
            Arc::new(started.expect("the nodes start"))
        };
        let nodes: Vec<_> = (1..=NODES).map(start).collect();
        for wire in &wires {
            wire.nodes.get_or_init(|| nodes.clone());
        }
        let leader_of = |group| loop {
            let leads = |node: &Arc<MultiRaft>| node.leads_settled(GroupId(group));
            match nodes.iter().position(leads) {
                Some(place) => break place,
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        let leaders = (1..=groups).map(leader_of).collect();
        Replicas { nodes, leaders, _folder: folder }
    }

    /// The node that leads a group.
    pub fn leader(&self, group: GroupId) -> &Arc<MultiRaft> {
        &self.nodes[self.leaders[group.0 as usize - 1]]
    }

    /// A node that does not lead a group.
    pub fn follower(&self, group: GroupId) -> &Arc<MultiRaft> {
        &self.nodes[(self.leaders[group.0 as usize - 1] + 1) % self.nodes.len()]
    }

    /// Proposes these commands to the first group, `at_once` of them at any time, and waits for
    /// all.
    pub fn propose_each(&self, commands: Vec<Command>, at_once: u64) {
        let group = GroupId(1);
        keep_busy(commands.len() as u64, at_once, |number, done| {
            let commands = vec![commands[number as usize].clone()];
            let reply = Box::new(move |result: Result<Vec<CommandOutcome>, _>| {
                done(result.is_ok());
            });
            self.leader(group).propose(Proposal { group, commands, makes_room: false, reply });
        });
    }

    /// Proposes `count` commands of so many bytes, `at_once` of them at any time, to
    /// all groups in turn, and waits for all.
    pub fn propose(&self, count: u64, at_once: u64, command: &Bytes) {
        let groups = self.leaders.len() as u64;
        keep_busy(count, at_once, |number, done| {
            let group = GroupId(number % groups + 1);
            let commands = vec![Command { payload: command.clone(), ..Command::default() }];
            let reply = Box::new(move |result: Result<Vec<CommandOutcome>, _>| {
                done(result.is_ok());
            });
            self.leader(group).propose(Proposal { group, commands, makes_room: false, reply });
        });
    }
}

/// Asks for `count` linearizable reads of a group at a node, `at_once` of them at any
/// time, and waits for all.
pub fn read(node: &MultiRaft, group: GroupId, count: u64, at_once: u64) {
    keep_busy(count, at_once, |_, done| {
        node.read(group, Box::new(move |result| done(result.is_ok())));
    });
}

impl Drop for Replicas {
    fn drop(&mut self) {
        // They hold each other.
        self.nodes.iter().for_each(|node| node.shutdown());
    }
}

type Done = Box<dyn FnOnce(bool) + Send>;

/// Starts `count` pieces of work, the next one as soon as less than `at_once` are
/// under way, and waits for all.
fn keep_busy(count: u64, at_once: u64, start: impl Fn(u64, Done)) {
    let (sender, ended) = mpsc::channel::<bool>();
    let await_one = || assert!(ended.recv().expect("all are answered"), "one was refused");
    for number in 0..count {
        if number >= at_once {
            await_one();
        }
        let sender = sender.clone();
        // Fails only when another was refused.
        start(number, Box::new(move |succeeded| sender.send(succeeded).unwrap_or_default()));
    }
    (0..count.min(at_once)).for_each(|_| await_one());
}

/// Hands messages to the other nodes.
struct Wire {
    from: NodeId,
    nodes: OnceLock<Vec<Arc<MultiRaft>>>,
}

impl Wire {
    fn of(from: NodeId) -> Self {
        Wire { from, nodes: OnceLock::new() }
    }
}

impl Transport for Wire {
    fn send(&self, to: NodeId, messages: Vec<RaftMessage>) {
        if let Some(nodes) = self.nodes.get() {
            nodes[to.0 as usize - 1].deliver(self.from, messages);
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        (1..=NODES).map(NodeId).filter(|node| *node != self.from).collect()
    }

    fn fetch_snapshot(&self, _from: NodeId, _group: GroupId, _data: Bytes, reply: FetchReply) {
        // Not on this thread: it is the one that waits for the reply.
        thread::spawn(|| reply(Err("nobody lags behind".to_owned())));
    }
}

/// Answers every command with nothing.
struct Idle {
    groups: u64,
    applied: OnceLock<Vec<AtomicU64>>,
}

impl Idle {
    fn applied(&self, group: GroupId) -> &AtomicU64 {
        let first = || (0..self.groups).map(|_| AtomicU64::new(INITIAL_POSITION.index.0)).collect();
        &self.applied.get_or_init(first)[group.0 as usize - 1]
    }
}

impl StateMachine for Idle {
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError> {
        for group in batch {
            for entry in &group.entries {
                let count = entry.payload.as_ref().map_or(0, |payload| payload.outcomes());
                let nothing = || CommandOutcome::Applied(Bytes::new());
                effects.outcomes.extend(std::iter::repeat_with(nothing).take(count));
                self.applied(group.group).store(entry.position.index.0, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn admits_snapshot(&self, _: GroupId, _: ReplicaId, _: &SnapshotMeta) -> bool {
        false
    }

    fn never_lost(&self, _group: GroupId) -> bool {
        false
    }

    fn request_flush(&self) {}

    fn persisted_index(&self, group: GroupId) -> Result<Index, ApplyError> {
        Ok(Index(self.applied(group).load(Ordering::Relaxed)))
    }

    fn make_snapshot(&self, group: GroupId, reply: SnapshotReply) {
        let message = "nobody lags behind".to_owned();
        reply(Err(ApplyError { group, message }));
    }

    fn release_snapshot(&self, _group: GroupId, _snapshot: &SnapshotMeta) {}

    fn install_snapshot(
        &self,
        group: GroupId,
        _replica: ReplicaId,
        _snapshot: &SnapshotMeta,
        _fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError> {
        Err(ApplyError { group, message: "nobody lags behind".to_owned() })
    }

    fn discard_fetched(&self, _fetched: &Bytes) {}

    fn destroy_replica(&self, group: GroupId, _replica: ReplicaId) -> Result<(), ApplyError> {
        Err(ApplyError { group, message: "all replicas stay".to_owned() })
    }

    fn last_destroyed(&self, _group: GroupId) -> Option<ReplicaId> {
        None
    }
}
