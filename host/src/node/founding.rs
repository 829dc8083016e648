//! What a cluster is founded with: its members, its plugin, its first shards; and
//! how this node comes to belong to it.

use std::{collections::BTreeMap, path::Path};

use raft_lite::{GroupId, Membership, NodeId, ReplicaId};
use tokio::{net::TcpListener, sync::oneshot};

use super::{
    DEFAULT_SHARDS, DEFAULT_SLOTS, NodeConfig, NodeError,
    identity::{DataFolder, Identity, MemberRecord},
    joining,
};
use crate::{
    api,
    machine::{DEFAULT_PLUGIN, PluginFileError, PluginStore, plugin_id},
    meta::{META_GROUP, META_NAME, META_REPLICAS, MetaState, NodeEntry, PluginEntry, REPLICAS},
    network::{Born, Founding, Introduction, Member, find_cluster},
    service::describe_plugin,
    storage::{PluginId, ShardRecord, Slot, SlotRange, first_replica, node_number},
    wasm::{ModuleHash, check_module},
};

/// Makes sure that the folder belongs to the cluster this node is started for: a
/// new one founds a cluster of one node, or meets the other members first.
pub(super) async fn settle(
    config: &NodeConfig,
    plugin: Option<&PluginFile<'_>>,
    folder: &mut DataFolder,
    listener: &TcpListener,
) -> Result<(), NodeError> {
    let shown = config.data_dir.display();
    if let Some(identity) = folder.identity() {
        refuse_change(config, identity)?;
        if let Some(named) = plugin.filter(|plugin| plugin.hash().to_string() != identity.plugin) {
            return Err(NodeError::Config(format!(
                "--plugin {}: the cluster in {shown} was born with another plugin; leave the \
                 option out",
                named.path.display()
            )));
        }
        return Ok(());
    }
    if let Some(at) = &config.join {
        return joining::join(config, at, folder).await;
    }
    let slots = config.slots.unwrap_or(DEFAULT_SLOTS);
    let plugin = plugin.map_or_else(|| ModuleHash::of(DEFAULT_PLUGIN), PluginFile::hash);
    let founding = Founding {
        members: members(config),
        slots,
        shards: config.shards.unwrap_or(DEFAULT_SHARDS.min(slots)),
        plugin: plugin.to_string(),
    };
    let me = me(config, folder.number());
    let introduction = Introduction::unborn(me.clone(), founding);
    let others = others(config, &me);
    let (found, finding) = oneshot::channel();
    // Others may meet this node as long as it looks for them.
    let serving = api::serve_birth(introduction.clone(), listener, async {
        // Either way the search is over.
        let _ = finding.await;
    });
    let searching = async {
        let born = find_cluster(&introduction, &others, |born| join(folder, &me, born)).await;
        let _ = found.send(());
        born
    };
    let (born, served) = tokio::join!(searching, serving);
    served.map_err(|error| NodeError::Server(error.to_string()))?;
    let born = born?;
    if others.is_empty() {
        return Ok(());
    }
    tracing::info!("node {} belongs to cluster {}", me.node_id, born.cluster_id);
    Ok(())
}

/// All members that this node was told of; itself alone if of none.
fn members(config: &NodeConfig) -> Vec<Member> {
    let member = |(node_id, address): (&String, &String)| Member {
        node_id: node_id.clone(),
        address: address.clone(),
        folder: 0,
    };
    match &config.cluster {
        Some(cluster) => cluster.iter().map(member).collect(),
        None => vec![me(config, 0)],
    }
}

fn me(config: &NodeConfig, folder: u64) -> Member {
    let own = config.cluster.as_ref().and_then(|cluster| cluster.get(&config.node_id));
    let address = own.cloned().unwrap_or_else(|| format!("{}:{}", config.host, config.port));
    Member { node_id: config.node_id.clone(), address, folder }
}

/// All other members, and where this node reaches each.
fn others(config: &NodeConfig, me: &Member) -> Vec<(Member, String)> {
    let members = members(config).into_iter().filter(|member| member.node_id != me.node_id);
    let reached = |member: Member| {
        let dial = config.peers.get(&member.node_id).unwrap_or(&member.address).clone();
        (member, dial)
    };
    members.map(reached).collect()
}

