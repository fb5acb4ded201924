//! Pages with places for the number of the visit.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use memchr::memmem;
use mime_guess::{Mime, mime};

use super::{answers::Page, number::VisitNumber};
use crate::connection::Response;

/// What stands for the number of the visit in a page. There is no way to have it shown as it is: in HTML,
/// `&#123;visits}` looks the same.
const PLACEHOLDER: &[u8] = b"{visits}";

/// The largest welcome page with a [placeholder](Page::has_placeholder), in bytes. It is made for each visit, and kept
/// until the client has taken it.
pub const TEMPLATE_BYTES_MAX: usize = 64 * 1024;

impl Page {
    /// Whether the number of the visit is shown in it. Only in text: other formats do not survive a change.
    pub fn has_placeholder(&self) -> bool {
        is_text(&self.content_type) && memmem::find(&self.body, PLACEHOLDER).is_some()
    }

    /// The content with nothing in place of the number.
    pub(super) fn without_number(&self) -> Bytes {
        match self.has_placeholder() {
            true => split(&self.body).concat().into(),
            false => self.body.clone(),
        }
    }
}

fn is_text(content_type: &HeaderValue) -> bool {
    let parsed = content_type.to_str().ok().and_then(|text| text.parse::<Mime>().ok());
    parsed.is_some_and(|parsed| {
        let is = |name: mime::Name<'_>| [mime::JSON, mime::XML, mime::JAVASCRIPT].contains(&name);
        parsed.type_() == mime::TEXT || is(parsed.subtype()) || parsed.suffix().is_some_and(is)
    })
}

/// What is between the placeholders.
fn split(body: &Bytes) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let mut from = 0;
    for place in memmem::find_iter(body, PLACEHOLDER) {
        parts.push(body.slice(from..place));
        from = place + PLACEHOLDER.len();
    }
    parts.push(body.slice(from..));
    parts
}

/// A page that shows each visitor another number. It is never changed: what is made of it is new each time.
pub(super) struct Template {
    status: StatusCode,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// The content, split at its placeholders.
    parts: Vec<Bytes>,
}

impl Template {
    /// `None` for a page that is the same for all.
    pub(super) fn new(
        status: StatusCode,
        fields: &[(HeaderName, HeaderValue)],
        page: &Page,
    ) -> Option<Self> {
        page.has_placeholder().then(|| Self {
            status,
            fields: fields.to_vec(),
            parts: split(&page.body),
        })
    }

    /// The page of the visit with this number. A number is digits only, so nothing has to be escaped in any format.
    pub(super) fn fill(&self, number: &VisitNumber) -> Response {
        let content = self.parts.join(number.digits());
        Response::new(self.status, self.fields.clone(), content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(content_type: &'static str, body: &'static str) -> Page {
        let content_type = HeaderValue::from_static(content_type);
        Page { content_type, body: Bytes::from_static(body.as_bytes()) }
    }

    /// The page with the number 42 and without one; `None` if it is the same for all.
    fn made(page: &Page) -> Option<(Bytes, Bytes)> {
        let number = VisitNumber::parse(b"42").unwrap();
        let template = Template::new(StatusCode::OK, &[], page)?;
        Some((template.fill(&number).content().clone(), page.without_number()))
    }

    #[track_caller]
    fn check(body: &'static str, expected: Option<(&'static str, &'static str)>) {
        let page = page("text/html; charset=utf-8", body);
        assert_eq!(made(&page), expected.map(|(one, other)| (one.into(), other.into())), "{body}");
        if expected.is_none() {
            assert_eq!(page.without_number().as_ptr(), page.body.as_ptr(), "it is not copied");
        }
    }

    #[test]
    fn a_number_stands_in_place_of_each_placeholder() {
        check("You are {visits}.", Some(("You are 42.", "You are .")));
        check("{visits}", Some(("42", "")));
        check("{visits}{visits}-{visits}", Some(("4242-42", "-")));
        check("{{visits}}", Some(("{42}", "{}")));
        check("{visits{visits}", Some(("{visits42", "{visits")));
        for other in ["", "visits", "{visits", "{ visits }", "{Visits}", "{visit}", "&#123;visits}"]
        {
            check(other, None);
        }
        // What remains of two halves is not looked at again.
        check("{vis{visits}its}", Some(("{vis42its}", "{visits}")));
    }

    #[test]
    fn only_text_has_placeholders() {
        for text in [
            "text/plain",
            "text/html; charset=utf-8",
            "text/x-mine",
            "application/json",
            "application/javascript",
            "application/xml",
            "image/svg+xml",
            "application/ld+json; profile=\"a\"",
        ] {
            assert!(page(text, "{visits}").has_placeholder(), "{text}");
        }
        for other in
            ["image/png", "application/octet-stream", "application/pdf", "audio/xmlish", "text"]
        {
            let page = page(other, "{visits}");
            assert!(made(&page).is_none(), "{other}");
            assert_eq!(page.without_number(), page.body, "{other}");
        }
    }
}
