//! The command line door.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::binaries::binary;

/// What a run of the program came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Ran {
    /// Its stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Each line of stdout as JSON.
    ///
    /// # Panics
    /// If one is not JSON.
    pub fn json(&self) -> Vec<Value> {
        let text = self.text();
        let parse = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
        };
        text.lines().map(parse).collect()
    }
}

/// Runs `raft-kv-client` against an endpoint, with nothing on stdin.
///
/// # Panics
/// If it cannot be run or is ended by a signal.
pub fn run<A: AsRef<OsStr>>(endpoint: &str, arguments: impl IntoIterator<Item = A>) -> Ran {
    run_with_stdin(endpoint, arguments, b"")
}

/// Runs `raft-kv-client` with these bytes on stdin.
///
/// # Panics
/// If it cannot be run or is ended by a signal.
pub fn run_with_stdin<A: AsRef<OsStr>>(
    endpoint: &str,
    arguments: impl IntoIterator<Item = A>,
    stdin: &[u8],
) -> Ran {
    let mut child = Command::new(binary("raft-kv-client"))
        .env("RAFT_KV_ENDPOINTS", endpoint)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be run");
    let mut input = child.stdin.take().expect("stdin is piped");
    let output = thread::scope(|scope| {
        // A program that does not read all of it is none of our business.
        scope.spawn(move || input.write_all(stdin));
        child.wait_with_output().expect("a child can be waited for")
    });
    Ran {
        code: output.status.code().expect("no signal ended the program"),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
