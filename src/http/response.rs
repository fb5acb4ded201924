//! Response heads, as a client reads them from the counter.

use std::mem::MaybeUninit;

use ::http::HeaderName;

pub use super::head::EndScan as HeadScan;
use super::{
    ConnectionOptions, HEAD_FIELDS_CAP, HeadLimits, Version, body::BodyReader, content_length, head,
};

/// Why the bytes from the counter are no response. The connection cannot be used after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the counter's response is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// A response head that obeys the rules of framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code, 100 to 599.
    pub status: u16,
    /// Its length in bytes; the body follows.
    pub head_bytes: usize,
    /// The body that follows.
    pub body: BodyReader,
    /// Whether the connection may carry another request once the body is whole.
    pub persistent: bool,
    /// Its version, as it is read here.
    pub version: Version,
    /// How much the counter says that it has added: the number of its [`ADDED`] field, if it has one and it is a number.
    pub added: Option<u32>,
}

/// The field of a counter's answer that says how much the call has added. A counter that sends it takes `?by=N`.
pub const ADDED: HeaderName = HeaderName::from_static("tallyring-added");

impl Response {
    /// RFC 9110 section 15.2: an interim response; the final one follows.
    pub const fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// Reads the head of a response to a `POST` from the start of `bytes`, which grow from call to call;
/// `scan` starts at its default for each head. `None` while it is not whole.
///
/// # Errors
/// [`Malformed`] when the bytes cannot become a response with a clear end.
pub fn parse(
    bytes: &[u8],
    scan: &mut HeadScan,
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Option<Response>, Malformed> {
    // Bytes that cannot begin a status line are refused at once.
    let start = &bytes[..bytes.len().min(5)];
    if !b"HTTP/".starts_with(start) {
        return Err(Malformed("it does not begin with HTTP/"));
    }
    let end = match head::search(bytes, scan).map_err(|refusal| Malformed(refusal.reason))? {
        Some(end) if end <= limits.head_bytes_max => end,
        None if bytes.len() < limits.head_bytes_max => {
            return Ok(None);
        }
        _ => return Err(Malformed("its head is too large")),
    };
    if matches!(&bytes[..end], [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9', ..]) {
        return parse_newer(&bytes[..end], limits, body_bytes_max).map(Some);
    }
    parse_head(&bytes[..end], limits, body_bytes_max).map(Some)
}

/// RFC 9110 section 2.5: a higher minor version is read as the highest that is known here, which is
/// also the highest that httparse takes.
#[cold]
fn parse_newer(
    head: &[u8],
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Response, Malformed> {
    let mut head = head.to_vec();
    head[b"HTTP/1.".len()] = b'1';
    parse_head(&head, limits, body_bytes_max)
}

fn parse_head(
    head: &[u8],
    limits: &HeadLimits,
    body_bytes_max: u64,
) -> Result<Response, Malformed> {
    let mut storage = [const { MaybeUninit::uninit() }; HEAD_FIELDS_CAP];
    let mut parsed = httparse::Response::new(&mut []);
    let fields_max = limits.head_fields_max.min(HEAD_FIELDS_CAP);
    let complete = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, head, &mut storage[..fields_max])
        .map_err(|_| Malformed("its head breaks the grammar"))?;
    if complete != httparse::Status::Complete(head.len()) {
        return Err(Malformed("its head breaks the grammar"));
    }
    let version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let status = parsed.code.unwrap_or_default();
    if !matches!(status, 100..=599) {
        return Err(Malformed("its status code is out of range"));
    }
    let fields = Fields::collect(parsed.headers)?;
    let body = fields.body(status, version, body_bytes_max)?;
    let persistent = fields.connection.is_persistent(version) && !body.ends_with_connection();
    let added = fields.added;
    Ok(Response { status, head_bytes: head.len(), body, persistent, version, added })
}

#[derive(Default)]
struct Fields {
    content_length: Option<u64>,
    chunked: bool,
    connection: ConnectionOptions,
    added: Option<u32>,
    has_added: bool,
}

impl Fields {
    fn collect(headers: &[httparse::Header<'_>]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for header in headers {
            match header.name.len() {
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    fields.connection.note(header.value);
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let length = content_length(header.value)
                        .ok_or(Malformed("its Content-Length is not a number"))?;
                    if fields.content_length.replace(length).is_some() {
                        return Err(Malformed("its Content-Length is repeated"));
                    }
                }
                15 if header.name.eq_ignore_ascii_case(ADDED.as_str()) => {
                    // A longer number than a call may ask for is none, and neither is one that is repeated.
                    let number = content_length(header.value).and_then(|it| it.try_into().ok());
                    fields.added = number.filter(|_| !fields.has_added);
                    fields.has_added = true;
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if fields.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Malformed("its Transfer-Encoding is not chunked, once"));
                    }
                    fields.chunked = true;
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// RFC 9112 section 6.3: how long the body of a response to a `POST` is.
    fn body(
        &self,
        status: u16,
        version: Version,
        content_max: u64,
    ) -> Result<BodyReader, Malformed> {
        match (status, self.chunked, self.content_length) {
            // RFC 9110 section 15.2.2: nobody asked to switch protocols.
            (101, _, _) => Err(Malformed("it switches protocols unasked")),
            // Point 1: these end with their head, whatever their fields say. (RFC 9110 section
            // 15.3.6: a 205 has no content either, but says so by its framing.)
            (100..=199 | 204 | 304, _, _) => Ok(BodyReader::EMPTY),
            // Point 3: such a message might be an attempt at response splitting.
            (_, true, Some(_)) => {
                Err(Malformed("it has Content-Length and Transfer-Encoding at once"))
            }
            // RFC 9112 section 6.1: faulty framing.
            (_, true, None) if version == Version::Http10 => {
                Err(Malformed("HTTP/1.0 has no Transfer-Encoding"))
            }
            (_, true, None) => Ok(BodyReader::chunked(content_max)),
            (_, false, Some(length)) => Ok(BodyReader::sized(length, content_max)),
            // Point 8: the body ends where the connection does.
            (_, false, None) => Ok(BodyReader::to_close(content_max)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 256, head_fields_max: 4, target_bytes_max: 0 };
    const BODY_MAX: u64 = 100;

    #[track_caller]
    fn parse_all_splits(bytes: &[u8]) -> Result<Option<Response>, Malformed> {
        let whole = parse(bytes, &mut HeadScan::default(), &LIMITS, BODY_MAX);
        for split in 0..bytes.len() {
            let mut scan = HeadScan::default();
            let first = parse(&bytes[..split], &mut scan, &LIMITS, BODY_MAX);
            let result =
                if first == Ok(None) { parse(bytes, &mut scan, &LIMITS, BODY_MAX) } else { first };
            assert_eq!(result.is_err(), whole.is_err(), "split at {split}");
            if let Ok(result) = result {
                assert_eq!(Ok(result), whole, "split at {split}");
            }
        }
        whole
    }

    #[track_caller]
    fn check(head: &str, expected: Option<(u16, BodyReader, bool)>) {
        let bytes = format!("{head}\r\n\r\n");
        let result = parse_all_splits(bytes.as_bytes());
        match (result, expected) {
            (Ok(Some(response)), Some((status, body, persistent))) => {
                let head_bytes = bytes.len();
                let is_10 = head.starts_with("HTTP/1.0 ");
                let version = if is_10 { Version::Http10 } else { Version::Http11 };
                let added = None;
                let expected = Response { status, head_bytes, body, persistent, version, added };
                assert_eq!(response, expected, "{head:?}");
            }
            (Err(_), None) => {}
            (result, expected) => panic!("{head:?}: got {result:?}, expected {expected:?}"),
        }
    }

    #[track_caller]
    fn check_added(fields: &str, expected: Option<u32>) {
        let bytes = format!("HTTP/1.1 204 A\r\n{fields}\r\n");
        let response = parse_all_splits(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!(response.added, expected, "{fields:?}");
    }

    #[test]
    fn a_counter_may_say_how_much_it_has_added() {
        check_added("Tallyring-Added: 1\r\n", Some(1));
        check_added("tallyring-added:1000000 \r\n", Some(1_000_000));
        for none in [
            "",
            "tallyring-added: \r\n",
            "tallyring-added: +1\r\n",
            "tallyring-added: 1, 1\r\n",
            "tallyring-added: 4294967296\r\n",
            "tallyring-adds: 1\r\n",
        ] {
            check_added(none, None);
        }
        // It is said once.
        check_added("tallyring-added: 1\r\ntallyring-added: 1\r\n", None);
    }

    #[test]
    fn each_framing() {
        let sized = |length| BodyReader::sized(length, BODY_MAX);
        check("HTTP/1.1 200 OK\r\nContent-Length: 5", Some((200, sized(5), true)));
        check("HTTP/1.1 200\r\nContent-Length: 0", Some((200, sized(0), true)));
        check(
            "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked",
            Some((201, BodyReader::chunked(BODY_MAX), true)),
        );
        check("HTTP/1.1 200 OK", Some((200, BodyReader::to_close(BODY_MAX), false)));
        for status in [100, 103, 204, 304] {
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: 5");
            check(&head, Some((status, BodyReader::EMPTY, true)));
        }
    }

    #[test]
    fn a_newer_minor_version_is_read_as_1_1() {
        for version in ["1.2", "1.9"] {
            let head = format!("HTTP/{version} 200 OK\r\nContent-Length: 5");
            check(&head, Some((200, BodyReader::sized(5, BODY_MAX), true)));
            check(&format!("{head}\r\nX : a"), None);
            let head = format!("HTTP/{version} 200 OK\r\nTransfer-Encoding: chunked");
            check(&head, Some((200, BodyReader::chunked(BODY_MAX), true)));
        }
        for version in ["0.9", "2.0", "1.10", "1.", "1.a", "01.1"] {
            check(&format!("HTTP/{version} 200 OK\r\nContent-Length: 5"), None);
        }
    }

    #[test]
    fn persistence() {
        let sized = || BodyReader::sized(0, BODY_MAX);
        let length = "Content-Length: 0";
        let check = |version: &str, fields: &str, persistent| {
            check(
                &format!("HTTP/{version} 200 OK\r\n{length}{fields}"),
                Some((200, sized(), persistent)),
            );
        };
        check("1.1", "", true);
        check("1.1", "\r\nConnection: close", false);
        check("1.0", "", false);
        check("1.0", "\r\nConnection: keep-alive", true);
    }

    #[test]
    fn what_is_no_response() {
        for head in [
            "GET / HTTP/1.1",
            "HTTX/1.1 200 OK",
            "HTTP/2.0 200 OK",
            "HTTP/1.1 99 x",
            "HTTP/1.1 600 x",
            "HTTP/1.1 2000 x",
            "HTTP/1.1 101 Switching Protocols",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nX : a",
            "HTTP/1.1 200 OK\r\nX: a\r\n b",
            "HTTP/1.1 200 OK\nX: a",
            "HTTP/1.1 200 OK\r\nA:\r\nB:\r\nC:\r\nD:\r\nE:",
        ] {
            check(head, None);
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let head = |bytes: usize| {
            let frame = "HTTP/1.1 204 OK\r\nX: ";
            format!("{frame}{}", "a".repeat(bytes - frame.len() - 4))
        };
        check(&head(256), Some((204, BodyReader::EMPTY, true)));
        check(&head(257), None);
        let endless = &head(1000)[..256];
        assert!(parse(endless.as_bytes(), &mut HeadScan::default(), &LIMITS, 0).is_err());
    }
}
