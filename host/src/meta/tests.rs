use std::collections::BTreeMap;

use raft_lite::{Membership, ReplicaId};

use super::*;
use crate::storage::{ShardRecord, Slot, SlotRange, count, node_number};

fn range(start: u32, end: u32) -> SlotRange {
    SlotRange { start: Slot(start), end: Slot(end) }
}

fn record(group: u64, epoch: u64, slots: &[(u32, u32)]) -> ShardRecord {
    let nodes = ["node1", "node2", "node3"].map(|node| (node_number(node), node.to_owned()));
    let voters = (1..).map(ReplicaId).zip(nodes.iter().map(|(number, _)| *number));
    ShardRecord {
        group: GroupId(group),
        name: format!("shard_{}", group - 1),
        epoch,
        slots: slots.iter().map(|(a, b)| range(*a, *b)).collect(),
        membership: Membership::of_voters(voters.collect()),
        nodes: nodes.into(),
        ..ShardRecord::default()
    }
}

fn state() -> MetaState {
    let node = |n: u64| {
        let address = format!("127.0.0.1:{n}");
        (format!("node{n}"), NodeEntry { address, folder: n, ..NodeEntry::default() })
    };
    MetaState {
        version: 1,
        slots: 16,
        next_group: 3,
        next_operation: 1,
        nodes: (1..=4).map(node).collect(),
        shards: BTreeMap::from([
            (GroupId(1), record(1, 1, &[(0, 8)])),
            (GroupId(2), record(2, 1, &[(8, 16)])),
        ]),
        ..MetaState::default()
    }
}

fn tell(state: &mut MetaState, change: Change) -> Result<MetaReply, MetaError> {
    state.apply(&change.to_bytes(), 7).checked()
}

fn observe(state: &mut MetaState, records: &[ShardRecord]) {
    let records = records.iter().map(|record| record.encode().into()).collect();
    tell(state, Change::Observe(Observe { records })).unwrap();
}

fn begin(state: &mut MetaState, task: Task) -> Result<u64, MetaError> {
    let begin = Begin { task, request_id: 0, reason: "user".into() };
    Ok(tell(state, Change::Begin(begin))?.operation)
}

fn split(shard: &str, new_shard: &str) -> Task {
    let mut task = Task { shard: shard.into(), new_shard: new_shard.into(), ..Task::default() };
    task.set_kind(TaskKind::Split);
    task
}

fn migrate(shard: &str, from: &str, to: &str) -> Task {
    let mut task =
        Task { shard: shard.into(), from: from.into(), to: to.into(), ..Task::default() };
    task.set_kind(TaskKind::Migrate);
    task
}

#[test]
fn the_state_survives_storage() {
    let mut state = state();
    begin(&mut state, split("shard_0", "shard_9")).unwrap();
    tell(&mut state, Change::EndShard(2)).unwrap();
    assert_eq!(MetaState::decode(&state.encode()), Ok(state));
}

#[test]
fn a_split_told_of_in_any_order_leaves_each_slot_one_owner() {
    let parent = record(1, 2, &[(0, 4)]);
    let child = record(3, 2, &[(4, 8)]);
    for order in [[&parent, &child], [&child, &parent]] {
        let mut state = state();
        begin(&mut state, split("shard_0", "shard_9")).unwrap();
        for record in order {
            observe(&mut state, std::slice::from_ref(record));
            let owners = state.shards.values().map(|shard| count(&shard.slots)).sum::<u32>();
            assert!(owners <= 16);
        }
        assert!(state.unowned().is_empty());
        // What is old changes nothing, whenever it comes.
        let before = state.clone();
        observe(&mut state, &[record(1, 1, &[(0, 8)])]);
        assert_eq!(state, before);
    }
}

#[test]
fn a_shard_that_was_merged_never_comes_back() {
    let mut state = state();
    let absorbed = vec![GroupId(2)];
    observe(&mut state, &[ShardRecord { absorbed, ..record(1, 5, &[(0, 16)]) }]);
    assert_eq!(state.ended[&GroupId(2)], Ended::MergedInto(GroupId(1)));
    observe(&mut state, &[record(2, 9, &[(8, 16)])]);
    assert_eq!(state.shards.len(), 1);
    assert!(state.unowned().is_empty());
}

