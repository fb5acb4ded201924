//! The admin listener: whether the server is alive, whether it is ready, its metrics, and the page that shows it live. It
//! has its own thread, so that it answers even when the workers do not.

use std::{
    cell::RefCell,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderValue, StatusCode, header};
use prometheus_client::registry::Registry;

use crate::{
    connection::{Response, Service},
    http::{
        hosts::Hosts,
        request::{Method, Request},
    },
    server::{exposition::Exposition, page, stats::Sources, watchers::Watchers},
};

/// Whether the server can take visits.
#[derive(Debug, Default)]
pub struct Readiness {
    /// All workers serve, and none drains.
    pub serves: AtomicBool,
    /// Visits have failed recently, and the settings make this count.
    pub counter_fails: AtomicBool,
    /// The end has begun.
    pub stops: AtomicBool,
}

/// What the admin listener answers.
pub struct Admin {
    readiness: Arc<Readiness>,
    metrics: Registry,
    sources: Arc<Sources>,
    watchers: Watchers,
    hosts: RefCell<Hosts>,
}

impl Admin {
    /// Serves what `sources` have, which `metrics` has as text, to requests for one of `hosts`.
    pub fn new(sources: Arc<Sources>, metrics: Registry, hosts: Hosts) -> Self {
        Self {
            readiness: Arc::clone(&sources.readiness),
            metrics,
            watchers: Watchers::new(Arc::clone(&sources)),
            sources,
            hosts: RefCell::new(hosts),
        }
    }

    fn answer(&self, request: &Request<'_>) -> Response {
        let text = |status, text: &'static str| Response::text(status, text);
        // RFC 9110 section 15.5.20: the request was sent to a server that it is not for.
        if !self.hosts.borrow().allow(request.host) {
            return text(421, "this host is not answered here; --admin-hosts can allow it\n");
        }
        if !matches!(request.method, Method::Get | Method::Head) {
            let methods = HeaderValue::from_static("GET, HEAD");
            return Response::allow(StatusCode::METHOD_NOT_ALLOWED, methods);
        }
        match request.path {
            "/livez" => text(200, "alive\n"),
            "/readyz" if !self.readiness.serves.load(Ordering::Acquire) => {
                text(503, "not ready: it starts or stops\n")
            }
            "/readyz" if self.readiness.counter_fails.load(Ordering::Acquire) => {
                text(503, "not ready: visits are not registered\n")
            }
            "/readyz" => text(200, "ready\n"),
            "/metrics" => self.metrics(Exposition::chosen_by(request.accept)),
            "/stats" => self.stats(),
            "/" => page::response(),
            "/events" => self.watchers.watch(),
            _ => text(404, "there are /, /events, /livez, /readyz, /metrics and /stats\n"),
        }
    }

    fn metrics(&self, form: Exposition) -> Response {
        let Ok(body) = form.write(&self.metrics) else {
            return Response::text(500, "the metrics cannot be written\n");
        };
        let fields = vec![
            (header::CONTENT_TYPE, form.content_type()),
            (header::VARY, HeaderValue::from_static("accept")),
        ];
        Response::new(StatusCode::OK, fields, body)
    }

    fn stats(&self) -> Response {
        let Ok(body) = serde_json::to_vec(&self.sources.snapshot()) else {
            return Response::text(500, "the figures cannot be written\n");
        };
        let fields = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        Response::new(StatusCode::OK, fields, body)
    }
}

impl Service for Admin {
    type Admitted = Infallible;
    type Pending = Infallible;
    /// The hosts that it answers to from now on.
    type Message = Hosts;

    fn admit(&self, request: &Request<'_>) -> Result<Infallible, Response> {
        Err(self.answer(request))
    }

    fn start(&self, admitted: Infallible) -> Result<Infallible, Response> {
        match admitted {}
    }

    fn poll_response(&self, pending: &mut Infallible, _: &mut Context<'_>) -> Poll<Response> {
        match *pending {}
    }

    fn on_message(&self, hosts: Hosts) {
        self.hosts.replace(hosts);
    }

    fn expire(&self) {
        self.watchers.tick();
    }
}
