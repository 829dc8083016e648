//! Several nodes that make a cluster: those that it was born with, and others that join.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use raft_kv_client::RaftKVClient;
use raft_kv_proto::v1::{ChecksumRequest, StatusRequest, StatusResponse};

use crate::{
    grpc, http,
    node::{Node, NodeOptions},
    proxy::Proxy,
    view::ClusterView,
    wait::{eventually, wait_for},
};

/// Within this all replicas of a cluster that is left alone are the same.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// Within this all nodes of a cluster are ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Client requests of tests may take so long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// How to start a cluster.
#[derive(Clone, Debug)]
#[must_use = "options do nothing until a cluster is started"]
pub struct ClusterOptions {
    nodes: usize,
    node: NodeOptions,
    proxies: bool,
}

impl ClusterOptions {
    /// Three nodes with the defaults of the program.
    pub fn new() -> Self {
        Self { nodes: 3, node: NodeOptions::new(), proxies: false }
    }

    /// So many nodes.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Starts each node like this.
    pub fn node(mut self, node: NodeOptions) -> Self {
        self.node = node;
        self
    }

    /// Puts a proxy into each link between two nodes.
    pub fn proxies(mut self) -> Self {
        self.proxies = true;
        self
    }

    /// Starts the cluster and waits until all nodes are ready.
    ///
    /// # Panics
    /// If they do not get ready.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.launch_all();
        cluster.wait_until_ready();
        cluster
    }

    /// The cluster, with no node started.
    ///
    /// # Panics
    /// If the system has no room for it.
    pub fn create(self) -> Cluster {
        let mut nodes: Vec<Node> = (0..self.nodes).map(|_| self.node.clone().create()).collect();
        let list: Vec<String> = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| format!("{}={}", id(place), node.address()))
            .collect();
        let mut links = BTreeMap::new();
        for place in 0..nodes.len() {
            nodes[place].add_argument("--node-id");
            nodes[place].add_argument(id(place));
            if self.proxies {
                let others = (0..nodes.len()).filter(|other| *other != place);
                let proxies: BTreeMap<usize, Proxy> =
                    others.map(|other| (other, Proxy::before(nodes[other].address()))).collect();
                let lines = proxies
                    .iter()
                    .map(|(other, proxy)| format!("{} = \"{}\"\n", id(*other), proxy.address()));
                let file = nodes[place].folder().join("config.toml");
                let text = format!("[peers]\n{}", lines.collect::<String>());
                fs::write(&file, text).expect("the folder is writable");
                nodes[place].add_argument("--config");
                nodes[place].add_argument(&file);
                links.extend(proxies.into_iter().map(|(other, proxy)| ((place, other), proxy)));
            }
        }
        Cluster { nodes, list, links, options: self.node }
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The id of the node at a place.
fn id(place: usize) -> String {
    format!("node{}", place + 1)
}

/// A cluster. Its nodes have places from 0 on.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// The members that it is born with, as `--cluster` lists them.
    list: Vec<String>,
    /// How each node is started.
    options: NodeOptions,
    /// The proxies, by from where to where.
    links: BTreeMap<(usize, usize), Proxy>,
}

impl Cluster {
    /// Starts three nodes with the defaults and waits until they are ready.
    ///
    /// # Panics
    /// If they do not get ready.
    pub fn start() -> Self {
        ClusterOptions::new().start()
    }

    /// What `--cluster` says.
    pub fn list(&self) -> String {
        self.list.join(",")
    }

    /// A node.
    pub fn node(&self, place: usize) -> &Node {
        &self.nodes[place]
    }

    /// A node, to do something to it.
    pub fn node_mut(&mut self, place: usize) -> &mut Node {
        &mut self.nodes[place]
    }

    /// How many nodes there are.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Starts a node and waits for nothing.
    pub fn launch(&mut self, place: usize) {
        let list = self.list();
        self.launch_with(place, &list);
    }

    /// Starts a node with this for `--cluster`.
    pub fn launch_with(&mut self, place: usize, list: &str) {
        let node = &mut self.nodes[place];
        node.add_argument("--cluster");
        node.add_argument(list);
        node.launch();
        node.remove_last_arguments(2);
    }

