//! What a test host did, written down, so that `raft-kv-plugin test --compare` can do it again with the
//! module in the real sandbox.
//!
//! A file is text, numbers in decimal, bytes in hex; `.` is no bytes, `-` that there is no value:
//!
//! ```text
//! machine NAME                          the type of the state machine
//! row SLOT KEY VALUE|-                  the test itself changed what is stored
//! apply|query|migrate SLOT INDEX TIME POSITION SEED INPUT
//! ok RESPONSE  or  failed CODE MESSAGE  what that came to
//! wrote KEY VALUE|-                     each key that it wrote, in order
//! done
//! ```
//!
//! A command that panics ends the test, and is not in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::KeySpace;
use crate::{Failure, Place};

/// The environment variable with the folder that records go to; without it there are none.
const FOLDER: &str = "RAFTKV_TEST_RECORD";

/// A record that is being written.
pub(super) struct Record {
    file: File,
    /// What is stored, as far as it is written down.
    known: BTreeMap<u32, KeySpace>,
}

/// What ran.
pub(super) struct Ran<'a> {
    pub(super) what: &'static str,
    pub(super) place: Place,
    pub(super) seed: [u8; 32],
    pub(super) input: &'a [u8],
}

impl Record {
    /// Begins one, if records are asked for.
    pub(super) fn begin(machine: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = PathBuf::from(std::env::var_os(FOLDER)?);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{count}.record", std::process::id()));
        let file = File::create(&path)
            .unwrap_or_else(|error| panic!("{FOLDER}: cannot make {}: {error}", path.display()));
        let mut record = Self { file, known: BTreeMap::new() };
        record.write(&format!("machine {machine}\n"));
        Some(record)
    }

    /// Notes what the test changed in a slot since the last command there.
    pub(super) fn note(&mut self, slot: u32, stored: &KeySpace) {
        let known = self.known.entry(slot).or_default();
        if known == stored {
            return;
        }
        let mut lines = String::new();
        for key in known.keys().filter(|key| !stored.contains_key(*key)) {
            lines += &format!("row {slot} {} -\n", hex(key));
        }
        for (key, value) in stored.iter().filter(|(key, value)| known.get(*key) != Some(value)) {
            lines += &format!("row {slot} {} {}\n", hex(key), hex(value));
        }
        known.clone_from(stored);
        self.write(&lines);
    }

    /// Notes what ran, what it came to, and what is stored under the keys it wrote.
    pub(super) fn ran(
        &mut self,
        ran: &Ran<'_>,
        result: &Result<Vec<u8>, Failure>,
        written: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) {
        let Place { log_index, time_ms, slot, position } = ran.place;
        let (seed, input) = (hex(&ran.seed), hex(ran.input));
        let mut lines =
            format!("{} {slot} {log_index} {time_ms} {position} {seed} {input}\n", ran.what);
        lines += &match result {
            Ok(response) => format!("ok {}\n", hex(response)),
            Err(Failure { code, message }) => {
                format!("failed {code} {}\n", hex(message.as_bytes()))
            }
        };
        let known = self.known.entry(slot).or_default();
        for (key, value) in written {
            let shown = value.as_deref().map_or_else(|| "-".to_owned(), hex);
            lines += &format!("wrote {} {shown}\n", hex(key));
            match value {
                Some(value) => known.insert(key.clone(), value.clone()),
                None => known.remove(key),
            };
        }
        self.write(&(lines + "done\n"));
    }

    fn write(&mut self, lines: &str) {
        self.file.write_all(lines.as_bytes()).expect("what a test host does can be recorded");
    }
}

/// Two digits a byte; `.` for no bytes, so that each field is there.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return ".".to_owned();
    }
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // A string takes everything.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
