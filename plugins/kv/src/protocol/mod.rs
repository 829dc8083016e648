//! The bytes of commands, queries and responses. All integers are little-endian.
//!
//! | | tag | then |
//! |---|---|---|
//! | [`Command::Put`] | 1 | `flags u8` (bit 0: expected version present, bit 1: time to live present), [`expected u64`], [`ttl_ms u64`], `key_len u32`, key, value = rest |
//! | [`Command::Delete`] | 2 | key = rest |
//! | the same, if the key has a version | 3 | `expected u64`, key = rest |
//! | [`Command::Increment`] | 4 | `delta i64`, key = rest |
//! | [`Command::Atomic`] | 5 | `compares_len u32`, compares, operations = rest |
//! | [`Query::Get`] | 16 | key = rest |
//! | [`Query::Scan`] | 17 | `flags u8` (bit 0: has after), `max_rows u32`, `max_bytes u32`, `prefix_len u32`, prefix, after = rest |
//! | [`Query::Expiring`] | 18 | `until_ms u64` |
//!
//! Each compare of an atomic command is `condition u8` (0: the key exists, 1: it has the version),
//! `version u64`, `key_len u32`, key; each operation `len u32` and the bytes of a put, a delete, an
//! increment or a get.
//!
//! | response to | bytes |
//! |---|---|
//! | put | `version u64` |
//! | delete | `existed u8` |
//! | increment | `version u64`, `value i64` |
//! | atomic | `1 u8`, then for each operation `len u32` and the response to it; or, if a compare failed, `0 u8`, `compare u32`, `version u64` found |
//! | get | nothing if there is no value, else `version u64`, value; if the highest bit of the version is set, `ttl_ms u64` lies between the two |
//! | scan | `more u8`, then for each row `key_len u32`, `value_len u32`, `version u64`, key, value |
//! | expiring | `u8` |
//!
//! Commands and queries are in the log and on the wire between nodes of different ages: a tag or a
//! flag never changes its meaning. Version 0.1.0 of the plugin knows the tags 1, 2, 16 and 17, the
//! first flag of each, and no version whose highest bit is set.

mod atomic;
mod malformed;
mod reader;
mod request;
mod response;
#[cfg(test)]
mod tests;
pub mod version;

pub use atomic::{Atomic, AtomicOperation, AtomicOutcome, Compare, Condition, decode_atomic};
pub use malformed::Malformed;
pub use request::{Command, Put, Query, Scan};
pub(crate) use response::HAS_TIME;
pub use response::{
    Found, Incremented, PageRow, PageWriter, ScanPage, decode_delete, decode_expiring, decode_get,
    decode_increment, decode_put,
};

/// The codes that commands and queries fail with.
pub mod failure {
    /// A put or delete found another version than it expected. Nothing was written.
    pub const VERSION_MISMATCH: u32 = 1;
    /// The command or query does not follow the format.
    pub const MALFORMED: u32 = 2;
    /// The slot holds data that this plugin did not write.
    pub const FOREIGN_VALUE: u32 = 3;
    /// The put stands too far back in its entry to get a version of its own; the host merged too many
    /// commands. Nothing was written.
    pub const ENTRY_TOO_LONG: u32 = 4;
    /// The value to be incremented is not the decimal text of a signed 64-bit number. Nothing was
    /// written.
    pub const NOT_A_NUMBER: u32 = 5;
    /// The incremented number would not fit into 64 bits. Nothing was written.
    pub const OVERFLOW: u32 = 6;
    /// What the gets of an atomic command found is too much for one response. Nothing was written.
    pub const RESPONSE_TOO_LARGE: u32 = 7;
}