fn join(folder: &mut DataFolder, me: &Member, born: &Born) -> Result<(), NodeError> {
    let member = |Member { node_id, address, folder }: &Member| MemberRecord {
        node_id: node_id.clone(),
        address: address.clone(),
        folder: *folder,
    };
    let came_back = born.knew_another_folder(me);
    if came_back {
        tracing::warn!(
            "cluster {} was born with another data folder of node {}: this one begins without \
             replicas; remove those that were lost from their shards and add new ones",
            born.cluster_id,
            me.node_id
        );
    }
    let own = |record: MemberRecord| match record.node_id == me.node_id {
        true => MemberRecord { folder: me.folder, ..record },
        false => record,
    };
    folder.join(Identity {
        node_id: me.node_id.clone(),
        cluster_id: born.cluster_id.clone(),
        slots: born.founding.slots,
        shards: born.founding.shards,
        plugin: born.founding.plugin.clone(),
        members: born.founding.members.iter().map(member).map(own).collect(),
        came_back,
        joined: false,
        fresh_from: if came_back { u64::MAX } else { 0 },
    })?;
    Ok(())
}

/// How this node introduces itself once it belongs to a cluster.
pub(super) fn introduction(folder: &DataFolder, identity: &Identity) -> Introduction {
    let member = |m: &MemberRecord| Member {
        node_id: m.node_id.clone(),
        address: m.address.clone(),
        folder: m.folder,
    };
    let founding = Founding {
        members: identity.members.iter().map(member).collect(),
        slots: identity.slots,
        shards: identity.shards,
        plugin: identity.plugin.clone(),
    };
    let own = founding.members.iter().find(|member| member.folder == folder.number());
    let me = own.cloned().unwrap_or_else(|| Member {
        node_id: identity.node_id.clone(),
        address: String::new(),
        folder: folder.number(),
    });
    Introduction::born(me, Born { cluster_id: identity.cluster_id.clone(), founding })
}

/// What was fixed when the cluster was born can be named again, but not changed.
fn refuse_change(config: &NodeConfig, identity: &Identity) -> Result<(), NodeError> {
    let folder = config.data_dir.display();
    let fixed =
        [("--slots", config.slots, identity.slots), ("--shards", config.shards, identity.shards)];
    for (option, asked, born) in fixed {
        if let Some(asked) = asked.filter(|asked| *asked != born) {
            return Err(NodeError::Config(format!(
                "{option} {asked}: the cluster in {folder} was born with {born}; leave the option \
                 out"
            )));
        }
    }
    let Some(cluster) = &config.cluster else { return Ok(()) };
    let born: BTreeMap<String, String> =
        identity.members.iter().map(|m| (m.node_id.clone(), m.address.clone())).collect();
    // A cluster of one node has the address it listens on.
    let alone = born.len() == 1 && cluster.keys().eq(born.keys());
    if *cluster == born || alone {
        return Ok(());
    }
    let list = |members: &BTreeMap<String, String>| {
        let members = members.iter().map(|(node, address)| format!("{node}={address}"));
        members.collect::<Vec<String>>().join(",")
    };
    Err(NodeError::Config(format!(
        "--cluster {}: the cluster in {folder} was born with {}; leave the option out",
        list(cluster),
        list(&born)
    )))
}

/// A plugin that the command line names.
pub(super) struct PluginFile<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> PluginFile<'a> {
    pub(super) fn read(path: &'a Path) -> Result<Self, NodeError> {
        let bytes = std::fs::read(path)
            .map_err(|error| NodeError::Config(format!("--plugin {}: {error}", path.display())))?;
        let refused = |source| PluginFileError::Module { path: path.to_owned(), source };
        check_module(&bytes).map_err(refused)?;
        Ok(PluginFile { path, bytes })
    }

    fn hash(&self) -> ModuleHash {
        ModuleHash::of(&self.bytes)
    }
}

pub(super) fn store_plugin(
    plugins: &PluginStore,
    file: Option<&PluginFile<'_>>,
) -> Result<PluginId, NodeError> {
    match file {
        None => Ok(plugins.add(DEFAULT_PLUGIN, Path::new("the embedded key-value store"))?),
        Some(file) => Ok(plugins.add(&file.bytes, file.path)?),
    }
}

/// What a new cluster knows of its plugin: every member has it.
pub(super) fn first_plugin(identity: &Identity, plugins: &PluginStore) -> Option<PluginEntry> {
    let module = plugins.loaded(&plugin_id(&identity.plugin))?;
    let bytes = plugins.bytes(&module.hash().0).ok()?.len();
    let folders = identity.members.iter().map(|m| (m.node_id.clone(), m.folder)).collect();
    Some(PluginEntry::held_by(describe_plugin(&module, bytes), folders))
}

