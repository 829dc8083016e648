//! Waiting for a condition, with a deadline.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(2);

/// Blocks until `condition` gives something.
///
/// # Panics
/// If it has not done so after `limit`.
pub fn wait_for<T>(
    what: impl Display,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        thread::sleep(POLL);
    }
}

/// [`wait_for`] for tasks.
///
/// # Panics
/// If the condition has not given anything after `limit`.
pub async fn eventually<T>(
    what: impl Display,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        tokio::time::sleep(POLL).await;
    }
}
