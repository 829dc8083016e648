//! The key-value state machine compiled natively, on the node's own storage:
//! the yardstick for plugins. It does for each command what the node does (looks
//! whether the shard owns the slot, runs it over an overlay, folds what it wrote
//! and answered into the state hash) but cross into WebAssembly. What the node
//! does once a batch it leaves out.

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use raft_kv::storage::{
    ApplyState, Overlay, OwnedSnapshot, ReadView, ShardRecord, Slot, Storage, StorageError,
    WriteSet,
};
use raft_kv::wasm::Seed;
use raft_kv_plugin_kv::KeyValue;
use raft_kv_sdk::{Level, Place, ScanRange, native};
use raft_lite::{
    ApplyError, CommandOutcome, Effects, GroupDescriptor, GroupEntries, GroupId, Index, Rejection,
    ReplicaId, SnapshotMeta, SnapshotReply, StateMachine,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{GROUP, open_storage, shard_record};

/// A machine without a sandbox.
pub struct NativeMachine {
    storage: Arc<Storage>,
    record: ShardRecord,
    _folder: tempfile::TempDir,
}

impl NativeMachine {
    /// An empty one, in a folder that goes with it.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let storage = open_storage(&folder.path().join("state"));
        NativeMachine { storage, record: shard_record(), _folder: folder }
    }

    /// Answers one query from a snapshot.
    pub fn query(&self, slot: Slot, request: &[u8]) -> Vec<u8> {
        let snapshot = OwnedSnapshot::new(Arc::clone(&self.storage));
        let view = ReadView::Snapshot(Arc::new(snapshot));
        let mut host = NativeHost { overlay: Overlay::new(view), place: place(slot.0, 0, 0) };
        host.overlay.begin(slot);
        let response = native::query::<KeyValue>(&mut host, request);
        response.expect("the query is well-formed").into_vec()
    }
}

impl Default for NativeMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl StateMachine for NativeMachine {
    fn apply(&self, batch: &[GroupEntries], effects: &mut Effects) -> Result<(), ApplyError> {
        let mut writes = WriteSet::new();
        let overlay = Overlay::new(ReadView::Latest(Arc::clone(&self.storage)));
        let mut host = NativeHost { overlay, place: place(0, 0, 0) };
        let mut state = ApplyState::INITIAL;
        let entries = batch.iter().flat_map(|group| &group.entries);
        let mut ran = Vec::new();
        for entry in entries.clone() {
            state.applied = entry.position;
            let commands = entry.payload.iter().flat_map(|payload| &payload.commands);
            for (position, command) in commands.enumerate() {
                if !self.record.owns(Slot(command.slot)) || self.record.is_frozen() {
                    ran.push(CommandOutcome::Rejected(Rejection::SlotNotOwned));
                    continue;
                }
                host.place = place(command.slot, entry.position.index.0, position as u32);
                host.overlay.begin(Slot(command.slot));
                let response = native::apply::<KeyValue>(&mut host, &command.payload)
                    .expect("the command is well-formed")
                    .into_vec();
                host.overlay.seal();
                ran.push(CommandOutcome::Applied(response.into()));
            }
        }
        let mut written = host.overlay.take_write_hashes().into_iter();
        let mut ran = ran.into_iter();
        for entry in entries {
            let index = entry.position.index.0.to_le_bytes();
            state.state_hash = xxh3_64_with_seed(&index, state.state_hash);
            for _ in entry.payload.iter().flat_map(|payload| &payload.commands) {
                let outcome = ran.next().expect("each command has an outcome");
                if let CommandOutcome::Applied(response) = &outcome {
                    let written = written.next().expect("what was applied was sealed");
                    let hash = xxh3_64_with_seed(&written.to_le_bytes(), state.state_hash);
                    state.state_hash = xxh3_64_with_seed(response, hash);
                }
                effects.outcomes.push(outcome);
            }
        }
        host.overlay.drain_into(&mut writes);
        writes.put_apply_state(GROUP, &state);
        let failed = |error: StorageError| ApplyError { group: GROUP, message: error.to_string() };
        self.storage.write(writes).map_err(failed)
    }

    fn admits_snapshot(&self, _: GroupId, _: ReplicaId, _: &SnapshotMeta) -> bool {
        false
    }

    fn never_lost(&self, _group: GroupId) -> bool {
        false
    }

    fn request_flush(&self) {}

    fn persisted_index(&self, _group: GroupId) -> Result<Index, ApplyError> {
        Ok(Index(0))
    }

    fn make_snapshot(&self, group: GroupId, reply: SnapshotReply) {
        reply(Err(only_applies(group)));
    }

    fn release_snapshot(&self, _group: GroupId, _snapshot: &SnapshotMeta) {}

    fn install_snapshot(
        &self,
        group: GroupId,
        _replica: ReplicaId,
        _snapshot: &SnapshotMeta,
        _fetched: &Bytes,
    ) -> Result<GroupDescriptor, ApplyError> {
        Err(only_applies(group))
    }

    fn discard_fetched(&self, _fetched: &Bytes) {}

    fn destroy_replica(&self, group: GroupId, _replica: ReplicaId) -> Result<(), ApplyError> {
        Err(only_applies(group))
    }

    fn last_destroyed(&self, _group: GroupId) -> Option<ReplicaId> {
        None
    }
}

fn only_applies(group: GroupId) -> ApplyError {
    ApplyError { group, message: "a yardstick only applies".to_owned() }
}

fn place(slot: u32, log_index: u64, position: u32) -> Place {
    Place { log_index, time_ms: 1, slot, position }
}

struct NativeHost {
    overlay: Overlay,
    place: Place,
}

impl native::Host for NativeHost {
    fn place(&self) -> Place {
        self.place
    }

    fn seed(&self) -> [u8; 32] {
        let Place { log_index: index, position, .. } = self.place;
        Seed::At { group: GROUP.0, index, position }.bytes()
    }

    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> bool {
        let read = self.overlay.get(key, |found| match found {
            Some(found) => {
                value.extend_from_slice(found);
                true
            }
            None => false,
        });
        read.expect("the database can be read")
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.overlay.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.overlay.delete(key);
    }

    fn scan_open(&mut self, range: &ScanRange<'_>) -> u32 {
        self.overlay.scan_open(0, range.start, range.end, range.reverse);
        0
    }

    fn scan_next(&mut self, handle: u32, max_bytes: usize, rows: &mut Vec<u8>) {
        let before = rows.len();
        let mut row = |key: &[u8], value: &[u8]| {
            let used = rows.len() - before;
            if used > 0 && used + native::row_len(key, value) > max_bytes {
                return ControlFlow::Break(());
            }
            native::append_row(rows, key, value);
            ControlFlow::Continue(())
        };
        let scanned = self.overlay.scan_next(handle as u8, &mut row);
        scanned.expect("the database can be read");
    }

    fn scan_close(&mut self, handle: u32) {
        self.overlay.scan_close(handle as u8);
    }

    fn log(&mut self, _level: Level, _message: &str) {}
}
