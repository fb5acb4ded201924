//! The circuit breaker: after a run of failures, calls fail at once, while a probe now and then finds
//! out whether the counter is back. Pure: it is told the time.

use std::time::Duration;

use crate::runtime::clock::Moment;

/// Failures in a row that open it. Fewer would open it for a few connections that were cut.
const FAILURES_MAX: u32 = 10;
/// How far apart probes begin. A counter that is back is found by the first visit after that.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Whether calls are made.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// When the next probe may begin; while it is closed, every call is made.
    open: Option<Moment>,
}

/// What an outcome has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// From now on calls fail at once.
    Opened,
    /// From now on calls are made again.
    Closed,
}

impl Breaker {
    /// Whether a call is made now. While it is open, one in each interval is: the probe.
    pub(super) fn admit(&mut self, now: Moment) -> bool {
        match &mut self.open {
            None => true,
            Some(next_probe) if *next_probe <= now => {
                *next_probe = now.after(PROBE_INTERVAL);
                true
            }
            Some(_) => false,
        }
    }

    /// Whether a call would be made now.
    pub(super) fn admits(&self, now: Moment) -> bool {
        self.open.is_none_or(|next_probe| next_probe <= now)
    }

    /// The counter has answered a call, whatever it said.
    pub(super) fn succeeded(&mut self) -> Option<Change> {
        self.failures = 0;
        self.open.take().map(|_| Change::Closed)
    }

    /// A call got no answer.
    pub(super) fn failed(&mut self, now: Moment) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        if self.open.is_some() || self.failures < FAILURES_MAX {
            return None;
        }
        self.open = Some(now.after(PROBE_INTERVAL));
        Some(Change::Opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    fn failing(now: Moment) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..FAILURES_MAX {
            assert!(breaker.admits(now) && breaker.admit(now));
            assert_eq!(breaker.failed(now), None);
        }
        breaker
    }

    #[test]
    fn a_run_of_failures_opens_it() {
        let now = clock::now();
        let mut breaker = failing(now);
        assert_eq!(breaker.failed(now), Some(Change::Opened));
        assert!(!breaker.admit(now));
        assert_eq!(breaker.failed(now), None);
    }

    #[test]
    fn an_answer_among_failures_keeps_it_closed() {
        let now = clock::now();
        let mut breaker = failing(now);
        assert_eq!(breaker.succeeded(), None);
        assert_eq!(breaker.failed(now), None);
        assert!(breaker.admit(now));
    }

    #[test]
    fn one_probe_an_interval_finds_the_counter_back() {
        let now = clock::now();
        let mut breaker = failing(now);
        breaker.failed(now);
        let soon = now.after(PROBE_INTERVAL - Duration::from_millis(1));
        let later = now.after(PROBE_INTERVAL);
        assert!(!breaker.admits(soon) && !breaker.admit(soon));
        assert!(breaker.admits(later) && breaker.admits(later));
        assert!(breaker.admit(later));
        assert!(!breaker.admit(later));
        assert_eq!(breaker.failed(later), None);
        let later = later.after(PROBE_INTERVAL);
        assert!(breaker.admit(later));
        assert_eq!(breaker.succeeded(), Some(Change::Closed));
        assert!(breaker.admit(later) && breaker.admit(later));
        // It takes a whole run to open it again.
        assert_eq!(breaker.failed(later), None);
    }
}
