//! A host for tests: runs a plugin natively, on data in memory, without a cluster.
//!
//! It keeps the rules of the real one: a command sees its own slot only; one that fails leaves no
//! trace; a scan does not see what is written after it was opened; what the ABI forbids panics. It
//! does not count fuel, and a panic of the plugin is a panic of the test.
//!
//! `raft-kv-plugin test --compare` runs the same tests and then all that they did again, with the built
//! module in the real sandbox: both have to come to the same.

mod record;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Bound;
use std::vec::IntoIter;

use self::record::{Ran, Record};
use crate::native::{self, Host, append_row, row_len};
use crate::{
    Decode, Encode, Failure, Level, MAX_KEY_LEN, MAX_OPEN_SCANS, MAX_VALUE_LEN, Migrate, Migration,
    Place, Response, ScanRange, StateMachine, Typed, TypedMachine,
};

/// The keys and values of one slot.
pub type KeySpace = BTreeMap<Vec<u8>, Vec<u8>>;

type OwnedRow = (Vec<u8>, Vec<u8>);

/// A shard in memory, with a log index that goes up by one an entry and a time that goes on only when
/// told to.
///
/// ```
/// # use raft_kv_sdk::{Context, Failure, QueryContext, Response, StateMachine, testing::TestHost};
/// # struct Machine;
/// # impl StateMachine for Machine {
/// #     fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
/// #         Ok(format!("{} at {}", String::from_utf8_lossy(command), context.log_index()).into())
/// #     }
/// #     fn query(_: &QueryContext<'_>, _: &[u8]) -> Result<Response, Failure> {
/// #         Ok(Response::empty())
/// #     }
/// # }
/// let mut host = TestHost::<Machine>::new();
/// assert_eq!(host.apply(b"one"), Ok(b"one at 1".to_vec()));
/// assert_eq!(host.apply(b"two"), Ok(b"two at 2".to_vec()));
/// ```
pub struct TestHost<M> {
    slots: BTreeMap<u32, KeySpace>,
    slot: u32,
    log_index: u64,
    time_ms: u64,
    logs: Vec<(Level, String)>,
    record: Option<Record>,
    machine: PhantomData<fn() -> M>,
}

impl<M: StateMachine> TestHost<M> {
    /// An empty shard at log index 0 and time 0; commands go to slot 0.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: BTreeMap::new(),
            slot: 0,
            log_index: 0,
            time_ms: 0,
            logs: Vec::new(),
            record: Record::begin(std::any::type_name::<M>()),
            machine: PhantomData,
        }
    }

    /// Applies one command, alone in its log entry, and gives its response or failure.
    pub fn apply(&mut self, command: &[u8]) -> Result<Vec<u8>, Failure> {
        self.log_index += 1;
        self.run("apply", 0, command, |host| native::apply::<M>(host, command))
    }

    /// Applies many commands that share one log entry, as the real host merges them.
    pub fn apply_entry<C: AsRef<[u8]>>(&mut self, commands: &[C]) -> Vec<Result<Vec<u8>, Failure>> {
        self.log_index += 1;
        let positioned = (0..).zip(commands);
        positioned
            .map(|(position, command)| {
                let command = command.as_ref();
                self.run("apply", position, command, |host| native::apply::<M>(host, command))
            })
            .collect()
    }

    /// Answers one query.
    pub fn query(&mut self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        self.run("query", 0, request, |host| native::query::<M>(host, request))
    }

    /// Sends what follows to another slot.
    pub fn set_slot(&mut self, slot: u32) {
        self.slot = slot;
    }

    /// Sets the replicated time.
    ///
    /// # Panics
    /// If it would go back: the real one never does.
    pub fn set_time_ms(&mut self, time_ms: u64) {
        assert!(time_ms >= self.time_ms, "replicated time does not go back");
        self.time_ms = time_ms;
    }

    /// Lets the replicated time go on by `ms` milliseconds.
    pub fn advance_ms(&mut self, ms: u64) {
        self.time_ms += ms;
    }

    /// The replicated time in milliseconds.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Sets the index of the last entry, so that the next one follows it. It may go back, as when a
    /// slot moves to a shard with a shorter log.
    pub fn set_log_index(&mut self, log_index: u64) {
        self.log_index = log_index;
    }

    /// Index of the last entry.
    #[must_use]
    pub fn log_index(&self) -> u64 {
        self.log_index
    }

    /// What is stored in the slot in use. Tests may change it, to play a state that an older version
    /// of the plugin left behind.
    pub fn stored(&mut self) -> &mut KeySpace {
        self.slots.entry(self.slot).or_default()
    }

    /// What the plugin logged so far.
    #[must_use]
    pub fn logs(&self) -> &[(Level, String)] {
        &self.logs
    }

    fn run(
        &mut self,
        what: &'static str,
        position: u32,
        input: &[u8],
        work: impl FnOnce(&mut dyn Host) -> Result<Response, Failure>,
    ) -> Result<Vec<u8>, Failure> {
        let place =
            Place { log_index: self.log_index, time_ms: self.time_ms, slot: self.slot, position };
        let stored = self.slots.entry(self.slot).or_default();
        if let Some(record) = &mut self.record {
            record.note(self.slot, stored);
        }
        let mut command = Command {
            place,
            stored,
            undo: Vec::new(),
            scans: BTreeMap::new(),
            next_scan: 0,
            logs: &mut self.logs,
        };
        let result = work(&mut command).map(Response::into_vec);
        let mut written = BTreeMap::new();
        if result.is_err() {
            command.undo();
        } else if self.record.is_some() {
            let value = |key: &Vec<u8>| command.stored.get(key).cloned();
            written = command.undo.iter().map(|(key, _)| (key.clone(), value(key))).collect();
        }
        if let Some(record) = &mut self.record {
            record.ran(&Ran { what, place, seed: seed(place), input }, &result, &written);
        }
        result
    }
}

