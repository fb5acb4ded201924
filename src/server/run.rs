//! The events of a running server, and how it waits for them: signals, and reports of its workers.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use signal_hook::{
    consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    iterator::Signals,
};

use super::{
    admin::Readiness,
    manager::{self, Watchdog},
    outages::Outages,
};
use crate::{
    plural::plural,
    runtime::{driver::Driver, task},
    site::Failures,
    worker::{Report, WorkerError},
};

/// How long a worker may take to stop: it finishes only what it is doing.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Event {
    Signal(i32),
    Report(Group, Report),
    /// Visits are not registered, or are registered again.
    Failures(Failures),
    /// Another counter writes in place of the bundled one.
    Fenced,
    /// The counter's store is closed.
    StoreClosed,
}

/// What ends a running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Signal(i32),
    /// Another counter has taken over the shard of the bundled one.
    Fenced,
}

/// A group of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Site,
    Counter,
    Admin,
}

/// A running server: its events and its state.
pub(super) struct Run {
    sender: EventSender,
    events: mpsc::Receiver<Event>,
    pub(super) started: Instant,
    pub(super) readiness: Arc<Readiness>,
    needs_counter: Cell<bool>,
    /// SIGHUP came during the start.
    reload_wanted: Cell<bool>,
    /// A SIGHUP is in the queue. Further ones are dropped: one reload answers them all, and they must not delay a
    /// signal to stop.
    reload_queued: Arc<AtomicBool>,
    outages: RefCell<Outages>,
}

#[derive(Clone)]
struct EventSender(mpsc::Sender<Event>);

impl EventSender {
    fn send(&self, event: Event) {
        // Fails only when the process is about to end.
        let _ = self.0.send(event);
    }
}

impl Run {
    /// Catches signals from now on. `needs_counter` makes the server not ready while visits are not registered.
    pub(super) fn start(needs_counter: bool) -> io::Result<Self> {
        let run = Self::new(needs_counter);
        run.catch_signals()?;
        Ok(run)
    }

    fn new(needs_counter: bool) -> Self {
        let (sender, events) = mpsc::channel();
        let outages = RefCell::default();
        Self {
            sender: EventSender(sender),
            events,
            started: Instant::now(),
            readiness: Arc::default(),
            needs_counter: Cell::new(needs_counter),
            reload_wanted: Cell::default(),
            reload_queued: Arc::default(),
            outages,
        }
    }

