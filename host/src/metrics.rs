//! What the node counts, for Prometheus.
//!
//! Labels are bounded: `op` by the kinds of operation, `shard` by the shards of
//! the node, `peer` by the nodes of the cluster. Counters of the hot path are looked up once, at start-up.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

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
}

const KINDS: [(OperationKind, &str); 6] = [
    (OperationKind::Put, "put"),
    (OperationKind::Get, "get"),
    (OperationKind::Delete, "delete"),
    (OperationKind::Scan, "scan"),
    (OperationKind::Apply, "apply"),
    (OperationKind::Query, "query"),
];

/// Upper bounds of the duration histogram, in seconds.
const DURATION_BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

/// One kind of operation on one shard.
struct Operations {
    ok: IntCounter,
    failed: IntCounter,
    duration: Histogram,
}

/// One shard's gauges.
struct ShardGauges {
    term: IntGauge,
    commit: IntGauge,
    applied: IntGauge,
    asleep: IntGauge,
}

/// The node's counters.
pub struct Metrics {
    registry: Registry,
    /// By shard, then by kind.
    operations: Vec<Vec<Operations>>,
    shards: Vec<ShardGauges>,
    disk_usage: IntGauge,
    memory_usage: IntGauge,
    disk_free: IntGauge,
    disk_full: IntGauge,
    peers_connected: IntGaugeVec,
    peers_dropped: IntGaugeVec,
}

impl Metrics {
    /// Counters for these shards, in the order of the routing table, all running
    /// this plugin.
    pub fn new(shards: &[(String, String)]) -> Result<Self, prometheus::Error> {
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
        let of_kind = |shard: &(String, String), op: &str| Operations {
            ok: totals.with_label_values(&[op, &shard.0, &shard.1, "ok"]),
            failed: totals.with_label_values(&[op, &shard.0, &shard.1, "error"]),
            duration: durations.with_label_values(&[op, &shard.0]),
        };
        let of_shard =
            |shard: &(String, String)| KINDS.iter().map(|(_, op)| of_kind(shard, op)).collect();
        let gauges = |(shard, _): &(String, String)| ShardGauges {
            term: terms.with_label_values(&[shard]),
            commit: commits.with_label_values(&[shard]),
            applied: applied.with_label_values(&[shard]),
            asleep: asleep.with_label_values(&[shard]),
        };
        Ok(Metrics {
            operations: shards.iter().map(of_shard).collect(),
            shards: shards.iter().map(gauges).collect(),
            registry,
            disk_usage,
            memory_usage,
            disk_free,
            disk_full,
            peers_connected,
            peers_dropped,
        })
    }

    /// Counts operations that were answered together.
    pub fn observe(
        &self,
        kind: OperationKind,
        shard: usize,
        count: u64,
        duration: Duration,
        succeeded: bool,
    ) {
        let Some(operations) = self.operations.get(shard).map(|kinds| &kinds[kind as usize]) else {
            return;
        };
        let total = if succeeded { &operations.ok } else { &operations.failed };
        total.inc_by(count);
        operations.duration.observe(duration.as_secs_f64());
    }

    /// Notes a shard's progress.
    pub fn set_raft(&self, shard: usize, term: u64, commit: u64, applied: u64, asleep: bool) {
        if let Some(gauges) = self.shards.get(shard) {
            gauges.term.set(term.cast_signed());
            gauges.commit.set(commit.cast_signed());
            gauges.applied.set(applied.cast_signed());
            gauges.asleep.set(i64::from(asleep));
        }
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
        let metrics = Metrics::new(&[("shard_0".into(), "kv".into())]).unwrap();
        metrics.observe(OperationKind::Put, 0, 3, Duration::from_millis(1), true);
        metrics.observe(OperationKind::Put, 0, 1, Duration::from_millis(1), false);
        let text = metrics.text();
        let ok = r#"raftkv_operations_total{op="put",plugin="kv",result="ok",shard="shard_0"} 3"#;
        assert!(text.contains(ok), "{text}");
        assert!(text.contains(r#"result="error",shard="shard_0"} 1"#), "{text}");
    }
}
