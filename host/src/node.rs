//! A node: everything constructed and joined. Nothing else constructs.

mod disk;
mod founding;
mod identity;
mod joining;

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use raft_lite::{
    EngineLogStore, EngineOptions, GroupId, LogStoreError, MultiRaft, Parts, ReplicaId, StartError,
    SystemClock,
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

use crate::{
    api,
    machine::{Compiler, Machine, OpenError, PluginFileError, PluginStore, Threads, plugin_id},
    meta::{META_GROUP, MetaState},
    metrics::Metrics,
    network::{BirthError, Introduction, Network, NetworkConfig, PeerConfig},
    service::{BalancerConfig, COPY_FILE, NodeInfo, RequestLimits, Service, ServiceParts},
    storage::{
        MAX_SLOTS, PluginId, ShardRecord, SnapshotFolders, Storage, StorageError, StorageOptions,
        node_number,
    },
};

use disk::Disk;
use founding::PluginFile;
pub use identity::IdentityError;
use identity::{DataFolder, Identity};

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
    /// All nodes of a new cluster, this one among them, by their ids: `host:port`
    /// that each is reached at. A cluster of one node unless given.
    pub cluster: Option<BTreeMap<String, String>>,
    /// `host:port` of a node of a running cluster that this one is to join.
    pub join: Option<String>,
    /// Where this node reaches others, if not where the cluster's list says.
    pub peers: BTreeMap<String, String>,
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
    /// Bytes that have to stay free on the disk, for writes to be taken; 1 GiB or a
    /// twentieth of the disk, whichever is less, unless given.
    pub disk_reserve_bytes: Option<u64>,
    /// Bytes of snapshots that the node sends in a second, to all others together.
    pub snapshot_bytes_per_second: u64,
    /// When the balancer does what.
    pub balancer: BalancerConfig,
    /// Where modules of plugins are compiled.
    pub compiler: Compiler,
    /// Settings of the Raft runtime.
    pub raft: raft_lite::Config,
}

/// Shards of a new cluster unless said otherwise.
pub const DEFAULT_SHARDS: u32 = 4;
/// Slots of a new cluster unless said otherwise.
pub const DEFAULT_SLOTS: u32 = 256;

/// Bytes of snapshots that a node sends in a second unless said otherwise.
pub const DEFAULT_SNAPSHOT_RATE: u64 = 64 << 20;

/// For so long the other nodes' calls are kept when the node stops.
const PEERS_STAY: Duration = Duration::from_millis(200);
/// For so long a node that was removed goes on, so that whoever asked it for that hears of it.
const REMOVED_STAYS: Duration = Duration::from_secs(1);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The data folder belongs to something else, or can not be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node can not take part in its cluster.
    #[error(transparent)]
    Birth(#[from] BirthError),
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
    /// The folder of snapshots can not be used.
    #[error("cannot use the folder of snapshots: {source}")]
    Snapshots {
        /// What the system said.
        source: io::Error,
    },
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
            OpenError::Thread(error) => StartError::Thread(error).into(),
        }
    }
}

impl NodeError {
    /// Whether the user asked for something that can not be, as against
    /// something in the way.
    pub fn is_usage(&self) -> bool {
        match self {
            NodeError::Config(_) | NodeError::Birth(_) => true,
            NodeError::Identity(error) => error.is_usage(),
            NodeError::Plugin(PluginFileError::Module { .. }) => true,
            _ => false,
        }
    }
}

/// A running node.
pub struct Node {
    raft: Arc<MultiRaft>,
    network: Arc<Network>,
    storage: Arc<Storage>,
    service: Arc<Service>,
    introduction: Introduction,
    disk_watch: AbortHandle,
    following: JoinSet<()>,
    listener: TcpListener,
    address: SocketAddr,
    _folder: DataFolder,
}

