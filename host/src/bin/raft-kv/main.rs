//! The node's program: reads its settings, starts a [`Node`], and stops it on
//! SIGTERM or SIGINT.
//!
//! Exit codes: 0 stopped as asked; 2 wrong usage; 3 the node could not start or
//! go on.

mod settings;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Parser;
use raft_kv::{
    machine::{COMPILE, compile_in_this_process},
    node::{Node, NodeError},
};
use settings::{Arguments, Settings};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stack of a thread that serves requests: short queries run on it, and the
/// plugin's own stack limit must be reached first.
const THREAD_STACK_BYTES: usize = 4 << 20;

/// Time for reads that still run on threads of their own when the node stops.
const LAST_READS: Duration = Duration::from_secs(1);

const USAGE: u8 = 2;
const FAILED: u8 = 3;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(COMPILE) {
        return compile_in_this_process(&arguments.collect::<Vec<String>>());
    }
    let settings = match Settings::load(Arguments::parse()) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, USAGE),
    };
    let filter = match EnvFilter::try_new(&settings.log) {
        Ok(filter) => filter,
        Err(error) => return complain(&format!("--log {}: {error}", settings.log), USAGE),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Err(error) = raft_kv::failpoint::set_up() {
        return complain(&error, USAGE);
    }
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .worker_threads(settings.server_threads)
        .thread_stack_size(THREAD_STACK_BYTES)
        .build();
    match runtime {
        Ok(runtime) => {
            let code = start(&runtime, settings);
            // What is left of connections lets go of the database, which must be
            // closed before the process ends.
            runtime.shutdown_timeout(LAST_READS);
            code
        }
        Err(error) => complain(&format!("cannot start the runtime: {error}"), FAILED),
    }
}

fn start(runtime: &Runtime, settings: Settings) -> ExitCode {
    match runtime.block_on(run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is_usage() { USAGE } else { FAILED };
            complain(&error.to_string(), code)
        }
    }
}

async fn run(settings: Settings) -> Result<(), NodeError> {
    let signals = |kind| signal(kind).map_err(|error| NodeError::Server(error.to_string()));
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let node_id = settings.node.node_id.clone();
    let node = Node::start(settings.node).await?;
    tracing::info!("node {node_id} serves gRPC and HTTP on {}", node.address());
    node.serve(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    })
    .await?;
    tracing::info!("stopped");
    Ok(())
}

/// Says what is the matter in one line.
fn complain(message: &str, code: u8) -> ExitCode {
    let line: Vec<&str> = message.lines().map(str::trim).collect();
    eprintln!("raft-kv: {}", line.join(" "));
    ExitCode::from(code)
}
