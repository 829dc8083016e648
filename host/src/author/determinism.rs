//! Looks for plugins whose results depend on more than command, stored data and context.
//!
//! The same commands are run again and again, each time cut into other batches: every command on an
//! instance of its own, which can remember nothing; then on instances that are kept, as nodes do, one
//! by one, all at once, at random, and on one that has run them all before. What a command answers
//! and writes has to be the same each time. It is what replicas of a shard do to a plugin.

use std::fmt;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::wasm::{
    Call, Executor, HostError, Limits, MemoryStorage, PluginEngine, PluginModule, PluginResult,
    Reuse, Seed, Writes,
};

/// Ways of cutting the commands at random.
const RANDOM_CUTS: u64 = 20;
/// Commands of a batch cut at random, at most.
const LONGEST_BATCH: usize = 64;
/// Replicated time of the first command, and between two commands.
const FIRST_TIME_MS: u64 = 1_700_000_000_000;
const STEP_MS: u64 = 1_000;
/// Bytes of an answer or a value that a report shows.
const SHOWN_BYTES: usize = 120;

/// What the runs came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many commands there were.
    pub commands: usize,
    /// How many of them failed, in whatever way.
    pub failed: usize,
    /// How many ways they were run in.
    pub runs: usize,
    /// The first command that came out differently.
    pub difference: Option<Difference>,
}

/// A command that came out differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its place among the commands, from 0.
    pub command: usize,
    /// How it was run the second time.
    pub run: String,
    /// What it came to on an instance of its own.
    pub alone: String,
    /// What it came to this time.
    pub then: String,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Came {
    pub(super) result: PluginResult,
    pub(super) writes: Writes,
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown_result(&self.result))?;
        if !self.writes.is_empty() {
            write!(f, "; writes {}", shown_writes(&self.writes))?;
        }
        Ok(())
    }
}

/// Runs the commands once, in order, on empty storage.
///
/// # Errors
/// If this machine cannot run the plugin.
pub fn run_once(
    engine: &PluginEngine,
    module: &PluginModule,
    commands: &[Bytes],
) -> Result<Vec<Came>, HostError> {
    Tester { engine, module, commands }.kept(&mut |_| 1)
}

/// Runs the commands in many ways and compares.
///
/// # Errors
/// If this machine cannot run the plugin.
pub fn test(
    engine: &PluginEngine,
    module: &PluginModule,
    commands: &[Bytes],
    seed: u64,
) -> Result<Report, HostError> {
    let tester = Tester { engine, module, commands };
    let alone = tester.run(&mut tester.executor(Reuse::Never)?, &mut |_| 1)?;
    let mut report = Report {
        commands: commands.len(),
        failed: alone.iter().filter(|came| came.result.is_err()).count(),
        runs: 1,
        difference: None,
    };
    let mut compare = |name: &str, again: Vec<Came>| {
        report.runs += 1;
        report.difference = difference(name, &alone, &again);
        report.difference.is_some()
    };
    if compare("one by one on an instance that is kept", tester.kept(&mut |_| 1)?) {
        return Ok(report);
    }
    if compare("all in one batch", tester.kept(&mut |left| left)?) {
        return Ok(report);
    }
    for round in 0..RANDOM_CUTS {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(round));
        let mut cut = |left: usize| rng.random_range(1..=left.min(LONGEST_BATCH));
        let name = format!("in batches cut at random (seed {})", seed.wrapping_add(round));
        if compare(&name, tester.kept(&mut cut)?) {
            return Ok(report);
        }
    }
    let mut used = tester.executor(Reuse::Keep)?;
    tester.run(&mut used, &mut |left| left)?;
    compare(
        "on an instance that had run them all before",
        tester.run(&mut used, &mut |left| left)?,
    );
    Ok(report)
}

struct Tester<'a> {
    engine: &'a PluginEngine,
    module: &'a PluginModule,
    commands: &'a [Bytes],
}

