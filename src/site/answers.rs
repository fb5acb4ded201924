//! Answers that are said again and again: rendered once for each second's `Date`.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::{
    clock,
    http::{
        render::{self, Rendered},
        request::Method,
    },
};

/// Content and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The `Content-Type` field.
    pub content_type: HeaderValue,
    /// The content.
    pub body: Bytes,
}

/// The two pages of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// For a visitor whose visit was registered.
    pub welcome: Page,
    /// For one whose visit was not.
    pub sorry: Page,
}

/// What a route of visits can say.
pub(super) struct Answers {
    pub(super) welcome: Current,
    pub(super) sorry: Current,
    pub(super) not_allowed: Current,
    pub(super) options: Current,
}

/// An answer that is rendered again when the second of its `Date` has passed.
pub(super) struct Current {
    status: StatusCode,
    fields: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    rendered: Rendered,
    unix_seconds: u64,
}

impl Current {
    pub(super) fn new(
        status: StatusCode,
        fields: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Self {
        let unix_seconds = clock::unix_seconds();
        let rendered = render::response(status, &fields, body.clone(), unix_seconds);
        Self { status, fields, body, rendered, unix_seconds }
    }

    pub(super) fn text(status: StatusCode, text: &'static str) -> Self {
        Self::new(status, render::text_fields(), Bytes::from_static(text.as_bytes()))
    }

    fn page(status: StatusCode, page: &Page) -> Self {
        // A visit that a cache answers is a visit that nobody counts.
        let fields = vec![
            (header::CONTENT_TYPE, page.content_type.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        Self::new(status, fields, page.body.clone())
    }

    /// For a method that is none of those that a route takes.
    pub(super) fn not_allowed(methods: &[Method]) -> Self {
        let mut fields = render::text_fields();
        fields.push(allow(methods));
        let text = Bytes::from_static(b"this page does not take that method\n");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, fields, text)
    }

    /// For who asks what a route takes.
    pub(super) fn options(methods: &[Method]) -> Self {
        Self::new(StatusCode::OK, vec![allow(methods)], Bytes::new())
    }

    pub(super) fn rendered(&mut self) -> &Rendered {
        let unix_seconds = clock::unix_seconds();
        if unix_seconds != self.unix_seconds {
            self.unix_seconds = unix_seconds;
            self.rendered =
                render::response(self.status, &self.fields, self.body.clone(), unix_seconds);
        }
        &self.rendered
    }
}

impl Answers {
    pub(super) fn new(methods: &[Method], pages: &Pages, sorry_status: StatusCode) -> Self {
        Self {
            welcome: Current::page(StatusCode::OK, &pages.welcome),
            sorry: Current::page(sorry_status, &pages.sorry),
            not_allowed: Current::not_allowed(methods),
            options: Current::options(methods),
        }
    }
}

/// The `Allow` field of a route that takes these methods.
fn allow(methods: &[Method]) -> (HeaderName, HeaderValue) {
    let mut names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
    names.push(Method::Options.as_str());
    // Method names are visible ASCII, which every field value may be.
    let names = HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""));
    (header::ALLOW, names)
}
