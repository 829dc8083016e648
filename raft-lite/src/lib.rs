//! A synchronous multi-Raft runtime on TiKV's `raft`.
//!
//! A node hosts many groups. A fixed number of worker threads run their
//! protocol in rounds, each with one fsync for all groups (see `worker`), and a
//! fixed number of applier threads apply what is committed. Storage, state
//! machine, network, time and randomness are given by the user, so that a
//! simulator can drive the very same code from one seed.
//!
//! What a caller sees: [`MultiRaft`] takes proposals and reads for groups, and
//! answers each exactly once.

#![forbid(unsafe_code)]

mod applier;
mod clock;
mod config;
mod entry;
mod group;
mod group_storage;
mod liveness;
mod log_store;
mod logger;
mod membership;
mod message;
mod proposal;
mod registry;
mod round;
mod runtime;
mod shared;
#[doc(hidden)]
pub mod sim;
mod snapshot;
mod startup;
mod state_machine;
mod transport;
mod types;
mod worker;

pub use clock::{BootTime, Clock, SystemClock};
pub use config::{Config, GroupDescriptor};
pub use entry::{Command, EntryKind, Payload, PayloadError};
pub use group::MemberProgress;
pub use log_store::{
    Durability, EngineLogStore, EngineOptions, LogChange, LogEntry, LogState, LogStore,
    LogStoreError, LogWrite, MemoryLogStore,
};
pub use membership::{Membership, MembershipChange, MembershipError, NewReplica};
pub use message::{InvalidMessage, RaftMessage};
pub use proposal::{Proposal, ProposalReply, ReadReply, RequestError};
pub use runtime::{MultiRaft, Parts, StartError};
pub use shared::{GroupStatus, Role};
pub use snapshot::SnapshotMeta;
pub use startup::ReplicaRecord;
pub use state_machine::{
    ApplyError, CommandFailure, CommandOutcome, CommittedEntry, Effects, GroupEntries, Rejection,
    SnapshotReply, StateMachine,
};
pub use transport::{FetchReply, NoTransport, Transport};
pub use types::{
    GroupId, HardState, INITIAL_POSITION, Index, LogPosition, NodeId, ReplicaId, Term,
};
