//! Log lines about an access log that cannot be written, or not as fast as requests come: the first at once, then at
//! most one a minute of each kind.

use std::{
    io,
    time::{Duration, Instant},
};

use crate::plural::plural;

/// The least time between two lines of one kind.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Trouble {
    /// What is written to, for a person.
    output: String,
    /// When it was last said that writes fail, and whether that was said of the present failure.
    last_failure: Option<Instant>,
    is_reported: bool,
    /// Lines that were lost since it was last said that writes work.
    lost: u64,
    last_drop: Option<Instant>,
    /// Entries whose drop was told, of all that were dropped.
    dropped: u64,
}

impl Trouble {
    pub(super) fn new(output: String) -> Self {
        Self {
            output,
            last_failure: None,
            is_reported: false,
            lost: 0,
            last_drop: None,
            dropped: 0,
        }
    }

    /// A write has failed, and so many lines are lost.
    pub(super) fn failed(&mut self, error: &io::Error, lost: u64, now: Instant) {
        if let Some(line) = self.failure_line(error, lost, now) {
            tracing::error!("{line}");
        }
    }

    /// A write has succeeded.
    pub(super) fn over(&mut self) {
        if let Some(line) = self.end_line() {
            tracing::info!("{line}");
        }
    }

    /// So many entries were dropped since the start.
    pub(super) fn dropped(&mut self, dropped: u64, now: Instant) {
        if let Some(line) = self.drop_line(dropped, now) {
            tracing::warn!("{line}");
        }
    }

    fn failure_line(&mut self, error: &io::Error, lost: u64, now: Instant) -> Option<String> {
        self.lost += lost;
        if !is_due(self.last_failure, now) {
            return None;
        }
        self.last_failure = Some(now);
        self.is_reported = true;
        let (output, lost) = (&self.output, plural(self.lost, "line"));
        Some(format!("the access log cannot be written to {output}: {error}; {lost} lost so far"))
    }

    fn end_line(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.is_reported) {
            return None;
        }
        let lost = plural(std::mem::take(&mut self.lost), "line");
        Some(format!("the access log is written to {} again; {lost} lost", self.output))
    }

    fn drop_line(&mut self, dropped: u64, now: Instant) -> Option<String> {
        let more = dropped - self.dropped;
        if more == 0 || !is_due(self.last_drop, now) {
            return None;
        }
        self.last_drop = Some(now);
        self.dropped = dropped;
        let output = &self.output;
        Some(format!(
            "requests come faster than the access log can be written to {output}; not logged: {more}"
        ))
    }
}

fn is_due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= LINE_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    #[test]
    fn a_failure_is_told_once_a_minute_and_when_it_is_over() {
        let mut trouble = Trouble::new(String::from("/a"));
        let start = Instant::now();
        assert_eq!(trouble.end_line(), None);
        let line = trouble.failure_line(&full(), 2, start).unwrap();
        assert_eq!(
            line,
            "the access log cannot be written to /a: no storage space; 2 lines lost so far"
        );
        let second = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(trouble.failure_line(&full(), 3, second(1)), None);
        let line = trouble.failure_line(&full(), 1, second(60)).unwrap();
        assert!(line.ends_with("; 6 lines lost so far"), "{line}");
        let line = trouble.end_line().unwrap();
        assert_eq!(line, "the access log is written to /a again; 6 lines lost");
        assert_eq!(trouble.end_line(), None);
        // It comes and goes: nothing is said before the minute is over.
        assert_eq!(trouble.failure_line(&full(), 1, second(61)), None);
        assert_eq!(trouble.end_line(), None);
        let line = trouble.failure_line(&full(), 1, second(120)).unwrap();
        assert!(line.ends_with("; 2 lines lost so far"), "{line}");
    }

    #[test]
    fn drops_are_told_once_a_minute() {
        let mut trouble = Trouble::new(String::from("-"));
        let start = Instant::now();
        assert_eq!(trouble.drop_line(0, start), None);
        let line = trouble.drop_line(5, start).unwrap();
        assert!(line.ends_with("to -; not logged: 5"), "{line}");
        assert_eq!(trouble.drop_line(9, start + Duration::from_secs(59)), None);
        let line = trouble.drop_line(9, start + Duration::from_secs(60)).unwrap();
        assert!(line.ends_with("not logged: 4"), "{line}");
        assert_eq!(trouble.drop_line(9, start + Duration::from_secs(600)), None);
    }
}
