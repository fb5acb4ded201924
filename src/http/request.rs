//! Request heads, judged by RFC 9112 before anything is routed: a malformed message is refused
//! whatever its path or method.

mod line;

use std::mem::MaybeUninit;

use self::line::{RequestLine, judge_target};
pub use super::head::HeadScan;
use super::{
    HEAD_FIELDS_CAP, HeadLimits, Refusal, Version,
    body::BodyReader,
    content_length,
    head::{self, Found},
    is_token_byte, list_elements,
    target::{Target, is_host},
};

/// The longest method that is read; the registered ones have at most 17 bytes.
const METHOD_BYTES_MAX: usize = 32;
/// `" HTTP/1.1\r\n"`.
const REQUEST_LINE_TAIL_BYTES: usize = 11;

/// The methods that are told apart. They are case-sensitive (RFC 9110 section 9.1).
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
    /// `PUT`, `DELETE`, `TRACE` or `PATCH`: known, and taken by nothing here.
    Other,
}

impl Method {
    /// RFC 9110 section 9.2.1: whether the client asks for no change of state, so that requests
    /// pipelined after it may be begun before it is answered (RFC 9112 section 9.3.2).
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
    /// What stands after the first `?` of the target.
    pub query: Option<&'a str>,
    /// Whom the request is for, with the port if it was given: the target's authority, else the `Host`
    /// field (RFC 9112 section 3.2.2). Only HTTP/1.0 may leave it out.
    pub host: Option<&'a [u8]>,
    /// Whether it has an `Origin` field, as what a browser sends for a page of another site does
    /// (RFC 6454 section 7).
    pub has_origin: bool,
    /// The version of the request line.
    pub version: Version,
    /// Whether the connection may carry another request after this one (RFC 9112 section 9.3).
    pub persistent: bool,
    /// Whether the client waits for a `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The body that follows the head.
    pub body: BodyReader,
}

/// A head that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole<'a> {
    /// What it asks.
    pub request: Request<'a>,
    /// Its length in bytes, with empty lines that came before it; the body follows.
    pub head_bytes: usize,
}

/// Reads a request head from the start of `bytes`, which grow from call to call; `scan` remembers
/// what was already searched and starts at its default for each head. `None` while it is not whole.
///
/// # Errors
/// A [`Refusal`] as soon as the bytes cannot become a request that is served.
pub fn parse<'a>(
    bytes: &'a [u8],
    scan: &mut HeadScan,
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Option<Whole<'a>>, Refusal> {
    let empty_lines = empty_lines(bytes);
    let message = &bytes[empty_lines..];
    if empty_lines >= limits.head_bytes_max {
        return Err(Refusal::bad("too many empty lines before the request"));
    }
    if matches!(message, [] | [b'\r']) {
        return Ok(None);
    }
    if !is_token_byte(message[0]) {
        return Err(Refusal::bad("a request must begin with a method"));
    }
    let end = match head::search(message, scan)? {
        Found::End(end) if empty_lines + end <= limits.head_bytes_max => end,
        Found::End(_) => return Err(HEAD_TOO_LARGE),
        found => {
            match found {
                // As soon as it is whole, so that a client that speaks another protocol is told at once.
                Found::FirstLine(_) => drop(request_line(message, limits)?),
                _ => refuse_overlong(message, scan, limits)?,
            }
            return if bytes.len() < limits.head_bytes_max {
                Ok(None)
            } else {
                Err(HEAD_TOO_LARGE)
            };
        }
    };
    let request = parse_head(&message[..end], limits, body_bytes_max)?;
    Ok(Some(Whole { request, head_bytes: empty_lines + end }))
}

/// Whether a request that begins in `bytes`, whole or not, blameless or not, is a `HEAD`.
pub fn is_head(bytes: &[u8]) -> bool {
    bytes[empty_lines(bytes)..].starts_with(b"HEAD ")
}

/// RFC 9112 section 2.2: a server should ignore at least one empty line before the request line. How
/// many bytes of them there are.
fn empty_lines(bytes: &[u8]) -> usize {
    2 * bytes.chunks_exact(2).take_while(|pair| *pair == b"\r\n").count()
}

const HEAD_TOO_LARGE: Refusal = Refusal::new(431, "the request head is too large");
/// RFC 9110 section 15.5.14: more content than the server is willing to read. The connection closes, so
/// that none of it is waited for.
pub const BODY_TOO_LARGE: Refusal = Refusal::new(413, "the request body is too large");
const TARGET_TOO_LONG: Refusal = Refusal::new(414, "the request target is too long");

