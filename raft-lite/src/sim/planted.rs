//! Bugs that tests plant, to show that the simulator finds them. Outside of tests
//! there are none, and asking costs nothing.

/// A way to lose data or agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A lease counts from when it was acknowledged, not from when it was asked for.
    LeaseFromAcknowledgement,
    /// The clock that leases are measured by stands still while the process does.
    LeaseKeptThroughPause,
    /// A replica votes right after a start, though it may have promised not to.
    VoteRightAfterRestart,
    /// A vote is not synced before it is given.
    VoteForgotten,
    /// Messages of a new term leave before the term is synced.
    SentBeforeUnsyncedTerm,
    /// Entries of an old term are committed by counting replicas.
    OldTermCommittedByCounting,
    /// The applied position reaches the disk before the data does.
    AppliedAheadOfData,
    /// The members on disk are those of the beginning.
    OldMembershipAfterRestart,
    /// A snapshot says that the members are those of the beginning.
    StaleMembershipInSnapshot,
    /// A replica that was destroyed is made again by a message that comes late.
    DestroyedReplicaComesBack,
    /// A leader shows others what it has not applied: one of them may bear a group that
    /// serves what the leader, which reads by its lease, still takes for its own.
    LeaseReadDuringUnappliedSplit,
    /// A frozen group is read, if the others confirmed the index.
    ReadIndexOnFrozenSource,
    /// An absorb takes effect although its merge was cancelled.
    AbsorbAfterCancel,
    /// A source is removed once the target's leader has absorbed it.
    SourceDestroyedBeforeAbsorb,
    /// A snapshot is installed while another replica owns what it covers.
    TwoLocalOwners,
}

#[cfg(test)]
impl Bug {
    pub(super) const ALL: [Bug; 15] = [
        Bug::LeaseFromAcknowledgement,
        Bug::LeaseKeptThroughPause,
        Bug::VoteRightAfterRestart,
        Bug::VoteForgotten,
        Bug::SentBeforeUnsyncedTerm,
        Bug::OldTermCommittedByCounting,
        Bug::AppliedAheadOfData,
        Bug::OldMembershipAfterRestart,
        Bug::StaleMembershipInSnapshot,
        Bug::DestroyedReplicaComesBack,
        Bug::LeaseReadDuringUnappliedSplit,
        Bug::ReadIndexOnFrozenSource,
        Bug::AbsorbAfterCancel,
        Bug::SourceDestroyedBeforeAbsorb,
        Bug::TwoLocalOwners,
    ];
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in everything that this thread runs.
#[cfg(test)]
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether the bug is planted.
#[cfg(test)]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether the bug is planted: it is not.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
