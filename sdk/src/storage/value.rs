//! How values are written.

use super::{Key, KeyBytes};
use crate::Buffer;

/// What can be stored as a value. The whole of the stored bytes is the value.
///
/// | type | bytes |
/// |---|---|
/// | numbers | big-endian, signed ones in two's complement |
/// | `bool` | `0x00` or `0x01` |
/// | strings, bytes, `[u8; N]` | as they are |
/// | `()` | none |
/// | tuples of two to four keys | as the [`Key`] that they are |
/// | `Json<T>`, `Prost<T>` | the message in that format; features `json` and `prost` |
pub trait Value: Sized {
    /// Appends the value to `bytes`.
    ///
    /// # Errors
    /// Why it cannot be written, in words for people.
    fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String>;

    /// Reads the value.
    ///
    /// # Errors
    /// What is the matter with the bytes, in words for people.
    fn decode_value(bytes: &[u8]) -> Result<Self, String>;
}

fn wrong(what: &str, bytes: &[u8]) -> String {
    format!("{} bytes that are no {what}", bytes.len())
}

macro_rules! number_values {
    ($($number:ty)*) => {$(
        impl Value for $number {
            fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
                bytes.extend_from_slice(&self.to_be_bytes());
                Ok(())
            }

            fn decode_value(bytes: &[u8]) -> Result<Self, String> {
                let number = bytes.try_into().map_err(|_| wrong(stringify!($number), bytes))?;
                Ok(Self::from_be_bytes(number))
            }
        }
    )*};
}

number_values! { u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 }

impl Value for bool {
    fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
        bytes.push(u8::from(*self));
        Ok(())
    }

    fn decode_value(bytes: &[u8]) -> Result<Self, String> {
        match bytes {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(wrong("bool", bytes)),
        }
    }
}

impl Value for () {
    fn encode_value(&self, _bytes: &mut Vec<u8>) -> Result<(), String> {
        Ok(())
    }

    fn decode_value(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() { Ok(()) } else { Err(wrong("empty value", bytes)) }
    }
}

impl Value for String {
    fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
        bytes.extend_from_slice(self.as_bytes());
        Ok(())
    }

    fn decode_value(bytes: &[u8]) -> Result<Self, String> {
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| wrong("UTF-8 text", bytes))
    }
}

macro_rules! bytes_values {
    ($($bytes:ty)*) => {$(
        impl Value for $bytes {
            fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
                bytes.extend_from_slice(self);
                Ok(())
            }

            fn decode_value(bytes: &[u8]) -> Result<Self, String> {
                Ok(bytes.into())
            }
        }
    )*};
}

bytes_values! { Vec<u8> Buffer }

impl<const N: usize> Value for [u8; N] {
    fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
        bytes.extend_from_slice(self);
        Ok(())
    }

    fn decode_value(bytes: &[u8]) -> Result<Self, String> {
        bytes.try_into().map_err(|_| wrong("array of their length", bytes))
    }
}

macro_rules! tuple_values {
    ($(($($element:ident),*))*) => {$(
        impl<$($element: Key),*> Value for ($($element,)*) {
            fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
                self.encode_key(bytes);
                Ok(())
            }

            fn decode_value(bytes: &[u8]) -> Result<Self, String> {
                let mut rest = bytes;
                match Self::decode_key(&mut rest) {
                    Some(tuple) if rest.is_empty() => Ok(tuple),
                    _ => Err(wrong("tuple of this type", bytes)),
                }
            }
        }
    )*};
}

tuple_values! { (A, B) (A, B, C) (A, B, C, D) }

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::Value;

    fn check<V: Value + PartialEq + Debug>(value: &V, expected: &[u8]) {
        let mut bytes = Vec::new();
        value.encode_value(&mut bytes).expect("it can be written");
        assert_eq!(bytes, expected);
        assert_eq!(V::decode_value(&bytes).as_ref(), Ok(value));
    }

    #[test]
    fn the_bytes_are_those_that_are_documented() {
        check(&0x0102_u16, &[1, 2]);
        check(&-2_i16, &[0xFF, 0xFE]);
        check(&true, &[1]);
        check(&(), b"");
        check(&"a\0".to_owned(), b"a\0");
        check(&vec![0_u8, 255], b"\0\xff");
        check(&[1_u8, 2, 3], &[1, 2, 3]);
        check(&("a".to_owned(), 7_u8), b"a\0\x01\x07");
    }

    #[test]
    fn what_is_no_such_value_is_refused() {
        assert_eq!(u32::decode_value(b"abc"), Err("3 bytes that are no u32".to_owned()));
        assert!(bool::decode_value(b"\x02").is_err());
        assert!(<()>::decode_value(b"x").is_err());
        assert!(String::decode_value(b"\xff").is_err());
        assert!(<[u8; 2]>::decode_value(b"abc").is_err());
        assert!(<(u8, u8)>::decode_value(b"abc").is_err());
    }
}
