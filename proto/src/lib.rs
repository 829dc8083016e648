//! RaftKV's gRPC services and messages (package `raftkv.v1`), and how an error
//! travels with its machine-readable detail.

mod detail;

/// Generated from `proto/raftkv/v1/*.proto`; see there for what each means.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("raftkv.v1");

    /// The encoded `FileDescriptorSet` of the package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/raftkv_descriptor.bin"));
}

pub use detail::{detail_of, status_with_detail};
