//! What `bench` measured, for people and for programs.

use raft_kv::{
    author::bench::{Report, Speed},
    wasm::Manifest,
};
use serde_json::{Value, json};

/// One object: the plugin's name and version, and the report's fields.
pub fn json(plugin: &Manifest, report: &Report) -> String {
    let mut object = json!({ "plugin": plugin.name, "version": plugin.version });
    if let (Some(object), Ok(Value::Object(fields))) =
        (object.as_object_mut(), serde_json::to_value(report))
    {
        object.extend(fields);
    }
    object.to_string()
}

/// A table, and what it comes to.
pub fn text(plugin: &Manifest, report: &Report) -> String {
    let (fuel, batch) = (&report.fuel, &report.commands[1]);
    let mut lines = vec![
        format!("{} {}", plugin.name, plugin.version),
        format!(
            "{:<24}{:>12}{:>14}{:>16}{:>9}",
            "", "per second", "µs each", "µs of the host", "failed"
        ),
        row("commands one by one", &report.commands[0]),
        row(&format!("commands {} at a time", batch.batch), batch),
        row("queries one by one", &report.queries),
    ];
    lines.push(format!(
        "fuel a command    {} at least, {} for half of them, {} at most: {:.3} % of the limit",
        fuel.min,
        fuel.median,
        fuel.max,
        fuel.max_share * 100.0
    ));
    lines.push(format!("bytes written     {:.0} by a command alone", report.bytes_written));
    lines.push(conclusion(report));
    lines.join("\n")
}

fn row(name: &str, speed: &Speed) -> String {
    format!(
        "{name:<24}{:>12.0}{:>14.2}{:>16.2}{:>7.0} %",
        speed.per_second,
        speed.microseconds,
        speed.crossing_microseconds,
        speed.failed * 100.0
    )
}

/// In a sentence or two: where the time goes, and whether the fuel suffices.
fn conclusion(report: &Report) -> String {
    let batch = &report.commands[1];
    let own = (batch.microseconds - batch.crossing_microseconds).max(0.0);
    let share = own / batch.microseconds * 100.0;
    let mut said = format!(
        "In batches a command takes {:.2} µs, {own:.2} of them ({share:.0} %) for what the plugin does \
         and stores; the rest is the host's. A shard applies on one thread, so {:.0} commands a second \
         is the most it could do; the log and the network come on top.",
        batch.microseconds, batch.per_second
    );
    // A kept instance gives half of the fuel; who needs more runs twice.
    if report.fuel.max_share > 0.5 {
        said += "\nSome commands need more than half of the fuel they may use: they run twice, the second \
                 time on an instance of their own.";
    }
    if report.commands.iter().any(|speed| speed.failed > 0.9) {
        said += "\nNearly all commands fail: give some that succeed, or this says little.";
    }
    said
}
