//! What a storm is like. Seeds differ in it on purpose: faults that hide each
//! other when they all come at once are found where some of them are left out
//! (Groce et al., "Swarm Testing", 2012).

use rand::rngs::SmallRng;

use super::pick;

/// How likely each thing is, in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climate {
    /// Nodes that have a replica at the beginning.
    pub(super) founders: u64,
    pub(super) propose: f64,
    pub(super) read: f64,
    pub(super) change_members: f64,
    pub(super) transfer: f64,
    /// A group is split; two are begun to be merged; one is begun to be deleted.
    pub(super) split: f64,
    pub(super) merge: f64,
    pub(super) delete: f64,
    /// A controller takes a step, and in it: crashes, reads anew what there is to do,
    /// gives a merge up, or does so although all is ready.
    pub(super) control: f64,
    pub(super) control_crash: f64,
    pub(super) control_reads: f64,
    pub(super) control_cancels: f64,
    pub(super) control_wavers: f64,
    /// What a controller sent comes again, much later.
    pub(super) mail_again: f64,
    /// A node goes down, and stays there for a while.
    pub(super) crash: f64,
    /// A node goes down and comes up at once.
    pub(super) reboot: f64,
    /// A node that a request for its vote is about to reach reboots.
    pub(super) reboot_asked: f64,
    pub(super) cut: f64,
    pub(super) mend: f64,
    /// How likely a leader is to be struck soon after it was elected.
    pub(super) strike_elected: f64,
    pub(super) pause: f64,
    pub(super) disturb: f64,
    /// How likely a slow node is to come to what it put aside in a step.
    pub(super) slowest_aside: f64,
    /// The worst loss of messages.
    pub(super) loss: f64,
    /// How likely a node is to crash at a given point of a round, at the worst.
    pub(super) crash_in_round: f64,
    /// Bytes of entries in one message, unless a single one has more.
    pub(super) max_message_bytes: u64,
    /// Bytes of entries under way to a follower.
    pub(super) max_in_flight_bytes: u64,
    /// Ticks after which an idle group falls asleep; 0 for never.
    pub(super) quiesce_after_ticks: usize,
}

impl Climate {
    /// The climate of a seed.
    pub(super) fn draw(rng: &mut SmallRng) -> Self {
        // Half of the seeds have some of everything.
        let shards = *pick(rng, &[0.0, 1.0, 1.0]);
        let mut usual = |rate: f64| rate * pick(rng, &[0.0, 0.3, 1.0, 1.0, 1.0, 1.0, 4.0]);
        Climate {
            propose: usual(0.3).max(0.02),
            read: usual(0.3),
            change_members: usual(0.04),
            transfer: usual(0.01),
            split: usual(0.03) * shards,
            merge: usual(0.15) * shards,
            delete: usual(0.0004) * shards,
            control: usual(0.6).max(0.1),
            control_crash: usual(0.01),
            control_reads: usual(0.2).max(0.01),
            control_cancels: usual(0.01),
            control_wavers: usual(0.05),
            mail_again: usual(0.1),
            crash: usual(0.005),
            reboot: usual(0.01),
            cut: usual(0.006),
            mend: usual(0.015).max(0.005),
            pause: usual(0.006),
            disturb: usual(0.005),
            loss: usual(0.1),
            crash_in_round: usual(0.002),
            slowest_aside: *pick(rng, &[0.5, 0.5, 0.2, 0.03]),
            reboot_asked: *pick(rng, &[0.0, 0.0, 0.0, 0.0, 0.5, 1.0]),
            strike_elected: *pick(rng, &[0.0, 0.0, 0.0, 0.5]),
            max_message_bytes: *pick(rng, &[1, 64]),
            max_in_flight_bytes: *pick(rng, &[1, 200, 1000]),
            quiesce_after_ticks: *pick(rng, &[0, 1, 3, 10]),
            founders: *pick(rng, &[1, 2, 3, 3, 3, 5]),
        }
    }
}
