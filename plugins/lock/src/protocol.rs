//! Commands, queries and what they answer, as JSON. All times are in milliseconds; points in time
//! count from 1970-01-01 UTC.

use serde::{Deserialize, Serialize};

/// What changes a lock. In JSON, `{"op": "acquire", …}` and so on.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Takes a lock that nobody holds.
    Acquire {
        /// The lock's name.
        lock: String,
        /// Who takes it, for people to read.
        owner: String,
        /// How long to hold it unless renewed.
        ttl_ms: u64,
    },
    /// Lets a held lease end later, or earlier: `ttl_ms` from now on.
    Renew {
        /// The lock's name.
        lock: String,
        /// The token of the lease.
        token: u64,
        /// How long to hold it from now on.
        ttl_ms: u64,
    },
    /// Gives a held lock back.
    Release {
        /// The lock's name.
        lock: String,
        /// The token of the lease.
        token: u64,
    },
}

/// What is asked. In JSON, `{"op": "holder", …}` or `{"op": "held", …}`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// Who holds a lock.
    Holder {
        /// The lock's name.
        lock: String,
    },
    /// The locks of this slot that are held, in the order of their names.
    Held {
        /// Only those behind this name.
        #[serde(default)]
        after: String,
        /// At most so many; 100 unless given.
        #[serde(default = "default_limit")]
        limit: usize,
    },
}

fn default_limit() -> usize {
    100
}

/// A lease: somebody holds a lock until a point in time.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub owner: String,
    /// The fencing token: higher than that of every earlier lease of the slot.
    pub token: u64,
    /// When it ends; at this time it is no longer held.
    pub expires_ms: u64,
}

/// A lock that is held.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub lock: String,
    /// Who holds it.
    pub lease: Lease,
}

/// What a query answers.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Answer {
    /// To `held`.
    Held {
        /// The locks.
        held: Vec<Held>,
    },
    /// To `holder`: the lease, if there is one.
    Holder {
        /// The lease; `null` if nobody holds the lock.
        holder: Option<Lease>,
    },
}

/// The codes that commands and queries fail with, beside those of the SDK.
pub mod failure {
    /// Somebody holds the lock; the message says who and until when.
    pub const HELD: u32 = 1;
    /// The lease of this token has ended, or was given back.
    pub const NOT_HELD: u32 = 2;
    /// A name is empty or too long, or the time is 0 or too long.
    pub const OUT_OF_RANGE: u32 = 3;
}

/// The longest name of a lock or an owner, in bytes.
pub const MAX_NAME_LEN: usize = 1_024;

/// The longest lease: a day.
pub const MAX_TTL_MS: u64 = 24 * 60 * 60 * 1_000;