/// Refuses a request line that is not whole and already too long, by the part that is too long.
fn refuse_overlong(message: &[u8], scan: &HeadScan, limits: &HeadLimits) -> Result<(), Refusal> {
    if !scan.has_first_line() {
        let method_bytes = memchr::memchr(b' ', message).unwrap_or(message.len());
        if method_bytes > METHOD_BYTES_MAX {
            return Err(Refusal::bad("the method is too long"));
        }
        let line_max = method_bytes + 1 + limits.target_bytes_max + REQUEST_LINE_TAIL_BYTES;
        if message.len() > line_max {
            return Err(TARGET_TOO_LONG);
        }
    }
    Ok(())
}

/// How long the first line of a head is, without its line end.
fn line_bytes(head: &[u8]) -> usize {
    memchr::memchr(b'\r', head).unwrap_or(head.len())
}

fn request_line<'a>(head: &'a [u8], limits: &HeadLimits) -> Result<RequestLine<'a>, Refusal> {
    RequestLine::parse(&head[..line_bytes(head)], limits)
}

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
        Ok(_) => return Err(Refusal::bad("the request head is malformed")),
        Err(error) => {
            // What is wrong with a request line, our own rules say better.
            let line = request_line(head, limits)?;
            return match error {
                httparse::Error::Version => parse_newer(head, line, limits, body_bytes_max),
                error => Err(syntax_refusal(error)),
            };
        }
    }
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    if method.len() > METHOD_BYTES_MAX || target.len() > limits.target_bytes_max {
        request_line(head, limits)?;
    }
    judge_target(target.as_bytes())?;
    let version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
    judge(RequestLine { method, target, version }, parsed.headers, body_bytes_max)
}

/// Reads a head of HTTP/1.2 to HTTP/1.9, whose request line httparse refuses.
#[cold]
fn parse_newer<'a>(
    head: &'a [u8],
    line: RequestLine<'a>,
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Request<'a>, Refusal> {
    let mut storage = [httparse::EMPTY_HEADER; HEAD_FIELDS_CAP];
    let fields_max = limits.head_fields_max.min(HEAD_FIELDS_CAP);
    let Some(fields) = head[line_bytes(head)..].strip_prefix(b"\r\n") else {
        return Err(Refusal::bad("a line must end in CRLF"));
    };
    match httparse::parse_headers(fields, &mut storage[..fields_max]) {
        Ok(httparse::Status::Complete((length, headers))) if length == fields.len() => {
            judge(line, headers, body_bytes_max)
        }
        Ok(_) => Err(Refusal::bad("the request head is malformed")),
        Err(error) => Err(syntax_refusal(error)),
    }
}

/// Judges a head that obeys the grammar by what it says.
fn judge<'a>(
    line: RequestLine<'a>,
    headers: &[httparse::Header<'a>],
    body_bytes_max: u64,
) -> Result<Request<'a>, Refusal> {
    let version = line.version;
    let method = match line.method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "OPTIONS" => Method::Options,
        "PUT" | "DELETE" | "TRACE" | "PATCH" => Method::Other,
        _ => return Err(refuse_method(line, &Fields::collect(headers)?)),
    };
    let fields = Fields::collect(headers)?;
    let target = Target::parse(line.target, method)?;
    fields.judge_host(version)?;
    Ok(Request {
        method,
        path: target.path,
        query: target.query,
        // RFC 9112 section 3.2.2: a server must ignore the Host field beside an absolute target, and use
        // the target's host.
        host: target.authority.or(fields.host),
        has_origin: fields.has_origin,
        version,
        persistent: match version {
            // RFC 9112 section 9.3, in this order.
            _ if fields.close => false,
            Version::Http11 => true,
            Version::Http10 => fields.keep_alive,
        },
        // RFC 9110 section 10.1.1: a 100-continue expectation in an HTTP/1.0 request is ignored.
        expects_continue: fields.expects_continue && version == Version::Http11,
        body: fields.body(version, body_bytes_max)?,
    })
}

