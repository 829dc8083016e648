//! The bytes of commands, queries and responses. All integers are little-endian.
//!
//! | | tag | then |
//! |---|---|---|
//! | [`Command::Put`] | 1 | `flags u8` (bit 0: expected version present), [`expected u64`], `key_len u32`, key, value = rest |
//! | [`Command::Delete`] | 2 | key = rest |
//! | [`Query::Get`] | 16 | key = rest |
//! | [`Query::Scan`] | 17 | `flags u8` (bit 0: has after), `max_rows u32`, `max_bytes u32`, `prefix_len u32`, prefix, after = rest |
//!
//! | response to | bytes |
//! |---|---|
//! | put | `version u64` |
//! | delete | `existed u8` |
//! | get | nothing if there is no value, else `version u64`, value |
//! | scan | `more u8`, then for each row `key_len u32`, `value_len u32`, `version u64`, key, value |
//!
//! Commands and queries are in the log and on the wire between nodes of different ages: a tag or a
//! flag never changes its meaning.

mod malformed;
mod reader;
mod request;
mod response;
#[cfg(test)]
mod tests;
pub mod version;

pub use malformed::Malformed;
pub use request::{Command, Put, Query, Scan};
pub use response::{Found, PageRow, PageWriter, ScanPage, decode_delete, decode_get, decode_put};

/// The codes that commands and queries fail with.
pub mod failure {
    /// A compare-and-put found another version than it expected. Nothing was written.
    pub const VERSION_MISMATCH: u32 = 1;
    /// The command or query does not follow the format.
    pub const MALFORMED: u32 = 2;
    /// The slot holds data that this plugin did not write.
    pub const FOREIGN_VALUE: u32 = 3;
    /// The put stands too far back in its entry to get a version of its own; the host merged too many
    /// commands. Nothing was written.
    pub const ENTRY_TOO_LONG: u32 = 4;
}
