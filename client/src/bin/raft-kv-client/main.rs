//! `raft-kv-client`: the cluster from a shell.
//!
//! `args` says what can be asked, `commands` asks it, `json` and `text` write
//! the answers. Answers go to stdout, everything else to stderr; a reader that
//! closes stdout early ends the program quietly.

mod args;
mod commands;
mod json;
mod text;

use std::{
    error::Error as _,
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use clap::Parser;
use raft_kv_client::{ClusterOperation, Error};

use args::Args;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the key {0} does not exist")]
    NoSuchKey(String),
    #[error("there is no shard {0}")]
    NoSuchShard(String),
    #[error("there is no plugin {0}")]
    NoSuchPlugin(String),
    #[error("shard {0} would refuse it: {1}")]
    WouldBeRefused(String, String),
    #[error("{0}")]
    BadUsage(String),
    #[error("nothing was done, because this does not hold: {condition} ({found})")]
    ConditionFailed { condition: String, found: String },
    #[error(
        "operation {} ({}) is still under way ({}) and goes on: see how it stands with \
         `raft-kv-client operation show {}`", .0.id, .0.description, text::cluster::stand(.0), .0.id
    )]
    StillRunning(Box<ClusterOperation>),
    #[error(transparent)]
    Client(#[from] Error),
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The exit code that scripts rely on.
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoSuchKey(_)
            | Self::NoSuchShard(_)
            | Self::NoSuchPlugin(_)
            | Self::Client(Error::NotFound { .. }) => 1,
            Self::BadUsage(_)
            | Self::Client(Error::InvalidEndpoint { .. } | Error::InvalidArgument { .. }) => 2,
            Self::StillRunning(_)
            | Self::WouldBeRefused(..)
            | Self::ConditionFailed { .. }
            | Self::Client(_)
            | Self::Output(_) => 3,
        }
    }

    /// Whether the reader of stdout has seen enough.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The message, and its first cause if there is one.
    fn report(&self) -> String {
        let mut cause = self.source();
        while let Some(deeper) = cause.and_then(|cause| cause.source()) {
            cause = Some(deeper);
        }
        match cause {
            Some(cause) => format!("error: {self} ({cause})"),
            None => format!("error: {self}"),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = commands::run(args, &mut out).await;
    // What was written before a failure is still an answer.
    let result = result.and(out.flush().map_err(Failure::from));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody can be told that stderr is gone.
            let _ = writeln!(io::stderr(), "{}", failure.report());
            ExitCode::from(failure.exit_code())
        }
    }
}
