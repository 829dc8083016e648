//! How keys are written: so that the order of the bytes is the order of the keys, and no key is the
//! beginning of another, which lets one stand before the next in a tuple.

/// Ends a string or bytes within a key.
const END: [u8; 2] = [0x00, 0x01];

/// Stands for a zero byte of a string or bytes, which so stays above [`END`].
const ZERO: [u8; 2] = [0x00, 0xFF];

/// What can be written as a key, borrowed forms such as `str` included.
///
/// | type | bytes |
/// |---|---|
/// | `u8` … `u128` | big-endian |
/// | `i8` … `i128` | big-endian, the sign bit flipped |
/// | `bool` | `0x00` or `0x01` |
/// | strings, bytes | as they are, each `0x00` as `0x00 0xFF`; then `0x00 0x01` |
/// | `[u8; N]` | as they are |
/// | tuples of two to four | one element after the other |
///
/// An implementation of one's own must write different keys differently, none of them the beginning
/// of another.
pub trait KeyBytes {
    /// Appends the key to `bytes`.
    fn encode_key(&self, bytes: &mut Vec<u8>);
}

/// A key that can be read back from its [bytes](KeyBytes).
pub trait Key: KeyBytes + Sized {
    /// The first element of a tuple; of any other key, the key itself. Scans are narrowed by it.
    type First: Key;

    /// Takes the key off the front of `bytes`; `None` if they are not such a key.
    fn decode_key(bytes: &mut &[u8]) -> Option<Self>;
}

impl<T: KeyBytes + ?Sized> KeyBytes for &T {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        (**self).encode_key(bytes);
    }
}

macro_rules! number_keys {
    ($($number:ty, $flip:expr;)*) => {$(
        impl KeyBytes for $number {
            fn encode_key(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&(self ^ $flip).to_be_bytes());
            }
        }

        impl Key for $number {
            type First = Self;

            fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
                let number = bytes.split_off(..size_of::<Self>())?;
                Some(Self::from_be_bytes(number.try_into().ok()?) ^ $flip)
            }
        }
    )*};
}

number_keys! {
    u8, 0; u16, 0; u32, 0; u64, 0; u128, 0;
    i8, i8::MIN; i16, i16::MIN; i32, i32::MIN; i64, i64::MIN; i128, i128::MIN;
}

impl KeyBytes for bool {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(*self));
    }
}

impl Key for bool {
    type First = Self;

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        match bytes.split_off_first()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl KeyBytes for [u8] {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        for &byte in self {
            match byte {
                0 => bytes.extend_from_slice(&ZERO),
                _ => bytes.push(byte),
            }
        }
        bytes.extend_from_slice(&END);
    }
}

impl KeyBytes for Vec<u8> {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        self.as_slice().encode_key(bytes);
    }
}

impl Key for Vec<u8> {
    type First = Self;

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        let mut key = Self::new();
        loop {
            match bytes.split_off_first()? {
                0 => match [0, *bytes.split_off_first()?] {
                    END => return Some(key),
                    ZERO => key.push(0),
                    _ => return None,
                },
                byte => key.push(*byte),
            }
        }
    }
}

impl KeyBytes for str {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        self.as_bytes().encode_key(bytes);
    }
}

impl KeyBytes for String {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        self.as_bytes().encode_key(bytes);
    }
}

impl Key for String {
    type First = Self;

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(Vec::decode_key(bytes)?).ok()
    }
}

impl<const N: usize> KeyBytes for [u8; N] {
    fn encode_key(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

impl<const N: usize> Key for [u8; N] {
    type First = Self;

    fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
        bytes.split_off(..N)?.try_into().ok()
    }
}

macro_rules! tuple_keys {
    ($($first:ident $($rest:ident)*;)*) => {$(
        impl<$first: KeyBytes, $($rest: KeyBytes),*> KeyBytes for ($first, $($rest),*) {
            #[allow(non_snake_case, reason = "the elements are named after their types")]
            fn encode_key(&self, bytes: &mut Vec<u8>) {
                let ($first, $($rest),*) = self;
                $first.encode_key(bytes);
                $($rest.encode_key(bytes);)*
            }
        }

        impl<$first: Key, $($rest: Key),*> Key for ($first, $($rest),*) {
            type First = $first;

            fn decode_key(bytes: &mut &[u8]) -> Option<Self> {
                Some(($first::decode_key(bytes)?, $($rest::decode_key(bytes)?),*))
            }
        }
    )*};
}

tuple_keys! { A B; A B C; A B C D; }

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::Key;

