//! Turns the routes of the settings into those of the workers: each gets its counter among those that the workers know.

use std::{collections::BTreeSet, sync::Arc};

use super::{counter::Addresses, summary::BUNDLED};
use crate::{
    config::{Content, CounterSpread, RouteConfig, RouteKind, VisitsConfig, show_counters},
    site::{self, Accept, Route, RouteSet, Rules, VisitCounter, Visits},
    upstream::{Batching, Endpoint, Host},
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
    /// Each once.
    origins: Vec<Origin>,
    bundled: Option<Addresses>,
}

/// A host that has one or more of the workers' upstreams.
pub(super) struct Origin {
    pub(super) host: Host,
    /// The index of its first upstream.
    pub(super) first: usize,
    /// How many it has: one, or one for each address that its name may have.
    pub(super) slots: usize,
}

impl Counters {
    /// The counters of these routes; `bundled` is the address of the bundled one, if it runs.
    pub(super) fn of(
        routes: &[RouteConfig],
        spread: CounterSpread,
        bundled: Option<Addresses>,
    ) -> Self {
        let mut counters = Self { origins: Vec::new(), bundled };
        for visits in routes.iter().filter_map(RouteConfig::visits) {
            for Endpoint { origin: host, .. } in counters.targets(visits) {
                if counters.origin(&host).is_none() {
                    let (first, slots) = (counters.upstreams(), spread.slots(&host));
                    counters.origins.push(Origin { host, first, slots });
                }
            }
        }
        counters
    }

    pub(super) fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// How many upstreams a worker has.
    pub(super) fn upstreams(&self) -> usize {
        self.origins.last().map_or(0, |last| last.first + last.slots)
    }

    fn origin(&self, host: &Host) -> Option<&Origin> {
        self.origins.iter().find(|origin| origin.host == *host)
    }

    /// Whether the bundled counter is there.
    pub(super) fn is_bundled(&self, origin: &Host) -> bool {
        self.bundled.is_some_and(|bundled| *origin == Host::Address(bundled.own))
    }

