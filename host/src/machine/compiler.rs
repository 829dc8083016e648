//! Compiling modules in a process of their own, with limits on its time and memory: a module that
//! would keep the compiler busy for minutes, or make it ask for all of the memory, costs that process
//! and not the node.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    storage::write_durably,
    wasm::{ModuleError, PluginEngine, PluginModule},
};

/// The word that makes the node's program compile a module: `raft-kv compile-plugin MODULE ARTIFACT`,
/// and its limits in bytes and seconds.
pub const COMPILE: &str = "compile-plugin";

/// Exit code of the process when the module is refused; it says why on its standard error.
const REFUSED: u8 = 1;
/// Exit code when it can not do its work.
const FAILED: u8 = 3;

/// Address space of the program itself, its threads' stacks and what their allocators reserve.
const OWN_BYTES: u64 = 3 << 29;
/// Between two looks at whether the process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Longest text of the process that is read.
const MAX_COMPLAINT_BYTES: u64 = 4 << 10;

/// What compiling one module may take.
#[derive(Clone, Copy, Debug)]
pub struct CompileLimits {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Seconds of processor time, on all cores together.
    pub cpu_seconds: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        CompileLimits { memory_bytes: 2 << 30, cpu_seconds: 60 }
    }
}

/// Where modules are compiled.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// In this process, without limits. For programs that are not the node's.
    Here,
    /// In a process of its own.
    Process {
        /// The node's program.
        program: PathBuf,
        /// What it may take.
        limits: CompileLimits,
    },
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is none that can be run.
    #[error(transparent)]
    Refused(#[from] ModuleError),
    /// As above, in the process's words.
    #[error("{0}")]
    Complaint(String),
    /// It takes too much.
    #[error(
        "compiling it took more than {} s of processor time or {} MiB of memory, or crashed the \
         compiler ({how}): split its largest functions, or build it with less inlining",
        limits.cpu_seconds, limits.memory_bytes >> 20
    )]
    TooMuch {
        /// How the process ended.
        how: String,
        /// What it might have taken.
        limits: CompileLimits,
    },
    /// The process could not be started, or not do its work.
    #[error("the process that compiles could not do its work: {0}")]
    Process(String),
}

impl CompileError {
    /// Whether the module is to blame, and not the node.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, CompileError::Process(_))
    }
}

impl Compiler {
    /// Compiles the module in a file; puts the artifact into another, durably.
    pub(super) fn compile(
        &self,
        engine: &PluginEngine,
        module: &Path,
        artifact: &Path,
    ) -> Result<(), CompileError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            CompileError::Process(format!("{what}: {error}"))
        };
        match self {
            Compiler::Here => {
                let bytes = fs::read(module).map_err(|e| failed("the module's file", &e))?;
                let code = PluginModule::compile(engine, &bytes)?.artifact()?;
                write_durably(artifact, &code).map_err(|e| failed("the artifact's file", &e))
            }
            Compiler::Process { program, limits } => {
                let child = Command::new(program)
                    .arg(COMPILE)
                    .args([module, artifact])
                    .arg(limits.memory_bytes.to_string())
                    .arg(limits.cpu_seconds.to_string())
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn();
                let child =
                    child.map_err(|error| failed(&program.display().to_string(), &error))?;
                wait(child, *limits)
            }
        }
    }
}

/// Waits for the process, not much longer than it may take.
fn wait(mut child: Child, limits: CompileLimits) -> Result<(), CompileError> {
    // Others may need the processor too.
    let deadline = Instant::now() + 4 * Duration::from_secs(limits.cpu_seconds);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK_EVERY),
            Ok(None) => {
                // One that has ended meanwhile can not be killed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(CompileError::TooMuch { how: "it was stopped".into(), limits });
            }
            Err(error) => return Err(CompileError::Process(error.to_string())),
        }
    };
    let mut said = String::new();
    if let Some(errors) = child.stderr.take() {
        // What can not be read is not said.
        let _ = errors.take(MAX_COMPLAINT_BYTES).read_to_string(&mut said);
    }
    let said = said.trim();
    match status.code() {
        Some(0) => Ok(()),
        Some(code) if code == i32::from(REFUSED) => Err(CompileError::Complaint(said.to_owned())),
        Some(code) if code == i32::from(FAILED) => Err(CompileError::Process(said.to_owned())),
        _ => Err(CompileError::TooMuch { how: status.to_string(), limits }),
    }
}

/// The process: `arguments` are those after [`COMPILE`].
pub fn compile_in_this_process(arguments: &[String]) -> ExitCode {
    let [module, artifact, memory_bytes, cpu_seconds] = arguments else {
        eprintln!("{COMPILE} is the node's own affair: try `raft-kv-plugin check`");
        return ExitCode::from(2);
    };
    let work = || -> Result<Result<(), ModuleError>, Box<dyn std::error::Error>> {
        confine(memory_bytes.parse()?, cpu_seconds.parse()?)?;
        let bytes = fs::read(module)?;
        let engine = PluginEngine::for_compiling()?;
        let compiled = PluginModule::compile(&engine, &bytes).and_then(|module| module.artifact());
        Ok(match compiled {
            Ok(code) => {
                write_durably(Path::new(artifact), &code)?;
                Ok(())
            }
            Err(error) => Err(error),
        })
    };
    match work() {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(refusal)) => {
            eprintln!("{refusal}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Limits what this process may take, and lets others go first.
fn confine(memory_bytes: u64, cpu_seconds: u64) -> Result<(), rustix::io::Errno> {
    let limit = |most: u64| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::As, limit(OWN_BYTES.saturating_add(memory_bytes)))?;
    setrlimit(Resource::Cpu, limit(cpu_seconds))?;
    setrlimit(Resource::Core, limit(0))?;
    rustix::process::nice(10)?;
    Ok(())
}
