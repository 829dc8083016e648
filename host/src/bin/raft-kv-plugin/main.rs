//! The author's program: makes, builds and tries plugins. It needs no cluster.
//!
//! Exit codes: 0 done; 1 the plugin is not as it should be: it does not compile, a node would refuse
//! it, or its results depend on more than they may; 2 wrong usage; 3 it cannot be done here.

mod report;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use raft_kv::{
    author::{
        bench, commands, compare,
        determinism::{self, Came},
        project::{self, ProjectError},
        toolchain::{self, BuildError},
    },
    wasm::{ModuleError, ModuleHash, PluginEngine, PluginModule},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes, builds and tries plugins for RaftKV; no cluster is needed
#[derive(Debug, Parser)]
#[command(name = "raft-kv-plugin", version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a project that builds and passes its test at once
    New {
        /// The plugin's name: a-z, 0-9, - and _
        name: String,
        /// The folder to make; the name unless given
        #[arg(long)]
        dir: Option<PathBuf>,
        /// RaftKV's folder `sdk`; that of the sources this program was built from unless given
        #[arg(long)]
        sdk: Option<PathBuf>,
    },
    /// Build a project's module, target/NAME.wasm, and check it
    Build {
        /// The project's folder
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Say whether a node would take a module, and if not why and what to do
    Check {
        /// The module
        module: PathBuf,
    },
    /// Run commands on an empty state and show what each comes to
    Test(Try),
    /// Measure a module on a database in a temporary folder, as a node runs it
    Bench(Measure),
}

#[derive(Debug, Args)]
struct Try {
    /// The module
    module: PathBuf,
    /// Commands, one a line, as text or as hex:00ff
    #[arg(long, default_value = "commands.txt")]
    commands: PathBuf,
    /// Run them in many ways and compare: kept and fresh instances, differing batches
    #[arg(long)]
    determinism: bool,
    /// What batches are cut by at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run the tests of the project in DIR, and do what they did natively again with the module
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        default_missing_value = ".",
        conflicts_with = "determinism"
    )]
    compare: Option<PathBuf>,
    /// Of tests of several state machines, the type of the module's
    #[arg(long, value_name = "TYPE", requires = "compare")]
    machine: Option<String>,
}

#[derive(Debug, Args)]
struct Measure {
    /// The module
    module: PathBuf,
    /// Commands, one a line, as text or as hex:00ff
    #[arg(long, default_value = "commands.txt")]
    commands: PathBuf,
    /// Queries in such a file; the commands unless given
    #[arg(long)]
    queries: Option<PathBuf>,
    /// How long each of the measurements takes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Commands of a large batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=4096))]
    batch: u16,
    /// How to tell
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// A table for people
    Text,
    /// One object
    Json,
}

/// Why it ends without success.
enum Failure {
    /// The plugin is not as it should be.
    Plugin(String),
    Usage(String),
    Here(String),
}

impl From<ProjectError> for Failure {
    fn from(error: ProjectError) -> Self {
        match error {
            ProjectError::Write { .. } => Failure::Here(error.to_string()),
            _ => Failure::Usage(error.to_string()),
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Failed | BuildError::TestsFail => Failure::Plugin(error.to_string()),
            BuildError::NoToolchain | BuildError::Run { .. } => Failure::Here(error.to_string()),
            _ => Failure::Usage(error.to_string()),
        }
    }
}

/// Stack of the thread that runs plugins, in bytes: what an executor needs, and as much again.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // A process's first thread has the stack that the shell allows it.
    let worker = thread::Builder::new().stack_size(STACK_BYTES).spawn(|| run(command));
    let done = match worker.map(thread::JoinHandle::join) {
        Ok(Ok(done)) => done,
        // It has told what it panicked with.
        Ok(Err(_)) => return ExitCode::from(101),
        Err(error) => Err(Failure::Here(format!("cannot start a thread: {error}"))),
    };
    let (message, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Plugin(message)) => (message, 1),
        Err(Failure::Usage(message)) => (message, 2),
        Err(Failure::Here(message)) => (message, 3),
    };
    eprintln!("raft-kv-plugin: {message}");
    ExitCode::from(code)
}

fn run(action: Action) -> Result<(), Failure> {
    match action {
        Action::New { name, dir, sdk } => new(&name, dir, sdk),
        Action::Build { dir } => {
            let module = toolchain::build(&dir)?;
            check(&module)
        }
        Action::Check { module } => check(&module),
        Action::Test(Try { module, compare: Some(dir), machine, .. }) => {
            compared(&module, &dir, machine.as_deref())
        }
        Action::Test(Try { module, commands, determinism, seed, .. }) => {
            test(&module, &commands, determinism.then_some(seed))
        }
        Action::Bench(measure) => measured(&measure),
    }
}

fn new(name: &str, dir: Option<PathBuf>, sdk: Option<PathBuf>) -> Result<(), Failure> {
    let folder = dir.unwrap_or_else(|| name.into());
    project::make(name, &folder, &sdk.unwrap_or_else(project::own_sdk))?;
    say(&format!(
        "made {}; next:\n    cd {}\n    cargo test\n    raft-kv-plugin build",
        folder.display(),
        folder.display()
    ))
}