    fn catch_signals(&self) -> io::Result<()> {
        // SIGXFSZ: a write beyond the file-size limit then fails instead of ending the process.
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXFSZ])?;
        let report = self.signal_reporter();
        task::spawn_essential_thread(String::from("signals"), move || {
            signals.forever().filter(|signal| *signal != SIGXFSZ).for_each(report);
        })?;
        Ok(())
    }

    /// Reports signals.
    fn signal_reporter(&self) -> impl Fn(i32) + Send + 'static {
        let (events, reload_queued) = (self.sender.clone(), Arc::clone(&self.reload_queued));
        move |signal| {
            if signal != SIGHUP || !reload_queued.swap(true, Ordering::AcqRel) {
                events.send(Event::Signal(signal));
            }
        }
    }

    /// A SIGHUP was taken from the queue: a later one may be about settings that are not read yet.
    fn take_reload(&self) {
        self.reload_queued.store(false, Ordering::Release);
    }

    /// For the reports of the workers of a group.
    pub(super) fn reporter(&self, group: Group) -> impl Fn(Report) + Clone + Send + 'static {
        let events = self.sender.clone();
        move |report| events.send(Event::Report(group, report))
    }

    /// For the reports of the site's workers about visits that fail.
    pub(super) fn failure_reporter(&self) -> impl Fn(Failures) + Send + 'static {
        let events = self.sender.clone();
        move |failures| events.send(Event::Failures(failures))
    }

    /// For the report that another counter writes in place of the bundled one.
    pub(super) fn fence_reporter(&self) -> impl FnOnce() + Send + 'static {
        let events = self.sender.clone();
        move || events.send(Event::Fenced)
    }

    /// For the report that the counter's store is closed.
    pub(super) fn close_reporter(&self) -> impl FnOnce() + Send + 'static {
        let events = self.sender.clone();
        move || events.send(Event::StoreClosed)
    }

    /// Waits until `count` workers of a group are ready; their drivers.
    pub(super) fn wait_until_ready(
        &self,
        group: Group,
        count: usize,
    ) -> Result<Vec<Driver>, WorkerError> {
        let mut drivers = Vec::new();
        loop {
            match self.events.recv() {
                Ok(Event::Report(of, Report::Ready(driver))) if of == group => {
                    drivers.push(driver);
                    if drivers.len() == count {
                        return Ok(drivers);
                    }
                }
                Ok(Event::Report(_, Report::Failed(error))) => return Err(error),
                // The settings may have changed since they were read.
                Ok(Event::Signal(SIGHUP)) => {
                    self.take_reload();
                    self.reload_wanted.set(true);
                }
                // Nothing serves yet that would have to drain.
                Ok(Event::Signal(signal)) => std::process::exit(128 + signal),
                Ok(_) => {}
                Err(_) => unreachable!("this end holds a sender"),
            }
        }
    }

    /// Waits for what ends the server. Calls `reload` at each SIGHUP, and `ping` when all `workers` are to
    /// report that they still work.
    pub(super) fn wait_for_end(
        &self,
        workers: usize,
        ping: impl Fn(),
        reload: impl Fn() -> String,
    ) -> End {
        let mut watchdog = Watchdog::new(workers);
        if self.reload_wanted.take() {
            manager::reloading(&reload);
        }
        loop {
            let outage = self.outages.borrow().wait();
            let wait = watchdog.wait().into_iter().chain(outage).min();
            let event = match wait {
                Some(wait) => self.events.recv_timeout(wait),
                None => self.events.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(Event::Failures(failures)) => {
                    self.outages.borrow_mut().note(failures);
                    self.judge_counter();
                }
                Ok(Event::Signal(SIGHUP)) => {
                    self.take_reload();
                    manager::reloading(&reload);
                }
                Ok(Event::Signal(signal)) => return End::Signal(signal),
                Ok(Event::Fenced) => return End::Fenced,
                Ok(Event::Report(_, Report::Pong)) => watchdog.answered(),
                Ok(Event::Report(..) | Event::StoreClosed) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.outages.borrow_mut().check();
                    self.judge_counter();
                    if watchdog.wait().is_some_and(|wait| wait.is_zero()) {
                        watchdog.asked();
                        ping();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("this end holds a sender"),
            }
        }
    }

    /// Changes whether the server is ready while visits are not registered.
    pub(super) fn set_needs_counter(&self, needs_counter: bool) {
        self.needs_counter.set(needs_counter);
        self.judge_counter();
    }

    /// Forgets the outages of counters that are no longer in use.
    pub(super) fn forget_outages(&self, in_use: BTreeSet<String>) {
        self.outages.borrow_mut().retain(in_use);
        self.judge_counter();
    }

    fn judge_counter(&self) {
        let fails = self.needs_counter.get() && self.outages.borrow().are_recent();
        self.readiness.counter_fails.store(fails, Ordering::Release);
    }

    /// Waits until `count` workers of a group have drained, for at most `timeout`; the second signal, if one came. `late`
    /// is logged of those who take longer.
    pub(super) fn drain(
        &self,
        group: Group,
        count: usize,
        timeout: Duration,
        late: &str,
    ) -> Option<i32> {
        let end = Instant::now() + timeout;
        let mut drained = 0;
        while drained < count {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Report(of, Report::Drained)) if of == group => drained += 1,
                Ok(Event::Signal(SIGHUP)) => {
                    self.take_reload();
                    tracing::info!("SIGHUP: nothing is read anew, since the server stops");
                }
                Ok(Event::Signal(signal)) => {
                    tracing::warn!("{} again: ending at once", signal_name(signal));
                    return Some(signal);
                }
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("{late} ({timeout:?}); connections that are left are cut");
                    return None;
                }
            }
        }
        None
    }

    /// Waits until the counter's store is closed: at most until `end`, and at most for `grace` after a signal. Whether
    /// it is closed, and the signal, if one came.
    pub(super) fn wait_until_closed(&self, end: Instant, grace: Duration) -> (bool, Option<i32>) {
        let (mut end, mut cut) = (end, None);
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::StoreClosed) => return (true, cut),
                Ok(Event::Signal(signal)) if signal != SIGHUP && cut.is_none() => {
                    tracing::warn!("{} again: ending at once", signal_name(signal));
                    cut = Some(signal);
                    end = end.min(Instant::now() + grace);
                }
                Ok(_) => {}
                Err(_) => return (false, cut),
            }
        }
    }

    /// Waits until `count` workers of a group have stopped, at most for [`STOP_TIMEOUT`].
    pub(super) fn wait_until_stopped(&self, group: Group, count: usize) {
        let end = Instant::now() + STOP_TIMEOUT;
        let mut stopped = 0;
        while stopped < count {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Report(of, Report::Stopped)) if of == group => stopped += 1,
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!(
                        "{} still at work; the counts may miss visits",
                        plural(count - stopped, "worker")
                    );
                    return;
                }
            }
        }
    }
}

