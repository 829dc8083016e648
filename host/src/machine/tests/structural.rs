//! Changes of the shards themselves.

use super::*;

const CHILD: GroupId = GroupId(2);

fn slots(start: u32, end: u32) -> Vec<SlotRange> {
    vec![SlotRange { start: Slot(start), end: Slot(end) }]
}

fn node1() -> std::collections::BTreeSet<String> {
    ["node1".to_owned()].into()
}

impl Fixture {
    /// Applies a change of a shard at an epoch, as its next entry.
    fn change(
        &self,
        group: GroupId,
        epoch: u64,
        change: &ShardChange,
    ) -> (CommandOutcome, Effects) {
        let applied = self.machine.shard(group).unwrap().applied().applied;
        let kind = EntryKind::Structural as i32;
        let structural = change.encode();
        let payload = Payload { kind, epoch, time_ms: 1, structural, ..Payload::default() };
        let position = LogPosition { index: applied.index.next(), term: Term(6) };
        let entries = vec![CommittedEntry { position, payload: Some(payload) }];
        let mut effects = Effects::default();
        self.machine.apply(&[GroupEntries { group, entries }], &mut effects).unwrap();
        (effects.outcomes.remove(0), effects)
    }

    fn record(&self, group: GroupId) -> ShardRecord {
        self.machine.shard(group).unwrap().record().clone()
    }

    fn split(&self) {
        let split = ShardChange::Split { child: CHILD, name: "b".into(), slots: slots(5, 10) };
        let (outcome, effects) = self.change(GROUP, 1, &split);
        assert!(matches!(outcome, CommandOutcome::Applied(_)), "{outcome:?}");
        assert_eq!((effects.epochs[&GROUP], effects.born.len()), (2, 1));
        assert_eq!(effects.born[0].group, CHILD);
    }
}

#[test]
fn a_split_hands_slots_over_with_what_is_in_them_and_is_on_disk_then() {
    let fixture = fixture();
    fixture.apply(vec![entry(6, 7, vec![put(1, "a", "1"), put(9, "b", "2")])]);
    fixture.split();
    let Fixture { machine, folder } = fixture;
    // Nothing more is flushed: this is what a crash would leave.
    drop(machine);
    let (machine, _) = open(folder.path());
    let fixture = Fixture { machine, folder };
    let (parent, child) = (fixture.record(GROUP), fixture.record(CHILD));
    assert_eq!((parent.slots.clone(), parent.epoch), (slots(0, 5), 2));
    assert_eq!((child.slots.clone(), child.epoch), (slots(5, 10), 2));
    // What the plugin sees of the index goes on, and so does time.
    let first = child.shown_index(raft_lite::INITIAL_POSITION.index);
    assert!(first > parent.shown_index(fixture.state().applied.index));
    assert_eq!(fixture.machine.shard(CHILD).unwrap().applied().time_ms, 7);
    let of_others = fixture.apply(vec![entry(8, 8, vec![put(9, "b", "3")])]);
    assert_eq!(of_others, [CommandOutcome::Rejected(Rejection::SlotNotOwned)]);
    let reader = fixture.machine.reader(CHILD, Freshness::Latest).unwrap();
    let request = KvQuery::Get { key: b"b" }.encode().into();
    let reply = reader.query(&[Query { slot: Slot(9), request }], true).unwrap().replies.remove(0);
    assert!(matches!(reply, QueryReply::Done(Ok(found)) if !found.is_empty()));
}

#[test]
fn a_child_that_came_by_a_snapshot_without_its_slots_stays_as_it_is_when_its_split_is_applied() {
    let fixture = fixture();
    fixture.apply(vec![entry(6, 7, vec![put(1, "a", "1"), put(9, "b", "2")])]);
    // It was ended meanwhile.
    let ended = ShardRecord {
        group: CHILD,
        replica: first_replica(CHILD),
        epoch: 3,
        slots: Vec::new(),
        membership: Membership::of_voters([(first_replica(CHILD), node_number("node1"))].into()),
        phase: Phase::Retired,
        ..fixture.record(GROUP)
    };
    fixture.machine.found_shard(ended.clone()).unwrap();
    let split = ShardChange::Split { child: CHILD, name: "b".into(), slots: slots(5, 10) };
    let (outcome, effects) = fixture.change(GROUP, 1, &split);
    assert!(matches!(outcome, CommandOutcome::Applied(_)), "{outcome:?}");
    assert!(effects.born.is_empty());
    assert_eq!((fixture.record(CHILD), fixture.record(GROUP).slots), (ended, slots(0, 5)));
    assert_eq!(fixture.get(1, "a").unwrap(), "1");
    let left = ShardRecord { slots: slots(5, 10), ..fixture.record(GROUP) };
    assert!(crate::machine::structural::Surroundings::is_empty(&*fixture.machine, &left).unwrap());
}

