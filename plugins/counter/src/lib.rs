//! A counter: the smallest plugin worth having.
//!
//! A command is a number in digits, the step to add; no digits at all are a step of 1. The response,
//! and the answer to any query, is the total in digits.

use raft_kv_sdk::storage;
use raft_kv_sdk::{Context, Failure, QueryContext, Response, StateMachine};

/// The code of the failure when a command is no number.
pub const NO_NUMBER: u32 = 1;

const TOTAL: storage::Counter = storage::Counter::new("total");

/// The state machine.
pub struct Counter;

impl StateMachine for Counter {
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
        let total = TOTAL.add(context, step(command)?)?;
        Ok(total.to_string().into())
    }

    fn query(context: &QueryContext<'_>, _request: &[u8]) -> Result<Response, Failure> {
        Ok(TOTAL.get(context)?.to_string().into())
    }
}

fn step(command: &[u8]) -> Result<u64, Failure> {
    if command.is_empty() {
        return Ok(1);
    }
    let number = std::str::from_utf8(command).ok().and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| Failure::new(NO_NUMBER, "a command is a number from 0 to 2^64 - 1"))
}

raft_kv_sdk::plugin!(Counter, name: "counter");
