//! Applies committed entries and answers those who wait for them.
//!
//! An applier takes what has queued up for many groups, gives it to the state
//! machine as one batch, and only then answers. A group belongs to one applier,
//! so its entries stay in order, and a read queued behind entries is answered
//! after them.
//!
//! What may take long goes to a thread of its own, so that it holds up no other
//! group: snapshots that are installed, replicas that are removed, and *structural*
//! entries, which change a group itself or its members and have to be on disk before
//! they count. The worker hands over nothing more of the group meanwhile. Since it is
//! one thread for the whole node, what a group owns here changes nowhere else, and
//! never at the same time as what another one owns.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use bytes::Bytes;

use crate::{
    config::GroupDescriptor,
    entry::{EntryKind, Payload},
    log_store::LogEntry,
    membership::MembershipChange,
    proposal::{PendingRead, PendingReply, RequestError},
    registry::Registry,
    shared::{AppliedChange, GroupShared, Role},
    snapshot::SnapshotMeta,
    state_machine::{
        ApplyError, CommandOutcome, CommittedEntry, Effects, GroupEntries, StateMachine,
    },
    types::{GroupId, Index, LogPosition, ReplicaId},
};

/// Those who wait for the outcomes of one entry's commands.
pub(crate) struct EntryReplies {
    pub(crate) index: Index,
    /// Each with the number of its commands, in the entry's order.
    pub(crate) replies: Vec<(PendingReply, usize)>,
}

/// Work for an applier.
pub(crate) enum ApplyTask {
    /// Apply these entries, which follow the group's last ones.
    Entries {
        group: Arc<GroupShared>,
        entries: Vec<LogEntry>,
        replies: Vec<EntryReplies>,
        /// Their share of the group's backlog.
        bytes: usize,
        /// It is one structural entry.
        structural: bool,
    },
    /// Answer these reads: all entries they must see are ahead in the queue.
    Reads { group: Arc<GroupShared>, reads: Vec<PendingRead> },
    /// Replace the replica's state by a snapshot, or make a replica of it.
    Install { group: GroupId, replica: ReplicaId, snapshot: SnapshotMeta, fetched: Bytes },
    /// Remove the replica and its state.
    Destroy { group: GroupId, replica: ReplicaId },
}

/// What the workers are told by appliers.
pub(crate) enum Notice {
    /// The group's applier has room again, or applied a change.
    Wake(GroupId),
    /// A replica is on record that does not run yet.
    Born(Birth),
    /// A replica went, because its group was absorbed.
    Gone(GroupId, ReplicaId),
    /// A snapshot was installed; `None` if it must not be, for now.
    Installed(GroupId, Option<Result<GroupDescriptor, ApplyError>>),
    /// A replica was removed.
    Destroyed(GroupId, Result<(), ApplyError>),
}

/// A replica that is to start: a split made it, or somebody created its group.
pub(crate) struct Birth {
    pub(crate) descriptor: GroupDescriptor,
    /// The replica here of the group that was split leads that group.
    pub(crate) leads_parent: bool,
}

impl Notice {
    pub(crate) fn group(&self) -> GroupId {
        match self {
            Notice::Wake(group)
            | Notice::Gone(group, _)
            | Notice::Installed(group, _)
            | Notice::Destroyed(group, _) => *group,
            Notice::Born(birth) => birth.descriptor.group,
        }
    }
}

impl ApplyTask {
    /// Bytes of entries to be applied.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            ApplyTask::Entries { bytes, .. } => *bytes,
            ApplyTask::Reads { .. } | ApplyTask::Install { .. } | ApplyTask::Destroy { .. } => 0,
        }
    }

    /// Whether it may take so long that it must not hold up other groups.
    fn is_long(&self) -> bool {
        match self {
            ApplyTask::Entries { structural, .. } => *structural,
            ApplyTask::Reads { .. } => false,
            ApplyTask::Install { .. } | ApplyTask::Destroy { .. } => true,
        }
    }

    pub(crate) fn group(&self) -> GroupId {
        match self {
            ApplyTask::Entries { group, .. } | ApplyTask::Reads { group, .. } => group.group,
            ApplyTask::Install { group, .. } | ApplyTask::Destroy { group, .. } => *group,
        }
    }
}

/// One group's share of a batch.
struct GroupWork {
    group: Arc<GroupShared>,
    replies: Vec<EntryReplies>,
    bytes: usize,
}

pub(crate) struct Applier {
    state_machine: Arc<dyn StateMachine>,
    registry: Arc<Registry>,
    /// Tells a group's worker.
    notify: Box<dyn Fn(Notice) + Send>,
}

