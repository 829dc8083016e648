//! Making a replica anew that differs from the others: it leaves the shard, and its node gets another,
//! from a snapshot of those that agree.

use raft_lite::GroupId;

use super::Attempt;
use crate::{
    meta::{MetaState, Operation, OperationStep},
    service::{Service, ServiceError, moves::Move},
};

impl Service {
    /// One attempt of the next step.
    pub(super) async fn rebuild(
        &self,
        copy: &MetaState,
        operation: &Operation,
    ) -> Result<Attempt, ServiceError> {
        let group = GroupId(operation.group);
        let node = operation.task.from.clone();
        if !copy.shards.contains_key(&group) {
            return Attempt::undone("the shard is gone");
        }
        if !copy.nodes.contains_key(&node) {
            return Attempt::done();
        }
        let is_leaving = operation.step() == OperationStep::Expel;
        let wanted = match is_leaving {
            true => Move { from: Some(node), to: None },
            false => Move { from: None, to: Some(node) },
        };
        match self.move_once(group, &wanted).await? {
            Some(message) => Attempt::wait(message),
            None if is_leaving => Ok(Attempt::Next(OperationStep::Readmit)),
            None => Attempt::done(),
        }
    }
}
