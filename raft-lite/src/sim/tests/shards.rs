//! Groups that are split and merged.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    super::{
        clients::pending,
        machine::{Change, Merge, Record},
    },
    *,
};
use crate::{
    membership::MembershipChange,
    proposal::{self, PendingChange, RequestError},
    state_machine::CommandOutcome,
    types::GroupId,
    worker::Input,
};

/// A storm in which groups are split and merged all the time, what controllers send comes
/// late and again, and some nodes take long to apply changes.
pub(super) fn shuffle_shards(seed: u64) -> Summary {
    let climate = Climate {
        propose: 0.3,
        read: 0.6,
        split: 0.1,
        merge: 0.3,
        control: 0.8,
        control_crash: 0.01,
        control_reads: 0.05,
        control_cancels: 0.003,
        control_wavers: 0.3,
        mail_again: 0.3,
        reboot: 0.002,
        cut: 0.004,
        mend: 0.02,
        pause: 0.004,
        disturb: 0.01,
        slowest_aside: 0.01,
        loss: 0.05,
        quiesce_after_ticks: 0,
        ..CALM
    };
    let mut sim = Sim::new(seed, climate, 3, 2);
    sim.storm(1500);
    sim.settle();
    sim.check_history();
    sim.check_slots();
    sim.summary()
}

#[test]
fn groups_that_are_split_and_merged_break_nothing() {
    let mut sum = Summary::default();
    (0..50).for_each(|seed| sum += shuffle_shards(seed));
    assert!(sum.splits > 200 && sum.merges > 100 && sum.cancelled > 100, "{sum:?}");
}

/// A storm in which they also move from node to node meanwhile, and some replicas fall so
/// far behind that they are given snapshots.
fn move_shards(seed: u64) -> Summary {
    let climate = Climate {
        propose: 0.8,
        read: 0.3,
        change_members: 0.05,
        split: 0.1,
        merge: 0.3,
        control: 0.8,
        control_reads: 0.2,
        crash: 0.002,
        cut: 0.005,
        mend: 0.01,
        pause: 0.004,
        disturb: 0.01,
        slowest_aside: 0.03,
        loss: 0.05,
        quiesce_after_ticks: 0,
        ..CALM
    };
    let mut sim = Sim::new(seed, climate, 4, 2);
    sim.storm(2000);
    sim.settle();
    sim.check_history();
    sim.check_slots();
    sim.summary()
}

#[test]
fn groups_that_are_split_and_merged_and_moved_break_nothing() {
    let mut sum = Summary::default();
    (0..50).for_each(|seed| sum += move_shards(seed));
    assert!(sum.merges > 50 && sum.changes > 100, "{sum:?}");
}

/// Three nodes with one group, its leader, and another node.
fn three(seed: u64) -> (Sim, NodeId, NodeId) {
    let mut sim = Sim::new(seed, Climate { quiesce_after_ticks: 0, ..CALM }, 3, 1);
    sim.settle();
    let (leader, _) = sim.leader(sim.groups[0]).unwrap();
    let other = sim.nodes.keys().copied().find(|node| *node != leader).unwrap();
    (sim, leader, other)
}

/// Splits half of the first group's slots off.
fn split(sim: &mut Sim, leader: NodeId) -> GroupId {
    let group = sim.groups[0];
    let record = sim.nodes[&leader].machine.record(group).unwrap();
    let slots = record.slots.into_iter().filter(|slot| slot % 2 == 1).collect();
    let child = sim.meta.new_group();
    sim.post(leader, group, record.epoch, Change::Split { child, slots });
    child
}

#[test]
fn a_child_has_a_leader_a_few_round_trips_after_its_parent_was_split() {
    for seed in 0..20 {
        let (mut sim, leader, _) = three(seed);
        sim.nodes.values_mut().for_each(|node| (node.speed, node.aside_speed) = (1.0, 1.0));
        sim.network.lock().unwrap().most_delay = Duration::from_millis(4);
        let child = split(&mut sim, leader);
        let began = sim.now;
        sim.await_steps("split", |sim| sim.nodes[&leader].leads_settled(child));
        let took = sim.now - began;
        // Nobody waits for an election timeout: the steps are what it takes.
        assert!(took < sim.config().election_timeout(), "seed {seed}: it took {took:?}");
        sim.settle();
        sim.check_slots();
    }
}

#[test]
fn a_replica_that_is_born_after_the_others_needs_no_snapshot() {
    for seed in 0..20 {
        let (mut sim, leader, slow) = three(seed);
        let child = split(&mut sim, leader);
        sim.nodes.get_mut(&slow).unwrap().aside_speed = 0.0;
        sim.await_steps("split", |sim| sim.nodes[&leader].leads_settled(child));
        // The leader has sent it what it has, and looks at what it answers.
        (0..15).for_each(|_| sim.step());
        assert_eq!(sim.nodes[&slow].machine.replica(child), None);
        sim.settle();
        sim.check_slots();
        let installed: u64 = sim.nodes.values().map(|node| node.machine.installed()).sum();
        assert_eq!(installed, 0, "seed {seed}");
    }
}

