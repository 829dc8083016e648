//! The ways in: gRPC and HTTP on one port.
//!
//! Both translate to and from [`Service`] and add nothing to what it does. Other
//! nodes come in by the same port; what they say goes to the [`Network`].

mod grpc;
mod http;
mod operation;
mod server;

use std::sync::Arc;

use crate::{
    network::{Introduction, Network},
    service::Service,
};

pub use server::{serve, serve_birth};

/// What is behind the ways in.
pub struct Doors {
    /// For clients.
    pub service: Arc<Service>,
    /// For other nodes of the cluster.
    pub network: Arc<Network>,
    /// For nodes that look for their cluster.
    pub introduction: Introduction,
}
