//! Requests that clients make, and what each may be answered.

use std::fmt::Write as _;

use fastrand::Rng;

use crate::trace::Fields;

/// Visits that one history has at most. Each has a route, pages and a call of its own, so that whatever crosses from
/// one to another is seen.
pub const VISITS: usize = 64;
/// Texts that are not counted, each of its own size.
pub const FILES: usize = 4;
/// The most that a body may have.
pub const BODY_BYTES_MAX: usize = 600;
/// The most that a head may have.
pub const HEAD_BYTES_MAX: usize = 900;
/// How much more it may have by other limits.
pub const HEAD_BYTES_MORE: usize = 500;
/// The most that a target may have.
pub const TARGET_BYTES_MAX: usize = 300;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A page that is counted.
    Visit(usize),
    /// A text that is not.
    File(usize),
    /// What is not there.
    Nothing,
    /// `*`.
    Server,
}

/// How the body goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// With its length before it.
    Length(usize),
    /// In chunks of this size.
    Chunks(usize, usize),
}

/// A request that is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Names it in its `User-Agent`: no two of a history have the same.
    pub id: usize,
    /// What it asks for.
    pub subject: Subject,
    /// Its method.
    pub method: &'static str,
    /// Whether it is of HTTP/1.0.
    pub old: bool,
    /// The value of `Connection`.
    pub connection: Option<&'static str>,
    /// Its body.
    pub body: Body,
    /// Whether it asks before it sends the body.
    pub expects_continue: bool,
    /// Bytes of a field that says nothing.
    pub padding: usize,
    /// The fields of a trace.
    pub trace: Option<Fields>,
}

impl Request {
    /// The plainest visit.
    pub fn visit(id: usize, visit: usize) -> Self {
        Self {
            id,
            subject: Subject::Visit(visit),
            method: "GET",
            old: false,
            connection: None,
            body: Body::None,
            expects_continue: false,
            padding: 0,
            trace: None,
        }
    }

    /// Any request; `visit` is the one that it may be.
    pub fn draw(rng: &mut Rng, id: usize, visit: usize) -> Self {
        let subject = match rng.u8(0..12) {
            0 => Subject::File(rng.usize(0..FILES)),
            1 => Subject::Nothing,
            2 if rng.u8(0..4) == 0 => Subject::Server,
            _ => Subject::Visit(visit),
        };
        let method = match (subject, rng.u8(0..12)) {
            (Subject::Server, _) => "OPTIONS",
            (_, 0) => "HEAD",
            (_, 1..=3) => "POST",
            (_, 4) => "DELETE",
            (_, 5) if rng.bool() => "OPTIONS",
            _ => "GET",
        };
        let has_body = method == "POST" || rng.u8(0..20) == 0;
        let size = rng.usize(0..=BODY_BYTES_MAX);
        let body = match rng.u8(0..3) {
            _ if !has_body => Body::None,
            0 => Body::Length(0),
            1 => Body::Length(size),
            _ => Body::Chunks(size, rng.usize(1..=200)),
        };
        let old = rng.u8(0..12) == 0;
        Self {
            id,
            subject,
            method,
            old,
            connection: match rng.u8(0..16) {
                0 => Some("close"),
                1 | 2 => Some("keep-alive"),
                _ => None,
            },
            // HTTP/1.0 knows no chunks.
            body: if old && matches!(body, Body::Chunks(..)) { Body::Length(size) } else { body },
            expects_continue: !old && body != Body::None && rng.u8(0..4) == 0,
            padding: if rng.u8(0..4) == 0 { rng.usize(1..500) } else { 0 },
            trace: None,
        }
    }

    /// Its first line.
    pub fn line(&self) -> String {
        let path = match self.subject {
            Subject::Visit(visit) => format!("/v{visit}"),
            Subject::File(file) => format!("/file{file}"),
            Subject::Nothing => String::from("/nothing?here"),
            Subject::Server => String::from("*"),
        };
        let version = if self.old { "HTTP/1.0" } else { "HTTP/1.1" };
        format!("{} {path} {version}", self.method)
    }

