//! One replica of one group: `raft`'s node, the requests under way in it, and
//! the ordered steps of a round.
//!
//! A round calls, in this order and with nothing in between for this group:
//! any number of `step`, `tick`, `propose` and `read`; then [`Group::collect`],
//! which takes `raft`'s `Ready` and adds to the round's log write; then, once
//! that write is durable, [`Group::complete`].
//!
//! Rules kept here (see `ARCHITECTURE.md`):
//! - messages leave before the log is synced only if neither term nor vote
//!   changed since they were last written;
//! - the hard state is written whenever it differs from the last one written;
//! - votes are withheld, and no election is started, for an election timeout
//!   after the last contact with a leader of the current term (the *vote gate*);
//! - a read waits for the leader's confirmation under a context never used
//!   before, and is asked again when no answer comes;
//! - a leader answers reads by itself only within its lease (`lease.rs`);
//! - a leader shows its followers only what it has applied: else a read at a follower
//!   could see what a later one at the leader does not, and a group that a split made
//!   could serve what the leader still takes for its own.

mod flow;
mod handover;
mod lease;
mod members;
mod quiescence;
mod requests;
mod retention;
mod sending;
mod stepping;
mod structural;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use raft::{RawNode, Ready, StateRole, eraftpb};
use rand::{Rng, rngs::SmallRng};

use lease::Lease;
pub use members::MemberProgress;
use quiescence::Quiescence;
use retention::Retention;
use stepping::{is_echo, is_leader_contact};

use crate::{
    clock::BootTime,
    config::{Config, GroupDescriptor},
    group_storage::GroupStorage,
    liveness::Liveness,
    log_store::{LogChange, LogEntry, LogStoreError},
    logger::logger,
    membership::Membership,
    message::RaftMessage,
    proposal::{PendingChange, PendingProposal, PendingRead, PendingReply, RequestError},
    round::Round,
    shared::{GroupShared, Role},
    sim::planted::{self, Bug},
    types::{GroupId, HardState, Index, LogPosition, NodeId, ReplicaId, Term},
};

/// Why the outcome of a proposal can be unknown.
const LEADER_CHANGED: &str = "the leader changed meanwhile";

/// A group's failure that takes this replica out of service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    #[error(transparent)]
    Log(#[from] LogStoreError),
    #[error(
        "the leader says index {commit} is committed, but this replica's log ends at {last}: it lost entries it had acknowledged"
    )]
    CommitBeyondLog { commit: Index, last: Index },
    #[error("committed entries from index {0} on are not in its Raft log")]
    CommittedEntriesMissing(Index),
    #[error("the consensus code gave up on its log or state; the log of the node says why")]
    Panic,
    #[error("its members are not what its log says: {0}")]
    WrongMembers(String),
}

/// Proposals that share an entry, waiting for it to be applied.
struct InFlight {
    position: LogPosition,
    replies: Vec<(PendingReply, usize)>,
}

/// A `Ready` between `collect` and `complete`, with what is done with it then.
struct Collected {
    ready: Ready,
    /// Messages that must not leave before the log is synced.
    late: Vec<eraftpb::Message>,
    committed: Vec<eraftpb::Entry>,
}

/// Reads that wait for the leader's confirmation.
struct UnconfirmedReads {
    asked: BootTime,
    reads: Vec<PendingRead>,
}

pub(crate) struct Group {
    pub(crate) shared: Arc<GroupShared>,
    node: RawNode<GroupStorage>,
    membership: Membership,
    epoch: u64,
    /// The nodes of replicas that sent messages and are not known as members: this
    /// replica may lag behind.
    strangers: BTreeMap<ReplicaId, NodeId>,
    rng: SmallRng,
    election_timeout: Duration,
    max_entry_bytes: usize,
    apply_backlog_bytes: usize,
    max_message_bytes: u64,
    max_in_flight_bytes: u64,

    /// The hard state last given to the log.
    written: HardState,
    collected: Option<Collected>,

    /// When this replica last stepped or ticked.
    now: BootTime,
    /// When a leader of the current term was last heard.
    last_contact: BootTime,
    /// The newest round of that leader, and the term.
    leader_round: (u64, u64),
    lease: Lease,
    /// The election timeout drawn last, in ticks, and the state it was drawn for.
    drawn_timeout: usize,
    drawn_for: (u64, StateRole, u64),
    was_leader: bool,

    proposals: Vec<PendingProposal>,
    /// Changes of the group and its members to be proposed.
    changes: Vec<PendingChange>,
    /// The last structural entry that this leader proposed.
    proposed_structural: Index,
    promotion_lag_entries: u64,
    in_flight: VecDeque<InFlight>,
    last_time_ms: u64,

