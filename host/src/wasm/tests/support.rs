//! What the tests share: a storage in memory that also checks how it is used, modules in text form,
//! and short ways to run them.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::wasm::{
    Call, Executor, Limits, PluginEngine, PluginFailure, PluginModule, PluginResult, PluginStorage,
    QueryResult, Reuse, RowFn, ScanId, ScanRange, StorageError,
};

pub(super) const SLOT: u32 = 7;

/// All imports, under their own names.
pub(super) const IMPORTS: &str = r#"
  (import "raftkv_v1" "next_command" (func $next_command (param i32 i32) (result i64)))
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

pub(super) fn engine() -> &'static PluginEngine {
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
pub(super) fn each(body: &str) -> PluginModule {
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
    Call { slot: SLOT, index: 9, time_ms: 1_700_000_000_000, position: 0, seed: [5; 32], payload }
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

type Layer = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
type Row = (Vec<u8>, Vec<u8>);

/// State, batch layer and command layer as ordered maps. Panics if the executor breaks a promise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TestStorage {
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    command: Option<(u32, Layer)>,
    scans: [Option<Vec<Row>>; 16],
    /// Fails every read and write from now on.
    pub(super) broken: bool,
}

impl TestStorage {
    /// The storage that a batch gave back.
    pub(super) fn back(storage: Box<dyn PluginStorage>) -> TestStorage {
        let any: Box<dyn Any> = storage;
        let storage = *any.downcast::<TestStorage>().unwrap();
        assert!(storage.command.is_none(), "a command was left open");
        assert!(storage.scans.iter().all(Option::is_none), "a scan was left open");
        storage
    }

    pub(super) fn with(rows: &[(&[u8], &[u8])]) -> TestStorage {
        let mut storage = TestStorage::default();
        for (key, value) in rows {
            storage.state.insert(stored(SLOT, key), value.to_vec());
        }
        storage
    }

    /// All rows, as `slot | key`.
    pub(super) fn rows(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.state
    }

    /// The value of a key of the tests' slot.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.state.get(&stored(SLOT, key)).map(Vec::as_slice)
    }

    fn view(&self) -> (u32, BTreeMap<Vec<u8>, Vec<u8>>) {
        let (slot, layer) = self.command.as_ref().expect("a command is open");
        let mut view = self.state.clone();
        for (key, value) in layer {
            match value {
                Some(value) => view.insert(key.clone(), value.clone()),
                None => view.remove(key),
            };
        }
        (*slot, view)
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        self.check()?;
        let (slot, layer) = self.command.as_mut().expect("a command is open");
        layer.insert(stored(*slot, key), value.map(<[u8]>::to_vec));
        Ok(())
    }

    fn check(&self) -> Result<(), StorageError> {
        if self.broken { Err(StorageError::new("the disk is gone")) } else { Ok(()) }
    }
}

fn stored(slot: u32, key: &[u8]) -> Vec<u8> {
    [&slot.to_be_bytes()[..], key].concat()
}

impl PluginStorage for TestStorage {
    fn begin(&mut self, slot: u32) {
        assert!(self.command.is_none(), "a command is open already");
        self.command = Some((slot, Layer::new()));
    }

    fn seal(&mut self) {
        assert!(self.scans.iter().all(Option::is_none), "sealed with open scans");
        (_, self.state) = self.view();
        self.command = None;
    }

    fn discard(&mut self) {
        assert!(self.scans.iter().all(Option::is_none), "discarded with open scans");
        assert!(self.command.take().is_some(), "no command is open");
    }

    fn get(&mut self, key: &[u8], read: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), StorageError> {
        self.check()?;
        let (slot, view) = self.view();
        read(view.get(&stored(slot, key)).map(Vec::as_slice));
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.write(key, Some(value))
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StorageError> {
        self.write(key, None)
    }

    fn scan_open(&mut self, scan: ScanId, range: ScanRange<'_>) -> Result<usize, StorageError> {
        self.check()?;
        let (slot, view) = self.view();
        let in_range = |key: &[u8]| key >= range.start && range.end.is_none_or(|end| key < end);
        let mut rows: Vec<_> = view
            .into_iter()
            .filter(|(key, _)| key.starts_with(&slot.to_be_bytes()))
            .map(|(key, value)| (key[4..].to_vec(), value))
            .filter(|(key, _)| in_range(key))
            .collect();
        // Popped from the back.
        if !range.reverse {
            rows.reverse();
        }
        let previous = self.scans[usize::from(scan.0)].replace(rows);
        assert!(previous.is_none(), "the scan id is in use");
        let (_, layer) = self.command.as_ref().expect("a command is open");
        Ok(layer.keys().filter(|key| in_range(&key[4..])).count())
    }

    fn scan_next(&mut self, scan: ScanId, row: &mut RowFn<'_>) -> Result<(), StorageError> {
        self.check()?;
        let rows = self.scans[usize::from(scan.0)].as_mut().expect("the scan is open");
        while let Some((key, value)) = rows.last() {
            if row(key, value).is_break() {
                return Ok(());
            }
            rows.pop();
        }
        Ok(())
    }

    fn scan_close(&mut self, scan: ScanId) {
        assert!(self.scans[usize::from(scan.0)].take().is_some(), "the scan is open");
    }
}
