//! The module's entry points: pull commands, carry them out, respond, until there are none.

use std::sync::Once;

use crate::imports::{self, Backend};
use crate::{
    Buffer, Context, Failure, Migrate, Migration, QueryContext, Response, StateMachine, codes,
};

/// What the export `apply` does.
pub fn apply<M: StateMachine>() {
    run_batch(imports::exchange_placed, |command, place| {
        M::apply(&Context::new(Backend::new(), Some(place)), command)
    });
}

/// What the export `query` does. Where a query stands is asked for when it matters, because the host
/// takes it that the answer then depends on the time.
pub fn query<M: StateMachine>() {
    let next =
        |answer: &[u8], request: &mut Vec<u8>| imports::exchange(answer, request).then_some(());
    run_batch(next, |request, ()| M::query(&QueryContext::new(Backend::new(), None), request));
}

/// What the export `migrate` does.
pub fn migrate<M: Migrate>() {
    run_batch(imports::exchange_placed, |command, place| match Migration::parse(command) {
        Some(migration) => {
            M::migrate(&Context::new(Backend::new(), Some(place)), &migration)?;
            Ok(Response::empty())
        }
        None => Err(Failure::new(codes::MALFORMED, "the host's request to migrate is unknown")),
    });
}

/// Pulls commands with `next`, which is given the response to the one before.
fn run_batch<P>(
    next: impl Fn(&[u8], &mut Vec<u8>) -> Option<P>,
    run: impl Fn(&[u8], P) -> Result<Response, Failure>,
) {
    send_panics_to_the_host();
    let mut command = Buffer::new();
    let mut response = Response::empty();
    while let Some(place) = next(response.as_bytes(), &mut command) {
        response = run(&command, place).unwrap_or_else(|failure| {
            imports::fail(&failure);
            Response::empty()
        });
    }
}

/// A panic in WebAssembly is a mere trap; this way its text reaches the caller and the log.
fn send_panics_to_the_host() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let message = panic.payload_as_str().unwrap_or("a panic without a text");
            match panic.location() {
                Some(place) => imports::abort(&format!("{message} ({place})")),
                None => imports::abort(message),
            }
        }));
    });
}
