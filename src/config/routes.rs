//! Which paths are visits, who registers them and what their visitors get.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    ConfigError, PageFiles, ROUTES_MAX, RouteConfig,
    error::invalid,
    file::RouteTable,
    pages::{PageType, SORRY, WELCOME, read_pages},
    pick::{Setting, or_text},
    scalar::Text,
};
use crate::{http::request::Method, site::Pages, upstream::Target};

/// The routes of the file, or the one that there is without any.
pub(super) fn settle_routes(
    mut tables: Vec<RouteTable>,
    counter: Option<Target>,
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
    for (place, table) in tables.into_iter().enumerate() {
        let path = table.path.clone();
        let wrong = |key: &str, problem: &str| invalid(key, problem).of_route(place, &path);
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
        if !table.path.starts_with('/') || !table.path.bytes().all(plain) {
            let problem = "it must begin with / and hold visible ASCII without ?, # and \\";
            return Err(wrong("path", problem));
        }
        if routes.iter().any(|route| route.path == table.path) {
            return Err(wrong("path", "another route has it already"));
        }
        let mut methods = vec![Method::Get, Method::Head];
        if let Some(listed) = table.methods {
            methods = listed.into_iter().map(Method::from).collect();
            let repeated =
                (1..methods.len()).any(|place| methods[..place].contains(&methods[place]));
            if methods.is_empty() || repeated {
                let problem = "it must list some of GET, HEAD and POST, each once";
                return Err(wrong("methods", problem));
            }
        }
        let own = PageFiles {
            welcome: table.welcome,
            sorry: table.sorry,
            content_type: table.content_type.map(|Text(PageType(value))| value),
        };
        let (files, pages) = settle_pages(own, site_files)
            .map_err(|(error, is_own)| if is_own { error.of_route(place, &path) } else { error })?;
        routes.push(RouteConfig {
            path: table.path,
            methods,
            counter: table.counter.map(|Text(target)| target).or_else(|| counter.clone()),
            pages,
            files,
        });
    }
    Ok(routes)
}

/// The files of a route's pages, and what they hold. An error is the route's own, or that of a setting of the site.
fn settle_pages(
    own: PageFiles,
    of_site: &PageFiles,
) -> Result<(PageFiles, Pages), (ConfigError, bool)> {
    let gives = |setting: &str| match setting {
        "welcome" => own.welcome.is_some(),
        "sorry" => own.sorry.is_some(),
        _ => true,
    };
    let files = PageFiles {
        welcome: own.welcome.clone().or_else(|| of_site.welcome.clone()),
        sorry: own.sorry.clone().or_else(|| of_site.sorry.clone()),
        content_type: own.content_type.clone(),
    };
    if files.content_type.is_some() && files.welcome.is_none() && files.sorry.is_none() {
        return Err((invalid("type", "it is for files; give welcome or sorry"), true));
    }
    match read_pages(&files) {
        Ok(pages) => Ok((files, pages)),
        Err(error) => {
            let is_own = matches!(&error, ConfigError::Value { setting, .. } if gives(setting));
            Err((error, is_own))
        }
    }
}

/// A route, for a person; `line` is where it stands in the file.
pub(super) fn describe(route: &RouteConfig, line: Option<&str>) -> Setting {
    let methods: Vec<_> = route.methods.iter().map(|method| method.as_str()).collect();
    let counter = route.counter.as_ref().map_or(String::from("bundled"), Target::to_string);
    let shown = |path: &Option<PathBuf>, text| or_text(text)(path);
    Setting {
        name: format!("route {}", route.path),
        value: format!(
            "{} to {counter}; welcome {}; sorry {}",
            methods.join(", "),
            shown(&route.files.welcome, WELCOME),
            shown(&route.files.sorry, SORRY)
        ),
        source: match line {
            Some(line) => format!("file {line}"),
            None => String::from("the settings above"),
        },
    }
}

/// How many counters there are: routes whose URLs differ in their path alone have one in common.
pub(super) fn origins(routes: &[RouteConfig]) -> usize {
    let origins = routes.iter().map(|route| route.counter.as_ref().map(|target| &target.origin));
    origins.collect::<BTreeSet<_>>().len()
}