fn check(path: &Path) -> Result<(), Failure> {
    let (bytes, module) = load(path, &engine()?)?;
    let (info, manifest) = (module.info(), &module.info().manifest);
    let hash = |hash: [u8; 32]| ModuleHash(hash).to_string();
    let sources = manifest.source_hash.map_or_else(|| "not told".to_owned(), hash);
    say(&format!(
        "{}: a node would take it\nplugin       {} {}\nABI          1\nsize         {} bytes\nmemory       \
         {} bytes at the start\nmigrate      {}\nsource hash  {sources}\nmodule hash  {}",
        path.display(),
        manifest.name,
        manifest.version,
        bytes.len(),
        info.initial_memory_bytes,
        if info.has_migrate { "yes" } else { "no" },
        module.hash(),
    ))
}

fn test(path: &Path, commands: &Path, seed: Option<u64>) -> Result<(), Failure> {
    let engine = engine()?;
    let (_, module) = load(path, &engine)?;
    let read = commands::read(commands).map_err(|error| Failure::Usage(error.to_string()))?;
    let cannot = |error: raft_kv::wasm::HostError| Failure::Here(error.to_string());
    let Some(seed) = seed else {
        let came = determinism::run_once(&engine, &module, &read).map_err(cannot)?;
        return read.iter().zip(came).try_for_each(|(command, came): (_, Came)| {
            say(&format!("{}  {came}", determinism::shown_bytes(command)))
        });
    };
    let report = determinism::test(&engine, &module, &read, seed).map_err(cannot)?;
    if let Some(difference) = report.difference {
        return Err(Failure::Plugin(difference.to_string()));
    }
    say(&format!(
        "{} commands ({} of them fail) came out the same in {} runs",
        report.commands, report.failed, report.runs
    ))?;
    match report.failed == report.commands {
        false => Ok(()),
        true => Err(Failure::Plugin(format!(
            "all commands of {} fail: that shows little; give commands that succeed",
            commands.display()
        ))),
    }
}

/// Runs a project's tests, and what they did natively again with the module.
fn compared(path: &Path, dir: &Path, machine: Option<&str>) -> Result<(), Failure> {
    let engine = engine()?;
    let (_, module) = load(path, &engine)?;
    let folder = tempfile::tempdir().map_err(|error| Failure::Here(error.to_string()))?;
    toolchain::test(dir, folder.path())?;
    let mut records =
        compare::read(folder.path()).map_err(|error| Failure::Here(error.to_string()))?;
    let is_asked_for = |name: &str| machine.is_none_or(|machine| name.ends_with(machine));
    let machines: BTreeSet<&str> = records.iter().map(|record| record.machine.as_str()).collect();
    let found = machines.iter().copied().collect::<Vec<_>>().join(", ");
    let problem = match machines.iter().filter(|name| is_asked_for(name)).count() {
        1 => None,
        0 if machines.is_empty() => Some("they use no TestHost".to_owned()),
        0 => Some(format!("none is of that state machine, but of {found}")),
        _ => Some(format!("they are of {found}: say with --machine which is the module's")),
    };
    if let Some(problem) = problem {
        return Err(Failure::Usage(format!("the tests cannot be compared: {problem}")));
    }
    records.retain(|record| is_asked_for(&record.machine));
    let report = compare::run(&engine, &module, &records)
        .map_err(|error| Failure::Here(error.to_string()))?;
    match report.difference {
        Some(difference) => Err(Failure::Plugin(difference)),
        None => say(&format!(
            "{} commands and {} queries on {} test hosts came out the same natively and in the module",
            report.commands, report.queries, report.hosts
        )),
    }
}

fn measured(measure: &Measure) -> Result<(), Failure> {
    let engine = engine()?;
    let (_, module) = load(&measure.module, &engine)?;
    let read = |path: &Path| commands::read(path).map_err(|e| Failure::Usage(e.to_string()));
    let commands = read(&measure.commands)?;
    let queries = measure.queries.as_deref().map(read).transpose()?;
    let plan = bench::Plan {
        module: &module,
        commands: &commands,
        queries: queries.as_deref().unwrap_or(&commands),
        batch: measure.batch.into(),
        time: Duration::from_secs(measure.seconds),
    };
    let report = bench::run(&engine, &plan).map_err(|error| Failure::Here(error.to_string()))?;
    say(&match measure.output {
        Output::Text => report::text(&module.info().manifest, &report),
        Output::Json => report::json(&module.info().manifest, &report),
    })
}

fn engine() -> Result<PluginEngine, Failure> {
    PluginEngine::new(4).map_err(|error| Failure::Here(error.to_string()))
}

fn load(path: &Path, engine: &PluginEngine) -> Result<(Vec<u8>, PluginModule), Failure> {
    let shown = path.display();
    let bytes = fs::read(path)
        .map_err(|error| Failure::Usage(format!("cannot read the module {shown}: {error}")))?;
    let refused =
        |error: ModuleError| Failure::Plugin(format!("{shown}: a node would refuse it: {error}"));
    let module = PluginModule::compile(engine, &bytes).map_err(refused)?;
    Ok((bytes, module))
}

/// Writes lines to stdout. Who stops reading has seen enough.
fn say(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Here(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
