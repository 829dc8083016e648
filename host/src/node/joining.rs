//! How a node joins a cluster that is running.

use std::time::Duration;

use raft_kv_proto::v1::{self, JoinRequest, JoinResponse};
use tokio::time::sleep;
use tonic::Code;

use super::{
    NodeConfig, NodeError,
    identity::{DataFolder, Identity, MemberRecord},
};
use crate::{
    network::{PROTOCOL, join_cluster},
    storage::MAX_SLOTS,
};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// Asks a node of the cluster to be made one of it, until it answers; puts what it says on
/// disk.
pub(super) async fn join(
    config: &NodeConfig,
    at: &str,
    folder: &mut DataFolder,
) -> Result<(), NodeError> {
    let me = v1::Member {
        node_id: config.node_id.clone(),
        address: format!("{}:{}", config.host, config.port),
        folder: folder.number(),
    };
    let request = JoinRequest {
        protocol: PROTOCOL,
        from: Some(me),
        election_timeout_ms: config.raft.election_timeout().as_millis() as u64,
    };
    let mut last_said = String::new();
    let answer = loop {
        let status = match join_cluster(at, request.clone()).await {
            Ok(answer) => break answer,
            Err(status) => status,
        };
        if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument) {
            return Err(NodeError::Config(format!("--join {at}: {}", status.message())));
        }
        // The same trouble is told once.
        if last_said != status.message() {
            tracing::warn!("cannot join by way of {at} yet: {}", status.message());
            status.message().clone_into(&mut last_said);
        }
        sleep(PAUSE).await;
    };
    let identity = identity(config, folder.number(), answer)?;
    tracing::info!("node {} belongs to cluster {}", config.node_id, identity.cluster_id);
    folder.join(identity)?;
    Ok(())
}

fn identity(config: &NodeConfig, folder: u64, answer: JoinResponse) -> Result<Identity, NodeError> {
    if answer.cluster_id.is_empty() || !(1..=MAX_SLOTS).contains(&answer.slots) {
        return Err(NodeError::Config("--join: the answer makes no sense".to_owned()));
    }
    let member = |member: v1::Member| MemberRecord {
        folder: if member.node_id == config.node_id { folder } else { member.folder },
        node_id: member.node_id,
        address: member.address,
    };
    Ok(Identity {
        node_id: config.node_id.clone(),
        cluster_id: answer.cluster_id,
        slots: answer.slots,
        shards: answer.shards,
        plugin: answer.plugin,
        members: answer.members.into_iter().map(member).collect(),
        came_back: false,
        joined: true,
        fresh_from: answer.fresh_from,
    })
}
