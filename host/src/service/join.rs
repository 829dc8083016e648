//! Nodes that join: by way of any node of the cluster.

use raft_kv_proto::v1::{self, JoinRequest, JoinResponse};

use super::{Service, ServiceError};
use crate::{
    meta::{Change, PutNode, check_node_id},
    network::PROTOCOL,
    wasm::ModuleHash,
};

impl Service {
    /// Makes a node one of the cluster's.
    ///
    /// # Errors
    /// If it does not fit, or a node of its id is up; nothing has changed then.
    pub async fn join(&self, request: JoinRequest) -> Result<JoinResponse, ServiceError> {
        let refuse = |message: String| Err(ServiceError::Conflict { message });
        let v1::Member { node_id: node, address, folder } = request.from.unwrap_or_default();
        if request.protocol != PROTOCOL {
            return refuse(format!(
                "node {node} speaks version {} of the protocol between nodes, this cluster version \
                 {PROTOCOL}: run the same version of RaftKV on all nodes",
                request.protocol
            ));
        }
        let mine = self.network.election_timeout_ms();
        if request.election_timeout_ms != mine {
            return refuse(format!(
                "node {node} has an election timeout of {} ms, this cluster of {mine} ms: give all \
                 nodes the same tick-ms and election-ticks",
                request.election_timeout_ms
            ));
        }
        check_node_id(&node).map_err(|message| {
            ServiceError::invalid("node_id", "an id", &format!("node_id {message}"))
        })?;
        let known = self.copy.borrow().nodes.get(&node).cloned();
        let is_other = known.is_some_and(|known| known.folder != 0 && known.folder != folder);
        if folder == 0 || (is_other && self.is_reachable(&node)) {
            return refuse(format!(
                "there is a node {node} in the cluster, and it is up: choose another --node-id"
            ));
        }
        self.tell_meta(Change::PutNode(PutNode { node: node.clone(), address, folder })).await?;
        let copy = self.copy.borrow().clone();
        let member = |(id, entry): (&String, &crate::meta::NodeEntry)| v1::Member {
            node_id: id.clone(),
            address: entry.address.clone(),
            folder: entry.folder,
        };
        let plugin = ModuleHash(self.default_plugin).to_string();
        Ok(JoinResponse {
            cluster_id: self.info.cluster_id.clone(),
            slots: self.slots,
            fresh_from: copy.nodes.get(&node).map_or(u64::MAX, |node| node.fresh_from),
            plugin,
            shards: copy.user_shards().count().max(1) as u32,
            members: copy.nodes.iter().map(member).collect(),
        })
    }
}
