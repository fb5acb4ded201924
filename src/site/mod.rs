//! The site: which requests are visits, and what each request gets.
//!
//! Routes and pages of one worker. Knows the counter by its calls only, and the client not at all. What is not
//! counted, a text or a file, is answered at once from memory that all workers share.

mod answers;
mod conditional;
mod directory;
mod files;
mod number;
mod routes;
mod share;
mod spread;
mod template;
mod trace;
mod visit;

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

pub use self::{
    answers::{Page, Pages},
    directory::{Directory, ReadError, Room, file_name},
    files::{File, cache_for, content_type},
    routes::{Route, RouteKind, RouteSet, Rules, VisitCounter, VisitRoute, Visits},
    share::Share,
    template::TEMPLATE_BYTES_MAX,
    visit::{Accept, Failures, Registration},
};
use self::{
    directory::Found,
    routes::{Place, Table},
    trace::{TraceFields, Tracer},
    visit::Counter,
};
use crate::{
    access_log::Outcome,
    connection::{Response, Service},
    http::{
        render,
        request::{Method, Request},
    },
    metrics::{Failure, WorkerMetrics},
    runtime::clock,
    upstream::{NotBegun, Upstream, UpstreamLimits},
};

/// A message to a site that serves.
#[derive(Debug)]
pub enum Message {
    /// New routes, in place of all others. Visits in progress keep their own route.
    Routes(Arc<RouteSet>),
    /// New limits of all counters.
    Limits(UpstreamLimits),
    /// The addresses of a counter, by its place among the site's.
    Addresses(usize, Vec<SocketAddr>),
}

/// One worker's site.
pub struct Site {
    upstreams: Vec<Rc<Upstream>>,
    table: RefCell<Table>,
    metrics: Arc<WorkerMetrics>,
    /// Called with reports of visits that fail.
    report: Box<dyn Fn(Failures)>,
    tracer: Tracer,
    not_found: Response,
    overloaded: Response,
    any_resource: Response,
    file_options: Response,
    file_not_allowed: Response,
}

/// A visit that is to be registered.
pub struct Admitted {
    route: Rc<VisitRoute>,
    /// What its call takes along, if calls take traces to the counter.
    trace: Option<TraceFields>,
}

/// The methods of content that is not counted.
const FILE_METHODS: [Method; 2] = [Method::Get, Method::Head];

// Each client with a visit in progress has one.
const _: () = assert!(size_of::<Registration>() <= 24);

impl Site {
    /// A site of these routes. Each route's counters are among `upstreams`. The ids of traces follow from `seed`.
    pub fn new(
        upstreams: Vec<Rc<Upstream>>,
        routes: &RouteSet,
        metrics: Arc<WorkerMetrics>,
        report: Box<dyn Fn(Failures)>,
        seed: u64,
    ) -> Self {
        Self {
            table: RefCell::new(Table::new(routes, &upstreams, &Table::default())),
            upstreams,
            metrics,
            report,
            tracer: Tracer::new(seed),
            not_found: Response::text(404, "there is no such page\n"),
            overloaded: answers::overloaded(),
            any_resource: Response::new(StatusCode::OK, vec![], Bytes::new()),
            file_options: answers::options(&FILE_METHODS),
            file_not_allowed: answers::not_allowed(&FILE_METHODS),
        }
    }

    fn admit_visit(&self, route: &Rc<VisitRoute>, request: &Request<'_>) -> Admitted {
        let trace = |sampled| self.tracer.trace(request.fields, sampled);
        Admitted { route: Rc::clone(route), trace: route.traces.map(trace) }
    }

    /// The answer to a request that is no visit and leads to `found`. A request for a file is counted as such, even
    /// if its body, which few requests have, turns out to be malformed later.
    fn answer_uncounted(&self, found: &Found<'_>, request: &Request<'_>) -> Response {
        let answer = match (found, request.method) {
            (Found::Nothing, _) => return self.not_found.clone(),
            (_, Method::Options) => return self.file_options.clone(),
            (_, method) if !FILE_METHODS.contains(&method) => return self.file_not_allowed.clone(),
            (Found::File(file), _) => file.answer(request),
            (Found::Directory(directory), _) => add_slash(request, directory.cache()),
        };
        self.metrics.uncounted.increment();
        answer
    }
}

