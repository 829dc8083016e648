//! How a key finds its slot: the same rule for the nodes and for clients that ask
//! the leaders themselves.

use xxhash_rust::xxh3::xxh3_64;

/// The part of a key that decides where it lives: what stands between the first
/// `{` and the next `}`, unless that is nothing, else the whole key.
///
/// The same rule as Redis Cluster's hash tags.
pub fn routing_key(key: &[u8]) -> &[u8] {
    let tag = || {
        let open = key.iter().position(|byte| *byte == b'{')?;
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    };
    tag().unwrap_or(key)
}

/// The slot a key lives in, of `slots` in all, which is not 0.
pub fn slot_of(key: &[u8], slots: u32) -> u32 {
    (xxh3_64(routing_key(key)) % u64::from(slots)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_routes_alone() {
        assert_eq!(routing_key(b"user:{42}:name"), b"42");
        assert_eq!(slot_of(b"a{42}", 256), slot_of(b"b{42}c", 256));
        assert_eq!(routing_key(b"{a}{b}"), b"a");
        assert_eq!(routing_key(b"a}b{c}"), b"c");
    }

    #[test]
    fn an_empty_or_open_tag_is_no_tag() {
        assert_eq!(routing_key(b"a{}b"), b"a{}b");
        assert_eq!(routing_key(b"a{b"), b"a{b");
        assert_eq!(routing_key(b""), b"");
    }

    #[test]
    fn slots_stay_the_same_for_ever() {
        // Data on disk depends on it. The hash of nothing is xxHash's own test vector.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(slot_of(b"", 256), 0xc2);
    }
}
