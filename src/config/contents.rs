//! What routes serve, as it is read from their files at the start and again on SIGHUP.

use std::{fs, path::Path};

use bytes::Bytes;
use http::HeaderValue;

use super::{ConfigError, PageFiles, RouteConfig, RouteKind, settle::invalid};
use crate::{
    http::render::TEXT_PLAIN,
    site::{Page, Pages},
};

/// Pages are kept in memory, rendered by each worker.
const PAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The two texts that visitors get where no file takes their place.
pub(super) const WELCOME: &str = "Welcome to my site!";
pub(super) const SORRY: &str = "Error registering your visit";

/// What the files of a route held when they were read. Workers share it.
#[derive(Debug, Clone)]
pub enum Content {
    /// The pages of visits: two texts, or what files hold, with the type that their extension gives.
    Pages(Pages),
}

/// Reads what these routes serve, in their order.
///
/// # Errors
/// At the first file that cannot be read or is too large.
pub fn read_contents(routes: &[RouteConfig]) -> Result<Vec<Content>, ConfigError> {
    routes.iter().map(read_content).collect()
}

fn read_content(route: &RouteConfig) -> Result<Content, ConfigError> {
    match &route.kind {
        RouteKind::Visits(visits) => read_pages(&visits.files).map(Content::Pages),
    }
}

fn read_pages(files: &PageFiles) -> Result<Pages, ConfigError> {
    Ok(Pages {
        welcome: read_page("welcome", files.welcome.as_deref(), WELCOME)?,
        sorry: read_page("sorry", files.sorry.as_deref(), SORRY)?,
    })
}

fn read_page(setting: &str, path: Option<&Path>, text: &'static str) -> Result<Page, ConfigError> {
    let Some(path) = path else {
        let body = Bytes::from_static(text.as_bytes());
        return Ok(Page { content_type: TEXT_PLAIN, body });
    };
    let shown = path.display();
    let bytes = fs::metadata(path)
        .map_err(|error| invalid(setting, format!("cannot read {shown}: {error}")))?
        .len();
    if bytes > PAGE_BYTES_MAX {
        let problem = format!("{shown} has {bytes} bytes; a page has at most {PAGE_BYTES_MAX}");
        return Err(invalid(setting, problem));
    }
    let body = fs::read(path)
        .map_err(|error| invalid(setting, format!("cannot read {shown}: {error}")))?;
    let guessed = mime_guess::from_path(path).first_or_octet_stream();
    let charset = if guessed.type_() == mime_guess::mime::TEXT { "; charset=utf-8" } else { "" };
    let content_type = HeaderValue::try_from(format!("{guessed}{charset}"))
        .map_err(|error| invalid(setting, format!("{shown} has no usable type: {error}")))?;
    Ok(Page { content_type, body: body.into() })
}
