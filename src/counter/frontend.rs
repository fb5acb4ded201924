//! The counter's HTTP side: which operation a request asks for, and the response of each outcome.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, StatusCode, header};

use super::{
    Batch,
    group_commit::{GroupCommit, Waiting},
    store::{Operation, Outcome},
};
use crate::{
    connection::{Response, Service},
    http::{
        hosts::Hosts,
        render,
        request::{Method, Request},
        response::ADDED,
    },
    runtime::clock,
};

/// The longest name of a counter, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// The most that one call may add.
const BY_MAX: u64 = 1_000_000;

/// The `Retry-After` of [`Outcome::Busy`] and [`Outcome::TimedOut`], in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An operation under way.
#[derive(Debug)]
pub struct Answering {
    outcome: Waiting,
    /// How much it adds; nothing if it asks only.
    by: Option<u64>,
}

/// The counter as its clients see it.
pub struct HttpFrontend {
    submit: Box<dyn Fn(Batch)>,
    hosts: Hosts,
    commits: RefCell<GroupCommit>,
}

impl HttpFrontend {
    /// Batches go to `submit`; their outcomes come back by [`on_message`](Service::on_message).
    pub fn new(submit: Box<dyn Fn(Batch)>, hosts: Hosts) -> Self {
        Self { submit, hosts, commits: RefCell::new(GroupCommit::new()) }
    }

    /// Submits what has gathered, unless a commit is under way.
    fn submit_gathered(&self) {
        let batch = self.commits.borrow_mut().take_batch();
        if let Some(batch) = batch {
            (self.submit)(batch);
        }
    }
}

impl Service for HttpFrontend {
    type Admitted = Operation;
    type Pending = Answering;
    /// The outcomes of the batch that was submitted last, in its order.
    type Message = Vec<Outcome>;

    fn admit(&self, request: &Request<'_>) -> Result<Operation, Response> {
        judge_sender(request, &self.hosts)?;
        operation(request)
    }

    /// Operations take effect in the order in which they are started, so it is as if each waited for the one before.
    fn may_overlap(&self, _: &Request<'_>) -> bool {
        true
    }

    /// A server may have sent many calls together, and each that is not answered is an error.
    fn drains_unread(&self) -> bool {
        true
    }

    fn start(&self, operation: Operation) -> Result<Answering, Response> {
        let by = match operation {
            Operation::Add { by, .. } => Some(by),
            Operation::Total { .. } | Operation::All => None,
        };
        let begun = self.commits.borrow_mut().begin(operation, clock::now());
        self.submit_gathered();
        let outcome = begun.ok_or_else(|| render_outcome(Outcome::Busy, None))?;
        Ok(Answering { outcome, by })
    }

    fn poll_response(
        &self,
        Answering { outcome, by }: &mut Answering,
        context: &mut Context<'_>,
    ) -> Poll<Response> {
        let outcome = ready!(Pin::new(outcome).poll(context));
        // The sender is dropped only after it has sent.
        Poll::Ready(render_outcome(outcome.unwrap_or(Outcome::Unknown), *by))
    }

    fn on_message(&self, outcomes: Vec<Outcome>) {
        self.commits.borrow_mut().committed(outcomes);
        self.submit_gathered();
    }

    fn expire(&self) {
        self.commits.borrow_mut().expire(clock::now());
    }
}

/// Refuses what web pages send: only servers call a counter.
fn judge_sender(request: &Request<'_>, hosts: &Hosts) -> Result<(), Response> {
    if request.has_origin {
        return Err(text(403, "a counter takes nothing from web pages (Origin)\n"));
    }
    // RFC 9110 section 15.5.20: the request was sent to a server that it is not for.
    if !hosts.allow(request.host) {
        return Err(text(421, "this host is not answered here; --counter-hosts can allow it\n"));
    }
    Ok(())
}

/// The operation that a request asks for, or a response where none is needed.
fn operation(request: &Request<'_>) -> Result<Operation, Response> {
    let name = match request.path {
        "/counters" => None,
        "/counter" => Some(""),
        path => match path.strip_prefix("/counter/") {
            Some(name) if is_name(name) => Some(name),
            Some(_) => {
                return Err(text(
                    400,
                    "a counter's name is 1 to 128 letters, digits, dots, dashes and underscores\n",
                ));
            }
            None if path == "*" => return Err(allow("GET, HEAD, POST, OPTIONS", StatusCode::OK)),
            None => {
                return Err(text(404, "there are /counter, /counter/NAME and /counters\n"));
            }
        },
    };
    let Some(name) = name else {
        return match request.method {
            Method::Get | Method::Head => Ok(Operation::All),
            method => Err(not_allowed("GET, HEAD, OPTIONS", method)),
        };
    };
    let name = name.to_owned();
    match request.method {
        Method::Get | Method::Head => Ok(Operation::Total { name }),
        Method::Post => match by(request.query) {
            Some(by) => Ok(Operation::Add { name, by }),
            None => Err(text(400, "the query is by=N, with N from 1 to 1000000\n")),
        },
        method => Err(not_allowed("GET, HEAD, POST, OPTIONS", method)),
    }
}

