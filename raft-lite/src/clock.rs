//! Time, as the runtime sees it; a simulator gives its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A moment on a clock that never stops or jumps: time since the machine
/// started, suspends included.
pub type BootTime = Duration;

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Time since boot. Runs on through pauses and suspends, so that a process
    /// that was stopped knows for how long.
    fn now(&self) -> BootTime;

    /// Wall clock, milliseconds since 1970-01-01 UTC. May jump.
    fn unix_millis(&self) -> u64;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    }

    fn unix_millis(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
    }
}
