//! A node as a process.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use raft_kv_client::RaftKVClient;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{binaries::binary, grpc, http, port::ReservedPort, wait::wait_for};

/// Within this a node is ready, even one without optimisation on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Within this a process is gone after a signal that it cannot ignore.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// Within this a node that was asked to stops.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
/// Lines of a node's stderr that a failing test shows.
const SHOWN_LINES: usize = 60;

/// How to start a node.
#[derive(Clone, Debug)]
#[must_use = "options do nothing until a node is started"]
pub struct NodeOptions {
    arguments: Vec<OsString>,
    plugin: Option<Plugin>,
    data_dir: Option<PathBuf>,
    environment: Vec<(&'static str, String)>,
    settings: Option<String>,
}

/// A plugin to start with.
#[derive(Clone, Debug)]
enum Plugin {
    File(PathBuf),
    Module(Vec<u8>),
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            arguments: Vec::new(),
            plugin: env::var_os("RAFTKV_TEST_PLUGIN").map(|file| Plugin::File(file.into())),
            data_dir: None,
            environment: Vec::new(),
            settings: None,
        }
    }
}

impl NodeOptions {
    /// A node with the defaults of the program, but on 127.0.0.1, with a free
    /// port and a new data folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an argument to the command line.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Gives the cluster so many shards at its birth.
    pub fn shards(self, shards: u32) -> Self {
        self.arg("--shards").arg(shards.to_string())
    }

    /// Gives the cluster this plugin at its birth.
    pub fn plugin(mut self, file: impl Into<PathBuf>) -> Self {
        self.plugin = Some(Plugin::File(file.into()));
        self
    }

    /// Gives the cluster the plugin in these bytes at its birth.
    pub fn plugin_module(mut self, module: Vec<u8>) -> Self {
        self.plugin = Some(Plugin::Module(module));
        self
    }

    /// Gives the cluster the default plugin, whatever the environment says.
    pub fn default_plugin(mut self) -> Self {
        self.plugin = None;
        self
    }

    /// Uses this data folder, which outlives the node.
    pub fn data_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(folder.into());
        self
    }

    /// Gives it a file with these settings.
    pub fn config(mut self, settings: &str) -> Self {
        self.settings = Some(settings.to_owned());
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Starts the node and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn start(self) -> Node {
        let mut node = self.create();
        node.restart();
        node
    }

    /// The node, not started yet.
    ///
    /// # Panics
    /// If the system has no room for it.
    pub fn create(self) -> Node {
        let folder = TempDir::with_prefix("raft-kv-test-").expect("a temporary folder can be made");
        Node {
            data_dir: self.data_dir.clone().unwrap_or_else(|| folder.path().join("data")),
            options: self,
            port: ReservedPort::take(),
            folder,
            child: None,
        }
    }
}

/// A node, running or not. Dropping it kills the process and removes its files.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    data_dir: PathBuf,
    port: ReservedPort,
    /// Holds what the process writes, and its data unless that has another place.
    folder: TempDir,
    child: Option<Child>,
}