impl Node {
    /// Starts a node from its data folder. A new folder makes a cluster of one
    /// node, or waits for the other nodes of the cluster it is told of.
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        check(&config)?;
        let plugin = config.plugin.as_deref().map(PluginFile::read).transpose()?;
        // First of all, so that nothing is touched if the port is taken.
        let listener = listen(&config).await?;
        let address =
            listener.local_addr().map_err(|error| NodeError::Server(error.to_string()))?;
        let mut folder = DataFolder::open(&config.data_dir, &config.node_id)?;
        founding::settle(&config, plugin.as_ref(), &mut folder, &listener).await?;
        let identity = folder.identity().cloned().expect("the folder was settled");
        let storage = Arc::new(Storage::open(&config.data_dir.join("state"), config.storage)?);
        let folders = SnapshotFolders::open(config.data_dir.join("snapshots"));
        let folders = Arc::new(folders.map_err(|source| NodeError::Snapshots { source })?);
        let opened = open_machine(&config, &identity, plugin.as_ref(), &storage, &folders)?;
        let (machine, default_plugin, copy) = opened;
        let network =
            Network::new(network_config(&config, &identity, &copy, folder.number()), folders);
        let log = EngineLogStore::open(&config.data_dir.join("raft"), EngineOptions::default())?;
        let parts = Parts {
            log: Arc::new(log),
            state_machine: Arc::clone(&machine) as _,
            transport: Arc::clone(&network) as _,
            clock: Arc::new(SystemClock),
        };
        let raft = Arc::new(MultiRaft::start(config.raft.clone(), parts, machine.descriptors())?);
        machine.note_started()?;
        network.start(Arc::clone(&raft));
        let metrics = Metrics::new().map_err(|error| NodeError::Server(error.to_string()))?;
        let metrics = Arc::new(metrics);
        let disk =
            Disk { folder: config.data_dir.clone(), reserve_bytes: config.disk_reserve_bytes };
        let disk_watch = disk::watch(disk, Arc::clone(&raft), Arc::clone(&metrics));
        let service = Arc::new(Service::new(ServiceParts {
            raft: Arc::clone(&raft),
            network: Arc::clone(&network),
            machine,
            slots: identity.slots,
            copy,
            default_plugin,
            balancer: config.balancer,
            limits: config.limits,
            metrics,
            info: node_info(&config, &identity, address),
            data_folder: config.data_dir,
        }));
        let introduction = founding::introduction(&folder, &identity);
        let following = service.start_following();
        Ok(Node {
            raft,
            network,
            storage,
            service,
            introduction,
            disk_watch,
            following,
            listener,
            address,
            _folder: folder,
        })
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, or until the node is removed from the cluster; then
    /// answers what is under way and brings everything to the disk.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Node { raft, network, storage, service, introduction, disk_watch, listener, .. } = self;
        let mut following = self.following;
        let (peers, streams) = (Arc::clone(&network), Arc::clone(&service));
        let removed = service.removed();
        let stop = async move {
            tokio::select! {
                () = stop => {}
                () = removed => {
                    let advice = "to bring it back, delete its data folder and have it join";
                    tracing::info!("this node was removed from the cluster and ends; {advice}");
                    tokio::time::sleep(REMOVED_STAYS).await;
                }
            }
            streams.stop();
            // Requests under way may need the other nodes for a moment.
            tokio::spawn(async move {
                tokio::time::sleep(PEERS_STAY).await;
                peers.hang_up();
            });
        };
        let doors = api::Doors { service, network: Arc::clone(&network), introduction };
        api::serve(doors, listener, stop)
            .await
            .map_err(|error| NodeError::Server(error.to_string()))?;
        disk_watch.abort();
        following.shutdown().await;
        network.stop();
        raft.shutdown();
        storage.flush()?;
        Ok(())
    }
}

