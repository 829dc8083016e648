//! Storms from many seeds, and bugs that they must find.

#![cfg(test)]

mod shards;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    Climate, Options, Sim, Summary,
    planted::{self, Bug},
    run,
};
use crate::types::NodeId;

/// Seeds within which each planted bug must be found.
const SEEDS_TO_FIND_A_BUG: u64 = 4000;

/// Nothing happens that a test does not do itself.
const CALM: Climate = Climate {
    founders: 3,
    propose: 0.0,
    read: 0.0,
    change_members: 0.0,
    transfer: 0.0,
    split: 0.0,
    merge: 0.0,
    delete: 0.0,
    control: 0.3,
    control_crash: 0.0,
    control_reads: 0.2,
    control_cancels: 0.0,
    control_wavers: 0.0,
    mail_again: 0.0,
    crash: 0.0,
    reboot: 0.0,
    reboot_asked: 0.0,
    cut: 0.0,
    mend: 0.0,
    strike_elected: 0.0,
    pause: 0.0,
    disturb: 0.0,
    slowest_aside: 0.5,
    loss: 0.0,
    crash_in_round: 0.0,
    max_message_bytes: 64,
    max_in_flight_bytes: 1000,
    quiesce_after_ticks: 3,
};

#[test]
fn storms_break_nothing() {
    let mut sum = Summary::default();
    for seed in 0..150 {
        sum += run(seed, Options::default());
    }
    // A storm in which nothing happened would prove nothing.
    println!("{sum:?}");
    assert!(sum.acknowledged > 5000, "{sum:?}");
    assert!(sum.lease_reads > 1000, "{sum:?}");
    assert!(sum.follower_reads > 500, "{sum:?}");
    assert!(sum.changes > 300, "{sum:?}");
    assert!(sum.snapshots > 100, "{sum:?}");
    assert!(sum.crashes > 300, "{sum:?}");
}

/// A storm of leaders that are struck as soon as they lead, as in figure 8 of the
/// Raft paper.
fn strike_leaders(seed: u64) {
    let climate = Climate {
        mend: 0.005,
        disturb: 0.005,
        strike_elected: 1.0,
        loss: 0.1,
        max_message_bytes: 1,
        quiesce_after_ticks: 0,
        ..CALM
    };
    let mut sim = Sim::new(seed, climate, 3, 1);
    sim.storm(3000);
    sim.settle();
    sim.check_history();
}

#[test]
fn leaders_that_are_struck_break_nothing() {
    (0..50).for_each(strike_leaders);
}

/// A storm in which replicas come and go all the time, and messages come late.
fn churn_members(seed: u64) {
    let climate = Climate {
        propose: 0.1,
        change_members: 0.3,
        crash: 0.002,
        cut: 0.002,
        mend: 0.02,
        disturb: 0.01,
        loss: 0.1,
        quiesce_after_ticks: 0,
        ..CALM
    };
    let mut sim = Sim::new(seed, climate, 5, 1);
    sim.storm(2000);
    sim.settle();
    sim.check_history();
}

#[test]
fn replicas_that_come_and_go_break_nothing() {
    (0..50).for_each(churn_members);
}

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for bug in Bug::ALL {
        planted::plant(Some(bug));
        let storm = |seed| match bug {
            Bug::OldTermCommittedByCounting => strike_leaders(seed),
            Bug::DestroyedReplicaComesBack => churn_members(seed),
            Bug::ReadIndexOnFrozenSource | Bug::AbsorbAfterCancel => {
                shards::shuffle_shards(seed);
            }
            _ => drop(run(seed, Options::default())),
        };
        let finds = |seed: &u64| catch_unwind(AssertUnwindSafe(|| storm(*seed))).is_err();
        match (0..SEEDS_TO_FIND_A_BUG).find(finds) {
            Some(seed) => println!("{bug:?} was found by seed {seed}"),
            None => missed.push(bug),
        }
    }
    planted::plant(None);
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found within {SEEDS_TO_FIND_A_BUG} seeds: {missed:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let first = run(7, Options::default());
    assert_eq!(first, run(7, Options::default()));
    assert_ne!(first, run(8, Options::default()));
}

