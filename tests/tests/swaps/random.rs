//! Many switches at random, under load, with nodes killed and started again between and during them.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::{
    module::Version,
    support::{Callers, Record, active, three_nodes, upload},
};

/// Switches; more with this variable.
const SWAPS: usize = 25;
const VARIABLE: &str = "RAFTKV_TEST_SWAPS";
const VERSIONS: u8 = 5;
const WAIT: &str = "60s";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_switches_under_load_with_crashes_lose_and_mix_nothing() {
    let swaps = std::env::var(VARIABLE).map_or(SWAPS, |text| text.parse().unwrap());
    let mut random = StdRng::seed_from_u64(swaps as u64);
    let versions: Vec<Version> = (1..=VERSIONS).map(Version::new).collect();
    let mut cluster = three_nodes(&versions[0], 3);
    for version in &versions[1..] {
        upload(&cluster, 0, version);
    }
    let client = cluster.client().await;
    let callers = Callers::start(&client, 9);
    let mut record = Record::default();
    record.note(active(&cluster, 0));
    let mut kills = 0;
    for swap in 0..swaps {
        let victim = random.random_range(0..3);
        let asked = (victim + 1) % 3;
        let dies = random.random_bool(0.4);
        if dies {
            kills += 1;
            cluster.kill(victim);
        }
        let rolls_back = random.random_bool(0.25) && swap > 0;
        let version = &versions[random.random_range(0..versions.len())];
        let (target, body) = if rolls_back {
            ("rollback", json!({"shards": "all"}))
        } else {
            ("activate", json!({"version": version.text(), "shards": "all"}))
        };
        let begun = cluster.request(
            asked,
            "POST",
            &format!("/admin/plugin/vers/{target}?timeout=0"),
            &body.to_string(),
        );
        assert!(matches!(begun.status, 200 | 202), "swap {swap}: {}", begun.text());
        if dies {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            cluster.restart(victim);
        }
        let id = begun.json()["id"].as_u64().unwrap();
        let target = format!("/admin/operation/{id}?timeout={WAIT}");
        let ended = cluster.request(asked, "GET", &target, "");
        assert_eq!(ended.json()["state"], "done", "swap {swap}: {}", ended.text());
        cluster.wait_until_ready();
        record.note(active(&cluster, asked));
    }
    let counted = callers.stop().await;
    record.check(&cluster, &counted);
    let answers: usize = counted.iter().map(|caller| caller.answers.len()).sum();
    let longest = counted.iter().map(|caller| caller.longest).max();
    println!("{swaps} switches, {kills} kills, {answers} commands, the longest took {longest:?}");
    cluster.assert_replicas_identical().await;
    // Whatever was switched last, all shards run it.
    let run: std::collections::BTreeSet<u8> = active(&cluster, 0).values().map(|a| a.0).collect();
    assert_eq!(run.len(), 1, "{run:?}");
}
