//! Log lines about visits that are not registered: one at once, then one a minute, and one when it is over. They are
//! for all workers together, and for each counter separately.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{plural::plural, site::Failures};

/// The least time between two lines about one outage.
const LINE_INTERVAL: Duration = Duration::from_secs(60);
/// An outage is over when visits are registered and none has failed for this long.
const QUIET: Duration = Duration::from_secs(10);
/// How often outages are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The counters whose visits fail.
#[derive(Debug, Default)]
pub(super) struct Outages {
    by_counter: BTreeMap<Arc<str>, Outage>,
    /// The counters in use since the last reload; `None` before the first one.
    in_use: Option<BTreeSet<String>>,
}

#[derive(Debug)]
struct Outage {
    began: Instant,
    last_failure: Instant,
    /// The last visit that failed while no other counter registered any.
    last_unserved: Option<Instant>,
    last_line: Instant,
    cause: String,
    /// Visits that failed since the last line, and in total.
    unreported: u64,
    failed: u64,
    /// Visits that went to other counters since the last line, and in total.
    moved_unreported: u64,
    moved: u64,
    /// Whether a visit was registered after the last that failed.
    registered: bool,
}

/// A log line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Fails(String),
    Over(String),
}

impl Outages {
    /// Takes a report of a worker.
    pub(super) fn note(&mut self, failures: Failures) {
        if let Some(line) = self.line_for(failures, Instant::now()) {
            line.write();
        }
    }

    /// Checks whether an outage is over.
    pub(super) fn check(&mut self) {
        self.lines_at(Instant::now()).iter().for_each(Line::write);
    }

    /// Forgets the counters that are no longer in use.
    pub(super) fn retain(&mut self, in_use: BTreeSet<String>) {
        self.remove_unused(in_use).iter().for_each(Line::write);
    }

    /// Whether visits have failed recently, and no other counter of their route registered any. A load balancer sends no visits to a server that is not ready; so this
    /// ends without visits too, and the next ones show whether the counter works again.
    pub(super) fn are_recent(&self) -> bool {
        let unserved = self.by_counter.values().filter_map(|outage| outage.last_unserved);
        unserved.into_iter().any(|last| last.elapsed() < QUIET)
    }

    /// Time until the next check; `None` without an outage.
    pub(super) fn wait(&self) -> Option<Duration> {
        (!self.by_counter.is_empty()).then_some(CHECK_INTERVAL)
    }

    fn line_for(&mut self, failures: Failures, now: Instant) -> Option<Line> {
        let Failures { counter, failed, moved, cause, registered, others } = failures;
        // The last visits of a route that was removed: no later visit could end the outage.
        if self.in_use.as_ref().is_some_and(|in_use| !in_use.contains(&*counter)) {
            tracing::debug!(%counter, failed, "visits of a route that is gone are not registered");
            return None;
        }
        let cause = cause.map(|cause| cause.to_string());
        if failed + moved == 0 {
            if let Some(outage) = self.by_counter.get_mut(&counter) {
                outage.registered |= registered;
            }
            return None;
        }
        let outage = self.by_counter.entry(Arc::clone(&counter)).or_insert_with(|| Outage {
            began: now,
            last_failure: now,
            last_unserved: None,
            last_line: now,
            cause: String::new(),
            unreported: 0,
            failed: 0,
            moved_unreported: 0,
            moved: 0,
            registered,
        });
        let (failed_before, moved_before) = (outage.failed, outage.moved);
        outage.failed += failed;
        outage.unreported += failed;
        outage.moved += moved;
        outage.moved_unreported += moved;
        outage.last_failure = now;
        outage.registered = registered;
        if failed > 0 && !others {
            outage.last_unserved = Some(now);
        }
        if let Some(cause) = cause {
            outage.cause = cause;
        }
        // Visits that fail are told at once, also where until now all of them went to other counters.
        let is_new = failed_before == 0 && (failed > 0 || moved_before == 0);
        if !is_new && now.duration_since(outage.last_line) < LINE_INTERVAL {
            return None;
        }
        outage.last_line = now;
        Some(Line::Fails(outage.line(&counter, is_new)))
    }

    fn lines_at(&mut self, now: Instant) -> Vec<Line> {
        let over =
            |outage: &Outage| outage.registered && now.duration_since(outage.last_failure) >= QUIET;
        let mut lines = Vec::new();
        self.by_counter.retain(|counter, outage| {
            if over(outage) {
                let took = outage.last_failure.duration_since(outage.began).as_secs();
                lines.push(Line::Over(match outage.failed {
                    0 => format!(
                        "visits go to this counter again: POST {counter} ({} went to others within {took} s)",
                        plural(outage.moved, "visit")
                    ),
                    failed => format!(
                        "visits are registered again: POST {counter} ({} failed within {took} s)",
                        plural(failed, "visit")
                    ),
                }));
            }
            !over(outage)
        });
        lines
    }

    fn remove_unused(&mut self, in_use: BTreeSet<String>) -> Vec<Line> {
        let mut lines = Vec::new();
        let in_use = self.in_use.insert(in_use);
        self.by_counter.retain(|counter, outage| {
            let stays = in_use.contains(&**counter);
            if !stays {
                let failed = plural(outage.failed, "visit");
                lines.push(Line::Over(format!(
                    "visits no longer go to {counter}, where {failed} failed"
                )));
            }
            stays
        });
        lines
    }
}