    new_reads: Vec<PendingRead>,
    /// Answers to followers' reads, for the next round.
    answers: Vec<eraftpb::Message>,
    unconfirmed: BTreeMap<u64, UnconfirmedReads>,
    next_read_context: u64,
    /// Confirmed reads at an index that was not handed to the applier yet.
    confirmed: Vec<(Index, Vec<PendingRead>)>,

    /// Last index handed to the applier, and last index there is to hand over.
    handed: Index,
    committed: Index,
    /// The last structural entry handed over: nothing after it is before it is applied.
    structural: Index,
    /// Up to where no replica needs the log, or is spared having to be given a
    /// snapshot.
    replicated_by_all: Index,
    retention: Retention,
    retention_for_snapshots: Retention,

    /// The snapshot that is being fetched for this replica; 0 if none is.
    installing: Index,
    /// When each replica that is being given a snapshot last said so, or was
    /// offered it.
    installers: BTreeMap<ReplicaId, BootTime>,
    /// When each member last answered this leader.
    heard: BTreeMap<ReplicaId, BootTime>,
    /// Messages that are not `raft`'s, for the next round.
    control: Vec<(NodeId, RaftMessage)>,
    /// When this replica last asked whether it still is a member.
    inquired: BootTime,

    quiescence: Quiescence,
    quiesce_after_ticks: usize,
    liveness: Arc<Liveness>,
}

impl Group {
    pub(crate) fn new(
        descriptor: GroupDescriptor,
        storage: GroupStorage,
        config: &Config,
        liveness: Arc<Liveness>,
        mut rng: SmallRng,
        now: BootTime,
    ) -> Result<Self, GroupError> {
        let applied = descriptor.record.applied.index;
        let raft_config = raft::Config {
            id: descriptor.replica.0,
            applied: applied.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: flow::MAX_MESSAGES,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // A commit index travels with the next append or heartbeat: a message
            // for it alone would cost a round on every replica. A follower that has
            // to know, because it is read from, is told.
            skip_bcast_commit: true,
            max_uncommitted_size: config.max_uncommitted_bytes,
            max_committed_size_per_ready: 4 << 20,
            ..Default::default()
        };
        let written = storage.initial_hard_state();
        let next_read_context = rng.random();
        let first_round = rng.random_range(1..u64::MAX / 2);
        let lease = Lease::new(config.election_timeout(), config.tick_interval, first_round);
        let mut group = Group {
            shared: Arc::new(descriptor.shared()),
            node: RawNode::new(&raft_config, storage, &logger())?,
            membership: descriptor.membership,
            epoch: descriptor.epoch,
            strangers: BTreeMap::new(),
            rng,
            election_timeout: config.election_timeout(),
            max_entry_bytes: config.max_entry_bytes,
            apply_backlog_bytes: config.apply_backlog_bytes,
            max_message_bytes: config.max_message_bytes,
            max_in_flight_bytes: config.max_in_flight_bytes,
            written,
            collected: None,
            now,
            last_contact: if planted::is(Bug::VoteRightAfterRestart) {
                BootTime::ZERO
            } else {
                now
            },
            leader_round: (0, 0),
            lease,
            drawn_timeout: 0,
            drawn_for: (0, StateRole::Follower, u64::MAX),
            was_leader: false,
            proposals: Vec::new(),
            changes: Vec::new(),
            proposed_structural: Index(0),
            promotion_lag_entries: config.promotion_lag_entries,
            in_flight: VecDeque::new(),
            last_time_ms: 0,
            new_reads: Vec::new(),
            answers: Vec::new(),
            unconfirmed: BTreeMap::new(),
            next_read_context,
            confirmed: Vec::new(),
            handed: applied,
            committed: applied,
            structural: Index(0),
            replicated_by_all: Index(0),
            retention: Retention::new(config.log_bytes_for_laggards),
            retention_for_snapshots: Retention::new(config.log_bytes_for_snapshots),
            installing: Index(0),
            installers: BTreeMap::new(),
            heard: BTreeMap::new(),
            control: Vec::new(),
            inquired: now,
            quiescence: Quiescence::default(),
            quiesce_after_ticks: config.quiesce_after_ticks,
            liveness,
        };
        group.after_step();
        if group.is_sole_voter() {
            // There is nobody whose lease or vote could stand against it.
            group.campaign()?;
        }
        Ok(group)
    }

    pub(crate) fn id(&self) -> GroupId {
        self.shared.group
    }

    /// The hard state that is in the log.
    pub(crate) fn written(&self) -> HardState {
        self.written
    }

    fn is_sole_voter(&self) -> bool {
        self.membership.is_sole_voter(self.shared.replica)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The node that leads the group, as far as known.
    fn leader_node(&self) -> Option<NodeId> {
        self.node_of(ReplicaId(self.node.raft.leader_id))
    }

    /// The node of another replica, as far as known.
    fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.membership.node_of(replica).or_else(|| self.strangers.get(&replica).copied())
    }

    fn not_leader(&self) -> RequestError {
        RequestError::NotLeader { leader: self.leader_node() }
    }

