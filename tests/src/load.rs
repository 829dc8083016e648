//! Writers that go on through crashes, and know what must be there afterwards.
//!
//! Each writer puts keys that nobody has put before, and puts one key again and
//! again with growing numbers. Counters are incremented by compare-and-put. All
//! that was acknowledged must be there; nothing may be there that nobody wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use raft_kv_client::{Error, RaftKVClient, Version};
use tokio::task::JoinSet;

use crate::wait::eventually;

/// How much is written, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Tasks that put keys of their own.
    pub writers: usize,
    /// Tasks that increment the counter.
    pub counters: usize,
    /// After so long a task gives up on one request, and goes on with the next.
    pub request_timeout: Duration,
    /// Whether a crash of a node explains an error.
    pub errors_allowed: bool,
}

impl Default for LoadOptions {
    /// For one node, which cannot answer while it is down.
    fn default() -> Self {
        let request_timeout = Duration::from_secs(3);
        Self { writers: 6, counters: 3, request_timeout, errors_allowed: true }
    }
}
/// Within this a node that is ready acknowledges more writes.
const PROGRESS_WITHIN: Duration = Duration::from_secs(20);

/// The prefix of all keys that are written.
const PREFIX: &str = "load/";

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// How much was asked for and acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Writes sent.
    pub attempted: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    errors_allowed: bool,
    writers: Vec<Writer>,
    counter: Counter,
    /// Errors that no crash explains.
    failures: Mutex<Vec<String>>,
}

/// What one writer did.
#[derive(Debug, Default)]
struct Writer {
    /// The last number sent, for a new key and for the overwritten one.
    attempted: AtomicU64,
    /// New keys acknowledged.
    new_keys: Mutex<BTreeSet<u64>>,
    /// The last number acknowledged for the overwritten key.
    overwritten: AtomicU64,
}

/// What happened to the counter.
#[derive(Debug, Default)]
struct Counter {
    acknowledged: AtomicU64,
    /// Increments that may take effect, or have: those under way, and those of
    /// which nothing more was heard.
    unknown: AtomicU64,
}

impl Load {
    /// Starts to write to the node at `endpoint`, which is ready.
    ///
    /// # Panics
    /// If it does not take connections.
    pub async fn start(endpoint: &str) -> Self {
        Self::start_with(&[endpoint.to_owned()], LoadOptions::default()).await
    }

    /// Starts to write to the cluster at these endpoints, which is ready.
    ///
    /// # Panics
    /// If it does not take connections.
    pub async fn start_with(endpoints: &[String], options: LoadOptions) -> Self {
        let shared = Arc::new(Shared {
            errors_allowed: options.errors_allowed,
            writers: (0..options.writers).map(|_| Writer::default()).collect(),
            ..Shared::default()
        });
        let mut tasks = JoinSet::new();
        let client = RaftKVClient::builder()
            .endpoints(endpoints)
            .request_timeout(options.request_timeout)
            .connect()
            .await
            .expect("a node that is ready takes connections");
        for writer in 0..options.writers {
            tasks.spawn(write(client.clone(), shared.clone(), writer));
        }
        for _ in 0..options.counters {
            tasks.spawn(count(client.clone(), shared.clone()));
        }
        Self { shared, tasks }
    }

    /// How much was done so far.
    pub fn tally(&self) -> Tally {
        Tally {
            attempted: self.shared.attempted.load(SeqCst),
            acknowledged: self.shared.acknowledged.load(SeqCst),
        }
    }

    /// Waits until so many more writes are acknowledged.
    ///
    /// # Panics
    /// If that takes too long.
    pub async fn wait_for_acknowledged(&self, more: u64) {
        let goal = self.tally().acknowledged + more;
        eventually(format!("{more} acknowledged writes"), PROGRESS_WITHIN, async || {
            (self.tally().acknowledged >= goal).then_some(())
        })
        .await;
    }

    /// Stops writing and waits for the answers that are due.
    ///
    /// # Panics
    /// If a write failed in a way that no crash explains.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no writer panics");
        }
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "unexpected errors: {failures:#?}");
    }

    /// Reads everything and compares it with what was done. May run while the
    /// load goes on.
    ///
    /// # Panics
    /// If something acknowledged is missing, or something is there that was
    /// never written.
    pub async fn check(&self, client: &RaftKVClient) {
        let shared = &*self.shared;
        // What was acknowledged before the read began has to be seen.
        let due: Vec<(BTreeSet<u64>, u64)> = shared.writers.iter().map(Writer::due).collect();
        let counted = shared.counter.acknowledged.load(SeqCst);
        let pairs = client.scan(PREFIX).collect().await;
        let pairs = pairs.expect("a node that is ready answers");
        // What was sent before the read ended may be seen.
        let sent = shared.writers.iter().map(|w| w.attempted.load(SeqCst));
        let sent: Vec<u64> = sent.collect();
        let counter = &shared.counter;
        let countable = counter.unknown.load(SeqCst) + counter.acknowledged.load(SeqCst);

        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("all is text");
        let pairs = pairs.iter().map(|pair| (text(&pair.key), text(&pair.value)));
        let mut found: BTreeMap<String, String> = pairs.collect();
        let count = found.remove(COUNTER_KEY);
        let count = count.map_or(0, |value| value.parse().expect("the counter is a number"));
        assert!(
            (counted..=countable).contains(&count),
            "the counter is {count}, with {counted} increments acknowledged and {countable} sent"
        );
        for (writer, ((new_keys, overwritten), sent)) in due.into_iter().zip(sent).enumerate() {
            let value = found.remove(&overwritten_key(writer));
            let number = value.map_or(0, |value| number_in(writer, &value));
            assert!(
                (overwritten..=sent).contains(&number),
                "writer {writer} overwrote its key up to {number}, with {overwritten} \
                 acknowledged and {sent} sent"
            );
            for number in new_keys {
                let key = new_key(writer, number);
                let value = found.remove(&key);
                let expected = value_of(writer, number);
                assert_eq!(value, Some(expected), "{key} was acknowledged");
            }
            found.retain(|key, value| {
                let number = number_of(writer, key);
                let known = number.is_some_and(|number| number <= sent);
                !known || *value != value_of(writer, number.unwrap_or_default())
            });
        }
        assert!(found.is_empty(), "nobody wrote {found:?}");
    }
}

