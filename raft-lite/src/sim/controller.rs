//! Those who carry out operations on groups: split, merge, and delete.
//!
//! A controller goes by what it last read of the cluster's meta group, which may be long
//! out of date: another one may have gone on meanwhile, or be at it at the same time.
//! What it sends may come late, and again. It learns what came of it only by looking at
//! the group, at a leader that can be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::Rng;

use super::{
    Sim,
    clients::pending,
    machine::{Change, Merge as Part, Record, Slot},
    meta::{Delete, Kind, Merge, Operation, Step},
    pick,
    planted::{self, Bug},
};
use crate::{
    applier::{Birth, Notice},
    clock::Clock,
    membership::Membership,
    proposal::{self, PendingChange, RequestError},
    types::{GroupId, Index, NodeId, ReplicaId},
    worker::Input,
};

/// True time after which a merge is rolled back.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Groups there may be at a time, and ever.
const MOST_GROUPS: usize = 6;
const MOST_GROUPS_EVER: u64 = 24;

#[derive(Debug, Default)]
pub(super) struct Controller {
    /// The operations as it last read them.
    view: BTreeMap<u64, Operation>,
    /// It is down until this true time.
    down_until: Duration,
}

/// A structural change on its way to a node.
pub(super) struct Mail {
    due: Duration,
    node: NodeId,
    group: GroupId,
    epoch: u64,
    change: Bytes,
}

impl Sim {
    /// Lets each controller take a step, or crash.
    pub(super) fn control(&mut self) {
        self.deliver_mail();
        if self.meta.operations.is_empty() {
            return;
        }
        for number in 0..self.controllers.len() {
            if self.controllers[number].down_until > self.now || !self.chance(self.climate.control)
            {
                continue;
            }
            if self.chance(self.climate.control_crash) {
                let down = Duration::from_millis(self.rng.random_range(10..500));
                let down_until = self.now + down;
                self.controllers[number] = Controller { down_until, ..Default::default() };
                continue;
            }
            if self.controllers[number].view.is_empty() || self.chance(self.climate.control_reads) {
                let operations = self.meta.operations.clone();
                self.controllers[number].view = operations;
            }
            let view = self.controllers[number].view.values();
            let open: Vec<Operation> =
                view.filter(|operation| operation.step != Step::Done).cloned().collect();
            if !open.is_empty() {
                let operation = pick(&mut self.rng, &open).clone();
                self.carry_on(&operation);
            }
            self.remove_the_dead();
        }
    }

    fn carry_on(&mut self, operation: &Operation) {
        let (id, step) = (operation.id, operation.step);
        match &operation.kind {
            Kind::Delete(delete) => self.carry_on_delete(id, step, delete),
            Kind::Merge(merge) => {
                let can_cancel =
                    matches!(step, Step::Prepare | Step::Freeze | Step::Gather | Step::Absorb);
                let is_late = self.now > operation.began + PATIENCE;
                // The most delicate moment: the other may be about to carry it out.
                let at_last = step == Step::Absorb && self.chance(self.climate.control_wavers);
                let gives_up = at_last || self.chance(self.climate.control_cancels);
                if can_cancel && (is_late || gives_up) {
                    return self.meta.advance(id, (step, Step::Cancel), |_| {});
                }
                match step {
                    Step::Prepare => self.prepare(id, merge),
                    Step::Freeze => self.freeze(id, merge),
                    Step::Gather => self.gather(id, merge),
                    Step::Absorb => self.absorb(id, merge),
                    Step::Cancel => self.cancel(id, merge),
                    Step::Unfreeze => self.unfreeze(id, merge),
                    Step::CleanUp => self.clean_up(id, merge),
                    Step::Delete | Step::Create | Step::Done => {}
                }
            }
        }
    }

    fn prepare(&mut self, id: u64, merge: &Merge) {
        let Some((leader, target)) = self.inspect(merge.target) else { return };
        if target.merge == (Part::Prepared { operation: id }) {
            self.meta.advance(id, (Step::Prepare, Step::Freeze), |_| {});
        } else if target.epoch != merge.prepare_epoch {
            self.meta.advance(id, (Step::Prepare, Step::Cancel), |_| {});
        } else {
            let change = Change::Prepare { operation: id, nodes: merge.nodes.clone() };
            self.post(leader, merge.target, target.epoch, change);
        }
    }

    fn freeze(&mut self, id: u64, merge: &Merge) {
        let Some((leader, source)) = self.inspect(merge.source) else { return };
        match source.merge {
            Part::Frozen { operation, at, .. } if operation == id => {
                self.meta.advance(id, (Step::Freeze, Step::Gather), |kind| {
                    learn(kind, |merge| merge.frozen_at = at);
                });
            }
            _ if source.epoch != merge.freeze_epoch => {
                self.meta.advance(id, (Step::Freeze, Step::Cancel), |_| {});
            }
            _ => {
                let (target, nodes) = (merge.target, merge.nodes.clone());
                let change = Change::Freeze { operation: id, target, nodes };
                self.post(leader, merge.source, source.epoch, change);
            }
        }
    }

