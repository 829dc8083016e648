//! Atomic commands. That all or nothing takes effect is the host's doing: a command that fails leaves
//! no trace.

use raft_kv_sdk::{Buffer, Context, Failure, Response};

use crate::protocol::{
    Atomic, AtomicOperation, AtomicOutcome, Compare, Condition, failure, version,
};

/// Most bytes of a response; the host takes little more.
const MAX_RESPONSE_LEN: usize = 16 << 20;

/// Carries out all operations if all conditions hold.
#[inline(never)]
pub(super) fn run(context: &Context<'_>, atomic: &Atomic<'_>) -> Result<Response, Failure> {
    for (place, compare) in (0..).zip(atomic.compares()) {
        let Compare { key, condition } = compare;
        super::check_key(key)?;
        let found = super::found_version(context, key)?;
        let holds = match condition {
            Condition::Exists => found != version::NONE,
            Condition::Version(expected) => found == expected,
        };
        if !holds {
            return Ok(AtomicOutcome::failed(place, found).into());
        }
    }
    let mut response = Buffer::new();
    response.push(AtomicOutcome::HELD);
    for (place, operation) in atomic.operations().enumerate() {
        let answer = match operation {
            AtomicOperation::Write(command) => super::write(context, &command),
            AtomicOperation::Get { key } => super::get(context, key),
        };
        let answer = answer.map_err(|Failure { code, message }| {
            Failure::new(code, format!("operation {place}: {message}"))
        })?;
        let answer = answer.as_bytes();
        if response.len() + 4 + answer.len() > MAX_RESPONSE_LEN {
            let message = format!("operation {place}: what is read is too much for one response");
            return Err(Failure::new(failure::RESPONSE_TOO_LARGE, message));
        }
        response.extend_from_slice(&(answer.len() as u32).to_le_bytes());
        response.extend_from_slice(answer);
    }
    Ok(response.into())
}
