//! What stands in for etcd's client where this program was built without it.

use std::convert::Infallible;

use raft_kv_client::Endpoint;

use super::{Answer, channels::Unreachable};
use crate::{args::Args, workload::Operation};

/// Operations in a transaction at most.
pub const MAX_TXN_OPERATIONS: usize = 128;

/// A connection that cannot be made.
#[derive(Clone, Debug)]
pub struct Etcd(Infallible);

impl Etcd {
    pub async fn connect(_: &Endpoint, _: &Args) -> Result<Self, Unreachable> {
        unreachable!("etcd without its client: Args::check")
    }

    pub async fn single(&mut self, _: Operation) -> Answer {
        match self.0 {}
    }

    pub async fn batch(&mut self, _: Vec<Operation>) -> Answer {
        match self.0 {}
    }
}
