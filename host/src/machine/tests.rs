//! The state machine with the default plugin in real wasmtime on real RocksDB.

mod structural;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use raft_kv_plugin_kv::protocol::{self, Command as KvCommand, Put, Query as KvQuery};
use raft_lite::{
    Command, CommandOutcome, CommittedEntry, Effects, EntryKind, GroupEntries, GroupId, Index,
    LogPosition, Membership, MembershipChange, NewReplica, Payload, Rejection, ReplicaId,
    SnapshotMeta, StateMachine, Term,
};

use super::*;
use crate::storage::{
    MergeId, Phase, Slot, SlotRange, SnapshotData, SnapshotFolders, StorageOptions, fetched,
    first_replica, node_number,
};

const GROUP: GroupId = GroupId(1);
const THREADS: Threads = Threads { appliers: 1, servers: 1 };

struct Fixture {
    machine: Arc<Machine>,
    folder: tempfile::TempDir,
}

fn open(folder: &Path) -> (Arc<Machine>, Arc<PluginStore>) {
    let storage = Storage::open(&folder.join("state"), StorageOptions::default()).unwrap();
    let plugins =
        PluginStore::open(folder.join("plugins"), THREADS.executors(), Compiler::Here).unwrap();
    let plugins = Arc::new(plugins);
    let snapshots = Arc::new(SnapshotFolders::open(folder.join("snapshots")).unwrap());
    let machine =
        Machine::open(Arc::new(storage), Arc::clone(&plugins), snapshots, THREADS, GroupId(0));
    (Arc::new(machine.unwrap()), plugins)
}

/// A machine with one shard that owns slots 0 to 9.
fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let (machine, plugins) = open(folder.path());
    let plugin = plugins.add(DEFAULT_PLUGIN, Path::new("embedded")).unwrap();
    let record = ShardRecord {
        group: GROUP,
        replica: ReplicaId(1),
        name: "shard_0".into(),
        epoch: 1,
        slots: vec![SlotRange { start: Slot(0), end: Slot(10) }],
        membership: Membership::of_voters([(ReplicaId(1), node_number("node1"))].into()),
        nodes: [(node_number("node1"), "node1".to_owned())].into(),
        plugin,
        started: true,
        ..ShardRecord::default()
    };
    machine.create(vec![record], None).unwrap();
    Fixture { machine, folder }
}

fn put(slot: u32, key: &str, value: &str) -> Command {
    let put = Put { key: key.as_bytes(), value: value.as_bytes(), expected: None, ttl_ms: None };
    Command { slot, payload: KvCommand::Put(put).encode().into(), ..Command::default() }
}

fn entry(index: u64, time_ms: u64, commands: Vec<Command>) -> CommittedEntry {
    let kind = EntryKind::Commands as i32;
    let payload = Payload { kind, epoch: 1, time_ms, commands, ..Payload::default() };
    let position = LogPosition { index: Index(index), term: Term(6) };
    CommittedEntry { position, payload: Some(payload) }
}

impl Fixture {
    fn apply(&self, entries: Vec<CommittedEntry>) -> Vec<CommandOutcome> {
        let mut effects = Effects::default();
        let batch = [GroupEntries { group: GROUP, entries }];
        self.machine.apply(&batch, &mut effects).unwrap();
        effects.outcomes
    }

    fn get(&self, slot: u32, key: &str) -> Option<Bytes> {
        let request = KvQuery::Get { key: key.as_bytes() }.encode().into();
        let queries = [Query { slot: Slot(slot), request }];
        let reader = self.machine.reader(GROUP, Freshness::Latest).unwrap();
        let reply = reader.query(&queries, true).unwrap().replies.remove(0);
        let QueryReply::Done(Ok(response)) = reply else { panic!("{reply:?}") };
        protocol::decode_get(&response).unwrap().map(|found| response.slice(found.value))
    }

    fn state(&self) -> ApplyState {
        self.machine.shard(GROUP).unwrap().applied()
    }
}

#[test]
fn a_put_is_seen_by_the_next_read_and_after_reopening() {
    let fixture = fixture();
    let outcomes = fixture.apply(vec![entry(6, 1, vec![put(3, "a", "1"), put(4, "b", "2")])]);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, CommandOutcome::Applied(_))));
    assert_eq!(fixture.get(3, "a").unwrap(), "1");
    let state = fixture.state();
    assert_eq!(state.applied.index, Index(6));

    fixture.machine.storage().flush().unwrap();
    let Fixture { machine, folder } = fixture;
    drop(machine);
    let (machine, _plugins) = open(folder.path());
    let reopened = Fixture { machine, folder };
    assert_eq!(reopened.state(), state);
    assert_eq!(reopened.get(4, "b").unwrap(), "2");
}

