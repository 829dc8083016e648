//! The sizes the ABI sets. A call beyond them ends the command as a `bad call`.

/// Longest key, in bytes: the 65,535 of a user's key and room for a plugin's own prefix.
pub const MAX_KEY_LEN: usize = 65_535 + 32;

/// Longest value, in bytes: 9 MiB.
pub const MAX_VALUE_LEN: usize = 9 * 1024 * 1024;

/// How many scans a command may have open at once.
pub const MAX_OPEN_SCANS: usize = 16;
