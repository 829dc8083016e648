//! Three replicas under a seeded storm.

#![cfg(test)]

use std::time::Duration;

use rand::Rng;

use super::Sim;
use crate::types::NodeId;

/// Checks what clients were told against what the replicas hold.
fn check_history(sim: &Sim) {
    let history = sim.history.lock().unwrap();
    for (group, acknowledged) in &history.acknowledged {
        for (id, node) in &sim.nodes {
            let applied: Vec<u64> =
                node.machine.applied(*group).into_iter().flat_map(|(_, numbers)| numbers).collect();
            for number in acknowledged {
                let times = applied.iter().filter(|applied| *applied == number).count();
                assert_eq!(
                    times, 1,
                    "seed {}: acknowledged command {number} of group {group} is {times} times on node {id}",
                    sim.seed
                );
            }
        }
    }
    for (group, acknowledged_before, node, seen) in &history.reads {
        for number in
            &history.acknowledged.get(group).map_or(&[][..], |a| a)[..*acknowledged_before]
        {
            let index = sim.invariants.index_of(*group, *number).unwrap();
            assert!(
                index <= *seen,
                "seed {}: a read at node {node} saw index {seen} of group {group}, but command \
                 {number} had been acknowledged at {index} before",
                sim.seed
            );
        }
    }
}

/// Loss, delay, duplication, cuts, crashes and restarts, then peace.
fn storm(seed: u64) -> [usize; 3] {
    let mut sim = Sim::new(seed, 3, 2);
    sim.crash_in_round = 0.002;
    {
        let mut network = sim.network.lock().unwrap();
        network.loss = 0.05;
        network.duplication = 0.05;
        network.most_delay = Duration::from_millis(30);
    }
    for _ in 0..1500 {
        sim.step();
        if sim.rng.random_bool(0.3) {
            sim.propose();
        }
        if sim.rng.random_bool(0.2) {
            sim.read();
        }
        if sim.rng.random_bool(0.005) {
            let node = sim.random_node();
            sim.crash(node);
        }
        if sim.rng.random_bool(0.02) {
            let node = sim.random_node();
            if sim.nodes[&node].running.is_none() {
                sim.start(node);
            }
        }
        if sim.rng.random_bool(0.004) {
            let node = sim.random_node();
            let others: Vec<NodeId> = sim.nodes.keys().copied().filter(|n| *n != node).collect();
            let mut network = sim.network.lock().unwrap();
            if sim.rng.random_bool(0.5) {
                network.isolate(node, others.into_iter());
            } else {
                network.cut(node, others[0]);
            }
        }
        if sim.rng.random_bool(0.01) {
            let mut network = sim.network.lock().unwrap();
            network.heal();
            network.loss = 0.05;
            network.duplication = 0.05;
            network.most_delay = Duration::from_millis(30);
        }
    }
    sim.heal_and_settle();
    check_history(&sim);
    let history = sim.history.lock().unwrap();
    let acknowledged = history.acknowledged.values().map(Vec::len).sum();
    [acknowledged, history.reads.len(), history.lease_reads]
}

#[test]
fn three_replicas_survive_a_storm_from_each_seed() {
    let mut sums = [0; 3];
    for seed in 0..300 {
        for (sum, count) in sums.iter_mut().zip(storm(seed)) {
            *sum += count;
        }
    }
    let [acknowledged, reads, lease_reads] = sums;
    // A storm in which nothing was ever answered would prove nothing.
    assert!(acknowledged > 2000, "only {acknowledged} commands were acknowledged");
    assert!(reads > 1000, "only {reads} reads were answered");
    assert!(lease_reads > 300, "only {lease_reads} reads were answered by a lease");
    assert!(reads > lease_reads + 500, "only {} asked the others", reads - lease_reads);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| {
        let mut sim = Sim::new(seed, 3, 1);
        sim.network.lock().unwrap().most_delay = Duration::from_millis(20);
        for step in 0..600 {
            sim.step();
            if step % 5 == 0 {
                sim.propose();
            }
        }
        let applied: Vec<_> =
            sim.nodes.values().map(|node| node.machine.applied(sim.groups[0])).collect();
        applied
    };
    let first = trace(7);
    assert!(first.iter().all(|applied| applied.len() > 10), "nothing happened");
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
}

#[test]
fn a_cluster_without_a_majority_answers_nothing() {
    let mut sim = Sim::new(3, 3, 1);
    sim.heal_and_settle();
    sim.crash(NodeId(1));
    sim.crash(NodeId(2));
    for _ in 0..600 {
        sim.propose();
        sim.read();
        sim.step();
    }
    let history = sim.history.lock().unwrap();
    assert_eq!(history.acknowledged.values().map(Vec::len).sum::<usize>(), 0);
    assert!(history.reads.is_empty());
    assert!(history.refused > 0);
}

#[test]
fn votes_are_withheld_for_an_election_timeout_after_a_start() {
    let mut sim = Sim::new(5, 3, 1);
    let timeout = sim.config().election_timeout();
    while sim.clock.nanos.load(std::sync::atomic::Ordering::Relaxed) < timeout.as_nanos() as u64 {
        sim.step();
        let leads = sim.nodes.values().any(|node| {
            node.running.as_ref().unwrap().shared[&sim.groups[0]].status().leader.is_some()
        });
        assert!(!leads, "a leader was elected while every vote had to be withheld");
    }
}
