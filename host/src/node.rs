//! A node: everything constructed and joined. Nothing else constructs.

mod identity;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use raft_lite::{
    EngineLogStore, EngineOptions, GroupDescriptor, GroupId, LogStoreError, MultiRaft, NoTransport,
    NodeId, Parts, ReplicaId, StartError, SystemClock,
};
use tokio::net::TcpListener;

use crate::{
    api,
    machine::{DEFAULT_PLUGIN, Machine, OpenError, PluginFileError, PluginStore, Shard, Threads},
    metrics::Metrics,
    service::{NodeInfo, RequestLimits, RoutingTable, Service, ServiceParts},
    storage::{
        MAX_SLOTS, PluginId, ShardRecord, Slot, SlotRange, Storage, StorageError, StorageOptions,
        VoterRecord,
    },
    wasm::{ModuleHash, check_module},
};

pub use identity::IdentityError;
use identity::{Birth, DataFolder};

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's id; fixed for a data folder.
    pub node_id: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on, for gRPC and HTTP.
    pub port: u16,
    /// Number of shards, at the birth of a cluster.
    pub shards: Option<u32>,
    /// Number of slots, at the birth of a cluster.
    pub slots: Option<u32>,
    /// State machine of all shards, at the birth of a cluster; the key-value
    /// store unless given.
    pub plugin: Option<PathBuf>,
    /// What clients may ask for.
    pub limits: RequestLimits,
    /// Settings of the database.
    pub storage: StorageOptions,
    /// Settings of the Raft runtime.
    pub raft: raft_lite::Config,
}

/// Shards of a new cluster unless said otherwise.
pub const DEFAULT_SHARDS: u32 = 4;
/// Slots of a new cluster unless said otherwise.
pub const DEFAULT_SLOTS: u32 = 256;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The data folder belongs to something else, or can not be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address can not be listened on.
    #[error(
        "cannot listen on {address}: {source}; choose another with --port or stop what uses it"
    )]
    Listen {
        /// `host:port`.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The database can not be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The Raft log can not be used.
    #[error(transparent)]
    Log(#[from] LogStoreError),
    /// A plugin can not be used.
    #[error(transparent)]
    Plugin(#[from] PluginFileError),
    /// The Raft groups can not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A server can not be set up.
    #[error("cannot set up the server: {0}")]
    Server(String),
}

impl From<OpenError> for NodeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Storage(error) => error.into(),
            OpenError::Plugin(error) => error.into(),
        }
    }
}

impl NodeError {
    /// Whether the user asked for something that can not be, as against
    /// something in the way.
    pub fn is_usage(&self) -> bool {
        match self {
            NodeError::Config(_) => true,
            NodeError::Identity(error) => error.is_usage(),
            NodeError::Plugin(PluginFileError::Module { .. }) => true,
            _ => false,
        }
    }
}

/// A running node.
pub struct Node {
    raft: Arc<MultiRaft>,
    storage: Arc<Storage>,
    service: Arc<Service>,
    listener: TcpListener,
    address: SocketAddr,
    _folder: DataFolder,
}

impl Node {
    /// Starts a node from its data folder, making a cluster of one if the folder
    /// is new.
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        let birth = check(&config)?;
        let plugin = config.plugin.as_deref().map(PluginFile::read).transpose()?;
        // First of all, so that nothing is touched if the port is taken.
        let listener = listen(&config).await?;
        let address =
            listener.local_addr().map_err(|error| NodeError::Server(error.to_string()))?;
        let folder = DataFolder::open(&config.data_dir, &config.node_id, birth)?;
        let identity = folder.identity();
        let folder_name = config.data_dir.display();
        refuse_change("--slots", config.slots, identity.slots, &folder_name)?;
        refuse_change("--shards", config.shards, identity.shards, &folder_name)?;
        let storage = Arc::new(Storage::open(&config.data_dir.join("state"), config.storage)?);
        let servers = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = Threads { appliers: config.raft.appliers, servers };
        let plugins = PluginStore::open(config.data_dir.join("plugins"), threads.executors())?;
        let machine = Arc::new(Machine::open(Arc::clone(&storage), &plugins, threads)?);
        if machine.shards().is_empty() {
            let plugin = store_plugin(&plugins, plugin.as_ref())?;
            let records = first_shards(&config.node_id, identity.slots, identity.shards, plugin);
            machine.create(records, &plugins)?;
        } else {
            check_same_plugin(&machine, plugin.as_ref(), &folder_name)?;
        }
        let log = EngineLogStore::open(&config.data_dir.join("raft"), EngineOptions::default())?;
        let parts = Parts {
            log: Arc::new(log),
            state_machine: Arc::clone(&machine) as _,
            transport: Arc::new(NoTransport),
            clock: Arc::new(SystemClock),
        };
        let raft = Arc::new(MultiRaft::start(config.raft.clone(), parts, descriptors(&machine))?);
        machine.note_started()?;
        let routing = RoutingTable::of(&machine, identity.slots);
        let metrics = Metrics::new(&shard_labels(&machine))
            .map_err(|error| NodeError::Server(error.to_string()))?;
        let service = Arc::new(Service::new(ServiceParts {
            raft: Arc::clone(&raft),
            machine,
            routing,
            limits: config.limits,
            metrics: Arc::new(metrics),
            info: NodeInfo {
                node_id: config.node_id,
                cluster_id: identity.cluster_id.clone(),
                address: address.to_string(),
            },
            data_folder: config.data_dir,
        }));
        Ok(Node { raft, storage, service, listener, address, _folder: folder })
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, then answers what is under way and brings
    /// everything to the disk.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Node { raft, storage, service, listener, .. } = self;
        api::serve(Arc::clone(&service), listener, stop)
            .await
            .map_err(|error| NodeError::Server(error.to_string()))?;
        raft.shutdown();
        storage.flush()?;
        Ok(())
    }
}

