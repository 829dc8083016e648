//! What the benchmarks have in common: a machine with one shard, fed with log
//! entries as the Raft runtime would, and the same state machine compiled
//! natively on the same storage.

mod native;
mod replicas;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use raft_kv::{
    machine::{Compiler, DEFAULT_PLUGIN, Machine, PluginStore, Threads},
    storage::{ShardRecord, Slot, SlotRange, SnapshotFolders, Storage, StorageOptions, slot_of},
};
use raft_kv_plugin_kv::protocol::{Command as KvCommand, Put, Query as KvQuery, Scan};
use raft_lite::{
    Command, CommandOutcome, CommittedEntry, Effects, EntryKind, GroupEntries, GroupId,
    INITIAL_POSITION, Index, LogPosition, Payload, ReplicaId, StateMachine, Term,
};

pub use native::NativeMachine;
pub use replicas::{Replicas, read};

/// Slots of the one shard.
pub const SLOTS: u32 = 256;
/// The one shard's group.
pub const GROUP: GroupId = GroupId(1);

/// A machine whose one shard owns every slot and runs the default plugin.
pub struct Fixture {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Its snapshots.
    pub snapshots: Arc<SnapshotFolders>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// One whose shard is empty, in a folder that goes with it.
    pub fn new() -> Self {
        Fixture::with_shard(true)
    }

    /// One without the shard.
    pub fn empty() -> Self {
        Fixture::with_shard(false)
    }

    fn with_shard(has_shard: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let storage = open_storage(&folder.path().join("state"));
        let threads = Threads { appliers: 1, servers: 1 };
        let plugins =
            PluginStore::open(folder.path().join("plugins"), threads.executors(), Compiler::Here);
        let plugins = Arc::new(plugins.expect("the plugin folder can be made"));
        let snapshots = SnapshotFolders::open(folder.path().join("snapshots"));
        let snapshots = Arc::new(snapshots.expect("the snapshot folder can be made"));
        let plugin = plugins
            .add(DEFAULT_PLUGIN, Path::new("the embedded plugin"))
            .expect("the embedded plugin can be used");
        let machine = Machine::open(storage, plugins, Arc::clone(&snapshots), threads, GroupId(0))
            .expect("a new machine opens");
        let record = ShardRecord { plugin, ..shard_record() };
        let shards = if has_shard { vec![record] } else { Vec::new() };
        machine.create(shards, None).expect("a shard can be made");
        Fixture { machine: Arc::new(machine), snapshots, _folder: folder }
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

/// The one shard, which owns every slot.
fn shard_record() -> ShardRecord {
    let all = SlotRange { start: Slot(0), end: Slot(SLOTS) };
    ShardRecord {
        group: GROUP,
        replica: ReplicaId(1),
        name: "shard_0".to_owned(),
        epoch: 1,
        slots: vec![all],
        started: true,
        ..ShardRecord::default()
    }
}

/// Opens the database of a benchmark.
pub fn open_storage(path: &Path) -> Arc<Storage> {
    let options = StorageOptions { memtable_bytes: 64 << 20, ..StorageOptions::default() };
    Arc::new(Storage::open(path, options).expect("a new database opens"))
}

/// Makes entries of put commands with keys drawn from a fixed number.
pub struct PutLog {
    next: Index,
    keys: u64,
    state: u64,
    value: Vec<u8>,
}

impl PutLog {
    /// Puts of `value_bytes` over `keys` keys.
    pub fn new(keys: u64, value_bytes: usize) -> Self {
        let value = vec![0; value_bytes];
        PutLog { next: INITIAL_POSITION.index.next(), keys, state: 1, value }
    }

    /// One entry with so many puts, as a batch for the state machine.
    pub fn entry(&mut self, commands: usize) -> [GroupEntries; 1] {
        let commands = (0..commands).map(|_| self.command()).collect();
        let kind = EntryKind::Commands as i32;
        let payload = Payload { kind, epoch: 1, time_ms: 1, commands, ..Payload::default() };
        // As it comes out of the log: the commands are pieces of one buffer.
        let payload = Payload::decode_entry(payload.encode_entry().into());
        let payload = payload.expect("it was just made");
        let position = LogPosition { index: self.next, term: Term(6) };
        self.next = self.next.next();
        let entry = CommittedEntry { position, payload };
        [GroupEntries { group: GROUP, entries: vec![entry] }]
    }

    /// One put.
    pub fn command(&mut self) -> Command {
        let key = self.next_key();
        // Values that do not compress: the worst case.
        let mut noise = self.state;
        for chunk in self.value.chunks_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            chunk.copy_from_slice(&noise.to_le_bytes()[..chunk.len()]);
        }
        let put = Put { key: &key, value: &self.value, expected: None, ttl_ms: None };
        let payload = Bytes::from(KvCommand::Put(put).encode());
        Command { slot: slot_of(&key, SLOTS).0, payload, ..Command::default() }
    }

    /// The next key of a pseudo-random sequence.
    pub fn next_key(&mut self) -> Vec<u8> {
        // Knuth's multiplier: any full-period sequence will do.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        format!("key-{:012}", (self.state >> 33) % self.keys).into_bytes()
    }
}

/// The plugin's request for a key's value, and its slot.
pub fn get_request(key: &[u8]) -> (Slot, Bytes) {
    (slot_of(key, SLOTS), KvQuery::Get { key }.encode().into())
}

/// The plugin's request for some rows of a key's slot, from the first key on; and the slot.
pub fn scan_request(key: &[u8], rows: u32) -> (Slot, Bytes) {
    let scan = Scan { prefix: b"key-", after: None, max_rows: rows, max_bytes: 1 << 20 };
    (slot_of(key, SLOTS), KvQuery::Scan(scan).encode().into())
}

/// Applies a batch and checks that every command succeeded.
pub fn apply(machine: &dyn StateMachine, batch: &[GroupEntries]) {
    let mut effects = Effects::default();
    machine.apply(batch, &mut effects).expect("entries can be applied");
    assert!(effects.outcomes.iter().all(|outcome| matches!(outcome, CommandOutcome::Applied(_))));
}
