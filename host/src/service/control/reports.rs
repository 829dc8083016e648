//! Looking at all nodes every now and then, for those who go by what they see.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_kv_proto::v1::NodeReport;
use tokio::task::JoinHandle;

use crate::{
    service::{Service, orders},
    storage::node_number,
};

/// Between two rounds.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Within this a node answers, or is not seen.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What the nodes said that could be reached, and when they were asked.
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) nodes: BTreeMap<String, NodeReport>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Reports {
    looked: Option<Instant>,
    looking: Option<JoinHandle<BTreeMap<String, NodeReport>>>,
}

impl Reports {
    /// What a round has seen, once; begins the next round when it is time.
    pub(super) async fn next(&mut self, service: &Arc<Service>) -> Option<Seen> {
        let finished = self.looking.take_if(|looking| looking.is_finished());
        let seen = match finished {
            None => None,
            Some(looking) => {
                let at = self.looked.unwrap_or_else(Instant::now);
                Some(Seen { at, nodes: looking.await.unwrap_or_default() })
            }
        };
        if self.looking.is_none() && self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            let service = Arc::clone(service);
            self.looking = Some(tokio::spawn(async move { service.reports().await }));
        }
        seen
    }
}

impl Service {
    /// What all nodes that can be reached have.
    pub(in crate::service) async fn reports(&self) -> BTreeMap<String, NodeReport> {
        let nodes: Vec<String> = self.copy.borrow().nodes.keys().cloned().collect();
        let asked = nodes.into_iter().filter(|node| self.is_reachable(node)).map(|node| async {
            let order = self.order(node_number(&node), orders::report());
            let answer = tokio::time::timeout(ANSWER_WITHIN, order).await.ok()?.ok()?;
            Some((node, answer.report?))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }
}
