//! What the node counts, for Prometheus.
//!
//! Labels are bounded: `op` by the kinds of operation, `shard` by the shards of
//! the cluster, `peer` by its nodes. Counters of the hot path are looked up when the
//! routing table is made.

mod plugin;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use raft_lite::GroupStatus;

pub use plugin::{PluginFigures, PluginMetrics};

/// The kinds of operation that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKind {
    /// `Kv.Put`.
    Put,
    /// `Kv.Get`.
    Get,
    /// `Kv.Delete`.
    Delete,
    /// `Kv.Scan`, once for each shard it reads.
    Scan,
    /// A command for any plugin.
    Apply,
    /// A query for any plugin.
    Query,
    /// `Kv.Increment`.
    Increment,
    /// `Kv.Atomic`.
    Atomic,
}

const KINDS: [(OperationKind, &str); 8] = [
    (OperationKind::Put, "put"),
    (OperationKind::Get, "get"),
    (OperationKind::Delete, "delete"),
    (OperationKind::Scan, "scan"),
    (OperationKind::Apply, "apply"),
    (OperationKind::Query, "query"),
    (OperationKind::Increment, "increment"),
    (OperationKind::Atomic, "atomic"),
];

/// Upper bounds of the duration histogram, in seconds.
const DURATION_BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

/// One kind of operation on one shard.
#[derive(Debug)]
struct Operations {
    ok: IntCounter,
    failed: IntCounter,
    duration: Histogram,
}

/// What is counted of one shard.
#[derive(Debug)]
pub struct ShardMetrics {
    /// By kind.
    operations: Vec<Operations>,
    plugin: String,
}

impl ShardMetrics {
    /// Counts operations that were answered together.
    pub fn observe(&self, kind: OperationKind, count: u64, duration: Duration, succeeded: bool) {
        let operations = &self.operations[kind as usize];
        let total = if succeeded { &operations.ok } else { &operations.failed };
        total.inc_by(count);
        operations.duration.observe(duration.as_secs_f64());
    }

    /// Operations that were answered so far.
    pub fn answered(&self) -> u64 {
        self.operations.iter().map(|operations| operations.ok.get()).sum()
    }
}

/// The node's counters.
pub struct Metrics {
    registry: Registry,
    totals: IntCounterVec,
    durations: HistogramVec,
    /// The shards that are counted, by their names.
    shards: Mutex<BTreeMap<String, Arc<ShardMetrics>>>,
    terms: IntGaugeVec,
    commits: IntGaugeVec,
    applied: IntGaugeVec,
    asleep: IntGaugeVec,
    decisions: IntCounterVec,
    fenced: IntCounterVec,
    plugins: PluginMetrics,
    disk_usage: IntGauge,
    memory_usage: IntGauge,
    disk_free: IntGauge,
    disk_full: IntGauge,
    peers_connected: IntGaugeVec,
    peers_dropped: IntGaugeVec,
}

