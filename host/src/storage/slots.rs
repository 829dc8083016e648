//! Sets of slots, as sorted ranges with gaps between them.

use super::keys::{Slot, SlotRange};

/// The ranges in order, joined where they touch.
pub fn normalized(ranges: impl IntoIterator<Item = SlotRange>) -> Vec<SlotRange> {
    let mut ranges: Vec<SlotRange> =
        ranges.into_iter().filter(|range| range.start < range.end).collect();
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<SlotRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What is in `ranges` and not in `others`, both in order.
pub fn without(ranges: &[SlotRange], others: &[SlotRange]) -> Vec<SlotRange> {
    let mut left = Vec::new();
    for range in ranges {
        let mut start = range.start;
        for other in others.iter().filter(|other| other.start < range.end) {
            if other.end <= start {
                continue;
            }
            if start < other.start {
                left.push(SlotRange { start, end: other.start });
            }
            start = start.max(other.end);
        }
        if start < range.end {
            left.push(SlotRange { start, end: range.end });
        }
    }
    left
}

/// Whether some slot is in both.
pub fn overlap(ranges: &[SlotRange], others: &[SlotRange]) -> bool {
    ranges.iter().any(|a| others.iter().any(|b| a.start < b.end && b.start < a.end))
}

/// How many slots there are.
pub fn count(ranges: &[SlotRange]) -> u32 {
    ranges.iter().map(|range| range.end.0 - range.start.0).sum()
}

/// Cuts the ranges after so many slots.
pub fn split_at(ranges: &[SlotRange], slots: u32) -> (Vec<SlotRange>, Vec<SlotRange>) {
    let (mut head, mut tail, mut left) = (Vec::new(), Vec::new(), slots);
    for range in ranges {
        let taken = left.min(range.end.0 - range.start.0);
        let middle = Slot(range.start.0 + taken);
        head.push(SlotRange { start: range.start, end: middle });
        tail.push(SlotRange { start: middle, end: range.end });
        left -= taken;
    }
    (normalized(head), normalized(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u32, u32)]) -> Vec<SlotRange> {
        pairs.iter().map(|(a, b)| SlotRange { start: Slot(*a), end: Slot(*b) }).collect()
    }

    #[test]
    fn sets_are_what_their_slots_say() {
        let contains = |set: &[SlotRange], slot| set.iter().any(|range| range.contains(Slot(slot)));
        let sets = [&[][..], &[(0, 4)], &[(2, 3), (5, 8)], &[(0, 1), (1, 2), (7, 9)], &[(3, 3)]];
        for a in sets.map(ranges) {
            let a = normalized(a);
            for b in sets.map(ranges) {
                let b = normalized(b);
                let difference = without(&a, &b);
                let union = normalized(a.iter().chain(&b).copied());
                let mut common = false;
                for slot in 0..10 {
                    let (in_a, in_b) = (contains(&a, slot), contains(&b, slot));
                    assert_eq!(contains(&difference, slot), in_a && !in_b);
                    assert_eq!(contains(&union, slot), in_a || in_b);
                    common |= in_a && in_b;
                }
                assert_eq!(overlap(&a, &b), common);
                assert_eq!(normalized(difference.clone()), difference);
            }
            for cut in 0..6 {
                let (head, tail) = split_at(&a, cut);
                assert_eq!(count(&head), cut.min(count(&a)));
                assert_eq!(normalized(head.into_iter().chain(tail)), a);
            }
        }
    }
}
