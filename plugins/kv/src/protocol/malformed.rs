//! What can be wrong with encoded bytes.

use std::fmt;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end within this part.
    Truncated(&'static str),
    /// The first byte names no command, or no query, that this version knows.
    UnknownTag(u8),
    /// Flags are set that this version does not know.
    UnknownFlags(u8),
    /// The bytes go on after the end of this.
    Trailing(&'static str),
    /// A byte that must be 0 or 1 is neither.
    NotABool(u8),
    /// The byte names no condition that this version knows.
    UnknownCondition(u8),
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(part) => write!(formatter, "the bytes end within the {part}"),
            Self::UnknownTag(tag) => write!(formatter, "unknown tag {tag}"),
            Self::UnknownFlags(flags) => write!(formatter, "unknown flags {flags:#04x}"),
            Self::Trailing(what) => write!(formatter, "there are bytes after the {what}"),
            Self::NotABool(byte) => write!(formatter, "{byte} is neither 0 nor 1"),
            Self::UnknownCondition(kind) => write!(formatter, "unknown condition {kind}"),
        }
    }
}

impl std::error::Error for Malformed {}
