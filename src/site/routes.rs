//! The routes of a site: as all workers share them, and as each worker looks paths up.

use std::{cmp::Ordering, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::StatusCode;

use super::{
    Share,
    answers::{Answers, Pages},
    directory::{Directory, Found},
    files::File,
    spread::Counters,
    visit::{Accept, Counter},
};
use crate::{
    http::request::Method,
    upstream::{Batching, Upstream},
};

/// What applies to all routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What counts as a visit that was registered.
    pub accept: Accept,
    /// The status of a sorry page.
    pub sorry_status: StatusCode,
    /// Whether calls take traces to the counter, and which share of those that begin here is to be recorded.
    pub traces: Option<Share>,
}

/// All that a site serves. Workers share it and make a [`Table`] of it each.
#[derive(Debug)]
pub struct RouteSet {
    /// What applies to all of them.
    pub rules: Rules,
    /// The routes, each with a path of its own.
    pub routes: Vec<Route>,
}

/// A path, and what its requests get.
#[derive(Debug)]
pub struct Route {
    /// The path, compared to the request's as it was sent. That of a directory ends in `/*`, and matches all paths
    /// that begin with the part before the `*`.
    pub path: String,
    /// What is served.
    pub kind: RouteKind,
}

/// What a route serves.
#[derive(Debug)]
pub enum RouteKind {
    /// Pages whose requests are visits.
    Visits(Box<Visits>),
    /// A content that is not counted.
    File(Arc<File>),
    /// The files of a directory, which are not counted.
    Directory(Arc<Directory>),
}

/// What the visits of a route need.
#[derive(Debug)]
pub struct Visits {
    /// The methods that are visits; others are answered with 405.
    pub methods: Vec<Method>,
    /// The counters of which one registers each: at least one.
    pub counters: Vec<VisitCounter>,
    /// What the visitor gets.
    pub pages: Pages,
}

/// A counter of a route.
#[derive(Debug, Clone)]
pub struct VisitCounter {
    /// Its place among the site's upstreams.
    pub upstream: usize,
    /// The call that registers a visit, as it goes over the wire.
    pub call: Bytes,
    /// How that call registers several, if it does.
    pub batching: Option<Batching>,
    /// Its URL, for a person.
    pub url: Arc<str>,
}

/// One worker's routes, ready to be looked up.
#[derive(Default)]
pub(super) struct Table {
    /// In the order of [`compare`].
    exact: Vec<(Box<str>, Place)>,
    /// By the prefix of their files' paths, which ends in `/`; the longest first.
    directories: Vec<(Box<str>, Arc<Directory>)>,
    /// The counters of the visits, each once.
    counters: Vec<Rc<Counter>>,
}

/// What a path leads to.
pub(super) enum Place {
    Visits(Rc<VisitRoute>),
    File(Arc<File>),
}

/// A route whose requests are visits, as a worker serves it.
pub struct VisitRoute {
    methods: Vec<Method>,
    pub(super) accept: Accept,
    pub(super) traces: Option<Share>,
    pub(super) counters: Counters,
    pub(super) answers: Answers,
}

impl VisitRoute {
    fn new(visits: &Visits, counters: Counters, rules: Rules) -> Self {
        let Visits { methods, pages, .. } = visits;
        Self {
            methods: methods.clone(),
            accept: rules.accept,
            traces: rules.traces,
            counters,
            answers: Answers::new(methods, pages, rules.sorry_status),
        }
    }

    pub(super) fn takes(&self, method: Method) -> bool {
        self.methods.contains(&method)
    }
}

impl Table {
    /// The table of `set`. Counters that `before` has are kept, with what is known of their visits.
    pub(super) fn new(set: &RouteSet, upstreams: &[Rc<Upstream>], before: &Self) -> Self {
        let mut table = Self::default();
        for route in &set.routes {
            let place = match &route.kind {
                RouteKind::Visits(visits) => {
                    let counters = visits.counters.iter();
                    let counters =
                        counters.map(|counter| table.counter(counter, upstreams, before));
                    let counters = Counters::of(counters.collect());
                    Place::Visits(Rc::new(VisitRoute::new(visits, counters, set.rules)))
                }
                RouteKind::File(file) => Place::File(Arc::clone(file)),
                RouteKind::Directory(directory) => {
                    let prefix = route.path.trim_end_matches('*').into();
                    table.directories.push((prefix, Arc::clone(directory)));
                    continue;
                }
            };
            table.exact.push((route.path.as_str().into(), place));
        }
        table.exact.sort_unstable_by(|(one, _), (other, _)| compare(one, other));
        table.directories.sort_unstable_by(|(one, _), (other, _)| compare(other, one));
        table
    }

    fn counter(
        &mut self,
        counter: &VisitCounter,
        upstreams: &[Rc<Upstream>],
        before: &Self,
    ) -> Rc<Counter> {
        let upstream = &upstreams[counter.upstream];
        let is = |known: &&Rc<Counter>| known.is(upstream, counter);
        if let Some(known) = self.counters.iter().find(is) {
            return Rc::clone(known);
        }
        let made = match before.counters.iter().find(is) {
            Some(known) => Rc::clone(known),
            None => {
                let url = |known: &&Rc<Counter>| known.is_at(upstream, &counter.url);
                let same = before.counters.iter().find(url);
                Rc::new(Counter::new(Rc::clone(upstream), counter, same.map(|same| &**same)))
            }
        };
        self.counters.push(Rc::clone(&made));
        made
    }

    /// The route that has exactly `path`.
    pub(super) fn find(&self, path: &str) -> Option<&Place> {
        let found = self.exact.binary_search_by(|(known, _)| compare(known, path));
        found.ok().map(|place| &self.exact[place].1)
    }

    /// What a path without a route of its own leads to in a directory: in the one with the longest path, even if
    /// another has such a file.
    pub(super) fn find_file(&self, path: &str) -> Found<'_> {
        for (prefix, directory) in &self.directories {
            if let Some(rest) = path.strip_prefix(&**prefix) {
                return directory.find(rest);
            }
            if prefix.strip_suffix('/') == Some(path) && directory.has_index() {
                return Found::Directory(directory);
            }
        }
        Found::Nothing
    }

    pub(super) fn counters(&self) -> &[Rc<Counter>] {
        &self.counters
    }
}

/// By length first: most paths differ in it, and that takes no comparison of bytes.
fn compare(one: &str, other: &str) -> Ordering {
    (one.len(), one).cmp(&(other.len(), other))
}
