//! Answers that many requests share: each worker has them ready.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{number::VisitNumber, template::Template};
use crate::{
    connection::Response,
    http::{render, request::Method},
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

/// The answers of a route whose requests are visits.
pub(super) struct Answers {
    /// The welcome page of a visit without a number.
    welcome: Response,
    /// The welcome page of a visit with a number, if that is shown.
    numbered_welcome: Option<Template>,
    pub(super) sorry: Response,
    pub(super) not_allowed: Response,
    pub(super) options: Response,
}

impl Answers {
    pub(super) fn new(methods: &[Method], pages: &Pages, sorry_status: StatusCode) -> Self {
        let Pages { welcome, sorry } = pages;
        Self {
            welcome: page(StatusCode::OK, welcome),
            numbered_welcome: Template::new(StatusCode::OK, &page_fields(welcome), welcome),
            sorry: page(sorry_status, sorry),
            not_allowed: not_allowed(methods),
            options: options(methods),
        }
    }

    /// Whether the welcome page shows the number of the visit.
    pub(super) fn show_number(&self) -> bool {
        self.numbered_welcome.is_some()
    }

    /// The welcome page of a visit with this number. One that shows no number is the same for all.
    pub(super) fn welcome(&self, number: Option<&VisitNumber>) -> Response {
        match (&self.numbered_welcome, number) {
            (Some(template), Some(number)) => template.fill(number),
            _ => self.welcome.clone(),
        }
    }
}

/// A page without the number of a visit.
fn page(status: StatusCode, page: &Page) -> Response {
    Response::new(status, page_fields(page), page.without_number())
}

fn page_fields(page: &Page) -> Vec<(HeaderName, HeaderValue)> {
    // A visit that a cache answers is not counted.
    vec![
        (header::CONTENT_TYPE, page.content_type.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ]
}

/// For when too many visits wait already.
pub(super) fn overloaded() -> Response {
    let mut fields = render::text_fields();
    fields.push((header::RETRY_AFTER, HeaderValue::from_static("1")));
    fields.push((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    let text = Bytes::from_static(b"too many visits at once, try again soon\n");
    Response::new(StatusCode::SERVICE_UNAVAILABLE, fields, text)
}

/// For a method that a route does not take.
pub(super) fn not_allowed(methods: &[Method]) -> Response {
    let mut fields = render::text_fields();
    fields.push((header::ALLOW, allowed(methods)));
    let text = Bytes::from_static(b"this page does not take that method\n");
    Response::new(StatusCode::METHOD_NOT_ALLOWED, fields, text)
}

/// For `OPTIONS`: what a route takes.
pub(super) fn options(methods: &[Method]) -> Response {
    Response::allow(StatusCode::OK, allowed(methods))
}

/// The `Allow` field of a route that takes these methods.
fn allowed(methods: &[Method]) -> HeaderValue {
    let mut names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
    names.push(Method::Options.as_str());
    // Method names are visible ASCII, which every field value may be.
    HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""))
}
