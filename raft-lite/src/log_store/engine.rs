//! The log store on raft-engine: one append stream for all groups.
//!
//! It owns the folder. Each [`LogWrite`] goes into one raft-engine batch, alone or
//! with others that came in meanwhile, and is on disk with one fsync. Raft-engine
//! keeps the entries; hard states and the logs' beginnings are in a small record
//! for each group ([`record`]), and in memory too, so that `state` reads no disk.
//!
//! A buffered write stays in memory and goes to disk with the next synced one, in
//! the same batch. So the disk never holds more than one batch that is not synced.
//! Raft-engine needs that: when it recovers, it checks entries in the last batch
//! only, and a power cut may tear an earlier one and spare a later one.
//!
//! Invariants:
//! - `slots` is what the batches written so far say, and what is pending;
//! - a group's record is in the same batch as what it speaks of;
//! - every batch is synced before the next is written;
//! - after a failed write, or a panic in one, nothing is written any more;
//! - damage is reported, never served: to the whole log when it is opened (see
//!   [`witness`]), to one group by `state`, to an entry by `entries`.

mod batch;
mod commit_queue;
mod guard;
mod record;
mod recovery;
mod witness;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    mem,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::{Mutex, RwLock};
use raft_engine::{Config, Engine, LogBatch, ReadableSize, RecoveryMode};

use self::{
    batch::{Batch, EntryCodec, Pending, STORE_GROUP, States},
    commit_queue::{CommitQueue, Outcome, Request},
    guard::{with_own_cache, without_panic},
    witness::{Nonce, Witness},
};
use super::{
    Durability, LogChange, LogEntry, LogState, LogStore, LogStoreError, LogWrite, contract,
};
use crate::types::{GroupId, Index};

/// Most bytes of entries in one write. Raft-engine's own limit is 2 GiB a batch.
const WRITE_LIMIT_BYTES: usize = 512 << 20;
/// Most bytes of entries given back by one read, whatever is asked for.
const READ_LIMIT_BYTES: u64 = 512 << 20;
/// Reads are tried again because reclaiming may move entries and remove their file
/// between looking them up and reading them.
const READ_ATTEMPTS: usize = 3;
/// What [`LogEntry::size`] is at least.
const SMALLEST_ENTRY_BYTES: u64 = 32;
/// Key of the marker of the last write among the store's own key-values.
const MARKER_KEY: &[u8] = b"w";

/// How an [`EngineLogStore`] uses its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Size of the log from which `reclaim` gives space back; 1 GiB unless set.
    pub purge_threshold_bytes: u64,
    /// Size at which a new log file is begun, the unit in which space is given
    /// back; 64 MiB unless set. At most the purge threshold.
    pub target_file_bytes: u64,
    /// Size of a batch's entries from which they are compressed with LZ4; zero,
    /// the value unless set, means never.
    pub compression_threshold_bytes: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            purge_threshold_bytes: 1 << 30,
            target_file_bytes: 64 << 20,
            compression_threshold_bytes: 0,
        }
    }
}

/// A log store on raft-engine. See the module.
///
/// A buffered write that appends entries is synced all the same, since entries are
/// read back from disk. A write may append up to 512 MiB; a read returns no more.
pub struct EngineLogStore {
    /// Tells the stores of this process apart.
    id: u64,
    engine: Engine,
    nonce: Nonce,
    /// Locked while space is reclaimed.
    witness: Mutex<Witness>,
    slots: RwLock<BTreeMap<GroupId, Slot>>,
    queue: CommitQueue,
    tail: Mutex<Tail>,
}

/// What is known of one group.
#[derive(Clone, Debug)]
enum Slot {
    Sound(LogState),
    /// The log cannot be used, and why.
    Damaged(String),
}

/// The end of the log. Whoever holds its lock is the only one to write.
struct Tail {
    last_write: u64,
    /// The last write that carried nothing but a marker.
    last_checkpoint: u64,
    /// Buffered writes.
    pending: Pending,
    has_failed: bool,
}

impl Tail {
    fn check_usable(&self) -> Outcome {
        if self.has_failed {
            let message = "a write failed before, so that nothing can be relied on any more";
            return Err(LogStoreError::Write(message.to_owned()));
        }
        Ok(())
    }
}

