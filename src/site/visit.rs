//! Visits: the counter that registers them, how each ends, and reports of those that fail.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    number::VisitNumber,
    routes::{VisitCounter, VisitRoute},
    spread::{Counters, Places},
    trace::TraceFields,
};
use crate::{
    access_log::Outcome,
    metrics::{Failure, WorkerMetrics},
    runtime::clock::{self, Moment, Stamp},
    upstream::{
        Batcher, Batching, Call, CallBytes, CallError, Content, DialError, NotBegun, Upstream,
    },
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
    /// Visits that could not be sent to it, and went to another counter.
    pub moved: u64,
    /// Why the last of both failed that was tried.
    pub cause: Option<Failure>,
    /// Whether the last visit was registered.
    pub registered: bool,
    /// Whether another counter of the route registered visits when the last one failed.
    pub others: bool,
}

/// One worker's side of one counter's URL: the call that registers a visit there, and how its visits end.
pub struct Counter {
    pub(super) upstream: Rc<Upstream>,
    call: CallBytes,
    batching: Option<(Batching, Batcher)>,
    watch: RefCell<Watch>,
}

impl Counter {
    /// A counter whose side of the worker's upstreams is this one. `before` is the same one, called otherwise: what was
    /// reported of it goes on.
    pub(super) fn new(
        upstream: Rc<Upstream>,
        counter: &VisitCounter,
        before: Option<&Self>,
    ) -> Self {
        let call = Rc::new(counter.call.clone());
        let batching = counter.batching.map(|it| (it, upstream.batcher(&call, it)));
        let mut watch = Watch::new(Arc::clone(&counter.url));
        if before.is_some_and(|before| !before.registers()) {
            (watch.failing, watch.failures.registered) = (true, false);
        }
        Self { upstream, call, batching, watch: RefCell::new(watch) }
    }

    /// Begins the call of a visit. One that comes from another counter has the deadline of `since`, when it began there.
    fn call(
        &self,
        visit: Visit,
        trace: Option<&TraceFields>,
        since: Option<Moment>,
    ) -> Result<Call<Visit>, NotBegun> {
        let (request, content) = (self.request(trace), visit.content());
        let batcher = self.batching.as_ref().map(|(_, batcher)| batcher);
        self.upstream.call(&request, content, since, batcher, visit)
    }

    /// What a call sends: the trace of its visit too, if it has one.
    fn request(&self, trace: Option<&TraceFields>) -> CallBytes {
        match trace {
            Some(trace) => trace.add_to(&self.call),
            None => Rc::clone(&self.call),
        }
    }

    /// Whether it is this one. The URL does not tell, since it is shown without its secrets.
    pub(super) fn is(&self, upstream: &Rc<Upstream>, counter: &VisitCounter) -> bool {
        let batching = self.batching.as_ref().map(|(batching, _)| *batching);
        Rc::ptr_eq(&self.upstream, upstream)
            && *self.call == counter.call
            && batching == counter.batching
    }

    /// Whether it is the one of this URL, however it is called.
    pub(super) fn is_at(&self, upstream: &Rc<Upstream>, url: &str) -> bool {
        Rc::ptr_eq(&self.upstream, upstream) && *self.watch.borrow().failures.counter == *url
    }

    /// Notes how a visit ended, and whether other counters register visits; returns a report if one is due.
    pub(super) fn note(&self, outcome: Result<(), Failure>, others: bool) -> Option<Failures> {
        let mut watch = self.watch.borrow_mut();
        match outcome {
            Ok(()) if !watch.failing => None,
            Ok(()) => {
                watch.failures.registered = true;
                None
            }
            Err(failure) => {
                watch.failed(failure, others);
                watch.take(clock::now())
            }
        }
    }

    /// Notes that a visit could not be sent here, and went to another counter.
    fn note_moved(&self, cause: Failure) {
        self.upstream.counts().moved.increment();
        self.watch.borrow_mut().moved(cause);
    }

    /// It has no address any more, so that no later visit could end what was reported of it.
    pub(super) fn gone(&self) {
        self.watch.borrow_mut().failures.registered = true;
    }

    /// Whether the last visit was registered.
    pub(super) fn registers(&self) -> bool {
        self.watch.borrow().failures.registered
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
        let (failed, moved, cause) = (0, 0, None);
        let failures = Failures { counter, failed, moved, cause, registered: true, others: false };
        Self { failures, failing: false, report_after: clock::now() }
    }

    fn failed(&mut self, cause: Failure, others: bool) {
        self.failing = true;
        self.failures.failed += 1;
        (self.failures.registered, self.failures.others) = (false, others);
        if cause != Failure::NotTried {
            self.failures.cause = Some(cause);
        }
    }

    fn moved(&mut self, cause: Failure) {
        self.failing = true;
        self.failures.moved += 1;
        self.failures.registered = false;
        self.failures.cause = Some(cause);
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
        (self.failures.failed, self.failures.moved) = (0, 0);
        (report.failed + report.moved > 0 || report.registered).then_some(report)
    }
}

