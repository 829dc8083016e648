//! The failure codes that the SDK itself uses: 1,000,001 and up, to 1,000,999. All other codes are the
//! plugin's own.

/// The command or query could not be parsed. The message is the parser's.
pub const MALFORMED: u32 = 1_000_001;

/// A stored key or value is not in the layout of the helper that reads it: another plugin, or another
/// version of this one, wrote it.
pub const UNREADABLE: u32 = 1_000_002;

/// A counter would leave the range of a `u64`.
pub const OVERFLOW: u32 = 1_000_003;

/// A key is longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN), or a value longer than
/// [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN), prefix included.
pub const TOO_LONG: u32 = 1_000_004;

/// A reply or a value has no form in the format it is to be written in, such as a map in JSON whose
/// keys are no strings.
pub const UNWRITABLE: u32 = 1_000_005;
