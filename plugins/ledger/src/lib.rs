//! A ledger: accounts, and transfers between them that neither make nor lose money, overdraw no
//! account, and happen once however often they are sent.
//!
//! [`protocol`] has the commands and queries, which are JSON; [`Ledger`] is what they mean. See
//! `README.md` for what is promised.

mod machine;
pub mod protocol;

pub use machine::Ledger;

raft_kv_sdk::plugin!(raft_kv_sdk::Typed<Ledger>, name: "ledger");