impl Outage {
    /// What is told of it now.
    fn line(&mut self, counter: &str, is_new: bool) -> String {
        let unreported = std::mem::take(&mut self.unreported);
        let moved_unreported = std::mem::take(&mut self.moved_unreported);
        let Self { cause, failed, moved, .. } = self;
        let others = match moved {
            0 => String::new(),
            _ => format!("; {} went to other counters", plural(*moved, "visit")),
        };
        match (*failed, is_new) {
            (0, true) => format!(
                "visits go to other counters: POST {counter}: {cause} ({})",
                plural(moved_unreported, "visit")
            ),
            (0, false) => format!(
                "visits still go to other counters: POST {counter}: {cause} ({} since the last \
                 line, {moved} in all)",
                plural(moved_unreported, "visit")
            ),
            (_, true) => format!(
                "visits are not registered: POST {counter}: {cause} ({}{others})",
                plural(unreported, "visit")
            ),
            (_, false) => format!(
                "visits are still not registered: POST {counter}: {cause} ({} since the last line, \
                 {failed} in all{others})",
                plural(unreported, "visit")
            ),
        }
    }
}

impl Line {
    fn write(&self) {
        match self {
            Self::Fails(line) => tracing::warn!("{line}"),
            Self::Over(line) => tracing::info!("{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Failure;

    const URL: &str = "http://counter/";

    fn failures(failed: u64, cause: Option<Failure>, registered: bool) -> Failures {
        Failures { counter: URL.into(), failed, moved: 0, cause, registered, others: false }
    }

    fn moved(moved: u64, registered: bool) -> Failures {
        Failures { moved, ..failures(0, Some(Failure::Refused), registered) }
    }

    fn fails(text: &str) -> Option<Line> {
        Some(Line::Fails(text.to_owned()))
    }

    #[test]
    fn an_outage_is_told_at_once_then_each_minute_and_when_it_is_over() {
        let mut outages = Outages::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let not_found = Some(Failure::Status(404));
        assert_eq!(outages.wait(), None);
        assert_eq!(
            outages.line_for(failures(1, not_found, false), at(0)),
            fails("visits are not registered: POST http://counter/: answer 404 (1 visit)")
        );
        assert!(outages.wait().is_some());
        // Reports of other workers, and later ones.
        for second in 0..60 {
            let cause = Some(Failure::Refused);
            assert_eq!(outages.line_for(failures(10, cause, false), at(second)), None);
            assert_eq!(outages.lines_at(at(second)), []);
        }
        // Visits that are not tried, by the circuit breaker, have no cause.
        assert_eq!(
            outages.line_for(failures(5, None, true), at(60)),
            fails(
                "visits are still not registered: POST http://counter/: connection refused \
                 (605 visits since the last line, 606 in all)"
            )
        );
        assert_eq!(outages.lines_at(at(69)), []);
        assert_eq!(
            outages.lines_at(at(70)),
            [Line::Over(String::from(
                "visits are registered again: POST http://counter/ (606 visits failed within 60 s)"
            ))]
        );
        assert_eq!((outages.lines_at(at(71)), outages.wait()), (vec![], None));
    }

    #[test]
    fn visits_that_go_to_other_counters_are_told_and_the_server_stays_ready() {
        let mut outages = Outages::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let line =
            "visits go to other counters: POST http://counter/: connection refused (1 visit)";
        assert_eq!(outages.line_for(moved(1, false), at(0)), fails(line));
        assert_eq!(outages.line_for(moved(20, false), at(1)), None);
        let line = "visits still go to other counters: POST http://counter/: connection refused (22 \
                    visits since the last line, 23 in all)";
        assert_eq!(outages.line_for(moved(2, true), at(60)), fails(line));
        assert!(!outages.are_recent());
        let line = "visits go to this counter again: POST http://counter/ (23 visits went to others \
                    within 60 s)";
        assert_eq!(outages.lines_at(at(70)), [Line::Over(line.to_owned())]);
        // One that fails is told at once.
        assert!(outages.line_for(moved(1, false), at(80)).is_some());
        let failed = failures(1, Some(Failure::TimedOut), false);
        let beside = Failures { others: true, ..failed.clone() };
        let line = "visits are not registered: POST http://counter/: timed out (1 visit; 1 visit \
                    went to other counters)";
        assert_eq!(outages.line_for(beside, at(81)), fails(line));
        assert!(!outages.are_recent(), "another counter registers visits");
        assert_eq!(outages.line_for(failed, at(82)), None);
        assert!(outages.are_recent());
    }

    #[test]
    fn the_outage_of_a_counter_ends_with_its_last_route() {
        let mut outages = Outages::default();
        let told = outages.line_for(failures(2, Some(Failure::TimedOut), false), Instant::now());
        assert!(told.is_some());
        assert_eq!(outages.remove_unused(BTreeSet::from([URL.to_owned()])), []);
        let line = "visits no longer go to http://counter/, where 2 visits failed";
        assert_eq!(outages.remove_unused(BTreeSet::new()), [Line::Over(line.to_owned())]);
        assert_eq!((outages.remove_unused(BTreeSet::new()), outages.wait()), (vec![], None));
        // A visit that was under way during the reload.
        let failed = failures(1, Some(Failure::TimedOut), false);
        assert_eq!(outages.line_for(failed.clone(), Instant::now()), None);
        assert!(!outages.are_recent() && outages.wait().is_none());
        assert_eq!(outages.remove_unused(BTreeSet::from([URL.to_owned()])), []);
        assert!(outages.line_for(failed, Instant::now()).is_some() && outages.are_recent());
    }

    #[test]
    fn an_outage_is_not_over_without_a_registered_visit() {
        let mut outages = Outages::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(3600);
        assert!(outages.line_for(failures(1, Some(Failure::TimedOut), false), start).is_some());
        assert_eq!(outages.lines_at(later), []);
        // A success ends nothing at once, and means nothing without an outage.
        assert_eq!(outages.line_for(failures(0, None, true), later), None);
        assert_eq!(outages.lines_at(later).len(), 1);
        assert_eq!(outages.line_for(failures(0, None, true), later), None);
    }
}
