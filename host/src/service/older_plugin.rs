//! Shards whose key-value store is older than this node.
//!
//! A store refuses what it does not know, so nothing is done by halves; but "unknown tag"
//! says little to whoever asked.

use raft_kv_plugin_kv::protocol::failure;

use super::{FailureKind, OperationKind, Service, ServiceError};
use crate::storage::Slot;

impl Service {
    /// Makes of the refusal of an older key-value store an error that says what to do.
    pub(super) fn explain(&self, error: &mut ServiceError, slot: Slot, operation: OperationKind) {
        let ServiceError::Plugin { kind: FailureKind::Failed, code: failure::MALFORMED, message } =
            &*error
        else {
            return;
        };
        // How the store begins to speak of tags and flags that it does not know.
        if !message.starts_with("unknown ") {
            return;
        }
        let Some(what) = newer_ability(operation) else { return };
        let (shard, version) = self.store_of(slot);
        *error = ServiceError::Conflict {
            message: format!(
                "shard {shard} runs {version}, which cannot {what} ({message}): activate a newer \
                 version of the plugin kv"
            ),
        };
    }

    /// The name of a slot's shard, and what its plugin is.
    fn store_of(&self, slot: Slot) -> (String, String) {
        let older = || "an older version of kv".to_owned();
        let Ok(route) = self.table().owner(slot).cloned() else { return (String::new(), older()) };
        let here = self.machine.shard(route.group).and_then(|shard| shard.module().cloned());
        let module = here.or_else(|| {
            let copy = self.copy.borrow();
            self.machine.plugin(&copy.shards.get(&route.group)?.plugin)
        });
        let version = module.map(|module| format!("kv {}", module.info().manifest.version));
        (route.name.to_string(), version.unwrap_or_else(older))
    }
}

/// What a store cannot do that refuses a well-formed operation. Puts and deletes are as old
/// as the store: what is new about them can only be this.
fn newer_ability(operation: OperationKind) -> Option<&'static str> {
    match operation {
        OperationKind::Put => Some("keep a value for a time to live"),
        OperationKind::Delete => Some("compare versions before it deletes"),
        OperationKind::Increment => Some("increment numbers"),
        OperationKind::Atomic => Some("carry out atomic requests"),
        // What any plugin is asked is the caller's own.
        OperationKind::Get | OperationKind::Scan | OperationKind::Apply | OperationKind::Query => {
            None
        }
    }
}