/// The shards on record, those of a new cluster are put there first; the plugin that the
/// cluster was born with; and what is known of the cluster at first.
fn open_machine(
    config: &NodeConfig,
    identity: &Identity,
    plugin: Option<&PluginFile<'_>>,
    storage: &Arc<Storage>,
    folders: &Arc<SnapshotFolders>,
) -> Result<(Arc<Machine>, PluginId, MetaState), NodeError> {
    let servers = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = Threads { appliers: config.raft.appliers, servers };
    let folder = config.data_dir.join("plugins");
    let plugins = PluginStore::open(folder, threads.executors(), config.compiler.clone())?;
    let plugins = Arc::new(plugins);
    let (store, folders) = (Arc::clone(&plugins), Arc::clone(folders));
    let fresh_from = GroupId(identity.fresh_from);
    let machine = Machine::open(Arc::clone(storage), store, folders, threads, fresh_from)?;
    let machine = Arc::new(machine);
    let is_founded = machine.is_founded()?;
    if !is_founded {
        founding::store_plugin(&plugins, plugin)?;
    }
    let plugin = plugin_id(&identity.plugin);
    let records = founding::first_records(identity, plugin);
    let entry = founding::first_plugin(identity, &plugins);
    let first = founding::first_state(identity, &records, entry);
    if !is_founded {
        let begins_empty = identity.came_back || identity.joined;
        let own = records.into_iter().filter(|r| r.replica != ReplicaId::default());
        let own: Vec<ShardRecord> = if begins_empty { Vec::new() } else { own.collect() };
        let keeps_meta = own.iter().any(|record| record.group == META_GROUP);
        machine.create(own, keeps_meta.then(|| first.clone()))?;
    }
    let copy = match std::fs::read(config.data_dir.join(COPY_FILE)) {
        Ok(stored) => MetaState::decode(&stored).ok(),
        Err(_) => None,
    };
    // What a node that joined knows is whom to ask.
    let known = if identity.joined {
        MetaState { version: 0, shards: BTreeMap::new(), ..first }
    } else {
        first
    };
    Ok((machine, plugin, copy.unwrap_or(known)))
}

fn network_config(
    config: &NodeConfig,
    identity: &Identity,
    copy: &MetaState,
    folder: u64,
) -> NetworkConfig {
    let others = copy.nodes.iter().filter(|(id, _)| **id != identity.node_id);
    let peer = |(id, node): (&String, &crate::meta::NodeEntry)| PeerConfig {
        node_id: id.clone(),
        number: node_number(id),
        address: node.address.clone(),
        dial: config.peers.get(id).unwrap_or(&node.address).clone(),
    };
    NetworkConfig {
        node_id: identity.node_id.clone(),
        cluster_id: identity.cluster_id.clone(),
        election_timeout: config.raft.election_timeout(),
        snapshot_bytes_per_second: config.snapshot_bytes_per_second,
        folder,
        peers: others.map(peer).collect(),
        detours: config.peers.clone(),
    }
}

fn node_info(config: &NodeConfig, identity: &Identity, address: SocketAddr) -> NodeInfo {
    let own = identity.members.iter().find(|member| member.node_id == identity.node_id);
    // A node alone is where it listens now; others know a member by its address.
    let known = own.filter(|_| identity.members.len() > 1).map(|member| member.address.clone());
    NodeInfo {
        node_id: config.node_id.clone(),
        number: node_number(&config.node_id),
        cluster_id: identity.cluster_id.clone(),
        address: known.unwrap_or_else(|| address.to_string()),
    }
}

async fn listen(config: &NodeConfig) -> Result<TcpListener, NodeError> {
    let address = format!("{}:{}", config.host, config.port);
    TcpListener::bind((config.host.as_str(), config.port))
        .await
        .map_err(|source| NodeError::Listen { address, source })
}

/// Checks what can be checked without touching anything.
fn check(config: &NodeConfig) -> Result<(), NodeError> {
    let fail = |message: String| Err(NodeError::Config(message));
    let id = &config.node_id;
    check_node_id("--node-id", id)?;
    if config.join.is_some()
        && (config.cluster.is_some() || config.shards.is_some() || config.slots.is_some())
    {
        return fail("--join: a cluster that is running has its nodes, shards and slots; leave --cluster, --shards and --slots out".to_owned());
    }
    if let Some(cluster) = &config.cluster {
        for node in cluster.keys() {
            check_node_id("--cluster", node)?;
        }
        if !cluster.contains_key(id) {
            return fail(format!("--cluster: this node, {id}, is not in the list"));
        }
    }
    let slots = config.slots.unwrap_or(DEFAULT_SLOTS);
    if !(1..=MAX_SLOTS).contains(&slots) {
        return fail(format!("--slots {slots}: must be 1 to {MAX_SLOTS}"));
    }
    let shards = config.shards.unwrap_or(DEFAULT_SHARDS.min(slots));
    if !(1..=slots).contains(&shards) {
        return fail(format!("--shards {shards}: must be 1 to the number of slots, {slots}"));
    }
    Ok(())
}

fn check_node_id(option: &str, id: &str) -> Result<(), NodeError> {
    crate::meta::check_node_id(id)
        .map_err(|message| NodeError::Config(format!("{option} {message}")))
}
