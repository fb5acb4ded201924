//! The pages of a route: two texts, or what files hold, with the type that the route or their extension gives.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use http::HeaderValue;
use mime_guess::mime::{self, Mime};

use super::{
    PageFiles,
    error::{ConfigError, invalid},
};
use crate::{
    http::render::TEXT_PLAIN,
    site::{Page, Pages},
};

/// Pages are kept in memory, rendered by each worker.
const PAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The two texts that visitors get where no file takes their place.
pub(super) const WELCOME: &str = "Welcome to my site!";
pub(super) const SORRY: &str = "Error registering your visit";

/// A media type, as a field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageType(pub(super) HeaderValue);

impl FromStr for PageType {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "it must be a media type like \"text/html; charset=utf-8\"";
        let parsed: Mime = text.parse().map_err(|_| FORM)?;
        if parsed.type_() == "" || parsed.subtype() == "" {
            return Err(FORM);
        }
        HeaderValue::try_from(text).map(Self).map_err(|_| FORM)
    }
}

/// Reads the pages of a route.
///
/// # Errors
/// When a file cannot be read or is too large.
pub fn read_pages(files: &PageFiles) -> Result<Pages, ConfigError> {
    let read = |setting, file: &Option<PathBuf>, text| match file {
        Some(path) => read_page(setting, path, files.content_type.as_ref()),
        None => Ok(Page { content_type: TEXT_PLAIN, body: Bytes::from_static(text) }),
    };
    Ok(Pages {
        welcome: read("welcome", &files.welcome, WELCOME.as_bytes())?,
        sorry: read("sorry", &files.sorry, SORRY.as_bytes())?,
    })
}

fn read_page(
    setting: &str,
    path: &Path,
    content_type: Option<&HeaderValue>,
) -> Result<Page, ConfigError> {
    let shown = path.display();
    let unreadable = |error| invalid(setting, format!("cannot read {shown}: {error}"));
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > PAGE_BYTES_MAX {
        let problem = format!("{shown} has {bytes} bytes; a page has at most {PAGE_BYTES_MAX}");
        return Err(invalid(setting, problem));
    }
    let body = fs::read(path).map_err(unreadable)?;
    let content_type = match content_type {
        Some(given) => given.clone(),
        None => type_of(path),
    };
    Ok(Page { content_type, body: body.into() })
}

/// The type that a file's extension gives. A file without one is a page all the same: browsers offer what has no
/// type to be saved.
fn type_of(path: &Path) -> HeaderValue {
    if path.extension().is_none() {
        return TEXT_PLAIN;
    }
    let guessed = mime_guess::from_path(path).first_or_octet_stream();
    let charset = if guessed.type_() == mime::TEXT { "; charset=utf-8" } else { "" };
    // The types of the list are field values.
    HeaderValue::try_from(format!("{guessed}{charset}")).unwrap_or(TEXT_PLAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, given: Option<&str>, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, "a page").unwrap();
        let content_type = given.map(|text| text.parse::<PageType>().unwrap().0);
        let files = PageFiles { welcome: Some(path), sorry: None, content_type };
        let pages = read_pages(&files).unwrap();
        assert_eq!(
            (&pages.welcome.body[..], &pages.welcome.content_type),
            (&b"a page"[..], &HeaderValue::from_str(expected).unwrap())
        );
        assert_eq!(pages.sorry.content_type, TEXT_PLAIN);
    }

    #[test]
    fn a_page_has_the_type_of_its_extension_or_the_one_given() {
        check("a.html", None, "text/html; charset=utf-8");
        check("a.json", None, "application/json");
        check("a", None, "text/plain; charset=utf-8");
        check(".hidden", None, "text/plain; charset=utf-8");
        check("a.unheard-of", None, "application/octet-stream");
        check("a", Some("text/html"), "text/html");
        check("a.html", Some("text/html; charset=latin1"), "text/html; charset=latin1");
    }

    #[test]
    fn what_is_no_type() {
        for text in
            ["", "html", "text/", "/html", "text/html\r\nX: y", "text/html; charset", "text html"]
        {
            assert!(text.parse::<PageType>().is_err(), "{text:?}");
        }
    }
}
