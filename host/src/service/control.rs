//! The controller: it drives the cluster's operations, step by step, on the node that
//! leads the cluster's own group.
//!
//! An operation is on record with the step that is to be taken next. A step looks at how
//! things are, does what is missing, and notes the next step. Whoever comes to lead takes
//! up each operation where it stands. For a moment two nodes may think that they lead:
//! that does no harm, since every change of a shard is valid for one epoch, and every step
//! is noted once.

mod activate;
mod balance;
mod guard;
mod merge;
mod rebuild;
mod reports;
mod steps;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_lite::RequestError;
use tokio::{task::JoinSet, time::sleep};

use super::{Service, ServiceError};
use crate::meta::{Change, META_GROUP, Operation, OperationStep, Outcome, Step};

use balance::Balancer;
pub use balance::BalancerConfig;
use reports::Reports;

/// Between two looks at what there is to do.
const INTERVAL: Duration = Duration::from_millis(50);
/// Between two attempts of a step.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a leader is looked for within one attempt.
const FIND_WITHIN: Duration = Duration::from_secs(2);
/// For so long a shard may be frozen for a merge.
pub(super) const MERGE_WITHIN: Duration = Duration::from_secs(2);
/// What an operation waits for is noted so often.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// What came of an attempt of a step.
enum Attempt {
    /// The next step.
    Next(OperationStep),
    /// It is to be tried again: what it waits for.
    Wait(String),
    /// The operation is over.
    Over(Outcome, String),
    /// The operation itself has changed, and its next step.
    Changed(Box<Operation>),
}

impl Attempt {
    fn done() -> Result<Self, ServiceError> {
        Ok(Attempt::Over(Outcome::Done, String::new()))
    }

    fn wait(reason: impl Into<String>) -> Result<Self, ServiceError> {
        Ok(Attempt::Wait(reason.into()))
    }

    fn undone(reason: impl Into<String>) -> Result<Self, ServiceError> {
        Ok(Attempt::Over(Outcome::RolledBack, reason.into()))
    }
}

impl Service {
    /// Drives operations whenever this node leads the cluster's own group.
    pub(super) async fn control(self: Arc<Self>) {
        loop {
            if self.raft.leads_settled(META_GROUP) {
                self.control_as_leader().await;
            }
            sleep(INTERVAL).await;
        }
    }

    async fn control_as_leader(self: &Arc<Self>) {
        tracing::info!("this node drives the cluster's operations");
        let mut drivers: BTreeMap<u64, tokio::task::AbortHandle> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut balancer = Balancer::new(self.balancer);
        let mut reports = Reports::default();
        while self.raft.leads_settled(META_GROUP) {
            let copy = self.copy.borrow().clone();
            drivers.retain(|_, driver| !driver.is_finished());
            while tasks.try_join_next().is_some() {}
            for operation in copy.operations.values().filter(|o| o.is_running()) {
                drivers
                    .entry(operation.id)
                    .or_insert_with(|| tasks.spawn(Arc::clone(self).drive(operation.id)));
            }
            if let Some(seen) = reports.next(self).await {
                self.compare_replicas(&copy, &seen).await;
                balancer.note(seen, &copy);
            }
            balancer.look_after(self, &copy).await;
            let mut changes = self.copy.subscribe();
            let _ = tokio::time::timeout(INTERVAL, changes.changed()).await;
        }
        tracing::info!("another node drives the cluster's operations");
    }

    /// Drives one operation to its end.
    async fn drive(self: Arc<Self>, id: u64) {
        let started = Instant::now();
        let mut noted = Instant::now();
        let mut failures = 0;
        loop {
            let copy = self.copy.borrow().clone();
            let Some(operation) = copy.operations.get(&id).filter(|o| o.is_running()) else {
                return;
            };
            let attempt = match self.attempt(&copy, operation, started).await {
                Ok(attempt) => {
                    failures = 0;
                    attempt
                }
                Err(error) => {
                    failures += 1;
                    Attempt::Wait(error.to_string())
                }
            };
            let mut after = operation.clone();
            match attempt {
                Attempt::Next(step) => {
                    after.set_step(step);
                    after.message.clear();
                }
                Attempt::Changed(changed) => after = *changed,
                Attempt::Over(outcome, message) => {
                    after.set_outcome(outcome);
                    after.message = message;
                    let (what, how) = (operation.description(), outcome.name());
                    tracing::info!(operation = id, "{what}: {how} {}", after.message);
                }
                Attempt::Wait(reason) => {
                    let pause = PAUSE * (1 + failures).min(10);
                    let is_worth_it = noted.elapsed() >= NOTE_EVERY && reason != after.message;
                    if !is_worth_it {
                        sleep(pause).await;
                        continue;
                    }
                    noted = Instant::now();
                    after.message = reason;
                }
            }
            let step = Step { operation: after, after: operation.steps };
            if let Err(error) = self.tell_meta(Change::Step(step)).await {
                tracing::debug!(operation = id, "a step is not noted: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// What an order that failed means for the step that needs it: it is tried again.
fn failed(error: RequestError) -> ServiceError {
    ServiceError::ShardUnavailable { shard: String::new(), reason: error.to_string() }
}
