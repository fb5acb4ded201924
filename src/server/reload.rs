//! SIGHUP: the settings are read again, from the same sources as at the start, and take effect at once where that is
//! possible.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::{
    AccessLog, AdminListener, BundledCounter, Run, SiteWorkers, counter::own_limits, site::rules,
};
use crate::{
    config::{Config, ConfigError, Renewed, Settled, VisitsConfig, renew},
    log,
    metrics::ReloadMetrics,
    runtime::clock,
};

/// How long a reload waits for the workers to apply the settings. A worker that hangs is left to the watchdog.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// The parts of a running server that settings can change.
pub(super) struct Running<'a> {
    pub(super) run: &'a Run,
    pub(super) site: &'a SiteWorkers,
    pub(super) bundled: Option<&'a BundledCounter>,
    pub(super) admin: Option<&'a AdminListener>,
    pub(super) access_log: Option<&'a AccessLog>,
}

/// The settings of a running server, and how they are read again.
pub(super) struct Reloader<'a, R> {
    running: RefCell<Settled>,
    read: R,
    metrics: Arc<ReloadMetrics>,
    parts: Running<'a>,
}

impl<'a, R> Reloader<'a, R>
where
    R: Fn() -> Result<Settled, ConfigError>,
{
    /// For a server that was started with these settings.
    pub(super) fn new(
        started: Settled,
        read: R,
        metrics: Arc<ReloadMetrics>,
        parts: Running<'a>,
    ) -> Self {
        Self { running: RefCell::new(started), read, metrics, parts }
    }

    /// The current drain time-out.
    pub(super) fn drain_timeout(&self) -> Duration {
        self.running.borrow().config.limits.drain_timeout
    }

    /// Reads all settings and applies those that need no restart; if one is wrong, none changes. The result, for the
    /// service manager. The access log is opened anew in any case: its file may have been renamed.
    pub(super) fn reload(&self) -> String {
        self.parts.access_log.inspect(|log| log.reopen());
        let read = (self.read)().map_err(|error| error.to_string());
        let applied = read.and_then(|read| {
            let know = |visits: &VisitsConfig| self.parts.site.know(visits);
            let mut renewed = renew(&self.running.borrow(), read, know);
            self.apply(&mut renewed.settled.config)?;
            Ok(renewed)
        });
        match applied {
            Ok(renewed) => {
                // Before the log line: after the line, the metric must be up to date.
                self.metrics.succeeded(clock::unix_seconds());
                self.tell(&renewed);
                self.running.replace(renewed.settled);
                String::from("settings and pages were read anew")
            }
            Err(reason) => {
                self.metrics.failed();
                let line = format!("the settings stay as they were: {reason}");
                tracing::error!("SIGHUP: {line}");
                line
            }
        }
    }

    fn tell(&self, renewed: &Renewed) {
        let config = &renewed.settled.config;
        // These lines are logged if either the old level or the new one includes them.
        let level = self.running.borrow().config.log_level.max(config.log_level);
        log::set_level(level);
        renewed.settled.notes.iter().for_each(|note| tracing::warn!("SIGHUP: {note}"));
        renewed.restarts.iter().for_each(|line| tracing::warn!("SIGHUP: {line}"));
        tracing::info!("{}", summary(&renewed.changes));
        log::set_level(config.log_level);
    }

    /// Makes all threads apply these settings, and takes the contents out of them. On an error nothing has changed.
    fn apply(&self, config: &mut Config) -> Result<(), String> {
        let Running { run, site, bundled, admin, .. } = self.parts;
        let contents = std::mem::take(&mut config.contents);
        let batch_max = config.limits.counter_batch_max;
        site.set_routes(&config.routes, contents, rules(config), batch_max)
            .map_err(|error| error.to_string())?;
        // Before the workers may open more connections to it.
        if let Some(bundled) = bundled {
            bundled.set_own_limits(own_limits(config));
        }
        site.set_limits(&config.limits);
        if let Some(admin) = admin {
            admin.set_hosts(config.admin_hosts.clone());
        }
        run.set_needs_counter(config.ready_needs_counter);
        self.wait_until_applied();
        run.forget_outages(site.urls(&config.routes));
        Ok(())
    }

    /// Waits until all threads have applied the settings, so that they are in effect when the log line says so.
    fn wait_until_applied(&self) {
        let Running { site, bundled, admin, .. } = self.parts;
        let (confirm, confirmed) = mpsc::channel();
        site.confirm(&confirm);
        bundled.iter().for_each(|bundled| bundled.confirm(&confirm));
        admin.iter().for_each(|admin| admin.confirm(&confirm));
        drop(confirm);
        let end = Instant::now() + APPLY_TIMEOUT;
        loop {
            match confirmed.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                // The last thread has confirmed.
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!(
                        "SIGHUP: some threads are busy; they apply the settings as soon as they are not"
                    );
                    return;
                }
            }
        }
    }
}

/// What has changed, as one line.
fn summary(changes: &[String]) -> String {
    const CHANGES_MAX: usize = 20;
    let mut line = String::from("SIGHUP: settings and pages were read anew: ");
    match changes {
        [] => line.push_str("no setting has changed"),
        _ => line.push_str(&changes[..changes.len().min(CHANGES_MAX)].join("; ")),
    }
    if let Some(more) = changes.len().checked_sub(CHANGES_MAX).filter(|more| *more > 0) {
        line.push_str(&format!("; and {more} more"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(changes: usize, end: &str) {
        let changes: Vec<_> =
            (1..=changes).map(|number| format!("route /{number} is new")).collect();
        let line = summary(&changes);
        assert!(line.starts_with("SIGHUP: settings and pages were read anew: "), "{line}");
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn one_line_tells_the_changes() {
        check(0, ": no setting has changed");
        check(1, ": route /1 is new");
        check(2, ": route /1 is new; route /2 is new");
        check(20, "; route /20 is new");
        check(1000, "; route /20 is new; and 980 more");
    }
}
