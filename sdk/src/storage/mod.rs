//! Typed collections in the storage of a slot: [`Map`], [`Index`], [`Queue`] and [`Counter`].
//!
//! A collection is a constant with a name; what it holds is in the host's storage:
//!
//! ```
//! use raft_kv_sdk::storage::{Index, Map};
//! use raft_kv_sdk::{Context, Failure};
//!
//! const OWNERS: Map<String, String> = Map::new("owners");
//! const BY_OWNER: Index<String, String> = Index::new("by-owner");
//!
//! fn give(context: &Context<'_>, thing: &str, owner: &str) -> Result<(), Failure> {
//!     if let Some(before) = OWNERS.get(context, thing)? {
//!         BY_OWNER.remove(context, &before, thing)?;
//!     }
//!     OWNERS.put(context, thing, &owner.to_owned())?;
//!     BY_OWNER.insert(context, owner, thing)
//! }
//! ```
//!
//! # Layout
//!
//! The layouts are part of what a plugin leaves behind for its next version, so they never change:
//!
//! | collection | key | value |
//! |---|---|---|
//! | [`Map`] | `0x01`, name, key | value |
//! | [`Counter`] | `0x02`, name | `u64` |
//! | [`Index`] | `0x03`, name, sort key, item | nothing |
//! | [`Queue`] | `0x04`, name | `u64` position of the first item, `u64` position behind the last one |
//! | [`Queue`] | `0x04`, name, `u64` position | item |
//!
//! The name is encoded as the [`Key`] that its string is, so that no name is the beginning of another.
//! Two collections of one kind must have different names; of different kinds, they may share one. A
//! plugin that also writes keys by itself keeps out of the way by not beginning them with these bytes.
//! Numbers are big-endian; [`Key`] and [`Value`] say how the rest is written.
//!
//! # Failures
//!
//! All methods fail with [`codes::TOO_LONG`](crate::codes::TOO_LONG) if the key or the value is too long
//! to be stored, with [`codes::UNREADABLE`](crate::codes::UNREADABLE) if what is stored is not in the
//! layout above.

mod counter;
mod index;
mod key;
mod map;
mod queue;
mod range;
mod space;
mod value;

pub use counter::Counter;
pub use index::Index;
pub use key::{Key, KeyBytes};
pub use map::Map;
pub use queue::Queue;
pub use range::{Entries, Range};
pub use value::Value;
