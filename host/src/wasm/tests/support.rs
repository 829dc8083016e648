//! What the tests share: a storage in memory that also checks how it is used, modules in text form,
//! and short ways to run them.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;

use crate::wasm::{
    Call, Executor, Limits, MemoryStorage, PluginEngine, PluginFailure, PluginModule, PluginResult,
    PluginStorage, QueryResult, Reuse, RowFn, ScanId, ScanRange, Seed, StorageError,
};

pub(super) const SLOT: u32 = 7;

/// All imports, under their own names.
pub(super) const IMPORTS: &str = r#"
  (import "raftkv_v1" "next_command" (func $next_command (param i32 i32) (result i64)))
  (import "raftkv_v1" "exchange" (func $exchange (param i32 i32 i32 i32 i32) (result i64)))
  (import "raftkv_v1" "get" (func $get (param i32 i32 i32 i32) (result i64)))
  (import "raftkv_v1" "get_many" (func $get_many (param i32 i32 i32 i32) (result i64)))
  (import "raftkv_v1" "put" (func $put (param i32 i32 i32 i32)))
  (import "raftkv_v1" "delete" (func $delete (param i32 i32)))
  (import "raftkv_v1" "scan_open" (func $scan_open (param i32 i32 i32 i32 i32) (result i32)))
  (import "raftkv_v1" "scan_next" (func $scan_next (param i32 i32 i32) (result i64)))
  (import "raftkv_v1" "scan_close" (func $scan_close (param i32)))
  (import "raftkv_v1" "respond" (func $respond (param i32 i32)))
  (import "raftkv_v1" "fail" (func $fail (param i32 i32 i32)))
  (import "raftkv_v1" "context" (func $context (param i32 i32) (result i64)))
  (import "raftkv_v1" "log" (func $log (param i32 i32 i32)))
  (import "raftkv_v1" "abort" (func $abort (param i32 i32)))
"#;

/// The custom section of a module called `test`.
pub(super) const MANIFEST: &str = r#"(@custom "raftkv" "name=test\nversion=0.1.0\nabi=1\n") "#;

pub(crate) fn engine() -> &'static PluginEngine {
    static ENGINE: OnceLock<PluginEngine> = OnceLock::new();
    ENGINE.get_or_init(|| PluginEngine::new(64).unwrap())
}

pub(super) fn executor() -> Executor {
    Executor::new(engine(), Reuse::Keep).unwrap()
}

/// A module with all imports and the given fields.
pub(super) fn module(fields: &str) -> PluginModule {
    let text = format!("(module {MANIFEST} {IMPORTS} {fields})");
    PluginModule::compile(engine(), &wat::parse_str(text).unwrap()).unwrap()
}

/// A module whose `apply` and `query` both run `body` once for each command. The payload lies at
/// 4096, its length is in `$n`; the locals `$i` and `$size` are free. One page of memory.
pub(crate) fn each(body: &str) -> PluginModule {
    each_with("(memory (export \"memory\") 1)", body)
}

/// The same with the given memory and other fields.
pub(super) fn each_with(fields: &str, body: &str) -> PluginModule {
    module(&format!(
        r#"{fields}
        (func $command (param $n i32) (local $i i32) (local $size i64) {body})
        (func $run (local $n i64)
          (loop $pull
            (local.set $n (call $next_command (i32.const 4096) (i32.const 4096)))
            (if (i64.lt_s (local.get $n) (i64.const 0)) (then return))
            (call $command (i32.wrap_i64 (local.get $n)))
            (br $pull)))
        (export "apply" (func $run))
        (export "query" (func $run))"#
    ))
}

pub(super) fn call(payload: impl AsRef<[u8]>) -> Call {
    let payload = Bytes::copy_from_slice(payload.as_ref());
    Call {
        slot: SLOT,
        index: 9,
        time_ms: 1_700_000_000_000,
        position: 0,
        seed: Seed::Given([5; 32]),
        payload,
    }
}

/// Low limits, so that tests which exhaust them are quick.
pub(super) fn limits() -> Limits {
    Limits { fuel_per_command: 1_000_000, memory_bytes: 2 << 20 }
}