impl EngineLogStore {
    /// Opens the log in a folder, which is created if there is none.
    ///
    /// A tail that was being written during a crash is cut off. Damage elsewhere is
    /// an error, unless it can be told which groups it befell: then the others are
    /// served, and `state` returns an error for these until they are created anew
    /// or cleaned.
    pub fn open(path: &Path, options: EngineOptions) -> Result<Self, LogStoreError> {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let failed =
            |message: String| LogStoreError::Open { path: path.display().to_string(), message };
        create_folder(path).map_err(|error| failed(error.to_string()))?;
        let folder = path.to_str().ok_or_else(|| failed("its name is not UTF-8".to_owned()))?;
        let config = engine_config(folder, options);
        let mut witness = Witness::open(path).map_err(failed)?;
        let engine = without_panic(|| Engine::open(config)).map_err(failed)?;
        // Raft-engine does not make its first file's name durable.
        sync_folder(path).map_err(|error| failed(error.to_string()))?;
        let marker = engine.get(STORE_GROUP.0, MARKER_KEY);
        let last_write = witness.check(marker.as_deref()).map_err(failed)?;
        let noted = witness.note_rewritten();
        noted.map_err(|error| failed(error.to_string()))?;
        let recovered = recovery::recover(&engine);
        let store = EngineLogStore {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            engine,
            nonce: witness.nonce(),
            witness: Mutex::new(witness),
            slots: RwLock::new(recovered.slots),
            queue: CommitQueue::default(),
            tail: Mutex::new(Tail {
                last_write,
                last_checkpoint: 0,
                pending: Pending::default(),
                has_failed: false,
            }),
        };
        if last_write > 0 {
            // What a killed process left in the page cache is read back as if it
            // were durable. From here on it is.
            store.write_batch(&mut store.tail.lock(), recovered.repairs)?;
        }
        Ok(store)
    }

    /// Writes a round of requests as one batch, or keeps it for the next one.
    fn commit(&self, round: Vec<Request>) -> Vec<Outcome> {
        let mut tail = self.tail.lock();
        // Entries are read back from disk, so they cannot wait.
        let is_due =
            |request: &Request| request.durability == Durability::Synced || request.holds_entries();
        let is_due = round.iter().any(is_due);
        let slots = self.slots.read();
        let mut batch = Batch::new(&slots, mem::take(&mut tail.pending));
        let mut outcomes: Vec<Outcome> =
            round.into_iter().map(|request| batch.add(request.write)).collect();
        if is_due {
            let (log, states) = batch.finish();
            drop(slots);
            let written = match log.is_empty() {
                true => tail.check_usable(),
                false => self.write_batch(&mut tail, log),
            };
            outcomes = outcomes_after(outcomes, written, || self.publish(states));
        } else {
            let (pending, states) = batch.defer();
            drop(slots);
            tail.pending = pending;
            outcomes = outcomes_after(outcomes, tail.check_usable(), || self.publish(states));
        }
        outcomes
    }

    /// Writes what is pending, and ends the log with a write that does nothing but
    /// vouch for those before it.
    fn checkpoint(&self) -> Result<(), LogStoreError> {
        let mut tail = self.tail.lock();
        if tail.last_checkpoint == tail.last_write && tail.pending.is_empty() {
            return Ok(());
        }
        let slots = self.slots.read();
        let (log, _) = Batch::new(&slots, mem::take(&mut tail.pending)).finish();
        drop(slots);
        if !log.is_empty() {
            self.write_batch(&mut tail, log)?;
        }
        self.write_batch(&mut tail, LogBatch::default())?;
        tail.last_checkpoint = tail.last_write;
        Ok(())
    }

    /// Writes and syncs a batch together with its marker.
    fn write_batch(&self, tail: &mut Tail, mut batch: LogBatch) -> Result<(), LogStoreError> {
        tail.check_usable()?;
        let write = tail.last_write + 1;
        batch
            .put(STORE_GROUP.0, MARKER_KEY.to_vec(), self.nonce.marker(write))
            .expect("the key is not one of raft-engine's own");
        tail.has_failed = true;
        without_panic(|| self.engine.write(&mut batch, true)).map_err(LogStoreError::Write)?;
        tail.has_failed = false;
        tail.last_write = write;
        if tail.pending.is_empty() {
            // The batch is empty again, and keeps its memory.
            tail.pending = Pending::from(batch);
        }
        Ok(())
    }

    /// Makes the states of written groups known.
    fn publish(&self, states: States) {
        let mut slots = self.slots.write();
        for (group, state) in states {
            match state {
                Some(state) => slots.insert(group, Slot::Sound(state)),
                None => slots.remove(&group),
            };
        }
    }

