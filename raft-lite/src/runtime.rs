//! The threads of a node's groups, and the door to them.

mod threads;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use crossbeam_channel::{Sender, TrySendError, bounded, unbounded};
use parking_lot::Mutex;

use threads::{run_applier, run_aside, run_worker, spawn};

use crate::{
    applier::{Applier, ApplyTask, Birth, Notice},
    clock::Clock,
    config::{Config, GroupDescriptor},
    entry::Command,
    group::MemberProgress,
    liveness::Liveness,
    log_store::{Durability, LogChange, LogState, LogStore, LogStoreError, LogWrite},
    membership::MembershipChange,
    message::RaftMessage,
    proposal::{
        Budget, Change, PendingChange, PendingProposal, PendingRead, PendingReply, Proposal,
        ProposalReply, ReadReply, RequestError,
    },
    registry::Registry,
    shared::{GroupShared, GroupStatus},
    startup::{Startup, decide_startup},
    state_machine::StateMachine,
    transport::Transport,
    types::{GroupId, NodeId, ReplicaId},
    worker::{Input, Worker, WorkerParts},
};

/// Bytes of other nodes' messages that may wait for the workers.
const MESSAGE_BUDGET_BYTES: usize = 256 << 20;
/// Stack of an applier: a plugin's own stack limit must always be reached first.
const APPLIER_STACK_BYTES: usize = 8 << 20;

