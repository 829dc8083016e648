//! Locks: leases on replicated time, each with a fencing token.
//!
//! [`protocol`] has the commands and queries, which are JSON; [`Locks`] is what they mean. See `README.md`
//! for what is promised.

mod machine;
pub mod protocol;

pub use machine::Locks;

raft_kv_sdk::plugin!(raft_kv_sdk::Typed<Locks>, name: "lock");
