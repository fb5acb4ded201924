//! The site: which requests are visits, and what each request gets.
//!
//! Routes and pages of one worker. Knows the counter by its calls only, and the client not at all.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::{
    clock::{self, Moment},
    connection::{Form, Outbox, Service},
    http::{
        render::{self, Rendered},
        request::{Method, Request},
    },
    observe::metrics::{Failure, WorkerMetrics},
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

/// What holds for all routes.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What counts as a visit that was registered.
    pub accept: Accept,
    /// The status of a sorry page.
    pub sorry_status: StatusCode,
}

/// Content and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The `Content-Type` field.
    pub content_type: HeaderValue,
    /// The content.
    pub body: Bytes,
}

/// The two pages of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// For a visitor whose visit was registered.
    pub welcome: Page,
    /// For one whose visit was not.
    pub sorry: Page,
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

/// Watches the visits of one route, and tells of those that fail: of the first at once, of others once in
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

    fn registered(&mut self) {
        self.failures.registered = true;
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

/// What the site is told while it serves.
#[derive(Debug)]
pub enum Word {
    /// Other pages, a pair for each route in their order.
    Pages(Arc<Vec<Pages>>),
    /// Where a counter is, by its place among the site's.
    Addresses(usize, Vec<SocketAddr>),
}

/// A path whose requests are visits.
pub struct Route {
    /// The path, compared to the request's as it was sent.
    pub path: String,
    /// The methods that are visits; others are answered with 405.
    pub methods: Vec<Method>,
    /// The counter that registers them, by its place among the site's.
    pub upstream: usize,
    /// The call that registers one, as it goes over the wire.
    pub call: Bytes,
    /// The counter's URL, for a person.
    pub counter: Arc<str>,
    /// What the visitor gets.
    pub pages: Pages,
}

/// One worker's site.
pub struct Site {
    upstreams: Vec<Rc<Upstream>>,
    routes: Vec<Served>,
    rules: Rules,
    metrics: Arc<WorkerMetrics>,
    /// Told of visits that fail.
    tell: Box<dyn Fn(Failures)>,
    not_found: RefCell<Current>,
    overloaded: RefCell<Current>,
    any_resource: RefCell<Current>,
}

struct Served {
    path: String,
    methods: Vec<Method>,
    upstream: usize,
    call: CallBytes,
    answers: RefCell<Answers>,
    watch: RefCell<Watch>,
}

/// What a route can say.
struct Answers {
    welcome: Current,
    sorry: Current,
    not_allowed: Current,
    options: Current,
}

/// An answer that is rendered again when the second of its `Date` has passed.
struct Current {
    status: StatusCode,
    fields: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    rendered: Rendered,
    unix_seconds: u64,
}

impl Current {
    fn new(status: StatusCode, fields: Vec<(HeaderName, HeaderValue)>, body: Bytes) -> Self {
        let unix_seconds = clock::unix_seconds();
        let rendered = render::response(status, &fields, body.clone(), unix_seconds);
        Self { status, fields, body, rendered, unix_seconds }
    }

    fn text(status: StatusCode, text: &'static str) -> Self {
        Self::new(status, render::text_fields(), Bytes::from_static(text.as_bytes()))
    }

    fn page(status: StatusCode, page: &Page) -> Self {
        // A visit that a cache answers is a visit that nobody counts.
        let fields = vec![
            (header::CONTENT_TYPE, page.content_type.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        Self::new(status, fields, page.body.clone())
    }

    fn rendered(&mut self) -> &Rendered {
        let unix_seconds = clock::unix_seconds();
        if unix_seconds != self.unix_seconds {
            self.unix_seconds = unix_seconds;
            self.rendered =
                render::response(self.status, &self.fields, self.body.clone(), unix_seconds);
        }
        &self.rendered
    }
}

impl Answers {
    fn new(methods: &[Method], pages: &Pages, sorry_status: StatusCode) -> Self {
        let mut allow: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
        allow.push(Method::Options.as_str());
        let allow = HeaderValue::from_str(&allow.join(", "));
        // Method names are visible ASCII, which every field value may be.
        let allow = (header::ALLOW, allow.unwrap_or(HeaderValue::from_static("")));
        let mut not_allowed_fields = render::text_fields();
        not_allowed_fields.push(allow.clone());
        Self {
            welcome: Current::page(StatusCode::OK, &pages.welcome),
            sorry: Current::page(sorry_status, &pages.sorry),
            not_allowed: Current::new(
                StatusCode::METHOD_NOT_ALLOWED,
                not_allowed_fields,
                Bytes::from_static(b"this page does not take that method\n"),
            ),
            options: Current::new(StatusCode::OK, vec![allow], Bytes::new()),
        }
    }
}

/// A request that the site has taken.
pub enum Visit {
    /// A visit that is not registered yet.
    Admitted {
        /// The place of its route.
        route: u16,
    },
    /// A visit that is being registered.
    Underway(Registration),
    /// The counter fails: a visit that is not even tried to register.
    Failing {
        /// The place of its route.
        route: u16,
    },
    /// No room to register it.
    Overloaded,
    /// A route was asked what it takes.
    Options {
        /// The place of the route.
        route: u16,
    },
    /// A route does not take the method.
    NotAllowed {
        /// The place of the route.
        route: u16,
    },
    /// `OPTIONS *`.
    AnyResource,
    /// No route has the path.
    NotFound,
}

/// A visit on the way to its book. Dropped before its outcome is known, it is abandoned.
pub struct Registration {
    /// The place of its route.
    route: u16,
    call: Call,
    ended: bool,
}

impl Registration {
    /// Whether the visit is registered or why not, once that is known.
    fn poll(&mut self, accept: Accept, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let outcome = ready!(self.call.poll(context));
        assert!(!std::mem::replace(&mut self.ended, true), "a visit ends once");
        let metrics = self.call.metrics();
        Poll::Ready(match outcome {
            Ok(status) if accept.is_met(status) => {
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
            self.call.metrics().abandoned.increment();
        }
    }
}

impl Site {
    /// A site of these routes, at most 65,535: the configuration allows far fewer. Each route's
    /// counter is one of `upstreams`.
    pub fn new(
        upstreams: Vec<Rc<Upstream>>,
        routes: Vec<Route>,
        rules: Rules,
        metrics: Arc<WorkerMetrics>,
        tell: Box<dyn Fn(Failures)>,
    ) -> Self {
        assert!(u16::try_from(routes.len()).is_ok(), "more routes than the configuration allows");
        let routes = routes.into_iter().map(|route| Served {
            answers: RefCell::new(Answers::new(&route.methods, &route.pages, rules.sorry_status)),
            path: route.path,
            methods: route.methods,
            upstream: route.upstream,
            call: Rc::new(route.call),
            watch: RefCell::new(Watch::new(route.counter)),
        });
        let mut overloaded_fields = render::text_fields();
        overloaded_fields.push((header::RETRY_AFTER, HeaderValue::from_static("1")));
        overloaded_fields.push((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
        Self {
            upstreams,
            routes: routes.collect(),
            rules,
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

    fn route(&self, route: u16) -> &Served {
        &self.routes[usize::from(route)]
    }

    /// Notes how a visit ended.
    fn watch(&self, route: u16, outcome: Result<(), Failure>) {
        let mut watch = self.route(route).watch.borrow_mut();
        match outcome {
            Ok(()) if !watch.failing => {}
            Ok(()) => watch.registered(),
            Err(failure) => {
                watch.failed(failure);
                self.tell(&mut watch, clock::now());
            }
        }
    }

    fn tell(&self, watch: &mut Watch, now: Moment) {
        if let Some(failures) = watch.take(now) {
            (self.tell)(failures);
        }
    }

    fn answers(&self, route: u16) -> std::cell::RefMut<'_, Answers> {
        self.route(route).answers.borrow_mut()
    }
}

impl Service for Site {
    type Pending = Visit;
    type Word = Word;

    fn admit(&self, request: &Request<'_>) -> Visit {
        if request.path == "*" {
            return Visit::AnyResource;
        }
        let Some(place) = self.routes.iter().position(|route| route.path == request.path) else {
            return Visit::NotFound;
        };
        let Ok(route) = u16::try_from(place) else { unreachable!("checked in new") };
        match request.method {
            Method::Options => Visit::Options { route },
            method if self.routes[place].methods.contains(&method) => Visit::Admitted { route },
            _ => Visit::NotAllowed { route },
        }
    }

    fn is_refused(&self, visit: &Visit) -> bool {
        matches!(visit, Visit::NotAllowed { .. } | Visit::NotFound)
    }

    fn start(&self, visit: &mut Visit) {
        if let Visit::Admitted { route } = *visit {
            let served = self.route(route);
            self.metrics.started.increment();
            *visit = match self.upstreams[served.upstream].call(&served.call) {
                Ok(call) => Visit::Underway(Registration { route, call, ended: false }),
                Err(NotBegun::Overloaded) => {
                    self.metrics.refused.increment();
                    Visit::Overloaded
                }
                Err(NotBegun::Failing) => {
                    self.metrics.err(Failure::NotTried);
                    self.watch(route, Err(Failure::NotTried));
                    Visit::Failing { route }
                }
            };
        }
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
            Visit::Admitted { .. } => unreachable!("a visit is started before it is polled"),
            Visit::Underway(registration) => {
                let outcome = ready!(registration.poll(self.rules.accept, context));
                self.watch(registration.route, outcome);
                let mut answers = self.answers(registration.route);
                push(if outcome.is_ok() { &mut answers.welcome } else { &mut answers.sorry });
            }
            Visit::Failing { route } => push(&mut self.answers(*route).sorry),
            Visit::Overloaded => push(&mut self.overloaded.borrow_mut()),
            Visit::Options { route } => push(&mut self.answers(*route).options),
            Visit::NotAllowed { route } => push(&mut self.answers(*route).not_allowed),
            Visit::AnyResource => push(&mut self.any_resource.borrow_mut()),
            Visit::NotFound => push(&mut self.not_found.borrow_mut()),
        }
        Poll::Ready(())
    }

    fn hear(&self, word: Word) {
        match word {
            Word::Pages(pages) => {
                for (route, pages) in self.routes.iter().zip(pages.iter()) {
                    *route.answers.borrow_mut() =
                        Answers::new(&route.methods, pages, self.rules.sorry_status);
                }
            }
            Word::Addresses(place, addresses) => self.upstreams[place].set_addresses(addresses),
        }
    }

    fn expire(&self) {
        let now = clock::now();
        self.routes.iter().for_each(|route| self.tell(&mut route.watch.borrow_mut(), now));
        self.upstreams.iter().for_each(|upstream| upstream.expire());
    }
}
