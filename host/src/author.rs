//! The author's side of plugins: what `raft-kv-plugin` does. It needs no cluster.
//!
//! [`project`] makes a project that builds and passes its tests at once, [`toolchain`] makes a module
//! of one, [`determinism`] looks for plugins whose results depend on more than they may, [`compare`] does
//! again in the sandbox what their tests did natively, and [`mod@bench`] measures one.

pub mod bench;
pub mod commands;
pub mod compare;
pub mod determinism;
pub mod project;
pub mod toolchain;