    /// Asks the nodes whether they have frozen their replica of the source, and have one
    /// of the target to absorb it.
    fn gather(&mut self, id: u64, merge: &Merge) {
        for node in &merge.nodes {
            let is_asked = self.chance(0.7);
            let (node, machine) = (*node, &self.nodes[node].machine);
            if is_asked
                && self.nodes[&node].is_at_work()
                && machine.with_record(merge.source, |source| source.is_frozen_by(id)) == Some(true)
                && machine.replica(merge.target).is_some()
            {
                self.meta.advance(id, (Step::Gather, Step::Gather), |kind| {
                    learn(kind, |merge| merge.frozen_on.extend([node]));
                });
            }
        }
        let merge = self.meta.operations[&id].merge();
        if merge.is_some_and(|merge| merge.frozen_on == merge.nodes) {
            self.meta.advance(id, (Step::Gather, Step::Absorb), |_| {});
        }
    }

    fn absorb(&mut self, id: u64, merge: &Merge) {
        let Some((leader, target)) = self.inspect(merge.target) else { return };
        if target.absorbed.contains_key(&merge.source) {
            return self.note_absorbed(id, Step::Absorb);
        }
        let change = Change::Absorb {
            operation: id,
            source: merge.source,
            source_epoch: merge.freeze_epoch + 1,
            frozen_at: merge.frozen_at,
        };
        self.post(leader, merge.target, target.epoch, change);
    }

    fn note_absorbed(&mut self, id: u64, from: Step) {
        self.meta.advance(id, (from, Step::CleanUp), |kind| {
            learn(kind, |merge| merge.is_absorbed = true);
        });
    }

    /// Sees to it that the target can not absorb the source any more, unless it has.
    fn cancel(&mut self, id: u64, merge: &Merge) {
        let Some((leader, target)) = self.inspect(merge.target) else { return };
        if target.absorbed.contains_key(&merge.source) {
            self.note_absorbed(id, Step::Cancel);
        } else if target.merge == (Part::Prepared { operation: id })
            || target.epoch <= merge.prepare_epoch
        {
            self.post(leader, merge.target, target.epoch, Change::Cancel { operation: id });
        } else {
            self.meta.advance(id, (Step::Cancel, Step::Unfreeze), |_| {});
        }
    }

    /// Lets the source go on, and sees to it that it can not be frozen any more.
    fn unfreeze(&mut self, id: u64, merge: &Merge) {
        let Some((leader, source)) = self.inspect(merge.source) else { return };
        if source.is_frozen_by(id) || source.epoch <= merge.freeze_epoch {
            self.post(leader, merge.source, source.epoch, Change::Unfreeze { operation: id });
        } else {
            self.meta.advance(id, (Step::Unfreeze, Step::Done), |_| {});
        }
    }

    fn clean_up(&mut self, id: u64, merge: &Merge) {
        let has_source = |node: &NodeId| self.nodes[node].machine.replica(merge.source).is_some();
        if !merge.nodes.iter().any(has_source) {
            self.meta.advance(id, (Step::CleanUp, Step::Done), |_| {});
        }
    }

    fn carry_on_delete(&mut self, id: u64, step: Step, delete: &Delete) {
        if step == Step::Delete {
            let Some((leader, record)) = self.inspect(delete.group) else { return };
            let Some(slots) = record.deleted else {
                return self.post(leader, delete.group, record.epoch, Change::Delete);
            };
            self.meta.advance(id, (step, Step::Create), |kind| {
                if let Kind::Delete(delete) = kind {
                    delete.slots = slots;
                }
            });
        } else if step == Step::Create {
            let nodes = delete.nodes.iter().copied();
            let membership = Membership::of_voters((1..).map(ReplicaId).zip(nodes).collect());
            let mut all_have = true;
            for node in &delete.nodes {
                let home = (membership.clone(), delete.slots.clone());
                all_have &= self.create(*node, delete.successor, home, id);
            }
            let is_left = self.nodes.values().any(|n| n.machine.replica(delete.group).is_some());
            if all_have && !is_left {
                self.meta.advance(id, (step, Step::Done), |_| {});
            }
        }
    }

    /// Puts a replica on a node's record, and starts it. Returns whether it is there, or
    /// was.
    fn create(
        &mut self,
        node: NodeId,
        group: GroupId,
        home: (Membership, BTreeSet<Slot>),
        generation: u64,
    ) -> bool {
        let machine = &self.nodes[&node].machine;
        if machine.knows(group) {
            return true;
        }
        if self.nodes[&node].is_at_work()
            && let Some(descriptor) = machine.create(group, home, generation)
        {
            // It may crash in between.
            if !self.chance(self.crashes) {
                let birth = Birth { descriptor, leads_parent: false };
                self.hand(node, Input::Notice(Notice::Born(birth)));
            } else {
                self.crash(node);
            }
        }
        false
    }

