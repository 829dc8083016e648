//! RaftKV's gRPC services and messages (package `raftkv.v1`), how an error
//! travels with its machine-readable detail, and how keys find their slots.

mod detail;
mod routing;

/// Generated from `proto/raftkv/v1/*.proto`; see there for what each means.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("raftkv.v1");

    /// The encoded `FileDescriptorSet` of the package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/raftkv_descriptor.bin"));
}

pub use detail::{detail_of, status_with_detail};
pub use routing::{routing_key, slot_of};

/// Metadata of a call that is not to be forwarded to the shard's leader: a node
/// that does not lead answers with `NotLeader`. Any value will do.
pub const DIRECT_METADATA: &str = "raftkv-direct";
