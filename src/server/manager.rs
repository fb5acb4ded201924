//! Messages to the service manager (sd_notify(3)), and its watchdog, which detects a worker that hangs
//! (sd_watchdog_enabled(3)). Without a service manager nothing is sent.

use std::{
    io,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

/// The server is ready: services that depend on it can start, and its predecessor can stop.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The server is about to stop, for whatever reason.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Reports a reload while `reload` runs, and then its result.
pub(super) fn reloading(reload: impl FnOnce() -> String) {
    // By the time, systemd knows which of its requests this answers.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
    // A line break would begin another notification.
    let status = reload().replace('\n', " ");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

fn tell(state: &[NotifyState<'_>]) {
    warn_of(sd_notify::notify(state));
}

fn warn_of(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!("the service manager cannot be told ($NOTIFY_SOCKET): {error}");
    }
}

/// Tells the manager that all workers are alive, as long as they answer pings.
pub(super) struct Watchdog {
    /// Time between the last answer and the next pings; `None` without a watchdog.
    pause: Option<Duration>,
    workers: usize,
    state: Round,
}

enum Round {
    /// The next pings are sent at this time.
    Resting(Instant),
    /// This many workers have not answered yet.
    Asked(usize),
}

impl Watchdog {
    /// Watches this many workers, if the manager has a watchdog.
    pub(super) fn new(workers: usize) -> Self {
        // The manager acts after the whole period. A quarter of it leaves time to answer.
        let pause = sd_notify::watchdog_enabled().map(|period| period / 4);
        Self { pause, workers, state: Round::Resting(Instant::now()) }
    }

    /// Time until the next pings; `None` when they are not due before all have answered.
    pub(super) fn wait(&self) -> Option<Duration> {
        match (self.pause, &self.state) {
            (Some(_), Round::Resting(until)) => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            _ => None,
        }
    }

    /// Pings were sent.
    pub(super) fn asked(&mut self) {
        self.state = Round::Asked(self.workers);
    }

    /// A worker has answered. After the last one, the manager is notified.
    pub(super) fn answered(&mut self) {
        let Round::Asked(missing) = &mut self.state else { return };
        *missing -= 1;
        if let (0, Some(pause)) = (*missing, self.pause) {
            tell(&[NotifyState::Watchdog]);
            self.state = Round::Resting(Instant::now() + pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_must_answer_before_they_are_asked_again() {
        let pause = Some(Duration::from_secs(3600));
        let mut watchdog = Watchdog { pause, workers: 2, state: Round::Resting(Instant::now()) };
        assert!(watchdog.wait().is_some());
        // An answer without a ping is ignored.
        watchdog.answered();
        watchdog.asked();
        watchdog.answered();
        assert_eq!(watchdog.wait(), None);
        watchdog.answered();
        assert!(watchdog.wait().is_some_and(|wait| wait > Duration::from_secs(3000)));
    }

    #[test]
    fn no_pings_are_due_without_a_watchdog() {
        let watchdog = Watchdog { pause: None, workers: 2, state: Round::Resting(Instant::now()) };
        assert_eq!(watchdog.wait(), None);
    }
}