    /// Reads entries that are known to be there.
    fn fetch(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, String> {
        let max_bytes = max_bytes.min(READ_LIMIT_BYTES);
        let fitting_at_most = max_bytes / SMALLEST_ENTRY_BYTES + 1;
        let end = high.0.min(low.0.saturating_add(fitting_at_most));
        let mut found = Vec::new();
        let fetch = || {
            let limit = Some(max_bytes as usize);
            self.engine.fetch_entries_to::<EntryCodec>(group.0, low.0, end, limit, &mut found)
        };
        with_own_cache(self.id, || without_panic(fetch))?;
        let mut entries: Vec<LogEntry> = found.into_iter().map(LogEntry).collect();
        if entries.is_empty() {
            return Err(format!("entry {low} is gone"));
        }
        entries.truncate(contract::count_fitting(entries.iter(), max_bytes));
        Ok(entries)
    }
}

impl LogStore for EngineLogStore {
    fn groups(&self) -> Vec<GroupId> {
        self.slots.read().keys().copied().collect()
    }

    fn state(&self, group: GroupId) -> Result<Option<LogState>, LogStoreError> {
        match self.slots.read().get(&group) {
            None => Ok(None),
            Some(Slot::Sound(state)) => Ok(Some(*state)),
            Some(Slot::Damaged(damage)) => {
                Err(LogStoreError::Read { group, message: damage.clone() })
            }
        }
    }

    fn entries(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<LogEntry>, LogStoreError> {
        let mut failure = String::new();
        for _ in 0..READ_ATTEMPTS {
            let state = self.state(group)?;
            let state = state.ok_or_else(|| contract::no_log(group))?;
            contract::check_range(group, &state, low, high)?;
            if low >= high {
                return Ok(Vec::new());
            }
            match self.fetch(group, low, high, max_bytes) {
                Ok(entries) => return Ok(entries),
                Err(message) => failure = message,
            }
        }
        Err(LogStoreError::Read { group, message: failure })
    }

    fn write(&self, write: LogWrite, durability: Durability) -> Result<(), LogStoreError> {
        let entry_bytes = entry_bytes(&write);
        if entry_bytes > WRITE_LIMIT_BYTES {
            return Err(LogStoreError::Write(format!(
                "a write of {entry_bytes} bytes is over the limit of {WRITE_LIMIT_BYTES}"
            )));
        }
        let request = Request { write, durability, entry_bytes };
        self.queue.submit(request, |round| self.commit(round))
    }

    fn reclaim(&self) -> Result<Vec<GroupId>, LogStoreError> {
        let Some(mut witness) = self.witness.try_lock() else {
            return Ok(Vec::new());
        };
        self.checkpoint()?;
        let purge = || without_panic(|| self.engine.purge_expired_files());
        let reclaimed = with_own_cache(self.id, purge).and_then(|in_the_way| {
            let noted = witness.note_rewritten();
            noted.map_err(|error| error.to_string())?;
            Ok(in_the_way)
        });
        let in_the_way = reclaimed.map_err(|message| {
            self.tail.lock().has_failed = true;
            LogStoreError::Write(format!("cannot reclaim space: {message}"))
        })?;
        let mut groups: Vec<GroupId> = in_the_way.into_iter().map(GroupId).collect();
        groups.sort_unstable();
        Ok(groups)
    }
}

impl Drop for EngineLogStore {
    fn drop(&mut self) {
        // A log that is not closed in good order is opened all the same.
        let _ = self.checkpoint();
    }
}

/// The outcomes of a round once it is known whether it was written: it is made
/// known if it was, else everything that was not refused has failed.
fn outcomes_after(
    mut outcomes: Vec<Outcome>,
    written: Outcome,
    publish: impl FnOnce(),
) -> Vec<Outcome> {
    match written {
        Ok(()) => publish(),
        Err(error) => {
            let message = error.to_string();
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(LogStoreError::Write(message.clone()));
            }
        }
    }
    outcomes
}

fn entry_bytes(write: &LogWrite) -> usize {
    let change_bytes = |change: &LogChange| match change {
        LogChange::Append(entries) => entries.iter().map(LogEntry::size).sum(),
        _ => 0,
    };
    write.changes.iter().map(|(_, change)| change_bytes(change)).sum()
}

fn engine_config(folder: &str, options: EngineOptions) -> Config {
    Config {
        dir: folder.to_owned(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        batch_compression_threshold: ReadableSize(options.compression_threshold_bytes),
        target_file_size: ReadableSize(options.target_file_bytes),
        purge_threshold: ReadableSize(options.purge_threshold_bytes),
        // An idle node keeps a small folder.
        enable_log_recycle: false,
        prefill_for_recycle: false,
        ..Config::default()
    }
}

fn create_folder(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}
