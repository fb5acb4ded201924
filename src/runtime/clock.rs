//! The time, cheaply: the kernel's coarse clocks, read without a system call.
//!
//! They advance with the timer tick, every 1 to 10 ms, which is fine enough for deadlines and dates. How long a visit
//! takes is measured with a fine clock.

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

    /// This moment and `duration` earlier.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// In milliseconds of the monotonic clock.
    pub const fn millis(self) -> u64 {
        self.0
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

/// Milliseconds since the Unix epoch (`CLOCK_REALTIME_COARSE`).
pub fn unix_millis() -> u64 {
    let time = clock_gettime(ClockId::RealtimeCoarse);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

/// Now, in microseconds of the monotonic clock (`CLOCK_MONOTONIC`).
///
/// It costs 25 to 50 ns where the kernel's clock source can be read without a system call, as on most machines, and a
/// visit reads it twice: at its start and when the counter has answered. A coarse clock costs 5 to 10 ns, and would show
/// nearly all visits as taking no time.
pub fn micros() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither field is ever negative on this clock.
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

/// A time of [`micros`] in few bytes, for durations below 71 minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp(u32);

impl Stamp {
    /// This time.
    pub const fn new(micros: u64) -> Self {
        Self(low_bits(micros))
    }

    /// How many microseconds after it `micros` is.
    pub const fn micros_until(self, micros: u64) -> u64 {
        low_bits(micros).wrapping_sub(self.0) as u64
    }
}

#[allow(clippy::cast_possible_truncation)]
const fn low_bits(micros: u64) -> u32 {
    micros as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_measures_durations_below_71_minutes() {
        for began in [0, 1, u64::from(u32::MAX) - 5, u64::from(u32::MAX) * 7 + 3] {
            for micros in [0, 1, 25, 5_000_000, 4_200_000_000] {
                assert_eq!(Stamp::new(began).micros_until(began + micros), micros);
            }
        }
    }
}
