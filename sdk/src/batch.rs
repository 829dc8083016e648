//! The module's entry points: pull commands, carry them out, respond, until there are none.

use std::sync::Once;

use crate::imports::{self, Backend};
use crate::{
    Buffer, Context, Failure, Migrate, Migration, QueryContext, Response, StateMachine, codes,
};

/// What the export `apply` does.
pub fn apply<M: StateMachine>() {
    run_batch(|command| M::apply(&Context::new(Backend::new()), command));
}

/// What the export `query` does.
pub fn query<M: StateMachine>() {
    run_batch(|request| M::query(&QueryContext::new(Backend::new()), request));
}

/// What the export `migrate` does.
pub fn migrate<M: Migrate>() {
    run_batch(|command| match Migration::parse(command) {
        Some(migration) => {
            M::migrate(&Context::new(Backend::new()), &migration)?;
            Ok(Response::empty())
        }
        None => Err(Failure::new(codes::MALFORMED, "the host's request to migrate is unknown")),
    });
}

fn run_batch(run: impl Fn(&[u8]) -> Result<Response, Failure>) {
    send_panics_to_the_host();
    let mut command = Buffer::new();
    while imports::next_command(&mut command) {
        match run(&command) {
            Ok(response) => {
                let bytes = response.as_bytes();
                if !bytes.is_empty() {
                    imports::respond(bytes);
                }
            }
            Err(failure) => imports::fail(&failure),
        }
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
