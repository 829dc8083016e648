//! If two logs have an entry of the same index and term, they are the same up to
//! there (Raft paper, figure 3): such entries are equal and follow equal ones.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::{
    sim::log::Appended,
    types::{GroupId, Index, NodeId, Term},
};

#[derive(Default)]
pub(in crate::sim) struct LogMatching {
    /// For each entry the term of the one before and a hash of its payload.
    entries: BTreeMap<(GroupId, Index, Term), (Term, u64)>,
}

impl LogMatching {
    pub(in crate::sim) fn check(&mut self, node: NodeId, appended: &Appended) {
        let mut before = appended.before;
        for entry in &appended.entries {
            let mut hasher = DefaultHasher::new();
            entry.payload().hash(&mut hasher);
            let seen = (before, hasher.finish());
            let place = (appended.group, entry.index(), entry.term());
            let first = *self.entries.entry(place).or_insert(seen);
            assert_eq!(
                first, seen,
                "node {node} has another entry at {place:?} than a log that should match"
            );
            before = entry.term();
        }
    }
}
