//! Points at which a test can make the node wait or stop.
//!
//! They do nothing unless the environment names them when the node starts:
//! `RAFTKV_FAILPOINTS="merge-absorb=abort;split=sleep(3000)"`. `abort` ends the process as a
//! crash would; `sleep` makes whoever comes to the point wait so many milliseconds, the
//! first time. (The crate `fail` can not be used beside raft-engine, which does not compile
//! once its failpoints are on anywhere.)

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use parking_lot::Mutex;

/// The environment variable that names points and what happens there.
const VARIABLE: &str = "RAFTKV_FAILPOINTS";

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Sleep(Duration),
}

static POINTS: OnceLock<Mutex<BTreeMap<String, Action>>> = OnceLock::new();

/// Takes the points that the environment names; they hold as long as the process runs.
///
/// # Errors
/// If it makes no sense; the message says what.
pub fn set_up() -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    // Set up once, at the start.
    let _ = POINTS.set(Mutex::new(parse(&text)?));
    Ok(())
}

fn parse(text: &str) -> Result<BTreeMap<String, Action>, String> {
    let point = |point: &str| {
        let wrong =
            || format!("{VARIABLE}: {point:?} is not name=abort or name=sleep(milliseconds)");
        let (name, action) = point.split_once('=').ok_or_else(wrong)?;
        let millis = action.strip_prefix("sleep(").and_then(|rest| rest.strip_suffix(')'));
        let action = match (action, millis) {
            ("abort", _) => Action::Abort,
            (_, Some(millis)) => {
                Action::Sleep(Duration::from_millis(millis.parse().map_err(|_| wrong())?))
            }
            _ => return Err(wrong()),
        };
        Ok((name.to_owned(), action))
    };
    text.split(';').filter(|point| !point.is_empty()).map(point).collect()
}

/// Does what was set for a point, if anything.
pub(crate) async fn hit(name: &str) {
    let action = POINTS.get().and_then(|points| points.lock().remove(name));
    match action {
        None => {}
        Some(Action::Abort) => {
            tracing::error!("stopped at the point {name}");
            std::process::abort()
        }
        Some(Action::Sleep(time)) => {
            tracing::warn!("waiting at the point {name}");
            tokio::time::sleep(time).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_from_the_environment() {
        let points = parse("a=abort;b=sleep(20)").unwrap();
        let sleep = Action::Sleep(Duration::from_millis(20));
        assert_eq!(points, [("a".to_owned(), Action::Abort), ("b".to_owned(), sleep)].into());
        for wrong in ["a", "a=b", "a=sleep(x)", "a=sleep(1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
