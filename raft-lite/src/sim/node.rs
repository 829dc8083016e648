//! A node: what survives its crashes, and the running rest if it is up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use rand::{Rng, rngs::SmallRng};

use super::{
    clock::{MOST_DRIFT_PPM, SimClock},
    log::SimLog,
    machine::{Pool, SimMachine},
    network::{Network, SimTransport},
    planted::{self, Bug},
};
use crate::{
    applier::{Applier, ApplyTask},
    clock::{BootTime, Clock},
    config::Config,
    liveness::Liveness,
    log_store::{LogState, LogStore},
    message::RaftMessage,
    registry::Registry,
    runtime::prepare_logs,
    shared::{GroupShared, GroupStatus},
    types::{GroupId, NodeId},
    worker::{Input, Worker, WorkerParts},
};

pub(super) struct SimNode {
    pub(super) log: Arc<SimLog>,
    pub(super) machine: Arc<SimMachine>,
    pub(super) clock: Arc<SimClock>,
    pub(super) running: Option<Running>,
    /// The process stands still until this true time.
    paused_until: Duration,
    is_paused: bool,
    /// How likely the node is to come to a round in a step.
    pub(super) speed: f64,
    /// How likely it is to come to what was put aside.
    pub(super) aside_speed: f64,
    /// How often it was started.
    pub(super) starts: u64,
}

pub(super) struct Running {
    pub(super) worker: Worker,
    applier: Applier,
    /// What the worker handed over and the applier has not come to.
    queue: VecDeque<ApplyTask>,
    /// What the applier put aside, and nobody has done yet.
    aside: VecDeque<ApplyTask>,
    /// What was sent to the worker by those who work for it.
    inputs: Receiver<Input>,
    /// What came from other nodes while the process stood still.
    received: Vec<(NodeId, RaftMessage)>,
    registry: Arc<Registry>,
}

#[cfg(test)]
impl Running {
    /// A replica goes out of service, as if its state could not be applied.
    pub(super) fn halt(&mut self, group: GroupId) {
        self.registry.with(group, |shared| shared.halt("a test wants it".to_owned()));
        self.worker.handle(Input::Notice(crate::applier::Notice::Wake(group)));
    }
}

/// A node stops in the midst of a round.
pub(super) struct Crash;

impl SimNode {
    pub(super) fn new(id: NodeId, pool: Arc<Pool>, rng: &mut SmallRng) -> Self {
        SimNode {
            log: Arc::default(),
            machine: Arc::new(SimMachine::new(id, pool)),
            clock: Arc::new(SimClock::new(rng.random_range(-MOST_DRIFT_PPM..=MOST_DRIFT_PPM))),
            running: None,
            paused_until: Duration::ZERO,
            is_paused: false,
            speed: 0.95,
            aside_speed: 0.5,
            starts: 0,
        }
    }

    pub(super) fn start(&mut self, id: NodeId, config: Config, network: Arc<Mutex<Network>>) {
        let (runnable, quarantined) = prepare_logs(&*self.log, self.machine.descriptors()).unwrap();
        assert!(quarantined.is_empty(), "a crash must not damage a replica: {quarantined:?}");
        self.machine.note_started();
        self.starts += 1;
        let registry = Arc::<Registry>::default();
        let (sender, inputs) = channel();
        let to_applier = sender.clone();
        let sender = Mutex::new(sender);
        let parts = WorkerParts {
            liveness: Arc::new(Liveness::new(config.seed, config.election_ticks)),
            config,
            log: Arc::clone(&self.log) as Arc<dyn LogStore>,
            state_machine: Arc::clone(&self.machine) as _,
            transport: Arc::new(SimTransport::new(id, network)),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            registry: Arc::clone(&registry),
            // A crash drops the other end.
            inbox: Arc::new(move |_, input| drop(sender.lock().unwrap().send(input))),
        };
        let notify = Box::new(move |notice| drop(to_applier.send(Input::Notice(notice))));
        let applier = Applier::new(Arc::clone(&parts.state_machine), Arc::clone(&registry), notify);
        let mut worker = Worker::new(parts, true);
        for (descriptor, log) in runnable {
            worker.add_group(descriptor, log).unwrap();
        }
        let (queue, aside, received) = (VecDeque::new(), VecDeque::new(), Vec::new());
        let running = Running { worker, applier, queue, aside, inputs, received, registry };
        self.running = Some(running);
    }

