//! Each place of a slot's data has one write, whichever group and node it came through:
//! two groups that took writes for a slot at the same time would both fill it. This is
//! state machine safety (Raft paper, figure 3) across groups.

use std::collections::BTreeMap;

use crate::sim::machine::{Place, Slot};

#[derive(Default)]
pub(in crate::sim) struct SlotAgreement {
    writes: BTreeMap<(Slot, Place), u64>,
}

impl SlotAgreement {
    pub(in crate::sim) fn check(&mut self, slot: Slot, place: Place, number: u64) {
        let first = *self.writes.entry((slot, place)).or_insert(number);
        assert_eq!(first, number, "slot {slot} has two writes at {place:?}");
    }

    /// All writes that took effect, and their places.
    pub(in crate::sim) fn all(&self) -> impl Iterator<Item = (Slot, Place, u64)> {
        self.writes.iter().map(|((slot, place), number)| (*slot, *place, *number))
    }
}