impl Applier {
    pub(crate) fn new(
        state_machine: Arc<dyn StateMachine>,
        registry: Arc<Registry>,
        notify: Box<dyn Fn(Notice) + Send>,
    ) -> Self {
        Applier { state_machine, registry, notify }
    }

    /// Does everything that has queued up, entries of all groups as one batch. What may
    /// take long is put aside, once what comes before it is done.
    pub(crate) fn run(&self, tasks: Vec<ApplyTask>, mut aside: impl FnMut(ApplyTask)) {
        let mut batch = Vec::new();
        for task in tasks {
            if task.is_long() {
                self.run_batch(mem::take(&mut batch));
                aside(task);
            } else {
                batch.push(task);
            }
        }
        self.run_batch(batch);
    }

    /// Does what was put aside.
    pub(crate) fn run_long(&self, task: ApplyTask) {
        match task {
            ApplyTask::Install { group, replica, snapshot, fetched } => {
                self.install(group, replica, &snapshot, &fetched);
            }
            ApplyTask::Destroy { group, replica } => {
                let destroyed = self.state_machine.destroy_replica(group, replica);
                (self.notify)(Notice::Destroyed(group, destroyed));
            }
            task => self.run_batch(vec![task]),
        }
    }

    /// Installs a snapshot, unless another replica here came to own what it covers, or
    /// the replica itself went, since it was last asked.
    fn install(
        &self,
        group: GroupId,
        replica: ReplicaId,
        snapshot: &SnapshotMeta,
        fetched: &Bytes,
    ) {
        let machine = &self.state_machine;
        if self.is_buried(group, replica) || !machine.admits_snapshot(group, replica, snapshot) {
            machine.discard_fetched(fetched);
            return (self.notify)(Notice::Installed(group, None));
        }
        let installed = machine.install_snapshot(group, replica, snapshot, fetched);
        (self.notify)(Notice::Installed(group, Some(installed)));
        for shared in self.registry.all() {
            if shared.group != group && self.is_buried(shared.group, shared.replica) {
                (self.notify)(Notice::Gone(shared.group, shared.replica));
            }
        }
    }

    /// Tells of the replicas that came or went with a change.
    fn announce(&self, work: &[GroupWork], effects: &mut Effects) {
        // A change comes alone, so that there is but one group it can be of.
        let leads_parent = work.first().is_some_and(|work| work.group.role() == Role::Leader);
        for descriptor in effects.born.drain(..) {
            (self.notify)(Notice::Born(Birth { descriptor, leads_parent }));
        }
        for (group, replica) in effects.gone.drain(..) {
            (self.notify)(Notice::Gone(group, replica));
        }
    }

    /// Takes the group that failed out of the batch and out of service.
    fn drop_group(
        &self,
        entries: &mut Vec<GroupEntries>,
        work: &mut Vec<GroupWork>,
        error: ApplyError,
    ) {
        let failed = entries
            .iter()
            .position(|group_entries| group_entries.group == error.group)
            .expect("the group that failed is part of the batch");
        entries.remove(failed);
        let work = work.remove(failed);
        let reason = error.to_string();
        // Its worker is being told of one that went with an absorb: that is no failure.
        if !self.is_buried(work.group.group, work.group.replica) {
            work.group.halt(reason.clone());
        }
        refuse(work.replies, &reason);
    }

    fn is_buried(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.state_machine.last_destroyed(group).is_some_and(|last| replica <= last)
    }

    fn run_batch(&self, tasks: Vec<ApplyTask>) {
        if tasks.is_empty() {
            return;
        }
        let mut batch: BTreeMap<GroupId, (GroupEntries, GroupWork)> = BTreeMap::new();
        let mut reads = Vec::new();
        let mut touched = BTreeMap::new();
        for task in tasks {
            match task {
                ApplyTask::Entries { group, entries, replies, bytes, .. } => {
                    touched.insert(group.group, Arc::clone(&group));
                    add_entries(&mut batch, group, entries, replies, bytes);
                }
                ApplyTask::Reads { group, reads: waiting } => reads.push((group, waiting)),
                ApplyTask::Install { .. } | ApplyTask::Destroy { .. } => {
                    unreachable!("they are no part of a batch")
                }
            }
        }
        let (mut entries, mut work): (Vec<_>, Vec<_>) = batch.into_values().unzip();
        let mut effects = Effects::default();
        while !entries.is_empty()
            && let Err(error) = self.state_machine.apply(&entries, &mut effects)
        {
            // Nothing of the batch was stored. The others go on without this group.
            effects = Effects::default();
            self.drop_group(&mut entries, &mut work, error);
        }
        // What was born is there for whoever is told of the split.
        self.announce(&work, &mut effects);
        finish(entries, work, effects);
        for (group, waiting) in reads {
            let applied = group.applied();
            let result = match group.halted() {
                None => Ok(applied),
                Some(reason) => Err(RequestError::Unavailable(reason.to_owned())),
            };
            for read in waiting {
                read.send(result.clone());
            }
        }
        fence(Ordering::SeqCst);
        for (id, group) in touched {
            // A worker waits for room, or must learn that its replica halted or that
            // its group changed.
            if group.halted().is_some()
                || group.has_changes()
                || group.wants_wake.load(Ordering::SeqCst)
            {
                (self.notify)(Notice::Wake(id));
            }
        }
    }
}