/// What a call holds of its visit: the route, which the visit needs when it ends, and the counter that it is at. Together
/// they lead to the upstream.
struct Visit {
    route: Rc<VisitRoute>,
    began: Cell<Stamp>,
    /// The counters that it was sent to or could not be: none of them gets it again.
    tried: Places,
    /// The place of its counter among those of the route.
    place: u8,
    outcome: Cell<Outcome>,
}

impl Visit {
    fn new(route: &Rc<VisitRoute>, tried: Places, place: u8) -> Self {
        let (began, outcome) = (Cell::default(), Cell::new(Outcome::ABANDONED));
        Self { route: Rc::clone(route), began, tried, place, outcome }
    }

    /// What becomes of the content of the counter's answer.
    fn content(&self) -> Content {
        match self.route.answers.show_number() {
            true => Content::Kept,
            false => Content::Discarded,
        }
    }

    fn counter(&self) -> &Counter {
        self.route.counters.get(self.place)
    }
}

impl AsRef<Upstream> for Visit {
    fn as_ref(&self) -> &Upstream {
        &self.counter().upstream
    }
}

/// A visit that is being registered. It is abandoned when it is dropped before its outcome is known.
///
/// It holds its route for as long as it needs it: a route that was replaced is freed with its last visit.
pub struct Registration {
    call: Call<Visit>,
}

impl Registration {
    /// Begins to register a visit of `route`.
    ///
    /// # Errors
    /// When its call cannot begin.
    pub(super) fn begin(
        route: &Rc<VisitRoute>,
        trace: Option<&TraceFields>,
    ) -> Result<Self, NotBegun> {
        let call = match &route.counters {
            Counters::One(counter) => {
                counter.call(Visit::new(route, Places::default(), 0), trace, None)?
            }
            Counters::Several(several) => several
                .begin(Places::default(), |counter, tried, place| {
                    counter.call(Visit::new(route, tried, place), trace, None)
                })?,
        };
        let visit = call.holder();
        visit.began.set(Stamp::new(visit.counter().upstream.last_event()));
        Ok(Self { call })
    }

    /// Begins the call of a visit again, at a counter that was not tried. Only for a visit of which its counter was sent
    /// nothing, since any byte may have registered it. Its deadline stays. Whether there is such a counter.
    fn move_on(&mut self, error: DialError) -> bool {
        let visit = self.call.holder();
        let Visit { route, began, tried, place, .. } = visit;
        let Counters::Several(several) = &route.counters else { return false };
        // The visit does not keep its trace, but its call does.
        let trace = TraceFields::of(&self.call.request(), &visit.counter().call);
        let waited = Duration::from_micros(began.get().micros_until(clock::micros()));
        let since = clock::now().before(waited);
        let call = several.begin(*tried, |counter, tried, place| {
            let visit = Visit { began: began.clone(), ..Visit::new(route, tried, place) };
            counter.call(visit, trace.as_ref(), Some(since))
        });
        let Ok(call) = call else { return false };
        route.counters.get(*place).note_moved(failure(CallError::NoConnection(error)));
        // The call that is dropped has ended.
        self.call = call;
        true
    }

    pub(super) fn route(&self) -> &Rc<VisitRoute> {
        &self.call.holder().route
    }

    /// Notes how it ended; returns a report of its counter's visits if one is due.
    pub(super) fn note(&self, outcome: Result<(), Failure>) -> Option<Failures> {
        let Visit { route, place, .. } = self.call.holder();
        route.counters.note(*place, outcome)
    }

    /// Whether the visit is registered, or why not, once that is known. If it is, and the route's page shows it, with
    /// its number.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<VisitNumber>, Failure>> {
        let outcome = loop {
            match ready!(self.call.poll(context)) {
                Err(CallError::NoConnection(error)) if self.move_on(error) => {}
                outcome => break outcome,
            }
        };
        let visit = self.call.holder();
        assert!(visit.outcome.get() == Outcome::ABANDONED, "a visit ends once");
        let now = match outcome {
            // The clock was read when the answer came, a moment ago.
            Ok(_) => visit.counter().upstream.last_event(),
            Err(_) => clock::micros(),
        };
        let metrics = self.metrics();
        metrics.visit_durations.add(visit.began.get().micros_until(now));
        let outcome = match outcome {
            Ok(status) if visit.route.accept.is_met(status) => {
                metrics.welcomed.increment();
                Ok(self.number(status))
            }
            outcome => {
                let failure = outcome.map_or_else(failure, Failure::Status);
                metrics.err(failure);
                Err(failure)
            }
        };
        self.call.holder().outcome.set(match outcome {
            Ok(_) => Outcome::WELCOMED,
            Err(failure) => Outcome::erred(failure),
        });
        Poll::Ready(outcome)
    }

    /// What became of the visit so far.
    pub(super) fn outcome(&self) -> Outcome {
        self.call.holder().outcome.get()
    }

    /// The number of a visit that is registered, if the counter's answer is one. An answer that is not 2xx says
    /// something else, even where any answer is [enough](Accept::Any).
    fn number(&self, status: u16) -> Option<VisitNumber> {
        let content = self.call.take_content().filter(|_| Accept::Success.is_met(status))?;
        content.whole().and_then(VisitNumber::parse)
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
        if self.outcome() == Outcome::ABANDONED {
            self.metrics().abandoned.increment();
        }
    }
}