    /// Starts all nodes that do not run.
    pub fn launch_all(&mut self) {
        for place in 0..self.nodes.len() {
            if !self.nodes[place].is_running() {
                self.launch(place);
            }
        }
    }

    /// Waits until all nodes that run are ready.
    ///
    /// # Panics
    /// If one ends instead, or takes too long.
    pub fn wait_until_ready(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            wait_for("the nodes to be ready", READY_WITHIN, || {
                if let Some(status) = node.exit_status() {
                    panic!("a node ended with {status} instead of getting ready");
                }
                node.is_ready().then_some(())
            });
        }
    }

    /// Kills a node as a crash would.
    pub fn kill(&mut self, place: usize) {
        self.nodes[place].kill();
    }

    /// Starts a node again, which belongs to the cluster, and waits for nothing.
    pub fn restart(&mut self, place: usize) {
        self.nodes[place].launch();
    }

    /// Starts a new node that joins by way of another; gives its place and waits for
    /// nothing. It has the id that comes next, and no proxies.
    pub fn join(&mut self, by: usize) -> usize {
        let (place, mut node) = (self.nodes.len(), self.options.clone().create());
        node.add_argument("--node-id");
        node.add_argument(id(place));
        self.nodes.push(node);
        self.join_again(place, by);
        place
    }

    /// Starts a node that has lost its folder, or never had one, to join by way of
    /// another, and waits for nothing.
    pub fn join_again(&mut self, place: usize, by: usize) {
        let at = self.nodes[by].address().to_string();
        let node = &mut self.nodes[place];
        node.forget_birth();
        node.add_argument("--join");
        node.add_argument(at);
        node.launch();
        node.remove_last_arguments(2);
    }

    /// Sends a request without any header to a node's HTTP door.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn request(&self, place: usize, method: &str, target: &str, body: &str) -> http::Response {
        let answer = self.nodes[place].http().request(method, target, body.as_bytes());
        answer.unwrap_or_else(|error| panic!("{method} {target} at {}: {error}", id(place)))
    }

    /// What a node says of the whole cluster.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn view_at(&self, place: usize) -> ClusterView {
        ClusterView::of(&self.request(place, "GET", "/admin/cluster", ""))
    }

    /// What the first running node says of the whole cluster.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn view(&self) -> ClusterView {
        self.view_at(self.running().next().expect("a node runs"))
    }

    /// The endpoints of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    /// A client of the whole cluster, which waits long.
    ///
    /// # Panics
    /// If no node takes connections.
    pub async fn client(&self) -> RaftKVClient {
        let builder = RaftKVClient::builder().endpoints(self.endpoints());
        let client = builder.request_timeout(REQUEST_TIMEOUT).connect().await;
        client.expect("a node that is ready takes connections")
    }

    /// What a node says of itself and its shards.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn status(&self, place: usize) -> StatusResponse {
        let mut admin = grpc::admin(self.nodes[place].channel().await);
        admin.status(StatusRequest {}).await.expect("a node answers").into_inner()
    }

    /// The place of the node that leads a shard, as soon as all running nodes with a
    /// replica agree on one.
    ///
    /// # Panics
    /// If they do not in time.
    pub async fn leader_of(&self, shard: &str) -> usize {
        eventually(format!("a leader of {shard}"), SETTLED_WITHIN, async || {
            let mut leaders = BTreeSet::new();
            for place in self.running() {
                let status = self.status(place).await;
                let found = status.shards.into_iter().find(|found| found.name == shard);
                leaders.extend(found.map(|found| found.leader));
            }
            let leader =
                leaders.pop_first().filter(|leader| leaders.is_empty() && !leader.is_empty())?;
            let place = self.place_of(&leader)?;
            self.nodes[place].is_running().then_some(place)
        })
        .await
    }

    /// The place of a node by its id.
    pub fn place_of(&self, node: &str) -> Option<usize> {
        (0..self.size()).find(|place| id(*place) == node)
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.size()).filter(|place| self.nodes[*place].is_running())
    }

    /// Cuts the link from one node to another: nothing the first sends arrives.
    pub fn cut(&self, from: usize, to: usize) {
        self.links[&(from, to)].cut();
    }

    /// Cuts all links of a node.
    pub fn isolate(&self, place: usize) {
        for other in (0..self.size()).filter(|other| *other != place) {
            self.cut(place, other);
            self.cut(other, place);
        }
    }

    /// Mends all links.
    pub fn heal(&self) {
        for proxy in self.links.values() {
            proxy.mend();
        }
    }

    /// Waits until all replicas of each shard have applied the same, and compares
    /// what they hold. The shards, and the nodes with a replica of each, are those that
    /// the cluster names.
    ///
    /// # Panics
    /// If they differ, or one does not catch up in time.
    pub async fn assert_replicas_identical(&self) {
        let mut view = self.view();
        for shard in view.shard_ids() {
            let held = eventually(format!("the replicas of {shard}"), SETTLED_WITHIN, async || {
                let held = self.held_by_all(&view, &shard).await;
                if held.is_none() {
                    view = self.view();
                }
                held
            })
            .await;
            assert!(held.iter().all(|replica| *replica == held[0]), "{shard}: {held:?}");
        }
    }

    /// What all replicas of a shard hold, if all have a vote and have applied the same.
    async fn held_by_all(
        &self,
        view: &ClusterView,
        shard: &str,
    ) -> Option<Vec<(u64, String, String)>> {
        if !view.learners(shard)?.is_empty() {
            return None;
        }
        let mut held = Vec::new();
        for node in view.replicas(shard)? {
            let place = self.place_of(&node).filter(|place| self.nodes[*place].is_running())?;
            held.push(self.held(place, shard).await?);
        }
        let index = held.first()?.0;
        held.iter().all(|replica| replica.0 == index).then_some(held)
    }

    /// Waits until the replicas on all running nodes, and what the cluster says of them,
    /// agree that each slot has an owner, and no second.
    ///
    /// # Panics
    /// If they do not in time.
    pub async fn assert_every_slot_is_owned_once(&self) {
        let mut last = String::new();
        let limit = SETTLED_WITHIN.as_secs();
        let owned = tokio::time::timeout(SETTLED_WITHIN, async {
            while let Err(wrong) = self.owned_once().await {
                last = wrong;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let is_so = owned.await.is_ok();
        assert!(is_so, "{limit} s later: {last}");
    }

    async fn owned_once(&self) -> Result<(), String> {
        let view = self.view();
        let mut replicas: BTreeMap<u64, (u64, Vec<(u32, u32)>)> = BTreeMap::new();
        for place in self.running() {
            for shard in self.status(place).await.shards {
                let slots = shard.slots.iter().map(|range| (range.start, range.end)).collect();
                let newest = replicas.entry(shard.group).or_default();
                if shard.epoch >= newest.0 {
                    *newest = (shard.epoch, slots);
                }
            }
        }
        let held: BTreeMap<u64, Vec<(u32, u32)>> =
            replicas.into_iter().map(|(group, (_, slots))| (group, slots)).collect();
        let known = view.slots_of_groups();
        if held != known {
            return Err(format!("replicas own {held:?}, the cluster says {known:?}"));
        }
        view.owned_once()
    }

    /// Applied index, checksum and state hash of a shard on a node, if they are of
    /// one state.
    async fn held(&self, place: usize, shard: &str) -> Option<(u64, String, String)> {
        let mut admin = grpc::admin(self.nodes[place].channel().await);
        let request = ChecksumRequest { shard: shard.to_owned() };
        let checksum = admin.checksum(request).await.ok()?.into_inner();
        let status = admin.status(StatusRequest {}).await.ok()?.into_inner();
        let status = status.shards.into_iter().find(|found| found.name == shard)?;
        let index = checksum.applied_index;
        (index == status.applied_index && index == status.commit_index).then_some((
            index,
            checksum.checksum,
            status.state_hash,
        ))
    }
}
