//! `raft-kv-benchmark`: how much a cluster serves, and how fast.
//!
//! A number of callers each send one call after the other (a closed loop), for a
//! while; `args` says what can be asked for, `workload` chooses the operations,
//! `cluster` sends them, `load` runs the callers, `tally` counts what becomes of
//! them and `report` writes the figures. Figures go to stdout, everything else to
//! stderr.
//!
//! Every call has a deadline, so that a run ends whatever the cluster does.

mod args;
mod cluster;
mod load;
mod report;
mod tally;
mod workload;

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use clap::Parser;
use tokio::runtime::Builder;

use args::{Args, Output};
use cluster::{CannotLoad, Cluster, NoLeaders, Unreachable};
use report::{Figures, Setup};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of arguments that do not go together.
const BAD_USAGE: u8 = 2;
/// The exit code of a run without useful figures.
const FAILED: u8 = 3;

/// Why there are no useful figures.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error(transparent)]
    CannotLoad(#[from] CannotLoad),
    #[error(transparent)]
    NoLeaders(#[from] NoLeaders),
    #[error("every {0} failed: see the errors in the report")]
    NothingDone(&'static str),
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Whether the reader of stdout has seen enough.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(reason) = args.check() {
        say(&format!("error: {reason}"));
        return ExitCode::from(BAD_USAGE);
    }
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("error: {failure}"));
            ExitCode::from(FAILED)
        }
    }
}

fn start(args: &Args) -> Result<(), Failure> {
    let mut runtime = Builder::new_multi_thread();
    if let Some(threads) = args.threads {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(run(args, &mut BufWriter::new(io::stdout())))
}

/// Runs the phases one after the other and writes their figures to `out`.
async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let mut cluster = Cluster::connect(args).await?;
    for (endpoint, reason) in &cluster.unreachable {
        say(&format!("{endpoint} is left out: it does not answer ({reason})"));
    }
    let setup = Setup::new(args, &cluster);
    if args.output == Output::Text {
        out.write_all(report::heading(&setup).as_bytes())?;
        out.flush()?;
    }
    let mut all = Vec::new();
    for (place, phase) in args.ops.iter().enumerate() {
        let loaded = args.ops[..place].iter().any(|earlier| earlier.reads());
        if phase.reads() && !loaded && !args.no_load {
            say(&format!("loading {} keys", args.keys));
            load::load_keys(args, &cluster).await?;
        }
        cluster.begin_phase().await?;
        let tally = load::run_phase(args, *phase, &cluster).await;
        let figures = Figures::new(*phase, args.duration, tally);
        if args.output == Output::Text {
            out.write_all(report::row(&figures).as_bytes())?;
            out.flush()?;
        }
        all.push(figures);
    }
    if args.output == Output::Json {
        writeln!(out, "{}", report::json(&setup, &all))?;
        out.flush()?;
    }
    match all.iter().find(|figures| figures.operations == 0) {
        Some(figures) => Err(Failure::NothingDone(figures.phase.name())),
        None => Ok(()),
    }
}

/// Tells the person who runs this.
fn say(message: &str) {
    // Nobody can be told that stderr is gone.
    let _ = writeln!(io::stderr(), "{message}");
}