pub(super) fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGTERM => "SIGTERM",
        SIGINT => "SIGINT",
        _ => "a signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::{
        Committer, Job,
        store::{Counted, Operation, Outcome, Store},
    };

    /// A store whose commits report that they begin, and wait until they may end.
    struct Gated {
        begun: mpsc::Sender<()>,
        go_on: mpsc::Receiver<()>,
    }

    impl Store for Gated {
        fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
            self.begun.send(()).unwrap();
            let _ = self.go_on.recv();
            vec![Outcome::Total(1); batch.len()]
        }

        fn counted(&self) -> Counted {
            Counted::default()
        }
    }

    #[test]
    fn settings_that_change_during_the_start_are_read_again_after_it() {
        let run = Run::new(false);
        let ready = || Event::Report(Group::Site, Report::Ready(Driver::Epoll(String::new())));
        for event in [ready(), Event::Signal(SIGHUP), ready(), Event::Signal(SIGTERM)] {
            run.sender.send(event);
        }
        assert_eq!(run.wait_until_ready(Group::Site, 2).unwrap().len(), 2);
        let reloads = Cell::new(0);
        let reload = || {
            reloads.set(reloads.get() + 1);
            String::new()
        };
        assert_eq!(run.wait_for_end(2, || {}, reload), End::Signal(SIGTERM));
        assert_eq!(reloads.get(), 1);
        // Not once more.
        run.sender.send(Event::Signal(SIGTERM));
        assert_eq!(run.wait_for_end(2, || {}, reload), End::Signal(SIGTERM));
        assert_eq!(reloads.get(), 1);
    }

    #[test]
    fn many_sighups_do_not_delay_a_signal_to_stop() {
        let run = Run::new(false);
        let report = run.signal_reporter();
        (0..1000).for_each(|_| report(SIGHUP));
        let reloads = Cell::new(0);
        let reload = || {
            reloads.set(reloads.get() + 1);
            // SIGHUPs during a reload cause one more.
            if reloads.get() == 1 {
                (0..1000).for_each(|_| report(SIGHUP));
                report(SIGTERM);
            }
            String::new()
        };
        assert_eq!(run.wait_for_end(2, || {}, reload), End::Signal(SIGTERM));
        assert_eq!(reloads.get(), 2);
    }

    #[test]
    fn a_signal_ends_the_wait_for_a_store_that_hangs() {
        let run = Run::new(false);
        let (begun, committing) = mpsc::channel();
        let (release, go_on) = mpsc::channel();
        let (report, reported) = mpsc::channel();
        let report = Arc::new(move |outcomes| drop(report.send(outcomes)));
        let store = Box::new(Gated { begun, go_on });
        let committer =
            Committer::start(store, Arc::default(), || {}, run.close_reporter()).unwrap();
        committer.jobs().send(Job::Commit(vec![Operation::All], report)).unwrap();
        committing.recv().unwrap();
        committer.close();
        // So late that the test would hang if it waited for it.
        let end = Instant::now() + Duration::from_secs(3600);
        run.sender.send(Event::Signal(SIGHUP));
        run.sender.send(Event::Signal(SIGTERM));
        assert_eq!(run.wait_until_closed(end, Duration::ZERO), (false, Some(SIGTERM)));
        // Without a signal, after the end.
        assert_eq!(run.wait_until_closed(Instant::now(), Duration::ZERO), (false, None));
        drop(release);
        assert_eq!(run.wait_until_closed(end, Duration::ZERO), (true, None));
        assert_eq!(reported.recv(), Ok(vec![Outcome::Total(1)]));
    }
}
