//! Plugins that come into a running cluster, are switched to and away from under load, and misbehave.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod crashes;
mod guard;
mod life;
mod module;
mod random;
mod refusals;
mod support;
