//! Request heads, judged by RFC 9112 before anything is routed: a malformed message is refused
//! whatever its path or method.

mod field_lines;
mod fields;
mod line;
mod scan;

use std::mem::MaybeUninit;

pub use self::{
    field_lines::{FieldLines, first_line},
    scan::HeadScan,
};
use self::{
    fields::{Fields, Seen},
    line::RequestLine,
};
use super::{
    ConnectionOptions, HEAD_FIELDS_CAP, HeadLimits, Refusal, Version,
    body::{self, BodyReader},
    content_length,
    head::{self, EndScan},
    is_token_byte, list_elements, target,
};

/// The longest method that is read; the registered ones have at most 17 bytes.
const METHOD_BYTES_MAX: usize = 32;

/// The methods that are distinguished. They are case-sensitive (RFC 9110 section 9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`.
    Get,
    /// `HEAD`: like `GET`, answered without a body.
    Head,
    /// `POST`.
    Post,
    /// `OPTIONS`: what a resource takes.
    Options,
    /// `PUT`, `DELETE`, `TRACE` or `PATCH`: known, but no route takes it.
    Other,
}

impl Method {
    /// The method of this name; `None` for one that is not served for any resource.
    fn known(name: &[u8]) -> Option<Self> {
        match name {
            b"GET" => Some(Self::Get),
            b"HEAD" => Some(Self::Head),
            b"POST" => Some(Self::Post),
            b"OPTIONS" => Some(Self::Options),
            b"PUT" | b"DELETE" | b"TRACE" | b"PATCH" => Some(Self::Other),
            _ => None,
        }
    }

    /// RFC 9110 section 9.2.1: whether the client asks for no change of state, so that requests pipelined after it
    /// may start before it is answered (RFC 9112 section 9.3.2).
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options)
    }

    /// The method's name, for the `Allow` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Options => "OPTIONS",
            Self::Other => "",
        }
    }
}

/// A request whose head obeys every rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is asked.
    pub method: Method,
    /// The path of the target as sent, without the query: `/…`, or `*` for `OPTIONS *`.
    pub path: &'a str,
    /// What follows the first `?` of the target.
    pub query: Option<&'a str>,
    /// The host of the request, with the port if it was given: the target's authority, else the `Host` field (RFC
    /// 9112 section 3.2.2). Only HTTP/1.0 may leave it out.
    pub host: Option<&'a [u8]>,
    /// Whether it has an `Origin` field, as the requests do that a browser sends for a page of another site (RFC 6454
    /// section 7).
    pub has_origin: bool,
    /// The `Accept` field, the first where there are several: what the client would like to read.
    pub accept: Option<&'a [u8]>,
    /// The version of the request line.
    pub version: Version,
    /// Whether the connection may carry another request after this one (RFC 9112 section 9.3).
    pub persistent: bool,
    /// Whether the client waits for a `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// All fields as they were sent, for services that need one that few requests have.
    pub fields: FieldLines<'a>,
    /// The body that follows the head.
    pub body: BodyReader,
}

/// A head that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole<'a> {
    /// What it asks.
    pub request: Request<'a>,
    /// Its length in bytes, with empty lines before it; the body follows.
    pub head_bytes: usize,
}

/// Reads a request head from the start of `bytes`, which grow from call to call; `scan` remembers what was checked
/// already and starts at its default for each head. `None` while it is not whole.
///
/// # Errors
/// A [`Refusal`] as soon as the bytes cannot become a request that is served: the same one however the
/// bytes were split.
pub fn parse<'a>(
    bytes: &'a [u8],
    scan: &mut HeadScan,
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Option<Whole<'a>>, Refusal> {
    match find_end(bytes, scan) {
        Ok(Some(end)) if end <= limits.head_bytes_max => {
            let head = &bytes[..end];
            match parse_head(head, limits, body_bytes_max) {
                Ok(request) => Ok(Some(Whole { request, head_bytes: end })),
                Err(refusal) => Err(first_fault(head, limits, refusal)),
            }
        }
        Ok(None) if bytes.len() < limits.head_bytes_max => {
            scan.judge(bytes, limits)?;
            Ok(None)
        }
        Err(refusal) if bytes.len() < limits.head_bytes_max => {
            Err(first_fault(bytes, limits, refusal))
        }
        _ => Err(first_fault(&bytes[..limits.head_bytes_max], limits, HEAD_TOO_LARGE)),
    }
}

/// Searches for the empty line that ends a head, in what is new.
fn find_end(bytes: &[u8], scan: &HeadScan) -> Result<Option<usize>, Refusal> {
    let (mut searched, mut line_start) = scan.progress();
    if scan.is_before_request() {
        line_start += empty_lines(&bytes[line_start..]);
        searched = line_start;
    }
    head::search(bytes, &mut EndScan::after(searched, line_start)?)
}

/// A head that came whole is parsed as a whole. If it is refused, it is checked once more: a head with several faults
/// gets the answer that it would get if it came a byte at a time. `last` is for faults that only the end of the head
/// shows.
#[cold]
fn first_fault(head: &[u8], limits: &HeadLimits, last: Refusal) -> Refusal {
    let mut scan = HeadScan::default();
    match scan.judge(head, limits) {
        Err(first) => first,
        Ok(()) if scan.is_before_request() => {
            Refusal::bad("too many empty lines before the request")
        }
        Ok(()) => last,
    }
}

