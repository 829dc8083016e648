//! The figures of a run, for people and for programs.

use std::{fmt::Write, time::Duration};

use raft_kv_client::Endpoint;
use serde_json::{Map, Value, json};

use crate::{
    args::{Args, Phase, Route, Via},
    cluster::Cluster,
    tally::Tally,
};

/// The columns of the table. They have a fixed width, for rows to be written as
/// phases end.
const COLUMNS: [&str; 10] =
    ["PHASE", "OPS", "OPS/S", "ERRORS", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"];
const WIDTHS: [usize; 10] = [5, 11, 10, 8, 9, 9, 9, 9, 9, 9];

/// What was asked for, as far as it bears on the figures.
#[derive(Debug)]
pub struct Setup<'a> {
    args: &'a Args,
    /// The endpoints that answer.
    endpoints: Vec<String>,
    connections: usize,
}

impl<'a> Setup<'a> {
    /// What `args` make of `cluster`.
    pub fn new(args: &'a Args, cluster: &Cluster) -> Self {
        let endpoints = cluster.endpoints.iter().map(Endpoint::to_string).collect();
        Self { args, endpoints, connections: cluster.connections() }
    }
}

/// The figures of a phase.
#[derive(Debug)]
pub struct Figures {
    pub phase: Phase,
    /// Operations that succeeded.
    pub operations: u64,
    operations_per_second: f64,
    /// Operations that failed.
    failed: u64,
    /// `None` if no call succeeded.
    latency: Option<Latency>,
    tally: Tally,
}

/// Latencies of calls, in milliseconds.
#[derive(Debug, PartialEq)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Figures {
    /// The figures of what was counted in a phase that was measured for `time`.
    pub fn new(phase: Phase, time: Duration, tally: Tally) -> Self {
        let latencies = &tally.latencies;
        let at = |quantile| milliseconds(latencies.value_at_quantile(quantile) as f64);
        let latency = (!latencies.is_empty()).then(|| Latency {
            mean: milliseconds(latencies.mean()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: milliseconds(latencies.max() as f64),
        });
        Self {
            phase,
            operations: tally.operations,
            operations_per_second: tally.operations as f64 / time.as_secs_f64(),
            failed: tally.errors.values().map(|errors| errors.operations).sum(),
            latency,
            tally,
        }
    }
}

/// Microseconds as milliseconds, to the microsecond.
fn milliseconds(micros: f64) -> f64 {
    micros.round() / 1000.0
}

/// How calls get there, if in a way of its own.
fn way(args: &Args) -> &'static str {
    match (args.via, args.route) {
        (Via::Client, _) => " through the client library",
        (_, Route::Leader) => ", each call to its key's leader,",
        _ => "",
    }
}

/// What comes before the figures: what they are of, and the head of the table.
pub fn heading(setup: &Setup<'_>) -> String {
    let args = setup.args;
    let call = match args.batch {
        None => "one operation a call".to_owned(),
        Some(size) => format!("{size} operations a call"),
    };
    format!(
        "{}{} at {}\nconcurrency {}, connections {}, {call}, {} keys, values of {} bytes\n\
         {:?} a phase after {:?} of warm-up; latencies of calls in milliseconds\n\n{}",
        args.target.name(),
        way(args),
        setup.endpoints.join(", "),
        args.concurrency,
        setup.connections,
        args.keys,
        args.value_size,
        args.duration,
        args.warm_up(),
        line(COLUMNS.map(str::to_owned)),
    )
}

/// The figures of a phase as a row, and a line for each kind of error.
pub fn row(figures: &Figures) -> String {
    let latency = |of: fn(&Latency) -> f64| match &figures.latency {
        Some(latency) => format!("{:.3}", of(latency)),
        None => "-".to_owned(),
    };
    let mut text = line([
        figures.phase.name().to_owned(),
        figures.operations.to_string(),
        format!("{:.0}", figures.operations_per_second),
        figures.failed.to_string(),
        latency(|latency| latency.mean),
        latency(|latency| latency.p50),
        latency(|latency| latency.p90),
        latency(|latency| latency.p99),
        latency(|latency| latency.p99_9),
        latency(|latency| latency.max),
    ]);
    // Writing to a string cannot fail.
    for (kind, errors) in &figures.tally.errors {
        let _ = writeln!(text, "  {} x {kind}: {}", errors.operations, errors.message);
    }
    if figures.tally.missing > 0 {
        let _ = writeln!(text, "  {} gets found no key", figures.tally.missing);
    }
    text
}

