//! The site: which requests are visits, and what each request gets.
//!
//! Routes and pages of one worker. Knows the counter by its calls only, and the client not at all.

mod answers;
mod routes;
mod visit;

use std::{
    cell::RefCell,
    mem,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use self::{
    answers::Current,
    routes::{Place, Table},
};
pub use self::{
    answers::{Page, Pages},
    routes::{Route, RouteKind, RouteSet, Rules, VisitRoute, Visits},
    visit::{Accept, Failures, Registration},
};
use crate::{
    clock,
    connection::{Form, Outbox, Service},
    http::{
        render,
        request::{Method, Request},
    },
    observe::metrics::{Failure, WorkerMetrics},
    upstream::{NotBegun, Upstream, UpstreamLimits},
};

/// What the site is told while it serves.
#[derive(Debug)]
pub enum Word {
    /// Other routes, in place of all that there are. Visits under way end with their own route.
    Routes(Arc<RouteSet>),
    /// Other limits of all counters.
    Limits(UpstreamLimits),
    /// Where a counter is, by its place among the site's.
    Addresses(usize, Vec<SocketAddr>),
}

/// One worker's site.
pub struct Site {
    upstreams: Vec<Rc<Upstream>>,
    table: RefCell<Table>,
    metrics: Arc<WorkerMetrics>,
    /// Told of visits that fail.
    tell: Box<dyn Fn(Failures)>,
    not_found: RefCell<Current>,
    overloaded: RefCell<Current>,
    any_resource: RefCell<Current>,
}

/// A request that the site has taken.
pub enum Visit {
    /// A visit that is not registered yet.
    Admitted(Rc<VisitRoute>),
    /// A visit that is being registered.
    Underway(Registration),
    /// The counter fails: a visit that is not even tried to register.
    Failing(Rc<VisitRoute>),
    /// No room to register it.
    Overloaded,
    /// A route was asked what it takes.
    Options(Rc<VisitRoute>),
    /// A route does not take the method.
    NotAllowed(Rc<VisitRoute>),
    /// `OPTIONS *`.
    AnyResource,
    /// No route has the path.
    NotFound,
}

// Each client on the way of a visit has one.
const _: () = assert!(size_of::<Visit>() == 24);

impl Site {
    /// A site of these routes. Each route's counter is one of `upstreams`.
    pub fn new(
        upstreams: Vec<Rc<Upstream>>,
        routes: &RouteSet,
        metrics: Arc<WorkerMetrics>,
        tell: Box<dyn Fn(Failures)>,
    ) -> Self {
        let mut overloaded_fields = render::text_fields();
        overloaded_fields.push((header::RETRY_AFTER, HeaderValue::from_static("1")));
        overloaded_fields.push((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
        Self {
            table: RefCell::new(Table::new(routes, &upstreams, &Table::default())),
            upstreams,
            metrics,
            tell,
            not_found: RefCell::new(Current::text(
                StatusCode::NOT_FOUND,
                "there is no such page\n",
            )),
            overloaded: RefCell::new(Current::new(
                StatusCode::SERVICE_UNAVAILABLE,
                overloaded_fields,
                Bytes::from_static(b"too many visits at once, try again soon\n"),
            )),
            any_resource: RefCell::new(Current::new(StatusCode::OK, vec![], Bytes::new())),
        }
    }

    /// Notes how a visit of `route` ended.
    fn note(&self, route: &VisitRoute, outcome: Result<(), Failure>) {
        route.counter.note(outcome).into_iter().for_each(&self.tell);
    }

    /// Begins to register a visit.
    fn register(&self, route: Rc<VisitRoute>) -> Visit {
        self.metrics.started.increment();
        match Registration::begin(&route) {
            Ok(registration) => Visit::Underway(registration),
            Err(NotBegun::Overloaded) => {
                self.metrics.refused.increment();
                Visit::Overloaded
            }
            Err(NotBegun::Failing) => {
                self.metrics.err(Failure::NotTried);
                self.note(&route, Err(Failure::NotTried));
                Visit::Failing(route)
            }
        }
    }
}

impl Service for Site {
    type Pending = Visit;
    type Word = Word;

    fn admit(&self, request: &Request<'_>) -> Visit {
        if request.path == "*" {
            return Visit::AnyResource;
        }
        match self.table.borrow().find(request.path) {
            Some(Place::Visits(route)) => {
                let route = Rc::clone(route);
                match request.method {
                    Method::Options => Visit::Options(route),
                    method if route.takes(method) => Visit::Admitted(route),
                    _ => Visit::NotAllowed(route),
                }
            }
            None => Visit::NotFound,
        }
    }

    fn is_refused(&self, visit: &Visit) -> bool {
        matches!(visit, Visit::NotAllowed(_) | Visit::NotFound)
    }

    fn start(&self, visit: &mut Visit) {
        *visit = match mem::replace(visit, Visit::NotFound) {
            Visit::Admitted(route) => self.register(route),
            other => other,
        };
    }

    fn poll_answer(
        &self,
        visit: &mut Visit,
        form: Form,
        outbox: &mut Outbox,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let mut push = |current: &mut Current| outbox.push(current.rendered(), form);
        match visit {
            Visit::Admitted(_) => unreachable!("a visit is started before it is polled"),
            Visit::Underway(registration) => {
                let outcome = ready!(registration.poll(context));
                let route = registration.route();
                self.note(route, outcome);
                let mut answers = route.answers.borrow_mut();
                push(if outcome.is_ok() { &mut answers.welcome } else { &mut answers.sorry });
            }
            Visit::Failing(route) => push(&mut route.answers.borrow_mut().sorry),
            Visit::Overloaded => push(&mut self.overloaded.borrow_mut()),
            Visit::Options(route) => push(&mut route.answers.borrow_mut().options),
            Visit::NotAllowed(route) => push(&mut route.answers.borrow_mut().not_allowed),
            Visit::AnyResource => push(&mut self.any_resource.borrow_mut()),
            Visit::NotFound => push(&mut self.not_found.borrow_mut()),
        }
        Poll::Ready(())
    }

    fn hear(&self, word: Word) {
        match word {
            Word::Routes(routes) => {
                let table = Table::new(&routes, &self.upstreams, &self.table.borrow());
                self.table.replace(table);
            }
            Word::Limits(limits) => {
                self.upstreams.iter().for_each(|upstream| upstream.set_limits(limits));
            }
            Word::Addresses(place, addresses) => self.upstreams[place].set_addresses(addresses),
        }
    }

    fn expire(&self) {
        let now = clock::now();
        let table = self.table.borrow();
        table.counters().iter().filter_map(|counter| counter.news(now)).for_each(&self.tell);
        self.upstreams.iter().for_each(|upstream| upstream.expire());
    }
}

#[cfg(test)]
mod tests;
