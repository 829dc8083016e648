//! What can be asked on the command line.

mod cluster;
mod plugin;

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use raft_kv_client::parse_ttl;

use crate::{Failure, text};

pub use cluster::{BalancerCommand, NodeCommand, OperationCommand, Replica, ShardCommand};
pub use plugin::{Call, PluginCommand};

const AFTER_HELP: &str = "\
Keys and values are any bytes. Text output escapes what cannot be printed in the \
pairs of a scan; `get` prints the value as it is, and a newline. With --output json \
each answer, and each pair of a scan or item of a list, is one JSON object on one \
line; a key or value that is not UTF-8 is given as {\"base64\": \"…\"} instead of a \
string.

What changes shards or nodes is an operation, which the command waits for. When the \
time is up it goes on: `operation show ID` tells how it stands.

Exit codes: 0 done; 1 the key, shard, node or operation does not exist; 2 bad usage; 3 \
the cluster could not serve it, or not in time.";

const AFTER_ATOMIC_HELP: &str = "\
Each line is a condition or an operation, in words with blanks between them:
  if KEY version N        the key has this version
  if KEY exists           the key exists
  if KEY absent           the key does not exist
  put KEY VALUE [ttl T]   set a key, to be gone after the time T, such as 30s
  get KEY                 read a key
  delete KEY              remove a key
  increment KEY [N]       add to the number that is a key's value; 1 unless said otherwise
Keys and values are written as a scan prints them: \\t, \\n, \\r, \\\\ and \\xNN stand for bytes, \
\\x20 for a blank, and \"\" for nothing. Empty lines and those that begin with # do not count.

All conditions are looked at first; if one does not hold, nothing is done. Operations take \
effect in their order. There is one line of output for each operation.";

/// Command line of a RaftKV cluster.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Args {
    /// Nodes to ask, in this order, separated by commas.
    #[arg(
        long,
        global = true,
        value_name = "URL,URL",
        env = "RAFT_KV_ENDPOINTS",
        default_value = "http://127.0.0.1:5001"
    )]
    pub endpoints: String,

    /// How to print answers.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub output: Output,

    /// How many seconds to wait: 10 for an answer, 600 for the end of an operation,
    /// unless said otherwise.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    #[command(subcommand)]
    pub command: Command,
}

/// How to print answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set a key.
    Put {
        #[command(flatten)]
        key: Key,
        /// Its new value; `-` reads it from stdin.
        #[arg(allow_negative_numbers = true)]
        value: OsString,
        /// The key is gone after this time: a whole number of ms, s, m, h or d, such as 30s.
        #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
        ttl: Option<Duration>,
        /// Only if the key has this version; 0: only if it does not exist.
        #[arg(long, alias = "expected-version", value_name = "N")]
        if_version: Option<u64>,
        /// Only if the key does not exist.
        #[arg(long, conflicts_with = "if_version")]
        if_absent: bool,
    },
    /// Print the value of a key.
    Get {
        #[command(flatten)]
        key: Key,
        /// Take some earlier state instead of the latest.
        #[arg(long)]
        stale: bool,
    },
    /// Remove a key.
    Delete {
        #[command(flatten)]
        key: Key,
        /// Only if the key has this version.
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// Add to the number that is a key's value; a key that does not exist counts as 0.
    Increment {
        #[command(flatten)]
        key: Key,
        /// What to add; it may be negative.
        #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },
    /// Carry out many operations on keys that share a {tag}: all of them or none.
    #[command(after_help = AFTER_ATOMIC_HELP)]
    Atomic {
        /// Lines, one an argument; without any they are read from stdin.
        #[arg(allow_hyphen_values = true)]
        lines: Vec<String>,
    },
    /// Print the pairs whose key starts with a prefix, in byte order of the keys.
    Scan {
        /// What the keys start with; all keys if it is empty.
        #[command(flatten)]
        prefix: Prefix,
        /// At most so many pairs.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// Take some earlier state instead of the latest.
        #[arg(long)]
        stale: bool,
    },
    /// Print how the cluster is: its nodes, shards and operations.
    Status {
        /// Only what one node knows of itself and its shards.
        #[arg(long)]
        node: bool,
    },
    /// Look at shards, make and end them, and move their replicas and leaders.
    #[command(subcommand)]
    Shard(ShardCommand),
    /// Look at the cluster's nodes, add and remove them.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at plugins, upload them, and switch shards to them and back.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Run a command of the plugin that a key's shard runs, whatever that is, and print the answer.
    Call(Call),
    /// Look at operations, and have them rolled back.
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Whether the cluster spreads replicas and leaders over its nodes by itself.
    #[command(subcommand)]
    Balancer(BalancerCommand),
}

#[derive(Debug, clap::Args)]
pub struct Key {
    /// The key.
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// The key is given in hexadecimal.
    #[arg(long)]
    hex: bool,
}

impl Key {
    /// The bytes of the key.
    pub fn bytes(self) -> Result<Vec<u8>, Failure> {
        decode(self.key, self.hex)
    }
}

#[derive(Debug, clap::Args)]
pub struct Prefix {
    /// What the keys start with; all keys if it is empty.
    #[arg(allow_negative_numbers = true)]
    prefix: OsString,
    /// The prefix is given, and the keys are printed as text, in hexadecimal.
    #[arg(long)]
    pub hex: bool,
}

impl Prefix {
    /// The bytes of the prefix.
    pub fn bytes(self) -> Result<Vec<u8>, Failure> {
        decode(self.prefix, self.hex)
    }
}

/// The bytes that an argument stands for.
fn decode(argument: OsString, hex: bool) -> Result<Vec<u8>, Failure> {
    if !hex {
        return Ok(argument.into_vec());
    }
    text::from_hex(argument.as_bytes()).ok_or_else(|| {
        let shown = argument.to_string_lossy();
        Failure::BadUsage(format!(
            "{shown:?} is not hexadecimal: give two digits for each byte, without spaces"
        ))
    })
}

/// Reads a number of seconds, such as `10` or `0.5`.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        _ => Err("not a time above zero".to_owned()),
    }
}
