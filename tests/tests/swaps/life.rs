//! From the upload to the roll-back.

use std::time::Duration;

use raft_kv_tests::{ClusterOptions, NodeOptions, eventually};
use serde_json::json;

use crate::{
    module::{Answer, Migrate, Version},
    support::{
        Callers, Record, activate, activated, active, send, three_nodes, upload, with_balancer_off,
    },
};

const WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_activated_under_load_and_rolled_back_and_nobody_notices() {
    let (one, two) = (Version::new(1), Version::new(2));
    let cluster = three_nodes(&one, 4);
    let client = cluster.client().await;
    let callers = Callers::start(&client, 12);
    let mut record = Record::default();
    record.note(active(&cluster, 0));
    upload(&cluster, 1, &two);
    callers.go_on().await;
    let operation = activated(&cluster, 2, &two);
    assert!(operation["message"].as_str().unwrap().contains("shard_3 from index "), "{operation}");
    record.note(active(&cluster, 0));
    callers.go_on().await;
    let answer = cluster.request(0, "POST", "/admin/plugin/vers/rollback", "{}");
    assert_eq!(
        (answer.status, &answer.json()["state"]),
        (200, &json!("done")),
        "{}",
        answer.text()
    );
    record.note(active(&cluster, 0));
    callers.go_on().await;
    let counted = callers.stop().await;
    for caller in &counted {
        let versions: Vec<u8> = caller.answers.iter().map(|answer| answer.version).collect();
        let mut runs = versions.clone();
        runs.dedup();
        assert_eq!(runs, [1, 2, 1], "{} ran under each in turn", caller.key);
    }
    record.check(&cluster, &counted);
    let longest = counted.iter().map(|caller| caller.longest).max();
    println!("the longest command took {longest:?}");
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn a_trial_says_what_would_be_carried_over_and_changes_nothing() {
    let (one, two) = (Version::new(1), Version::new(2));
    let cluster = three_nodes(&one, 2);
    let client = cluster.client().await;
    for key in crate::support::keys(10) {
        client.apply(&key, "i").await.unwrap();
    }
    upload(&cluster, 0, &two);
    let before = active(&cluster, 0);
    let answer = activate(&cluster, 1, &two, &json!({"dry_run": true}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let trials = answer["trials"].as_array().unwrap();
    let sum = |what: &str| trials.iter().map(|trial| trial[what].as_u64().unwrap()).sum::<u64>();
    // Each slot's count under its new key, and the old one removed.
    assert_eq!((trials.len(), sum("slots"), sum("rows")), (2, 10, 20), "{answer}");
    assert!(sum("fuel") > 10_000, "{answer}");
    assert_eq!(active(&cluster, 0), before);
}

#[tokio::test]
async fn what_one_shard_refuses_is_undone_on_the_others() {
    let one = Version::new(1);
    let picky = Version { migrate: Migrate::TrapsAbove(3), ..Version::new(2) };
    let cluster = three_nodes(&one, 4);
    let client = cluster.client().await;
    let keys = crate::support::keys(20);
    for key in &keys {
        client.apply(key, "i").await.unwrap();
    }
    let last = keys.iter().find(|key| crate::support::shard_of(&cluster, key) == "shard_3");
    for _ in 0..3 {
        client.apply(last.unwrap(), "i").await.unwrap();
    }
    upload(&cluster, 0, &picky);
    let answer = activate(&cluster, 0, &picky, &json!({}));
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("shard shard_3: `migrate` of vers 0.2.0 failed in slot"));
    assert!(answer.text().contains("trap: unreachable"), "{}", answer.text());
    assert!(active(&cluster, 0).values().all(|(version, _)| *version == 1));
    for key in &keys {
        let answer = Answer::read(&client.query(key, "").await.unwrap());
        assert_eq!((answer.version, answer.count >= 1), (1, true), "{key}");
    }
    cluster.assert_replicas_identical().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_whose_commands_trap_is_undone_and_the_others_never_ran_it() {
    let one = Version::new(1);
    let bad = Version { traps: true, ..Version::new(2) };
    let cluster = three_nodes(&one, 4);
    let client = cluster.client().await;
    upload(&cluster, 0, &bad);
    let keys = crate::support::keys(24);
    let on_canary = |key: &&String| crate::support::shard_of(&cluster, key) == "shard_1";
    let canaries: Vec<String> = keys.iter().filter(on_canary).cloned().collect();
    let others: Vec<String> = keys.iter().filter(|key| !canaries.contains(key)).cloned().collect();
    let (calls, client_of_calls) = (canaries.clone(), client.clone());
    let calling = tokio::spawn(async move {
        let mut failures = 0;
        for round in 0.. {
            let key = &calls[round % calls.len()];
            failures += usize::from(client_of_calls.apply(key, "i").await.is_err());
            // Once it has failed and works again the canary has been undone.
            if failures > 0 && client_of_calls.apply(key, "i").await.is_ok() {
                break;
            }
        }
        failures
    });
    let canary = json!({"canary": "shard_1", "canary_seconds": 30});
    let answer = activate(&cluster, 0, &bad, &canary);
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("by the plugin's fault on the canary, shard shard_1"));
    assert!(calling.await.unwrap() > 0);
    assert!(active(&cluster, 0).values().all(|(version, _)| *version == 1));
    for key in &others {
        client.apply(key, "i").await.unwrap();
    }
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn a_node_that_was_away_or_joins_gets_what_it_missed_and_compiles_nothing_twice() {
    let (one, two) = (Version::new(1), Version::new(2));
    let mut cluster = three_nodes(&one, 2);
    cluster.kill(2);
    let answer = cluster.request(0, "POST", "/admin/plugin?timeout=1", "");
    assert_eq!(answer.status, 400, "an empty module: {}", answer.text());
    let mut node = cluster.node(0).http();
    let answer = node.request("POST", "/admin/plugin?timeout=3s", &two.module()).unwrap();
    assert_eq!(answer.status, 202, "one node is away: {}", answer.text());
    assert!(answer.text().contains("not there yet: node3"), "{}", answer.text());
    let operation = answer.json()["operation"]["id"].as_u64().unwrap();
    cluster.restart(2);
    let target = format!("/admin/operation/{operation}?timeout=30");
    assert_eq!(cluster.request(1, "GET", &target, "").json()["state"], "done");
    let fourth = cluster.join(0);
    cluster.wait_until_ready();
    let has_both = || {
        let plugins = cluster.request(fourth, "GET", "/admin/plugin", "").json();
        let plugins = plugins["plugins"].as_array().unwrap().clone();
        let held = |p: &serde_json::Value| p["nodes"].as_array().unwrap().contains(&json!("node4"));
        (plugins.len() == 2 && plugins.iter().all(held)).then_some(())
    };
    eventually("the new node to have both versions", WITHIN, async || has_both()).await;
    activated(&cluster, fourth, &two);
    cluster.node_mut(fourth).stop();
    cluster.node_mut(fourth).launch();
    cluster.wait_until_ready();
    let log = cluster.node(fourth).stderr();
    assert!(!log.contains("compiled plugin"), "{log}");
}

#[tokio::test]
async fn a_plugin_nobody_needs_is_forgotten_by_all_nodes() {
    let (one, two, three) = (Version::new(1), Version::new(2), Version::new(3));
    let cluster = three_nodes(&one, 2);
    for version in [&two, &three] {
        upload(&cluster, 0, version);
    }
    activated(&cluster, 0, &two);
    let delete =
        |version: &str| cluster.request(1, "DELETE", &format!("/admin/plugin/vers/{version}"), "");
    for (version, why) in [("0.2.0", "runs it"), ("0.1.0", "ran it before")] {
        // A follower may still run the older one.
        eventually("the refusal", WITHIN, async || {
            let answer = delete(version);
            assert_eq!(answer.status, 409, "{version}: {}", answer.text());
            answer.text().contains(why).then_some(())
        })
        .await;
    }
    assert_eq!(delete("0.7.0").status, 404);
    assert_eq!(delete("0.3.0").status, 200);
    eventually("its files to go", WITHIN, async || {
        let count = |place: usize| {
            let folder = cluster.node(place).data_dir().join("plugins");
            std::fs::read_dir(folder).unwrap().count()
        };
        // A module and its artifact for each of the other two.
        (0..3).all(|place| count(place) == 4).then_some(())
    })
    .await;
    assert_eq!(
        cluster.request(2, "GET", "/admin/plugin/vers", "").json()["versions"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn shards_of_the_store_can_be_given_another_plugin_if_they_are_empty_or_by_force() {
    let cluster = ClusterOptions::new().node(NodeOptions::new().shards(2)).start();
    let cluster = with_balancer_off(cluster);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    let alien = Version { migrate: Migrate::Missing, name: "other", ..Version::new(1) };
    upload(&cluster, 0, &alien);
    let (full, empty) = match crate::support::shard_of(&cluster, "a").as_str() {
        "shard_0" => ("shard_0", "shard_1"),
        _ => ("shard_1", "shard_0"),
    };
    let answer = activate(&cluster, 0, &alien, &json!({"shards": [empty]}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = activate(&cluster, 0, &alien, &json!({"shards": [full]}));
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("has data of plugin kv"), "{}", answer.text());
    assert_eq!(client.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    let answer = activate(&cluster, 0, &alien, &json!({"shards": [full], "force": true}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let error = client.get("a").await.unwrap_err().to_string();
    assert!(error.contains("runs the plugin other"), "{error}");
    assert_eq!(Answer::read(&client.apply("a", "i").await.unwrap()).count, 1);
    cluster.assert_replicas_identical().await;
}

#[tokio::test]
async fn the_limits_of_a_command_are_the_shards_own() {
    let one = Version::new(1);
    let cluster = three_nodes(&one, 1);
    let client = cluster.client().await;
    client.apply("a", "i").await.unwrap();
    let answer = activate(&cluster, 0, &one, &json!({"fuel": 300}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let error = client.apply("a", "i").await.unwrap_err().to_string();
    assert!(error.contains("more than its 300 units of fuel"), "{error}");
    let answer = activate(&cluster, 0, &one, &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(Answer::read(&client.apply("a", "i").await.unwrap()).count, 2);
    let metrics = cluster.request(0, "GET", "/metrics", "").text();
    let failed =
        r#"raftkv_plugin_commands_total{plugin="vers",result="out_of_fuel",version="0.1.0"} 1"#;
    assert!(metrics.contains(failed), "{metrics}");
    assert!(send(&cluster, 0, b"\0asm").text().contains("was the upload cut short?"));
}