#[test]
fn operations_on_the_same_shard_wait_for_each_other() {
    let mut state = state();
    let id = begin(&mut state, split("shard_0", "shard_9")).unwrap();
    let busy = begin(&mut state, migrate("shard_0", "node1", "node4"));
    assert!(matches!(busy, Err(MetaError::Conflict(_))), "{busy:?}");
    begin(&mut state, migrate("shard_1", "node1", "node4")).unwrap();
    let mut operation = state.operations[&id].clone();
    operation.set_outcome(Outcome::Done);
    let step = Step { after: operation.steps, operation };
    tell(&mut state, Change::Step(step.clone())).unwrap();
    assert!(tell(&mut state, Change::Step(step)).is_err(), "a step is taken once");
    begin(&mut state, migrate("shard_0", "node1", "node4")).unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut state = state();
    let before = state.clone();
    let refused = [
        split("nosuch", "x"),
        split("shard_0", "shard_1"),
        split("shard_0", "a/b"),
        split("shard_0", "merge"),
        migrate("shard_0", "node4", "node1"),
        migrate("shard_0", "node1", "node2"),
        migrate("shard_0", "node1", "nosuch"),
        migrate("nosuch", "node1", "node4"),
    ];
    for task in refused {
        let answer = begin(&mut state, task.clone());
        assert!(answer.is_err(), "{task:?}");
    }
    let mut merge = Task { shard: "shard_0".into(), ..Task::default() };
    merge.set_kind(TaskKind::Merge);
    merge.sources = vec!["shard_0".into()];
    assert!(matches!(begin(&mut state, merge), Err(MetaError::Invalid { .. })));
    assert_eq!(state, before);
}

#[test]
fn a_request_that_is_repeated_begins_one_operation() {
    let mut state = state();
    let begin = Begin { task: split("shard_0", "s"), request_id: 5, reason: String::new() };
    let first = tell(&mut state, Change::Begin(begin.clone())).unwrap().operation;
    assert_eq!(tell(&mut state, Change::Begin(begin)).unwrap().operation, first);
    assert_eq!(state.operations.len(), 1);
}

#[test]
fn a_new_shard_takes_free_slots_or_half_of_the_largest() {
    let mut state = state();
    let mut create = Task { new_shard: "new".into(), ..Task::default() };
    create.set_kind(TaskKind::Create);
    let id = begin(&mut state, create.clone()).unwrap();
    let operation = &state.operations[&id];
    assert_eq!((operation.step(), operation.group, operation.child), (OperationStep::Split, 1, 3));
    assert_eq!(operation.slot_ranges(), [range(4, 8)]);
    assert_eq!(operation.task.nodes.len(), REPLICAS);
    tell(&mut state, Change::EndShard(2)).unwrap();
    create.new_shard = "other".into();
    let id = begin(&mut state, create).unwrap();
    let operation = &state.operations[&id];
    assert_eq!((operation.step(), operation.child), (OperationStep::Found, 4));
    assert_eq!(operation.slot_ranges(), [range(8, 16)]);
}

#[test]
fn a_node_that_comes_with_another_folder_has_lost_what_it_had() {
    let mut state = state();
    let node = |address: &str, folder| {
        let (node, address) = ("node1".to_owned(), address.to_owned());
        Change::PutNode(PutNode { node, address, folder })
    };
    tell(&mut state, node("127.0.0.1:9", 1)).unwrap();
    assert_eq!(state.nodes["node1"].fresh_from, 0);
    tell(&mut state, node("127.0.0.1:9", 11)).unwrap();
    assert_eq!(state.nodes["node1"].fresh_from, 3);
    assert!(tell(&mut state, node("127.0.0.1:2", 11)).is_err(), "another node's address");
    assert!(tell(&mut state, Change::DropNode("node1".into())).is_err(), "it has replicas");
    tell(&mut state, Change::DropNode("node4".into())).unwrap();
}
