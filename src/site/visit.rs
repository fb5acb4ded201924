//! Visits on the way to their books: the counter that registers them, how each ends, and what is told of
//! those that fail.

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
    metrics::{Failure, WorkerMetrics},
    runtime::clock::{self, Moment},
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

/// What became of the visits of one counter since the site last told of it, while some failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// The counter, by its URL.
    pub counter: Arc<str>,
    /// Visits that were not registered, and why the last was not.
    pub failed: u64,
    /// Why the last of them failed; one that was not tried says nothing new.
    pub cause: Option<Failure>,
    /// Whether the last visit was registered.
    pub registered: bool,
}

/// One worker's side of one counter's URL: the call that registers a visit there, and how its visits fare.
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

    /// Whether it is this one. (URLs are shown without their secrets, so they do not tell.)
    pub(super) fn is(&self, upstream: &Rc<Upstream>, call: &Bytes) -> bool {
        Rc::ptr_eq(&self.upstream, upstream) && *self.call == *call
    }

    /// Notes how a visit ended; what is to be told of it.
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

    /// What is to be told now of visits that ended before.
    pub(super) fn news(&self, now: Moment) -> Option<Failures> {
        self.watch.borrow_mut().take(now)
    }
}

/// Watches the visits of one counter, and tells of those that fail: of the first at once, of others once in
/// each [`TELL_INTERVAL`].
struct Watch {
    failures: Failures,
    /// Whether there is something to tell, or the last that was told was a failure.
    failing: bool,
    tell_after: Moment,
}

/// How often a worker tells of failing visits.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

impl Watch {
    fn new(counter: Arc<str>) -> Self {
        let failures = Failures { counter, failed: 0, cause: None, registered: true };
        Self { failures, failing: false, tell_after: clock::now() }
    }

    fn failed(&mut self, cause: Failure) {
        self.failing = true;
        self.failures.failed += 1;
        self.failures.registered = false;
        if cause != Failure::NotTried {
            self.failures.cause = Some(cause);
        }
    }

    /// What is to be told now.
    fn take(&mut self, now: Moment) -> Option<Failures> {
        if !self.failing || now < self.tell_after {
            return None;
        }
        self.tell_after = now.after(TELL_INTERVAL);
        // What is told last is that visits are registered again.
        self.failing = !self.failures.registered;
        let told = self.failures.clone();
        self.failures.failed = 0;
        (told.failed > 0 || told.registered).then_some(told)
    }
}

/// A call holds its route, which the visit needs when it ends, and through it the upstream.
impl AsRef<Upstream> for Rc<VisitRoute> {
    fn as_ref(&self) -> &Upstream {
        &self.counter.upstream
    }
}

/// A visit on the way to its book. Dropped before its outcome is known, it is abandoned.
///
/// It holds its route for as long as it needs it: routes that are replaced go when their last visit has.
pub struct Registration {
    call: Call<Rc<VisitRoute>>,
    ended: bool,
}

impl Registration {
    /// Begins to register a visit of `route`.
    ///
    /// # Errors
    /// When its call cannot begin.
    pub(super) fn begin(route: &Rc<VisitRoute>) -> Result<Self, NotBegun> {
        let Counter { upstream, call, .. } = &*route.counter;
        upstream.call(call, Rc::clone(route)).map(|call| Self { call, ended: false })
    }

    pub(super) fn route(&self) -> &Rc<VisitRoute> {
        self.call.holder()
    }

    /// Whether the visit is registered or why not, once that is known.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let outcome = ready!(self.call.poll(context));
        assert!(!std::mem::replace(&mut self.ended, true), "a visit ends once");
        let metrics = self.metrics();
        Poll::Ready(match outcome {
            Ok(status) if self.route().accept.is_met(status) => {
                metrics.welcomed.increment();
                Ok(())
            }
            outcome => {
                let failure = outcome.map_or_else(failure, Failure::Status);
                metrics.err(failure);
                Err(failure)
            }
        })
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
        if !self.ended {
            self.metrics().abandoned.increment();
        }
    }
}