/// What the runtime is given.
pub struct Parts {
    /// Where the logs are.
    pub log: Arc<dyn LogStore>,
    /// What the logs are applied to.
    pub state_machine: Arc<dyn StateMachine>,
    /// How messages leave.
    pub transport: Arc<dyn Transport>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// Why the runtime does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log can not be read or written.
    #[error(transparent)]
    Log(#[from] LogStoreError),
    /// A thread can not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A node's Raft groups, run by a fixed number of threads.
///
/// Every queue is bounded: requests beyond the bounds are answered with
/// [`RequestError::Overloaded`]. Each request is answered exactly once.
pub struct MultiRaft {
    inboxes: Vec<Sender<Input>>,
    registry: Arc<Registry>,
    budget: Arc<Budget>,
    message_budget: Arc<Budget>,
    clock: Arc<dyn Clock>,
    liveness: Arc<Liveness>,
    /// Appliers drop what is left in their queues.
    stopping: Arc<AtomicBool>,
    /// Workers first, then appliers: the order in which they end.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl MultiRaft {
    /// Starts all replicas on record. Those that can not run are quarantined:
    /// they are listed with a reason and answer every request with it.
    pub fn start(
        config: Config,
        parts: Parts,
        descriptors: Vec<GroupDescriptor>,
    ) -> Result<Self, StartError> {
        let (descriptors, quarantined) = prepare_logs(&*parts.log, descriptors)?;
        let (inboxes, receivers): (Vec<_>, Vec<_>) =
            (0..config.workers).map(|_| bounded(config.inbox_capacity)).unzip();
        let budget = Budget::new(config.proposal_budget_bytes);
        let mut runtime = MultiRaft {
            inboxes,
            registry: Arc::default(),
            budget,
            message_budget: Budget::new(MESSAGE_BUDGET_BYTES),
            clock: Arc::clone(&parts.clock),
            liveness: Arc::new(Liveness::new(config.seed, config.election_ticks)),
            stopping: Arc::default(),
            threads: Mutex::default(),
        };
        let (queues, appliers) = runtime.start_appliers(config.appliers, &parts.state_machine)?;
        let parts = WorkerParts {
            liveness: Arc::clone(&runtime.liveness),
            log: parts.log,
            state_machine: parts.state_machine,
            transport: parts.transport,
            clock: parts.clock,
            registry: Arc::clone(&runtime.registry),
            inbox: runtime.inbox(),
            config,
        };
        for shared in quarantined.into_values() {
            runtime.registry.insert(shared);
        }
        let mut workers: Vec<Worker> =
            (0..receivers.len()).map(|i| Worker::new(parts.clone(), i == 0)).collect();
        for (descriptor, log) in descriptors {
            let group = descriptor.group;
            let halted = descriptor.shared();
            let count = workers.len();
            if let Err(error) = workers[index_of(group, count)].add_group(descriptor, log) {
                halted.halt(error.to_string());
                runtime.registry.insert(Arc::new(halted));
            }
        }
        for (i, (worker, inbox)) in workers.into_iter().zip(receivers).enumerate() {
            let queues = queues.clone();
            let run = move || run_worker(worker, inbox, queues);
            runtime.threads.get_mut().push(spawn(format!("raft-{i}"), None, run)?);
        }
        runtime.threads.get_mut().extend(appliers);
        Ok(runtime)
    }

    fn start_appliers(
        &self,
        count: usize,
        state_machine: &Arc<dyn StateMachine>,
    ) -> Result<Appliers, StartError> {
        let mut queues = Vec::new();
        let mut threads = Vec::new();
        let applier = || {
            let inbox = self.inbox();
            let notify =
                Box::new(move |notice: Notice| inbox(notice.group(), Input::Notice(notice)));
            let registry = Arc::clone(&self.registry);
            (Applier::new(Arc::clone(state_machine), registry, notify), Arc::clone(&self.stopping))
        };
        // At most a few tasks a group: its worker hands over nothing more meanwhile.
        let (aside, put_aside) = unbounded();
        for i in 0..count {
            // The length is bounded by the groups' apply backlogs, in bytes, and
            // by the budget that reads are let in by: no worker ever waits here.
            let (queue, tasks) = unbounded();
            queues.push(queue);
            let ((applier, stopping), aside) = (applier(), aside.clone());
            let run = move || run_applier(applier, tasks, aside, &stopping);
            threads.push(spawn(format!("apply-{i}"), Some(APPLIER_STACK_BYTES), run)?);
        }
        let (applier, stopping) = applier();
        let run = move || run_aside(applier, put_aside, &stopping);
        threads.push(spawn("apply-aside".to_owned(), Some(APPLIER_STACK_BYTES), run)?);
        Ok((queues, threads))
    }

    /// The way to the worker of a group for those who work for it: they wait for
    /// room.
    fn inbox(&self) -> Arc<dyn Fn(GroupId, Input) + Send + Sync> {
        let inboxes = self.inboxes.clone();
        Arc::new(move |group, input| {
            // Fails only when the worker is gone, and then nobody waits.
            let _ = inboxes[index_of(group, inboxes.len())].send(input);
        })
    }

    /// Proposes commands; see [`ProposalReply`](crate::ProposalReply).
    pub fn propose(&self, proposal: Proposal) {
        let Proposal { group, commands, makes_room, reply } = proposal;
        if let Some(error) = self.refusal(group) {
            return reply(Err(error));
        }
        let bytes = match commands.is_empty() {
            // It takes up room while it waits, too.
            true => PendingRead::BYTES,
            false => commands.iter().map(Command::size).sum(),
        };
        let Some(permit) = self.budget.take(bytes) else {
            return reply(Err(RequestError::Overloaded));
        };
        let reply = PendingReply::new(reply, permit);
        self.send(group, Input::Propose(PendingProposal { group, commands, makes_room, reply }));
    }

    /// Asks for a linearizable read; see [`ReadReply`](crate::ReadReply).
    pub fn read(&self, group: GroupId, reply: ReadReply) {
        if let Some(error) = self.refusal(group) {
            return reply(Err(error));
        }
        let Some(permit) = self.budget.take(PendingRead::BYTES) else {
            return reply(Err(RequestError::Overloaded));
        };
        self.send(group, Input::Read(group, PendingRead::new(reply, permit)));
    }

    /// Proposes a change of a group's members, at its leader. The one outcome is
    /// [`CommandOutcome::Applied`](crate::CommandOutcome::Applied) if it took effect.
    /// One that needs a joint configuration is not over then: the leader leaves that
    /// by itself.
    pub fn change_members(&self, group: GroupId, change: MembershipChange, reply: ProposalReply) {
        self.propose_change(group, Change::Members(change), PendingRead::BYTES, reply);
    }

    /// Proposes a structural change, which the state machine defines, at the group's
    /// leader. `epoch` is the epoch that gave reason to it: at any other it is refused,
    /// and so it is while the members change or another such change is under way. The
    /// one outcome is [`CommandOutcome::Applied`](crate::CommandOutcome::Applied) if it
    /// took effect.
    pub fn change_group(&self, group: GroupId, epoch: u64, change: Bytes, reply: ProposalReply) {
        let bytes = PendingRead::BYTES + change.len();
        self.propose_change(group, Change::Structural { epoch, change }, bytes, reply);
    }

    fn propose_change(&self, group: GroupId, change: Change, bytes: usize, reply: ProposalReply) {
        if let Some(error) = self.refusal(group) {
            return reply(Err(error));
        }
        let Some(permit) = self.budget.take(bytes) else {
            return reply(Err(RequestError::Overloaded));
        };
        let reply = PendingReply::new(reply, permit);
        self.send(group, Input::Change(PendingChange { group, change, reply }));
    }

    /// Starts a replica that was put on record after the runtime started, of a group
    /// that is created, and that never ran: it votes and stands for election without
    /// waiting. Nothing happens if the group has a replica here, or had this one. Waits
    /// for room in the worker's inbox.
    pub fn add_replica(&self, descriptor: GroupDescriptor) {
        let birth = Birth { descriptor, leads_parent: false };
        (self.inbox())(birth.descriptor.group, Input::Notice(Notice::Born(birth)));
    }

    /// Asks a voter to take over a group's leadership, at its leader. What comes of
    /// it shows in [`MultiRaft::status`], within an election timeout.
    pub fn transfer_leader(
        &self,
        group: GroupId,
        to: ReplicaId,
        reply: impl FnOnce(Result<(), RequestError>) + Send + 'static,
    ) {
        self.send(group, Input::Transfer(group, to, Box::new(reply)));
    }

    /// How far a group's members have come, as its leader knows.
    pub fn progress(
        &self,
        group: GroupId,
        reply: impl FnOnce(Result<Vec<MemberProgress>, RequestError>) + Send + 'static,
    ) {
        self.send(group, Input::Progress(group, Box::new(reply)));
    }

    /// Removes a replica from this node. The caller knows that it was removed from its
    /// group before, and that it can not learn so from the others, because all it
    /// knows of are gone.
    pub fn remove_replica(&self, group: GroupId, replica: ReplicaId) {
        self.send(group, Input::Remove(group, replica));
    }

    /// Says whether this node's disk is nearly full. As long as it is, the groups that
    /// have a replica here take only what makes room, wherever they are led; others
    /// are answered with [`RequestError::DiskFull`].
    pub fn set_disk_full(&self, disk_full: bool) {
        self.liveness.set_disk_full(disk_full);
    }

    /// All groups that have a replica on this node.
    pub fn groups(&self) -> Vec<GroupId> {
        self.registry.groups()
    }

    /// Takes in messages from another node. They may be dropped, like on the way.
    pub fn deliver(&self, from: NodeId, messages: Vec<RaftMessage>) {
        let workers = self.inboxes.len();
        let mut shares: Vec<Vec<RaftMessage>> = vec![Vec::new(); workers];
        for message in messages {
            shares[index_of(message.group(), workers)].push(message);
        }
        for (inbox, share) in self.inboxes.iter().zip(shares) {
            if share.is_empty() {
                continue;
            }
            let bytes = share.iter().map(RaftMessage::size).sum();
            // No room is like being lost on the way; raft sends again.
            if let Some(permit) = self.message_budget.take(bytes) {
                let _ = inbox.try_send(Input::Messages(from, share, Some(permit)));
            }
        }
    }

    /// The node whose replica leads a group, as far as this node knows.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.registry.with(group, GroupShared::leader_node)?
    }

    /// The state of a group's replica on this node, if there is one.
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.registry.with(group, GroupShared::status)
    }

