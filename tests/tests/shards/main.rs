//! Clusters that change while they serve: shards that are made, split, merged, moved and
//! deleted, nodes that come and go, and crashes in the middle of all that.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod admin;
mod nodes;
mod points;
mod refusals;
mod scan;
mod support;