#[test]
fn commands_are_checked_one_by_one() {
    let fixture = fixture();
    let expired = Command { not_after_ms: 99, ..put(1, "late", "x") };
    let in_time = Command { not_after_ms: 100, ..put(1, "timely", "x") };
    let foreign = put(10, "foreign", "x");
    let outcomes = fixture.apply(vec![entry(6, 100, vec![expired, in_time, foreign])]);
    assert_eq!(outcomes[0], CommandOutcome::Rejected(Rejection::Expired));
    assert!(matches!(outcomes[1], CommandOutcome::Applied(_)));
    assert_eq!(outcomes[2], CommandOutcome::Rejected(Rejection::SlotNotOwned));
    assert_eq!(fixture.get(1, "late"), None);
    assert!(fixture.get(1, "timely").is_some());
}

#[test]
fn replicated_time_never_goes_back() {
    let fixture = fixture();
    fixture.apply(vec![entry(6, 500, vec![put(1, "a", "1")])]);
    fixture.apply(vec![entry(7, 400, vec![put(1, "a", "2")])]);
    assert_eq!(fixture.state().time_ms, 500);
    let expired = Command { not_after_ms: 450, ..put(1, "a", "3") };
    let outcomes = fixture.apply(vec![entry(8, 410, vec![expired])]);
    assert_eq!(outcomes, [CommandOutcome::Rejected(Rejection::Expired)]);
}

#[test]
fn a_failed_command_leaves_nothing_and_spares_its_neighbours() {
    let fixture = fixture();
    let swap = |expected, value: &'static [u8]| Command {
        slot: 1,
        payload: KvCommand::Put(Put { key: b"k", value, expected: Some(expected), ttl_ms: None })
            .encode()
            .into(),
        ..Command::default()
    };
    let commands = vec![swap(0, b"first"), swap(0, b"second"), put(2, "other", "x")];
    let outcomes = fixture.apply(vec![entry(6, 1, commands)]);
    assert!(matches!(outcomes[0], CommandOutcome::Applied(_)));
    assert!(matches!(&outcomes[1], CommandOutcome::Failed(failure) if failure.code == 1));
    assert!(matches!(outcomes[2], CommandOutcome::Applied(_)));
    assert_eq!(fixture.get(1, "k").unwrap(), "first");
}

#[test]
fn state_and_hash_do_not_depend_on_how_entries_are_batched() {
    let entries = || -> Vec<CommittedEntry> {
        let commands = |i: u64| {
            let key = format!("key{}", i % 5);
            let malformed = Command { slot: 2, payload: vec![9].into(), ..Command::default() };
            vec![put(1, &key, &i.to_string()), malformed, put(11, &key, "foreign")]
        };
        (6..46).map(|i| entry(i, i, commands(i))).collect()
    };
    let together = fixture();
    let outcomes = together.apply(entries());
    let apart = fixture();
    let outcomes_apart: Vec<_> =
        entries().into_iter().flat_map(|entry| apart.apply(vec![entry])).collect();
    assert_eq!(outcomes, outcomes_apart);
    assert_eq!(together.state(), apart.state());
    for i in 0..5 {
        let key = format!("key{i}");
        assert_eq!(together.get(1, &key), apart.get(1, &key));
    }
}

#[test]
fn an_entry_of_a_newer_version_stops_the_replica_without_advancing_it() {
    let fixture = fixture();
    fixture.apply(vec![entry(6, 1, vec![put(1, "a", "1")])]);
    let mut unknown = entry(7, 1, vec![]);
    unknown.payload.as_mut().unwrap().kind = EntryKind::Structural as i32;
    let batch = [GroupEntries { group: GROUP, entries: vec![unknown] }];
    let error = fixture.machine.apply(&batch, &mut Effects::default()).unwrap_err();
    assert_eq!(error.group, GROUP);
    assert_eq!(fixture.state().applied.index, Index(6));
}

#[test]
fn a_damaged_plugin_file_is_refused() {
    let fixture = fixture();
    let Fixture { machine, folder } = fixture;
    let hash = machine.shard(GROUP).unwrap().module().unwrap().hash();
    drop(machine);
    let path = folder.path().join("plugins").join(format!("{hash}.wasm"));
    std::fs::write(&path, b"\0asm").unwrap();
    let storage = Storage::open(&folder.path().join("state"), StorageOptions::default()).unwrap();
    let plugins = PluginStore::open(folder.path().join("plugins"), 1, Compiler::Here).unwrap();
    let snapshots = Arc::new(SnapshotFolders::open(folder.path().join("snapshots")).unwrap());
    let opened =
        Machine::open(Arc::new(storage), Arc::new(plugins), snapshots, THREADS, GroupId(0));
    assert!(matches!(opened, Err(OpenError::Plugin(PluginFileError::Damaged { .. }))));
}

fn change(index: u64, epoch: u64, change: MembershipChange) -> CommittedEntry {
    let payload = Payload {
        kind: EntryKind::Membership as i32,
        epoch,
        membership: Some(change),
        ..Payload::default()
    };
    let position = LogPosition { index: Index(index), term: Term(6) };
    CommittedEntry { position, payload: Some(payload) }
}

