//! Crashes at each step of an operation: of the node that drives it, and of those that
//! it is about. The operation ends, done or undone; no slot has two owners or none;
//! clients go on, and lose nothing.

use std::time::Duration;

use raft_kv_tests::{Cluster, ClusterOptions, Load, LoadOptions, NodeOptions, eventually, http};
use serde_json::Value;

use crate::support::{Data, OVER_WITHIN, SLOTS, id, stop_balancer};

const POINTS: &str = "RAFTKV_FAILPOINTS";
/// How long an operation is held at a point: less than a merge may take in all, so that
/// only what the test does to it can undo it.
const HELD: Duration = Duration::from_millis(1200);

/// An operation, as it is asked for.
#[derive(Clone, Copy)]
struct Asked {
    kind: &'static str,
    method: &'static str,
    target: &'static str,
    body: &'static str,
}

const MERGE: Asked = Asked {
    kind: "merge",
    method: "POST",
    target: "/admin/shard/merge",
    body: r#"{"sources":["shard_0"],"target":"shard_1"}"#,
};
const SPLIT: Asked = Asked {
    kind: "split",
    method: "POST",
    target: "/admin/shard/shard_0/split",
    body: r#"{"new_shards":["shard_0","shard_9"]}"#,
};
const MIGRATE: Asked = Asked {
    kind: "migrate",
    method: "POST",
    target: "/admin/shard/shard_0/migrate",
    body: r#"{"from":"node1","to":"node4"}"#,
};
const CREATE: Asked = Asked {
    kind: "create",
    method: "POST",
    target: "/admin/shard",
    body: r#"{"shard_id":"shard_9","nodes":["node1","node2","node3"]}"#,
};
const DELETE: Asked =
    Asked { kind: "delete", method: "DELETE", target: "/admin/shard/shard_0?force=true", body: "" };
const DRAIN: Asked =
    Asked { kind: "remove_node", method: "DELETE", target: "/admin/node/node1", body: "" };

/// Who is killed while an operation is held at a point.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// The node that leads this shard.
    LeaderOf(&'static str),
    /// A node, one of the first three, that does not.
    FollowerOf(&'static str),
    /// The node at this place.
    Node(usize),
}

/// A cluster under load.
struct Scene {
    cluster: Cluster,
    data: Data,
    load: Load,
    /// How often a node was started again that had stopped at a point.
    revived: usize,
}

impl Scene {
    /// Three nodes, and a fourth that joins if there are four, all of which stop or wait
    /// at these points.
    async fn begin(nodes: usize, points: &str) -> Self {
        let node = NodeOptions::new().shards(2).env(POINTS, points);
        let mut cluster = ClusterOptions::new().node(node).start();
        stop_balancer(&cluster);
        for _ in 3..nodes {
            cluster.join(0);
        }
        cluster.wait_until_ready();
        let data = Data::put(&cluster.client().await, "kept/", 100).await;
        let options = LoadOptions {
            writers: 3,
            counters: 1,
            request_timeout: Duration::from_secs(20),
            errors_allowed: false,
        };
        let load = Load::start_with(&cluster.endpoints(), options).await;
        load.wait_for_acknowledged(50).await;
        Self { cluster, data, load, revived: 0 }
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.cluster.size()).filter(|place| self.cluster.node(*place).is_running())
    }

    /// Asks any node that answers.
    fn ask(&self, method: &str, target: &str, body: &str) -> Option<http::Response> {
        self.running().find_map(|place| {
            let node = http::Connection::open(self.cluster.node(place).address());
            node.ok()?.request(method, target, body.as_bytes()).ok()
        })
    }

    /// Begins an operation, once; gives its number.
    async fn ask_for(&mut self, asked: Asked) -> u64 {
        let join = if asked.target.contains('?') { '&' } else { '?' };
        let target = format!("{}{join}timeout=0", asked.target);
        // The node that is asked may be the one that stops.
        if let Some(answer) = self.ask(asked.method, &target, asked.body)
            && matches!(answer.status, 200 | 202)
        {
            return answer.json()["id"].as_u64().unwrap();
        }
        let limit = OVER_WITHIN;
        eventually(format!("{} to be on record", asked.kind), limit, async || {
            self.revive();
            let view = self.ask("GET", "/admin/operation", "")?.json();
            let operations = view["operations"].as_array()?.iter();
            let found = operations.rev().find(|operation| operation["kind"] == asked.kind);
            found?["id"].as_u64()
        })
        .await
    }

    /// Starts nodes again that stopped at a point; they stop at none any more.
    fn revive(&mut self) {
        for place in 0..self.cluster.size() {
            let node = self.cluster.node_mut(place);
            if node.is_running() && node.exit_status().is_some() {
                if node.wait_until_ended(OVER_WITHIN).success() {
                    // It was removed from the cluster.
                    continue;
                }
                node.remove_env(POINTS);
                node.launch();
                self.revived += 1;
            }
        }
    }

    /// Waits until an operation has ended. Nodes that stop meanwhile are started again.
    async fn see_through(&mut self, operation: u64) -> Value {
        let target = format!("/admin/operation/{operation}");
        eventually(format!("{target} to end"), OVER_WITHIN, async || {
            self.revive();
            let answer = self.ask("GET", &target, "")?;
            let operation = (answer.status == 200).then(|| answer.json())?;
            (operation["state"] != "running").then_some(operation)
        })
        .await
    }

    /// Waits until a node is held at the point, and kills the victim there.
    async fn kill_at(&mut self, point: &str, victim: Victim) -> usize {
        let said = format!("waiting at the point {point}");
        eventually(said.clone(), OVER_WITHIN, async || {
            let is_held = |place| self.cluster.node(place).stderr().contains(&said);
            self.running().any(is_held).then_some(())
        })
        .await;
        let place = match victim {
            Victim::LeaderOf(shard) => self.cluster.leader_of(shard).await,
            Victim::FollowerOf(shard) => (self.cluster.leader_of(shard).await + 1) % 3,
            Victim::Node(place) => place,
        };
        self.cluster.kill(place);
        place
    }

    /// All is well, and was all along.
    async fn check(mut self, asked: Asked, ended: &Value) {
        self.cluster.wait_until_ready();
        self.load.wait_for_acknowledged(50).await;
        self.load.stop().await;
        if asked.kind == "remove_node" {
            self.cluster.kill(0);
        }
        let client = self.cluster.client().await;
        self.load.check(&client).await;
        self.data.check(&self.cluster).await;
        self.cluster.assert_every_slot_is_owned_once().await;
        self.cluster.assert_replicas_identical().await;
        let is_done = ended["state"] == "done";
        assert!(is_done || ended["state"] == "rolled_back", "{ended}");
        let shards = self.cluster.view().shard_ids();
        let expected: &[&str] = match (asked.kind, is_done) {
            ("merge", true) => &["shard_1"],
            ("split" | "create", true) => &["shard_0", "shard_1", "shard_9"],
            _ => &["shard_0", "shard_1"],
        };
        assert_eq!(shards, expected, "{ended}");
        if asked.kind == "migrate" {
            let mut replicas = self.cluster.view().replicas("shard_0").unwrap();
            let last = if is_done { id(3) } else { id(2) };
            assert_eq!(replicas.pop(), Some(last), "{ended}");
        }
        println!("{} {}: {:?}", asked.kind, ended["state"], self.load.tally());
    }
}

