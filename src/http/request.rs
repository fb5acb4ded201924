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
    content_length, is_token_byte, list_elements, target,
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
    let bytes = &bytes[..bytes.len().min(limits.head_bytes_max)];
    // Most heads come whole, and are right.
    if scan.may_be_whole(bytes) {
        let parsed = parse_head(bytes, limits, body_bytes_max);
        if let Ok(Some(_)) = parsed {
            return parsed;
        }
    }
    parse_in_order(bytes, scan, limits, body_bytes_max)
}

/// Checks each byte in order before the head is parsed as a whole, so that one with several faults gets the same answer
/// however it comes.
fn parse_in_order<'a>(
    bytes: &'a [u8],
    scan: &mut HeadScan,
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Option<Whole<'a>>, Refusal> {
    scan.judge(bytes, limits)?;
    match scan.end() {
        // Only faults are left that the end of the head shows.
        Some(end) => match parse_head(&bytes[..end], limits, body_bytes_max)? {
            None => Err(MALFORMED),
            whole => Ok(whole),
        },
        None if bytes.len() < limits.head_bytes_max => Ok(None),
        None if scan.is_before_request() => {
            Err(Refusal::bad("too many empty lines before the request"))
        }
        None => Err(HEAD_TOO_LARGE),
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

/// Parses the head that `bytes` begin with; `None` if it is not whole. Of several faults it reports any.
fn parse_head<'a>(
    bytes: &'a [u8],
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Option<Whole<'a>>, Refusal> {
    let mut storage = [const { MaybeUninit::uninit() }; HEAD_FIELDS_CAP];
    let mut parsed = httparse::Request::new(&mut []);
    let fields_max = limits.head_fields_max.min(HEAD_FIELDS_CAP);
    let head = match parsed.parse_with_uninit_headers(bytes, &mut storage[..fields_max]) {
        Ok(httparse::Status::Complete(length)) => &bytes[..length],
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::Version) => return parse_newer(bytes, limits, body_bytes_max),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
        Err(_) => return Err(MALFORMED),
    };
    let line = RequestLine {
        method: parsed.method.unwrap_or_default().as_bytes(),
        target: parsed.path.unwrap_or_default(),
        version: if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 },
    };
    if line.target.len() > limits.target_bytes_max {
        return Err(TARGET_TOO_LONG);
    }
    read(head, line, parsed.headers, body_bytes_max)
}

/// Parses a head of HTTP/1.2 to HTTP/1.9, whose request line httparse refuses.
#[cold]
fn parse_newer<'a>(
    bytes: &'a [u8],
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Option<Whole<'a>>, Refusal> {
    // httparse has checked nothing behind the version.
    let mut scan = HeadScan::default();
    scan.judge(bytes, limits)?;
    let Some(end) = scan.end() else { return Ok(None) };
    let head = &bytes[..end];
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

/// Reads a head that is whole and obeys the grammar, but for its line ends. Faults of single lines are reported first, as
/// in a head that grows; then faults of the whole head, malformed before not served.
fn read<'a>(
    head: &'a [u8],
    line: RequestLine<'a>,
    headers: &[httparse::Header<'a>],
    body_bytes_max: u64,
) -> Result<Option<Whole<'a>>, Refusal> {
    let version = line.version;
    let meaning = line.meaning()?;
    let mut fields = Fields::after(Seen::after(version));
    for header in headers {
        let name = header.name.as_bytes();
        require_crlf(before(head, name))?;
        fields.note(name, header.value)?;
    }
    require_crlf(head.strip_suffix(b"\r\n").unwrap_or_default())?;
    fields.require_host()?;
    let Some((method, target)) = meaning else { return Err(refuse_method(line.method)) };
    let request = Request {
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
    };
    Ok(Some(Whole { request, head_bytes: head.len() }))
}

/// RFC 9112 section 2.2: lines end in CRLF. A recipient may take a lone LF as a line end, as httparse does; it is
/// refused here, because two readers that disagree on it see different messages. `lines` are up to the end of one.
fn require_crlf(lines: &[u8]) -> Result<(), Refusal> {
    if lines.ends_with(b"\r\n") { Ok(()) } else { Err(WITHOUT_CRLF) }
}

/// What of `head` is before `part`, which is a part of it.
fn before<'a>(head: &'a [u8], part: &[u8]) -> &'a [u8] {
    &head[..part.as_ptr().addr() - head.as_ptr().addr()]
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
