//! Turns the routes of the settings into those of the workers: each gets its counter among those that the workers know.

use std::collections::BTreeSet;

use super::{counter::Addresses, summary::BUNDLED};
use crate::{
    config::{Content, RouteConfig, RouteKind, VisitsConfig},
    site::{self, Route, RouteSet, Rules, Visits},
    upstream::{Endpoint, Host},
};

/// A counter that the workers do not know: they know those of the start only.
#[derive(Debug, thiserror::Error)]
#[error("route {path:?}: the counter {counter} is new, which takes a restart")]
pub struct UnknownCounter {
    path: String,
    /// The counter's URL, or `(bundled)`.
    counter: String,
}

/// The counters that the workers know, from the start on.
pub(super) struct Counters {
    /// Each once; the index is that of the workers' upstream.
    origins: Vec<Host>,
    bundled: Option<Addresses>,
}

impl Counters {
    /// The counters of these routes; `bundled` is the address of the bundled one, if it runs.
    pub(super) fn of(routes: &[RouteConfig], bundled: Option<Addresses>) -> Self {
        let mut counters = Self { origins: Vec::new(), bundled };
        for visits in routes.iter().filter_map(RouteConfig::visits) {
            if let Some(Endpoint { origin, .. }) = counters.target(visits)
                && !counters.origins.contains(&origin)
            {
                counters.origins.push(origin);
            }
        }
        counters
    }

    pub(super) fn origins(&self) -> &[Host] {
        &self.origins
    }

    /// Whether the bundled counter is there.
    pub(super) fn is_bundled(&self, origin: &Host) -> bool {
        self.bundled.is_some_and(|bundled| *origin == Host::Address(bundled.own))
    }

    /// These routes for the workers, each with its content.
    ///
    /// # Errors
    /// When a route needs a counter that the workers do not know.
    pub(super) fn route_set(
        &self,
        routes: &[RouteConfig],
        contents: Vec<Content>,
        rules: Rules,
    ) -> Result<RouteSet, UnknownCounter> {
        assert_eq!(routes.len(), contents.len(), "each route has its content");
        let of_route = |(route, content): (&RouteConfig, Content)| {
            let kind = match (&route.kind, content) {
                (RouteKind::Visits(visits), Content::Pages(pages)) => {
                    site::RouteKind::Visits(Box::new(self.visits(route, visits, pages)?))
                }
                (RouteKind::Page(_), Content::File(file)) => site::RouteKind::File(file),
                (RouteKind::Directory(_), Content::Directory(directory)) => {
                    site::RouteKind::Directory(directory)
                }
                _ => unreachable!("the content of a route is of its kind"),
            };
            Ok(Route { path: route.path.clone(), kind })
        };
        let routes = routes.iter().zip(contents).map(of_route).collect::<Result<_, _>>()?;
        Ok(RouteSet { rules, routes })
    }

    fn visits(
        &self,
        route: &RouteConfig,
        visits: &VisitsConfig,
        pages: site::Pages,
    ) -> Result<Visits, UnknownCounter> {
        let Some((target, upstream)) = self.find(visits) else {
            let counter = visits.counter.as_ref();
            let counter = counter.map_or_else(|| String::from("(bundled)"), Endpoint::to_string);
            return Err(UnknownCounter { path: route.path.clone(), counter });
        };
        Ok(Visits {
            methods: visits.methods.clone(),
            upstream,
            call: target.request(),
            counter: self.shown(visits).map(|url| url.to_string()).unwrap_or_default().into(),
            pages,
        })
    }

    /// Whether the workers know the counter of these visits.
    pub(super) fn know(&self, visits: &VisitsConfig) -> bool {
        self.find(visits).is_some()
    }

    /// The counter of these visits and its index, if the workers know it.
    fn find(&self, visits: &VisitsConfig) -> Option<(Endpoint, usize)> {
        let target = self.target(visits)?;
        let index = self.origins.iter().position(|origin| *origin == target.origin)?;
        Some((target, index))
    }

