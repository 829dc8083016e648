//! A message queue: a message that was received is hidden until a deadline, and comes again unless it
//! was acknowledged by then.
//!
//! [`protocol`] has the commands and queries, which are JSON; [`Messages`] is what they mean. See
//! `README.md` for what is promised.

mod machine;
pub mod protocol;

pub use machine::Messages;

raft_kv_sdk::plugin!(raft_kv_sdk::Typed<Messages>, name: "queue");
