//! Does again, with a module in the sandbox, what a plugin's own tests did natively, and compares.
//!
//! The SDK's test host writes records (`sdk/src/testing/record.rs` says how they read); each is one host
//! with its commands, queries and what they came to.

use std::{fs, path::Path};

use bytes::Bytes;

use super::determinism::{Came, shown_bytes};
use crate::wasm::{
    Call, Executor, FailureKind, HostError, Limits, MAX_MESSAGE_BYTES, MemoryStorage, PluginEngine,
    PluginFailure, PluginModule, PluginResult, QueryResult, Reuse, Seed, Writes,
};

/// The environment variable that makes test hosts write records into a folder.
pub const RECORD_FOLDER: &str = "RAFTKV_TEST_RECORD";

/// Why records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// One cannot be read.
    #[error("cannot read the record {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not as it should be.
    #[error(
        "the record {path} cannot be read at line {line}: is the plugin's SDK of another version?"
    )]
    Line {
        /// The file.
        path: String,
        /// Which line, from 1.
        line: usize,
    },
}

/// What one test host did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The type of its state machine.
    pub machine: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// The test changed what is stored.
    Row { slot: u32, key: Vec<u8>, value: Option<Vec<u8>> },
    /// Something ran, and came to this.
    Run { what: What, call: RecordedCall, came: Came },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Apply,
    Query,
    Migrate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RecordedCall {
    slot: u32,
    index: u64,
    time_ms: u64,
    position: u32,
    seed: [u8; 32],
    input: Vec<u8>,
}

/// What doing it again came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Test hosts.
    pub hosts: usize,
    /// Commands and migrations that were run again.
    pub commands: usize,
    /// Queries that were.
    pub queries: usize,
    /// The first thing that came out differently.
    pub difference: Option<String>,
}

/// Reads all records in a folder.
///
/// # Errors
/// If one cannot be read.
pub fn read(folder: &Path) -> Result<Vec<Record>, RecordError> {
    let failed =
        |path: &Path, source| RecordError::Read { path: path.display().to_string(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        files.push(entry.map_err(|error| failed(folder, error))?.path());
    }
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).map_err(|error| failed(path, error))?;
        parse(&text).map_err(|line| RecordError::Line { path: path.display().to_string(), line })
    };
    files.iter().map(read).collect()
}

/// Runs all of the records with the module, each on storage of its own.
///
/// # Errors
/// If this machine cannot run the plugin.
pub fn run(
    engine: &PluginEngine,
    module: &PluginModule,
    records: &[Record],
) -> Result<Report, HostError> {
    let mut report = Report { hosts: records.len(), ..Report::default() };
    for record in records {
        let mut host = Host {
            module,
            executor: Executor::new(engine, Reuse::Keep)?,
            storage: MemoryStorage::default(),
        };
        for step in &record.steps {
            let (what, call, natively) = match step {
                Step::Row { slot, key, value } => {
                    host.storage.set(*slot, key, value.clone());
                    continue;
                }
                Step::Run { what, call, came } => (*what, call, came),
            };
            match what {
                What::Query => report.queries += 1,
                What::Apply | What::Migrate => report.commands += 1,
            }
            let came = host.run(what, call)?;
            if came != *natively {
                report.difference = Some(format!(
                    "{} {} (log index {}, slot {}) comes out differently:\n  natively it {natively}\n  \
                     in the module it {came}\nWas the module built from these sources? Does the plugin \
                     depend on the size of `usize`, on a `static`, or on what only one of the two has?",
                    match what {
                        What::Apply => "the command",
                        What::Query => "the query",
                        What::Migrate => "the migration",
                    },
                    shown_bytes(&call.input),
                    call.index,
                    call.slot,
                ));
                return Ok(report);
            }
        }
    }
    Ok(report)
}

/// The module on storage in memory.
struct Host<'a> {
    module: &'a PluginModule,
    executor: Executor,
    storage: MemoryStorage,
}

impl Host<'_> {
    fn run(&mut self, what: What, recorded: &RecordedCall) -> Result<Came, HostError> {
        let RecordedCall { slot, index, time_ms, position, seed, input } = recorded.clone();
        let seed = Seed::Given(seed);
        let call = Call { slot, index, time_ms, position, seed, payload: input.into() };
        let storage = Box::new(std::mem::take(&mut self.storage));
        let (module, limits) = (self.module, Limits::default());
        let (result, storage) = match what {
            What::Apply | What::Migrate => {
                let outcome = match what {
                    What::Migrate => self.executor.migrate(module, &limits, call, storage)?,
                    _ => self.executor.apply(module, &limits, vec![call], storage)?,
                };
                (outcome.results.into_iter().next(), outcome.storage)
            }
            What::Query => {
                let outcome = self.executor.query(module, &limits, None, vec![call], storage)?;
                let result = outcome.results.into_iter().next().and_then(|result| match result {
                    QueryResult::Done(result) => Some(result),
                    QueryResult::OverBudget => None,
                });
                (result, outcome.storage)
            }
        };
        self.storage = MemoryStorage::back(storage).unwrap_or_default();
        let mut writes = self.storage.take_writes();
        let result = result.unwrap_or_else(|| Ok(Bytes::new()));
        // A command that failed wrote nothing, and a query never does.
        let writes = if result.is_ok() { writes.pop() } else { None };
        Ok(Came { result, writes: writes.unwrap_or_default() })
    }
}

