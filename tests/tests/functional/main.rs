//! What clients can do, through each of the four doors: the client library,
//! gRPC, HTTP and the command line.
//!
//! Most tests share one node and keep to keys of their own; those that look at
//! all keys or at counters start one for themselves.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod admin;
mod atomic;
mod batch;
mod command_line;
mod compare_and_put;
mod doors;
mod expiry;
mod http_api;
mod increments;
mod introspection;
mod keys_and_values;
mod limits;
mod pipeline;
mod scan;
mod state_machine;
