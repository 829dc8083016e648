//! What a log entry carries: client commands, or one structural change.
//!
//! The first byte is the format's version, the rest a protobuf message whose
//! byte fields are shared with the buffer they were decoded from. An entry with
//! no payload at all is the one a new leader appends.
//!
//! Commands are a raft entry's data. A change of the group is its context instead, so
//! that it is told from commands without being decoded; of a change of members `raft`
//! has its own description as the data.

use bytes::Bytes;
use prost::Message;

use crate::membership::MembershipChange;

/// Version of the entry format.
const FORMAT_VERSION: u8 = 1;

/// What kind of change an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum EntryKind {
    /// Commands of clients for the plugin.
    Commands = 0,
    /// A change to the shard itself: its slots, its replicas, its plugin.
    Structural = 1,
    /// A change to the group's members.
    Membership = 2,
}

/// The payload of a log entry.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    /// What kind of change this is.
    #[prost(enumeration = "EntryKind", tag = "1")]
    pub kind: i32,
    /// The shard's epoch when the entry was proposed. Structural entries, and changes
    /// of members, are valid at exactly this epoch.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The proposing leader's clock, milliseconds since 1970. Replicated time
    /// after the entry is the larger of this and the time before it.
    #[prost(uint64, tag = "3")]
    pub time_ms: u64,
    /// The commands, in the order they take effect. Empty in structural entries.
    #[prost(message, repeated, tag = "4")]
    pub commands: Vec<Command>,
    /// The structural change, encoded by the state machine that defines it.
    #[prost(bytes = "bytes", tag = "5")]
    pub structural: Bytes,
    /// The change of members.
    #[prost(message, optional, tag = "6")]
    pub membership: Option<MembershipChange>,
}

/// One command of a client.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    /// The slot the command's routing key falls into; it sees that slot only.
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    /// The client's session, or 0 for none.
    #[prost(uint64, tag = "2")]
    pub session: u64,
    /// The command's number within its session.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    /// Replicated time, in milliseconds, after which the command must not take
    /// effect any more; 0 for never.
    #[prost(uint64, tag = "4")]
    pub not_after_ms: u64,
    /// The client has the results of all its commands below this sequence.
    #[prost(uint64, tag = "5")]
    pub acked_below: u64,
    /// What the plugin is given.
    #[prost(bytes = "bytes", tag = "6")]
    pub payload: Bytes,
}

/// A log entry's payload that can not be read.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The entry was written by a program with another format.
    #[error("entry has format version {0}, this program knows {FORMAT_VERSION}")]
    UnknownVersion(u8),
    /// The bytes are no entry.
    #[error("entry is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
}

impl Payload {
    /// Encodes the payload for the log.
    pub fn encode_entry(&self) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(1 + self.encoded_len());
        buffer.push(FORMAT_VERSION);
        self.encode(&mut buffer).expect("a growing buffer is never too small");
        buffer
    }

    /// How many outcomes the state machine gives for it: one for each command, or
    /// one for a change of the shard or its members.
    pub fn outcomes(&self) -> usize {
        if self.kind == EntryKind::Commands as i32 { self.commands.len() } else { 1 }
    }

    /// Reads a payload from the log; `None` for the empty entry of a new leader.
    pub fn decode_entry(mut data: Bytes) -> Result<Option<Payload>, PayloadError> {
        match data.first() {
            None => Ok(None),
            Some(&FORMAT_VERSION) => {
                let message = data.split_off(1);
                Ok(Some(Payload::decode(message)?))
            }
            Some(&other) => Err(PayloadError::UnknownVersion(other)),
        }
    }
}

impl Command {
    /// Bytes the command takes up in an entry, at most.
    pub fn size(&self) -> usize {
        self.payload.len() + 64
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn a_payload_survives_the_log() {
        let payload = Payload {
            kind: EntryKind::Commands as i32,
            epoch: 3,
            time_ms: 1_700_000_000_000,
            commands: vec![Command {
                slot: 255,
                session: 1,
                sequence: 2,
                not_after_ms: 3,
                acked_below: 4,
                payload: Bytes::from_static(b"\x00\xff"),
            }],
            structural: Bytes::new(),
            membership: Some(MembershipChange::leave_joint()),
        };
        let decoded = Payload::decode_entry(payload.encode_entry().into()).unwrap();
        assert_eq!(decoded, Some(payload));
    }

    #[test]
    fn an_empty_payload_is_not_an_empty_entry() {
        let encoded = Bytes::from(Payload::default().encode_entry());
        assert_eq!(Payload::decode_entry(encoded).unwrap(), Some(Payload::default()));
        assert_eq!(Payload::decode_entry(Bytes::new()).unwrap(), None);
    }

    #[test]
    fn random_bytes_are_no_panic() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..20_000 {
            let mut bytes = vec![0; rng.random_range(1..64)];
            rng.fill(&mut bytes[..]);
            bytes[0] = FORMAT_VERSION;
            // Read or refused: either will do.
            let _ = Payload::decode_entry(bytes.into());
        }
    }

    #[test]
    fn foreign_and_damaged_entries_are_refused() {
        let foreign = Payload::decode_entry(Bytes::from_static(&[9]));
        assert!(matches!(foreign, Err(PayloadError::UnknownVersion(9))));
        let damaged = Payload::decode_entry(Bytes::from_static(&[1, 0xff]));
        assert!(matches!(damaged, Err(PayloadError::Malformed(_))));
    }
}
