//! The leader's lease: until when it may answer reads by itself.
//!
//! Each batch of messages that a leader sends has a *round* number; a follower
//! puts the newest round it has stepped in the present term into its responses.
//! Whoever stepped a round withholds its vote for an election timeout from then
//! on (the *vote gate*), so for that long after the round was *sent* no other
//! leader can come, if a quorum has echoed it. Two tenths are kept back: one for
//! clocks that run at different speeds, one for the tick that elections are
//! measured in (Raft dissertation, section 6.4.1).
//!
//! Around changes of the group no barrier is needed, although a split, a freeze or an
//! absorb lets another group serve what this one did. That can not come before a
//! replica of this group has applied the change, and a leader shows the others only what
//! it has applied itself ([`Group::shown`]): whoever reads by the lease after that reads
//! a state that knows of the change. A leader that has just come shows what was
//! committed before it led, and does not read by itself before it has applied that.
//!
//! [`Group::shown`]: super::Group::shown
//!
//! Invariants:
//! - the lease counts from when a round was sent, never from when it was echoed;
//! - echoes of another term, and rounds of another leadership, count for nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    clock::BootTime,
    types::{NodeId, ReplicaId},
};

/// Rounds whose time is remembered; of those between only the time is lost, and
/// an earlier one counts instead.
const ROUNDS_REMEMBERED: usize = 64;

#[derive(Debug)]
pub(super) struct Lease {
    /// Time that a round is good for from its sending on.
    length: Duration,
    /// The last round sent. Never goes back, so that rounds of an earlier
    /// leadership can be told.
    round: u64,
    /// The first round of this leadership.
    first: u64,
    /// Rounds sent in this leadership and not yet passed by a quorum, in order.
    sent: VecDeque<(u64, BootTime)>,
    /// The newest round that each other voter echoed.
    echoed: BTreeMap<ReplicaId, u64>,
    end: Option<BootTime>,
    /// There is none for the rest of this leadership: another replica was asked to
    /// take over, and may do so without waiting.
    void: bool,
}

impl Lease {
    /// No lease. A replica that started anew begins at a random round, so that no
    /// echo of what it sent before can be taken for one of now.
    pub(super) fn new(election_timeout: Duration, tick: Duration, first_round: u64) -> Self {
        let length = (election_timeout * 9 / 10).saturating_sub(tick);
        Lease {
            length,
            round: first_round,
            first: first_round,
            sent: VecDeque::new(),
            echoed: BTreeMap::new(),
            end: None,
            void: false,
        }
    }

    /// This replica came to lead, or ceased to.
    pub(super) fn reset(&mut self) {
        self.round += 1;
        self.first = self.round;
        self.sent.clear();
        self.echoed.clear();
        self.end = None;
        self.void = false;
    }

    /// Another replica is asked to take over.
    pub(super) fn give_up(&mut self) {
        self.void = true;
    }

    /// The last round sent.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// The number for messages that are sent in the worker's round begun at `now`.
    pub(super) fn stamp(&mut self, now: BootTime) -> u64 {
        if self.sent.back().is_none_or(|(_, sent)| *sent != now) {
            self.round += 1;
            if self.sent.len() == ROUNDS_REMEMBERED {
                self.sent.remove(ROUNDS_REMEMBERED / 2);
            }
            self.sent.push_back((self.round, now));
        }
        self.round
    }

    /// Counts all rounds under way from `now`; a bug that tests plant.
    pub(super) fn count_from(&mut self, now: BootTime) {
        self.sent.iter_mut().for_each(|(_, sent)| *sent = now);
    }

    /// A voter of this term has stepped `round`.
    pub(super) fn echo(&mut self, from: ReplicaId, round: u64) {
        if (self.first..=self.round).contains(&round) {
            let newest = self.echoed.entry(from).or_default();
            *newest = (*newest).max(round);
        }
    }

