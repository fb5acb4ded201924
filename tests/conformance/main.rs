//! HTTP/1.1 on the wire, by RFC 9110 and RFC 9112: what is served, what is refused, and that a request
//! that was refused never becomes two.
//!
//! One line a case, each accepted case with its refused twin, under the section that demands it. Each
//! case is sent whole, in two pieces cut at several places, and if it is short a byte at a time; the
//! answers must be the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod body;
mod connection;
mod fields;
mod request_line;

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{Client, Response, Server, Stub, WELCOME, serve_by};

/// Cases up to this long are also sent a byte at a time.
const BYTEWISE_MAX: usize = 120;

/// What becomes of the connection after the answers to a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The next request on it is answered.
    Open,
    /// The last answer says that it closes, as the client asked.
    Closes,
    /// The last answer says what was wrong and that the connection closes. It closes in order, and what
    /// else is sent on it is neither answered nor counted.
    Refused,
    /// More is waited for: nothing is answered, not even when the client gives up.
    Waits,
}

/// A server whose only page takes GET, HEAD and POST, and what its counter has counted.
struct Site {
    server: Server,
    counted: Arc<AtomicUsize>,
    _stub: Stub,
}

impl Site {
    fn start() -> Self {
        let (stub, counted) = Stub::counting();
        let file = "[[route]]\npath = \"/\"\nmethods = [\"GET\", \"HEAD\", \"POST\"]\n";
        let server = serve_by(file, &["--workers", "1", "--counter", &stub.url()]);
        Self { server, counted, _stub: stub }
    }

    /// A visit, and the connection stays open.
    #[track_caller]
    fn serves(&self, bytes: impl AsRef<[u8]>) {
        self.check(bytes, &[200], Then::Open);
    }

    #[track_caller]
    fn refuses(&self, status: u16, bytes: impl AsRef<[u8]>) {
        self.check(bytes, &[status], Then::Refused);
    }

    /// Nothing is answered before more comes.
    #[track_caller]
    fn waits(&self, bytes: impl AsRef<[u8]>) {
        self.check(bytes, &[], Then::Waits);
    }

    /// Sends `bytes` in several ways and expects answers of these statuses each time. Only the first request may be a
    /// HEAD.
    #[track_caller]
    fn check(&self, bytes: impl AsRef<[u8]>, statuses: &[u16], then: Then) {
        let bytes = bytes.as_ref();
        self.exchange(bytes, statuses, then, "whole", |client| send(client, bytes));
        if bytes.len() <= BYTEWISE_MAX {
            self.exchange(bytes, statuses, then, "a byte at a time", |client| {
                bytes.iter().for_each(|byte| send(client, &[*byte]));
            });
        }
        for place in cuts(bytes) {
            let (first, second) = bytes.split_at(place);
            self.exchange(bytes, statuses, then, &format!("cut at {place}"), |client| {
                // Once the request before is answered, the server has read what came with it: the
                // second piece is received by itself.
                client.send([b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n", first].concat());
                assert_eq!(client.response().status, 404);
                send(client, second);
            });
        }
    }

    #[track_caller]
    fn exchange(
        &self,
        bytes: &[u8],
        statuses: &[u16],
        then: Then,
        way: &str,
        sends: impl Fn(&mut Client),
    ) {
        let case = format!("{:?}, {way}", String::from_utf8_lossy(&bytes[..bytes.len().min(400)]));
        let counted = self.counted.load(Ordering::SeqCst);
        let mut client = self.server.client();
        sends(&mut client);
        let mut welcomed = 0;
        for (place, status) in statuses.iter().enumerate() {
            let head_only = place == 0 && bytes.trim_ascii_start().starts_with(b"HEAD ");
            let method = if head_only { "HEAD" } else { "GET" };
            let response = client.response_or_end(method);
            let response = response.unwrap_or_else(|| panic!("closed without {status}: {case}"));
            assert_eq!(response.status, *status, "answer {place} to {case}: {response:?}");
            let last = place + 1 == statuses.len();
            check_answer(&response, head_only, last.then_some(then), &case);
            let length = response.field("content-length");
            let page = WELCOME.len().to_string();
            welcomed += usize::from(response.status == 200 && length == Some(&*page));
        }
        match then {
            Then::Open => {
                client.send("GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                let next = client.response_or_end("GET").map(|response| response.status);
                assert_eq!(next, Some(404), "after {case}");
                assert!(client.is_closed(), "more than was asked for: {case}");
            }
            Then::Closes => assert!(client.is_closed(), "more after the last answer: {case}"),
            Then::Refused => {
                send(&mut client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                client.finish_sending();
                assert_eq!(client.response_or_end("GET"), None, "more after a refusal: {case}");
            }
            Then::Waits => {
                client.finish_sending();
                assert_eq!(client.response_or_end("GET"), None, "not a request: {case}");
            }
        }
        // Everything that was begun is answered before the end, so nothing is counted later.
        let counted = self.counted.load(Ordering::SeqCst) - counted;
        assert_eq!(counted, welcomed, "visits counted, and welcomed, by {case}");
    }
}

/// What every answer has, whatever it says.
#[track_caller]
fn check_answer(response: &Response, head_only: bool, then: Option<Then>, case: &str) {
    let field = |name| response.field(name);
    // RFC 9112 section 2.3: the server's own version, whatever the client's.
    assert!(response.head.starts_with("HTTP/1.1 "), "{case}: {response:?}");
    // RFC 9110 section 6.6.1: an origin server with a clock sends the date.
    assert!(field("date").is_some_and(|date| date.ends_with(" GMT")), "{case}: {response:?}");
    // RFC 9112 section 6.3: where the content ends is said, and not by a coding as well.
    assert!(field("content-length").is_some() && field("transfer-encoding").is_none(), "{case}");
    // RFC 9110 section 15.5.6: a 405 says what is allowed.
    let allow = (response.status == 405).then_some("GET, HEAD, POST, OPTIONS");
    assert!(response.status != 405 || field("allow") == allow, "{case}: {response:?}");
    // RFC 9112 section 9.6: the answer before a close says so.
    let closes = matches!(then, Some(Then::Closes | Then::Refused));
    assert_eq!(field("connection") == Some("close"), closes, "{case}: {response:?}");
    if then == Some(Then::Refused) && !head_only {
        assert_eq!(response.body.lines().count(), 1, "one line says why: {case}: {response:?}");
    }
}

/// The server may have refused and closed before all was sent.
fn send(client: &mut Client, bytes: &[u8]) {
    let _ = client.stream.write_all(bytes);
}

/// Where to cut a case in two: within and after each line end, and in the middle. Of very many line ends
/// the first will do.
fn cuts(bytes: &[u8]) -> Vec<usize> {
    let line_ends = (1..bytes.len()).filter(|&place| matches!(bytes[place - 1], b'\r' | b'\n'));
    let mut places: Vec<_> = line_ends.take(16).collect();
    if bytes.len() > 1 {
        places.push(bytes.len() / 2);
        places.push(bytes.len() - 1);
    }
    places.sort_unstable();
    places.dedup();
    places
}

/// A request line, in an otherwise valid request.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

/// Fields, in an otherwise valid GET.
fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

/// Fields and a body, in an otherwise valid POST.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

/// A POST of this chunked body.
fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}
