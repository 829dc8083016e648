//! Commands about the cluster itself: its nodes, shards and operations.

use std::{
    cmp::Reverse,
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime},
};

use raft_kv_client::{Admin, Change, ClusterOperation, ClusterState, Error, OperationState};
use serde_json::Value;

use super::{Session, write_json};
use crate::{
    Failure,
    args::{BalancerCommand, NodeCommand, OperationCommand, Output, Replica, ShardCommand},
    json, text,
};

/// How much of a line of a terminal progress takes.
const PROGRESS_WIDTH: usize = 79;

impl<W: Write> Session<'_, W> {
    pub(super) async fn cluster_status(self) -> Result<(), Failure> {
        let cluster = self.cluster().await?;
        let text = text::cluster::overview(&cluster, now());
        self.print(&text, [json::cluster::state(&cluster)])
    }

    pub(super) async fn shard(self, command: ShardCommand) -> Result<(), Failure> {
        let change = match command {
            ShardCommand::List => return self.list_shards().await,
            ShardCommand::Show { shard } => return self.show_shard(shard).await,
            ShardCommand::TransferLeader(to) => return self.transfer_leader(to).await,
            ShardCommand::Create { shard, nodes } => Change::CreateShard { shard, nodes },
            ShardCommand::Delete { shard, force } => Change::DeleteShard { shard, force },
            ShardCommand::Migrate { shard, from, to } => Change::MigrateShard { shard, from, to },
            ShardCommand::Split { shard, into } => Change::SplitShard { shard, new_shards: into },
            ShardCommand::Merge { sources, target } => Change::MergeShards { sources, target },
            ShardCommand::AddReplica(Replica { shard, node }) => Change::AddReplica { shard, node },
            ShardCommand::RemoveReplica(Replica { shard, node }) => {
                Change::RemoveReplica { shard, node }
            }
        };
        self.change(change).await
    }

    pub(super) async fn node(self, command: NodeCommand) -> Result<(), Failure> {
        match command {
            NodeCommand::List => {
                let ClusterState { nodes, .. } = self.cluster().await?;
                self.print(&text::cluster::nodes(&nodes), nodes.iter().map(json::cluster::node))
            }
            NodeCommand::Add { node, address } => {
                self.change(Change::AddNode { node, address }).await
            }
            NodeCommand::Remove { node } => self.change(Change::RemoveNode { node }).await,
        }
    }

    pub(super) async fn operation(self, command: OperationCommand) -> Result<(), Failure> {
        match command {
            OperationCommand::List => {
                let ClusterState { mut operations, .. } = self.cluster().await?;
                operations.sort_by_key(|operation| Reverse(operation.id));
                let text = text::cluster::operations(&operations, now());
                self.print(&text, operations.iter().map(json::cluster::operation))
            }
            OperationCommand::Show { id } => {
                let operation = self.admin().await?.operation(id).await?;
                let text = text::cluster::operation(&operation, now());
                self.print(&text, [json::cluster::operation(&operation)])
            }
            OperationCommand::Cancel { id } => {
                let (admin, progress) = with_progress(self.admin().await?);
                let ended = admin.cancel(id).await;
                progress.end();
                self.ended(ended)
            }
        }
    }

    pub(super) async fn balancer(self, command: BalancerCommand) -> Result<(), Failure> {
        let on = match command {
            BalancerCommand::Status => self.cluster().await?.balancer,
            BalancerCommand::On | BalancerCommand::Off => {
                let on = matches!(command, BalancerCommand::On);
                self.admin().await?.set_balancer(on).await?;
                on
            }
        };
        let text = format!("the balancer is {}\n", text::on_or_off(on));
        self.print(&text, [json::cluster::balancer(on)])
    }

    async fn list_shards(self) -> Result<(), Failure> {
        let ClusterState { shards, .. } = self.cluster().await?;
        self.print(&text::cluster::shards(&shards), shards.iter().map(json::cluster::shard))
    }

    async fn show_shard(self, name: String) -> Result<(), Failure> {
        let ClusterState { shards, .. } = self.cluster().await?;
        match shards.iter().find(|shard| shard.shard_id == name) {
            Some(shard) => self.print(&text::cluster::shard(shard), [json::cluster::shard(shard)]),
            None => Err(Failure::NoSuchShard(name)),
        }
    }

    async fn transfer_leader(self, to: Replica) -> Result<(), Failure> {
        let Replica { shard, node } = to;
        let number = self.admin().await?.transfer_leader(&shard, &node).await?;
        let text = format!("{node} leads {shard} (replica {number})\n");
        self.print(&text, [json::replica(&shard, &node, number)])
    }

    pub(super) async fn change(self, change: Change) -> Result<(), Failure> {
        let (admin, progress) = with_progress(self.admin().await?);
        let ended = admin.change(change).await;
        progress.end();
        self.ended(ended)
    }

    /// Writes how an operation ended, or that it did not.
    pub(super) fn ended(self, ended: Result<ClusterOperation, Error>) -> Result<(), Failure> {
        let (operation, failure) = match ended {
            Ok(operation) => {
                let text = format!("{}\n", text::cluster::end(&operation));
                return self.print(&text, [json::cluster::operation(&operation)]);
            }
            Err(Error::StillRunning { operation }) => {
                (operation.clone(), Failure::StillRunning(operation))
            }
            Err(Error::RolledBack { operation }) => {
                (operation.clone(), Error::RolledBack { operation }.into())
            }
            Err(error) => return Err(error.into()),
        };
        // Programs learn all of it; for people it is in the message.
        self.print("", [json::cluster::operation(&operation)])?;
        Err(failure)
    }

    async fn cluster(&self) -> Result<ClusterState, Error> {
        self.admin().await?.cluster().await
    }

    pub(super) async fn admin(&self) -> Result<Admin, Error> {
        let admin = self.builder.clone().connect().await?.admin();
        Ok(match self.timeout {
            Some(timeout) => admin.timeout(timeout),
            None => admin,
        })
    }

    /// Writes an answer: text, or JSON objects on a line each.
    pub(super) fn print(
        self,
        text: &str,
        objects: impl IntoIterator<Item = Value>,
    ) -> Result<(), Failure> {
        match self.output {
            Output::Text => self.out.write_all(text.as_bytes())?,
            Output::Json => {
                objects.into_iter().try_for_each(|object| write_json(self.out, &object))?;
            }
        }
        Ok(())
    }
}

/// What shows on a terminal how an operation comes along.
pub(super) struct Progress {
    is_shown: bool,
}

/// Shows how operations that are waited for come along, if there is a terminal.
pub(super) fn with_progress(admin: Admin) -> (Admin, Progress) {
    if !io::stderr().is_terminal() {
        return (admin, Progress { is_shown: false });
    }
    let show = |operation: &ClusterOperation| {
        if operation.state == OperationState::Running {
            let line = text::cluster::progress(operation, now());
            let line: String = line.chars().take(PROGRESS_WIDTH).collect();
            // Whoever does not see it misses nothing.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        }
    };
    (admin.on_progress(show), Progress { is_shown: true })
}

impl Progress {
    /// Leaves the line empty.
    pub(super) fn end(self) {
        if self.is_shown {
            // As above.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The time since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