    /// Until when the lease of `own` reaches, if there is one. In each of the
    /// `halves` a majority must have echoed.
    pub(super) fn end<'a>(
        &mut self,
        own: ReplicaId,
        halves: impl Iterator<Item = &'a BTreeMap<ReplicaId, NodeId>>,
    ) -> Option<BootTime> {
        if self.void {
            return None;
        }
        let quorum = halves.map(|half| self.echoed_by_majority(own, half)).min().unwrap_or(0);
        while let Some((_, sent)) = self.sent.pop_front_if(|(round, _)| *round <= quorum) {
            self.end = Some(sent + self.length);
        }
        self.end
    }

    /// The newest round that a majority of `voters` has seen; 0 if none.
    fn echoed_by_majority(&self, own: ReplicaId, voters: &BTreeMap<ReplicaId, NodeId>) -> u64 {
        let seen = |voter: &ReplicaId| {
            if *voter == own { self.round } else { self.echoed.get(voter).copied().unwrap_or(0) }
        };
        let mut rounds: Vec<u64> = voters.keys().map(seen).collect();
        rounds.sort_unstable_by(|a, b| b.cmp(a));
        rounds.get(voters.len() / 2).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(500);
    const TICK: Duration = Duration::from_millis(50);

    fn at(millis: u64) -> BootTime {
        Duration::from_millis(millis)
    }

    fn voters(ids: std::ops::RangeInclusive<u64>) -> BTreeMap<ReplicaId, NodeId> {
        ids.map(|id| (ReplicaId(id), NodeId(id))).collect()
    }

    /// The end of replica 1's lease among `count` voters.
    fn end(lease: &mut Lease, count: u64) -> Option<BootTime> {
        lease.end(ReplicaId(1), [&voters(1..=count)].into_iter())
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_what_a_quorum_echoed() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        let first = lease.stamp(at(1000));
        let second = lease.stamp(at(1100));
        assert_eq!(end(&mut lease, 5), None);
        lease.echo(ReplicaId(2), second);
        assert_eq!(end(&mut lease, 5), None);
        lease.echo(ReplicaId(3), first);
        assert_eq!(end(&mut lease, 5), Some(at(1400)));
        lease.echo(ReplicaId(4), second);
        assert_eq!(end(&mut lease, 5), Some(at(1500)));
        // An echo that comes late takes nothing back.
        lease.echo(ReplicaId(4), first);
        assert_eq!(end(&mut lease, 5), Some(at(1500)));
    }

    #[test]
    fn echoes_of_an_earlier_leadership_count_for_nothing() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        let before = lease.stamp(at(1000));
        lease.reset();
        lease.stamp(at(2000));
        lease.echo(ReplicaId(2), before);
        lease.echo(ReplicaId(2), before + 100);
        assert_eq!(end(&mut lease, 3), None);
    }

    #[test]
    fn of_many_rounds_under_way_an_earlier_one_counts() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        let rounds: Vec<u64> = (0..200).map(|n| lease.stamp(at(n))).collect();
        for (n, round) in rounds.into_iter().enumerate() {
            lease.echo(ReplicaId(2), round);
            assert!(end(&mut lease, 3).is_none_or(|end| end <= at(n as u64) + at(400)));
        }
        assert_eq!(end(&mut lease, 3), Some(at(199 + 400)));
    }

    #[test]
    fn while_joint_a_majority_of_either_half_counts() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        let round = lease.stamp(at(1000));
        let (old, new) = (voters(1..=3), voters(3..=5));
        let end = |lease: &mut Lease| lease.end(ReplicaId(1), [&old, &new].into_iter());
        lease.echo(ReplicaId(2), round);
        lease.echo(ReplicaId(4), round);
        assert_eq!(end(&mut lease), None, "one of the new half is no majority");
        lease.echo(ReplicaId(5), round);
        assert_eq!(end(&mut lease), Some(at(1400)));
    }

    #[test]
    fn a_sole_voter_needs_nobody_and_a_transfer_ends_the_lease_for_good() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        lease.stamp(at(1000));
        assert_eq!(end(&mut lease, 1), Some(at(1400)));
        lease.give_up();
        lease.stamp(at(2000));
        assert_eq!(end(&mut lease, 1), None);
        lease.reset();
        lease.stamp(at(3000));
        assert_eq!(end(&mut lease, 1), Some(at(3400)));
    }
}
