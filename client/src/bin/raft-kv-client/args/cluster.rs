//! What can be asked about the cluster itself.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum ShardCommand {
    /// Print all shards.
    List,
    /// Print all about one shard.
    Show {
        /// The shard's name.
        shard: String,
    },
    /// Make a shard, of slots that no shard owns or else of half of the largest one's.
    Create {
        /// Its name: letters, digits, `-`, `_` and `.`, 64 at most.
        shard: String,
        /// The nodes that shall replicate it, separated by commas; the cluster chooses
        /// otherwise.
        #[arg(long, value_name = "NODE,NODE", value_delimiter = ',')]
        nodes: Vec<String>,
    },
    /// End a shard; no shard owns its slots then.
    Delete {
        /// The shard's name.
        shard: String,
        /// Also if there are keys in it, which are lost.
        #[arg(long)]
        force: bool,
    },
    /// Move a replica from one node to another.
    Migrate {
        /// The shard's name.
        shard: String,
        /// The node that loses it.
        #[arg(long, value_name = "NODE")]
        from: String,
        /// The node that gets it.
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Cut a shard in two.
    Split {
        /// The shard's name.
        shard: String,
        /// The names of the shards that it becomes, separated by a comma.
        #[arg(long, value_name = "SHARD,SHARD", value_delimiter = ',', required = true)]
        into: Vec<String>,
    },
    /// Make one shard of several.
    Merge {
        /// The shards' names, separated by commas.
        #[arg(long, value_name = "SHARD,SHARD", value_delimiter = ',', required = true)]
        sources: Vec<String>,
        /// The shard that owns all their slots in the end; it exists already.
        #[arg(long, value_name = "SHARD")]
        target: String,
    },
    /// Give a node a replica; done when it has caught up and votes.
    AddReplica(Replica),
    /// Take a node's replica away, and its data off the node.
    RemoveReplica(Replica),
    /// Have a node take over the leadership.
    TransferLeader(Replica),
}

#[derive(Debug, clap::Args)]
pub struct Replica {
    /// The shard's name.
    pub shard: String,
    /// The node's id.
    pub node: String,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Print all nodes.
    List,
    /// Let a node into the cluster.
    Add {
        /// Its id.
        node: String,
        /// Its address, host:port.
        address: String,
    },
    /// Move all replicas off a node and take it out of the cluster.
    Remove {
        /// Its id.
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum OperationCommand {
    /// Print those that are under way, and the last that ended.
    List,
    /// Print how one stands.
    Show {
        /// Its number.
        id: u64,
    },
    /// Have one rolled back, where that is safe, and wait for it.
    Cancel {
        /// Its number.
        id: u64,
    },
}

#[derive(Debug, Subcommand)]
pub enum BalancerCommand {
    /// The cluster spreads them.
    On,
    /// They stay where they are.
    Off,
    /// Print which of the two it is.
    Status,
}
