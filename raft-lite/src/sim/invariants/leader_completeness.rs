//! A leader's log holds all that was committed in earlier terms (Raft paper,
//! figure 3).

use super::CommittedStays;
use crate::{
    shared::GroupStatus,
    sim::log::SimLog,
    types::{Index, NodeId},
};

impl CommittedStays {
    /// To be called when a leader is seen for the first time.
    pub(in crate::sim) fn check_leader(&self, node: NodeId, status: &GroupStatus, log: &SimLog) {
        let group = status.group;
        let all = (group, Index(0))..=(group, Index(u64::MAX));
        let earlier = |(_, term): &(_, &_)| **term < status.term;
        let Some(((_, index), term)) = self.terms.range(all).rev().find(earlier) else { return };
        let held = log.term_at(group, *index);
        // What a log no longer holds was applied.
        let is_truncated = held.is_none() && status.applied >= *index;
        assert!(
            held == Some(*term) || is_truncated,
            "node {node} leads group {group} in term {} without the entry committed at index \
             {index} in term {term}; it has {held:?} there",
            status.term
        );
    }
}
