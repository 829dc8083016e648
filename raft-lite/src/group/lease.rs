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
//! Invariants:
//! - the lease counts from when a round was sent, never from when it was echoed;
//! - echoes of another term, and rounds of another leadership, count for nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{clock::BootTime, types::ReplicaId};

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
        }
    }

    /// This replica came to lead, or ceased to.
    pub(super) fn reset(&mut self) {
        self.round += 1;
        self.first = self.round;
        self.sent.clear();
        self.echoed.clear();
        self.end = None;
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

    /// A voter of this term has stepped `round`.
    pub(super) fn echo(&mut self, from: ReplicaId, round: u64) {
        if (self.first..=self.round).contains(&round) {
            let newest = self.echoed.entry(from).or_default();
            *newest = (*newest).max(round);
        }
    }

    /// Until when the lease reaches, if there is one, in a group of `voters`
    /// voters, this one among them.
    pub(super) fn end(&mut self, voters: usize) -> Option<BootTime> {
        let others_needed = voters / 2;
        let mut rounds: Vec<u64> = self.echoed.values().copied().collect();
        if rounds.len() < others_needed || others_needed == 0 {
            return self.end;
        }
        rounds.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = rounds[others_needed - 1];
        while let Some((_, sent)) = self.sent.pop_front_if(|(round, _)| *round <= quorum) {
            self.end = Some(sent + self.length);
        }
        self.end
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

    #[test]
    fn a_lease_counts_from_the_sending_of_what_a_quorum_echoed() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        let first = lease.stamp(at(1000));
        let second = lease.stamp(at(1100));
        assert_eq!(lease.end(5), None);
        lease.echo(ReplicaId(2), second);
        assert_eq!(lease.end(5), None);
        lease.echo(ReplicaId(3), first);
        assert_eq!(lease.end(5), Some(at(1400)));
        lease.echo(ReplicaId(4), second);
        assert_eq!(lease.end(5), Some(at(1500)));
        // An echo that comes late takes nothing back.
        lease.echo(ReplicaId(4), first);
        assert_eq!(lease.end(5), Some(at(1500)));
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
        assert_eq!(lease.end(3), None);
    }

    #[test]
    fn of_many_rounds_under_way_an_earlier_one_counts() {
        let mut lease = Lease::new(TIMEOUT, TICK, 7);
        lease.reset();
        let rounds: Vec<u64> = (0..200).map(|n| lease.stamp(at(n))).collect();
        for (n, round) in rounds.into_iter().enumerate() {
            lease.echo(ReplicaId(2), round);
            assert!(lease.end(3).is_none_or(|end| end <= at(n as u64) + at(400)));
        }
        assert_eq!(lease.end(3), Some(at(199 + 400)));
    }
}
