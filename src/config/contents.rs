//! Reads what routes serve from their files, at the start and on SIGHUP.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use bytes::Bytes;
use http::HeaderValue;
use mime_guess::mime::Mime;

use super::{
    DirectoryConfig, FILES_MAX, PageConfig, PageFiles, PageSource, RouteConfig, RouteKind,
    error::{ConfigError, invalid},
    values::Size,
};
use crate::{
    http::render::TEXT_PLAIN,
    plural::plural,
    site::{self, Directory, File, Page, Pages, ReadError, Room, TEMPLATE_BYTES_MAX},
};

/// The largest page. Those of visits are rendered by each worker.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The two texts that visitors get where no file replaces them.
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

/// What a route serves, as it was read from its files. Workers share it.
#[derive(Debug, Clone)]
pub enum Content {
    /// The two pages of visits: texts, or files with the types of their extensions.
    Pages(Pages),
    /// The page of a route that is not counted.
    File(Arc<File>),
    /// All files of a directory.
    Directory(Arc<Directory>),
}

/// Reads what each of these routes serves, with at most `files_bytes_max` bytes in all directories. `site_files` are
/// the pages of routes that name none. `notes` gets a line for each file that is left out.
///
/// # Errors
/// At the first file that cannot be read or is too large.
pub fn read_contents(
    routes: &[RouteConfig],
    site_files: &PageFiles,
    files_bytes_max: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<Content>, ConfigError> {
    let mut room = Room { bytes: files_bytes_max, entries: FILES_MAX };
    let mut pages = PageCache::new();
    let mut read = |route: &RouteConfig| match &route.kind {
        RouteKind::Visits(visits) => read_pages(&visits.files, &mut pages).map(Content::Pages),
        RouteKind::Page(page) => read_uncounted(page),
        RouteKind::Directory(directory) => {
            let hidden = hidden_names(route, routes);
            let cache = directory.cache.map(site::cache_for);
            let path = &directory.directory;
            let read = Directory::read(path, &hidden, cache.as_ref(), &mut room, notes);
            let read = read.map_err(|error| refuse(directory, error, files_bytes_max));
            read.map(|directory| Content::Directory(Arc::new(directory)))
        }
    };
    let numbered = routes.iter().enumerate();
    numbered
        .map(|(index, route)| {
            let of_site = |setting: &str| match (setting, route.visits()) {
                ("welcome", Some(visits)) => visits.files.welcome == site_files.welcome,
                ("sorry", Some(visits)) => visits.files.sorry == site_files.sorry,
                _ => false,
            };
            read(route).map_err(|error| match &error {
                ConfigError::Value { setting, .. } if of_site(setting) => error,
                _ => error.of_route(index, &route.path),
            })
        })
        .collect()
}

/// The files of a directory whose paths are routes themselves. The same path written with percent-encoding must not
/// bypass such a route, which may count visits.
fn hidden_names(directory: &RouteConfig, routes: &[RouteConfig]) -> BTreeSet<Vec<u8>> {
    let prefix = directory.path.strip_suffix('*').unwrap_or(&directory.path);
    // It ends in `/`, so it names an index file.
    let decoded = site::file_name(prefix);
    let decoded = decoded.as_deref().and_then(|index| index.strip_suffix(b"index.html"));
    let mut names = BTreeSet::new();
    for route in routes.iter().filter(|route| !matches!(route.kind, RouteKind::Directory(_))) {
        let below = route.path.strip_prefix(prefix).and_then(site::file_name);
        names.extend(below.map(std::borrow::Cow::into_owned));
        // The path of the directory may be percent-encoded, too.
        if let (Some(prefix), Some(name)) = (decoded, site::file_name(&route.path)) {
            names.extend(name.strip_prefix(prefix).map(<[u8]>::to_vec));
        }
    }
    names
}

fn refuse(config: &DirectoryConfig, error: ReadError, files_bytes_max: usize) -> ConfigError {
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
    invalid("directory", problem)
}

fn read_uncounted(page: &PageConfig) -> Result<Content, ConfigError> {
    let cache = page.cache.map(site::cache_for);
    let file = match &page.source {
        PageSource::Text(text) => File::text(text.clone(), cache),
        PageSource::File(path) => fs::canonicalize(path)
            .and_then(|path| File::read(&path, PAGE_BYTES_MAX, cache))
            .map_err(|error| invalid("page", why(path, &error)))?,
    };
    let file = match &page.content_type {
        Some(given) => file.with_type(given.clone()),
        None => file,
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

/// Page files that were read already: a file that several routes have is kept once and is the same for all.
type PageCache = BTreeMap<PathBuf, Bytes>;

fn read_pages(files: &PageFiles, read_before: &mut PageCache) -> Result<Pages, ConfigError> {
    let mut read = |setting, file: &Option<PathBuf>, text: &'static str| match file {
        Some(path) => Ok(Page {
            content_type: files.content_type.clone().unwrap_or_else(|| site::content_type(path)),
            body: read_page(path, read_before)
                .map_err(|error| invalid(setting, why(path, &error)))?,
        }),
        None => Ok(Page { content_type: TEXT_PLAIN, body: Bytes::from_static(text.as_bytes()) }),
    };
    let pages = Pages {
        welcome: read("welcome", &files.welcome, WELCOME)?,
        sorry: read("sorry", &files.sorry, SORRY)?,
    };
    match &files.welcome {
        Some(path) => refuse_large_template(path, &pages.welcome).map(|()| pages),
        None => Ok(pages),
    }
}

fn refuse_large_template(path: &Path, page: &Page) -> Result<(), ConfigError> {
    if page.body.len() <= TEMPLATE_BYTES_MAX || !page.has_placeholder() {
        return Ok(());
    }
    let problem = format!(
        "{} has {} and {{visits}} in it: a page with {{visits}} is made for each visit, and has at most {}; \
         make it smaller, or write {{ visits }} if no number is to be shown",
        path.display(),
        plural(page.body.len(), "byte"),
        Size(TEMPLATE_BYTES_MAX)
    );
    Err(invalid("welcome", problem))
}

/// Reads a regular file only: a pipe could block a reload, and signals with it, and a device may be endless.
fn read_page(path: &Path, read_before: &mut PageCache) -> io::Result<Bytes> {
    if let Some(body) = read_before.get(path) {
        return Ok(body.clone());
    }
    let file = File::read(&fs::canonicalize(path)?, PAGE_BYTES_MAX, None)?;
    read_before.insert(path.to_owned(), file.content().clone());
    Ok(file.content().clone())
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
        let pages = read_pages(&files, &mut PageCache::new()).unwrap();
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
        check("a.unknown", None, "application/octet-stream");
        check("a", Some("text/html"), "text/html");
        check("a.html", Some("text/html; charset=latin1"), "text/html; charset=latin1");
    }

    #[track_caller]
    fn check_size(name: &str, bytes: usize, text: &str, accepted: bool) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, text.to_owned() + &"x".repeat(bytes - text.len())).unwrap();
        for is_welcome in [true, false] {
            let (mut welcome, mut sorry) = (Some(path.clone()), None);
            if !is_welcome {
                std::mem::swap(&mut welcome, &mut sorry);
            }
            let files = PageFiles { welcome, sorry, content_type: None };
            let read = read_pages(&files, &mut PageCache::new());
            // A sorry page shows no number, so it is the same for all.
            assert_eq!(read.is_ok(), accepted || !is_welcome, "{read:?}");
            if let Err(error) = read {
                let said = error.to_string();
                let expected = format!(
                    "welcome: {} has 65537 bytes and {{visits}} in it: a page with {{visits}} is made for each visit, \
                     and has at most 64KiB; make it smaller, or write {{ visits }} if no number is to be shown",
                    path.display()
                );
                assert_eq!(said, expected);
            }
        }
    }

    #[test]
    fn a_page_that_is_made_for_each_visit_is_small() {
        check_size("a.html", TEMPLATE_BYTES_MAX, "{visits}", true);
        check_size("a.html", TEMPLATE_BYTES_MAX + 1, "{visits}", false);
        check_size("a.html", TEMPLATE_BYTES_MAX + 1, "{ visits }", true);
        check_size("a.png", TEMPLATE_BYTES_MAX + 1, "{visits}", true);
    }

    #[test]
    fn a_page_is_a_regular_file() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe, "/dev/zero".into(), directory.path().to_owned()] {
            let files = PageFiles { sorry: Some(path.clone()), ..PageFiles::default() };
            let said = read_pages(&files, &mut PageCache::new()).unwrap_err().to_string();
            let expected = format!("sorry: cannot read {}: it is no regular file", path.display());
            assert_eq!(said, expected);
        }
    }

    fn route(path: &str, kind: RouteKind) -> RouteConfig {
        RouteConfig { path: path.to_owned(), kind }
    }

    fn visits(path: &str, files: &PageFiles) -> RouteConfig {
        let visits = crate::config::VisitsConfig {
            methods: vec![crate::http::request::Method::Get],
            counters: Vec::new(),
            files: files.clone(),
        };
        route(path, RouteKind::Visits(visits))
    }

    #[test]
    fn the_page_of_many_routes_is_kept_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.html");
        fs::write(&path, "a page").unwrap();
        let files = PageFiles { welcome: Some(path), ..PageFiles::default() };
        let routes = ["/a", "/b"].map(|path| visits(path, &files));
        let contents = read_contents(&routes, &files, 0, &mut vec![]).unwrap();
        let bodies: Vec<_> = contents
            .iter()
            .map(|content| match content {
                Content::Pages(pages) => pages.welcome.body.as_ptr(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(bodies[0], bodies[1]);
    }

    #[track_caller]
    fn check_hidden(directory: &str, counted: &str, expected: &[&str]) {
        let config = DirectoryConfig { directory: PathBuf::from("/none"), cache: None };
        let directory = route(directory, RouteKind::Directory(config));
        let routes = [visits(counted, &PageFiles::default())];
        let hidden = hidden_names(&directory, &routes);
        let expected: BTreeSet<_> = expected.iter().map(|name| name.as_bytes().to_vec()).collect();
        assert_eq!(hidden, expected, "{counted}");
    }

    #[test]
    fn a_counted_path_is_hidden_however_it_is_written() {
        check_hidden("/a/*", "/a/p.html", &["p.html"]);
        check_hidden("/a/*", "/a/%70.html", &["p.html"]);
        check_hidden("/a/*", "/%61/p.html", &["p.html"]);
        check_hidden("/%61/*", "/a/p.html", &["p.html"]);
        check_hidden("/a%2Fb/*", "/a%2Fb/p.html", &["p.html"]);
        check_hidden("/*", "/%61/b/", &["a/b/index.html"]);
        check_hidden("/a/*", "/a/", &["index.html"]);
        for other in ["/a", "/b/p.html", "/ab/p.html", "/a%2Fp.html", "/a/%zz"] {
            check_hidden("/a/*", other, &[]);
        }
    }

    #[test]
    fn a_malformed_type_is_refused() {
        for text in
            ["", "html", "text/", "/html", "text/html\r\nX: y", "text/html; charset", "text html"]
        {
            assert!(text.parse::<PageType>().is_err(), "{text:?}");
        }
    }
}
