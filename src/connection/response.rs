//! An answer as the service gives it: a status, fields and content. How it goes over the wire is the
//! connection's to say.

use std::{
    cell::{Ref, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::http::render;

/// An answer, which can be sent to any number of clients: a clone shares it.
#[derive(Debug, Clone)]
pub struct Response(Rc<Parts>);

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    fields: Vec<(HeaderName, HeaderValue)>,
    content: Bytes,
    http1_head: RefCell<Http1Head>,
}

/// The status line and the fields, each with its line end, as HTTP/1.1 sends them in one second.
#[derive(Debug, Default)]
struct Http1Head {
    bytes: Bytes,
    unix_seconds: Option<u64>,
}

impl Response {
    /// An answer with these fields, beside those that say how long it is and when it was sent.
    pub fn new(
        status: StatusCode,
        fields: Vec<(HeaderName, HeaderValue)>,
        content: impl Into<Bytes>,
    ) -> Self {
        let content = content.into();
        Self(Rc::new(Parts { status, fields, content, http1_head: RefCell::default() }))
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
            let content = parts.content.clone();
            let rendered = render::response(parts.status, &parts.fields, content, unix_seconds);
            let unix_seconds = Some(unix_seconds);
            parts.http1_head.replace(Http1Head { bytes: rendered.head, unix_seconds });
        }
        Ref::map(parts.http1_head.borrow(), |head| &*head.bytes)
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
    fn an_error_is_known_by_its_status() {
        for status in [200, 204, 301, 399] {
            assert!(!Response::text(status, "405\n").is_error(), "{status}");
        }
        for status in [400, 404, 405, 499, 500, 503, 599] {
            assert!(Response::text(status, "200\n").is_error(), "{status}");
        }
    }
}
