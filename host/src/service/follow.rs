//! What a node does by itself to keep up with the cluster: it follows the cluster's own
//! state, tells it what its shards' logs decided, and removes replicas that are no more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_kv_proto::v1::MetaCopy;
use raft_lite::{GroupId, NodeId};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Service, control::MERGE_WITHIN, orders::ChangeOutcome};
use crate::{
    machine::ShardChange,
    meta::{Change, Ended, MetaState, Observe, PutNode},
    storage::{Frozen, Phase, ShardRecord, write_durably},
};

/// Between two looks at what has to be done.
const INTERVAL: Duration = Duration::from_millis(200);
/// Between two attempts to follow.
const PAUSE: Duration = Duration::from_millis(100);
/// Without a word for so long somebody else is followed.
const SILENCE: Duration = Duration::from_secs(10);
/// So long a shard's leader waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

impl Service {
    /// Starts what a node does by itself; it ends when the set is dropped.
    pub fn start_following(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(self).follow_meta());
        tasks.spawn(Arc::clone(self).keep_table());
        tasks.spawn(Arc::clone(self).keep_shards());
        tasks.spawn(Arc::clone(self).keep_plugins());
        tasks.spawn(Arc::clone(self).control());
        tasks
    }

    /// Takes a newer state of the cluster over.
    fn take_copy(&self, state: Arc<MetaState>) {
        self.copy.send_if_modified(|copy| {
            let is_newer = state.version > copy.version;
            if is_newer {
                *copy = state;
            }
            is_newer
        });
    }

    /// Keeps this node's copy of the cluster's state, from its own replica if it has one,
    /// else from a node that has.
    async fn follow_meta(self: Arc<Self>) {
        let mut own = self.machine.meta();
        loop {
            let state = own.borrow_and_update().clone();
            let is_here = state.is_some();
            if let Some(state) = state {
                self.take_copy(state);
            }
            tokio::select! {
                changed = own.changed() => if changed.is_err() { return },
                () = self.follow_another(), if !is_here => {}
            }
        }
    }

    async fn follow_another(&self) {
        let copy = self.copy.borrow().clone();
        let meta = copy.shards.get(&crate::meta::META_GROUP);
        let members = meta.into_iter().flat_map(|meta| meta.nodes.keys().copied());
        let node = self.network.any_of(members).or_else(|| self.network.any_peer());
        if let Some(node) = node
            && let Err(error) = self.follow_node(node, copy.version).await
        {
            tracing::debug!("cannot follow the cluster's state: {error}");
        }
        sleep(PAUSE).await;
    }

    async fn follow_node(
        &self,
        node: NodeId,
        version: u64,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut copies = self.network.watch_meta(node, version).await?;
        while let Some(MetaCopy { state }) = timeout(SILENCE, copies.message()).await?? {
            // An empty one says that nothing has changed.
            if !state.is_empty() {
                self.take_copy(Arc::new(MetaState::decode(&state)?));
            }
        }
        Ok(())
    }

    /// The cluster's state as this node knows it, now and each time it changes.
    pub fn watch_meta(&self) -> watch::Receiver<Arc<MetaState>> {
        self.copy.subscribe()
    }

    /// Makes the routing table anew whenever it may have changed, and goes by the list of
    /// nodes.
    async fn keep_table(self: Arc<Self>) {
        let (mut copies, mut records) = (self.copy.subscribe(), self.machine.changes());
        let mut nodes = BTreeMap::new();
        // A copy that was stored is one of a member.
        let mut was_member = self.copy.borrow().version > 0;
        loop {
            let copy = copies.borrow_and_update().clone();
            records.borrow_and_update();
            if copy.nodes != nodes && !copy.nodes.is_empty() {
                nodes = copy.nodes.clone();
                let known = nodes.iter().map(|(id, node)| (id.as_str(), node.address.as_str()));
                self.network.set_nodes(known);
                // Who has just joined may follow a node that has not heard of it yet.
                let is_member = copy.version > 0 && copy.nodes.contains_key(&self.info.node_id);
                if is_member || was_member {
                    self.store_copy(&copy);
                }
                self.removed.send_replace(was_member && !is_member);
                was_member |= is_member;
            }
            self.rebuild_table();
            tokio::select! {
                changed = copies.changed() => if changed.is_err() { return },
                changed = records.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Keeps the copy for the next start, when nobody may be reached at first.
    fn store_copy(&self, copy: &MetaState) {
        let path = self.data_folder.join(COPY_FILE);
        if let Err(error) = write_durably(&path, &copy.encode()) {
            tracing::warn!("cannot write {}: {error}", path.display());
        }
    }

    /// Looks after this node's replicas, every little while and when something changes.
    async fn keep_shards(self: Arc<Self>) {
        let (mut copies, mut records) = (self.copy.subscribe(), self.machine.changes());
        let mut frozen = BTreeMap::new();
        loop {
            let copy = copies.borrow_and_update().clone();
            records.borrow_and_update();
            self.introduce(&copy).await;
            self.announce(&copy).await;
            self.remove_orphans(&copy);
            self.end_merges(&mut frozen).await;
            let look_again = async {
                tokio::select! {
                    changed = copies.changed() => changed.is_ok(),
                    changed = records.changed() => changed.is_ok(),
                }
            };
            if let Ok(false) = timeout(INTERVAL, look_again).await {
                return;
            }
        }
    }

    /// Says where this node is, and which data folder it has, if that is news.
    async fn introduce(&self, copy: &MetaState) {
        let (node, folder) = (&self.info.node_id, self.network.folder());
        let Some(known) = copy.nodes.get(node) else { return };
        if known.folder == folder {
            self.machine.set_fresh_from(GroupId(known.fresh_from));
        }
        if (known.folder, known.address.as_str()) == (folder, self.info.address.as_str()) {
            return;
        }
        let address = self.info.address.clone();
        let put = PutNode { node: node.clone(), address, folder };
        if let Err(error) = self.tell_meta(Change::PutNode(put)).await {
            tracing::warn!("cannot say where this node is: {error}");
            sleep(INTERVAL).await;
        }
    }

    /// Tells the cluster what the logs of the shards that this node leads decided.
    async fn announce(&self, copy: &MetaState) {
        let is_news = |record: &ShardRecord| {
            let known = copy.shards.get(&record.group);
            known.is_none_or(|known| known.epoch < record.epoch)
                && !copy.ended.contains_key(&record.group)
        };
        let replicas = self.machine.replicas();
        let news: Vec<&ShardRecord> =
            replicas.iter().map(|shard| shard.record()).filter(|record| is_news(record)).collect();
        // A split's child may have no leader yet: its parent's speaks for it.
        if !news.iter().any(|record| self.raft.leads_settled(record.group)) {
            return;
        }
        let records = news.iter().map(|record| record.encode().into()).collect();
        if let Err(error) = self.tell_meta(Change::Observe(Observe { records })).await {
            tracing::debug!("cannot tell the cluster's own group of a change: {error}");
            sleep(PAUSE).await;
        }
    }

    /// Removes replicas that the cluster knows to be no more.
    fn remove_orphans(&self, copy: &MetaState) {
        for shard in self.machine.replicas() {
            let record = shard.record();
            let (group, replica) = (record.group, record.replica);
            let is_over = match copy.ended.get(&group) {
                Some(Ended::Deleted) => true,
                // It goes with what the other shard's replica here does, if there is one.
                Some(Ended::MergedInto(target)) => self.machine.shard(*target).is_none(),
                None => copy.shards.get(&group).is_some_and(|known| {
                    known.epoch > record.epoch && known.membership.was_removed(replica)
                }),
            };
            if is_over {
                self.raft.remove_replica(group, replica);
            }
        }
    }

    /// Ends merges that hold up shards which this node leads for too long: whoever began
    /// them may be gone.
    async fn end_merges(&self, since: &mut BTreeMap<GroupId, (Frozen, Instant)>) {
        let now = Instant::now();
        let mut held = BTreeMap::new();
        for shard in self.machine.shards() {
            let record = shard.record();
            let Phase::Frozen(frozen) = record.phase else { continue };
            if self.raft.leads_settled(record.group) {
                let before = since.get(&record.group).filter(|(known, _)| *known == frozen);
                held.insert(record.group, before.copied().unwrap_or((frozen, now)));
            }
        }
        *since = held;
        for (source, (frozen, at)) in since.iter() {
            if now >= *at + MERGE_WITHIN {
                self.end_merge(*source, frozen).await;
            }
        }
    }

    async fn end_merge(&self, source: GroupId, frozen: &Frozen) {
        if self.table().group(frozen.target).is_none() {
            return;
        }
        tracing::warn!(
            group = source.0,
            "the shard has been frozen for too long: its merge into group {} is cancelled",
            frozen.target
        );
        let cancel = ShardChange::Cancel { merge: frozen.merge, source };
        match self.change_now(frozen.target, &cancel).await {
            Some(ChangeOutcome::Applied(_)) => {
                self.change_now(source, &ShardChange::Unfreeze { merge: frozen.merge }).await;
            }
            outcome => tracing::debug!(group = source.0, "not cancelled: {outcome:?}"),
        }
    }

    /// Changes a shard as it is now.
    pub(super) async fn change_now(
        &self,
        group: GroupId,
        change: &ShardChange,
    ) -> Option<ChangeOutcome> {
        let look = self.look(group, PATIENCE).await.ok()?;
        self.change_shard(group, look.record.epoch, change, PATIENCE).await.ok()
    }
}

/// Where a node keeps its copy of the cluster's state.
pub const COPY_FILE: &str = "cluster.state";