impl Writer {
    fn due(&self) -> (BTreeSet<u64>, u64) {
        let new_keys = self.new_keys.lock().unwrap().clone();
        (new_keys, self.overwritten.load(SeqCst))
    }
}

impl Shared {
    fn running(&self) -> bool {
        !self.stop.load(SeqCst)
    }

    /// Notes an error unless a crash explains it.
    fn note(&self, error: &Error) {
        let explained = matches!(
            error,
            Error::Connect { .. }
                | Error::Unavailable { .. }
                | Error::Timeout { .. }
                | Error::NotLeader { .. }
        );
        if !explained || !self.errors_allowed {
            self.failures.lock().unwrap().push(format!("{error:?}"));
        }
    }

    /// Puts once, and says whether that was acknowledged.
    async fn put(&self, client: &RaftKVClient, key: String, value: String) -> bool {
        self.attempted.fetch_add(1, SeqCst);
        match client.put(key, value).await {
            Ok(_) => {
                self.acknowledged.fetch_add(1, SeqCst);
                true
            }
            Err(error) => {
                self.note(&error);
                false
            }
        }
    }
}

const COUNTER_KEY: &str = "load/counter";

fn new_key(writer: usize, number: u64) -> String {
    format!("{PREFIX}new/{writer}/{number:09}")
}

fn overwritten_key(writer: usize) -> String {
    format!("{PREFIX}overwritten/{writer}")
}

fn value_of(writer: usize, number: u64) -> String {
    format!("{writer} wrote {number}")
}

/// The number in a new key of this writer.
fn number_of(writer: usize, key: &str) -> Option<u64> {
    let prefix = format!("{PREFIX}new/{writer}/");
    key.strip_prefix(&prefix)?.parse().ok()
}

/// The number in a value of this writer.
fn number_in(writer: usize, value: &str) -> u64 {
    let number = value.strip_prefix(&format!("{writer} wrote "));
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("writer {writer} never wrote {value:?}"))
}

async fn write(client: RaftKVClient, shared: Arc<Shared>, writer: usize) {
    let mine = &shared.writers[writer];
    let mut number = 0;
    while shared.running() {
        number += 1;
        mine.attempted.store(number, SeqCst);
        let (key, value) = (new_key(writer, number), value_of(writer, number));
        if shared.put(&client, key, value).await {
            mine.new_keys.lock().unwrap().insert(number);
        }
        let (key, value) = (overwritten_key(writer), value_of(writer, number));
        if shared.put(&client, key, value).await {
            mine.overwritten.store(number, SeqCst);
        }
    }
}

async fn count(client: RaftKVClient, shared: Arc<Shared>) {
    let counter = &shared.counter;
    while shared.running() {
        let found = match client.get_with_version(COUNTER_KEY).await {
            Ok(found) => found,
            Err(error) => {
                shared.note(&error);
                continue;
            }
        };
        let (count, version) = match found {
            Some(found) => {
                let text = String::from_utf8_lossy(&found.value);
                let count: u64 = text.parse().expect("the counter is a number");
                (count, found.version)
            }
            None => (0, Version::ABSENT),
        };
        counter.unknown.fetch_add(1, SeqCst);
        shared.attempted.fetch_add(1, SeqCst);
        let next = (count + 1).to_string();
        match client.compare_and_put(COUNTER_KEY, version, next).await {
            Ok(_) => {
                // In this order, so that the sum of both never falls short.
                counter.acknowledged.fetch_add(1, SeqCst);
                counter.unknown.fetch_sub(1, SeqCst);
                shared.acknowledged.fetch_add(1, SeqCst);
            }
            Err(Error::VersionMismatch { .. }) => {
                counter.unknown.fetch_sub(1, SeqCst);
            }
            Err(error) => {
                // Of these two it is certain that nothing was written.
                if matches!(error, Error::Connect { .. } | Error::NotLeader { .. }) {
                    counter.unknown.fetch_sub(1, SeqCst);
                }
                shared.note(&error);
            }
        }
    }
}
