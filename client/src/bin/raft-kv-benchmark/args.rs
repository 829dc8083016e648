//! What can be asked for on the command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use raft_kv_client::Endpoint;

use crate::cluster::MAX_TXN_OPERATIONS;

const AFTER_HELP: &str = "\
Each caller sends a call, waits for its answer, and sends the next one. The phases of \
--ops run one after the other, each for --duration after a warm-up that is not counted \
(1 s, or a tenth of the duration if that is shorter). What is counted are the operations \
that begin within the duration; latencies are those of the calls that succeed.

Durations are written as 500ms, 10s, 1.5m or 1h; a number alone is seconds.

Exit codes: 0 done; 2 bad usage; 3 no endpoint answers, or every operation of a phase \
failed.";

/// The longest duration, so that clocks do not overflow.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest warm-up.
const WARM_UP: Duration = Duration::from_secs(1);

/// Load generator for a RaftKV cluster.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Args {
    /// Nodes that the callers are spread over, separated by commas.
    #[arg(
        long,
        value_name = "URL,URL",
        value_delimiter = ',',
        env = "RAFT_KV_ENDPOINTS",
        default_value = "http://127.0.0.1:5001"
    )]
    pub endpoints: Vec<Endpoint>,

    /// Callers, each with one call in flight.
    #[arg(long, value_name = "N", default_value = "100", value_parser = count)]
    pub concurrency: usize,

    /// How long each phase is measured.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,

    /// What to do, one phase each, separated by commas.
    #[arg(long, value_name = "OP,OP", value_delimiter = ',', default_value = "put,get")]
    pub ops: Vec<Phase>,

    /// The share of gets in a mixed phase, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value = "0.5", value_parser = share)]
    pub read_ratio: f64,

    /// Bytes in a value, which are random.
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = value_size)]
    pub value_size: usize,

    /// Keys to choose from, each as likely as the others.
    #[arg(long, value_name = "N", default_value = "100000", value_parser = count)]
    pub keys: usize,

    /// Send so many operations in each call; without it, calls are Put and Get.
    #[arg(long, value_name = "N", value_parser = count)]
    pub batch: Option<usize>,

    /// HTTP/2 connections to each endpoint, never more than callers. Fewer cost less
    /// processor time a call; a machine with many cores may need more.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub connections: usize,

    /// Threads of this program; without it, as many as there are cores.
    #[arg(long, value_name = "N", value_parser = count)]
    pub threads: Option<usize>,

    /// How long a call may take before it counts as failed.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// Do not write all keys before the first phase that reads.
    #[arg(long)]
    pub no_load: bool,

    /// Runs with the same seed choose the same keys.
    #[arg(long, value_name = "N", default_value_t)]
    pub seed: u64,

    /// What serves the calls.
    #[arg(long, value_enum, default_value_t)]
    pub target: Target,

    /// How calls get to RaftKV.
    #[arg(long, value_enum, default_value_t)]
    pub via: Via,

    /// Which node of RaftKV a unary call goes to.
    #[arg(long, value_enum, default_value_t)]
    pub route: Route,

    /// How to print the figures.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

impl Args {
    /// Why these arguments make no sense together, if so.
    pub fn check(&self) -> Result<(), String> {
        let etcd = self.target == Target::Etcd;
        if etcd && cfg!(not(feature = "etcd")) {
            return Err(
                "--target etcd: this program was built without its feature `etcd`".to_owned()
            );
        }
        if etcd && self.via == Via::Client {
            return Err("--via client is RaftKV's client library: leave it out for etcd".to_owned());
        }
        if etcd && self.route == Route::Leader {
            return Err("--route leader is for RaftKV: an etcd cluster has one leader".to_owned());
        }
        if self.route == Route::Leader && self.via == Via::Client {
            return Err("--via client asks the leaders by itself: leave out --route".to_owned());
        }
        if self.route == Route::Leader && self.batch.is_some() {
            return Err("--route leader is for single calls: a batch has many leaders".to_owned());
        }
        match self.batch {
            Some(size) if etcd && size > MAX_TXN_OPERATIONS => Err(format!(
                "--batch {size}: etcd takes at most {MAX_TXN_OPERATIONS} operations in a call"
            )),
            _ => Ok(()),
        }
    }

    /// How long each phase runs before it is measured.
    pub fn warm_up(&self) -> Duration {
        WARM_UP.min(self.duration / 10)
    }
}

/// What the callers do for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// Set keys.
    Put,
    /// Read keys, linearizably.
    Get,
    /// Some of both.
    Mixed,
}

impl Phase {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        }
    }

    /// Whether it needs keys to read.
    pub fn reads(self) -> bool {
        self != Self::Put
    }
}