/// Whether a payload changes the group, and how it changes the members if it does.
#[expect(clippy::option_option, reason = "a change may be none of members")]
fn group_change(payload: &Payload) -> Option<Option<&MembershipChange>> {
    let is_change = payload.kind != EntryKind::Commands as i32;
    is_change.then_some(payload.membership.as_ref())
}

/// Publishes what was applied and answers the commands.
fn finish(entries: Vec<GroupEntries>, work: Vec<GroupWork>, effects: Effects) {
    let Effects { outcomes, epochs, .. } = effects;
    let mut outcomes = outcomes.into_iter();
    for (group_entries, work) in entries.into_iter().zip(work) {
        let mut answers = Vec::new();
        let mut replies = work.replies.into_iter().peekable();
        for entry in &group_entries.entries {
            let count = entry.payload.as_ref().map_or(0, Payload::outcomes);
            let mut of_entry = outcomes.by_ref().take(count).peekable();
            if let Some(change) = entry.payload.as_ref().and_then(group_change)
                && let Some(CommandOutcome::Applied(_)) = of_entry.peek()
            {
                let (index, change) = (entry.position.index, change.cloned());
                let epoch = *epochs.get(&group_entries.group).expect("a change gives an epoch");
                work.group.push_change(AppliedChange { index, change, epoch });
            }
            if let Some(waiting) = replies.next_if(|waiting| waiting.index == entry.position.index)
            {
                for (reply, count) in waiting.replies {
                    answers.push((reply, of_entry.by_ref().take(count).collect()));
                }
            }
            of_entry.for_each(drop);
        }
        if let Some(last) = group_entries.entries.last() {
            work.group.set_applied(last.position.index);
        }
        work.group.shrink_apply_backlog(work.bytes);
        for (reply, outcomes) in answers {
            reply.send(Ok(outcomes));
        }
    }
    assert!(outcomes.next().is_none(), "the state machine gave more outcomes than commands");
}

/// Decodes entries and adds them to their group's share of the batch.
fn add_entries(
    batch: &mut BTreeMap<GroupId, (GroupEntries, GroupWork)>,
    group: Arc<GroupShared>,
    entries: Vec<LogEntry>,
    replies: Vec<EntryReplies>,
    bytes: usize,
) {
    let decoded = match decode(&entries) {
        Ok(decoded) if group.halted().is_none() => decoded,
        Ok(_) => {
            let reason = group.halted().unwrap_or_default().to_owned();
            return refuse(replies, &reason);
        }
        Err(reason) => {
            group.halt(reason.clone());
            return refuse(replies, &reason);
        }
    };
    let id = group.group;
    let (group_entries, work) = batch.entry(id).or_insert_with(|| {
        let entries = GroupEntries { group: id, entries: Vec::new() };
        (entries, GroupWork { group, replies: Vec::new(), bytes: 0 })
    });
    group_entries.entries.extend(decoded);
    work.replies.extend(replies);
    work.bytes += bytes;
}

fn decode(entries: &[LogEntry]) -> Result<Vec<CommittedEntry>, String> {
    let decode_one = |entry: &LogEntry| {
        let position = LogPosition { index: entry.index(), term: entry.term() };
        match Payload::decode_entry(entry.payload().clone()) {
            Ok(payload) => Ok(CommittedEntry { position, payload }),
            Err(error) => Err(format!("log entry {} can not be read: {error}", position.index)),
        }
    };
    entries.iter().map(decode_one).collect()
}

/// The entries are committed: a replica that can, applies them.
fn refuse(replies: Vec<EntryReplies>, reason: &str) {
    for (reply, _) in replies.into_iter().flat_map(|waiting| waiting.replies) {
        reply.send(Err(RequestError::OutcomeUnknown(reason.to_owned())));
    }
}