/// Sends the client to the same path with a `/` at its end. The path begins with that of a route, so it does not
/// begin with `//`, which would name another host.
fn add_slash(request: &Request<'_>, cache: Option<&HeaderValue>) -> Response {
    let query = request.query.map_or_else(String::new, |query| format!("?{query}"));
    let location = HeaderValue::try_from(format!("{}/{query}", request.path));
    let mut fields = render::text_fields();
    // A target is visible ASCII, which every field value may be.
    fields.extend(location.map(|location| (header::LOCATION, location)));
    fields.extend(cache.map(|cache| (header::CACHE_CONTROL, cache.clone())));
    let text = "the page of a directory is at its path with a / at the end\n";
    Response::new(StatusCode::MOVED_PERMANENTLY, fields, text)
}

impl Service for Site {
    type Admitted = Admitted;
    type Pending = Registration;
    type Message = Message;

    fn admit(&self, request: &Request<'_>) -> Result<Admitted, Response> {
        if request.path == "*" {
            return Err(self.any_resource.clone());
        }
        let table = self.table.borrow();
        match table.find(request.path) {
            Some(Place::Visits(route)) => match request.method {
                Method::Options => Err(route.answers.options.clone()),
                method if route.takes(method) => Ok(self.admit_visit(route, request)),
                _ => Err(route.answers.not_allowed.clone()),
            },
            Some(Place::File(file)) => Err(self.answer_uncounted(&Found::File(file), request)),
            None => Err(self.answer_uncounted(&table.find_file(request.path), request)),
        }
    }

    fn start(&self, admitted: Admitted) -> Result<Registration, Response> {
        let Admitted { route, trace } = admitted;
        self.metrics.started.increment();
        Registration::begin(&route, trace.as_ref()).map_err(|error| {
            // It is answered at once.
            self.metrics.visit_durations.add(0);
            match error {
                NotBegun::Overloaded => {
                    self.metrics.refused.increment();
                    self.overloaded.clone()
                }
                NotBegun::Failing => {
                    self.metrics.err(Failure::NotTried);
                    let report = route.counters.note(0, Err(Failure::NotTried));
                    report.into_iter().for_each(&self.report);
                    route.answers.sorry.clone()
                }
            }
        })
    }

    fn poll_response(
        &self,
        registration: &mut Registration,
        context: &mut Context<'_>,
    ) -> Poll<Response> {
        let outcome = ready!(registration.poll(context));
        if let Some(report) = registration.note(outcome.map(drop)) {
            (self.report)(report);
        }
        let route = registration.route();
        Poll::Ready(match outcome {
            Ok(number) => route.answers.welcome(number.as_ref()),
            Err(_) => route.answers.sorry.clone(),
        })
    }

    fn outcome(&self, visit: Result<&Registration, &Response>) -> Outcome {
        match visit {
            Ok(registration) => registration.outcome(),
            Err(response) if response.is(&self.overloaded) => Outcome::REFUSED,
            Err(_) => Outcome::erred(Failure::NotTried),
        }
    }

    fn on_message(&self, message: Message) {
        match message {
            Message::Routes(routes) => {
                let table = Table::new(&routes, &self.upstreams, &self.table.borrow());
                self.table.replace(table);
            }
            Message::Limits(limits) => {
                self.upstreams.iter().for_each(|upstream| upstream.set_limits(limits));
            }
            Message::Addresses(place, addresses) => {
                let (upstream, is_gone) = (&self.upstreams[place], addresses.is_empty());
                upstream.set_addresses(addresses);
                let table = self.table.borrow();
                let of_it = |counter: &&Rc<Counter>| Rc::ptr_eq(&counter.upstream, upstream);
                table.counters().iter().filter(of_it).filter(|_| is_gone).for_each(|it| it.gone());
            }
        }
    }

    fn expire(&self) {
        let now = clock::now();
        let table = self.table.borrow();
        table.counters().iter().filter_map(|counter| counter.report(now)).for_each(&self.report);
        self.upstreams.iter().for_each(|upstream| upstream.expire());
    }
}

#[cfg(test)]
mod tests;
