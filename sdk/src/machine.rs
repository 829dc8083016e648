//! What a plugin is: a [`StateMachine`] that turns commands into [`Response`]s or [`Failure`]s.

use crate::{Buffer, Context, QueryContext};

/// A replicated state machine.
///
/// There is no `self`: all state is in the host's storage, reached through the context, so that an
/// instance can be thrown away, and a shard moved, at any time.
///
/// - **Deterministic.** The same stored data, context and command give the same writes and the same
///   response on every replica. Within WebAssembly nothing else is in reach; take care only that the
///   outcome does not hang on a `static` or `thread_local`, which may or may not survive a command.
/// - **All or nothing.** The writes of a command that fails or panics are dropped; the failure is its
///   recorded result, and the log goes on.
/// - **One slot.** A command sees the keys of its own slot only: those written by commands whose
///   routing key falls into the same slot.
pub trait StateMachine {
    /// Carries out one command of the log.
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure>;

    /// Answers a read. It cannot write: [`QueryContext`] has no way to.
    fn query(context: &QueryContext<'_>, request: &[u8]) -> Result<Response, Failure>;
}

/// How the state that another version left is carried over.
///
/// A plugin that changes what it stores says so with `plugin!(Machine, migrate)`, and is then asked,
/// slot by slot, when a shard is switched to it or away from it:
///
/// - from an older version of the plugin to this one, or from a plugin of another name;
/// - from this version back to an older one, which knows nothing of what came after it.
///
/// All slots of a shard are carried over at one index of its log, with the switch itself, or the shard
/// stays as it is. There is a limit on the rows, bytes and fuel of one switch (see the ABI).
///
/// ```
/// use raft_kv_sdk::{Context, Failure, Migrate, Migration};
/// # struct Counter;
///
/// impl Migrate for Counter {
///     fn migrate(context: &Context<'_>, migration: &Migration<'_>) -> Result<(), Failure> {
///         let (old, new) = (&b"count"[..], &b"total"[..]);
///         let (from, to) = if migration.is_upgrade { (old, new) } else { (new, old) };
///         if let Some(value) = context.get(from) {
///             context.put(to, &value);
///             context.delete(from);
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Migrate {
    /// Carries one slot over.
    ///
    /// # Errors
    /// Why it cannot be: the whole shard then stays with the version that it has.
    fn migrate(context: &Context<'_>, migration: &Migration<'_>) -> Result<(), Failure>;
}

/// Between which versions state is carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration<'a> {
    /// Whether the state is to become this version's, as against an older one's.
    pub is_upgrade: bool,
    /// Name of the plugin that the state is of.
    pub from_name: &'a str,
    /// Its version.
    pub from_version: &'a str,
    /// Name of the plugin that it is to be of.
    pub to_name: &'a str,
    /// Its version.
    pub to_version: &'a str,
}

impl<'a> Migration<'a> {
    /// The command that the host gives to `migrate`: lines `key=value`.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn request(&self) -> String {
        let direction = if self.is_upgrade { "up" } else { "down" };
        format!(
            "direction={direction}\nfrom-name={}\nfrom-version={}\nto-name={}\nto-version={}\n",
            self.from_name, self.from_version, self.to_name, self.to_version
        )
    }

    /// Reads the command that the host gives to `migrate`.
    #[doc(hidden)]
    #[must_use]
    pub fn parse(command: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(command).ok()?;
        let value =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Some(Self {
            is_upgrade: match value("direction")? {
                "up" => true,
                "down" => false,
                _ => return None,
            },
            from_name: value("from-name")?,
            from_version: value("from-version")?,
            to_name: value("to-name")?,
            to_version: value("to-version")?,
        })
    }
}

/// The answer to a command or a query: any bytes, made from what one has with `into()`.
///
/// A [`Buffer`] that came from the context becomes the response without a copy.
#[derive(Debug)]
pub struct Response(Bytes);

/// Most bytes of a response that are kept without a buffer: a few numbers.
const SHORT_LEN: usize = 24;

#[derive(Debug)]
enum Bytes {
    Short { bytes: [u8; SHORT_LEN], len: usize },
    Long(Buffer),
}

impl Response {
    /// A response of no bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Bytes::Short { bytes: [0; SHORT_LEN], len: 0 })
    }

    /// The bytes of the response.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { bytes, len } => bytes.get(..*len).unwrap_or_default(),
            Bytes::Long(buffer) => buffer,
        }
    }

    /// The bytes of the response, as a vector that the caller keeps.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Bytes::Short { .. } => self.as_bytes().to_vec(),
            Bytes::Long(buffer) => buffer.into_vec(),
        }
    }
}

impl From<Buffer> for Response {
    fn from(buffer: Buffer) -> Self {
        Self(Bytes::Long(buffer))
    }
}

impl From<Vec<u8>> for Response {
    fn from(bytes: Vec<u8>) -> Self {
        Buffer::from(bytes).into()
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&[u8]> for Response {
    #[inline]
    fn from(bytes: &[u8]) -> Self {
        let mut short = [0; SHORT_LEN];
        match short.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Self(Bytes::Short { bytes: short, len: bytes.len() })
            }
            None => Buffer::from(bytes).into(),
        }
    }
}

impl<const N: usize> From<[u8; N]> for Response {
    #[inline]
    fn from(bytes: [u8; N]) -> Self {
        bytes[..].into()
    }
}

impl<const N: usize> From<&[u8; N]> for Response {
    fn from(bytes: &[u8; N]) -> Self {
        bytes[..].into()
    }
}

impl From<&str> for Response {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

/// Why a command or a query was refused. It reaches the caller as it is; the command's writes are
/// dropped.
///
/// A failure is an ordinary outcome, recorded on every replica. For what cannot happen, panic: the
/// text of the panic reaches the caller too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The plugin's own code, for programs.
    pub code: u32,
    /// What is the matter, for people.
    pub message: String,
}

impl Failure {
    /// A failure with the plugin's own `code` and a message for people.
    #[must_use]
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} (code {})", self.message, self.code)
    }
}

impl std::error::Error for Failure {}
