//! Atomic requests, from lines of text.

use std::io::Write;

use raft_kv_client::{Atomic, AtomicOutcome, Operation, Outcome, PutOptions, Version, parse_ttl};

use super::{Session, read_stdin, write_json};
use crate::{Failure, args::Output, json, text};

/// A condition or an operation.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    IfVersion(Vec<u8>, u64),
    IfExists(Vec<u8>),
    IfAbsent(Vec<u8>),
    Do(Operation),
}

impl<W: Write> Session<'_, W> {
    pub(super) async fn atomic(self, lines: Vec<String>) -> Result<(), Failure> {
        let lines = match lines.is_empty() {
            true => {
                let input = String::from_utf8(read_stdin()?);
                let not_text = |_| {
                    Failure::BadUsage("stdin is not UTF-8: write other bytes as \\xNN".to_owned())
                };
                input.map_err(not_text)?.lines().map(str::to_owned).collect()
            }
            false => lines,
        };
        let mut conditions = Vec::new();
        let mut parsed = Vec::new();
        for (number, line) in (1..).zip(&lines) {
            let read = parse(line)
                .map_err(|why| Failure::BadUsage(format!("line {number}, {line:?}: {why}")))?;
            if let Some(Line::IfVersion(..) | Line::IfExists(_) | Line::IfAbsent(_)) = read {
                conditions.push(line.trim());
            }
            parsed.extend(read);
        }
        let client = self.builder.connect().await?;
        let request = parsed.into_iter().fold(client.atomic(), add);
        let outcome = request.send().await?;
        if self.output == Output::Json {
            write_json(self.out, &json::atomic(&outcome))?;
        }
        match &outcome {
            AtomicOutcome::Held(outcomes) if self.output == Output::Text => {
                outcomes
                    .iter()
                    .try_for_each(|outcome| writeln!(self.out, "{}", in_words(outcome)))?;
            }
            AtomicOutcome::Held(_) => {}
            AtomicOutcome::Failed { compare, version } => {
                let condition = conditions.get(*compare).copied().unwrap_or("a condition");
                let found = match *version {
                    Version::ABSENT => "it does not exist".to_owned(),
                    version => format!("its version is {version}"),
                };
                let condition = condition.to_owned();
                return Err(Failure::ConditionFailed { condition, found });
            }
        }
        Ok(())
    }
}

fn add(request: Atomic, line: Line) -> Atomic {
    match line {
        Line::IfVersion(key, version) => request.if_version(key, version),
        Line::IfExists(key) => request.if_exists(key),
        Line::IfAbsent(key) => request.if_absent(key),
        Line::Do(operation) => request.then(operation),
    }
}

/// What an operation did.
fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Put(version) => format!("version {version}"),
        Outcome::Get(Some(found)) => format!("value {}", text::escape(&found.value)),
        Outcome::Get(None) | Outcome::Delete(false) => "absent".to_owned(),
        Outcome::Delete(true) => "deleted".to_owned(),
        Outcome::Increment(number, _) => format!("number {number}"),
    }
}

/// Reads a line; none if there is nothing in it. An error says what is the matter.
fn parse(line: &str) -> Result<Option<Line>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| {
        word.parse().map_err(|_| format!("{word:?} is no version: that is a number from 0 on"))
    };
    Ok(Some(match words[..] {
        [] => return Ok(None),
        [first, ..] if first.starts_with('#') => return Ok(None),
        ["if", key, "version", version] => Line::IfVersion(bytes(key)?, number(version)?),
        ["if", key, "exists"] => Line::IfExists(bytes(key)?),
        ["if", key, "absent"] => Line::IfAbsent(bytes(key)?),
        ["put", key, value] => Line::Do(Operation::put(bytes(key)?, bytes(value)?)),
        ["put", key, value, "ttl", ttl] => {
            let ttl = parse_ttl(ttl).map_err(|error| error.to_string())?;
            let options = PutOptions::new().ttl(ttl);
            Line::Do(Operation::put_with(bytes(key)?, bytes(value)?, options))
        }
        ["get", key] => Line::Do(Operation::get(bytes(key)?)),
        ["delete", key] => Line::Do(Operation::delete(bytes(key)?)),
        ["increment", key] => Line::Do(Operation::increment(bytes(key)?, 1)),
        ["increment", key, delta] => {
            let delta = delta.parse().map_err(|_| format!("{delta:?} is no number to add"))?;
            Line::Do(Operation::increment(bytes(key)?, delta))
        }
        _ => {
            return Err("it is none of `if KEY version N`, `if KEY exists`, `if KEY absent`, \
                        `put KEY VALUE [ttl T]`, `get KEY`, `delete KEY` and `increment KEY [N]`"
                .to_owned());
        }
    }))
}

/// The bytes that a word stands for.
fn bytes(word: &str) -> Result<Vec<u8>, String> {
    let none = "\"\"";
    let escaped = if word == none { "" } else { word };
    text::unescape(escaped).ok_or_else(|| {
        format!("{word:?} has a backslash that begins none of \\t, \\n, \\r, \\\\ and \\xNN")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_are_words_with_blanks_between_them() {
        let read = |line| parse(line).unwrap().unwrap();
        assert_eq!(read("if k version 7"), Line::IfVersion(b"k".to_vec(), 7));
        assert_eq!(read("  if\t{a}\\x20b exists "), Line::IfExists(b"{a} b".to_vec()));
        assert_eq!(read("if if absent"), Line::IfAbsent(b"if".to_vec()));
        assert_eq!(read("put k \"\""), Line::Do(Operation::put("k", "")));
        let options = PutOptions::new().ttl(Duration::from_secs(5));
        assert_eq!(read("put k v ttl 5s"), Line::Do(Operation::put_with("k", "v", options)));
        assert_eq!(read("get k"), Line::Do(Operation::get("k")));
        assert_eq!(read("delete k"), Line::Do(Operation::delete("k")));
        assert_eq!(read("increment k"), Line::Do(Operation::increment("k", 1)));
        assert_eq!(read("increment k -3"), Line::Do(Operation::increment("k", -3)));
        for nothing in ["", "  ", "# put k v", "#"] {
            assert_eq!(parse(nothing), Ok(None), "{nothing:?}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for (line, said) in [
            ("frobnicate k", "none of"),
            ("put k", "none of"),
            ("put k two words", "none of"),
            ("if k version x", "no version"),
            ("if k version -1", "no version"),
            ("increment k x", "no number"),
            ("put k v ttl 5", "time to live"),
            ("get \\q", "backslash"),
        ] {
            let why = parse(line).unwrap_err();
            assert!(why.contains(said), "{line}: {why}");
        }
    }
}
