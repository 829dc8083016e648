//! Plugins that misbehave: each failure is its own command's, named, and the
//! same on every replay. Everything else goes on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod failures;
mod foreign;
mod module;
mod older;
mod replay;
