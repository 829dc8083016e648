//! Each node's clocks: the time since boot runs a little fast or slow, and on while
//! the process stands still; the wall clock may jump.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::{BootTime, Clock};

/// Parts per million that a node's clock may be fast or slow. Two nodes' clocks may
/// differ by twice as much, which is well within what a lease keeps back.
pub(super) const MOST_DRIFT_PPM: i64 = 30_000;

#[derive(Debug)]
pub(super) struct SimClock {
    /// Time since boot, in nanoseconds.
    nanos: AtomicU64,
    drift_ppm: i64,
    /// How far the wall clock is off, in milliseconds.
    wall_off_millis: AtomicI64,
}

impl SimClock {
    pub(super) fn new(drift_ppm: i64) -> Self {
        // Machines do not boot at the same time.
        let nanos = AtomicU64::new((drift_ppm + 2 * MOST_DRIFT_PPM).unsigned_abs() * 1_000_000);
        SimClock { nanos, drift_ppm, wall_off_millis: AtomicI64::new(0) }
    }

    /// So much true time passes.
    pub(super) fn advance(&self, time: Duration) {
        let nanos = time.as_nanos() as i64;
        let drifted = nanos + nanos * self.drift_ppm / 1_000_000;
        self.nanos.fetch_add(drifted.unsigned_abs(), Ordering::Relaxed);
    }

    pub(super) fn set_wall_off(&self, millis: i64) {
        self.wall_off_millis.store(millis, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> BootTime {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn unix_millis(&self) -> u64 {
        let millis = self.now().as_millis() as i64 + 1_000_000_000;
        (millis + self.wall_off_millis.load(Ordering::Relaxed)).unsigned_abs()
    }
}