/// Applies the payloads as one batch to `storage`.
pub(super) fn apply_to(
    executor: &mut Executor,
    module: &PluginModule,
    payloads: &[&[u8]],
    storage: TestStorage,
) -> (Vec<PluginResult>, TestStorage) {
    let calls = payloads.iter().map(call).collect();
    let outcome = executor.apply(module, &limits(), calls, Box::new(storage)).unwrap();
    (outcome.results, TestStorage::back(outcome.storage))
}

/// Applies the payloads as one batch to empty storage.
pub(super) fn apply(module: &PluginModule, payloads: &[&[u8]]) -> (Vec<PluginResult>, TestStorage) {
    apply_to(&mut executor(), module, payloads, TestStorage::default())
}

/// The failure of a single command.
pub(super) fn failure(module: &PluginModule) -> PluginFailure {
    let (results, storage) = apply(module, &[b""]);
    assert!(storage.rows().is_empty(), "a failed command left writes");
    results[0].clone().unwrap_err()
}

/// The results of queries over `storage`.
pub(super) fn query(
    module: &PluginModule,
    inline_fuel: Option<u64>,
    payloads: &[&[u8]],
    storage: TestStorage,
) -> Vec<QueryResult> {
    let calls = payloads.iter().map(call).collect();
    let storage = Box::new(storage);
    executor().query(module, &limits(), inline_fuel, calls, storage).unwrap().results
}

pub(super) fn ok(bytes: &[u8]) -> PluginResult {
    Ok(Bytes::copy_from_slice(bytes))
}

/// A storage in memory that panics if the executor breaks a promise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TestStorage {
    inner: MemoryStorage,
    /// Whether a command runs.
    is_open: bool,
    open_scans: BTreeSet<u8>,
    /// Fails every read and write from now on.
    pub(super) broken: bool,
}

impl TestStorage {
    /// The storage that a batch gave back.
    pub(super) fn back(storage: Box<dyn PluginStorage>) -> TestStorage {
        let any: Box<dyn Any> = storage;
        let storage = *any.downcast::<TestStorage>().unwrap();
        assert!(!storage.is_open, "a command was left open");
        assert!(storage.open_scans.is_empty(), "a scan was left open");
        storage
    }

    pub(super) fn with(rows: &[(&[u8], &[u8])]) -> TestStorage {
        let mut storage = TestStorage::default();
        rows.iter().for_each(|(key, value)| storage.inner.insert(SLOT, key, value));
        storage
    }

    /// All rows, as `slot | key`.
    pub(super) fn rows(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        self.inner.rows()
    }

    /// The value of a key of the tests' slot.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        let stored = [&SLOT.to_be_bytes()[..], key].concat();
        self.rows().get(&stored).map(Vec::as_slice)
    }

    /// The storage for a read or a write of the running command.
    fn running(&mut self) -> Result<&mut MemoryStorage, StorageError> {
        assert!(self.is_open, "a command is open");
        if self.broken { Err(StorageError::new("the disk is gone")) } else { Ok(&mut self.inner) }
    }

    fn end(&mut self) -> &mut MemoryStorage {
        assert!(self.open_scans.is_empty(), "ended with open scans");
        assert!(std::mem::take(&mut self.is_open), "no command is open");
        &mut self.inner
    }
}

impl PluginStorage for TestStorage {
    fn begin(&mut self, slot: u32) {
        assert!(!self.is_open, "a command is open already");
        self.is_open = true;
        self.inner.begin(slot);
    }

    fn seal(&mut self) {
        self.end().seal();
    }

    fn discard(&mut self) {
        self.end().discard();
    }

    fn get(&mut self, key: &[u8], read: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), StorageError> {
        self.running()?.get(key, read)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.running()?.put(key, value)
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StorageError> {
        self.running()?.delete(key)
    }

    fn scan_open(&mut self, scan: ScanId, range: ScanRange<'_>) -> Result<usize, StorageError> {
        let written = self.running()?.scan_open(scan, range)?;
        assert!(self.open_scans.insert(scan.0), "the scan id is in use");
        Ok(written)
    }

    fn scan_next(&mut self, scan: ScanId, row: &mut RowFn<'_>) -> Result<(), StorageError> {
        assert!(self.open_scans.contains(&scan.0), "the scan is open");
        self.running()?.scan_next(scan, row)
    }

    fn scan_close(&mut self, scan: ScanId) {
        assert!(self.open_scans.remove(&scan.0), "the scan is open");
        self.inner.scan_close(scan);
    }
}