    /// Returns whether the node was up.
    pub(super) fn crash(&mut self, rng: &mut SmallRng) -> bool {
        if self.running.take().is_none() {
            return false;
        }
        self.log.crash(rng.random_range(0..4));
        self.machine.crash(rng);
        true
    }

    pub(super) fn pause_until(&mut self, until: Duration) {
        self.paused_until = until;
        self.is_paused = true;
    }

    pub(super) fn is_at_work(&self) -> bool {
        self.running.is_some() && !self.is_paused
    }

    /// True time passes, up to `now`.
    pub(super) fn pass(&mut self, now: Duration, time: Duration) {
        if !(self.is_paused && planted::is(Bug::LeaseKeptThroughPause)) {
            self.clock.advance(time);
        }
        self.is_paused = now < self.paused_until;
    }

    pub(super) fn receive(&mut self, from: NodeId, message: RaftMessage) {
        if let Some(running) = self.running.as_mut() {
            running.received.push((from, message));
        }
    }

    /// A round of the worker, and then of the applier. With probability `crashes`
    /// the node crashes: before the log is written, after it is, or after the
    /// applier did a part of its work.
    pub(super) fn run(&mut self, rng: &mut SmallRng, crashes: f64) -> Result<(), Crash> {
        if !self.is_at_work() {
            return Ok(());
        }
        let Some(running) = self.running.as_mut() else { return Ok(()) };
        if rng.random_bool(0.2) {
            self.machine.make_wanted();
        }
        self.log.fail_writes(rng.random_bool(crashes));
        // The most delicate point: a vote is on its way to the disk.
        self.log.fail_ballots(rng.random_bool(20.0 * crashes));
        for input in running.inputs.try_iter() {
            running.worker.handle(input);
        }
        for (from, message) in running.received.drain(..) {
            running.worker.handle(Input::Messages(from, vec![message], None));
        }
        let round = running.worker.round();
        self.log.fail_writes(false);
        self.log.fail_ballots(false);
        running.queue.extend(round.map_err(|_| Crash)?);
        if rng.random_bool(crashes) {
            return Err(Crash);
        }
        let count = rng.random_range(0..=running.queue.len());
        let tasks = running.queue.drain(..count).collect();
        running.applier.run(tasks, |task| running.aside.push_back(task));
        while rng.random_bool(self.aside_speed)
            && let Some(task) = running.aside.pop_front()
        {
            running.applier.run_long(task);
        }
        if rng.random_bool(crashes) {
            return Err(Crash);
        }
        Ok(())
    }

    /// A replica's status, and whether it would answer a read by itself now.
    pub(super) fn status(&self, group: GroupId, now: BootTime) -> Option<(GroupStatus, bool)> {
        let running = self.running.as_ref()?;
        let look = |shared: &GroupShared| (shared.status(), shared.reads_locally(now));
        running.registry.with(group, look)
    }

    /// Whether the replica leads and has applied all that was committed before.
    pub(super) fn leads_settled(&self, group: GroupId) -> bool {
        let running = self.running.as_ref();
        running.and_then(|r| r.registry.with(group, GroupShared::leads_settled)).unwrap_or(false)
    }

    /// The groups that have a replica at work here.
    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.running.as_ref().map_or(Vec::new(), |running| running.registry.groups())
    }

    pub(super) fn statuses(&self, groups: &[GroupId]) -> Vec<GroupStatus> {
        let now = self.clock.now();
        groups.iter().filter_map(|group| Some(self.status(*group, now)?.0)).collect()
    }

    pub(super) fn log_state(&self, group: GroupId) -> Option<LogState> {
        self.log.state(group).unwrap()
    }
}
