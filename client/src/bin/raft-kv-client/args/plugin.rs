//! What can be asked about plugins, and of them.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use clap::Subcommand;

use super::{Key, seconds};

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Print all plugins.
    List,
    /// Make a plugin known to the cluster: it is checked, compiled, and brought to all nodes.
    Upload {
        /// The module, a `.wasm` file.
        file: PathBuf,
    },
    /// Have shards run a plugin, one after the other; undone if one of them refuses.
    Activate(Activate),
    /// Have shards run again what they ran before the last activation.
    Rollback {
        /// Name of the plugin that they run.
        name: String,
        /// The shards, separated by commas; all that run it otherwise.
        #[arg(long, value_name = "SHARD,SHARD", value_delimiter = ',')]
        shards: Vec<String>,
        /// Even if shards have data that nobody carries over.
        #[arg(long)]
        force: bool,
    },
    /// Print which shards run which plugin since when, and which nodes have it.
    Status {
        /// Only versions of this plugin.
        name: Option<String>,
    },
    /// Make the cluster forget a plugin that no shard runs or ran before.
    Delete {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct Activate {
    /// Name of the plugin.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The shards, separated by commas; all otherwise.
    #[arg(long, value_name = "SHARD,SHARD", value_delimiter = ',')]
    pub shards: Vec<String>,
    /// Change nothing: try on each shard's present state what it would do.
    #[arg(long)]
    pub dry_run: bool,
    /// The shard that runs it first, and alone for a while: commands that fail there by the
    /// plugin's fault undo it.
    #[arg(long, value_name = "SHARD", conflicts_with = "dry_run")]
    pub canary: Option<String>,
    /// For how many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    pub canary_seconds: Duration,
    /// Fuel for each command, if not the default.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub fuel: u64,
    /// Bytes of memory of an instance, if not the default.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub memory_bytes: u64,
    /// Even if shards have data of another plugin that nobody carries over.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, clap::Args)]
pub struct Call {
    #[command(flatten)]
    pub key: Key,
    /// The command; `-` reads it from stdin.
    #[arg(allow_negative_numbers = true)]
    command: OsString,
    /// It only reads: a query, not a command that goes through the log.
    #[arg(long)]
    pub query: bool,
}

impl Call {
    /// The key, and the command unless it is to be read from stdin.
    pub fn parts(self) -> (Key, Option<Vec<u8>>) {
        let command = (self.command != "-").then(|| self.command.into_vec());
        (self.key, command)
    }
}