#[test]
fn a_voter_that_no_split_will_make_here_votes_and_gets_a_snapshot() {
    for seed in 0..10 {
        let (mut sim, leader, away) = three(seed);
        let group = sim.groups[0];
        sim.crash(away);
        let child = split(&mut sim, leader);
        sim.await_steps("split", |sim| sim.nodes[&leader].leads_settled(child));
        // So much that whoever was away is given a snapshot: it never sees the split.
        for written in 0..300 {
            sim.write(group, leader);
            if written % 3 == 0 {
                sim.step();
            }
        }
        let third = sim.nodes.keys().copied().find(|node| ![leader, away].contains(node)).unwrap();
        sim.await_steps("applied it all", |sim| {
            let applied = |node: NodeId| sim.nodes[&node].machine.applied(group).len();
            applied(third) == applied(leader)
        });
        // The child has one replica left, which can not lead alone.
        sim.crash(leader);
        sim.start(away);
        sim.await_steps("elected", |sim| sim.nodes[&third].leads_settled(child));
        assert!(sim.nodes[&away].machine.installed() > 0, "it saw the split");
        sim.await_steps("came", |sim| sim.nodes[&away].machine.replica(child).is_some());
        sim.settle();
        sim.check_slots();
    }
}

#[test]
fn a_source_goes_with_a_snapshot_of_the_target_that_absorbed_it() {
    for seed in 0..10 {
        let (mut sim, leader, away) = three(seed);
        let (target, operation) = (sim.groups[0], 1);
        let source = split(&mut sim, leader);
        sim.await_steps("split", |sim| sim.nodes[&leader].leads_settled(source));
        sim.settle();
        let nodes: BTreeSet<NodeId> = sim.nodes.keys().copied().collect();
        let prepare = Change::Prepare { operation, nodes: nodes.clone() };
        sim.post(leader, target, 2, prepare);
        sim.post(
            sim.leader(source).unwrap().0,
            source,
            2,
            Change::Freeze { operation, target, nodes },
        );
        sim.await_steps("froze", |sim| {
            let is_frozen = |record: &Record| record.is_frozen_by(operation);
            let mut nodes = sim.nodes.values();
            nodes.all(|node| node.machine.with_record(source, is_frozen) == Some(true))
        });
        sim.crash(away);
        let frozen = sim.nodes[&leader].machine.record(source).unwrap();
        let Merge::Frozen { at: frozen_at, .. } = frozen.merge else { unreachable!("it is") };
        let change = Change::Absorb { operation, source, source_epoch: 3, frozen_at };
        sim.post(leader, target, 3, change);
        sim.await_steps("absorbed", |sim| sim.nodes[&leader].machine.replica(source).is_none());
        for written in 0..300 {
            sim.write(target, leader);
            if written % 3 == 0 {
                sim.step();
            }
        }
        sim.start(away);
        assert!(sim.nodes[&away].machine.replica(source).is_some(), "it waits for its target");
        sim.settle();
        assert_eq!(sim.summary().went_with_snapshot, 1, "seed {seed}");
        assert_eq!(sim.groups, [target]);
        sim.check_history();
        sim.check_slots();
    }
}

/// Proposes to remove a node's replica. Gives the answer, once there is one.
/// It came by a snapshot, which was in nobody's way any more.
#[test]
fn a_child_may_be_here_without_its_slots_before_its_split_is() {
    for seed in [1_795_650_837_326, 1_795_650_837_906] {
        run(seed, Options::default());
    }
}

fn remove(sim: &mut Sim, leader: NodeId, node: NodeId) -> Answer {
    let group = sim.groups[0];
    let membership = sim.nodes[&leader].machine.record(group).unwrap().membership;
    let removed = membership.replica_on(node).unwrap().0;
    let change = MembershipChange { remove: vec![removed], ..Default::default() };
    let answer = Answer::default();
    let given = Arc::clone(&answer);
    let reply = pending(Box::new(move |result| *given.lock().unwrap() = Some(result)));
    let change = PendingChange { group, change: proposal::Change::Members(change), reply };
    sim.hand(leader, Input::Change(change));
    answer
}

type Answer = Arc<Mutex<Option<Result<Vec<CommandOutcome>, RequestError>>>>;

#[test]
fn a_change_that_found_no_room_bars_no_later_one() {
    let mut found_no_room = 0;
    for seed in 0..60 {
        let (mut sim, leader, other) = three(seed);
        let group = sim.groups[0];
        let others = sim.nodes.keys().copied().filter(|node| *node != leader);
        let others: Vec<NodeId> = others.collect();
        sim.network.lock().unwrap().isolate(leader, others.into_iter());
        for burst in [20, 1] {
            let before = sim.history.lock().refused;
            while sim.history.lock().refused == before {
                (0..burst).for_each(|_| sim.write(group, leader));
                sim.step();
            }
        }
        let first = remove(&mut sim, leader, other);
        sim.step();
        if *first.lock().unwrap() != Some(Err(RequestError::Overloaded)) {
            continue;
        }
        found_no_room += 1;
        sim.network.lock().unwrap().mend();
        sim.await_steps("caught up", |sim| {
            let applied = |node: NodeId| sim.nodes[&node].machine.applied(group).len();
            applied(other) > 5 && applied(other) == applied(leader)
        });
        let (leader, _) = sim.leader(group).unwrap();
        let second = remove(&mut sim, leader, other);
        (0..100).for_each(|_| sim.step());
        let answer = second.lock().unwrap().take();
        assert!(matches!(answer, Some(Ok(_))), "seed {seed}: {answer:?}");
    }
    assert!(found_no_room > 0);
}
