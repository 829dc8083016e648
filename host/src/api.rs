//! The ways in: gRPC and HTTP on one port.
//!
//! Both translate to and from [`Service`](crate::service::Service) and add
//! nothing to what it does.

mod grpc;
mod http;
mod server;

pub use server::serve;
