//! A cursor over bytes to decode.

use super::Malformed;

/// Takes parts off the front of the bytes, each by the name that an error would give it.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn u8(&mut self, part: &'static str) -> Result<u8, Malformed> {
        let [byte] = self.array(part)?;
        Ok(byte)
    }

    pub(super) fn u32(&mut self, part: &'static str) -> Result<u32, Malformed> {
        self.array(part).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, part: &'static str) -> Result<u64, Malformed> {
        self.array(part).map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self, part: &'static str) -> Result<i64, Malformed> {
        self.array(part).map(i64::from_le_bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&mut self, len: u32, part: &'static str) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) =
            self.0.split_at_checked(len as usize).ok_or(Malformed::Truncated(part))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated(part))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

/// Refuses flags other than `known`, so that a new flag is never silently dropped by an old plugin.
pub(super) const fn check_flags(flags: u8, known: u8) -> Result<(), Malformed> {
    if flags & !known == 0 { Ok(()) } else { Err(Malformed::UnknownFlags(flags)) }
}