async fn listen(config: &NodeConfig) -> Result<TcpListener, NodeError> {
    let address = format!("{}:{}", config.host, config.port);
    TcpListener::bind((config.host.as_str(), config.port))
        .await
        .map_err(|source| NodeError::Listen { address, source })
}

/// Checks what can be checked without touching anything, and fills in what a new
/// cluster would be like.
fn check(config: &NodeConfig) -> Result<Birth, NodeError> {
    let fail = |message: String| Err(NodeError::Config(message));
    let id = &config.node_id;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > 64 || !id.chars().all(allowed) {
        return fail(format!(
            "--node-id {id:?}: an id has 1 to 64 letters, digits, '-', '_' or '.'"
        ));
    }
    let slots = config.slots.unwrap_or(DEFAULT_SLOTS);
    if !(1..=MAX_SLOTS).contains(&slots) {
        return fail(format!("--slots {slots}: must be 1 to {MAX_SLOTS}"));
    }
    let shards = config.shards.unwrap_or(DEFAULT_SHARDS.min(slots));
    if !(1..=slots).contains(&shards) {
        return fail(format!("--shards {shards}: must be 1 to the number of slots, {slots}"));
    }
    Ok(Birth { slots, shards })
}

/// What was fixed when the cluster was born can be named again, but not changed.
fn refuse_change(
    option: &str,
    asked: Option<u32>,
    born: u32,
    folder: &dyn fmt::Display,
) -> Result<(), NodeError> {
    match asked.filter(|asked| *asked != born) {
        None => Ok(()),
        Some(asked) => Err(NodeError::Config(format!(
            "{option} {asked}: the cluster in {folder} was born with {born}; leave the option out"
        ))),
    }
}

/// A plugin that the command line names.
struct PluginFile<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> PluginFile<'a> {
    fn read(path: &'a Path) -> Result<Self, NodeError> {
        let bytes = std::fs::read(path)
            .map_err(|error| NodeError::Config(format!("--plugin {}: {error}", path.display())))?;
        let refused = |source| PluginFileError::Module { path: path.to_owned(), source };
        check_module(&bytes).map_err(refused)?;
        Ok(PluginFile { path, bytes })
    }
}

fn store_plugin(
    plugins: &PluginStore,
    file: Option<&PluginFile<'_>>,
) -> Result<PluginId, NodeError> {
    match file {
        None => Ok(plugins.add(DEFAULT_PLUGIN, Path::new("the embedded key-value store"))?),
        Some(file) => Ok(plugins.add(&file.bytes, file.path)?),
    }
}

/// `--plugin` names the plugin at birth; later it can only be the same one.
fn check_same_plugin(
    machine: &Machine,
    file: Option<&PluginFile<'_>>,
    folder: &dyn fmt::Display,
) -> Result<(), NodeError> {
    let Some(file) = file else { return Ok(()) };
    let named = ModuleHash::of(&file.bytes);
    if machine.shards().iter().all(|shard| shard.module().hash() == named) {
        return Ok(());
    }
    Err(NodeError::Config(format!(
        "--plugin {}: the cluster in {folder} was born with another plugin; leave the option out",
        file.path.display()
    )))
}

/// The shards of a new cluster of one node: the slots cut into even ranges.
fn first_shards(node: &str, slots: u32, shards: u32, plugin: PluginId) -> Vec<ShardRecord> {
    let boundary = |shard: u32| (u64::from(slots) * u64::from(shard) / u64::from(shards)) as u32;
    let record = |shard: u32| {
        let number = u64::from(shard) + 1;
        let replica = ReplicaId(number);
        ShardRecord {
            group: GroupId(number),
            replica,
            name: format!("shard_{shard}"),
            epoch: 1,
            slots: vec![SlotRange { start: Slot(boundary(shard)), end: Slot(boundary(shard + 1)) }],
            voters: vec![VoterRecord { replica, node: node.to_owned() }],
            plugin,
            frozen: false,
            started: false,
            applied_by_snapshot: false,
        }
    };
    (0..shards).map(record).collect()
}

fn descriptors(machine: &Machine) -> Vec<GroupDescriptor> {
    let describe = |shard: &Arc<Shard>| {
        let record = shard.record();
        let voters: BTreeMap<ReplicaId, NodeId> =
            record.voters.iter().map(|v| (v.replica, v.node_number())).collect();
        GroupDescriptor {
            group: record.group,
            replica: record.replica,
            voters,
            epoch: record.epoch,
            record: Machine::replica_record(shard),
        }
    };
    machine.shards().iter().map(describe).collect()
}

/// Name and plugin of each shard, in the order of the routing table.
fn shard_labels(machine: &Machine) -> Vec<(String, String)> {
    let label = |shard: &Arc<Shard>| {
        let plugin = shard.module().info().manifest.name.clone();
        (shard.record().name.clone(), plugin)
    };
    machine.shards().iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_shards_own_every_slot_once() {
        for (slots, shards) in [(256, 4), (256, 7), (5, 5), (16_384, 10), (1, 1)] {
            let records = first_shards("node1", slots, shards, [0; 32]);
            assert_eq!(records.len(), shards as usize);
            for slot in (0..slots).map(Slot) {
                let owners = records.iter().filter(|record| record.owns(slot)).count();
                assert_eq!(owners, 1, "slot {} of {slots} over {shards} shards", slot.0);
            }
            assert!(records.iter().all(|record| !record.owns(Slot(slots))));
        }
    }
}
