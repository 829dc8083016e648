//! What raft-engine does not keep of a group: one small key-value holds its hard
//! state and where its entries begin and end, rewritten in the same batch as
//! whatever changes them.
//!
//! The end is there to find damage: entries that vanished from the log are
//! noticed when it is opened. Raft-engine's checksums cover the bytes.

use crate::{
    log_store::LogState,
    types::{HardState, Index, LogPosition, ReplicaId, Term},
};

/// The record's key among a group's key-values.
pub(super) const RECORD_KEY: &[u8] = b"r";

const VERSION: u8 = 1;
const NUMBERS: usize = 7;
/// Version, whether there is a vote, and the numbers in little endian.
const RECORD_BYTES: usize = 2 + NUMBERS * 8;

/// Encodes a group's state.
pub(super) fn encode(state: &LogState) -> Vec<u8> {
    let hard_state = &state.hard_state;
    let numbers: [u64; NUMBERS] = [
        hard_state.term.0,
        hard_state.vote.unwrap_or_default().0,
        hard_state.commit.0,
        state.start.index.0,
        state.start.term.0,
        state.last.index.0,
        state.last.term.0,
    ];
    let mut record = Vec::with_capacity(RECORD_BYTES);
    record.extend([VERSION, u8::from(hard_state.vote.is_some())]);
    record.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    record
}

/// Decodes a group's state; the error says what is wrong with the record.
pub(super) fn decode(record: &[u8]) -> Result<LogState, String> {
    let &[VERSION, has_vote @ (0 | 1), ref rest @ ..] = record else {
        return Err("its record is of an unknown version".to_owned());
    };
    if record.len() != RECORD_BYTES {
        return Err(format!("its record has {} bytes instead of {RECORD_BYTES}", record.len()));
    }
    let mut numbers = rest
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("a chunk has eight bytes")));
    let mut next = || numbers.next().expect("the length was checked");
    let term = Term(next());
    let vote = ReplicaId(next());
    let hard_state =
        HardState { term, vote: (has_vote == 1).then_some(vote), commit: Index(next()) };
    let mut position = || LogPosition { index: Index(next()), term: Term(next()) };
    let (start, last) = (position(), position());
    if last.index < start.index {
        return Err("its record says that it ends before it begins".to_owned());
    }
    Ok(LogState { hard_state, start, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(vote: Option<ReplicaId>) -> LogState {
        LogState {
            hard_state: HardState { term: Term(1), vote, commit: Index(3) },
            start: LogPosition { index: Index(4), term: Term(5) },
            last: LogPosition { index: Index(6), term: Term(7) },
        }
    }

    #[test]
    fn record_is_read_back_as_written() {
        for vote in [None, Some(ReplicaId(2)), Some(ReplicaId(u64::MAX))] {
            assert_eq!(decode(&encode(&state(vote))), Ok(state(vote)));
        }
    }

    #[test]
    fn malformed_record_is_refused() {
        let record = encode(&state(None));
        for length in 0..record.len() {
            decode(&record[..length]).unwrap_err();
        }
        decode(&[record.as_slice(), &[0]].concat()).unwrap_err();
        decode(&[&[VERSION + 1], &record[1..]].concat()).unwrap_err();
        decode(&[&[VERSION, 2], &record[2..]].concat()).unwrap_err();
        let mut backwards = state(None);
        backwards.last.index = Index(3);
        decode(&encode(&backwards)).unwrap_err();
    }
}
