//! State machines whose commands are types instead of bytes.
//!
//! A [`TypedMachine`] says what a command means, its [`Format`](TypedMachine::Format) how it is written.
//! [`Typed`] makes a [`StateMachine`] of the two.
//!
//! The types are read and written on every replica, so they must be deterministic: no `HashMap` in a
//! reply, whose order is nobody's, but a `BTreeMap`.

use std::marker::PhantomData;

use crate::{Context, Failure, Migrate, Migration, QueryContext, Response, StateMachine, codes};

/// Reads `T` from bytes in some format.
pub trait Decode<T> {
    /// Reads a whole message.
    ///
    /// # Errors
    /// What is the matter with it, in words for people.
    fn decode(bytes: &[u8]) -> Result<T, String>;
}

/// Writes `T` in some format.
pub trait Encode<T> {
    /// Appends a whole message to `bytes`.
    ///
    /// # Errors
    /// Why it has no form in this format, in words for people.
    fn encode(message: &T, bytes: &mut Vec<u8>) -> Result<(), String>;
}

/// A replicated state machine with typed commands and queries; [`Typed`] makes a plugin of it.
///
/// All that is said of a [`StateMachine`] holds here too.
///
/// ```
/// # #[cfg(feature = "json")]
/// # {
/// use raft_kv_sdk::storage::Counter;
/// use raft_kv_sdk::{Context, Failure, Json, QueryContext, Typed, TypedMachine};
///
/// #[derive(serde::Deserialize, serde::Serialize)]
/// struct Visit {
///     by: u64,
/// }
///
/// const TOTAL: Counter = Counter::new("total");
///
/// struct Visits;
///
/// impl TypedMachine for Visits {
///     type Format = Json;
///     type Command = Visit;
///     type Reply = u64;
///     type Query = ();
///     type Answer = u64;
///
///     fn apply(context: &Context<'_>, command: Visit) -> Result<u64, Failure> {
///         TOTAL.add(context, command.by)
///     }
///
///     fn query(context: &QueryContext<'_>, _: ()) -> Result<u64, Failure> {
///         TOTAL.get(context)
///     }
/// }
///
/// raft_kv_sdk::plugin!(Typed<Visits>, name: "visits");
///
/// let mut host = raft_kv_sdk::testing::TestHost::<Typed<Visits>>::new();
/// assert_eq!(host.apply(br#"{"by": 2}"#), Ok(b"2".to_vec()));
/// assert_eq!(host.send(&Visit { by: 3 }), Ok(5));
/// assert_eq!(host.apply(b"{}").unwrap_err().code, raft_kv_sdk::codes::MALFORMED);
/// # }
/// ```
pub trait TypedMachine {
    /// How messages are written: `Json`, `Prost`, or a format of one's
    /// own.
    type Format: Decode<Self::Command>
        + Decode<Self::Query>
        + Encode<Self::Reply>
        + Encode<Self::Answer>;
    /// What changes the state.
    type Command;
    /// What a command answers.
    type Reply;
    /// What is asked.
    type Query;
    /// What a query answers.
    type Answer;

    /// Carries out one command of the log.
    ///
    /// # Errors
    /// Why it was refused; its writes are dropped.
    fn apply(context: &Context<'_>, command: Self::Command) -> Result<Self::Reply, Failure>;

    /// Answers a read.
    ///
    /// # Errors
    /// Why it was refused.
    fn query(context: &QueryContext<'_>, query: Self::Query) -> Result<Self::Answer, Failure>;
}

/// The [`StateMachine`] that a [`TypedMachine`] makes.
///
/// A command or query that cannot be read fails with [`codes::MALFORMED`] and the parser's message; a
/// reply or answer that cannot be written, with [`codes::UNWRITABLE`].
pub struct Typed<M>(PhantomData<fn() -> M>);

impl<M: TypedMachine> StateMachine for Typed<M> {
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
        let reply = M::apply(context, read::<M::Format, _>(command)?)?;
        write::<M::Format, _>(&reply)
    }

    fn query(context: &QueryContext<'_>, request: &[u8]) -> Result<Response, Failure> {
        let answer = M::query(context, read::<M::Format, _>(request)?)?;
        write::<M::Format, _>(&answer)
    }
}

impl<M: Migrate> Migrate for Typed<M> {
    fn migrate(context: &Context<'_>, migration: &Migration<'_>) -> Result<(), Failure> {
        M::migrate(context, migration)
    }
}

fn read<F: Decode<T>, T>(bytes: &[u8]) -> Result<T, Failure> {
    F::decode(bytes).map_err(|message| Failure::new(codes::MALFORMED, message))
}

fn write<F: Encode<T>, T>(message: &T) -> Result<Response, Failure> {
    let mut bytes = crate::Buffer::new();
    match F::encode(message, &mut bytes) {
        Ok(()) => Ok(bytes.into()),
        Err(message) => Err(Failure::new(codes::UNWRITABLE, message)),
    }
}
