//! Plugins written by hand, mostly hostile ones, against a storage in memory.

mod batching;
mod behaviour;
mod costs;
mod failures;
mod hostile;
mod hostile_commands;
mod recursion;
mod refusals;
pub(crate) mod support;
