//! Clusters of three real nodes: how they are born, what they survive, and that
//! nothing acknowledged is lost on the way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod birth;
mod counter;
mod disk;
mod doors;
mod expiry;
mod kills;
mod members;
mod once;
mod partitions;
mod pauses;
mod sleep;
mod strangers;