/// Whether this can be the name of a counter. Names are written into paths and JSON as they are, so they contain
/// nothing that has to be escaped there.
pub fn is_name(name: &str) -> bool {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    matches!(name.len(), 1..=NAME_BYTES_MAX) && name.bytes().all(is_name_byte)
}

/// How much a query adds: 1 without one, else the number of `by=N`.
fn by(query: Option<&str>) -> Option<u64> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Some(1) };
    let digits = query.strip_prefix("by=")?;
    let valid = matches!(digits.len(), 1..=7) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| valid)?;
    (1..=BY_MAX).contains(&number).then_some(number)
}

/// The answer to an operation that adds `by`, or nothing.
fn render_outcome(outcome: Outcome, by: Option<u64>) -> Response {
    match outcome {
        Outcome::Total(total) => {
            let mut fields = render::text_fields();
            // Who counts visits learns by this that one call may count several.
            fields.extend(by.map(|by| (ADDED, HeaderValue::from(by))));
            Response::new(StatusCode::OK, fields, format!("{total}\n"))
        }
        Outcome::All(json) => {
            let fields = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            Response::new(StatusCode::OK, fields, json)
        }
        Outcome::TooManyNames => text(507, "there are too many counters for another name\n"),
        Outcome::Busy => retry_later("too much is under way; nothing was counted\n"),
        Outcome::TimedOut => {
            retry_later("the store takes too long; the count may have been kept\n")
        }
        Outcome::Failed => text(503, "the store failed; nothing was counted\n"),
        Outcome::Unknown => text(503, "the store failed; the count may have been kept\n"),
    }
}

fn retry_later(reason: &'static str) -> Response {
    let mut fields = render::text_fields();
    fields.push((header::RETRY_AFTER, RETRY_AFTER));
    Response::new(StatusCode::SERVICE_UNAVAILABLE, fields, reason)
}

fn text(status: u16, text: &'static str) -> Response {
    Response::text(status, text)
}

fn not_allowed(methods: &'static str, method: Method) -> Response {
    match method {
        Method::Options => allow(methods, StatusCode::OK),
        _ => allow(methods, StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn allow(methods: &'static str, status: StatusCode) -> Response {
    Response::allow(status, HeaderValue::from_static(methods))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_by(query: Option<&str>, expected: Option<u64>) {
        assert_eq!(by(query), expected, "{query:?}");
    }

    #[test]
    fn a_call_adds_one_or_as_much_as_it_says() {
        check_by(None, Some(1));
        check_by(Some(""), Some(1));
        check_by(Some("by=1"), Some(1));
        check_by(Some("by=1000000"), Some(1_000_000));
        for query in
            ["by", "by=", "by=0", "by=1000001", "by=-1", "by=+1", "by=1.0", "by=1&by=2", "x=1"]
        {
            check_by(Some(query), None);
        }
    }

    #[test]
    fn a_refusal_that_may_pass_says_when_to_retry() {
        for outcome in [Outcome::Busy, Outcome::TimedOut] {
            let response = render_outcome(outcome, Some(1));
            let head = response.http1_head(0);
            let head = str::from_utf8(&head).unwrap();
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
            assert!(head.contains("\r\ncontent-type: text/plain"), "{head}");
        }
    }

    #[test]
    fn an_answer_says_how_much_was_added_and_only_where_it_was() {
        let head =
            |outcome, by| String::from_utf8(render_outcome(outcome, by).http1_head(0).to_vec());
        let added = head(Outcome::Total(12), Some(10)).unwrap();
        assert!(added.contains("\r\ntallyring-added: 10\r\n"), "{added}");
        for (outcome, by) in
            [(Outcome::Total(12), None), (Outcome::Busy, Some(1)), (Outcome::Unknown, Some(1))]
        {
            let head = head(outcome, by).unwrap();
            assert!(!head.contains("tallyring-added"), "{head}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "home.page", "A-1_b", &"a".repeat(128)] {
            assert!(is_name(name), "{name:?}");
        }
        for name in ["", "a/b", "a b", "a%20", "\"", "é", &"a".repeat(129)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