/// What serves the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// A RaftKV cluster with the default plugin.
    #[default]
    Raftkv,
    /// An etcd cluster.
    Etcd,
}

impl Target {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raftkv => "raftkv",
            Self::Etcd => "etcd",
        }
    }
}

/// How calls get to a RaftKV cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// Each as a gRPC call of its own, like any gRPC client's.
    #[default]
    Unary,
    /// Through RaftKV's client library, which all callers share.
    Client,
}

impl Via {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Client => "client",
        }
    }
}

/// Which node a unary call goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Route {
    /// The caller's node, whatever the key.
    #[default]
    Any,
    /// The node that leads the key's shard.
    Leader,
}

impl Route {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Leader => "leader",
        }
    }
}

/// How to print the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    #[default]
    Text,
    /// One JSON object on one line.
    Json,
}

/// Reads a number of things of which there must be one.
fn count(text: &str) -> Result<usize, String> {
    at_most(text, 1, 1_000_000_000)
}

fn value_size(text: &str) -> Result<usize, String> {
    at_most(text, 0, 64 << 20)
}

fn at_most(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("not a number from {least} to {most}")),
    }
}

/// Reads a share of the whole.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("not a number from 0 to 1".to_owned()),
    }
}

/// Reads a time above zero, such as `500ms`, `10s`, `1.5m`, `1h`, or `10`, which
/// is in seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_a_unit = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is not a unit: write ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| "not a number and a unit".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds_a_unit) {
        Ok(time) if !time.is_zero() && time <= LONGEST => Ok(time),
        _ => Err("not a time above zero and of at most 30 days".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<const N: usize>(arguments: [&str; N]) -> Result<Args, String> {
        let arguments = ["raft-kv-benchmark"].into_iter().chain(arguments);
        Args::try_parse_from(arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("1m", 60_000), ("1.5m", 90_000), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", "s", "0", "0ms", "-1s", "1d", "10 s", "1s2", "nan", "infs", "1e300h", "31000000s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_documented_command_line_is_read() {
        let args = parse([
            "--endpoints",
            "http://127.0.0.1:5001,127.0.0.1:5002",
            "--concurrency",
            "10",
            "--duration",
            "5s",
            "--ops",
            "put,get,mixed",
            "--value-size",
            "0",
            "--keys",
            "7",
            "--batch",
            "100",
            "--target",
            "raftkv",
            "--output",
            "json",
        ])
        .unwrap();
        let endpoints: Vec<String> = args.endpoints.iter().map(Endpoint::to_string).collect();
        assert_eq!(endpoints, ["127.0.0.1:5001", "127.0.0.1:5002"]);
        assert_eq!(args.ops, [Phase::Put, Phase::Get, Phase::Mixed]);
        assert_eq!((args.concurrency, args.value_size, args.keys), (10, 0, 7));
        assert_eq!(
            (args.batch, args.target, args.output),
            (Some(100), Target::Raftkv, Output::Json)
        );
    }

    #[test]
    fn bad_usage_is_refused_with_the_reason() {
        for (argument, reason) in [
            ("--concurrency=0", "from 1 to"),
            ("--keys=0", "from 1 to"),
            ("--batch=0", "from 1 to"),
            ("--value-size=99999999999", "from 0 to"),
            ("--read-ratio=1.5", "from 0 to 1"),
            ("--duration=0s", "above zero"),
            ("--ops=put,fly", "possible values: put, get, mixed"),
            ("--endpoints=https://localhost:1", "only http"),
            ("--target=mystore", "possible values: raftkv, etcd"),
            ("--via=post", "possible values: unary, client"),
        ] {
            let message = parse([argument]).unwrap_err();
            assert!(message.contains(reason), "{argument}: {message}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_the_reason() {
        for (arguments, reason) in [
            (["--target=etcd", "--via=client"], "leave it out for etcd"),
            (["--target=etcd", "--route=leader"], "has one leader"),
            (["--target=etcd", "--batch=129"], "at most 128"),
            (["--route=leader", "--via=client"], "leave out --route"),
            (["--route=leader", "--batch=2"], "many leaders"),
        ] {
            let message = parse(arguments).unwrap().check().unwrap_err();
            assert!(message.contains(reason), "{arguments:?}: {message}");
        }
        assert_eq!(parse(["--target=etcd", "--batch=128"]).unwrap().check(), Ok(()));
    }

    #[test]
    fn the_warm_up_is_a_second_or_a_tenth() {
        assert_eq!(parse(["--duration=60s"]).unwrap().warm_up(), Duration::from_secs(1));
        assert_eq!(parse(["--duration=300ms"]).unwrap().warm_up(), Duration::from_millis(30));
    }
}