#[test]
fn a_cluster_without_a_majority_answers_nothing() {
    let mut sim = Sim::new(3, CALM, 3, 1);
    sim.settle();
    sim.crash(NodeId(1));
    sim.crash(NodeId(2));
    for _ in 0..600 {
        sim.propose();
        sim.read();
        sim.step();
    }
    let history = sim.history.lock();
    assert_eq!(history.acknowledged.len(), 0);
    assert_eq!(history.reads - history.lease_reads, 0);
    assert!(history.refused > 0);
}

#[test]
fn votes_are_withheld_for_an_election_timeout_after_a_start() {
    let mut sim = Sim::new(5, CALM, 3, 1);
    let timeout = sim.config().election_timeout().mul_f64(0.95);
    while sim.now < timeout {
        sim.step();
        let leads = sim
            .nodes
            .values()
            .any(|node| node.statuses(&sim.groups).iter().any(|status| status.leader.is_some()));
        assert!(!leads, "a leader was elected while every vote had to be withheld");
    }
}

/// Three nodes with 20 groups that sleep.
fn asleep(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, CALM, 3, 20);
    sim.settle();
    sim.await_steps("fell asleep", Sim::all_sleep);
    sim
}

#[test]
fn a_group_that_sleeps_sends_nothing_and_wakes_within_a_round_trip() {
    for seed in 0..20 {
        let mut sim = asleep(seed);
        // The last answers may be on their way.
        (0..20).for_each(|_| sim.step());
        let before = sim.network.lock().unwrap().sent_of_groups;
        (0..400).for_each(|_| sim.step());
        assert_eq!(sim.network.lock().unwrap().sent_of_groups, before);
        assert!(sim.all_sleep());

        // Messages take at most a step, and every node has its turn in it.
        sim.nodes.values_mut().for_each(|node| node.speed = 1.0);
        sim.network.lock().unwrap().most_delay = std::time::Duration::ZERO;
        let group = sim.groups[0];
        let (leader, before) = sim.leader(group).unwrap();
        sim.write(group, leader);
        // The append leaves, is answered, and the answer is taken in: a step each.
        (0..3).for_each(|_| sim.step());
        let (_, after) = sim.leader(group).unwrap();
        assert_eq!(after.commit, before.commit.next(), "seed {seed}");
        assert!(!after.asleep);
    }
}

#[test]
fn groups_wake_when_a_member_starts_anew_or_falls_silent() {
    let mut sim = asleep(11);
    let node = NodeId(2);
    sim.crash(node);
    sim.await_steps("woke", |sim| {
        let others = sim.nodes.iter().filter(|(id, _)| **id != node);
        others.flat_map(|(_, n)| n.statuses(&sim.groups)).all(|status| !status.asleep)
    });
    sim.start(node);
    sim.await_steps("fell asleep again", Sim::all_sleep);
    // So short that nobody notices the silence: only the start tells.
    sim.crash(node);
    sim.start(node);
    let timeout = sim.config().election_timeout();
    let until = sim.now + timeout.mul_f64(0.9);
    while sim.now < until {
        sim.step();
    }
    let statuses = sim.nodes[&node].statuses(&sim.groups);
    let led: Vec<_> = statuses.iter().filter(|status| status.leader.is_some()).collect();
    assert!(!led.is_empty(), "the leaders did not make themselves known before elections");
}

#[test]
fn what_is_under_way_to_a_follower_that_does_not_answer_is_bounded() {
    let mut sim = Sim::new(13, Climate { quiesce_after_ticks: 0, ..CALM }, 3, 1);
    sim.settle();
    let group = sim.groups[0];
    let (leader, _) = sim.leader(group).unwrap();
    let others: Vec<NodeId> = sim.nodes.keys().copied().filter(|node| *node != leader).collect();
    let (deaf, sound) = (others[0], others[1]);
    sim.network.lock().unwrap().cut(deaf, leader);
    let sent = |sim: &Sim, to| sim.network.lock().unwrap().sent_bytes[&to];
    let before = (sent(&sim, deaf), sent(&sim, sound));
    for _ in 0..30 {
        for _ in 0..10 {
            sim.write(group, leader);
        }
        (0..3).for_each(|_| sim.step());
    }
    assert_eq!(sim.history.lock().refused, 0);
    let (to_deaf, to_sound) = (sent(&sim, deaf) - before.0, sent(&sim, sound) - before.1);
    // The limit, and the heartbeats.
    assert!(to_deaf < 5_000 && to_sound > 8_000, "{to_deaf} and {to_sound} bytes were sent");
}