fn add(replica: u64, node: &str) -> MembershipChange {
    let (node, context) = (node_number(node).0, Bytes::copy_from_slice(node.as_bytes()));
    let add = vec![NewReplica { replica, node, context }];
    MembershipChange { add, ..MembershipChange::default() }
}

#[test]
fn members_change_only_at_the_exact_epoch_and_are_on_disk_then() {
    let Fixture { machine, folder } = {
        let fixture = fixture();
        let outcomes = fixture.apply(vec![
            change(6, 1, add(2, "node2")),
            entry(7, 5, vec![put(1, "a", "1")]),
            change(8, 1, add(3, "node3")),
            change(9, 2, add(2, "node3")),
        ]);
        assert!(matches!(outcomes[0], CommandOutcome::Applied(_)));
        assert!(matches!(outcomes[1], CommandOutcome::Applied(_)));
        let stale = CommandOutcome::Rejected(Rejection::StaleEpoch);
        assert_eq!(outcomes[2..], [stale.clone(), stale]);
        fixture
    };
    // Nothing is flushed: this is what a crash would leave.
    drop(machine);
    let (machine, _) = open(folder.path());
    let shard = machine.shard(GROUP).unwrap();
    let record = shard.record();
    assert_eq!(record.epoch, 2);
    assert_eq!(record.node_of(ReplicaId(2)), Some("node2"));
    assert_eq!(record.membership.learners.len(), 1);
}

#[test]
fn a_snapshot_makes_a_replica_that_survives_a_crash_and_can_be_removed() {
    let source = fixture();
    source.apply(vec![entry(6, 5, vec![put(1, "a", "1"), put(9, "b", "2")])]);
    source.apply(vec![change(7, 1, add(2, "node2"))]);
    let (sender, receiver) = std::sync::mpsc::channel();
    source.machine.make_snapshot(GROUP, Box::new(move |made| sender.send(made).unwrap()));
    let meta: SnapshotMeta = receiver.recv().unwrap().unwrap();
    assert_eq!(meta.position.index, Index(7));
    let data: SnapshotData = prost::Message::decode(meta.data.clone()).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let (target, _) = open(folder.path());
    let (id, arrived) = target.snapshots.create().unwrap();
    for file in &data.files {
        let sent = source.machine.snapshots.file(data.id, &file.name).unwrap();
        assert_eq!(sent.metadata().unwrap().len(), file.bytes);
        std::fs::copy(sent, arrived.join(&file.name)).unwrap();
    }
    let installed = target.install_snapshot(GROUP, ReplicaId(2), &meta, &fetched(id)).unwrap();
    assert_eq!(installed.replica, ReplicaId(2));
    assert!(installed.record.applied_by_snapshot && !installed.record.started);
    assert!(!arrived.exists());
    drop(target);

    let (target, _) = open(folder.path());
    let target = Fixture { machine: target, folder };
    assert_eq!(target.get(9, "b").as_deref(), Some(b"2".as_slice()));
    assert_eq!(target.state(), source.state());
    // It goes on with the log like the others. What it has applied is from then on not
    // where a snapshot was, and the log is not to be made anew from there.
    let by_snapshot = || target.machine.descriptors()[0].record.applied_by_snapshot;
    assert!(by_snapshot());
    let next = entry(8, 9, vec![put(1, "a", "3")]);
    assert_eq!(target.apply(vec![next.clone()]), source.apply(vec![next]));
    assert_eq!(target.state(), source.state());

    assert!(!by_snapshot());
    let reader = target.machine.reader(GROUP, Freshness::Latest).unwrap();

    let checksum = |machine: &Fixture| {
        machine.machine.reader(GROUP, Freshness::Latest).unwrap().checksum().unwrap()
    };
    assert_eq!(checksum(&target), checksum(&source));
    target.machine.destroy_replica(GROUP, ReplicaId(2)).unwrap();
    // Files have gone from under the snapshot of those who still read.
    assert!(matches!(reader.checksum(), Err(QueryError::NoShard(GROUP))));
    let query = KvQuery::Get { key: b"b" }.encode().into();
    let query = Query { slot: Slot(9), request: query };
    assert!(matches!(reader.query(&[query], true), Err(QueryError::NoShard(GROUP))));
    drop(reader);
    let Fixture { machine, folder } = target;
    assert!(machine.shard(GROUP).is_none());
    drop(machine);
    let (machine, _) = open(folder.path());
    assert!(machine.shards().is_empty() && machine.is_founded().is_ok());
    assert_eq!(machine.last_destroyed(GROUP), Some(ReplicaId(2)));
    source.machine.release_snapshot(GROUP, &meta);
    assert!(!source.machine.snapshots.file(data.id, "000000.sst").unwrap().exists());
}
