//! Which paths are visits, which counter registers them, and what their visitors get.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use super::{
    ConfigError, DirectoryConfig, PageConfig, PageFiles, PageSource, ROUTES_MAX, RouteConfig,
    RouteKind, VisitsConfig,
    contents::{Content, PageType, SORRY, WELCOME},
    counters::{CounterSpread, CounterUrls, check_counters, show_counters},
    error::invalid,
    file::RouteTable,
    pick::{Setting, or_text},
    scalar::Text,
    values::CacheTime,
};
use crate::{http::request::Method, plural::plural, upstream::Endpoint};

/// The routes of the file; without any, one for `/`. Those without counters of their own have `counters`.
pub(super) fn settle_routes(
    mut tables: Vec<RouteTable>,
    counters: (&[Endpoint], CounterSpread),
    site_files: &PageFiles,
) -> Result<Vec<RouteConfig>, ConfigError> {
    if tables.is_empty() {
        tables.push(RouteTable::of("/"));
    }
    if tables.len() > ROUTES_MAX {
        let problem = format!("there are {}; at most {ROUTES_MAX} are served", tables.len());
        return Err(invalid("route", problem));
    }
    let mut routes: Vec<RouteConfig> = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let path = table.path.clone();
        let wrong = |Wrong(key, problem)| invalid(key, problem).of_route(index, &path);
        if routes.iter().any(|route| route.path == path) {
            return Err(wrong(Wrong("path", String::from("another route has it already"))));
        }
        let kind = settle_kind(table, counters, site_files).map_err(wrong)?;
        routes.push(RouteConfig { path, kind });
    }
    Ok(routes)
}

/// A key of a route, and what is wrong with it.
struct Wrong(&'static str, String);

impl Wrong {
    fn of(key: &'static str, problem: &str) -> Self {
        Self(key, problem.to_owned())
    }
}

/// What a `[[route]]` table says, or what is wrong with it.
fn settle_kind(
    table: RouteTable,
    counters: (&[Endpoint], CounterSpread),
    site_files: &PageFiles,
) -> Result<RouteKind, Wrong> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
    if !table.path.starts_with('/') || !table.path.bytes().all(plain) {
        let problem = "it must begin with / and hold visible ASCII without ?, # and \\";
        return Err(Wrong::of("path", problem));
    }
    if table.directory.is_some() {
        return settle_directory(table);
    }
    if table.path.ends_with("/*") {
        let problem = "one that ends in /* is for the files of a directory; give directory";
        return Err(Wrong::of("path", problem));
    }
    match table.counted {
        Some(false) => settle_page(table),
        Some(true) | None => settle_visits(table, counters, site_files),
    }
}

fn settle_visits(
    table: RouteTable,
    (counters, spread): (&[Endpoint], CounterSpread),
    site_files: &PageFiles,
) -> Result<RouteKind, Wrong> {
    let uncounted = [
        ("page", table.page.is_some(), "its page is welcome"),
        ("text", table.text.is_some(), "its page is welcome"),
        ("cache", table.cache.is_some(), "a visit that a cache answers is not counted"),
    ];
    if let Some((key, _, reason)) = uncounted.into_iter().find(|(_, is_given, _)| *is_given) {
        let problem =
            format!("it is for routes with counted = false; this one is counted, and {reason}");
        return Err(Wrong(key, problem));
    }
    let mut methods = vec![Method::Get, Method::Head];
    if let Some(listed) = table.methods {
        methods = listed.into_iter().map(Method::from).collect();
        let repeated = (1..methods.len()).any(|index| methods[..index].contains(&methods[index]));
        if methods.is_empty() || repeated {
            return Err(Wrong::of("methods", "it must list some of GET, HEAD and POST, each once"));
        }
    }
    let files = PageFiles {
        welcome: table.welcome.or_else(|| site_files.welcome.clone()),
        sorry: table.sorry.or_else(|| site_files.sorry.clone()),
        content_type: table.content_type.map(|Text(PageType(value))| value),
    };
    if files.content_type.is_some() && files.welcome.is_none() && files.sorry.is_none() {
        return Err(Wrong::of("type", "it is for files; give welcome or sorry"));
    }
    let counters = match table.counter {
        Some(CounterUrls(own)) => own,
        None => counters.to_vec(),
    };
    check_counters(&counters, spread).map_err(|problem| Wrong("counter", problem))?;
    Ok(RouteKind::Visits(VisitsConfig { methods, counters, files }))
}