impl Tester<'_> {
    fn executor(&self, reuse: Reuse) -> Result<Executor, HostError> {
        Executor::new(self.engine, reuse)
    }

    fn kept(&self, cut: &mut dyn FnMut(usize) -> usize) -> Result<Vec<Came>, HostError> {
        self.run(&mut self.executor(Reuse::Keep)?, cut)
    }

    /// Runs all commands on empty storage. `cut` says how many of those left come next.
    fn run(
        &self,
        executor: &mut Executor,
        cut: &mut dyn FnMut(usize) -> usize,
    ) -> Result<Vec<Came>, HostError> {
        let mut storage = MemoryStorage::default();
        let mut came = Vec::with_capacity(self.commands.len());
        while came.len() < self.commands.len() {
            let first = came.len();
            let count = cut(self.commands.len() - first).max(1);
            let calls = (first..first + count).map(|place| self.call(place)).collect();
            let limits = Limits::default();
            let outcome = executor.apply(self.module, &limits, calls, Box::new(storage))?;
            storage = MemoryStorage::back(outcome.storage).unwrap_or_default();
            let mut writes = storage.take_writes().into_iter();
            came.extend(outcome.results.into_iter().map(|result| {
                // One that failed wrote nothing.
                let writes = result.as_ref().ok().and_then(|_| writes.next()).unwrap_or_default();
                Came { result, writes }
            }));
        }
        Ok(came)
    }

    fn call(&self, place: usize) -> Call {
        let index = place as u64 + 1;
        Call {
            slot: 0,
            index,
            time_ms: FIRST_TIME_MS + index * STEP_MS,
            position: 0,
            seed: Seed::At { group: 0, index, position: 0 },
            payload: self.commands[place].clone(),
        }
    }
}

fn difference(run: &str, alone: &[Came], again: &[Came]) -> Option<Difference> {
    let mut pairs = alone.iter().zip(again).enumerate();
    let (command, (alone, then)) = pairs.find(|(_, (alone, then))| alone != then)?;
    let only_writes = alone.result == then.result;
    let shown = |came: &Came| match only_writes {
        true => format!("writes {}", shown_writes(&came.writes)),
        false => shown_result(&came.result),
    };
    Some(Difference { command, run: run.to_owned(), alone: shown(alone), then: shown(then) })
}

fn shown_result(result: &PluginResult) -> String {
    match result {
        Ok(response) => format!("answers {}", shown_bytes(response)),
        Err(failure) => format!("fails: {failure}"),
    }
}

fn shown_writes(writes: &Writes) -> String {
    let shown: Vec<String> = writes
        .iter()
        .map(|(key, value)| {
            let value = value.as_deref().map_or_else(|| "nothing".to_owned(), shown_bytes);
            format!("{} = {value}", shown_bytes(&key[4..]))
        })
        .collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

/// Bytes as text where they are, with escapes, cut to what a line holds.
#[must_use]
pub fn shown_bytes(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let rest = if cut.len() < bytes.len() { "…" } else { "" };
    format!("\"{}\"{rest}", cut.escape_ascii())
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "command {} comes out differently {}:\n  on an instance of its own it {}\n  then it {}\n\
             Does the plugin keep anything in a static, or depend on how commands are batched?",
            self.command + 1,
            self.run,
            self.alone,
            self.then
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::tests::support::{each, engine};

    fn test_body(body: &str) -> Report {
        let commands = [&b"a"[..], b"b", b"a"].map(Bytes::from_static);
        test(engine(), &each(body), &commands, 1).unwrap()
    }

    const ECHO: &str = "(call $respond (i32.const 4096) (local.get $n))";

    #[test]
    fn a_plugin_that_keeps_its_word_comes_out_the_same_in_all_runs() {
        let report = test_body(&format!(
            "(call $put (i32.const 4096) (local.get $n) (i32.const 4096) (local.get $n)) {ECHO}"
        ));
        assert_eq!((report.commands, report.failed, report.difference), (3, 0, None));
        assert!(report.runs > 20);
    }

    /// Adds one to what it keeps in its memory.
    const REMEMBER: &str =
        "(i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))";

    #[test]
    fn an_answer_from_memory_is_found() {
        let report = test_body(&format!("{REMEMBER} (call $respond (i32.const 0) (i32.const 1))"));
        let difference = report.difference.unwrap();
        assert_eq!(difference.command, 1);
        assert!(difference.to_string().contains("answers \"\\x02\""), "{difference}");
    }

    #[test]
    fn a_write_from_memory_is_found_although_the_answers_agree() {
        let report = test_body(&format!(
            "{REMEMBER} (call $put (i32.const 4096) (i32.const 1) (i32.const 0) (i32.const 1)) {ECHO}"
        ));
        let difference = report.difference.unwrap();
        assert!(difference.then.starts_with("writes \"b\" = "), "{difference}");
    }

    #[test]
    fn a_failure_that_hangs_on_memory_is_no_difference() {
        // It is run again alone, and then it succeeds.
        let report = test_body(&format!(
            "(if (i32.load8_u (i32.const 0)) (then unreachable)) {REMEMBER} {ECHO}"
        ));
        assert_eq!((report.failed, report.difference), (0, None));
    }
}
