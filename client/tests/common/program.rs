//! Runs of the command line.

use std::{ffi::OsStr, process::Output};

use serde_json::Value;
use tokio::process::Command;

/// The program, asking this node.
pub fn command(endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raft-kv-client"));
    command.env("RAFT_KV_ENDPOINTS", endpoint).kill_on_drop(true);
    command
}

/// Runs the program with these arguments.
pub async fn run<A: AsRef<OsStr>>(endpoint: &str, arguments: impl IntoIterator<Item = A>) -> Ran {
    command(endpoint).args(arguments).output().await.unwrap().into()
}

/// What a run of the program left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Its stdout; it must have succeeded.
    pub fn text(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
        String::from_utf8(self.stdout).unwrap()
    }

    /// The JSON values on its lines; it must have succeeded.
    pub fn json(self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Its message; it must have failed with this code and no answer.
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, b"", "{self:?}");
        self.stderr
    }
}