/// The node that drives an operation dies at a point of it, perhaps its successor, too.
async fn driver_dies(nodes: usize, point: &str, asked: Asked) {
    let mut scene = Scene::begin(nodes, &format!("{point}=abort")).await;
    let operation = scene.ask_for(asked).await;
    let ended = scene.see_through(operation).await;
    assert!(scene.revived > 0, "nobody came to {point}");
    assert_eq!(ended["state"], "done", "{ended}");
    scene.check(asked, &ended).await;
}

/// A node dies while an operation is held at a point, and comes back when clients have
/// gone on without it.
async fn victim_dies(nodes: usize, point: &str, asked: Asked, victim: Victim) {
    let held = HELD.as_millis();
    let mut scene = Scene::begin(nodes, &format!("{point}=sleep({held})")).await;
    let operation = scene.ask_for(asked).await;
    let place = scene.kill_at(point, victim).await;
    scene.load.wait_for_acknowledged(100).await;
    scene.cluster.node_mut(place).remove_env(POINTS);
    scene.cluster.restart(place);
    let ended = scene.see_through(operation).await;
    scene.check(asked, &ended).await;
}

/// Tests of one function, which they are calls of.
macro_rules! tests {
    ($($name:ident: $call:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $call.await;
            }
        )*
    };
}

const SOURCE: Victim = Victim::LeaderOf("shard_0");
const TARGET: Victim = Victim::LeaderOf("shard_1");
const NEW: Victim = Victim::Node(3);

tests! {
    a_split_survives_its_driver: driver_dies(3, "split", SPLIT);
    a_shard_is_created_though_its_driver_dies: driver_dies(3, "split", CREATE);
    a_migration_survives_its_driver: driver_dies(4, "migrate", MIGRATE);
    a_migration_survives_its_driver_once_the_new_replica_learns:
        driver_dies(4, "migrate-learner", MIGRATE);
    a_migration_survives_its_driver_once_it_has_moved: driver_dies(4, "migrate-moved", MIGRATE);
    a_node_is_removed_though_the_driver_dies: driver_dies(4, "drain-leave", DRAIN);
    a_merge_survives_its_driver_before_it_is_prepared: driver_dies(3, "merge-prepare", MERGE);
    a_merge_survives_its_driver_once_it_is_prepared: driver_dies(3, "merge-prepared", MERGE);
    a_merge_survives_its_driver_before_it_freezes: driver_dies(3, "merge-freeze", MERGE);
    a_merge_survives_its_driver_once_it_is_frozen: driver_dies(3, "merge-frozen", MERGE);
    a_merge_survives_its_driver_before_it_absorbs: driver_dies(3, "merge-absorb", MERGE);
    a_merge_survives_its_driver_once_it_has_absorbed: driver_dies(3, "merge-absorbed", MERGE);
}