/// Whether a request that begins in `bytes`, whole or not, valid or not, is a `HEAD`.
pub fn is_head(bytes: &[u8]) -> bool {
    bytes[empty_lines(bytes)..].starts_with(b"HEAD ")
}

/// RFC 9112 section 2.2: a server should ignore at least one empty line before the request line. How
/// many bytes of them there are.
fn empty_lines(bytes: &[u8]) -> usize {
    2 * bytes.chunks_exact(2).take_while(|pair| *pair == b"\r\n").count()
}

/// Parses a head that is whole, with empty lines before it.
fn parse_head<'a>(
    head: &'a [u8],
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Request<'a>, Refusal> {
    let mut storage = [const { MaybeUninit::uninit() }; HEAD_FIELDS_CAP];
    let mut parsed = httparse::Request::new(&mut []);
    let fields_max = limits.head_fields_max.min(HEAD_FIELDS_CAP);
    match parsed.parse_with_uninit_headers(head, &mut storage[..fields_max]) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::Version) => return parse_newer(head, limits, body_bytes_max),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
        _ => return Err(MALFORMED),
    }
    let line = RequestLine {
        method: parsed.method.unwrap_or_default().as_bytes(),
        target: parsed.path.unwrap_or_default(),
        version: if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 },
    };
    line.judge_parts(limits)?;
    read(head, line, parsed.headers, body_bytes_max)
}

/// Parses a head of HTTP/1.2 to HTTP/1.9, whose request line httparse refuses.
#[cold]
fn parse_newer<'a>(
    head: &'a [u8],
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Request<'a>, Refusal> {
    // httparse has checked nothing behind the version.
    HeadScan::default().judge(head, limits)?;
    let message = &head[empty_lines(head)..];
    let (line, rest) = message.split_at(memchr::memchr(b'\r', message).unwrap_or(message.len()));
    let line = RequestLine::split(line)?;
    let fields = rest.strip_prefix(b"\r\n").ok_or(WITHOUT_CRLF)?;
    let mut storage = [httparse::EMPTY_HEADER; HEAD_FIELDS_CAP];
    let fields_max = limits.head_fields_max.min(HEAD_FIELDS_CAP);
    match httparse::parse_headers(fields, &mut storage[..fields_max]) {
        Ok(httparse::Status::Complete((length, headers))) if length == fields.len() => {
            read(head, line, headers, body_bytes_max)
        }
        Err(httparse::Error::TooManyHeaders) => Err(TOO_MANY_FIELDS),
        _ => Err(MALFORMED),
    }
}

/// Reads a head that obeys the grammar. Faults of single lines are reported first, as in a head that grows; then
/// faults of the whole head, malformed before not served.
fn read<'a>(
    head: &'a [u8],
    line: RequestLine<'a>,
    headers: &[httparse::Header<'a>],
    body_bytes_max: u64,
) -> Result<Request<'a>, Refusal> {
    let version = line.version;
    let meaning = line.meaning()?;
    let mut fields = Fields::after(Seen::after(version));
    for header in headers {
        fields.note(header.name.as_bytes(), header.value)?;
    }
    fields.require_host()?;
    let Some((method, target)) = meaning else { return Err(refuse_method(line.method)) };
    Ok(Request {
        method,
        path: target.path,
        query: target.query,
        // RFC 9112 section 3.2.2: a server must ignore the Host field beside an absolute target, and
        // use the target's host.
        host: target.authority.or(fields.host),
        has_origin: fields.has_origin,
        accept: fields.accept,
        version,
        persistent: fields.connection.is_persistent(version),
        // RFC 9110 section 10.1.1: a 100-continue expectation in an HTTP/1.0 request is ignored.
        expects_continue: fields.expects_continue && version == Version::Http11,
        body: fields.body(body_bytes_max)?,
        fields: FieldLines::of(head),
    })
}

/// RFC 9110 section 9.1: a method that is unknown or not implemented for any resource is 501. It is
/// refused here, as a malformed message is: which form a target has depends on the method, and so may
/// what follows on the connection, which therefore closes.
#[cold]
fn refuse_method(method: &[u8]) -> Refusal {
    match method {
        // RFC 9110 section 9.3.6: only a proxy has a use for it; its target is no path.
        b"CONNECT" => Refusal::new(501, "CONNECT is not served here"),
        _ => Refusal::new(501, "the method is not known here"),
    }
}

const HEAD_TOO_LARGE: Refusal = Refusal::new(431, "the request head is too large");
const TOO_MANY_FIELDS: Refusal = Refusal::new(431, "the request head has too many fields");
const TARGET_TOO_LONG: Refusal = Refusal::new(414, "the request target is too long");
const WITHOUT_CRLF: Refusal = Refusal::bad("a line must end in CRLF");
const MALFORMED: Refusal = Refusal::bad("the request head is malformed");
/// RFC 9110 section 15.5.14: more content than the server is willing to read. The connection closes, so
/// that none of it is waited for.
pub const BODY_TOO_LARGE: Refusal = Refusal::new(413, "the request body is too large");

#[cfg(test)]
mod tests;
