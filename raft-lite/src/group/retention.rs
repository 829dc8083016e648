//! How much of the log is kept for replicas that lag behind.

use std::collections::VecDeque;

use super::Group;
use crate::{log_store::LogEntry, types::Index};

/// The log is measured in so many steps.
const STEPS: usize = 16;

impl Group {
    /// Up to where the log may be truncated whoever needs it.
    pub(super) fn retained_after(&self) -> Index {
        match self.node.store().has_snapshot() {
            true => self.retention_for_snapshots.floor(),
            false => self.retention.floor(),
        }
    }
}

/// Where the log has to begin for it to have at most so many bytes, roughly.
/// What was there at the start is not counted.
#[derive(Debug)]
pub(super) struct Retention {
    step_bytes: usize,
    /// The last index of each of the newest steps.
    marks: VecDeque<Index>,
    /// Bytes since the last mark.
    bytes: usize,
}

impl Retention {
    /// Keeps up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Retention { step_bytes: (limit / STEPS).max(1), marks: VecDeque::new(), bytes: 0 }
    }

    /// Counts entries that are appended; gives their bytes.
    pub(super) fn append(&mut self, entries: &[LogEntry]) -> usize {
        let Some(first) = entries.first() else { return 0 };
        while self.marks.pop_back_if(|mark| *mark >= first.index()).is_some() {}
        let mut appended = 0;
        for entry in entries {
            appended += entry.size();
            self.bytes += entry.size();
            if self.bytes >= self.step_bytes {
                self.bytes = 0;
                self.marks.push_back(entry.index());
            }
        }
        while self.marks.len() > STEPS + 1 {
            self.marks.pop_front();
        }
        appended
    }

    /// Up to where the log may be truncated whoever needs it.
    pub(super) fn floor(&self) -> Index {
        if self.marks.len() > STEPS { self.marks[0] } else { Index(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;

    /// Entries of 1000 bytes.
    fn entries(from: u64, to: u64) -> Vec<LogEntry> {
        let data = bytes::Bytes::from(vec![0; 968]);
        (from..=to).map(|index| LogEntry::new(Index(index), Term(1), data.clone())).collect()
    }

    #[test]
    fn the_floor_follows_the_end_at_a_distance() {
        let mut retention = Retention::new(16_000);
        assert_eq!(retention.append(&entries(1, 16)), 16_000);
        assert_eq!(retention.floor(), Index(0));
        retention.append(&entries(17, 50));
        assert_eq!(retention.floor(), Index(34));
    }

    #[test]
    fn entries_that_are_replaced_do_not_count() {
        let mut retention = Retention::new(16_000);
        for _ in 0..10 {
            retention.append(&entries(1, 16));
        }
        assert_eq!(retention.floor(), Index(0));
    }
}
