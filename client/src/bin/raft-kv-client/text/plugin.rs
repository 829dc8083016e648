//! Plugins for people.

use std::{fmt::Write, time::Duration};

use raft_kv_client::{PluginView, ShardTrial};

use super::{or_dash, size, table, time};

/// A table of plugins.
pub fn list(plugins: &[PluginView], now: Duration) -> String {
    let columns =
        ["PLUGIN", "VERSION", "SIZE", "MIGRATES", "NODES", "SHARDS", "UPLOADED", "SHA256"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(plugins.iter().map(|plugin| {
        [
            plugin.name.clone(),
            plugin.version.clone(),
            size(plugin.bytes),
            if plugin.migrates { "yes" } else { "no" }.to_owned(),
            or_dash(plugin.nodes.join(",")),
            plugin.active.len().to_string(),
            uploaded(plugin, now),
            plugin.sha256.chars().take(12).collect(),
        ]
    }));
    table(&rows)
}

fn uploaded(plugin: &PluginView, now: Duration) -> String {
    match plugin.uploaded_unix_ms {
        0 => "with the cluster".to_owned(),
        at => format!("{} ago", time(now.saturating_sub(Duration::from_millis(at)).as_secs())),
    }
}

/// Plugins, where they are, and which shards run them since when.
pub fn status(plugins: &[PluginView], now: Duration) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for plugin in plugins {
        let _ = writeln!(text, "{} {}", plugin.name, plugin.version);
        let active = plugin.active.iter();
        let active: Vec<String> = active
            .map(|shard| match shard.index {
                0 => shard.shard.clone(),
                index => format!("{} (from index {index})", shard.shard),
            })
            .collect();
        let mut rows = vec![
            ["  runs on".to_owned(), or_dash(active.join(", "))],
            ["  ran before on".to_owned(), or_dash(plugin.previous.join(", "))],
            ["  nodes".to_owned(), or_dash(plugin.nodes.join(", "))],
            ["  uploaded".to_owned(), uploaded(plugin, now)],
            ["  sha256".to_owned(), plugin.sha256.clone()],
        ];
        if !plugin.source_hash.is_empty() {
            rows.push(["  sources".to_owned(), plugin.source_hash.clone()]);
        }
        for (node, reason) in &plugin.refusals {
            rows.push([format!("  refused on {node}"), reason.clone()]);
        }
        let _ = writeln!(text, "{}", table(&rows));
    }
    text
}

/// What an activation would do.
pub fn trials(trials: &[ShardTrial]) -> String {
    let columns = ["SHARD", "SLOTS", "ROWS WRITTEN", "BYTES", "FUEL", "TOOK", "RESULT"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(trials.iter().map(|trial| {
        [
            trial.shard.clone(),
            trial.slots.to_string(),
            trial.rows.to_string(),
            size(trial.bytes),
            trial.fuel.to_string(),
            format!("{:.1} ms", trial.micros as f64 / 1_000.0),
            if trial.refusal.is_empty() { "fine".to_owned() } else { trial.refusal.clone() },
        ]
    }));
    table(&rows)
}