    /// Whether what the caller has read of the local state already is
    /// linearizable, without [`MultiRaft::read`]: this replica leads, and its lease
    /// holds now. The state must have been taken before this is asked, since time
    /// may pass between any two steps.
    pub fn could_read(&self, group: GroupId) -> bool {
        let reads_locally = |shared: &GroupShared| {
            let can = shared.reads_locally(self.clock.now());
            if can {
                shared.note_read();
            }
            can
        };
        self.registry.with(group, reads_locally).unwrap_or(false)
    }

    /// Whether this node's replica leads the group and holds everything that was
    /// committed when it came to lead.
    pub fn leads_settled(&self, group: GroupId) -> bool {
        self.registry.with(group, GroupShared::leads_settled).unwrap_or(false)
    }

    /// Stops all threads once they are through with what they are at. Requests
    /// that are not answered by then, and later ones, are told that the node is
    /// stopping.
    pub fn shutdown(&self) {
        let threads = mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        self.stopping.store(true, Ordering::Relaxed);
        for inbox in &self.inboxes {
            // Fails only if the worker is gone already.
            let _ = inbox.send(Input::Stop);
        }
        for thread in threads {
            // A thread that panicked has ended the process.
            let _ = thread.join();
        }
    }

    /// Takes a replica out of service for good, for a reason that only its user can know.
    pub fn halt(&self, group: GroupId, replica: ReplicaId, reason: &str) {
        let found = self.registry.get(group).filter(|shared| shared.replica == replica);
        if let Some(shared) = found {
            tracing::error!(group = group.0, "the replica is taken out of service: {reason}");
            shared.halt(reason.to_owned());
            self.send(group, Input::Notice(Notice::Wake(group)));
        }
    }