/// The shards of a new cluster: the slots cut into even ranges, each shard with a replica
/// on as many members as there should be, in turn. The cluster's own group comes first.
/// Those without a replica on this node say so by its number, 0.
pub(super) fn first_records(identity: &Identity, plugin: PluginId) -> Vec<ShardRecord> {
    let Identity { slots, shards, members, .. } = identity;
    let boundary = |shard: u32| (u64::from(*slots) * u64::from(shard) / u64::from(*shards)) as u32;
    let own = node_number(&identity.node_id);
    let record = |group: GroupId, name: String, members: Vec<&MemberRecord>| {
        let ids = members.iter().map(|member| member.node_id.clone());
        let nodes: BTreeMap<NodeId, String> = ids.map(|id| (node_number(&id), id)).collect();
        let numbers = members.iter().map(|member| node_number(&member.node_id));
        let membership = Membership::of_voters(ids_from(group).zip(numbers).collect());
        ShardRecord {
            group,
            name,
            epoch: 1,
            replica: membership.replica_on(own).unwrap_or_default(),
            membership,
            nodes,
            ..ShardRecord::default()
        }
    };
    let of_meta = match members.len() {
        count @ 0..=2 => count,
        3 | 4 => 3,
        _ => META_REPLICAS,
    };
    let mut records =
        vec![record(META_GROUP, META_NAME.to_owned(), members.iter().take(of_meta).collect())];
    for shard in 0..*shards {
        let in_turn = members.iter().cycle().skip(shard as usize % members.len().max(1));
        let chosen = in_turn.take(REPLICAS.min(members.len())).collect();
        records.push(ShardRecord {
            slots: vec![SlotRange { start: Slot(boundary(shard)), end: Slot(boundary(shard + 1)) }],
            plugin,
            ..record(GroupId(u64::from(shard) + 1), format!("shard_{shard}"), chosen)
        });
    }
    records
}

/// The ids of a group's replicas, in turn.
fn ids_from(group: GroupId) -> impl Iterator<Item = ReplicaId> {
    (first_replica(group).0..).map(ReplicaId)
}

/// What a new cluster knows of itself.
pub(super) fn first_state(
    identity: &Identity,
    records: &[ShardRecord],
    plugin: Option<PluginEntry>,
) -> MetaState {
    let node = |member: &MemberRecord| {
        let (address, folder) = (member.address.clone(), member.folder);
        (member.node_id.clone(), NodeEntry { address, folder, ..NodeEntry::default() })
    };
    let shard = |record: &ShardRecord| {
        (record.group, ShardRecord { replica: ReplicaId::default(), ..record.clone() })
    };
    MetaState {
        version: 1,
        slots: identity.slots,
        next_group: u64::from(identity.shards) + 1,
        next_operation: 1,
        balancer: true,
        nodes: identity.members.iter().map(node).collect(),
        shards: records.iter().map(shard).collect(),
        plugins: plugin.into_iter().map(|plugin| (plugin.id(), plugin)).collect(),
        ..MetaState::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u64, slots: u32, shards: u32) -> Identity {
        let member = |n: u64| MemberRecord {
            node_id: format!("node{n}"),
            address: format!("127.0.0.1:{n}"),
            folder: n,
        };
        Identity {
            node_id: format!("node{node}"),
            cluster_id: "c".into(),
            slots,
            shards,
            plugin: "p".into(),
            members: (1..=3).map(member).collect(),
            came_back: false,
            joined: false,
            fresh_from: 0,
        }
    }

    #[test]
    fn first_shards_own_every_slot_once() {
        for (slots, shards) in [(256, 4), (256, 7), (5, 5), (16_384, 10), (1, 1)] {
            let records = first_records(&identity(1, slots, shards), [0; 32]);
            assert_eq!(records.len(), shards as usize + 1);
            for slot in (0..slots).map(Slot) {
                let owners = records.iter().filter(|record| record.owns(slot)).count();
                assert_eq!(owners, 1, "slot {} of {slots} over {shards} shards", slot.0);
            }
            assert!(records.iter().all(|record| !record.owns(Slot(slots))));
        }
    }

    #[test]
    fn all_members_agree_on_the_first_shards() {
        let of_node = |node| first_records(&identity(node, 256, 4), [0; 32]);
        for ((one, two), three) in of_node(1).into_iter().zip(of_node(2)).zip(of_node(3)) {
            assert_eq!((&one.membership, &one.slots), (&two.membership, &two.slots));
            for record in [one, two, three] {
                assert!(record.membership.voters.contains_key(&record.replica));
            }
        }
    }

    #[test]
    fn of_many_members_some_replicate_each_shard() {
        let mut large = identity(1, 256, 10);
        large.members = (1..=6)
            .map(|n| MemberRecord {
                node_id: format!("node{n}"),
                address: n.to_string(),
                folder: n,
            })
            .collect();
        let records = first_records(&large, [0; 32]);
        assert_eq!(records[0].nodes.len(), META_REPLICAS);
        assert!(records[1..].iter().all(|record| record.nodes.len() == REPLICAS));
        let state = first_state(&large, &records, None);
        assert!(state.unowned().is_empty());
        let loads: Vec<usize> = state.nodes.keys().map(|node| state.replicas_on(node)).collect();
        assert_eq!(loads.iter().sum::<usize>(), 30);
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 2, "{loads:?}");
    }
}