    /// These routes for the workers, each with its content. A call registers at most `batch_max` visits.
    ///
    /// # Errors
    /// When a route needs a counter that the workers do not know.
    pub(super) fn route_set(
        &self,
        routes: &[RouteConfig],
        contents: Vec<Content>,
        rules: Rules,
        batch_max: usize,
    ) -> Result<RouteSet, UnknownCounter> {
        assert_eq!(routes.len(), contents.len(), "each route has its content");
        let of_route = |(route, content): (&RouteConfig, Content)| {
            let kind = match (&route.kind, content) {
                (RouteKind::Visits(visits), Content::Pages(pages)) => site::RouteKind::Visits(
                    Box::new(self.visits(route, visits, pages, (batch_max, rules.accept))?),
                ),
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
        (batch_max, accept): (usize, Accept),
    ) -> Result<Visits, UnknownCounter> {
        let Some(targets) = self.find(visits) else {
            let counter = show_counters(&visits.counters, "(bundled)");
            return Err(UnknownCounter { path: route.path.clone(), counter });
        };
        let mut counters = Vec::new();
        for ((target, origin), shown) in targets.iter().zip(self.shown(visits)) {
            let (call, batching) = target.call(batch_max);
            let batching = match accept {
                Accept::Success => batching,
                Accept::Any => batching.and_then(Batching::unchecked),
            };
            let url = Arc::<str>::from(shown.to_string());
            let upstreams = origin.first..origin.first + origin.slots;
            counters.extend(upstreams.map(|upstream| VisitCounter {
                upstream,
                call: call.clone(),
                batching,
                url: Arc::clone(&url),
            }));
        }
        Ok(Visits { methods: visits.methods.clone(), counters, pages })
    }

    /// Whether the workers know the counters of these visits.
    pub(super) fn know(&self, visits: &VisitsConfig) -> bool {
        self.find(visits).is_some()
    }

    /// The counters of these visits and their upstreams, if the workers know all of them.
    fn find(&self, visits: &VisitsConfig) -> Option<Vec<(Endpoint, &Origin)>> {
        let targets = self.targets(visits).into_iter().map(|target| {
            let origin = self.origin(&target.origin)?;
            Some((target, origin))
        });
        targets.collect::<Option<Vec<_>>>().filter(|targets| !targets.is_empty())
    }

    /// Where these visits are registered; nowhere if that is the bundled counter and it does not run.
    fn targets(&self, visits: &VisitsConfig) -> Vec<Endpoint> {
        self.or_bundled(visits, |addresses| Endpoint::bundled_for_batches(addresses.own))
    }

    /// The same, for messages.
    fn shown(&self, visits: &VisitsConfig) -> Vec<Endpoint> {
        self.or_bundled(visits, |addresses| Endpoint::bundled(addresses.shown))
    }

    fn or_bundled(
        &self,
        visits: &VisitsConfig,
        endpoint: fn(Addresses) -> Endpoint,
    ) -> Vec<Endpoint> {
        match visits.counters.as_slice() {
            [] => self.bundled.map(endpoint).into_iter().collect(),
            counters => counters.to_vec(),
        }
    }

    /// The URLs of the counters of these routes.
    pub(super) fn urls(&self, routes: &[RouteConfig]) -> BTreeSet<String> {
        let visits = routes.iter().filter_map(RouteConfig::visits);
        visits.flat_map(|visits| self.shown(visits)).map(|target| target.to_string()).collect()
    }

    /// Where the visits of each route are registered, for a person.
    pub(super) fn describe(&self, routes: &[RouteConfig]) -> impl Iterator<Item = String> {
        let visits = routes.iter().filter_map(RouteConfig::visits);
        visits.flat_map(|visits| {
            let bundled = if visits.counters.is_empty() { BUNDLED } else { "" };
            self.shown(visits).into_iter().map(move |target| format!("{target}{bundled}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::StatusCode;

    use super::*;
    use crate::{
        config::{CounterUrls, PageFiles, read_contents},
        http::request::Method,
        upstream::balance::CANDIDATES_MAX,
    };

    const RULES: Rules =
        Rules { accept: Accept::Success, sorry_status: StatusCode::OK, traces: None };

    fn routes(counters: &[(&str, Option<&str>)]) -> Vec<RouteConfig> {
        let route = |&(path, counter): &(&str, Option<&str>)| {
            let counters = counter.map(|urls| urls.parse::<CounterUrls>().unwrap().0);
            let (methods, files) = (vec![Method::Get], PageFiles::default());
            let counters = counters.unwrap_or_default();
            let kind = RouteKind::Visits(VisitsConfig { methods, counters, files });
            RouteConfig { path: path.to_owned(), kind }
        };
        counters.iter().map(route).collect()
    }

    /// The upstreams of each route, or the error.
    fn indices(counters: &Counters, routes: &[RouteConfig]) -> Result<Vec<Vec<usize>>, String> {
        let contents = read_contents(routes, &PageFiles::default(), 0, &mut vec![]).unwrap();
        let set =
            counters.route_set(routes, contents, RULES, 1000).map_err(|error| error.to_string())?;
        let index = |route: &Route| match &route.kind {
            site::RouteKind::Visits(visits) => {
                visits.counters.iter().map(|counter| counter.upstream).collect()
            }
            other => panic!("{other:?} is no visit"),
        };
        Ok(set.routes.iter().map(index).collect())
    }

    #[test]
    fn routes_may_change_within_the_counters_of_the_start() {
        let (one, other) = ("http://a:1/counter", "http://b:1/counter");
        let start = routes(&[("/", Some(one)), ("/b", Some(other)), ("/c", Some("http://a:1/c"))]);
        let counters = Counters::of(&start, CounterSpread::Name, None);
        assert_eq!(counters.upstreams(), 2);
        assert_eq!(indices(&counters, &start), Ok(vec![vec![0], vec![1], vec![0]]));
        let changed = routes(&[("/d", Some("http://b:1/d")), ("/", Some(one))]);
        assert_eq!(indices(&counters, &changed), Ok(vec![vec![1], vec![0]]));
        let both = routes(&[("/", Some("http://b:1/counter,http://a:1/counter"))]);
        assert_eq!(indices(&counters, &both), Ok(vec![vec![1, 0]]));
        assert_eq!(indices(&counters, &[]), Ok(vec![]));
        let error = indices(&counters, &routes(&[("/d", Some("http://a:2/counter"))])).unwrap_err();
        assert!(error.contains("\"/d\": the counter http://a:2/counter is new"), "{error}");
        let one_is_new = routes(&[("/", Some("http://b:1/counter,http://a:3/counter"))]);
        let error = indices(&counters, &one_is_new).unwrap_err();
        assert!(error.contains("http://b:1/counter, http://a:3/counter is new"), "{error}");
        let error = indices(&counters, &routes(&[("/", None)])).unwrap_err();
        assert!(error.contains("(bundled) is new"), "{error}");
    }

    #[test]
    fn the_bundled_counter_is_known_where_it_runs() {
        let own = SocketAddr::from(([127, 0, 0, 1], 3001));
        let bundled = Addresses { own, shown: own };
        let counters =
            Counters::of(&routes(&[("/", None)]), CounterSpread::Addresses, Some(bundled));
        let both = routes(&[("/", Some("http://127.0.0.1:3001/counter/a")), ("/b", None)]);
        assert_eq!(indices(&counters, &both), Ok(vec![vec![0], vec![0]]));
    }

    #[test]
    fn each_address_of_a_name_is_a_counter_where_visits_are_spread_over_them() {
        let two = routes(&[("/", Some("http://127.0.0.1:1/")), ("/b", Some("http://b:1/counter"))]);
        let counters = Counters::of(&two, CounterSpread::Addresses, None);
        assert_eq!(counters.upstreams(), 1 + CANDIDATES_MAX);
        let slots: Vec<usize> = (1..=CANDIDATES_MAX).collect();
        assert_eq!(indices(&counters, &two), Ok(vec![vec![0], slots]));
    }
}