    /// Where these visits are registered; `None` if that is the bundled counter and it does not run.
    fn target(&self, visits: &VisitsConfig) -> Option<Endpoint> {
        let bundled = || self.bundled.map(|addresses| Endpoint::bundled(addresses.own));
        visits.counter.clone().or_else(bundled)
    }

    /// The same, for messages.
    fn shown(&self, visits: &VisitsConfig) -> Option<Endpoint> {
        let bundled = || self.bundled.map(|addresses| Endpoint::bundled(addresses.shown));
        visits.counter.clone().or_else(bundled)
    }

    /// The URLs of the counters of these routes.
    pub(super) fn urls(&self, routes: &[RouteConfig]) -> BTreeSet<String> {
        let targets = routes.iter().filter_map(|route| self.shown(route.visits()?));
        targets.map(|target| target.to_string()).collect()
    }

    /// Where the visits of each route are registered, for a person.
    pub(super) fn describe(&self, routes: &[RouteConfig]) -> impl Iterator<Item = String> {
        let visits = routes.iter().filter_map(RouteConfig::visits);
        visits.filter_map(|visits| {
            let bundled = if visits.counter.is_none() { BUNDLED } else { "" };
            self.shown(visits).map(|target| format!("{target}{bundled}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::{
        config::{PageFiles, read_contents},
        http::request::Method,
        site::Accept,
    };

    const RULES: Rules =
        Rules { accept: Accept::Success, sorry_status: StatusCode::OK, traces: None };

    fn routes(counters: &[(&str, Option<&str>)]) -> Vec<RouteConfig> {
        let route = |&(path, counter): &(&str, Option<&str>)| {
            let counter = counter.map(|url| url.parse().unwrap());
            let (methods, files) = (vec![Method::Get], PageFiles::default());
            let kind = RouteKind::Visits(VisitsConfig { methods, counter, files });
            RouteConfig { path: path.to_owned(), kind }
        };
        counters.iter().map(route).collect()
    }

    /// The upstream of each route, or the error.
    fn indices(counters: &Counters, routes: &[RouteConfig]) -> Result<Vec<usize>, String> {
        let contents = read_contents(routes, &PageFiles::default(), 0, &mut vec![]).unwrap();
        let set = counters.route_set(routes, contents, RULES).map_err(|error| error.to_string())?;
        let index = |route: &Route| match &route.kind {
            site::RouteKind::Visits(visits) => visits.upstream,
            other => panic!("{other:?} is no visit"),
        };
        Ok(set.routes.iter().map(index).collect())
    }

    #[test]
    fn routes_may_change_within_the_counters_of_the_start() {
        let (one, other) = ("http://a:1/counter", "http://b:1/counter");
        let start = routes(&[("/", Some(one)), ("/b", Some(other)), ("/c", Some("http://a:1/c"))]);
        let counters = Counters::of(&start, None);
        assert_eq!(counters.origins().len(), 2);
        assert_eq!(indices(&counters, &start), Ok(vec![0, 1, 0]));
        let changed = routes(&[("/d", Some("http://b:1/d")), ("/", Some(one))]);
        assert_eq!(indices(&counters, &changed), Ok(vec![1, 0]));
        assert_eq!(indices(&counters, &[]), Ok(vec![]));
        let error = indices(&counters, &routes(&[("/d", Some("http://a:2/counter"))])).unwrap_err();
        assert!(error.contains("\"/d\": the counter http://a:2/counter is new"), "{error}");
        let error = indices(&counters, &routes(&[("/", None)])).unwrap_err();
        assert!(error.contains("(bundled) is new"), "{error}");
    }

    #[test]
    fn the_bundled_counter_is_known_where_it_runs() {
        let own = std::net::SocketAddr::from(([127, 0, 0, 1], 3001));
        let bundled = Addresses { own, shown: own };
        let counters = Counters::of(&routes(&[("/", None)]), Some(bundled));
        let both = routes(&[("/", Some("http://127.0.0.1:3001/counter/a")), ("/b", None)]);
        assert_eq!(indices(&counters, &both), Ok(vec![0, 0]));
    }
}