    /// Removes what is left of groups that are no more. A source of a merge goes with
    /// its node's target, unless that was removed from the node before.
    fn remove_the_dead(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            for (group, replica) in self.nodes[&id].machine.replicas() {
                let Some(end) = self.meta.end_of(group) else { continue };
                let waits_for_target = end.merge().is_some_and(|merge| {
                    merge.nodes.contains(&id)
                        && self.nodes[&id].machine.replica(merge.target).is_some()
                        && !planted::is(Bug::SourceDestroyedBeforeAbsorb)
                });
                if !waits_for_target {
                    self.hand(id, Input::Remove(group, replica));
                }
            }
        }
    }

    /// What a group is, as its leader knows, and where that is: at once if it holds a
    /// lease, else once the others have confirmed that it leads.
    fn inspect(&mut self, group: GroupId) -> Option<(NodeId, Record)> {
        let found = self.nodes.iter().find_map(|(id, node)| {
            let (_, reads_locally) = node.status(group, node.clock.now())?;
            let record = node.machine.record(group)?;
            (node.is_at_work() && reads_locally).then_some((*id, record))
        });
        if found.is_some() {
            return found;
        }
        if let Some((id, start)) = self.confirmed.lock().remove(&group)
            && let node = &self.nodes[&id]
            && node.starts == start
            && node.is_at_work()
        {
            return Some((id, node.machine.record(group)?));
        }
        let (leader, _) = self.leader(group)?;
        let (confirmed, start) = (Arc::clone(&self.confirmed), self.nodes[&leader].starts);
        let reply = move |result: Result<Index, RequestError>| {
            if result.is_ok() {
                confirmed.lock().insert(group, (leader, start));
            }
        };
        self.ask(group, leader, Box::new(reply));
        None
    }

    /// Sends a change to where a group's leader was, and now and then twice.
    pub(super) fn post(&mut self, node: NodeId, group: GroupId, epoch: u64, change: Change) {
        let change = self.pool.keep_change(change);
        let most_delay = self.network.lock().unwrap().most_delay;
        let mut delays = vec![most_delay.mul_f64(self.rng.random())];
        if self.chance(self.climate.mail_again) {
            delays.push(Duration::from_millis(self.rng.random_range(0..3000)));
        }
        for delay in delays {
            let (due, change) = (self.now + delay, change.clone());
            self.mail.push(Mail { due, node, group, epoch, change });
        }
    }

    fn deliver_mail(&mut self) {
        let now = self.now;
        let due: Vec<Mail> = self.mail.extract_if(.., |mail| mail.due <= now).collect();
        for Mail { node, group, epoch, change, .. } in due {
            let change = proposal::Change::Structural { epoch, change };
            let change = PendingChange { group, change, reply: pending(Box::new(drop)) };
            self.hand(node, Input::Change(change));
        }
    }

    /// Splits some of a group's slots off.
    pub(super) fn split(&mut self) {
        let group = self.random_group();
        let Some((leader, record)) = self.inspect(group) else { return };
        let has_room = self.groups.len() < MOST_GROUPS && self.meta.groups() < MOST_GROUPS_EVER;
        if !record.is_free() || record.slots.len() < 2 || !has_room {
            return;
        }
        let slots: Vec<Slot> = record.slots.iter().copied().collect();
        let count = self.rng.random_range(1..slots.len());
        let slots = if self.chance(0.5) { &slots[..count] } else { &slots[count..] };
        let slots = slots.iter().copied().collect();
        let child = self.meta.new_group();
        self.post(leader, group, record.epoch, Change::Split { child, slots });
    }

    /// Begins to merge two groups that are on the same nodes, if there are such.
    pub(super) fn merge(&mut self) {
        let target = self.random_group();
        let Some((_, into)) = self.inspect(target) else { return };
        for source in self.groups.clone() {
            let Some((_, from)) = self.inspect(source) else { continue };
            let fits = into.can_merge() && from.can_merge() && into.nodes() == from.nodes();
            if source != target && fits {
                let merge = Merge {
                    source,
                    target,
                    nodes: into.nodes(),
                    prepare_epoch: into.epoch,
                    freeze_epoch: from.epoch,
                    frozen_at: Index(0),
                    frozen_on: BTreeSet::new(),
                    is_absorbed: false,
                };
                return self.meta.begin(Kind::Merge(merge), Step::Prepare, self.now);
            }
        }
    }

    /// Begins to delete a group; another gets its slots.
    pub(super) fn delete(&mut self) {
        let group = self.random_group();
        if self.meta.groups() >= MOST_GROUPS_EVER {
            return;
        }
        let mut nodes = BTreeSet::new();
        for _ in 0..self.rng.random_range(1..=3) {
            nodes.insert(self.random_node());
        }
        let successor = self.meta.new_group();
        let delete = Delete { group, successor, nodes, slots: BTreeSet::new() };
        self.meta.begin(Kind::Delete(delete), Step::Delete, self.now);
    }
}

fn learn(kind: &mut Kind, learn: impl FnOnce(&mut Merge)) {
    if let Kind::Merge(merge) = kind {
        learn(merge);
    }
}
