//! What befalls the cluster while clients are at work.

use std::{collections::BTreeMap, time::Duration};

use rand::Rng;

use super::{Climate, Sim, pick};
use crate::types::NodeId;

impl Sim {
    /// A random storm, of a random kind, around clients at work.
    pub(super) fn storm(&mut self, steps: u64) {
        self.disturb();
        let climate = self.climate;
        for _ in 0..steps {
            self.step();
            if let Some((leader, at)) = self.doomed
                && self.summary.steps >= at
            {
                self.strike(leader);
            }
            if self.is_busy && self.chance(climate.propose) {
                self.propose();
            }
            if self.chance(climate.read) {
                self.read();
            }
            if self.chance(climate.change_members) {
                self.change_members();
            }
            if self.chance(climate.transfer) {
                self.transfer();
            }
            if self.chance(climate.split) {
                self.split();
            }
            if self.chance(climate.merge) {
                self.merge();
            }
            if self.chance(climate.delete) {
                self.delete();
            }
            if self.chance(climate.crash) {
                let node = self.random_node();
                self.crash(node);
            }
            if self.chance(climate.reboot) {
                let node = self.random_node();
                self.crash(node);
                self.start(node);
            }
            if self.chance(0.03) {
                let node = self.random_node();
                if self.nodes[&node].running.is_none() {
                    self.start(node);
                }
            }
            if self.chance(climate.cut) {
                self.cut();
            }
            if self.chance(climate.mend) {
                self.network.lock().unwrap().mend();
            }
            if self.chance(climate.pause) {
                let (node, time) = (self.random_node(), self.rng.random_range(10..600));
                let until = self.now + Duration::from_millis(time);
                self.nodes.get_mut(&node).unwrap().pause_until(until);
            }
            if self.chance(0.01) {
                let (node, millis) = (self.random_node(), self.rng.random_range(-100_000..100_000));
                self.nodes[&node].clock.set_wall_off(millis);
            }
            if self.chance(climate.disturb) {
                self.disturb();
            }
        }
    }

    /// Makes the network and the disks as bad as chance will have it.
    pub(super) fn disturb(&mut self) {
        let Climate { loss, crash_in_round, slowest_aside, .. } = self.climate;
        self.crashes = crash_in_round * pick(&mut self.rng, &[0.0, 0.25, 1.0]);
        self.is_busy = self.chance(0.7);
        let mut network = self.network.lock().unwrap();
        network.loss = loss * pick(&mut self.rng, &[0.0, 0.2, 1.0]);
        network.duplication = *pick(&mut self.rng, &[0.0, 0.05]);
        network.most_delay = Duration::from_millis(*pick(&mut self.rng, &[2, 10, 60]));
        drop(network);
        for node in self.nodes.values_mut() {
            node.speed = *pick(&mut self.rng, &[0.95, 0.95, 0.95, 0.3]);
            node.aside_speed = *pick(&mut self.rng, &[0.5, slowest_aside]);
        }
    }

    /// Takes a leader away before its first entry is everywhere, or anywhere.
    pub(super) fn strike(&mut self, leader: NodeId) {
        self.doomed = None;
        self.network.lock().unwrap().drop_sent_by(leader);
        match self.rng.random_range(0..3) {
            0 => return self.crash(leader),
            1 => {
                self.crash(leader);
                return self.start(leader);
            }
            _ => {}
        }
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|n| *n != leader).collect();
        self.network.lock().unwrap().isolate(leader, others.into_iter());
    }

    /// Cuts a node off, more likely one that leads: from all others, or from a voter
    /// of a group of its, one way or both.
    pub(super) fn cut(&mut self) {
        let group = self.random_group();
        let at_leader = self.chance(0.7);
        let leader = self.leader(group).filter(|_| at_leader);
        let (node, voters) = match leader {
            Some((leader, status)) => (leader, status.membership.voters.clone()),
            None => (self.random_node(), BTreeMap::new()),
        };
        let mut others: Vec<NodeId> = self.nodes.keys().copied().filter(|n| *n != node).collect();
        if self.rng.random_bool(0.3) {
            return self.network.lock().unwrap().isolate(node, others.into_iter());
        }
        if voters.len() > 1 {
            others.retain(|other| voters.values().any(|voter| voter == other));
        }
        let other = *pick(&mut self.rng, &others);
        let one_way = self.rng.random_bool(0.3);
        let mut network = self.network.lock().unwrap();
        if one_way {
            network.cut(node, other);
        } else {
            network.isolate(node, [other].into_iter());
        }
    }
}
