//! The site: which requests are visits, and what each request gets.
//!
//! Routes and pages of one worker. Knows the counter by its calls only, and the client not at all. What is not
//! counted, a text or a file, is answered at once from memory that all workers share.

mod answers;
mod conditional;
mod directory;
mod files;
mod routes;
mod visit;

use std::{
    cell::RefCell,
    convert::Infallible,
    mem,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use self::{
    answers::Current,
    directory::Found,
    routes::{Place, Table},
};
pub use self::{
    answers::{Page, Pages},
    directory::{Directory, ReadError, Room, file_name},
    files::{File, cache_for, content_type},
    routes::{Route, RouteKind, RouteSet, Rules, VisitRoute, Visits},
    visit::{Accept, Failures, Registration},
};
use crate::{
    clock,
    connection::{Form, Outbox, Service},
    http::{
        render::{self, Rendered},
        request::{Method, Request},
    },
    observe::metrics::{Failure, WorkerMetrics},
    upstream::{NotBegun, Upstream},
};

/// What the site is told while it serves.
#[derive(Debug)]
pub enum Word {
    /// Other routes, in place of all that there are. Visits under way end with their own route. Once these are
    /// served, the sender is dropped, which tells its receiver.
    Routes(Arc<RouteSet>, mpsc::Sender<Infallible>),
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
    file_options: RefCell<Current>,
    file_not_allowed: RefCell<Current>,
}

/// What a content that is not counted takes.
const FILE_METHODS: [Method; 2] = [Method::Get, Method::Head];

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
    /// A request for what is not counted, with its answer: it depends on fields that go with the request.
    File(Box<Rendered>),
    /// What is not counted was asked what it takes.
    FileOptions,
    /// What is not counted does not take the method.
    FileNotAllowed,
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
            file_options: RefCell::new(Current::options(&FILE_METHODS)),
            file_not_allowed: RefCell::new(Current::not_allowed(&FILE_METHODS)),
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

/// What a request gets for which this was found outside of the visits.
fn admit_file(found: &Found<'_>, request: &Request<'_>) -> Visit {
    match (found, request.method) {
        (Found::Nothing, _) => Visit::NotFound,
        (_, Method::Options) => Visit::FileOptions,
        (_, method) if !FILE_METHODS.contains(&method) => Visit::FileNotAllowed,
        (Found::File(file), _) => {
            Visit::File(Box::new(file.answer(request, clock::unix_seconds())))
        }
        (Found::Directory, _) => Visit::File(Box::new(add_slash(request))),
    }
}

/// Sends the client to the same path with a `/` at its end. The path begins with that of a route, and names a
/// directory: none that begins with `//`, which would be another host.
fn add_slash(request: &Request<'_>) -> Rendered {
    let query = request.query.map_or_else(String::new, |query| format!("?{query}"));
    let location = HeaderValue::try_from(format!("{}/{query}", request.path));
    let mut fields = render::text_fields();
    // A target is visible ASCII, which every field value may be.
    fields.extend(location.map(|location| (header::LOCATION, location)));
    let text = Bytes::from_static(b"the page of a directory is at its path with a / at the end\n");
    render::response(StatusCode::MOVED_PERMANENTLY, &fields, text, clock::unix_seconds())
}

impl Service for Site {
    type Pending = Visit;
    type Word = Word;

    fn admit(&self, request: &Request<'_>) -> Visit {
        if request.path == "*" {
            return Visit::AnyResource;
        }
        let table = self.table.borrow();
        match table.find(request.path) {
            Some(Place::Visits(route)) => {
                let route = Rc::clone(route);
                match request.method {
                    Method::Options => Visit::Options(route),
                    method if route.takes(method) => Visit::Admitted(route),
                    _ => Visit::NotAllowed(route),
                }
            }
            Some(Place::File(file)) => admit_file(&Found::File(file), request),
            None => admit_file(&table.find_file(request.path), request),
        }
    }

    fn is_refused(&self, visit: &Visit) -> bool {
        match visit {
            Visit::NotAllowed(_) | Visit::FileNotAllowed | Visit::NotFound => true,
            Visit::File(answer) => answer.is_error(),
            _ => false,
        }
    }

    fn start(&self, visit: &mut Visit) {
        if let Visit::File(_) = visit {
            self.metrics.uncounted.increment();
        }
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
            Visit::File(answer) => outbox.push(answer, form),
            Visit::FileOptions => push(&mut self.file_options.borrow_mut()),
            Visit::FileNotAllowed => push(&mut self.file_not_allowed.borrow_mut()),
            Visit::AnyResource => push(&mut self.any_resource.borrow_mut()),
            Visit::NotFound => push(&mut self.not_found.borrow_mut()),
        }
        Poll::Ready(())
    }

    fn hear(&self, word: Word) {
        match word {
            Word::Routes(routes, served) => {
                let table = Table::new(&routes, &self.upstreams, &self.table.borrow());
                self.table.replace(table);
                drop(served);
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