/// Reads a record, or says in which line it is wrong. A run without its end was that of a test that
/// failed.
fn parse(text: &str) -> Result<Record, usize> {
    let mut record = Record { machine: String::new(), steps: Vec::new() };
    let mut open = None;
    for (number, line) in (1_usize..).zip(text.lines()) {
        take(&mut record, &mut open, line).ok_or(number)?;
    }
    Ok(record)
}

/// A run whose lines are being read.
struct Open {
    what: What,
    call: RecordedCall,
    result: Option<PluginResult>,
    writes: Writes,
}

/// Takes one more line; `None` if it is not one that may come here.
fn take(record: &mut Record, open: &mut Option<Open>, line: &str) -> Option<()> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut fields = rest.split(' ');
    match (word, &mut *open) {
        ("machine", None) => rest.clone_into(&mut record.machine),
        ("row", None) => record.steps.push(Step::Row {
            slot: fields.next()?.parse().ok()?,
            key: bytes(fields.next()?)?,
            value: value(fields.next()?)?,
        }),
        ("apply" | "query" | "migrate", None) => {
            let what = match word {
                "apply" => What::Apply,
                "query" => What::Query,
                _ => What::Migrate,
            };
            let call = RecordedCall {
                slot: fields.next()?.parse().ok()?,
                index: fields.next()?.parse().ok()?,
                time_ms: fields.next()?.parse().ok()?,
                position: fields.next()?.parse().ok()?,
                seed: bytes(fields.next()?)?.try_into().ok()?,
                input: bytes(fields.next()?)?,
            };
            *open = Some(Open { what, call, result: None, writes: Writes::new() });
        }
        ("ok", Some(run)) => run.result = Some(Ok(bytes(fields.next()?)?.into())),
        ("failed", Some(run)) => {
            let code = fields.next()?.parse().ok()?;
            let message = String::from_utf8(bytes(fields.next()?)?).ok()?;
            run.result = Some(Err(failure(code, message)));
        }
        ("wrote", Some(run)) => {
            let key = [&run.call.slot.to_be_bytes()[..], &bytes(fields.next()?)?].concat();
            run.writes.insert(key, value(fields.next()?)?);
        }
        ("done", Some(_)) => {
            let Open { what, call, result, writes } = open.take()?;
            record.steps.push(Step::Run { what, call, came: Came { result: result?, writes } });
        }
        _ => return None,
    }
    Some(())
}

/// A failure as the host records it: its message has a limit.
fn failure(code: u32, mut message: String) -> PluginFailure {
    while message.len() > MAX_MESSAGE_BYTES {
        message.pop();
    }
    PluginFailure { kind: FailureKind::Failed, code, message }
}

fn value(field: &str) -> Option<Option<Vec<u8>>> {
    if field == "-" { Some(None) } else { bytes(field).map(Some) }
}

fn bytes(field: &str) -> Option<Vec<u8>> {
    if field == "." { Some(Vec::new()) } else { super::commands::bytes_of(field) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::tests::support::{each, engine};

    /// Echoes the command and stores it under itself.
    const ECHO: &str = "(call $put (i32.const 4096) (local.get $n) (i32.const 4096) (local.get $n))
         (call $respond (i32.const 4096) (local.get $n))";

    fn record(lines: &str) -> Record {
        let seed = "00".repeat(32);
        let lines = lines.replace("SEED", &seed).replace("; ", "\n");
        parse(&format!("machine m::M\n{lines}")).unwrap()
    }

    fn compared(lines: &str) -> Report {
        run(engine(), &each(ECHO), &[record(lines)]).unwrap()
    }

    #[test]
    fn what_comes_out_the_same_is_counted() {
        let report = compared(
            "row 3 6b 76; apply 3 1 0 0 SEED 61; ok 61; wrote 61 61; done; row 3 61 -; \
             apply 3 2 0 0 SEED .; ok .; wrote . .; done; apply 3 3 0 0 SEED 62",
        );
        assert_eq!(report, Report { hosts: 1, commands: 2, queries: 0, difference: None });
    }

    #[test]
    fn what_comes_out_differently_is_told_with_both_sides() {
        for (lines, words) in [
            ("apply 3 7 0 0 SEED 61; ok 62; wrote 61 61; done", r#"natively it answers "b""#),
            ("apply 3 7 0 0 SEED 61; ok 61; done", r#"it answers "a"; writes "a" = "a""#),
            ("apply 3 7 0 0 SEED 61; ok 61; wrote 61 -; done", r#"writes "a" = nothing"#),
            ("apply 3 7 0 0 SEED 61; failed 4 6e6f; done", "natively it fails: "),
            ("query 3 7 0 0 SEED 61; ok 61; done", "the query \"a\" (log index 7, slot 3)"),
            ("migrate 3 7 0 0 SEED 61; ok 61; done", "the migration"),
        ] {
            let difference = compared(lines).difference.unwrap();
            assert!(difference.contains(words), "{lines}: {difference}");
        }
    }

    #[test]
    fn a_line_that_is_none_is_told() {
        for (text, line) in [
            ("machine m\nwrote 61 61", 2),
            ("apply 1 1 0 0 00 61", 1),
            ("machine m\nrow 1 6 61", 2),
            ("machine m\nrow 1 61 -\nsomething", 3),
        ] {
            assert_eq!(parse(text), Err(line), "{text}");
        }
        assert!(matches!(read(Path::new("/nowhere")), Err(RecordError::Read { .. })));
    }
}
