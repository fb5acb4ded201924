//! The admin listener: whether the server lives, whether it is ready, and its metrics. It has a
//! thread of its own, so that it answers whatever the workers do.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderValue, StatusCode, header};
use prometheus_client::registry::Registry;

use crate::{
    clock,
    connection::{Form, Outbox, Service},
    http::{
        hosts::Hosts,
        render::{self, Rendered},
        request::{Method, Request},
    },
    observe::exposition::Exposition,
};

/// Whether the server can take visits.
#[derive(Debug, Default)]
pub struct Readiness {
    /// All workers serve, and none drains.
    pub serves: AtomicBool,
    /// Visits have not been registered a moment ago, where that is to count.
    pub counter_fails: AtomicBool,
}

/// What the admin listener answers.
pub struct Admin {
    readiness: Arc<Readiness>,
    metrics: Registry,
    hosts: RefCell<Hosts>,
}

impl Admin {
    /// Tells of `readiness` and `metrics` whoever asks by one of `hosts`.
    pub fn new(readiness: Arc<Readiness>, metrics: Registry, hosts: Hosts) -> Self {
        Self { readiness, metrics, hosts: RefCell::new(hosts) }
    }

    fn answer(&self, request: &Request<'_>) -> Rendered {
        let text =
            |status, text: &str| render::text(status, text.to_owned(), clock::unix_seconds());
        // RFC 9110 section 15.5.20: the request was sent to a server that it is not for.
        if !self.hosts.borrow().allow(request.host) {
            return text(421, "this host is not answered here; --admin-hosts can allow it\n");
        }
        if !matches!(request.method, Method::Get | Method::Head) {
            let fields = [(header::ALLOW, HeaderValue::from_static("GET, HEAD"))];
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return render::response(status, &fields, Default::default(), clock::unix_seconds());
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
            "/metrics" => {
                let form = Exposition::chosen_by(request.accept);
                let Ok(body) = form.write(&self.metrics) else {
                    return text(500, "the metrics cannot be written\n");
                };
                let fields = [
                    (header::CONTENT_TYPE, form.content_type()),
                    (header::VARY, HeaderValue::from_static("accept")),
                ];
                render::response(StatusCode::OK, &fields, body.into(), clock::unix_seconds())
            }
            _ => text(404, "there are /livez, /readyz and /metrics\n"),
        }
    }
}

impl Service for Admin {
    type Pending = Rendered;
    /// Other hosts that it answers to.
    type Word = Hosts;

    fn admit(&self, request: &Request<'_>) -> Rendered {
        self.answer(request)
    }

    fn is_refused(&self, answer: &Rendered) -> bool {
        answer.is_error()
    }

    fn start(&self, _answer: &mut Rendered) {}

    fn poll_answer(
        &self,
        answer: &mut Rendered,
        form: Form,
        outbox: &mut Outbox,
        _context: &mut Context<'_>,
    ) -> Poll<()> {
        outbox.push(answer, form);
        Poll::Ready(())
    }

    fn hear(&self, hosts: Hosts) {
        self.hosts.replace(hosts);
    }
}