    /// Checks that `keys`, which ascend, do so as bytes, can be read back, and that none begins with
    /// another.
    fn check<K: Key + PartialEq + Debug>(keys: &[K]) {
        let encoded: Vec<Vec<u8>> = keys.iter().map(encode).collect();
        for (key, bytes) in keys.iter().zip(&encoded) {
            let mut rest = bytes.as_slice();
            assert_eq!(K::decode_key(&mut rest).as_ref(), Some(key));
            assert!(rest.is_empty(), "{key:?}");
            for cut in 0..bytes.len() {
                assert_eq!(K::decode_key(&mut &bytes[..cut]), None, "{key:?} cut at {cut}");
            }
        }
        for pair in encoded.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
            assert!(!pair[1].starts_with(&pair[0]), "{pair:?}");
        }
    }

    fn encode<K: Key>(key: &K) -> Vec<u8> {
        let mut bytes = Vec::new();
        key.encode_key(&mut bytes);
        bytes
    }

    #[test]
    fn numbers_are_in_order() {
        check(&[0_u8, 1, 255]);
        check(&[0_u16, 255, 256, u16::MAX]);
        check(&[0_u64, 1, 255, 256, u64::MAX]);
        check(&[0_u128, 1, u128::MAX]);
        check(&[i8::MIN, -1, 0, 1, i8::MAX]);
        check(&[i64::MIN, -256, -255, -1, 0, 1, 256, i64::MAX]);
        check(&[false, true]);
    }

    #[test]
    fn strings_and_bytes_are_in_order_whatever_they_hold() {
        let words =
            ["", "\0", "\0\0", "\0\u{1}", "\0a", "\u{1}", "a", "a\0", "a\0b", "ab", "b", "é"];
        check(&words.map(str::to_owned));
        let bytes: [&[u8]; 7] = [b"", b"\0", b"\0\x01", b"\0\xff", b"\x01", b"\xff", b"\xff\0"];
        check(&bytes.map(<[u8]>::to_vec));
        check(&[[0_u8, 0], [0, 1], [1, 0], [255, 255]]);
    }

    #[test]
    fn tuples_are_in_order_of_their_first_different_element() {
        let tuple = |word: &str, number: u16| (word.to_owned(), number);
        check(&[
            tuple("", 0),
            tuple("", u16::MAX),
            tuple("\0", 0),
            tuple("a", 0),
            tuple("a", 1),
            tuple("a", 0xFF00),
            tuple("a\0", 0),
            tuple("b", 0),
        ]);
        check(&[(-1_i32, true, 1_u8), (0, false, 2), (0, true, 1), (0, true, 2)]);
        check(&[(0_u8, 1_u8, String::new(), 0_u8), (0, 1, "a".to_owned(), 0)]);
    }

    #[test]
    fn the_bytes_are_those_that_are_documented() {
        assert_eq!(encode(&0x0102_u16), [1, 2]);
        assert_eq!(encode(&-1_i16), [0x7F, 0xFF]);
        assert_eq!(encode(&1_i16), [0x80, 1]);
        assert_eq!(encode(&"a\0b".to_owned()), *b"a\0\xffb\0\x01");
        assert_eq!(encode(&("a".to_owned(), 1_u8)), *b"a\0\x01\x01");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(bool::decode_key(&mut &[2][..]), None);
        assert_eq!(Vec::decode_key(&mut &b"a\0\x02"[..]), None);
        assert_eq!(String::decode_key(&mut &b"\xff\0\x01"[..]), None);
    }
}
