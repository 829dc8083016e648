//! What the commands and queries of [`protocol`](crate::protocol) mean.
//!
//! A lease that has ended is as good as none. It stays stored until its lock is taken again, or until
//! another command of the slot clears it away: every acquisition clears a few, found by the time they
//! ended at, so that locks taken once do not stay for good.

use raft_kv_sdk::storage::{Counter, Index, Map};
use raft_kv_sdk::{Context, Failure, Json, QueryContext, TypedMachine, debug};

use crate::protocol::{Answer, Command, Held, Lease, MAX_NAME_LEN, MAX_TTL_MS, Query, failure};

/// How many ended leases one acquisition clears away.
const CLEARED_AT_ONCE: usize = 8;

/// The lease of each lock. Some of them may have ended.
const LEASES: Map<String, Json<Lease>> = Map::new("leases");
/// The locks in `LEASES`, by when their leases end.
const BY_END: Index<u64, String> = Index::new("by-end");
/// The token of the latest lease of the slot.
const LAST_TOKEN: Counter = Counter::new("last-token");

/// The state machine.
pub struct Locks;

impl TypedMachine for Locks {
    type Format = Json;
    type Command = Command;
    type Reply = Option<Lease>;
    type Query = Query;
    type Answer = Answer;

    fn apply(context: &Context<'_>, command: Command) -> Result<Option<Lease>, Failure> {
        match command {
            Command::Acquire { lock, owner, ttl_ms } => {
                acquire(context, &lock, owner, ttl_ms).map(Some)
            }
            Command::Renew { lock, token, ttl_ms } => {
                renew(context, &lock, token, ttl_ms).map(Some)
            }
            Command::Release { lock, token } => release(context, &lock, token).map(|()| None),
        }
    }

    fn query(context: &QueryContext<'_>, query: Query) -> Result<Answer, Failure> {
        match query {
            Query::Holder { lock } => {
                check_name(&lock)?;
                Ok(Answer::Holder { holder: current(context, &lock)? })
            }
            Query::Held { after, limit } => held(context, &after, limit),
        }
    }
}

fn acquire(
    context: &Context<'_>,
    lock: &str,
    owner: String,
    ttl_ms: u64,
) -> Result<Lease, Failure> {
    check_name(lock)?;
    check_name(&owner)?;
    let expires_ms = end(context, ttl_ms)?;
    if let Some(Lease { owner, expires_ms, .. }) = current(context, lock)? {
        let message = format!("{owner} holds the lock `{lock}` until {expires_ms}");
        return Err(Failure::new(failure::HELD, message));
    }
    clear_ended(context)?;
    let lease = Lease { owner, token: LAST_TOKEN.add(context, 1)?, expires_ms };
    store(context, lock, &lease)?;
    Ok(lease)
}

fn renew(context: &Context<'_>, lock: &str, token: u64, ttl_ms: u64) -> Result<Lease, Failure> {
    let expires_ms = end(context, ttl_ms)?;
    let lease = Lease { expires_ms, ..held_by(context, lock, token)? };
    store(context, lock, &lease)?;
    Ok(lease)
}

fn release(context: &Context<'_>, lock: &str, token: u64) -> Result<(), Failure> {
    held_by(context, lock, token)?;
    remove(context, lock)
}

fn held(context: &QueryContext<'_>, after: &str, limit: usize) -> Result<Answer, Failure> {
    check_len(after)?;
    let mut held = Vec::new();
    for entry in LEASES.scan(context).after(after) {
        let (lock, Json(lease)) = entry?;
        if held.len() == limit {
            break;
        }
        if is_held(context, &lease) {
            held.push(Held { lock, lease });
        }
    }
    Ok(Answer::Held { held })
}

/// The lease of `lock`, unless it has ended.
fn current(context: &QueryContext<'_>, lock: &str) -> Result<Option<Lease>, Failure> {
    let stored = LEASES.get(context, lock)?.map(|Json(lease)| lease);
    Ok(stored.filter(|lease| is_held(context, lease)))
}

fn is_held(context: &QueryContext<'_>, lease: &Lease) -> bool {
    context.time_ms() < lease.expires_ms
}

/// The lease of `lock`, which must be that of `token`.
fn held_by(context: &QueryContext<'_>, lock: &str, token: u64) -> Result<Lease, Failure> {
    check_name(lock)?;
    let lease = current(context, lock)?.filter(|lease| lease.token == token);
    lease.ok_or_else(|| {
        let message = format!("the lock `{lock}` is not held with token {token}");
        Failure::new(failure::NOT_HELD, message)
    })
}

/// Sets the lease of `lock`, whatever it was before.
fn store(context: &Context<'_>, lock: &str, lease: &Lease) -> Result<(), Failure> {
    remove(context, lock)?;
    LEASES.put(context, lock, &Json(lease.clone()))?;
    BY_END.insert(context, &lease.expires_ms, lock)
}

fn remove(context: &Context<'_>, lock: &str) -> Result<(), Failure> {
    if let Some(Json(lease)) = LEASES.get(context, lock)? {
        LEASES.remove(context, lock)?;
        BY_END.remove(context, &lease.expires_ms, lock)?;
    }
    Ok(())
}

fn clear_ended(context: &Context<'_>) -> Result<(), Failure> {
    let ended = BY_END.scan(context).up_to(&context.time_ms());
    for pair in ended.keys().take(CLEARED_AT_ONCE) {
        let (_, lock) = pair?;
        debug!(context, "the lease of the lock `{lock}` has ended");
        remove(context, &lock)?;
    }
    Ok(())
}

fn end(context: &Context<'_>, ttl_ms: u64) -> Result<u64, Failure> {
    if (1..=MAX_TTL_MS).contains(&ttl_ms) {
        return Ok(context.time_ms().saturating_add(ttl_ms));
    }
    let message = format!("`ttl_ms` is {ttl_ms}, must be 1 to {MAX_TTL_MS}");
    Err(Failure::new(failure::OUT_OF_RANGE, message))
}

fn check_name(name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::new(failure::OUT_OF_RANGE, "a name is empty"));
    }
    check_len(name)
}

fn check_len(name: &str) -> Result<(), Failure> {
    if name.len() <= MAX_NAME_LEN {
        return Ok(());
    }
    let message = format!("a name has {} bytes, may have {MAX_NAME_LEN}", name.len());
    Err(Failure::new(failure::OUT_OF_RANGE, message))
}
