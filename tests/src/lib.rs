//! What the behaviour tests share: nodes as real processes, and the doors to them.
//!
//! [`Node`] is a `raft-kv` process with a data folder and a port of its own. It
//! can be killed, stopped and started again on the same folder, and never
//! outlives the test. [`http`], [`grpc`] and [`cli`] are the doors besides the
//! client library. [`Cluster`] is several nodes, perhaps with a [`Proxy`] in each
//! link between two of them. [`Load`] writes without pause and knows afterwards
//! what must be there; [`History`] knows whether what clients saw is linearizable.
//!
//! The programs are built once for each test process, with the profile of the
//! running test. Environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `RAFTKV_TEST_PLUGIN` | plugin of every node whose test does not give its own |
//! | `RAFTKV_TEST_BINARIES` | folder of programs to test instead of building any |
//! | `RAFTKV_TEST_SEED` | seed of the tests that kill at random |

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod binaries;
pub mod cli;
mod cluster;
pub mod files;
pub mod grpc;
mod history;
pub mod http;
mod load;
mod node;
mod port;
mod proxy;
mod shared;
mod view;
mod wait;

pub use binaries::binary;
pub use cluster::{Cluster, ClusterOptions};
pub use history::History;
pub use load::{Load, LoadOptions, Tally};
pub use node::{Node, NodeOptions};
pub use port::ReservedPort;
pub use proxy::Proxy;
pub use rustix::process::Signal;
pub use shared::{SharedNode, shared_node};
pub use view::ClusterView;
pub use wait::{eventually, wait_for};

/// The generator of a test's random choices; its seed is printed, and taken
/// from the environment if it is given there.
///
/// # Panics
/// If what is given there is no number.
pub fn generator() -> rand::rngs::StdRng {
    let given = std::env::var("RAFTKV_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().expect("the seed is a number"));
    println!("to repeat the choices: RAFTKV_TEST_SEED={seed}");
    rand::SeedableRng::seed_from_u64(seed)
}

/// The folder of the workspace.
pub fn workspace() -> &'static std::path::Path {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate is in a folder of the workspace")
}
