//! Unary calls that go to the node which leads the key's shard.
//!
//! Who leads is asked once, before each phase: a leader that changes meanwhile
//! forwards what it is asked, like any node.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use raft_kv_client::Endpoint;
use raft_kv_proto::{
    slot_of,
    v1::{RoutingRequest, RoutingResponse, state_machine_client::StateMachineClient},
};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{Answer, channels::connect, unary::Unary};
use crate::{args::Args, workload::Operation};

/// A shard has no leader that calls could go to.
#[derive(Debug, thiserror::Error)]
#[error("cannot send calls to the leaders: {0}")]
pub struct NoLeaders(String);

/// The leaders of all shards, and connections to them.
#[derive(Debug)]
pub struct Leaders {
    /// To any node, for asking who leads.
    channel: Channel,
    timeout: Duration,
    connections_each: usize,
    /// Connections to each node that ever led, by its address.
    nodes: BTreeMap<String, Vec<Unary>>,
    /// For each slot the address of its leader.
    of_slots: Arc<Vec<String>>,
}

impl Leaders {
    /// Nothing known yet; one of `channels` is asked. There is at least one.
    pub fn new(channels: &[Channel], args: &Args) -> Self {
        Self {
            channel: channels[0].clone(),
            timeout: args.timeout,
            connections_each: args.connections,
            nodes: BTreeMap::new(),
            of_slots: Arc::default(),
        }
    }

    /// Finds the leaders and connects to those that are new.
    ///
    /// # Errors
    /// If a slot has no leader, or one that cannot be reached.
    pub async fn find(&mut self) -> Result<(), NoLeaders> {
        let mut client = StateMachineClient::new(self.channel.clone());
        let asked = timeout(self.timeout, client.routing(RoutingRequest {})).await;
        let table = match asked {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(NoLeaders(status.message().to_owned())),
            Err(_) => return Err(NoLeaders(format!("no answer within {:?}", self.timeout))),
        };
        let of_slots = leaders_of_slots(&table)?;
        for address in of_slots.iter() {
            if !self.nodes.contains_key(address) {
                let connections = self.connect(address).await?;
                self.nodes.insert(address.clone(), connections);
            }
        }
        self.of_slots = Arc::new(of_slots);
        Ok(())
    }

    async fn connect(&self, address: &str) -> Result<Vec<Unary>, NoLeaders> {
        let endpoint: Endpoint =
            address.parse().map_err(|error: raft_kv_client::Error| NoLeaders(error.to_string()))?;
        let mut connections = Vec::new();
        for _ in 0..self.connections_each {
            let channel = connect(&endpoint, self.timeout)
                .await
                .map_err(|reason| NoLeaders(format!("{address} does not answer ({reason})")))?;
            connections.push(Unary::new(channel, self.timeout));
        }
        Ok(connections)
    }

    /// The connections that a caller uses, one to each leader.
    pub fn connections_of(&self, caller: usize) -> ToLeaders {
        let nodes = self.nodes.iter().map(|(address, connections)| {
            (address.clone(), connections[caller % connections.len()].clone())
        });
        ToLeaders { nodes: nodes.collect(), of_slots: self.of_slots.clone() }
    }
}

/// For each slot the address of its leader; there is at least one slot.
fn leaders_of_slots(table: &RoutingResponse) -> Result<Vec<String>, NoLeaders> {
    let mut leaders = vec![String::new(); table.slots as usize];
    for shard in &table.shards {
        for range in &shard.slots {
            let slots = range.start as usize..range.end as usize;
            match leaders.get_mut(slots) {
                Some(leaders) => leaders.fill(shard.address.clone()),
                None => return Err(NoLeaders(format!("{} has slots beyond the last", shard.name))),
            }
        }
    }
    match leaders.iter().position(String::is_empty) {
        Some(slot) => Err(NoLeaders(format!("slot {slot} has no leader"))),
        None if leaders.is_empty() => Err(NoLeaders("the node asked knows of no slots".to_owned())),
        None => Ok(leaders),
    }
}

/// Connections to all leaders, which their clones share.
#[derive(Clone, Debug)]
pub struct ToLeaders {
    nodes: BTreeMap<String, Unary>,
    of_slots: Arc<Vec<String>>,
}

impl ToLeaders {
    /// Carries out one operation with a call to the leader of its key.
    pub async fn single(&mut self, operation: Operation) -> Answer {
        let (Operation::Put { key, .. } | Operation::Get { key }) = &operation;
        let slot = slot_of(key, self.of_slots.len() as u32);
        let leader = &self.of_slots[slot as usize];
        let node = self.nodes.get_mut(leader).expect("there are connections to all leaders");
        node.single(operation).await
    }
}