    /// Why a request to a group can not be taken, if so.
    fn refusal(&self, group: GroupId) -> Option<RequestError> {
        match self.registry.with(group, |shared| shared.halted().map(str::to_owned)) {
            None => Some(RequestError::Unavailable(format!("it has no replica of group {group}"))),
            Some(halted) => halted.map(RequestError::Unavailable),
        }
    }

    /// Puts an input into its worker's inbox, or refuses it.
    fn send(&self, group: GroupId, input: Input) {
        match self.inboxes[index_of(group, self.inboxes.len())].try_send(input) {
            Err(TrySendError::Full(input)) => input.refuse(),
            // Dropping a request answers it: the node is stopping.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

impl Drop for MultiRaft {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Which of `count` threads a group belongs to.
fn index_of(group: GroupId, count: usize) -> usize {
    (group.0 % count as u64) as usize
}

/// The appliers' queues and threads.
type Appliers = (Vec<Sender<ApplyTask>>, Vec<JoinHandle<()>>);

/// The replicas that can run, with their logs, and those that can not.
pub(crate) type Prepared = (Vec<(GroupDescriptor, LogState)>, BTreeMap<GroupId, Arc<GroupShared>>);

/// Makes logs for new replicas, removes those nobody owns, and quarantines
/// replicas that do not fit their log.
pub(crate) fn prepare_logs(
    log: &dyn LogStore,
    descriptors: Vec<GroupDescriptor>,
) -> Result<Prepared, LogStoreError> {
    let mut write = LogWrite::new();
    let mut runnable = Vec::new();
    let mut quarantined = BTreeMap::new();
    let known: BTreeSet<GroupId> = descriptors.iter().map(|descriptor| descriptor.group).collect();
    for group in log.groups().into_iter().filter(|group| !known.contains(group)) {
        // Who voted before it was here may be made yet.
        if matches!(log.state(group), Ok(Some(state)) if state.is_ballot()) {
            continue;
        }
        tracing::warn!(group = group.0, "removing a Raft log that belongs to no replica");
        write.push(group, LogChange::Clean);
    }
    for descriptor in descriptors {
        let group = descriptor.group;
        let found = log.state(group).map_err(|error| error.to_string());
        match decide_startup(descriptor.record, found) {
            Startup::Resume(state) => runnable.push((descriptor, state)),
            Startup::Create { start, hard_state } => {
                write.push(group, LogChange::Create { start, hard_state });
                runnable.push((descriptor, LogState { hard_state, start, last: start }));
            }
            Startup::Quarantine(reason) => {
                let shared = descriptor.shared();
                shared.halt(reason);
                quarantined.insert(group, Arc::new(shared));
            }
        }
    }
    if !write.is_empty() {
        log.write(write, Durability::Synced)?;
    }
    Ok((runnable, quarantined))
}

#[cfg(test)]
mod tests;