/// RFC 9110 section 9.1: a method that is unknown or not implemented for any resource is 501. It is
/// refused here, as a malformed message is, whatever its target: which form a target has depends on
/// the method, and so may what follows on the connection, which therefore closes. A message that is
/// malformed besides is told that.
#[cold]
fn refuse_method(line: RequestLine<'_>, fields: &Fields<'_>) -> Refusal {
    if let Err(refusal) = fields.judge_host(line.version) {
        return refusal;
    }
    match line.method {
        // RFC 9110 section 9.3.6: only a proxy has a use for it; its target is no path.
        "CONNECT" => Refusal::new(501, "CONNECT is not served here"),
        _ => Refusal::new(501, "the method is not known here"),
    }
}

const fn syntax_refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => {
            Refusal::new(431, "the request head has too many fields")
        }
        httparse::Error::HeaderName => Refusal::bad("a field name is not a token"),
        httparse::Error::HeaderValue => Refusal::bad("a field value holds a control character"),
        httparse::Error::NewLine => Refusal::bad("a line must end in CRLF"),
        _ => Refusal::bad("the request head is malformed"),
    }
}

/// The fields that decide how a request is read; all others are checked for syntax and passed over.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    has_content_type: bool,
    has_origin: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            fields.note(header.name, header.value)?;
        }
        Ok(fields)
    }

    fn note(&mut self, name: &str, value: &'a [u8]) -> Result<(), Refusal> {
        // By length first: most fields are none of these, and this runs for every one.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                once(&mut self.host, value, "a request must have one Host field, not several")?;
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(417, "the only expectation met here is 100-continue"));
                }
                self.expects_continue = true;
            }
            6 if name.eq_ignore_ascii_case("origin") => self.has_origin = true,
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in list_elements(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            12 if name.eq_ignore_ascii_case("content-type") => {
                if self.has_content_type {
                    return Err(Refusal::bad(
                        "a request must not have several Content-Type fields",
                    ));
                }
                self.has_content_type = true;
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                once(&mut self.content_length, value, "Content-Length must not be repeated")?;
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                once(&mut self.transfer_encoding, value, "Transfer-Encoding must not be repeated")?;
            }
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: a 1.1 request without exactly one valid Host is answered with 400.
    fn judge_host(&self, version: Version) -> Result<(), Refusal> {
        let Some(host) = self.host else {
            return match version {
                Version::Http10 => Ok(()),
                Version::Http11 => Err(Refusal::bad("an HTTP/1.1 request must have a Host field")),
            };
        };
        if !is_host(host) {
            return Err(Refusal::bad("the Host field is not a host with an optional port"));
        }
        Ok(())
    }

    /// RFC 9112 section 6.3: how long the body is.
    fn body(&self, version: Version, content_max: u64) -> Result<BodyReader, Refusal> {
        match (self.transfer_encoding, self.content_length) {
            (None, None) => Ok(BodyReader::EMPTY),
            (None, Some(length)) => match content_length(length) {
                Some(length) if length > content_max => Err(BODY_TOO_LARGE),
                Some(length) => Ok(BodyReader::sized(length, content_max)),
                None => Err(Refusal::bad("Content-Length must be one decimal number")),
            },
            // RFC 9112 section 6.1: a server may reject such a request, and ought to handle it as
            // an attempt at smuggling.
            (Some(_), Some(_)) => {
                Err(Refusal::bad("Content-Length and Transfer-Encoding exclude each other"))
            }
            // RFC 9112 section 6.1: faulty framing, since HTTP/1.0 has no transfer codings.
            (Some(_), None) if version == Version::Http10 => {
                Err(Refusal::bad("HTTP/1.0 has no Transfer-Encoding"))
            }
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(BodyReader::chunked(content_max))
            }
            (Some(codings), None) => Err(refuse_codings(codings)),
        }
    }
}

/// RFC 9112 section 6.1: a coding that is not understood is 501; a `chunked` that is repeated or not
/// the last leaves the length unknown, which is 400 (section 6.3, point 4).
fn refuse_codings(codings: &[u8]) -> Refusal {
    let mut well_formed = true;
    let mut after_chunked = false;
    for coding in list_elements(codings) {
        well_formed &= !after_chunked;
        well_formed &= !coding.is_empty() && coding.iter().all(|&byte| is_token_byte(byte));
        after_chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
    if well_formed {
        Refusal::new(501, "the only transfer coding understood here is chunked")
    } else {
        Refusal::bad("Transfer-Encoding must be chunked, once and last")
    }
}

fn once<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    reason: &'static str,
) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refusal::bad(reason)),
    }
}

#[cfg(test)]
mod tests;
