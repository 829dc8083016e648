//! Settings: from the command line, else from the configuration file, else the
//! defaults.

use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

use clap::Parser;
use raft_kv::{
    machine::{CompileLimits, Compiler},
    node::{DEFAULT_SHARDS, DEFAULT_SLOTS, DEFAULT_SNAPSHOT_RATE, NodeConfig},
    service::{BalancerConfig, RequestLimits},
    storage::StorageOptions,
};
use serde::Deserialize;

/// The Raft log's engine tells at every start what it read, and warns of the end
/// of its newest file after every kill: of use to few. What matters is found by
/// the log store and comes as an error.
const DEFAULT_LOG: &str = "info,raft_engine=error";

/// A distributed key-value store whose state machine is a WebAssembly plugin.
#[derive(Debug, Parser)]
#[command(name = "raft-kv", version)]
pub struct Arguments {
    /// Id of this node; fixed for a data folder [default: node1]
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Where the node keeps its data [default: ./data/<node id>]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Address to listen on [default: this node's in --cluster, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on, for gRPC and HTTP [default: this node's in --cluster, else
    /// 5001]
    #[arg(long)]
    port: Option<u16>,
    /// All nodes of a new cluster, the same on each: node1=127.0.0.1:5001,node2=...
    #[arg(long, value_name = "NODES")]
    cluster: Option<String>,
    /// A node of a running cluster that this one is to join
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["cluster", "shards", "slots"])]
    join: Option<String>,
    /// Replace the replicas of a node that is gone for so many seconds [default: 300]
    #[arg(long, value_name = "SECONDS")]
    replace_after: Option<u64>,
    /// Number of shards, at the birth of a cluster
    #[arg(long, value_name = "N", help = format!(
        "Number of shards, at the birth of a cluster [default: {DEFAULT_SHARDS}]"
    ))]
    shards: Option<u32>,
    /// Number of slots the key space is cut into, at the birth of a cluster
    #[arg(long, value_name = "N", help = format!(
        "Number of slots the keys fall into, at the birth of a cluster [default: {DEFAULT_SLOTS}]"
    ))]
    slots: Option<u32>,
    /// State machine of all shards, at the birth of a cluster [default: the
    /// key-value store]
    #[arg(long, value_name = "FILE.wasm")]
    plugin: Option<PathBuf>,
    /// File with settings; the command line wins
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug or trace, or tracing's filters
    /// [default: info]
    #[arg(long, env = "RAFT_KV_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// The configuration file. Every setting can be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    node_id: Option<String>,
    data_dir: Option<PathBuf>,
    host: Option<String>,
    port: Option<u16>,
    cluster: Option<String>,
    join: Option<String>,
    shards: Option<u32>,
    slots: Option<u32>,
    plugin: Option<PathBuf>,
    /// Where this node reaches others.
    #[serde(default)]
    peers: BTreeMap<String, String>,
    log: Option<String>,
    #[serde(default)]
    server: Server,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    storage: Storage,
    #[serde(default)]
    raft: Raft,
    #[serde(default)]
    balancer: Balancer,
    #[serde(default)]
    plugins: Plugins,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Server {
    threads: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Limits {
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
    batch_operations: Option<usize>,
    request_timeout_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Storage {
    memtable_bytes: Option<usize>,
    block_cache_bytes: Option<usize>,
    disk_reserve_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raft {
    workers: Option<usize>,
    appliers: Option<usize>,
    tick_ms: Option<u64>,
    election_ticks: Option<usize>,
    quiesce_after_ticks: Option<usize>,
    snapshot_bytes_per_second: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Balancer {
    replace_after_seconds: Option<u64>,
    settle_ms: Option<u64>,
    split_bytes: Option<u64>,
    split_operations: Option<u64>,
    merge_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Plugins {
    compile_memory_bytes: Option<u64>,
    compile_cpu_seconds: Option<u64>,
}

/// Everything the program is started with.
#[derive(Debug)]
pub struct Settings {
    /// The node's settings.
    pub node: NodeConfig,
    /// What to log.
    pub log: String,
    /// Threads for connections and requests.
    pub server_threads: usize,
}

impl Settings {
    /// Joins the command line, the file it names, and the defaults.
    pub fn load(arguments: Arguments) -> Result<Settings, String> {
        let file = match &arguments.config {
            None => File::default(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|error| format!("--config {}: {error}", path.display()))?;
                toml::from_str(&text)
                    .map_err(|error| format!("--config {}: {error}", path.display()))?
            }
        };
        let node_id = arguments.node_id.or(file.node_id).unwrap_or_else(|| "node1".to_owned());
        let cluster = arguments.cluster.or(file.cluster);
        let cluster = cluster.map(|list| parse_cluster(&list)).transpose()?;
        for (node, address) in &file.peers {
            split_address(address)
                .map_err(|error| format!("peers: {node} = {address:?}: {error}"))?;
        }
        let own = cluster.as_ref().and_then(|cluster| cluster.get(&node_id));
        let own = own.map(|address| split_address(address)).transpose()?;
        let (own_host, own_port) = own.unwrap_or_else(|| ("127.0.0.1".to_owned(), 5001));
        let host = arguments.host.or(file.host).unwrap_or(own_host);
        let port = arguments.port.or(file.port).unwrap_or(own_port);
        let data_dir = arguments.data_dir.or(file.data_dir);
        let node = NodeConfig {
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from("./data").join(&node_id)),
            node_id,
            host,
            port,
            cluster,
            join: join(arguments.join.or(file.join))?,
            peers: file.peers,
            shards: arguments.shards.or(file.shards),
            slots: arguments.slots.or(file.slots),
            plugin: arguments.plugin.or(file.plugin),
            limits: limits(&file.limits)?,
            storage: storage(&file.storage),
            snapshot_bytes_per_second: file
                .raft
                .snapshot_bytes_per_second
                .unwrap_or(DEFAULT_SNAPSHOT_RATE),
            disk_reserve_bytes: file.storage.disk_reserve_bytes,
            balancer: balancer(&file.balancer, arguments.replace_after),
            compiler: compiler(&file.plugins)?,
            raft: raft(&file.raft)?,
        };
        let log = arguments.log.or(file.log).unwrap_or_else(|| DEFAULT_LOG.to_owned());
        let server_threads = server_threads(&file.server, &node.raft)?;
        Ok(Settings { node, log, server_threads })
    }
}

/// The node to join by, whether or not it is written as a URL.
fn join(at: Option<String>) -> Result<Option<String>, String> {
    let Some(at) = at else { return Ok(None) };
    let address = at.strip_prefix("http://").unwrap_or(&at).trim_end_matches('/');
    split_address(address).map_err(|error| format!("--join: {error}"))?;
    Ok(Some(address.to_owned()))
}

fn balancer(file: &Balancer, replace_after: Option<u64>) -> BalancerConfig {
    let default = BalancerConfig::default();
    let replace_after = replace_after.or(file.replace_after_seconds);
    BalancerConfig {
        replace_after: replace_after.map_or(default.replace_after, Duration::from_secs),
        settle: file.settle_ms.map_or(default.settle, Duration::from_millis),
        split_bytes: file.split_bytes.unwrap_or(default.split_bytes),
        split_operations: file.split_operations.unwrap_or(default.split_operations),
        merge_bytes: file.merge_bytes.unwrap_or(default.merge_bytes),
    }
}

/// Reads a list of nodes and their addresses.
fn parse_cluster(list: &str) -> Result<BTreeMap<String, String>, String> {
    let mut cluster = BTreeMap::new();
    for node in list.split(',').map(str::trim).filter(|node| !node.is_empty()) {
        let fail = |error: &str| Err(format!("--cluster: {node:?}: {error}"));
        let Some((id, address)) = node.split_once('=') else {
            return fail("write node1=127.0.0.1:5001");
        };
        if let Err(error) = split_address(address) {
            return fail(&error);
        }
        if cluster.values().any(|taken| taken == address) {
            return fail("another node has the same address");
        }
        if cluster.insert(id.to_owned(), address.to_owned()).is_some() {
            return fail("the list has this node twice");
        }
    }
    if cluster.is_empty() {
        return Err("--cluster: the list is empty; write node1=127.0.0.1:5001,...".to_owned());
    }
    Ok(cluster)
}

/// Host and port of an address.
fn split_address(address: &str) -> Result<(String, u16), String> {
    let wrong = || format!("{address:?} is not host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(['/', '@', ' ']) || port == 0 {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

/// Unless it is said otherwise, the cores that the groups' own threads leave: more
/// threads than cores cost more in changes between them than they are worth.
fn server_threads(file: &Server, raft: &raft_lite::Config) -> Result<usize, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match file.threads {
        Some(0) => Err("server: threads must be above 0".to_owned()),
        Some(threads) => Ok(threads),
        None => Ok(cores.saturating_sub(raft.workers + raft.appliers).max(1)),
    }
}

fn limits(file: &Limits) -> Result<RequestLimits, String> {
    let default = RequestLimits::default();
    let limits = RequestLimits {
        key_bytes: file.key_bytes.unwrap_or(default.key_bytes),
        value_bytes: file.value_bytes.unwrap_or(default.value_bytes),
        batch_operations: file.batch_operations.unwrap_or(default.batch_operations),
        timeout: file.request_timeout_ms.map_or(default.timeout, Duration::from_millis),
        ..default
    };
    // What a plugin can be given, see the plugin ABI.
    if limits.key_bytes > default.key_bytes || limits.value_bytes > default.value_bytes {
        return Err(format!(
            "limits: keys can have at most {} bytes, values {}",
            default.key_bytes, default.value_bytes
        ));
    }
    Ok(limits)
}

/// This program compiles modules, in a process of its own.
fn compiler(file: &Plugins) -> Result<Compiler, String> {
    let program = env::current_exe()
        .map_err(|error| format!("cannot find this program's own file: {error}"))?;
    let default = CompileLimits::default();
    let limits = CompileLimits {
        memory_bytes: file.compile_memory_bytes.unwrap_or(default.memory_bytes),
        cpu_seconds: file.compile_cpu_seconds.unwrap_or(default.cpu_seconds),
    };
    Ok(Compiler::Process { program, limits })
}

fn storage(file: &Storage) -> StorageOptions {
    let default = StorageOptions::default();
    StorageOptions {
        memtable_bytes: file.memtable_bytes.unwrap_or(default.memtable_bytes),
        block_cache_bytes: file.block_cache_bytes.unwrap_or(default.block_cache_bytes),
    }
}

fn raft(file: &Raft) -> Result<raft_lite::Config, String> {
    let default = raft_lite::Config::default();
    let config = raft_lite::Config {
        workers: file.workers.unwrap_or(default.workers),
        appliers: file.appliers.unwrap_or(default.appliers),
        tick_interval: file.tick_ms.map_or(default.tick_interval, Duration::from_millis),
        election_ticks: file.election_ticks.unwrap_or(default.election_ticks),
        quiesce_after_ticks: file.quiesce_after_ticks.unwrap_or(default.quiesce_after_ticks),
        seed: rand::random(),
        ..default
    };
    if config.workers == 0 || config.appliers == 0 || config.tick_interval.is_zero() {
        return Err("raft: workers, appliers and tick-ms must be above 0".to_owned());
    }
    if config.election_ticks <= config.heartbeat_ticks {
        let least = config.heartbeat_ticks;
        return Err(format!("raft: election-ticks must be above {least}, a heartbeat's"));
    }
    Ok(config)
}
