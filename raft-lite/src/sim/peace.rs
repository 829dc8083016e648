//! After the storm: the cluster heals, settles, and is found to hold what it should.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Sim,
    machine::{Place, Record, Slot},
};
use crate::{
    clock::Clock,
    membership::Membership,
    shared::GroupStatus,
    types::{GroupId, INITIAL_POSITION, NodeId, ReplicaId},
};

/// Steps after which a healed cluster must have settled.
const STEPS_TO_SETTLE: u64 = 8000;

impl Sim {
    /// Runs without faults until every member of every group applied the same.
    pub(super) fn settle(&mut self) {
        self.climate.reboot_asked = 0.0;
        self.climate.control = 0.5;
        self.climate.control_crash = 0.0;
        self.climate.control_reads = 1.0;
        self.climate.mail_again = 0.0;
        self.crashes = 0.0;
        self.network.lock().unwrap().heal();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let node = self.nodes.get_mut(&id).unwrap();
            node.pause_until(Duration::ZERO);
            node.speed = 0.95;
            node.aside_speed = 0.5;
            if node.running.is_none() {
                self.start(id);
            }
        }
        for step in 1..=STEPS_TO_SETTLE {
            self.step();
            if self.is_settled() {
                return;
            }
            if step.is_multiple_of(STEPS_TO_SETTLE / 4) {
                self.remove_the_forgotten();
            }
        }
        panic!("the cluster made no progress after it was healed:\n{}", self.picture());
    }

    /// All groups as all nodes see them.
    pub(super) fn picture(&mut self) -> String {
        let mut picture = String::new();
        for group in self.groups.clone() {
            picture += &format!("group {group}: {:?}\n", self.progress(group));
        }
        for (id, node) in &self.nodes {
            for status in node.statuses(&self.groups) {
                picture += &format!("node {id}: {}\n", line(&status));
            }
            for (group, _) in node.machine.replicas() {
                let shard = node.machine.with_record(group, Record::line).unwrap_or_default();
                picture += &format!("node {id}: group {group} {shard}\n");
            }
        }
        for operation in self.meta.open() {
            picture += &format!("{operation:?}\n");
        }
        picture
    }

    /// Waits until all groups sleep, if they are to, and takes a leader away from one:
    /// the others wake and elect another.
    pub(super) fn rest(&mut self) {
        if self.climate.quiesce_after_ticks == 0 {
            return;
        }
        self.await_steps("fell asleep", Sim::all_sleep);
        let group = self.random_group();
        let Some((leader, status)) = self.leader(group) else {
            panic!("a group without a leader fell asleep");
        };
        if status.membership.voters.len() < 3 {
            return;
        }
        self.crash(leader);
        self.await_steps("woke and elected a leader", |sim| {
            sim.leader(group).is_some_and(|(node, _)| sim.nodes[&node].leads_settled(group))
        });
    }

    pub(super) fn await_steps(&mut self, what: &str, is_so: impl Fn(&Sim) -> bool) {
        for _ in 0..STEPS_TO_SETTLE {
            self.step();
            if is_so(self) {
                return;
            }
        }
        panic!("the groups never {what}:\n{}", self.picture());
    }

    pub(super) fn all_sleep(&self) -> bool {
        let statuses = self.nodes.values().flat_map(|node| node.statuses(&self.groups));
        statuses.into_iter().all(|status| status.asleep)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.meta.open().next().is_none()
            && self.mail.is_empty()
            && self.groups.iter().all(|group| {
                let mut statuses = BTreeMap::new();
                let mut leads = false;
                for (id, node) in &self.nodes {
                    if let Some((status, _)) = node.status(*group, node.clock.now()) {
                        statuses.insert(*id, status);
                        leads |= node.leads_settled(*group);
                    }
                }
                // A new leader's log may hold more than it knows to be committed.
                let Some(first) =
                    statuses.values().max_by_key(|status| status.epoch).filter(|_| leads)
                else {
                    return false;
                };
                let members = first.membership.members();
                let nodes = members.values().copied().collect::<BTreeSet<_>>();
                let holders =
                    self.nodes.iter().filter(|(_, node)| node.machine.replica(*group).is_some());
                !first.membership.is_joint()
                    && nodes.iter().copied().eq(holders.map(|(id, _)| *id))
                    && first.applied > INITIAL_POSITION.index
                    && nodes.iter().eq(statuses.keys())
                    && statuses.values().all(|s| {
                        s.leader == first.leader
                            && s.applied == first.applied
                            && s.commit == s.applied
                            && s.membership == first.membership
                    })
            })
    }

    /// What was acknowledged took effect once, and every member applied the same.
    pub(super) fn check_history(&self) {
        let history = self.history.lock();
        let mut places: BTreeMap<u64, Vec<(Slot, Place)>> = BTreeMap::new();
        for (slot, place, number) in self.invariants.slots.all() {
            places.entry(number).or_default().push((slot, place));
        }
        for (slot, acknowledged) in &history.acknowledged {
            for (number, place) in acknowledged {
                assert_eq!(
                    places.get(number),
                    Some(&vec![(*slot, *place)]),
                    "where command {number} took effect"
                );
            }
        }
        for group in &self.groups {
            for node in self.nodes.values().filter(|node| node.machine.replica(*group).is_some()) {
                let applied = node.machine.applied(*group);
                assert!(applied.into_iter().eq(self.invariants.applied.all(*group)));
            }
        }
    }

    /// Every slot has one owner, whose replicas all hold the same, and nobody else holds
    /// anything of it. What it holds is what took effect.
    pub(super) fn check_slots(&self) {
        let mut writes: BTreeMap<Slot, BTreeMap<Place, u64>> = BTreeMap::new();
        for (slot, place, number) in self.invariants.slots.all() {
            writes.entry(slot).or_default().insert(place, number);
        }
        for slot in 0..self.slots {
            let owners: Vec<_> =
                self.nodes.iter().map(|(id, n)| (*id, n.machine.owner(slot))).collect();
            let groups: BTreeSet<GroupId> = owners.iter().filter_map(|(_, group)| *group).collect();
            assert_eq!(groups.len(), 1, "slot {slot} belongs to {groups:?}");
            let mut contents = Vec::new();
            for (id, owner) in owners {
                let machine = &self.nodes[&id].machine;
                if owner.is_some() {
                    contents.push(machine.content(slot));
                } else {
                    let left = machine.slots_with_data();
                    assert!(!left.contains(&slot), "node {id} kept data of slot {slot}");
                }
            }
            let content = &contents[0];
            assert!(contents.iter().all(|other| other == content), "slot {slot}: {contents:?}");
            let of_slot = writes.remove(&slot).unwrap_or_default().into_iter();
            let last = of_slot.filter(|(place, _)| place.generation == content.generation);
            assert!(
                last.map(|(_, number)| number).eq(content.writes.iter().map(|write| write.0)),
                "slot {slot} lost what it had"
            );
        }
    }
}

/// A status on a line.
fn line(status: &GroupStatus) -> String {
    let GroupStatus { group, replica, role, term, commit, applied, epoch, asleep, .. } = status;
    let part = |part: &BTreeMap<ReplicaId, NodeId>| {
        let members: Vec<String> =
            part.iter().map(|(replica, node)| format!("{replica} on {node}")).collect();
        members.join(", ")
    };
    let Membership { voters, outgoing, learners, .. } = &*status.membership;
    format!(
        "group {group} replica {replica} {role:?} of {} in term {term}, commit {commit}, applied \
         {applied}, epoch {epoch}, asleep: {asleep}: voters {}; outgoing {}; learners {}",
        status.leader.unwrap_or_default(),
        part(voters),
        part(outgoing),
        part(learners),
    )
}