#[test]
fn a_merge_takes_effect_only_while_it_is_prepared_and_of_what_is_frozen() {
    let fixture = fixture();
    fixture.apply(vec![entry(6, 7, vec![put(1, "a", "1"), put(9, "b", "2")])]);
    fixture.split();
    let merge = MergeId(7);
    let absorb = |index| {
        let frozen_at = Index(index);
        ShardChange::Absorb { merge, source: CHILD, frozen_at }
    };
    let refused = |(outcome, _): (CommandOutcome, Effects), refusal: Refusal| {
        assert!(
            matches!(&outcome, CommandOutcome::Failed(f) if f.code == refusal as u32),
            "{outcome:?}"
        );
    };
    let applied = |(outcome, effects): (CommandOutcome, Effects)| {
        assert!(matches!(outcome, CommandOutcome::Applied(_)), "{outcome:?}");
        effects
    };
    refused(fixture.change(GROUP, 2, &absorb(6)), Refusal::Cancelled);
    let prepare = ShardChange::Prepare { merge, nodes: node1() };
    applied(fixture.change(GROUP, 2, &prepare));
    let freeze = ShardChange::Freeze { merge, target: GROUP, nodes: node1() };
    applied(fixture.change(CHILD, 2, &freeze));
    // Neither changes in any other way, and the source takes nothing.
    let split = ShardChange::Split { child: GroupId(9), name: "c".into(), slots: slots(0, 1) };
    refused(fixture.change(GROUP, 3, &split), Refusal::Busy);
    let retire = ShardChange::Retire { force: true };
    refused(fixture.change(CHILD, 3, &retire), Refusal::Busy);
    let reader = fixture.machine.reader(CHILD, Freshness::Latest);
    assert!(matches!(reader, Err(QueryError::Frozen)));
    assert!(fixture.machine.reader(CHILD, Freshness::Any).is_ok());
    // An old epoch, and a cancelled merge, come to nothing.
    let frozen_at = fixture.machine.shard(CHILD).unwrap().applied().applied.index.0 - 1;
    let (stale, _) = fixture.change(GROUP, 2, &absorb(frozen_at));
    assert_eq!(stale, CommandOutcome::Rejected(Rejection::StaleEpoch));
    let effects = applied(fixture.change(GROUP, 3, &absorb(frozen_at)));
    assert_eq!(effects.gone, [(CHILD, first_replica(CHILD))]);
    assert_eq!(effects.epochs[&GROUP], 4);
    let record = fixture.record(GROUP);
    assert_eq!((record.slots, record.absorbed), (slots(0, 10), vec![CHILD]));
    assert!(fixture.machine.shard(CHILD).is_none());
    assert_eq!(fixture.get(9, "b").unwrap(), "2");
    let cancel = ShardChange::Cancel { merge, source: CHILD };
    refused(fixture.change(GROUP, 4, &cancel), Refusal::Absorbed);
    let Fixture { machine, folder } = fixture;
    drop(machine);
    let (machine, _) = open(folder.path());
    assert_eq!(machine.last_destroyed(CHILD), Some(first_replica(CHILD)));
    assert_eq!(machine.shards().len(), 1);
}

#[test]
fn a_cancelled_merge_is_over_for_good() {
    let fixture = fixture();
    fixture.split();
    let merge = MergeId(7);
    let change = |group, epoch, change: &ShardChange| fixture.change(group, epoch, change).0;
    let applied = |outcome| assert!(matches!(outcome, CommandOutcome::Applied(_)), "{outcome:?}");
    applied(change(GROUP, 2, &ShardChange::Prepare { merge, nodes: node1() }));
    let freeze = ShardChange::Freeze { merge, target: GROUP, nodes: node1() };
    applied(change(CHILD, 2, &freeze));
    let frozen_at = fixture.machine.shard(CHILD).unwrap().applied().applied.index;
    applied(change(GROUP, 3, &ShardChange::Cancel { merge, source: CHILD }));
    let late = change(GROUP, 4, &ShardChange::Absorb { merge, source: CHILD, frozen_at });
    assert!(matches!(late, CommandOutcome::Failed(f) if f.code == Refusal::Cancelled as u32));
    applied(change(CHILD, 3, &ShardChange::Unfreeze { merge }));
    assert_eq!(fixture.record(CHILD).phase, Phase::Serving);
    // A freeze that was under way comes to nothing.
    assert_eq!(change(CHILD, 3, &freeze), CommandOutcome::Rejected(Rejection::StaleEpoch));
}

#[test]
fn a_shard_with_data_is_retired_by_force_alone() {
    let fixture = fixture();
    fixture.apply(vec![entry(6, 7, vec![put(1, "a", "1")])]);
    let retire = |force| fixture.change(GROUP, 1, &ShardChange::Retire { force }).0;
    let refused = retire(false);
    assert!(matches!(refused, CommandOutcome::Failed(f) if f.code == Refusal::NotEmpty as u32));
    assert!(matches!(retire(true), CommandOutcome::Applied(_)));
    let frozen = fixture.apply(vec![CommittedEntry {
        position: LogPosition { index: Index(9), term: Term(6) },
        ..entry(9, 8, vec![put(1, "a", "2")])
    }]);
    assert_eq!(frozen, [CommandOutcome::Rejected(Rejection::Frozen)]);
}

#[test]
fn a_snapshot_is_not_taken_in_while_another_replica_owns_its_slots() {
    let source = fixture();
    source.split();
    let (sender, receiver) = std::sync::mpsc::channel();
    source.machine.make_snapshot(CHILD, Box::new(move |made| sender.send(made).unwrap()));
    let snapshot = receiver.recv().unwrap().unwrap();
    // Here the parent has not heard of the split.
    let lagging = fixture();
    assert!(!lagging.machine.admits_snapshot(CHILD, ReplicaId(1), &snapshot));
    lagging.split();
    assert!(lagging.machine.admits_snapshot(CHILD, ReplicaId(1), &snapshot));
}
