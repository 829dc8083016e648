//! What the commands and queries of [`protocol`](crate::protocol) mean.
//!
//! Every message is in the index by the time it becomes visible at, a new one by the time it was sent.
//! So one scan finds those that are visible, the oldest first, whether they are new or come again.
//! Nothing has to happen at the deadline itself.

use raft_kv_sdk::storage::{Counter, Index, Map};
use raft_kv_sdk::{Context, Failure, Json, QueryContext, TypedMachine};
use serde::{Deserialize, Serialize};

use crate::protocol::{
    Command, MAX_BODY_LEN, MAX_RECEIVED, MAX_VISIBILITY_MS, Message, Query, Reply, Status, failure,
};

/// A message as it is stored.
#[derive(Deserialize, Serialize)]
struct Stored {
    visible_ms: u64,
    /// How often it was delivered.
    deliveries: u32,
    body: String,
}

/// The messages by their ids.
const MESSAGES: Map<u64, Json<Stored>> = Map::new("messages");
/// Their ids by when they become visible.
const BY_TIME: Index<u64, u64> = Index::new("by-time");
/// The id of the message sent last.
const LAST_ID: Counter = Counter::new("last-id");
/// How many messages there are.
const COUNT: Counter = Counter::new("count");

/// The state machine.
pub struct Messages;

impl TypedMachine for Messages {
    type Format = Json;
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Status;

    fn apply(context: &Context<'_>, command: Command) -> Result<Reply, Failure> {
        match command {
            Command::Send { body, delay_ms } => send(context, body, delay_ms),
            Command::Receive { visibility_ms, max } => receive(context, visibility_ms, max),
            Command::Ack { id, delivery } => ack(context, id, delivery),
            Command::Extend { id, delivery, visibility_ms } => {
                extend(context, id, delivery, visibility_ms)
            }
        }
    }

    fn query(context: &QueryContext<'_>, query: Query) -> Result<Status, Failure> {
        match query {
            Query::Status => status(context),
        }
    }
}

fn send(context: &Context<'_>, body: String, delay_ms: u64) -> Result<Reply, Failure> {
    check("the length of a body", body.len() as u64, MAX_BODY_LEN as u64)?;
    let visible_ms = deadline(context, delay_ms)?;
    let id = LAST_ID.add(context, 1)?;
    COUNT.add(context, 1)?;
    store(context, id, Stored { visible_ms, deliveries: 0, body })?;
    Ok(Reply::Done { id })
}

fn receive(context: &Context<'_>, visibility_ms: u64, max: usize) -> Result<Reply, Failure> {
    check("`max`", max as u64, MAX_RECEIVED as u64)?;
    if visibility_ms == 0 {
        let message = "`visibility_ms` is 0: the message would not be hidden at all";
        return Err(Failure::new(failure::OUT_OF_RANGE, message));
    }
    let deadline_ms = deadline(context, visibility_ms)?;
    let mut messages = Vec::new();
    for pair in BY_TIME.scan(context).up_to(&context.time_ms()).keys().take(max) {
        let (_, id) = pair?;
        let Stored { deliveries, body, .. } = take(context, id)?;
        let delivery = deliveries.saturating_add(1);
        messages.push(Message { id, delivery, deadline_ms, body: body.clone() });
        store(context, id, Stored { visible_ms: deadline_ms, deliveries: delivery, body })?;
    }
    Ok(Reply::Received { messages })
}

fn ack(context: &Context<'_>, id: u64, delivery: u32) -> Result<Reply, Failure> {
    take_delivery(context, id, delivery)?;
    COUNT.subtract(context, 1)?;
    Ok(Reply::Done { id })
}

fn extend(
    context: &Context<'_>,
    id: u64,
    delivery: u32,
    visibility_ms: u64,
) -> Result<Reply, Failure> {
    let deadline_ms = deadline(context, visibility_ms)?;
    let message = take_delivery(context, id, delivery)?;
    store(context, id, Stored { visible_ms: deadline_ms, ..message })?;
    Ok(Reply::Extended { deadline_ms })
}

fn status(context: &QueryContext<'_>) -> Result<Status, Failure> {
    let next = BY_TIME.scan(context).keys().next().transpose()?;
    Ok(Status {
        messages: COUNT.get(context)?,
        next_ms: next.map(|(visible_ms, _)| visible_ms),
        now_ms: context.time_ms(),
    })
}

/// Puts a message, which is not there, into the map and the index.
fn store(context: &Context<'_>, id: u64, message: Stored) -> Result<(), Failure> {
    BY_TIME.insert(context, &message.visible_ms, &id)?;
    MESSAGES.put(context, &id, &Json(message))
}

/// Takes a message out of the map and the index.
fn take(context: &Context<'_>, id: u64) -> Result<Stored, Failure> {
    let Some(Json(message)) = MESSAGES.get(context, &id)? else {
        return Err(Failure::new(failure::NO_MESSAGE, format!("there is no message {id}")));
    };
    MESSAGES.remove(context, &id)?;
    BY_TIME.remove(context, &message.visible_ms, &id)?;
    Ok(message)
}

/// Takes a message out of which `delivery` is the latest one. Past its deadline that may well be so:
/// as long as nobody else received it, the work that was done on it counts.
fn take_delivery(context: &Context<'_>, id: u64, delivery: u32) -> Result<Stored, Failure> {
    let message = take(context, id)?;
    if message.deliveries == delivery && delivery > 0 {
        return Ok(message);
    }
    let text = format!("message {id} was delivered {} times, not {delivery}", message.deliveries);
    Err(Failure::new(failure::OTHER_DELIVERY, text))
}

fn deadline(context: &Context<'_>, after_ms: u64) -> Result<u64, Failure> {
    check("a time", after_ms, MAX_VISIBILITY_MS)?;
    Ok(context.time_ms().saturating_add(after_ms))
}

fn check(what: &str, found: u64, max: u64) -> Result<(), Failure> {
    if found <= max {
        return Ok(());
    }
    Err(Failure::new(failure::OUT_OF_RANGE, format!("{what} is {found}, may be {max} at most")))
}