    /// Keeps what `raft` must not decide by itself: draws the election timeout
    /// from the injected generator, and notices the loss of leadership.
    fn after_step(&mut self) {
        let raft = &mut self.node.raft;
        let state = (raft.term, raft.state, raft.leader_id);
        if state != self.drawn_for {
            let base = raft.election_timeout();
            self.drawn_timeout = self.rng.random_range(base..2 * base);
            self.drawn_for = state;
        }
        raft.set_randomized_election_timeout(self.drawn_timeout);
        let leads = self.is_leader();
        if self.was_leader != leads {
            self.lease.reset();
            self.shared.set_lease_end(None);
            self.installers.clear();
            self.heard.clear();
            self.proposed_structural = Index(0);
            self.rouse();
        }
        if self.was_leader && !leads {
            self.shared.set_lead_start(None);
            self.fail_requests(LEADER_CHANGED, self.not_leader());
        } else if leads && !self.was_leader {
            // The last entry is the one that a new leader appends.
            self.shared.set_lead_start(Some(self.last_index()));
        }
        self.was_leader = leads;
        if leads && planted::is(Bug::OldTermCommittedByCounting) {
            let raft = &mut self.node.raft;
            let (counted, _) = raft.mut_prs().maximal_committed_index();
            let most = raft.raft_log.last_index();
            raft.raft_log.commit_to(counted.min(most));
        }
    }

    fn hard_state(&self) -> HardState {
        let state = self.node.raft.hard_state();
        HardState {
            term: Term(state.term),
            vote: (state.vote != raft::INVALID_ID).then_some(ReplicaId(state.vote)),
            commit: Index(state.commit),
        }
    }

    fn last_index(&self) -> Index {
        Index(self.node.raft.raft_log.last_index())
    }

    /// Takes what there is to write and send, and adds it to the round.
    pub(crate) fn collect(&mut self, round: &mut Round) -> Result<(), GroupError> {
        self.sync_applied()?;
        self.propose_waiting(round.unix_millis);
        self.propose_changes(round.unix_millis);
        self.ask_reads(round.now);
        let answers = mem::take(&mut self.answers);
        self.send(answers, round);
        for (node, message) in self.control.drain(..) {
            round.send(node, message);
        }
        let has_ready = self.node.has_ready();
        let hard_state = self.hard_state();
        let ballot_changed =
            (hard_state.term, hard_state.vote) != (self.written.term, self.written.vote);
        if has_ready {
            let mut ready = self.node.ready();
            let mut late = ready.take_persisted_messages();
            let early = ready.take_messages();
            if ballot_changed && planted::is(Bug::SentBeforeUnsyncedTerm) {
                self.send(early, round);
                self.send(mem::take(&mut late), round);
            } else if ballot_changed {
                late.extend(early);
            } else {
                self.send(early, round);
            }
            let entries: Vec<LogEntry> = ready.take_entries().into_iter().map(LogEntry).collect();
            if !entries.is_empty() {
                self.node.mut_store().append(&entries);
                round.appended_bytes += self.retention.append(&entries);
                self.retention_for_snapshots.append(&entries);
                round.write.push(self.id(), LogChange::Append(entries));
                round.must_sync = true;
            }
            for state in ready.take_read_states() {
                self.confirm_reads(Index(state.index), &state.request_ctx);
            }
            let committed = ready.take_committed_entries();
            self.collected = Some(Collected { ready, late, committed });
        }
        if hard_state != self.written {
            round.write.push(self.id(), LogChange::HardState(hard_state));
            round.must_sync |= ballot_changed && !planted::is(Bug::VoteForgotten);
            self.written = hard_state;
        }
        Ok(())
    }

    /// Goes on after the round's write is durable.
    pub(crate) fn complete(&mut self, round: &mut Round) -> Result<(), GroupError> {
        if let Some(Collected { ready, late, mut committed }) = self.collected.take() {
            self.send(late, round);
            let mut light = self.node.advance_append(ready);
            self.send(light.take_messages(), round);
            committed.extend(light.take_committed_entries());
            self.hand_over(committed, round);
            self.after_step();
        }
        self.hand_over_rest(round)?;
        self.hand_over_reads(round);
        if self.is_leader() && !self.is_asleep() {
            let end = self.lease.end(self.shared.replica, self.membership.halves());
            self.shared.set_lease_end(end);
        }
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        self.shared.publish(role, raft.leader_id, raft.term, raft.raft_log.committed);
        Ok(())
    }

    /// Whether another round is due at once.
    pub(crate) fn has_more(&self) -> bool {
        self.node.has_ready()
            || (!self.new_reads.is_empty()
                && (!self.is_leader() || self.node.raft.commit_to_current_term()))
            || !self.answers.is_empty()
            || !self.control.is_empty()
            || self.shared.has_changes()
    }
}
