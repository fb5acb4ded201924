//! The time, cheaply: the kernel's coarse clocks, read without a system call.
//!
//! They advance with the timer tick, every 1 to 10 ms, which is fine enough for deadlines and dates.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in time on the monotonic clock, in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// This moment and `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this moment is; nothing when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Now, on the monotonic clock (`CLOCK_MONOTONIC_COARSE`, clock_gettime(2)).
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    // Neither field is ever negative on this clock.
    Moment(time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000)
}

/// Seconds since the Unix epoch (`CLOCK_REALTIME_COARSE`).
pub fn unix_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::RealtimeCoarse).tv_sec).unwrap_or(0)
}
