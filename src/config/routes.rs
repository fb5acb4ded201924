//! Which paths are visits, who registers them and what their visitors get.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ConfigError, DirectoryConfig, PageConfig, PageFiles, PageSource, ROUTES_MAX, RouteConfig,
    RouteKind, VisitsConfig,
    contents::{Content, SORRY, WELCOME},
    file::{RouteTable, Text},
    pick::{Setting, or_text},
    settle::invalid,
    values::CacheTime,
};
use crate::{http::request::Method, plural::plural, upstream::Target};

/// The routes of the file, or the one that there is without any.
pub(super) fn settle_routes(
    mut tables: Vec<RouteTable>,
    counter: Option<Target>,
    site_files: &PageFiles,
) -> Result<Vec<RouteConfig>, ConfigError> {
    if tables.is_empty() {
        tables.push(RouteTable { path: String::from("/"), ..RouteTable::default() });
    }
    if tables.len() > ROUTES_MAX {
        let problem = format!("{} are more than {ROUTES_MAX}", tables.len());
        return Err(invalid("route", problem));
    }
    let mut paths = BTreeSet::new();
    for table in &tables {
        if !paths.insert(&table.path) {
            let setting = setting(&table.path);
            return Err(invalid(setting, "path: another route has it already"));
        }
    }
    let settle = |table: RouteTable| {
        let setting = setting(&table.path);
        let path = table.path.clone();
        let kind = settle_kind(table, counter.as_ref(), site_files);
        let kind = kind.map_err(|problem| invalid(setting, problem))?;
        Ok(RouteConfig { path, kind })
    };
    tables.into_iter().map(settle).collect()
}

/// How a route is named where it is wrong.
fn setting(path: &str) -> String {
    format!("route {path:?}")
}

impl RouteConfig {
    /// How it is named where it is wrong.
    pub(super) fn setting(&self) -> String {
        setting(&self.path)
    }
}

/// What a table says, or what is wrong with it.
fn settle_kind(
    table: RouteTable,
    counter: Option<&Target>,
    site_files: &PageFiles,
) -> Result<RouteKind, String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
    if !table.path.starts_with('/') || !table.path.bytes().all(plain) {
        let problem = "path: it must begin with / and hold visible ASCII without ?, # and \\";
        return Err(problem.to_owned());
    }
    if table.directory.is_some() {
        return settle_directory(table);
    }
    if table.path.ends_with("/*") {
        let problem = "path: one that ends in /* is for the files of a directory; give directory";
        return Err(problem.to_owned());
    }
    match table.counted {
        Some(false) => settle_page(table),
        Some(true) | None => settle_visits(table, counter, site_files),
    }
}

fn settle_visits(
    table: RouteTable,
    counter: Option<&Target>,
    site_files: &PageFiles,
) -> Result<RouteKind, String> {
    let uncounted = [
        ("page", table.page.is_some(), "its page is welcome"),
        ("text", table.text.is_some(), "its page is welcome"),
        ("cache", table.cache.is_some(), "a visit that a cache answers is not counted"),
    ];
    if let Some((key, _, reason)) = uncounted.iter().find(|(_, is_given, _)| *is_given) {
        return Err(format!(
            "{key}: it is for routes with counted = false; this one is counted, and {reason}"
        ));
    }
    let mut methods = vec![Method::Get, Method::Head];
    if let Some(listed) = table.methods {
        methods = listed.into_iter().map(Method::from).collect();
        let repeated = (1..methods.len()).any(|place| methods[..place].contains(&methods[place]));
        if methods.is_empty() || repeated {
            let problem = "methods: it must list some of GET, HEAD and POST, each once";
            return Err(problem.to_owned());
        }
    }
    let files = PageFiles {
        welcome: table.welcome.or_else(|| site_files.welcome.clone()),
        sorry: table.sorry.or_else(|| site_files.sorry.clone()),
    };
    let counter = table.counter.map(|Text(target)| target).or_else(|| counter.cloned());
    Ok(RouteKind::Visits(VisitsConfig { methods, counter, files }))
}

/// Refuses what only a visit has.
fn refuse_visits_keys(table: &RouteTable) -> Result<(), String> {
    let of_visits = [
        ("welcome", table.welcome.is_some(), "page = \"FILE\" names what it serves"),
        ("sorry", table.sorry.is_some(), "nothing is registered that could fail"),
        ("counter", table.counter.is_some(), "nothing is registered"),
        ("methods", table.methods.is_some(), "it takes GET and HEAD"),
    ];
    match of_visits.iter().find(|(_, is_given, _)| *is_given) {
        Some((key, _, reason)) => Err(format!("{key}: this route is not counted: {reason}")),
        None => Ok(()),
    }
}

fn settle_page(table: RouteTable) -> Result<RouteKind, String> {
    refuse_visits_keys(&table)?;
    let cache = table.cache.map(|Text(CacheTime(time))| time);
    let source = match (table.page, table.text) {
        (Some(page), None) => PageSource::File(page),
        (None, Some(text)) => PageSource::Text(text),
        (Some(_), Some(_)) => return Err(String::from("page, text: they exclude each other")),
        (None, None) => {
            let problem =
                "counted: a route that is not counted needs page = \"FILE\" or text = \"TEXT\"";
            return Err(problem.to_owned());
        }
    };
    Ok(RouteKind::Page(PageConfig { source, cache }))
}

fn settle_directory(table: RouteTable) -> Result<RouteKind, String> {
    if table.counted == Some(true) {
        let problem =
            "counted: files of a directory are not counted; a file that is gets a route of its own";
        return Err(problem.to_owned());
    }
    refuse_visits_keys(&table)?;
    if table.page.is_some() || table.text.is_some() {
        return Err(String::from("page, text: the files of the directory are what is served"));
    }
    // An empty segment would make the path of a redirection that of another host.
    if !table.path.ends_with("/*") || table.path.contains("//") {
        let problem =
            "path: that of a directory must end in /*, like /static/*, and have no // in it";
        return Err(problem.to_owned());
    }
    let cache = table.cache.map(|Text(CacheTime(time))| time);
    let directory = table.directory.unwrap_or_default();
    Ok(RouteKind::Directory(DirectoryConfig { directory, cache }))
}

/// A route, for a person; `file` is what it stands in.
pub(super) fn describe(route: &RouteConfig, content: &Content, file: Option<&Path>) -> Setting {
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
        source: match file {
            Some(path) => format!("file {}", path.display()),
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
    let counter = visits.counter.as_ref().map_or(String::from("bundled"), Target::to_string);
    let shown = |path: &Option<PathBuf>, text| or_text(text)(path);
    format!(
        "{} to {counter}; welcome {}; sorry {}",
        methods.join(", "),
        shown(&visits.files.welcome, WELCOME),
        shown(&visits.files.sorry, SORRY)
    )
}

/// How many counters there are: routes whose URLs differ in their path alone have one in common.
pub(super) fn origins(routes: &[RouteConfig]) -> usize {
    let visits = routes.iter().filter_map(RouteConfig::visits);
    let origins = visits.map(|visits| visits.counter.as_ref().map(|target| &target.origin));
    origins.collect::<BTreeSet<_>>().len()
}