#[test]
fn a_leader_that_can_not_commit_refuses_what_is_too_much_and_recovers() {
    let mut sim = Sim::new(17, Climate { quiesce_after_ticks: 0, ..CALM }, 3, 1);
    sim.settle();
    let group = sim.groups[0];
    let (leader, _) = sim.leader(group).unwrap();
    let others: Vec<NodeId> = sim.nodes.keys().copied().filter(|node| *node != leader).collect();
    sim.network.lock().unwrap().isolate(leader, others.into_iter());
    let mut proposed = 0;
    // Well before it notices that it is alone.
    while sim.history.lock().refused == 0 {
        assert!(proposed < 1000, "there is no bound");
        (0..20).for_each(|_| sim.write(group, leader));
        proposed += 20;
        sim.step();
    }
    sim.network.lock().unwrap().mend();
    sim.settle();
    let refused = sim.history.lock().refused;
    assert!(refused < proposed / 2, "{refused} of {proposed} were refused");
    sim.write(group, sim.leader(group).unwrap().0);
    (0..20).for_each(|_| sim.step());
    assert_eq!(sim.history.lock().refused, refused, "it refuses still");
}

/// Three nodes, of which one was away while more was written than is kept for it. Gives
/// the leader and the one that was away.
fn far_behind(seed: u64) -> (Sim, NodeId, NodeId) {
    let mut sim = Sim::new(seed, Climate { quiesce_after_ticks: 0, ..CALM }, 3, 1);
    sim.settle();
    let group = sim.groups[0];
    let (leader, _) = sim.leader(group).unwrap();
    let away = sim.nodes.keys().copied().find(|node| *node != leader).unwrap();
    sim.crash(away);
    write_slowly(&mut sim, leader, 300);
    (sim, leader, away)
}

/// Proposes commands, a few in each step.
fn write_slowly(sim: &mut Sim, leader: NodeId, count: usize) {
    for written in 0..count {
        sim.write(sim.groups[0], leader);
        if written.is_multiple_of(3) {
            sim.step();
        }
    }
}

#[test]
fn whoever_got_a_snapshot_goes_on_with_the_log_although_much_was_written_meanwhile() {
    for seed in 0..20 {
        let (mut sim, leader, away) = far_behind(seed);
        // All takes its time: the data, and catching up after it.
        sim.network.lock().unwrap().most_delay = std::time::Duration::from_millis(150);
        sim.start(away);
        while sim.nodes[&leader].machine.held() == 0 {
            sim.step();
        }
        // More than is kept for those that lag, and less than for those that get a
        // snapshot: it lacks too much for a while after that.
        write_slowly(&mut sim, leader, 110);
        sim.await_steps("caught up", |sim| {
            let applied = |node: NodeId| sim.nodes[&node].statuses(&sim.groups)[0].applied;
            sim.nodes[&away].machine.installed() > 0 && applied(away) == applied(leader)
        });
        assert_eq!(sim.nodes[&away].machine.installed(), 1, "seed {seed}");
    }
}

#[test]
fn a_snapshot_is_kept_for_nobody_who_is_gone() {
    let (mut sim, leader, away) = far_behind(23);
    sim.network.lock().unwrap().most_delay = std::time::Duration::from_millis(100);
    sim.start(away);
    while sim.nodes[&leader].machine.held() == 0 {
        sim.step();
    }
    // The offer is on its way, or the data is.
    (0..20).for_each(|_| sim.step());
    sim.crash(away);
    let until = sim.now + 12 * sim.config().election_timeout();
    while sim.now < until {
        sim.step();
    }
    assert_eq!(sim.nodes[&leader].machine.held(), 0);
    sim.settle();
}

#[test]
fn a_leader_that_goes_out_of_service_wakes_its_followers() {
    let mut sim = asleep(29);
    let group = sim.groups[0];
    let (leader, _) = sim.leader(group).unwrap();
    let running = sim.nodes.get_mut(&leader).unwrap().running.as_mut().unwrap();
    running.halt(group);
    let others: Vec<NodeId> = sim.nodes.keys().copied().filter(|node| *node != leader).collect();
    // The invariants forbid that a replica halts: it is not looked at them.
    for _ in 0..2000 {
        sim.advance();
        if others.iter().any(|node| sim.nodes[node].leads_settled(group)) {
            return;
        }
    }
    panic!("nobody took over:\n{}", sim.picture());
}