tests! {
    a_split_survives_the_shards_leader: victim_dies(3, "split", SPLIT, SOURCE);
    a_migration_survives_the_new_node_before_it_learns: victim_dies(4, "migrate", MIGRATE, NEW);
    a_migration_survives_the_new_node_while_it_learns:
        victim_dies(4, "migrate-learner", MIGRATE, NEW);
    a_migration_survives_the_new_node_once_it_votes: victim_dies(4, "migrate-moved", MIGRATE, NEW);
    a_migration_survives_the_leader: victim_dies(4, "migrate-learner", MIGRATE, SOURCE);
    a_migration_survives_the_leader_once_it_has_moved:
        victim_dies(4, "migrate-moved", MIGRATE, SOURCE);
    a_migration_survives_the_node_that_it_leaves:
        victim_dies(4, "migrate-learner", MIGRATE, Victim::Node(0));
    a_merge_survives_the_sources_leader_before_it_is_prepared:
        victim_dies(3, "merge-prepare", MERGE, SOURCE);
    a_merge_survives_the_targets_leader_before_it_is_prepared:
        victim_dies(3, "merge-prepare", MERGE, TARGET);
    a_merge_survives_the_sources_leader_once_it_is_prepared:
        victim_dies(3, "merge-prepared", MERGE, SOURCE);
    a_merge_survives_the_targets_leader_once_it_is_prepared:
        victim_dies(3, "merge-prepared", MERGE, TARGET);
    a_merge_survives_the_sources_leader_before_it_freezes:
        victim_dies(3, "merge-freeze", MERGE, SOURCE);
    a_merge_survives_the_targets_leader_before_it_freezes:
        victim_dies(3, "merge-freeze", MERGE, TARGET);
    a_merge_survives_the_sources_leader_once_it_is_frozen:
        victim_dies(3, "merge-frozen", MERGE, SOURCE);
    a_merge_survives_the_targets_leader_once_it_is_frozen:
        victim_dies(3, "merge-frozen", MERGE, TARGET);
    a_merge_survives_the_sources_leader_before_it_absorbs:
        victim_dies(3, "merge-absorb", MERGE, SOURCE);
    a_merge_survives_the_targets_leader_before_it_absorbs:
        victim_dies(3, "merge-absorb", MERGE, TARGET);
    a_merge_survives_a_follower_of_the_target_once_it_has_absorbed:
        victim_dies(3, "merge-absorbed", MERGE, Victim::FollowerOf("shard_1"));
    a_merge_survives_the_targets_leader_once_it_has_absorbed:
        victim_dies(3, "merge-absorbed", MERGE, TARGET);
}

/// A merge that takes too long to freeze is undone; the driver dies as it does that.
async fn driver_dies_undoing(point: &str) {
    let mut scene = Scene::begin(3, &format!("merge-frozen=sleep(2500);{point}=abort")).await;
    let operation = scene.ask_for(MERGE).await;
    let ended = scene.see_through(operation).await;
    assert!(scene.revived > 0, "nobody came to {point}");
    scene.check(MERGE, &ended).await;
}

tests! {
    a_merge_is_undone_though_its_driver_dies_before_it_cancels: driver_dies_undoing("merge-cancel");
    a_merge_is_undone_though_its_driver_dies_before_it_unfreezes:
        driver_dies_undoing("merge-unfreeze");
}

/// Deleting and creating in turn, with a driver that dies; nothing writes meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_and_a_creation_from_nothing_survive_their_drivers() {
    let mut scene = Scene::begin(3, "delete-end=abort;create-open=abort").await;
    scene.load.stop().await;
    let view = scene.cluster.view();
    let kept = scene.data.part(|slot| view.owner_of(slot).as_deref() == Some("shard_1"));
    let gone = scene.data.part(|slot| view.owner_of(slot).as_deref() == Some("shard_0"));
    for (asked, shards) in [(DELETE, vec!["shard_1"]), (CREATE, vec!["shard_1", "shard_9"])] {
        let operation = scene.ask_for(asked).await;
        let ended = scene.see_through(operation).await;
        assert_eq!(ended["state"], "done", "{ended}");
        scene.cluster.wait_until_ready();
        assert_eq!(scene.cluster.view().shard_ids(), shards);
        kept.check_present(&scene.cluster).await;
    }
    let owned = (0..SLOTS).all(|slot| scene.cluster.view().owner_of(slot).is_some());
    assert!(owned, "{:?}", scene.cluster.view());
    let client = scene.cluster.client().await;
    for key in gone.pairs.keys() {
        assert_eq!(client.get(key).await.unwrap(), None, "{key}");
    }
    let data = Data::put(&client, "again/", 100).await;
    data.check(&scene.cluster).await;
    scene.cluster.assert_every_slot_is_owned_once().await;
    scene.cluster.assert_replicas_identical().await;
}
