//! An answer as the service gives it: a status, fields and content. The connection decides how it goes over the wire.

use std::{
    cell::{Ref, RefCell},
    fmt,
    rc::Rc,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::Feed;
use crate::http::render::{self, Rendered};

/// An answer, which can be sent to any number of clients: a clone shares it.
#[derive(Clone)]
pub struct Response(Rc<Parts>);

struct Parts {
    status: StatusCode,
    fields: Vec<(HeaderName, HeaderValue)>,
    content: Bytes,
    /// Whether the head says how long the content is.
    tells_length: bool,
    http1_head: RefCell<Http1Head>,
    /// The content, if it comes piece by piece; the connection takes it.
    feed: RefCell<Option<Box<dyn Feed>>>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { status, fields, content, .. } = &*self.0;
        f.debug_tuple("Response").field(status).field(fields).field(content).finish()
    }
}

/// The status line and the fields, each with its line end, as HTTP/1.1 sends them in one second.
#[derive(Debug, Default)]
struct Http1Head {
    bytes: Bytes,
    unix_seconds: Option<u64>,
}

impl Response {
    /// An answer with these fields; those for its length and date are added.
    pub fn new(
        status: StatusCode,
        fields: Vec<(HeaderName, HeaderValue)>,
        content: impl Into<Bytes>,
    ) -> Self {
        Self::with_parts(status, fields, content.into(), true)
    }

    /// An answer whose status says that it has no content, such as 304. It has no length field either, which would
    /// describe the content of another answer (RFC 9110 section 8.6).
    pub fn without_length(status: StatusCode, fields: Vec<(HeaderName, HeaderValue)>) -> Self {
        Self::with_parts(status, fields, Bytes::new(), false)
    }

    /// An answer whose content comes piece by piece, to one client. It has no length: it ends with the connection
    /// (RFC 9112 section 6.3, point 8).
    pub fn stream(fields: Vec<(HeaderName, HeaderValue)>, feed: Box<dyn Feed>) -> Self {
        let response = Self::with_parts(StatusCode::OK, fields, Bytes::new(), false);
        response.0.feed.replace(Some(feed));
        response
    }

    /// The content that comes piece by piece, if it does.
    pub(super) fn take_feed(&self) -> Option<Box<dyn Feed>> {
        self.0.feed.take()
    }

    fn with_parts(
        status: StatusCode,
        fields: Vec<(HeaderName, HeaderValue)>,
        content: Bytes,
        tells_length: bool,
    ) -> Self {
        let (http1_head, feed) = (RefCell::default(), RefCell::default());
        Self(Rc::new(Parts { status, fields, content, tells_length, http1_head, feed }))
    }

    /// A short text, such as the reason of a refusal.
    pub fn text(status: u16, text: impl Into<Bytes>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, render::text_fields(), text)
    }

    /// An answer without content that says which methods are allowed.
    pub fn allow(status: StatusCode, methods: HeaderValue) -> Self {
        Self::new(status, vec![(header::ALLOW, methods)], Bytes::new())
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.0.status.as_u16()
    }

    /// Whether it is a clone of `other`.
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Whether its status is 4xx or 5xx.
    pub fn is_error(&self) -> bool {
        self.0.status.is_client_error() || self.0.status.is_server_error()
    }

    /// The content.
    pub fn content(&self) -> &Bytes {
        &self.0.content
    }

    /// The head as HTTP/1.1 sends it, without the empty line at its end. It is rendered again when the
    /// second of its `Date` has passed.
    pub fn http1_head(&self, unix_seconds: u64) -> Ref<'_, [u8]> {
        let parts = &*self.0;
        if parts.http1_head.borrow().unix_seconds != Some(unix_seconds) {
            let rendered = parts.render(unix_seconds);
            let unix_seconds = Some(unix_seconds);
            parts.http1_head.replace(Http1Head { bytes: rendered.head, unix_seconds });
        }
        Ref::map(parts.http1_head.borrow(), |head| &*head.bytes)
    }
}

impl Parts {
    fn render(&self, unix_seconds: u64) -> Rendered {
        let Self { status, fields, content, .. } = self;
        match self.tells_length {
            true => render::response(*status, fields, content.clone(), unix_seconds),
            false => render::without_content(*status, fields, unix_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_rendered_once_a_second() {
        let response = Response::text(404, "none\n");
        let shared = response.clone();
        let first = response.http1_head(784_111_777).to_vec();
        assert!(first.starts_with(b"HTTP/1.1 404 Not Found\r\n") && first.ends_with(b" GMT\r\n"));
        let place = response.http1_head(784_111_777).as_ptr();
        assert_eq!(shared.http1_head(784_111_777).as_ptr(), place);
        let later = response.http1_head(784_111_778).to_vec();
        assert_ne!(first, later);
        assert_eq!(shared.http1_head(784_111_778).to_vec(), later);
    }

    #[test]
    fn an_answer_without_length_says_none_in_any_second() {
        let etag = (header::ETAG, HeaderValue::from_static("\"a\""));
        let response = Response::without_length(StatusCode::NOT_MODIFIED, vec![etag.clone()]);
        let empty = Response::new(StatusCode::OK, vec![etag], Bytes::new());
        for unix_seconds in [784_111_777, 784_111_778] {
            let head = String::from_utf8(response.http1_head(unix_seconds).to_vec()).unwrap();
            assert!(head.starts_with("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n"), "{head}");
            assert!(!head.contains("content-length"), "{head}");
            let head = String::from_utf8(empty.http1_head(unix_seconds).to_vec()).unwrap();
            assert!(head.contains("content-length: 0\r\n"), "{head}");
        }
        assert!(response.content().is_empty() && !response.is_error());
    }

    #[test]
    fn an_error_is_known_by_its_status() {
        for status in [200, 204, 301, 399] {
            assert!(!Response::text(status, "405\n").is_error(), "{status}");
        }
        for status in [400, 404, 405, 499, 500, 503, 599] {
            assert!(Response::text(status, "200\n").is_error(), "{status}");
        }
    }
}
