//! The gRPC door, without the client library.

use raft_kv_proto::v1::{
    admin_client::AdminClient, error_detail::Detail, kv_client::KvClient,
    state_machine_client::StateMachineClient,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// More than any message that a node sends or takes.
const MAX_MESSAGE_BYTES: usize = 80 << 20;

/// Connects to an endpoint.
///
/// # Panics
/// If it cannot.
pub async fn connect(endpoint: String) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint).expect("the endpoint is a URL");
    let channel = endpoint.connect().await;
    channel.expect("a node that is ready takes connections")
}

/// The key-value service.
pub fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The service for any plugin.
pub fn state_machine(channel: Channel) -> StateMachineClient<Channel> {
    StateMachineClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The administrator's service.
pub fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel)
}

/// The detail of an error.
///
/// # Panics
/// If it has none.
pub fn detail(status: &Status) -> Detail {
    let detail = raft_kv_proto::detail_of(status);
    detail.unwrap_or_else(|| panic!("an error without a detail: {status:?}"))
}
