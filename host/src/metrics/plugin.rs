//! What is counted of each version of a plugin on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{CounterVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What a version of a plugin has done since the node started.
#[derive(Clone, Debug, Default)]
pub struct PluginFigures {
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Commands by what became of them.
    pub commands: Vec<(String, u64)>,
    /// Queries that ran.
    pub queries: u64,
    /// Fuel that commands used.
    pub fuel: u64,
    /// Time that commands took.
    pub apply_time: Duration,
    /// Time that queries took.
    pub query_time: Duration,
    /// Linear memory of the instance that ran commands last.
    pub memory_bytes: u64,
}

/// The counters, by name and version.
pub struct PluginMetrics {
    commands: IntCounterVec,
    queries: IntCounterVec,
    fuel: IntCounterVec,
    seconds: CounterVec,
    memory: IntGaugeVec,
    /// The names and versions that are shown, and the results of each.
    shown: Mutex<BTreeMap<(String, String), BTreeSet<String>>>,
}

impl PluginMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let plugin = ["plugin", "version"];
        let commands = IntCounterVec::new(
            Opts::new("raftkv_plugin_commands_total", "Commands that ran on this node, by result"),
            &["plugin", "version", "result"],
        )?;
        let queries = IntCounterVec::new(
            Opts::new("raftkv_plugin_queries_total", "Queries that ran on this node"),
            &plugin,
        )?;
        let fuel = IntCounterVec::new(
            Opts::new("raftkv_plugin_fuel_total", "Fuel used by commands on this node"),
            &plugin,
        )?;
        let seconds = CounterVec::new(
            Opts::new("raftkv_plugin_seconds_total", "Time spent in the plugin on this node"),
            &["plugin", "version", "kind"],
        )?;
        let memory = IntGaugeVec::new(
            Opts::new("raftkv_plugin_memory_bytes", "Linear memory of the instance that ran last"),
            &plugin,
        )?;
        registry.register(Box::new(commands.clone()))?;
        registry.register(Box::new(queries.clone()))?;
        registry.register(Box::new(fuel.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(memory.clone()))?;
        Ok(PluginMetrics { commands, queries, fuel, seconds, memory, shown: Mutex::default() })
    }

    /// Brings the counters up to these figures; versions without any are shown no more.
    pub fn set(&self, figures: &[PluginFigures]) {
        let of_results =
            |one: &PluginFigures| one.commands.iter().map(|(r, _)| r.clone()).collect();
        let now: BTreeMap<_, BTreeSet<String>> = figures
            .iter()
            .map(|one| ((one.name.clone(), one.version.clone()), of_results(one)))
            .collect();
        let mut shown = self.shown.lock();
        for (plugin, results) in shown.iter().filter(|(plugin, _)| !now.contains_key(*plugin)) {
            self.forget(plugin, results);
        }
        *shown = now;
        for one in figures {
            let plugin = [one.name.as_str(), one.version.as_str()];
            let [name, version] = plugin;
            for (result, count) in &one.commands {
                let counter = self.commands.with_label_values(&[name, version, result]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
            for (counters, count) in [(&self.queries, one.queries), (&self.fuel, one.fuel)] {
                let counter = counters.with_label_values(&plugin);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
            for (kind, time) in [("apply", one.apply_time), ("query", one.query_time)] {
                let counter = self.seconds.with_label_values(&[name, version, kind]);
                counter.inc_by((time.as_secs_f64() - counter.get()).max(0.0));
            }
            self.memory.with_label_values(&plugin).set(one.memory_bytes.cast_signed());
        }
    }

    /// Labels that were never used are not there to be removed.
    fn forget(&self, (name, version): &(String, String), results: &BTreeSet<String>) {
        for result in results {
            let _ = self.commands.remove_label_values(&[name, version, result]);
        }
        let _ = self.queries.remove_label_values(&[name, version]);
        let _ = self.fuel.remove_label_values(&[name, version]);
        let _ = self.memory.remove_label_values(&[name, version]);
        for kind in ["apply", "query"] {
            let _ = self.seconds.remove_label_values(&[name, version, kind]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_show_by_version_until_the_version_is_gone() {
        let registry = Registry::new();
        let metrics = PluginMetrics::new(&registry).unwrap();
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let mut one = PluginFigures {
            name: "counter".into(),
            version: "0.1.0".into(),
            commands: vec![("ok".into(), 3), ("trap".into(), 1)],
            fuel: 700,
            ..PluginFigures::default()
        };
        metrics.set(&[one.clone()]);
        one.commands[0].1 = 5;
        metrics.set(&[one]);
        let ok = r#"raftkv_plugin_commands_total{plugin="counter",result="ok",version="0.1.0"} 5"#;
        assert!(text().contains(ok), "{}", text());
        assert!(
            text().contains(r#"raftkv_plugin_fuel_total{plugin="counter",version="0.1.0"} 700"#)
        );
        metrics.set(&[]);
        assert!(!text().contains("counter"), "{}", text());
    }
}
