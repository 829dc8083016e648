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

/// The answer to a command or a query: any bytes, made from what one has with `into()`.
///
/// A [`Buffer`] that came from the context becomes the response without a copy.
#[derive(Debug)]
pub struct Response(Option<Buffer>);

impl Response {
    /// A response of no bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self(None)
    }

    /// The bytes of the response.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |buffer| buffer)
    }

    /// The bytes of the response, as a vector that the caller keeps.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0.map_or_else(Vec::new, Buffer::into_vec)
    }
}

impl From<Buffer> for Response {
    fn from(buffer: Buffer) -> Self {
        Self(Some(buffer))
    }
}

impl From<Vec<u8>> for Response {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Some(bytes.into()))
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&[u8]> for Response {
    fn from(bytes: &[u8]) -> Self {
        Self(Some(bytes.into()))
    }
}

impl<const N: usize> From<[u8; N]> for Response {
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