impl Metrics {
    /// Counters, of no shard yet.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let totals = IntCounterVec::new(
            Opts::new("raftkv_operations_total", "Operations answered, by result"),
            &["op", "shard", "plugin", "result"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "raftkv_operation_duration_seconds",
                "Time from receiving an operation to answering it",
            )
            .buckets(DURATION_BUCKETS.to_vec()),
            &["op", "shard"],
        )?;
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["shard"]);
        let terms = gauge("raftkv_raft_term", "Raft term of the shard")?;
        let commits = gauge("raftkv_raft_commit_index", "Highest committed log index")?;
        let applied = gauge("raftkv_raft_applied_index", "Highest applied log index")?;
        let asleep =
            gauge("raftkv_raft_asleep", "1 if the shard's replica sleeps, having nothing to do")?;
        let disk_usage =
            IntGauge::new("raftkv_storage_disk_usage_bytes", "Bytes of the data folder")?;
        let memory_usage =
            IntGauge::new("raftkv_storage_memory_bytes", "Bytes of memtables and block cache")?;
        let disk_free = IntGauge::new(
            "raftkv_storage_disk_free_bytes",
            "Bytes free on the data folder's disk",
        )?;
        let disk_full = IntGauge::new(
            "raftkv_storage_disk_nearly_full",
            "1 if the node takes reads and deletes only, for want of room",
        )?;
        let peers_connected = IntGaugeVec::new(
            Opts::new("raftkv_peer_connected", "1 if there is a connection to the node"),
            &["peer"],
        )?;
        let peers_dropped = IntGaugeVec::new(
            Opts::new(
                "raftkv_peer_dropped_messages",
                "Raft messages to the node that found no room or no connection",
            ),
            &["peer"],
        )?;
        registry.register(Box::new(peers_connected.clone()))?;
        registry.register(Box::new(peers_dropped.clone()))?;
        registry.register(Box::new(totals.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        for vec in [&terms, &commits, &applied, &asleep] {
            registry.register(Box::new(vec.clone()))?;
        }
        for gauge in [&disk_usage, &disk_free, &disk_full] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(memory_usage.clone()))?;
        let decisions = IntCounterVec::new(
            Opts::new("raftkv_balancer_decisions_total", "Operations the balancer began"),
            &["kind", "reason"],
        )?;
        registry.register(Box::new(decisions.clone()))?;
        let fenced = IntCounterVec::new(
            Opts::new(
                "raftkv_replicas_fenced_total",
                "Replicas taken out of service because their state differed from the others'",
            ),
            &["shard"],
        )?;
        registry.register(Box::new(fenced.clone()))?;
        let plugins = PluginMetrics::new(&registry)?;
        Ok(Metrics {
            shards: Mutex::default(),
            registry,
            totals,
            durations,
            terms,
            commits,
            applied,
            asleep,
            decisions,
            fenced,
            plugins,
            disk_usage,
            memory_usage,
            disk_free,
            disk_full,
            peers_connected,
            peers_dropped,
        })
    }

    /// Where a shard is counted that runs this plugin.
    pub fn shard(&self, name: &str, plugin: &str) -> Arc<ShardMetrics> {
        let mut shards = self.shards.lock();
        if let Some(known) = shards.get(name).filter(|known| known.plugin == plugin) {
            return Arc::clone(known);
        }
        let of_kind = |op: &str| Operations {
            ok: self.totals.with_label_values(&[op, name, plugin, "ok"]),
            failed: self.totals.with_label_values(&[op, name, plugin, "error"]),
            duration: self.durations.with_label_values(&[op, name]),
        };
        let operations = KINDS.iter().map(|(_, op)| of_kind(op)).collect();
        let shard = Arc::new(ShardMetrics { operations, plugin: plugin.to_owned() });
        shards.insert(name.to_owned(), Arc::clone(&shard));
        shard
    }

    /// Forgets all shards but these, and with them their labels.
    pub fn keep_shards(&self, names: &BTreeSet<&str>) {
        let mut shards = self.shards.lock();
        let gone = shards.extract_if(.., |name, _| !names.contains(name.as_str()));
        for (name, shard) in gone {
            // Labels that were never used are not there to be removed.
            for (_, op) in KINDS {
                for result in ["ok", "error"] {
                    let _ = self.totals.remove_label_values(&[op, &name, &shard.plugin, result]);
                }
                let _ = self.durations.remove_label_values(&[op, &name]);
            }
            self.set_raft(&name, None);
        }
    }

    /// Notes the progress of a shard's replica; nothing is shown of one that is not here.
    pub fn set_raft(&self, shard: &str, status: Option<&GroupStatus>) {
        let set = |gauges: &IntGaugeVec, value: Option<u64>| match value {
            Some(value) => gauges.with_label_values(&[shard]).set(value.cast_signed()),
            // One that was never shown can not be removed.
            None => drop(gauges.remove_label_values(&[shard])),
        };
        set(&self.terms, status.map(|status| status.term.0));
        set(&self.commits, status.map(|status| status.commit.0));
        set(&self.applied, status.map(|status| status.applied.0));
        set(&self.asleep, status.map(|status| u64::from(status.asleep)));
    }

    /// The balancer began an operation.
    pub fn count_decision(&self, kind: &str, reason: &str) {
        self.decisions.with_label_values(&[kind, reason]).inc();
    }

    /// A shard's replica was taken out of service.
    pub fn count_fenced(&self, shard: &str) {
        self.fenced.with_label_values(&[shard]).inc();
    }

    /// What plugins have done here.
    pub fn plugins(&self) -> &PluginMetrics {
        &self.plugins
    }

    /// Notes how the way to another node is.
    pub fn set_peer(&self, peer: &str, connected: bool, dropped_messages: u64) {
        self.peers_connected.with_label_values(&[peer]).set(i64::from(connected));
        self.peers_dropped.with_label_values(&[peer]).set(dropped_messages.cast_signed());
    }

    /// Notes what the storage takes up.
    pub fn set_storage(&self, disk_bytes: u64, memory_bytes: u64) {
        self.disk_usage.set(disk_bytes.cast_signed());
        self.memory_usage.set(memory_bytes.cast_signed());
    }

    /// Notes how much room the disk has, and whether that is too little.
    pub fn set_disk(&self, free_bytes: u64, is_nearly_full: bool) {
        self.disk_free.set(free_bytes.cast_signed());
        self.disk_full.set(i64::from(is_nearly_full));
    }

    /// Bytes free on the data folder's disk.
    pub fn disk_free(&self) -> u64 {
        self.disk_free.get().cast_unsigned()
    }

    /// Whether that is too little.
    pub fn is_disk_full(&self) -> bool {
        self.disk_full.get() != 0
    }

    /// Everything counted, and what the Raft log's engine counts, as text.
    pub fn text(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(prometheus::gather());
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::warn!("cannot encode metrics: {error}");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_where_their_numbers_say() {
        for (place, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, place);
        }
    }

    #[test]
    fn operations_are_counted_by_kind_shard_and_result() {
        let metrics = Metrics::new().unwrap();
        let shard = metrics.shard("shard_0", "kv");
        shard.observe(OperationKind::Put, 3, Duration::from_millis(1), true);
        shard.observe(OperationKind::Put, 1, Duration::from_millis(1), false);
        let text = metrics.text();
        let ok = r#"raftkv_operations_total{op="put",plugin="kv",result="ok",shard="shard_0"} 3"#;
        assert!(text.contains(ok), "{text}");
        assert!(text.contains(r#"result="error",shard="shard_0"} 1"#), "{text}");
        metrics.keep_shards(&BTreeSet::new());
        assert!(!metrics.text().contains("shard_0"), "a shard that is gone leaves no labels");
    }
}