impl<M: StateMachine + Migrate> TestHost<M> {
    /// Carries the slot in use over, as the host does with each slot that has data. A failure leaves
    /// it as it was.
    pub fn migrate(&mut self, migration: &Migration<'_>) -> Result<(), Failure> {
        self.log_index += 1;
        let request = migration.request();
        let request = request.as_bytes();
        self.run("migrate", 0, request, |host| native::migrate::<M>(host, migration)).map(drop)
    }
}

impl<M: TypedMachine> TestHost<Typed<M>> {
    /// Applies one command, written in the machine's format, and reads its reply.
    ///
    /// # Panics
    /// If the command cannot be written, or the reply not be read.
    pub fn send(&mut self, command: &M::Command) -> Result<M::Reply, Failure>
    where
        M::Format: Encode<M::Command> + Decode<M::Reply>,
    {
        let command = written::<M::Format, _>(command);
        self.apply(&command).map(|reply| read::<M::Format, _>(&reply))
    }

    /// Answers one query, written in the machine's format, and reads the answer.
    ///
    /// # Panics
    /// If the query cannot be written, or the answer not be read.
    pub fn ask(&mut self, query: &M::Query) -> Result<M::Answer, Failure>
    where
        M::Format: Encode<M::Query> + Decode<M::Answer>,
    {
        let query = written::<M::Format, _>(query);
        self.query(&query).map(|answer| read::<M::Format, _>(&answer))
    }
}

fn written<F: Encode<T>, T>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    F::encode(message, &mut bytes).expect("the message can be written");
    bytes
}

fn read<F: Decode<T>, T>(bytes: &[u8]) -> T {
    F::decode(bytes).expect("the answer can be read")
}

impl<M: StateMachine> Default for TestHost<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that look random and differ for every command (SplitMix64 over its coordinates).
fn seed(Place { slot, log_index, position, .. }: Place) -> [u8; 32] {
    let mut state = log_index.rotate_left(32) ^ (u64::from(slot) << 32 | u64::from(position));
    let mut bytes = [0; 32];
    for part in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes
}

/// One running command: it writes in place and keeps what it needs to take that back.
struct Command<'a> {
    place: Place,
    stored: &'a mut KeySpace,
    /// Each key written and its value before, in the order of the writes.
    undo: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The rows still to come of each open scan.
    scans: BTreeMap<u32, IntoIter<OwnedRow>>,
    next_scan: u32,
    logs: &'a mut Vec<(Level, String)>,
}

impl Command<'_> {
    fn undo(self) {
        for (key, before) in self.undo.into_iter().rev() {
            match before {
                Some(value) => self.stored.insert(key, value),
                None => self.stored.remove(&key),
            };
        }
    }
}

fn check_key(key: &[u8]) {
    assert!(key.len() <= MAX_KEY_LEN, "bad call: a key of {} bytes", key.len());
}

impl Host for Command<'_> {
    fn place(&self) -> Place {
        self.place
    }

    fn seed(&self) -> [u8; 32] {
        seed(self.place)
    }

    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> bool {
        check_key(key);
        let found = self.stored.get(key);
        value.extend_from_slice(found.map_or(&[], Vec::as_slice));
        found.is_some()
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        check_key(key);
        assert!(value.len() <= MAX_VALUE_LEN, "bad call: a value of {} bytes", value.len());
        let before = self.stored.insert(key.to_vec(), value.to_vec());
        self.undo.push((key.to_vec(), before));
    }

    fn delete(&mut self, key: &[u8]) {
        check_key(key);
        let before = self.stored.remove(key);
        self.undo.push((key.to_vec(), before));
    }

    fn scan_open(&mut self, range: &ScanRange<'_>) -> u32 {
        check_key(range.start);
        check_key(range.end.unwrap_or_default());
        assert!(self.scans.len() < MAX_OPEN_SCANS, "bad call: more than {MAX_OPEN_SCANS} scans");
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let within = self.stored.range::<[u8], _>((Bound::Included(range.start), end));
        let mut rows: Vec<_> = within.map(|(key, value)| (key.clone(), value.clone())).collect();
        if range.reverse {
            rows.reverse();
        }
        let handle = self.next_scan;
        self.next_scan += 1;
        self.scans.insert(handle, rows.into_iter());
        handle
    }

    fn scan_next(&mut self, handle: u32, max_bytes: usize, rows: &mut Vec<u8>) {
        let scan = self.scans.get_mut(&handle).expect("bad call: an unknown scan");
        let start = rows.len();
        while let Some((key, value)) = scan.as_slice().first() {
            if rows.len() > start && rows.len() - start + row_len(key, value) > max_bytes {
                return;
            }
            append_row(rows, key, value);
            scan.next();
        }
    }

    fn scan_close(&mut self, handle: u32) {
        self.scans.remove(&handle).expect("bad call: an unknown scan");
    }

    fn log(&mut self, level: Level, message: &str) {
        self.logs.push((level, message.to_owned()));
    }
}
