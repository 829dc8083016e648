//! What a change does to the state of a group's log, and which changes and reads
//! are refused. Every implementation goes through here, so that they agree.

use super::{LogChange, LogEntry, LogState, LogStoreError};
use crate::types::{GroupId, Index, LogPosition};

/// The state of a log after a change; `None` is a group without a log.
///
/// The error says why the change breaks the contract.
pub(super) fn after_change(
    state: Option<LogState>,
    change: &LogChange,
) -> Result<Option<LogState>, String> {
    if let LogChange::Clean = change {
        return Ok(None);
    }
    if let LogChange::Create { start, hard_state } = change {
        return Ok(Some(LogState { hard_state: *hard_state, start: *start, last: *start }));
    }
    let state = state.ok_or("it has no log")?;
    Ok(Some(match change {
        LogChange::Append(entries) => LogState { last: after_append(&state, entries)?, ..state },
        LogChange::HardState(hard_state) => LogState { hard_state: *hard_state, ..state },
        LogChange::Compact(position) => {
            LogState { start: after_compact(&state, *position)?, ..state }
        }
        LogChange::Create { .. } | LogChange::Clean => unreachable!("handled above"),
    }))
}

fn after_append(state: &LogState, entries: &[LogEntry]) -> Result<LogPosition, String> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Err("no entries are appended".to_owned());
    };
    let (start, end) = (state.start.index, state.last.index);
    if first.index() <= start || first.index() > end.next() {
        return Err(format!(
            "entries are appended at index {}, but the log holds those after {start} up to {end}",
            first.index(),
        ));
    }
    if let Some(gap) = entries.windows(2).find(|pair| pair[1].index() != pair[0].index().next()) {
        return Err(format!(
            "entry {} is followed by {} in one append",
            gap[0].index(),
            gap[1].index(),
        ));
    }
    Ok(last.position())
}

fn after_compact(state: &LogState, position: LogPosition) -> Result<LogPosition, String> {
    if position.index <= state.start.index {
        return Ok(state.start);
    }
    let beyond_last = position.index > state.last.index;
    if beyond_last || (position.index == state.last.index && position.term != state.last.term) {
        return Err(format!(
            "it is compacted to index {} of term {}, but ends at {} of term {}",
            position.index, position.term, state.last.index, state.last.term,
        ));
    }
    Ok(position)
}

/// A change that was refused, as the caller of `write` sees it.
pub(super) fn refused(group: GroupId, reason: &str) -> LogStoreError {
    LogStoreError::Write(format!("change of group {group} refused: {reason}"))
}

/// Checks that a log holds all entries `low <= index < high`.
pub(super) fn check_range(
    group: GroupId,
    state: &LogState,
    low: Index,
    high: Index,
) -> Result<(), LogStoreError> {
    let (first, last) = (state.start.index.next(), state.last.index);
    if low < first || high > last.next() {
        return Err(LogStoreError::OutOfRange { group, low, high, first, last });
    }
    Ok(())
}

/// How many of these entries fit into `max_bytes`; the first always does.
pub(super) fn count_fitting<'a>(
    entries: impl Iterator<Item = &'a LogEntry>,
    max_bytes: u64,
) -> usize {
    let mut bytes = 0;
    entries
        .enumerate()
        .take_while(|(position, entry)| {
            bytes += entry.size() as u64;
            *position == 0 || bytes <= max_bytes
        })
        .count()
}

/// A read of a group that has no log.
pub(super) fn no_log(group: GroupId) -> LogStoreError {
    LogStoreError::Read { group, message: "there is no such log".to_owned() }
}
