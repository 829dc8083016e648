//! The key-value store: RaftKV's default plugin, and the format it is spoken to in.
//!
//! [`protocol`] is pure encoding, used by this plugin and by whoever talks to it. [`KeyValue`] is the
//! state machine, written with the SDK alone. See `README.md` for what the store promises.

mod machine;
pub mod protocol;

pub use machine::KeyValue;

raft_kv_sdk::plugin!(KeyValue, name: "kv");
