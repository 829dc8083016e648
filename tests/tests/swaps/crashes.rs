//! Whoever drives an operation dies in the middle of it: it goes on.

use std::time::Duration;

use raft_kv_tests::{Cluster, ClusterOptions, NodeOptions, eventually, http};
use serde_json::json;

use crate::{
    module::Version,
    support::{Callers, Record, active, upload, with_balancer_off},
};

const WITHIN: Duration = Duration::from_secs(60);

/// Switches a cluster whose nodes all end at this point, once each.
async fn switch_while_drivers_die(point: &str) {
    let (one, two) = (Version::new(1), Version::new(2));
    let node = NodeOptions::new().shards(3).plugin_module(one.module());
    let node = node.env("RAFTKV_FAILPOINTS", format!("{point}=abort"));
    let mut cluster = with_balancer_off(ClusterOptions::new().node(node).start());
    let client = cluster.client().await;
    let callers = Callers::start(&client, 6);
    let mut record = Record::default();
    record.note(active(&cluster, 0));
    upload(&cluster, 0, &two);
    let body = json!({"version": "0.2.0", "shards": "all"}).to_string();
    // It may be lost with the node that was asked.
    let target = "/admin/plugin/vers/activate?timeout=0";
    let mut asked = cluster.node(0).http();
    let _ = asked.request("POST", target, body.as_bytes());
    let died = eventually("the driver to die", WITHIN, async || dead(&mut cluster)).await;
    // All are started anew: those that would die as well could do so at any moment.
    for place in (0..3).map(|step| (died + step) % 3) {
        let node = cluster.node_mut(place);
        match node.exit_status() {
            Some(_) => drop(node.wait_until_ended(WITHIN)),
            None => node.kill(),
        }
        node.remove_env("RAFTKV_FAILPOINTS");
    }
    cluster.launch_all();
    let is_done = |cluster: &Cluster| {
        let mut node = http::Connection::open(cluster.node(0).address()).ok()?;
        let operations = node.get("/admin/operation").ok()?.json();
        let operations = operations["operations"].as_array()?.clone();
        let state = operations.iter().find(|o| o["kind"] == "activate_plugin")?["state"].clone();
        (state == "done").then_some(())
    };
    eventually("the operation to be done", WITHIN, async || is_done(&cluster)).await;
    record.note(active(&cluster, 0));
    let counted = callers.stop().await;
    record.check(&cluster, &counted);
    assert!(active(&cluster, 0).values().all(|(version, _)| *version == 2));
    cluster.assert_replicas_identical().await;
}

/// The place of a node that has ended by itself.
fn dead(cluster: &mut Cluster) -> Option<usize> {
    (0..cluster.size()).find(|place| cluster.node_mut(*place).exit_status().is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_goes_on_if_its_driver_dies_before_it_is_proposed() {
    switch_while_drivers_die("activate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_goes_on_if_its_driver_dies_before_it_is_noted() {
    switch_while_drivers_die("activated").await;
}
