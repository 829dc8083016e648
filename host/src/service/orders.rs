//! What this node does for others, and has others do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use raft_kv_proto::v1::{
    self, ChangeOrder, Checkpoint, FenceOrder, FoundOrder, LookOrder, MemberReport, MoveAnswer,
    MoveOrder, NodeReport, Order, OrderResponse, ReplicaReport, TransferOrder, order::Kind,
};
use raft_lite::{CommandOutcome, GroupId, NodeId, Rejection, ReplicaId, RequestError, Role};
use tokio::{sync::oneshot, task, time::sleep};

use super::{Service, ServiceError, moves::Move, routing::ShardRoute};
use crate::{
    machine::{Refusal, Shard, ShardChange},
    meta::{Change, META_GROUP, MetaReply},
    network::outcome_to_wire,
    storage::{ShardRecord, folder_bytes},
};

/// Between two attempts to find who leads.
const PAUSE: Duration = Duration::from_millis(20);

/// How a shard is, as its leader says.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) record: ShardRecord,
    /// Whether every member is heard of and has all but a few entries.
    pub(super) all_caught_up: bool,
    /// Commands that failed there by the plugin's fault since its node started.
    pub(super) plugin_faults: u64,
}

/// What became of a change of a shard.
#[derive(Clone, Debug)]
pub(super) enum ChangeOutcome {
    /// It took effect: the record after it.
    Applied(Box<ShardRecord>),
    /// It has no effect, for good: which reason, and in words.
    Refused(Refusal, String),
    /// The shard changed meanwhile.
    StaleEpoch,
}

