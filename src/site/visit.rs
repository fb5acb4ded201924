//! Visits: the counter that registers them, how each ends, and reports of those that fail.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

use super::routes::VisitRoute;
use crate::{
    access_log::Outcome,
    metrics::{Failure, WorkerMetrics},
    runtime::clock::{self, Moment, Stamp},
    upstream::{Call, CallBytes, CallError, DialError, NotBegun, Upstream},
};

/// What counts as a visit that was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accept {
    /// An answer that says so: a status from 200 to 299.
    #[value(name = "2xx")]
    Success,
    /// Any answer at all.
    Any,
}

impl Accept {
    fn is_met(self, status: u16) -> bool {
        match self {
            Self::Success => (200..300).contains(&status),
            Self::Any => true,
        }
    }
}

/// What became of the visits of one counter since the last report, while some failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// The counter, by its URL.
    pub counter: Arc<str>,
    /// Visits that were not registered.
    pub failed: u64,
    /// Why the last of them failed that was tried.
    pub cause: Option<Failure>,
    /// Whether the last visit was registered.
    pub registered: bool,
}

/// One worker's side of one counter's URL: the call that registers a visit there, and how its visits end.
pub struct Counter {
    upstream: Rc<Upstream>,
    call: CallBytes,
    watch: RefCell<Watch>,
}

impl Counter {
    /// The counter at `url`, where `call` registers a visit.
    pub(super) fn new(upstream: Rc<Upstream>, call: Bytes, url: Arc<str>) -> Self {
        Self { upstream, call: Rc::new(call), watch: RefCell::new(Watch::new(url)) }
    }

    /// Whether it is this one. The URL does not tell, since it is shown without its secrets.
    pub(super) fn is(&self, upstream: &Rc<Upstream>, call: &Bytes) -> bool {
        Rc::ptr_eq(&self.upstream, upstream) && *self.call == *call
    }

    /// Notes how a visit ended; returns a report if one is due.
    pub(super) fn note(&self, outcome: Result<(), Failure>) -> Option<Failures> {
        let mut watch = self.watch.borrow_mut();
        match outcome {
            Ok(()) if !watch.failing => None,
            Ok(()) => {
                watch.failures.registered = true;
                None
            }
            Err(failure) => {
                watch.failed(failure);
                watch.take(clock::now())
            }
        }
    }

    /// The report of earlier visits, if one is due.
    pub(super) fn report(&self, now: Moment) -> Option<Failures> {
        self.watch.borrow_mut().take(now)
    }
}

/// Watches the visits of one counter, and reports those that fail: the first at once, others once in each
/// [`REPORT_INTERVAL`].
struct Watch {
    failures: Failures,
    /// Whether there is something to report, or the last report was of failures.
    failing: bool,
    report_after: Moment,
}

/// How often a worker reports failing visits.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

impl Watch {
    fn new(counter: Arc<str>) -> Self {
        let failures = Failures { counter, failed: 0, cause: None, registered: true };
        Self { failures, failing: false, report_after: clock::now() }
    }

    fn failed(&mut self, cause: Failure) {
        self.failing = true;
        self.failures.failed += 1;
        self.failures.registered = false;
        if cause != Failure::NotTried {
            self.failures.cause = Some(cause);
        }
    }

    /// The report, if one is due.
    fn take(&mut self, now: Moment) -> Option<Failures> {
        if !self.failing || now < self.report_after {
            return None;
        }
        self.report_after = now.after(REPORT_INTERVAL);
        // The last report says that visits are registered again.
        self.failing = !self.failures.registered;
        let report = self.failures.clone();
        self.failures.failed = 0;
        (report.failed > 0 || report.registered).then_some(report)
    }
}

/// A call holds its route, which the visit needs when it ends, and through it the upstream.
impl AsRef<Upstream> for Rc<VisitRoute> {
    fn as_ref(&self) -> &Upstream {
        &self.counter.upstream
    }
}

/// A visit that is being registered. It is abandoned when it is dropped before its outcome is known.
///
/// It holds its route for as long as it needs it: a route that was replaced is freed with its last visit.
pub struct Registration {
    call: Call<Rc<VisitRoute>>,
    began: Stamp,
    /// Whether it was registered, once that is known.
    ended: Option<Result<(), Failure>>,
}

impl Registration {
    /// Begins to register a visit of `route`.
    ///
    /// # Errors
    /// When its call cannot begin.
    pub(super) fn begin(route: &Rc<VisitRoute>) -> Result<Self, NotBegun> {
        let Counter { upstream, call, .. } = &*route.counter;
        let call = upstream.call(call, Rc::clone(route))?;
        Ok(Self { call, began: Stamp::new(upstream.last_event()), ended: None })
    }

    pub(super) fn route(&self) -> &Rc<VisitRoute> {
        self.call.holder()
    }

    /// Whether the visit is registered, or why not, once that is known.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let outcome = ready!(self.call.poll(context));
        assert!(self.ended.is_none(), "a visit ends once");
        let now = match outcome {
            // The clock was read when the answer came, a moment ago.
            Ok(_) => self.route().counter.upstream.last_event(),
            Err(_) => clock::micros(),
        };
        let metrics = self.metrics();
        metrics.visit_durations.add(self.began.micros_until(now));
        let outcome = match outcome {
            Ok(status) if self.route().accept.is_met(status) => {
                metrics.welcomed.increment();
                Ok(())
            }
            outcome => {
                let failure = outcome.map_or_else(failure, Failure::Status);
                metrics.err(failure);
                Err(failure)
            }
        };
        self.ended = Some(outcome);
        Poll::Ready(outcome)
    }

    /// What became of the visit so far.
    pub(super) fn outcome(&self) -> Outcome {
        match self.ended {
            None => Outcome::Abandoned,
            Some(Ok(())) => Outcome::Welcomed,
            Some(Err(failure)) => Outcome::Erred(failure),
        }
    }

    fn metrics(&self) -> &WorkerMetrics {
        self.call.metrics()
    }
}

fn failure(error: CallError) -> Failure {
    match error {
        CallError::NoConnection(DialError::Refused) => Failure::Refused,
        CallError::NoConnection(DialError::TimedOut) => Failure::ConnectTimedOut,
        CallError::NoConnection(DialError::NoAddress) => Failure::NoAddress,
        CallError::NoConnection(DialError::Other) => Failure::NoConnection,
        CallError::TimedOut => Failure::TimedOut,
        CallError::Broken => Failure::Broken,
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.metrics().abandoned.increment();
        }
    }
}