impl Node {
    /// Starts a node with the defaults and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn start() -> Self {
        NodeOptions::new().start()
    }

    /// `http://host:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Its data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Adds an argument to the command line of the next start.
    pub fn add_argument(&mut self, argument: impl AsRef<OsStr>) {
        self.options.arguments.push(argument.as_ref().to_owned());
    }

    /// Leaves the last arguments out from the next start on.
    pub fn remove_last_arguments(&mut self, count: usize) {
        let left = self.options.arguments.len().saturating_sub(count);
        self.options.arguments.truncate(left);
    }

    /// Leaves out of the command line, from the next start on, what only the birth of a
    /// cluster can be told.
    pub(crate) fn forget_birth(&mut self) {
        self.options.plugin = None;
        let arguments = &mut self.options.arguments;
        while let Some(place) = arguments.iter().position(|a| a == "--shards" || a == "--slots") {
            arguments.drain(place..place + 2);
        }
    }

    /// Leaves a variable out of its environment from the next start on.
    pub fn remove_env(&mut self, name: &str) {
        self.options.environment.retain(|(known, _)| *known != name);
    }

    /// Where the node keeps what belongs to the test alone.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the process was started and was not seen to end.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts the process and does not wait for anything.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "the node runs already");
        let stderr = File::create(self.stderr_path()).expect("the folder is writable");
        let mut command = Command::new(binary("raft-kv"));
        command.arg("--data-dir").arg(&self.data_dir);
        command.args(["--host", "127.0.0.1", "--port"]);
        command.arg(self.port.number().to_string());
        if let Some(plugin) = &self.options.plugin {
            command.arg("--plugin").arg(self.plugin_file(plugin));
        }
        if let Some(settings) = &self.options.settings {
            let file = self.folder.path().join("settings.toml");
            fs::write(&file, settings).expect("the folder is writable");
            command.arg("--config").arg(file);
        }
        command.args(&self.options.arguments);
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(stderr).spawn();
        self.child = Some(child.expect("the program can be run"));
    }

    /// Starts the process and waits until the node is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn restart(&mut self) {
        self.launch();
        self.wait_until_ready();
    }

    /// Waits until the started process serves.
    ///
    /// # Panics
    /// If it ends instead, or takes too long.
    pub fn wait_until_ready(&mut self) {
        wait_for("the node to be ready", READY_WITHIN, || {
            if let Some(status) = self.exit_status() {
                panic!("the node ended with {status} instead of getting ready");
            }
            self.is_ready().then_some(())
        });
    }

    /// Whether it takes connections, be it ready or not.
    pub fn is_listening(&self) -> bool {
        http::Connection::open(self.address()).is_ok()
    }

    /// Whether it serves.
    pub fn is_ready(&self) -> bool {
        let answer =
            http::Connection::open(self.address()).and_then(|mut node| node.get("/readyz"));
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// How the process ended; `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the node was started");
        child.try_wait().expect("a child can be waited for")
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    /// If it does not within `limit`.
    pub fn wait_until_ended(&mut self, limit: Duration) -> ExitStatus {
        let status = wait_for("the node to end", limit, || self.exit_status());
        self.child = None;
        status
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process_id()).expect("process ids are positive");
        let id = Pid::from_raw(id).expect("process ids are positive");
        kill_process(id, signal).expect("a child can be sent signals");
    }

    /// Kills the process as a crash would.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_until_ended(GONE_WITHIN);
    }

    /// Stops the process in an orderly way.
    ///
    /// # Panics
    /// If it does not stop in time, or not with exit code 0.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_until_ended(STOPPED_WITHIN);
        assert_eq!(status.code(), Some(0), "SIGTERM ends a node with {status}");
    }

    /// A client with the defaults.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client(&self) -> RaftKVClient {
        let client = RaftKVClient::new(self.endpoint()).await;
        client.expect("a node that is ready takes connections")
    }

    /// A gRPC connection.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn channel(&self) -> Channel {
        grpc::connect(self.endpoint()).await
    }

    /// An HTTP/1.1 connection.
    ///
    /// # Panics
    /// If it cannot connect.
    pub fn http(&self) -> http::Connection {
        let connection = http::Connection::open(self.address());
        connection.expect("a node that is ready takes connections")
    }

    /// What `GET /status` answers.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn status(&self) -> Value {
        let answer = self.http().get("/status").expect("a node answers");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Memory of the process that is in use, in bytes.
    ///
    /// # Panics
    /// If the process does not run.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process_id());
        let status = fs::read_to_string(path).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kibibytes: u64 = kibibytes.expect("VmRSS is given in kB").parse().unwrap();
        kibibytes * 1024
    }

    /// What the process wrote to stderr since it was started last.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(self.stderr_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Shows the end of its stderr.
    pub(crate) fn show_stderr(&self) {
        let stderr = self.stderr();
        let lines: Vec<&str> = stderr.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        println!("--- stderr of the node at {} ---", self.address());
        println!("{}", shown.join("\n"));
        println!("--- end ---");
    }

    fn plugin_file(&self, plugin: &Plugin) -> PathBuf {
        match plugin {
            Plugin::File(file) => file.clone(),
            Plugin::Module(module) => {
                let file = self.folder.path().join("plugin.wasm");
                fs::write(&file, module).expect("the folder is writable");
                file
            }
        }
    }

    fn stderr_path(&self) -> PathBuf {
        self.folder.path().join("stderr")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            self.show_stderr();
        }
    }
}
