//! What is under load: connections to a cluster of RaftKV or etcd, and calls over
//! them.
//!
//! Calls go out as those of any gRPC client (`unary` to any node of RaftKV,
//! `leaders` to the one that leads the key's shard, both over connections that
//! `channels` makes; `etcd`), or through RaftKV's own client library (`library`). Whatever the kind, an [`Answer`] says what became of a call.

mod channels;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(not(feature = "etcd"))]
#[path = "cluster/no_etcd.rs"]
mod etcd;
mod leaders;
mod library;
mod unary;

use std::{error::Error, time::Duration};

use raft_kv_client::Endpoint;
use tokio::time::timeout;

pub use channels::Unreachable;
pub use leaders::NoLeaders;

use crate::{
    args::{Args, Route, Target, Via},
    workload::Operation,
};
use channels::Channels;
use etcd::Etcd;
pub use etcd::MAX_TXN_OPERATIONS;
use leaders::{Leaders, ToLeaders};
use library::Library;
use unary::Unary;

/// The keys to be read could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the keys: {0}; --no-load leaves that out")]
pub struct CannotLoad(pub String);

/// The nodes that answer, and connections to them.
#[derive(Debug)]
pub struct Cluster {
    /// The endpoints that answer; all of them if the client library sees to that.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints that do not answer, and why.
    pub unreachable: Vec<(Endpoint, String)>,
    /// What callers take turns in.
    connections: Vec<Connection>,
    /// What they use instead, if each call goes to its key's leader.
    leaders: Option<Leaders>,
}

impl Cluster {
    /// Connects to the nodes; later on, a broken connection is made anew.
    ///
    /// # Errors
    /// If no endpoint answers within the timeout of a call.
    pub async fn connect(args: &Args) -> Result<Self, Unreachable> {
        if args.via == Via::Client {
            let library = Library::connect(args).await?;
            return Ok(Self {
                endpoints: args.endpoints.clone(),
                unreachable: Vec::new(),
                connections: vec![Connection::Library(library)],
                leaders: None,
            });
        }
        if args.target == Target::Etcd {
            return Self::connect_to_etcd(args).await;
        }
        let Channels { channels, answering, unreachable } = Channels::connect(args).await?;
        let leaders = (args.route == Route::Leader).then(|| Leaders::new(&channels, args));
        let unary = |channel| Connection::Unary(Unary::new(channel, args.timeout));
        let connections = channels.into_iter().map(unary).collect();
        Ok(Self { endpoints: answering, unreachable, connections, leaders })
    }

    /// As many connections to each endpoint, the endpoints taking turns.
    async fn connect_to_etcd(args: &Args) -> Result<Self, Unreachable> {
        let wanted = args.concurrency.min(args.endpoints.len() * args.connections);
        let mut connections = Vec::new();
        for endpoint in args.endpoints.iter().cycle().take(wanted) {
            connections.push(Connection::Etcd(Box::new(Etcd::connect(endpoint, args).await?)));
        }
        let endpoints = args.endpoints.clone();
        Ok(Self { endpoints, unreachable: Vec::new(), connections, leaders: None })
    }

    /// Finds the leaders that calls are to be sent to, if they are.
    ///
    /// # Errors
    /// If a shard has no leader, or one that cannot be reached.
    pub async fn begin_phase(&mut self) -> Result<(), NoLeaders> {
        match &mut self.leaders {
            Some(leaders) => leaders.find().await,
            None => Ok(()),
        }
    }

    /// The connection that a caller uses in a phase.
    pub fn connection_of(&self, caller: usize) -> Connection {
        match &self.leaders {
            Some(leaders) => Connection::ToLeaders(leaders.connections_of(caller)),
            None => self.any_connection(caller),
        }
    }

    /// A connection that takes batches of whatever keys.
    pub fn any_connection(&self, turn: usize) -> Connection {
        self.connections[turn % self.connections.len()].clone()
    }

    /// How many connections the callers are spread over.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// A way to send calls, which its clones share.
#[derive(Clone, Debug)]
pub enum Connection {
    Unary(Unary),
    ToLeaders(ToLeaders),
    Library(Library),
    Etcd(Box<Etcd>),
}

impl Connection {
    /// Carries out one operation with a call of its own.
    pub async fn single(&mut self, operation: Operation) -> Answer {
        match self {
            Self::Unary(unary) => unary.single(operation).await,
            Self::ToLeaders(leaders) => leaders.single(operation).await,
            Self::Library(library) => library.single(operation).await,
            Self::Etcd(etcd) => etcd.single(operation).await,
        }
    }

    /// Carries out many operations, of different keys, with one call.
    pub async fn batch(&mut self, operations: Vec<Operation>) -> Answer {
        match self {
            Self::Unary(unary) => unary.batch(operations).await,
            Self::ToLeaders(_) => unreachable!("a batch has no single leader: Args::check"),
            Self::Library(library) => library.batch(operations).await,
            Self::Etcd(etcd) => etcd.batch(operations).await,
        }
    }
}

/// What a call did.
#[derive(Debug, Default)]
pub struct Answer {
    /// Operations that succeeded.
    pub done: u64,
    /// Gets among them of keys that do not exist.
    pub missing: u64,
    pub failures: Vec<Failure>,
}

/// Why operations failed.
#[derive(Debug)]
pub struct Failure {
    /// The detail's name, the gRPC code, `Timeout`, or `Connection`.
    pub kind: String,
    pub message: String,
    /// How many failed so.
    pub operations: u64,
}

impl Answer {
    /// Counts a put.
    fn put(&mut self) {
        self.done += 1;
    }

    /// Counts a get, of a key that exists or not.
    fn got(&mut self, found: bool) {
        self.done += 1;
        self.missing += u64::from(!found);
    }

    /// Counts an operation of a batch that failed for a reason of its own.
    fn refused(&mut self, broken: Broken) {
        self.failures.push(broken.into_failure(1));
    }
}

/// Why a whole call failed, or one of its operations; each kind of connection
/// makes it of its own errors.
#[derive(Debug)]
struct Broken {
    kind: String,
    message: String,
}

impl Broken {
    fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into() }
    }

    fn into_failure(self, operations: usize) -> Failure {
        Failure { kind: self.kind, message: self.message, operations: operations as u64 }
    }
}

/// The answer to a call of so many operations.
fn answer_of(operations: usize, result: Result<Answer, Broken>) -> Answer {
    result.unwrap_or_else(|broken| Answer {
        failures: vec![broken.into_failure(operations)],
        ..Answer::default()
    })
}

/// The answer to a call of so many operations, if there is one in time.
async fn within(
    limit: Duration,
    operations: usize,
    call: impl Future<Output = Result<Answer, Broken>>,
) -> Answer {
    let in_time = timeout(limit, call).await;
    let late = || Err(Broken::new("Timeout", format!("no answer within {limit:?}")));
    answer_of(operations, in_time.unwrap_or_else(|_| late()))
}

/// What the first cause of an error says.
fn root(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
