//! What routes serve, as it is read from their files at the start and again on SIGHUP.

use std::{collections::BTreeSet, fs, io, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    ConfigError, DirectoryConfig, FILES_MAX, PageConfig, PageFiles, PageSource, RouteConfig,
    RouteKind, settle::invalid, values::Size,
};
use crate::{
    http::render::TEXT_PLAIN,
    site::{self, Directory, File, Page, Pages, ReadError, Room},
};

/// The largest page. Those of visits are rendered by each worker.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The two texts that visitors get where no file takes their place.
pub(super) const WELCOME: &str = "Welcome to my site!";
pub(super) const SORRY: &str = "Error registering your visit";

/// What the files of a route held when they were read. Workers share it.
#[derive(Debug, Clone)]
pub enum Content {
    /// The pages of visits: two texts, or what files hold, with the type that their extension gives.
    Pages(Pages),
    /// That of a route that is not counted.
    File(Arc<File>),
    /// All files of a directory.
    Directory(Arc<Directory>),
}

/// Reads what these routes serve, in their order, with at most `files_bytes_max` bytes in all directories.
/// `notes` are told of what is passed over.
///
/// # Errors
/// At the first file that cannot be read or is too large.
pub fn read_contents(
    routes: &[RouteConfig],
    files_bytes_max: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<Content>, ConfigError> {
    let mut room = Room { bytes: files_bytes_max, entries: FILES_MAX };
    let read = |route: &RouteConfig| match &route.kind {
        RouteKind::Visits(visits) => read_pages(&visits.files).map(Content::Pages),
        RouteKind::Page(page) => read_uncounted(route, page),
        RouteKind::Directory(directory) => {
            let hidden = hidden_names(route, routes);
            let cache = directory.cache.map(site::cache_for);
            let path = &directory.directory;
            let read = Directory::read(path, &hidden, cache.as_ref(), &mut room, notes);
            let read = read.map_err(|error| refuse(route, directory, error, files_bytes_max));
            read.map(|directory| Content::Directory(Arc::new(directory)))
        }
    };
    routes.iter().map(read).collect()
}

/// The files of a directory whose paths are routes of their own: another form of such a path, with escapes,
/// must not lead past the route, which may be a visit.
fn hidden_names(directory: &RouteConfig, routes: &[RouteConfig]) -> BTreeSet<Vec<u8>> {
    let prefix = directory.path.strip_suffix('*').unwrap_or(&directory.path);
    let others = routes.iter().filter(|route| !matches!(route.kind, RouteKind::Directory(_)));
    let below = others.filter_map(|route| route.path.strip_prefix(prefix));
    below.filter_map(site::file_name).map(|name| name.into_owned()).collect()
}

fn refuse(
    route: &RouteConfig,
    config: &DirectoryConfig,
    error: ReadError,
    files_bytes_max: usize,
) -> ConfigError {
    let shown = config.directory.display();
    let problem = match error {
        ReadError::Io(..) => error.to_string(),
        ReadError::TooLarge { .. } => format!(
            "{shown} has {error}; all directories together have at most files-max, {}",
            Size(files_bytes_max)
        ),
        ReadError::TooMany => format!(
            "with {shown} there are more than {FILES_MAX} files and directories, the most that are served"
        ),
    };
    invalid(route.setting(), format!("directory: {problem}"))
}

fn read_uncounted(route: &RouteConfig, page: &PageConfig) -> Result<Content, ConfigError> {
    let cache = page.cache.map(site::cache_for);
    let file = match &page.source {
        PageSource::Text(text) => File::text(text.clone(), cache),
        PageSource::File(path) => fs::canonicalize(path)
            .and_then(|path| File::read(&path, PAGE_BYTES_MAX, cache))
            .map_err(|error| invalid(route.setting(), format!("page: {}", why(path, &error))))?,
    };
    Ok(Content::File(Arc::new(file)))
}

fn why(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::FileTooLarge => format!("{shown} is larger than {PAGE_BYTES_MAX} bytes"),
        _ => format!("cannot read {shown}: {error}"),
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
    if bytes > PAGE_BYTES_MAX as u64 {
        let problem = format!("{shown} has {bytes} bytes; a page has at most {PAGE_BYTES_MAX}");
        return Err(invalid(setting, problem));
    }
    let body = fs::read(path)
        .map_err(|error| invalid(setting, format!("cannot read {shown}: {error}")))?;
    Ok(Page { content_type: site::content_type(path), body: body.into() })
}
