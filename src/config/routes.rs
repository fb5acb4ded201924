//! Which paths are visits, who registers them and what their visitors get.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    ConfigError, PageFiles, ROUTES_MAX, RouteConfig,
    file::{RouteTable, Text},
    pages::{SORRY, WELCOME, read_pages},
    pick::{Setting, or_text},
    settle::invalid,
};
use crate::{http::request::Method, upstream::Endpoint};

/// The routes of the file, or the one that there is without any.
pub(super) fn settle_routes(
    mut tables: Vec<RouteTable>,
    counter: Option<Endpoint>,
    site_files: &PageFiles,
) -> Result<Vec<RouteConfig>, ConfigError> {
    if tables.is_empty() {
        let path = String::from("/");
        tables.push(RouteTable { path, methods: None, counter: None, welcome: None, sorry: None });
    }
    if tables.len() > ROUTES_MAX {
        let problem = format!("{} are more than {ROUTES_MAX}", tables.len());
        return Err(invalid("route", problem));
    }
    let mut routes: Vec<RouteConfig> = Vec::with_capacity(tables.len());
    for table in tables {
        let setting = format!("route {:?}", table.path);
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
        if !table.path.starts_with('/') || !table.path.bytes().all(plain) {
            let problem = "path: it must begin with / and hold visible ASCII without ?, # and \\";
            return Err(invalid(setting, problem));
        }
        if routes.iter().any(|route| route.path == table.path) {
            return Err(invalid(setting, "path: another route has it already"));
        }
        let mut methods = vec![Method::Get, Method::Head];
        if let Some(listed) = table.methods {
            methods = listed.into_iter().map(Method::from).collect();
            let repeated =
                (1..methods.len()).any(|place| methods[..place].contains(&methods[place]));
            if methods.is_empty() || repeated {
                let problem = "methods: it must list some of GET, HEAD and POST, each once";
                return Err(invalid(setting, problem));
            }
        }
        let files = PageFiles {
            welcome: table.welcome.or_else(|| site_files.welcome.clone()),
            sorry: table.sorry.or_else(|| site_files.sorry.clone()),
        };
        routes.push(RouteConfig {
            path: table.path,
            methods,
            counter: table.counter.map(|Text(target)| target).or_else(|| counter.clone()),
            pages: read_pages(&files)?,
            files,
        });
    }
    Ok(routes)
}

/// A route, for a person; `file` is what it stands in.
pub(super) fn describe(route: &RouteConfig, file: Option<&Path>) -> Setting {
    let methods: Vec<_> = route.methods.iter().map(|method| method.as_str()).collect();
    let counter = route.counter.as_ref().map_or(String::from("bundled"), Endpoint::to_string);
    let shown = |path: &Option<PathBuf>, text| or_text(text)(path);
    Setting {
        name: format!("route {}", route.path),
        value: format!(
            "{} to {counter}; welcome {}; sorry {}",
            methods.join(", "),
            shown(&route.files.welcome, WELCOME),
            shown(&route.files.sorry, SORRY)
        ),
        source: match file {
            Some(path) => format!("file {}", path.display()),
            None => String::from("the settings above"),
        },
    }
}

/// How many counters there are: routes whose URLs differ in their path alone have one in common.
pub(super) fn origins(routes: &[RouteConfig]) -> usize {
    let origins = routes.iter().map(|route| route.counter.as_ref().map(|target| &target.origin));
    origins.collect::<BTreeSet<_>>().len()
}
