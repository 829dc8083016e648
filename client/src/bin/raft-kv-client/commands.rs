//! Asks the cluster and writes what it answers.

mod atomic;
mod cluster;
mod plugin;

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::ffi::OsStringExt,
    time::Duration,
};

use raft_kv_client::{PutOptions, RaftKVClient};
use serde_json::Value;

use crate::{
    Failure,
    args::{Args, Command, Output, Prefix},
    json, text,
};

/// How long to wait for an answer unless said otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries out a command and writes the answer to `out`.
pub async fn run(args: Args, out: &mut impl Write) -> Result<(), Failure> {
    let timeout = args.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let builder = RaftKVClient::builder()
        .endpoints(args.endpoints)
        .request_timeout(timeout)
        .connect_timeout(timeout);
    let session = Session { builder, timeout: args.timeout, output: args.output, out };
    match args.command {
        Command::Put { key, value, ttl, if_version, if_absent } => {
            let mut options = PutOptions::new();
            if let Some(ttl) = ttl {
                options = options.ttl(ttl);
            }
            if let Some(version) = if_version.or(if_absent.then_some(0)) {
                options = options.if_version(version);
            }
            session.put(key.bytes()?, value, options).await
        }
        Command::Get { key, stale } => session.get(key.bytes()?, stale).await,
        Command::Delete { key, if_version } => session.delete(key.bytes()?, if_version).await,
        Command::Increment { key, by } => session.increment(key.bytes()?, by).await,
        Command::Atomic { lines } => session.atomic(lines).await,
        Command::Scan { prefix, limit, stale } => session.scan(prefix, limit, stale).await,
        Command::Status { node: true } => session.node_status().await,
        Command::Status { node: false } => session.cluster_status().await,
        Command::Shard(command) => session.shard(command).await,
        Command::Plugin(command) => session.plugin(command).await,
        Command::Call(call) => session.call(call).await,
        Command::Node(command) => session.node(command).await,
        Command::Operation(command) => session.operation(command).await,
        Command::Balancer(command) => session.balancer(command).await,
    }
}

/// One run of the program, once its arguments are known.
struct Session<'a, W> {
    builder: raft_kv_client::ClientBuilder,
    /// How long to wait, if that was said.
    timeout: Option<Duration>,
    output: Output,
    out: &'a mut W,
}

impl<W: Write> Session<'_, W> {
    async fn put(self, key: Vec<u8>, value: OsString, options: PutOptions) -> Result<(), Failure> {
        let value = match value == "-" {
            true => read_stdin()?,
            false => value.into_vec(),
        };
        let client = self.builder.connect().await?;
        let version = client.put_with(&key, value, options).await?;
        match self.output {
            Output::Text => writeln!(self.out, "version {version}")?,
            Output::Json => write_json(self.out, &json::written(&key, version))?,
        }
        Ok(())
    }

    async fn get(self, key: Vec<u8>, stale: bool) -> Result<(), Failure> {
        let client = self.builder.connect().await?;
        let found = match stale {
            true => client.get_stale(&key).await?,
            false => client.get_with_version(&key).await?,
        };
        let Some(found) = found else {
            return Err(no_such(&key));
        };
        match self.output {
            Output::Text => {
                self.out.write_all(&found.value)?;
                self.out.write_all(b"\n")?;
            }
            Output::Json => {
                write_json(self.out, &json::found(&key, &found))?;
            }
        }
        Ok(())
    }

    async fn increment(self, key: Vec<u8>, by: i64) -> Result<(), Failure> {
        let client = self.builder.connect().await?;
        let number = client.increment(&key, by).await?;
        match self.output {
            Output::Text => writeln!(self.out, "{number}")?,
            Output::Json => write_json(self.out, &json::number(&key, number))?,
        }
        Ok(())
    }

    async fn delete(self, key: Vec<u8>, if_version: Option<u64>) -> Result<(), Failure> {
        let client = self.builder.connect().await?;
        let existed = match if_version {
            Some(version) => {
                client.compare_and_delete(&key, version).await?;
                // What is expected not to exist did not.
                version != 0
            }
            None => client.delete(&key).await?,
        };
        match self.output {
            Output::Text if existed => writeln!(self.out, "deleted")?,
            Output::Text => {}
            Output::Json => write_json(self.out, &json::deleted(&key, existed))?,
        }
        match existed {
            true => Ok(()),
            false => Err(no_such(&key)),
        }
    }

    async fn scan(self, prefix: Prefix, limit: Option<u64>, stale: bool) -> Result<(), Failure> {
        let keys_in_hex = prefix.hex;
        let prefix = prefix.bytes()?;
        let client = self.builder.connect().await?;
        let mut scan = client.scan(prefix);
        if let Some(limit) = limit {
            scan = scan.limit(limit);
        }
        if stale {
            scan = scan.stale();
        }
        let mut pairs = scan.stream();
        while let Some(pair) = pairs.next().await.transpose()? {
            if self.output == Output::Json {
                write_json(self.out, &json::pair(&pair.key, &pair.value, pair.version))?;
                continue;
            }
            let key = match keys_in_hex {
                true => text::to_hex(&pair.key),
                false => text::escape(&pair.key),
            };
            writeln!(self.out, "{key}\t{}", text::escape(&pair.value))?;
        }
        Ok(())
    }

    async fn node_status(self) -> Result<(), Failure> {
        let client = self.builder.connect().await?;
        let status = client.status().await?;
        match self.output {
            Output::Text => self.out.write_all(text::status(&status).as_bytes())?,
            Output::Json => write_json(self.out, &json::status(&status))?,
        }
        Ok(())
    }
}

/// Writes a value on a line of its own.
fn write_json(out: &mut impl Write, value: &Value) -> io::Result<()> {
    writeln!(out, "{value}")
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match io::stdin().lock().read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::BadUsage(format!("cannot read stdin: {error}"))),
    }
}

fn no_such(key: &[u8]) -> Failure {
    Failure::NoSuchKey(text::escape(key))
}
