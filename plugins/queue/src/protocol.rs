//! Commands, queries and what they answer, as JSON. All times are in milliseconds; points in time
//! count from 1970-01-01 UTC.

use serde::{Deserialize, Serialize};

/// What changes the queue. In JSON, `{"op": "send", …}` and so on.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Puts a message into the queue.
    Send {
        /// Its content.
        body: String,
        /// How long it stays hidden at first; 0 unless given.
        #[serde(default)]
        delay_ms: u64,
    },
    /// Takes messages that are visible and hides them.
    Receive {
        /// How long to hide them.
        visibility_ms: u64,
        /// At most so many; 1 unless given.
        #[serde(default = "one")]
        max: usize,
    },
    /// Removes a message that was received.
    Ack {
        /// The message.
        id: u64,
        /// Which of its deliveries is acknowledged: the latest one.
        delivery: u32,
    },
    /// Hides a message that was received until `visibility_ms` from now on; 0 gives it back.
    Extend {
        /// The message.
        id: u64,
        /// Which of its deliveries: the latest one.
        delivery: u32,
        /// How long to hide it from now on.
        visibility_ms: u64,
    },
}

fn one() -> usize {
    1
}

/// A message that was received.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Message {
    /// Its number; no other message of the slot has it.
    pub id: u64,
    /// How often it was delivered, this time included. Above 1, an earlier receiver did not
    /// acknowledge it in time.
    pub delivery: u32,
    /// When it becomes visible again.
    pub deadline_ms: u64,
    /// Its content.
    pub body: String,
}

/// What a command answers.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Reply {
    /// To `receive`: the messages, none if none is visible.
    Received {
        /// The messages, those that have been visible for longest first.
        messages: Vec<Message>,
    },
    /// To `extend`.
    Extended {
        /// When the message becomes visible again.
        deadline_ms: u64,
    },
    /// To `send`, and to `ack`.
    Done {
        /// The message.
        id: u64,
    },
}

/// What is asked. In JSON, `{"op": "status"}`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// How full the queue is.
    Status,
}

/// How full the queue is.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Status {
    /// All messages, hidden ones included.
    pub messages: u64,
    /// When the next message becomes visible, or since when one is; `null` if there is none.
    pub next_ms: Option<u64>,
    /// Replicated time.
    pub now_ms: u64,
}

/// The codes that commands fail with, beside those of the SDK.
pub mod failure {
    /// The message is not there: it was acknowledged, or never sent.
    pub const NO_MESSAGE: u32 = 1;
    /// The message was delivered again since, or never was; it is somebody else's now.
    pub const OTHER_DELIVERY: u32 = 2;
    /// A time, a number of messages or a body is too long, or is 0.
    pub const OUT_OF_RANGE: u32 = 3;
}

/// The longest time that a message can be hidden for: seven days.
pub const MAX_VISIBILITY_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// How many messages can be received at once.
pub const MAX_RECEIVED: usize = 32;

/// The longest body, in bytes: 64 KiB, so that as many as can be received at once fit into a response,
/// even if JSON takes six bytes for each of theirs.
pub const MAX_BODY_LEN: usize = 64 * 1_024;