    /// Its bytes, and how many of them are the head.
    pub fn bytes(&self) -> (Vec<u8>, usize) {
        let mut text = format!("{}\r\nHost: site\r\nUser-Agent: r{}\r\n", self.line(), self.id);
        if let Some(connection) = self.connection {
            let _ = write!(text, "Connection: {connection}\r\n");
        }
        if self.padding > 0 {
            let _ = write!(text, "Padding: {}\r\n", "x".repeat(self.padding));
        }
        if let (Some(fields), Subject::Visit(visit)) = (self.trace, self.subject) {
            text.push_str(&fields.lines(visit));
        }
        if self.expects_continue {
            text.push_str("Expect: 100-continue\r\n");
        }
        match self.body {
            Body::None => text.push_str("\r\n"),
            Body::Length(bytes) => {
                let _ = write!(text, "Content-Length: {bytes}\r\n\r\n");
            }
            Body::Chunks(..) => text.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        }
        let head = text.len();
        // A body that looks like a request shows whether its end is found.
        let content = format!("GET /v{} HTTP/1.1\r\nHost: b\r\n\r\n", VISITS - 1).repeat(20);
        match self.body {
            Body::None => {}
            Body::Length(bytes) => text.push_str(&content[..bytes]),
            Body::Chunks(bytes, size) => {
                for chunk in content.as_bytes()[..bytes].chunks(size) {
                    let chunk = String::from_utf8_lossy(chunk);
                    let _ = write!(text, "{:x}\r\n{chunk}\r\n", chunk.len());
                }
                text.push_str("0\r\n\r\n");
            }
        }
        (text.into_bytes(), head)
    }

    /// Whether the connection ends with its answer, as far as the client has a say.
    pub fn closes(&self) -> bool {
        match self.connection {
            Some("close") => true,
            Some(_) => false,
            None => self.old,
        }
    }
}

/// Requests that are refused: by a status of 4xx or 5xx, after which the connection ends.
pub fn refused(rng: &mut Rng) -> Vec<u8> {
    let long = |bytes: usize| "x".repeat(bytes);
    let text = match rng.u8(0..14) {
        0 => String::from("GET /v1 HTTP/1.1\r\n\r\n"),
        1 => String::from("GET  /v1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        2 => String::from("GET /v1 HTTP/2.0\r\nHost: a\r\n\r\n"),
        3 => String::from("GET /v1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        4 => String::from("GET /v1 HTTP/1.1\nHost: a\n\n"),
        5 => String::from(
            "POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        6 => String::from("POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n"),
        7 => String::from("POST /v1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"),
        8 => format!(
            "POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            BODY_BYTES_MAX + 1
        ),
        9 => format!(
            "GET /v1 HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            long(HEAD_BYTES_MAX + HEAD_BYTES_MORE)
        ),
        10 => format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(TARGET_BYTES_MAX)),
        11 => String::from(
            "POST /v1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n\r\n",
        ),
        12 => String::from("HEAD /v1 HTTP/1.1\r\nHost : a\r\n\r\n"),
        _ => String::from("GET /v1 HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"),
    };
    text.into_bytes()
}

/// Bytes of any kind, most often nearly a request; never one for a visit.
pub fn garbage(rng: &mut Rng) -> Vec<u8> {
    if rng.u8(0..3) == 0 {
        return (0..rng.usize(1..300)).map(|_| rng.u8(..)).collect();
    }
    let request = "POST /zzzzzz HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nAccept: b\r\n\r\nabc";
    let mut bytes = request.repeat(rng.usize(1..4)).into_bytes();
    for _ in 0..rng.usize(1..4) {
        let place = rng.usize(0..bytes.len());
        match rng.u8(0..3) {
            0 => bytes[place] = rng.u8(..),
            1 => bytes.insert(place, rng.u8(..)),
            _ => drop(bytes.remove(place)),
        }
    }
    bytes
}
