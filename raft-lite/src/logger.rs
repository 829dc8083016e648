//! Hands `raft`'s log lines, which are slog's, to `tracing`.

use std::fmt::{self, Write};

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

/// A logger for `raft` that writes to `tracing` under the target `raft`.
///
/// `raft` calls routine things "info"; with many groups they belong to "debug".
pub(crate) fn logger() -> Logger {
    Logger::root(TracingDrain, o!())
}

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let enabled = match record.level() {
            Level::Critical | Level::Error => {
                tracing::enabled!(target: "raft", tracing::Level::ERROR)
            }
            Level::Warning => tracing::enabled!(target: "raft", tracing::Level::WARN),
            _ => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
        };
        if !enabled {
            return Ok(());
        }
        let mut line = Line(record.msg().to_string());
        // Writing to a string can not fail.
        let _ = record.kv().serialize(record, &mut line);
        let _ = values.serialize(record, &mut line);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", line.0),
            Level::Warning => tracing::warn!(target: "raft", "{}", line.0),
            _ => tracing::debug!(target: "raft", "{}", line.0),
        }
        Ok(())
    }
}

/// A log line that key-value pairs are appended to.
struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key}: {value}")?;
        Ok(())
    }
}
