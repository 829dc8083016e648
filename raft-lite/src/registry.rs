//! All groups of a node, for those who are not their worker.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

use crate::{shared::GroupShared, types::GroupId};

/// Written only when a replica comes or goes.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    groups: RwLock<BTreeMap<GroupId, Arc<GroupShared>>>,
}

impl Registry {
    pub(crate) fn get(&self, group: GroupId) -> Option<Arc<GroupShared>> {
        self.groups.read().get(&group).cloned()
    }

    /// What `look` sees of a group.
    pub(crate) fn with<T>(
        &self,
        group: GroupId,
        look: impl FnOnce(&GroupShared) -> T,
    ) -> Option<T> {
        self.groups.read().get(&group).map(|shared| look(shared))
    }

    /// Adds a replica, in the place of an earlier one of its group.
    pub(crate) fn insert(&self, shared: Arc<GroupShared>) {
        self.groups.write().insert(shared.group, shared);
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.groups.write().remove(&group);
    }

    pub(crate) fn all(&self) -> Vec<Arc<GroupShared>> {
        self.groups.read().values().cloned().collect()
    }

    pub(crate) fn groups(&self) -> Vec<GroupId> {
        self.groups.read().keys().copied().collect()
    }
}
