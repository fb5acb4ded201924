//! The service manager that may have started this process: what it is told (sd_notify(3)), and the
//! watchdog by which it finds out that a worker hangs (sd_watchdog_enabled(3)).
//!
//! Where there is none, nothing is told.

use std::{
    io,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

/// All stands: whoever waits for this service can be started, and the predecessor stopped.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The server is about to stop, whoever has asked for it.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells that something is read anew while `reload` does it, and what came of it, as `reload` says.
pub(super) fn reloading(reload: impl FnOnce() -> String) {
    // systemd tells its own request from an earlier one by the time.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
    // Of several lines, the second would be another notification.
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

/// Tells the manager that all workers live, for as long as they answer.
pub(super) struct Watchdog {
    /// How long after all have answered they are asked again; `None` when nobody wants to know.
    pause: Option<Duration>,
    workers: usize,
    state: Round,
}

enum Round {
    /// They will be asked then.
    Resting(Instant),
    /// So many have not answered yet.
    Asked(usize),
}

impl Watchdog {
    /// A watchdog over `workers`, if the manager wants one.
    pub(super) fn new(workers: usize) -> Self {
        // The manager gives up after the period it tells. A quarter of it leaves time to answer.
        let pause = sd_notify::watchdog_enabled().map(|period| period / 4);
        Self { pause, workers, state: Round::Resting(Instant::now()) }
    }

    /// How long until the workers are to be asked; `None` when not before they have answered.
    pub(super) fn wait(&self) -> Option<Duration> {
        match (self.pause, &self.state) {
            (Some(_), Round::Resting(until)) => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            _ => None,
        }
    }

    /// They were asked.
    pub(super) fn asked(&mut self) {
        self.state = Round::Asked(self.workers);
    }

    /// One has answered. Once all have, the manager hears of it.
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
        // Of an answer that nobody asked for, nothing is made.
        watchdog.answered();
        watchdog.asked();
        watchdog.answered();
        assert_eq!(watchdog.wait(), None);
        watchdog.answered();
        assert!(watchdog.wait().is_some_and(|wait| wait > Duration::from_secs(3000)));
    }

    #[test]
    fn nobody_is_asked_when_nobody_wants_to_know() {
        let watchdog = Watchdog { pause: None, workers: 2, state: Round::Resting(Instant::now()) };
        assert_eq!(watchdog.wait(), None);
    }
}