/// Cells in their columns: the first one on the left, the others on the right.
fn line(cells: [String; COLUMNS.len()]) -> String {
    let mut text = String::new();
    for (place, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        // Writing to a string cannot fail.
        let _ = match place {
            0 => write!(text, "{cell:width$}"),
            _ => write!(text, " {cell:>width$}"),
        };
    }
    text.push('\n');
    text
}

/// The whole run.
pub fn json(setup: &Setup<'_>, phases: &[Figures]) -> Value {
    let args = setup.args;
    json!({
        "target": args.target.name(),
        "via": args.via.name(),
        "route": args.route.name(),
        "endpoints": setup.endpoints,
        "concurrency": args.concurrency,
        "connections": setup.connections,
        "batch": args.batch,
        "keys": args.keys,
        "value_size": args.value_size,
        "read_ratio": args.read_ratio,
        "seed": args.seed,
        "duration_seconds": args.duration.as_secs_f64(),
        "warm_up_seconds": args.warm_up().as_secs_f64(),
        "phases": phases.iter().map(phase_json).collect::<Vec<_>>(),
    })
}

fn phase_json(figures: &Figures) -> Value {
    let errors = figures.tally.errors.iter().map(|(kind, errors)| {
        let value = json!({ "operations": errors.operations, "message": errors.message });
        (kind.clone(), value)
    });
    let latency = figures.latency.as_ref().map(|latency| {
        json!({
            "mean": latency.mean,
            "p50": latency.p50,
            "p90": latency.p90,
            "p99": latency.p99,
            "p99_9": latency.p99_9,
            "max": latency.max,
        })
    });
    json!({
        "phase": figures.phase.name(),
        "operations": figures.operations,
        "operations_per_second": figures.operations_per_second,
        "calls": figures.tally.latencies.len(),
        "missing": figures.tally.missing,
        "failed": figures.failed,
        "errors": errors.collect::<Map<_, _>>(),
        "latency_ms": latency,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Answer, Failure};

    /// Calls of 1, 2, … `calls` milliseconds, ten operations each.
    fn tally(calls: u64) -> Tally {
        let mut tally = Tally::new();
        for call in 1..=calls {
            let answer = Answer { done: 10, ..Answer::default() };
            tally.record(Duration::from_millis(call), answer);
        }
        tally
    }

    /// Equal to three digits, which is what the histogram keeps.
    fn near(value: f64, expected: f64) -> bool {
        (value / expected - 1.0).abs() < 0.001
    }

    #[test]
    fn figures_are_those_of_the_calls() {
        let figures = Figures::new(Phase::Put, Duration::from_secs(4), tally(1000));
        assert_eq!((figures.operations, figures.operations_per_second), (10_000, 2500.0));
        let latency = figures.latency.unwrap();
        for (value, expected) in [
            (latency.mean, 500.5),
            (latency.p50, 500.0),
            (latency.p90, 900.0),
            (latency.p99, 990.0),
            (latency.p99_9, 999.0),
            (latency.max, 1000.0),
        ] {
            assert!(near(value, expected), "{value} is not {expected}");
        }
    }

    #[test]
    fn a_phase_in_which_all_failed_has_no_latency() {
        let mut tally = Tally::new();
        let (kind, message) = ("Timeout".to_owned(), "no answer within 1s".to_owned());
        let failures = vec![Failure { kind, message, operations: 7 }];
        tally.record(Duration::from_secs(1), Answer { failures, ..Answer::default() });
        let figures = Figures::new(Phase::Get, Duration::from_secs(1), tally);
        assert_eq!((figures.operations, figures.failed), (0, 7));
        let row = row(&figures);
        assert!(row.contains(" - "), "{row}");
        assert!(row.ends_with("\n  7 x Timeout: no answer within 1s\n"), "{row}");
        let json = phase_json(&figures);
        assert_eq!(json["latency_ms"], Value::Null);
        assert_eq!(json["errors"]["Timeout"]["operations"], 7);
    }

    #[test]
    fn rows_stand_under_the_head() {
        let head = line(COLUMNS.map(str::to_owned));
        let row = row(&Figures::new(Phase::Mixed, Duration::from_millis(1), tally(1)));
        let expected = "\
PHASE         OPS      OPS/S   ERRORS      MEAN       P50       P90       P99     P99.9       MAX
mixed          10      10000        0     1.000     1.000     1.000     1.000     1.000     1.000
";
        assert_eq!([head, row].concat(), expected);
    }
}