/// Refuses keys that only routes with visits have.
fn refuse_visits_keys(table: &RouteTable) -> Result<(), Wrong> {
    let of_visits = [
        ("welcome", table.welcome.is_some(), "page = \"FILE\" names what it serves"),
        ("sorry", table.sorry.is_some(), "nothing is registered that could fail"),
        ("counter", table.counter.is_some(), "nothing is registered"),
        ("methods", table.methods.is_some(), "it takes GET and HEAD"),
    ];
    match of_visits.into_iter().find(|(_, is_given, _)| *is_given) {
        Some((key, _, reason)) => Err(Wrong(key, format!("this route is not counted: {reason}"))),
        None => Ok(()),
    }
}

fn settle_page(table: RouteTable) -> Result<RouteKind, Wrong> {
    refuse_visits_keys(&table)?;
    let cache = table.cache.map(|Text(CacheTime(time))| time);
    let source = match (table.page, table.text) {
        (Some(page), None) => PageSource::File(page),
        (None, Some(text)) => PageSource::Text(text),
        (Some(_), Some(_)) => return Err(Wrong::of("text", "it and page exclude each other")),
        (None, None) => {
            let problem = "a route that is not counted needs page = \"FILE\" or text = \"TEXT\"";
            return Err(Wrong::of("counted", problem));
        }
    };
    let content_type = table.content_type.map(|Text(PageType(value))| value);
    Ok(RouteKind::Page(PageConfig { source, content_type, cache }))
}

fn settle_directory(table: RouteTable) -> Result<RouteKind, Wrong> {
    if table.counted == Some(true) {
        let problem =
            "files of a directory are not counted; a file that is gets a route of its own";
        return Err(Wrong::of("counted", problem));
    }
    refuse_visits_keys(&table)?;
    for (key, is_given) in [("page", table.page.is_some()), ("text", table.text.is_some())] {
        if is_given {
            return Err(Wrong::of(key, "the files of the directory are what is served"));
        }
    }
    if table.content_type.is_some() {
        let problem = "each file of a directory has the type of its extension";
        return Err(Wrong::of("type", problem));
    }
    // A redirection to a path that begins with `//` would lead to another host.
    if !table.path.ends_with("/*") || table.path.contains("//") {
        let problem = "that of a directory must end in /*, like /static/*, and have no // in it";
        return Err(Wrong::of("path", problem));
    }
    let cache = table.cache.map(|Text(CacheTime(time))| time);
    let directory = table.directory.unwrap_or_default();
    Ok(RouteKind::Directory(DirectoryConfig { directory, cache }))
}

/// A route, for a person; `line` is where it is in the file.
pub(super) fn describe(route: &RouteConfig, content: &Content, line: Option<&str>) -> Setting {
    let value = match (&route.kind, content) {
        (RouteKind::Visits(visits), _) => describe_visits(visits),
        (RouteKind::Page(page), Content::File(file)) => {
            let source = match &page.source {
                PageSource::File(path) => path.display().to_string(),
                PageSource::Text(text) => format!("the text {text:?}"),
            };
            let bytes = plural(file.content().len(), "byte");
            format!("not counted; {source}, {bytes}{}", describe_cache(page.cache))
        }
        (RouteKind::Directory(config), Content::Directory(directory)) => format!(
            "not counted; {} of {}, {}{}",
            plural(directory.files(), "file"),
            config.directory.display(),
            plural(directory.bytes(), "byte"),
            describe_cache(config.cache)
        ),
        _ => unreachable!("the content of a route is of its kind"),
    };
    Setting {
        name: format!("route {}", route.path),
        value,
        source: match line {
            Some(line) => format!("file {line}"),
            None => String::from("the settings above"),
        },
    }
}

fn describe_cache(cache: Option<Duration>) -> String {
    cache.map_or_else(String::new, |time| {
        format!("; cached for {}", humantime::format_duration(time))
    })
}

fn describe_visits(visits: &VisitsConfig) -> String {
    let methods: Vec<_> = visits.methods.iter().map(|method| method.as_str()).collect();
    let counters = show_counters(&visits.counters, "bundled");
    let shown = |path: &Option<PathBuf>, text| or_text(text)(path);
    format!(
        "{} to {counters}; welcome {}; sorry {}",
        methods.join(", "),
        shown(&visits.files.welcome, WELCOME),
        shown(&visits.files.sorry, SORRY)
    )
}

/// How many counters each worker has connections to: URLs that differ in their path only are one, and each address that
/// a name may have is one, where visits are spread over addresses.
pub(super) fn origins(routes: &[RouteConfig], spread: CounterSpread) -> usize {
    let visits = routes.iter().filter_map(RouteConfig::visits);
    let bundled = visits.clone().any(|visits| visits.counters.is_empty());
    let given = visits.flat_map(|visits| &visits.counters).map(|target| &target.origin);
    let given = given.collect::<BTreeSet<_>>().into_iter().map(|origin| spread.slots(origin));
    given.sum::<usize>() + usize::from(bundled)
}