impl Service {
    /// Does what another node, or this one, orders.
    pub fn carry_out(&self, order: Order) -> BoxFuture<'_, Result<OrderResponse, RequestError>> {
        // On the heap: it is a part of much else, and large.
        Box::pin(self.carry_out_kind(order))
    }

    async fn carry_out_kind(&self, order: Order) -> Result<OrderResponse, RequestError> {
        let mut response = OrderResponse::default();
        let nothing = || RequestError::Refused("it is an order this version does not know".into());
        match order.kind.ok_or_else(nothing)? {
            Kind::Report(_) => response.report = Some(self.report().await?),
            Kind::Change(order) => {
                response.outcome = Some(outcome_to_wire(self.change_here(order).await?));
            }
            Kind::Move(MoveOrder { group, from, to }) => {
                let route = self.route_of(GroupId(group))?;
                let node = |node: String| Some(node).filter(|node| !node.is_empty());
                let wanted = Move { from: node(from), to: node(to) };
                let moved = self.move_step(&route, &wanted).await?;
                response.r#move = Some(MoveAnswer { done: moved.done, message: moved.message });
            }
            Kind::Found(order) => self.found_here(order).await?,
            Kind::Query(order) => response.answers = self.answer_queries(order).await?,
            Kind::Flush(_) => self.flush_here().await?,
            Kind::Transfer(TransferOrder { group, to }) => {
                let route = self.route_of(GroupId(group))?;
                self.transfer_here(&route, &to).await?;
            }
            Kind::Look(LookOrder { group, anywhere: false }) => {
                response.replica = Some(self.look_here(GroupId(group)).await?);
            }
            Kind::Look(LookOrder { group, anywhere: true }) => {
                let shard = self.machine.shard(GroupId(group));
                response.replica = shard.map(|shard| self.replica_report(&shard));
            }
            Kind::TrySwitch(order) => response.trial = Some(self.try_switch_here(order).await?),
            Kind::Fence(FenceOrder { group, replica, reason }) => {
                self.raft.halt(GroupId(group), ReplicaId(replica), &reason);
            }
        }
        Ok(response)
    }

    /// Has a node, perhaps this one, do something.
    pub(super) async fn order(
        &self,
        node: NodeId,
        order: Order,
    ) -> Result<OrderResponse, RequestError> {
        if node == self.info.number {
            return self.carry_out(order).await;
        }
        self.network.order(node, order).await
    }

    /// Has the node that leads a group do something, whichever that is. Tried again only
    /// if nothing happened for certain.
    pub(super) fn order_leader(
        &self,
        group: GroupId,
        kind: Kind,
        within: Duration,
    ) -> BoxFuture<'_, Result<OrderResponse, RequestError>> {
        Box::pin(self.find_leader_and_order(group, kind, within))
    }

    async fn find_leader_and_order(
        &self,
        group: GroupId,
        kind: Kind,
        within: Duration,
    ) -> Result<OrderResponse, RequestError> {
        let deadline = Instant::now() + within;
        let mut hint = None;
        loop {
            let route = self.route_of(group)?;
            let target = hint.take().or_else(|| self.leader_of(&route)).or_else(|| {
                let nodes = route.nodes.iter().copied();
                self.network.any_of(nodes)
            });
            let error = match target {
                None => RequestError::NotLeader { leader: None },
                Some(node) => match self.order(node, Order { kind: Some(kind.clone()) }).await {
                    Ok(response) => {
                        self.note_leader(&route, Some(node));
                        return Ok(response);
                    }
                    Err(error) => error,
                },
            };
            match &error {
                RequestError::NotLeader { leader } => hint = *leader,
                RequestError::Unavailable(_) => {}
                _ => return Err(error),
            }
            route.hint.store(0, std::sync::atomic::Ordering::Relaxed);
            if Instant::now() >= deadline {
                return Err(error);
            }
            if hint.is_none() || hint == target {
                hint = None;
                sleep(PAUSE).await;
            }
        }
    }

    /// How a shard is, at its leader.
    pub(super) async fn look(
        &self,
        group: GroupId,
        within: Duration,
    ) -> Result<Look, RequestError> {
        let kind = Kind::Look(LookOrder { group: group.0, anywhere: false });
        let response = self.order_leader(group, kind, within).await?;
        let strange = || RequestError::Unavailable("its leader's answer makes no sense".to_owned());
        let report = response.replica.ok_or_else(strange)?;
        let record = ShardRecord::decode(&report.record).map_err(|_| strange())?;
        let all_caught_up = report.members.iter().all(|member| member.is_caught_up);
        Ok(Look { record, all_caught_up, plugin_faults: report.plugin_faults })
    }

    /// Changes a shard that was at `epoch`. An outcome that is unknown is an error.
    pub(super) async fn change_shard(
        &self,
        group: GroupId,
        epoch: u64,
        change: &ShardChange,
        within: Duration,
    ) -> Result<ChangeOutcome, RequestError> {
        let order = ChangeOrder { group: group.0, epoch, change: change.encode() };
        let response = match self.order_leader(group, Kind::Change(order), within).await {
            Err(RequestError::Refused(reason)) => {
                tracing::debug!(group = group.0, "a change is refused: {reason}");
                return Ok(ChangeOutcome::StaleEpoch);
            }
            response => response?,
        };
        let outcome = response.outcome.and_then(crate::network::outcome_from_wire);
        let strange = |what: &str| RequestError::OutcomeUnknown(format!("its answer {what}"));
        match outcome.ok_or_else(|| strange("is missing"))? {
            CommandOutcome::Applied(record) => {
                let record = ShardRecord::decode(&record).map_err(|error| strange(&error))?;
                Ok(ChangeOutcome::Applied(Box::new(record)))
            }
            CommandOutcome::Failed(failure) => match Refusal::from_number(failure.code) {
                Some(refusal) => Ok(ChangeOutcome::Refused(refusal, failure.message)),
                None => Err(strange("makes no sense")),
            },
            CommandOutcome::Rejected(_) => Ok(ChangeOutcome::StaleEpoch),
        }
    }

    /// Gives a command to the cluster's own group.
    pub(super) fn tell_meta(
        &self,
        change: Change,
    ) -> BoxFuture<'_, Result<MetaReply, ServiceError>> {
        Box::pin(self.propose_to_meta(change))
    }

    async fn propose_to_meta(&self, change: Change) -> Result<MetaReply, ServiceError> {
        let route = self.table().group(META_GROUP).cloned().ok_or_else(|| {
            let reason = "the cluster's own group is not known here yet".to_owned();
            ServiceError::ShardUnavailable { shard: crate::meta::META_NAME.to_owned(), reason }
        })?;
        let reply = self.propose_raw(&route, change.to_bytes()).await?;
        let strange = |error: prost::DecodeError| ServiceError::Internal(error.to_string());
        let reply = <MetaReply as prost::Message>::decode(reply).map_err(strange)?;
        let version = reply.version;
        let checked = reply.checked()?;
        // Whoever asked sees what it did.
        self.wait_for_copy(version).await;
        Ok(checked)
    }

    /// Waits until this node's copy of the cluster's state is that of a version, for a
    /// while.
    async fn wait_for_copy(&self, version: u64) {
        let mut copy = self.copy.subscribe();
        let newer = copy.wait_for(|copy| copy.version >= version);
        // Without the others this node goes on with what it knows.
        let _ = tokio::time::timeout(Duration::from_secs(2), newer).await;
    }

    pub(super) fn route_of(&self, group: GroupId) -> Result<Arc<ShardRoute>, RequestError> {
        let gone = || RequestError::Refused(format!("there is no group {group}"));
        self.table().group(group).cloned().ok_or_else(gone)
    }

    async fn change_here(&self, order: ChangeOrder) -> Result<CommandOutcome, RequestError> {
        let ChangeOrder { group, epoch, change } = order;
        let (sender, receiver) = oneshot::channel();
        // The receiver may have given up.
        let reply = Box::new(move |result| drop(sender.send(result)));
        self.raft.change_group(GroupId(group), epoch, change, reply);
        let outcomes = receiver.await.unwrap_or(Err(RequestError::Stopping))?;
        let none = CommandOutcome::Rejected(Rejection::StaleEpoch);
        Ok(outcomes.into_iter().next().unwrap_or(none))
    }

    async fn found_here(&self, order: FoundOrder) -> Result<(), RequestError> {
        let refused = |message: String| RequestError::Refused(message);
        let record = ShardRecord::decode(&order.record).map_err(refused)?;
        if order.folder != self.network.folder() {
            return Err(refused("the node has another data folder by now".to_owned()));
        }
        let group = record.group;
        let own = record.membership.replica_on(self.info.number);
        let replica = own.ok_or_else(|| refused("it is meant for another node".to_owned()))?;
        if self.machine.shard(group).is_some() || self.machine.was_removed(group, replica) {
            return Ok(());
        }
        let machine = Arc::clone(&self.machine);
        let record = ShardRecord { replica, ..record };
        let founding = task::spawn_blocking(move || machine.found_shard(record)).await;
        let founded = founding.map_err(|error| RequestError::Unavailable(error.to_string()))?;
        let descriptor = founded.map_err(|error| RequestError::Unavailable(error.to_string()))?;
        self.raft.add_replica(descriptor);
        Ok(())
    }

    async fn flush_here(&self) -> Result<(), RequestError> {
        let storage = Arc::clone(self.machine.storage());
        let flushed = task::spawn_blocking(move || storage.flush()).await;
        let failed = |error: String| RequestError::Unavailable(error);
        flushed.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }

    async fn look_here(&self, group: GroupId) -> Result<ReplicaReport, RequestError> {
        let route = self.route_of(group)?;
        if !self.raft.leads_settled(group) {
            let leader = self.leader_of(&route).filter(|leader| *leader != self.info.number);
            return Err(RequestError::NotLeader { leader });
        }
        let progress = self.progress(&route).await?;
        let shard = self.machine.shard(group);
        let shard = shard.ok_or(RequestError::NotLeader { leader: None })?;
        let members = progress.into_iter().map(|p| MemberReport {
            replica: p.replica.0,
            node: p.node.0,
            is_voter: p.is_voter,
            is_caught_up: p.is_caught_up,
        });
        Ok(ReplicaReport { members: members.collect(), ..self.replica_report(&shard) })
    }

    /// What is here. Reads the data folder: not for a hot path.
    async fn report(&self) -> Result<NodeReport, RequestError> {
        let folder = self.data_folder.clone();
        let size = task::spawn_blocking(move || folder_bytes(&folder)).await;
        let replicas = self.machine.replicas();
        Ok(NodeReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_usage_bytes: size.unwrap_or(0),
            disk_free_bytes: self.metrics.disk_free(),
            disk_full: self.metrics.is_disk_full(),
            replicas: replicas.iter().map(|shard| self.replica_report(shard)).collect(),
            folder: self.network.folder(),
        })
    }

    fn replica_report(&self, shard: &Shard) -> ReplicaReport {
        let record = shard.record();
        let status = self.raft.status(record.group);
        let leads = status.as_ref().is_some_and(|status| status.role == Role::Leader);
        let table = self.table();
        let route = table.group(record.group);
        ReplicaReport {
            record: record.encode().into(),
            leads: leads && self.raft.leads_settled(record.group),
            leader: self.raft.leader(record.group).map_or(0, |node| node.0),
            applied_index: shard.applied().applied.index.0,
            bytes: self.machine.storage().approximate_bytes(&record.slots),
            operations: route.map_or(0, |route| route.metrics.answered()),
            halted: status.and_then(|status| status.halted).unwrap_or_default(),
            members: Vec::new(),
            checkpoints: shard.checkpoints().into_iter().map(checkpoint).collect(),
            plugin_faults: shard.plugin_faults(),
        }
    }
}

fn checkpoint((index, state_hash): (u64, u64)) -> Checkpoint {
    Checkpoint { index, state_hash }
}

/// The order to tell how a replica is.
pub(super) fn look_at(group: GroupId) -> Order {
    Order { kind: Some(Kind::Look(LookOrder { group: group.0, anywhere: true })) }
}

/// The order to flush.
pub(super) fn flush() -> Order {
    Order { kind: Some(Kind::Flush(v1::FlushOrder {})) }
}

/// The order to report.
pub(super) fn report() -> Order {
    Order { kind: Some(Kind::Report(v1::ReportOrder {})) }
}

/// The order to make the first replica of a shard.
pub(super) fn found(record: &ShardRecord, folder: u64) -> Order {
    let record = Bytes::from(record.encode());
    Order { kind: Some(Kind::Found(FoundOrder { record, folder })) }
}
