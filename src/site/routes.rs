//! The routes of a site: as all workers are given them, and as each looks paths up in them.

use std::{cell::RefCell, cmp::Ordering, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::StatusCode;

use super::{
    answers::{Answers, Pages},
    visit::{Accept, Counter},
};
use crate::{http::request::Method, upstream::Upstream};

/// What holds for all routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What counts as a visit that was registered.
    pub accept: Accept,
    /// The status of a sorry page.
    pub sorry_status: StatusCode,
}

/// All that a site serves. Workers share it and make a [`Table`] of it each.
#[derive(Debug)]
pub struct RouteSet {
    /// What holds for all of them.
    pub rules: Rules,
    /// The routes, each with a path of its own.
    pub routes: Vec<Route>,
}

/// A path, and what its requests get.
#[derive(Debug)]
pub struct Route {
    /// The path, compared to the request's as it was sent.
    pub path: String,
    /// What is served.
    pub kind: RouteKind,
}

/// What a route serves.
#[derive(Debug)]
pub enum RouteKind {
    /// Pages whose requests are visits.
    Visits(Visits),
}

/// What the visits of a route need.
#[derive(Debug)]
pub struct Visits {
    /// The methods that are visits; others are answered with 405.
    pub methods: Vec<Method>,
    /// The counter that registers them, by its place among the site's upstreams.
    pub upstream: usize,
    /// The call that registers one, as it goes over the wire.
    pub call: Bytes,
    /// The counter's URL, for a person.
    pub counter: Arc<str>,
    /// What the visitor gets.
    pub pages: Pages,
}

/// One worker's routes, ready to be looked up.
#[derive(Default)]
pub(super) struct Table {
    /// In the order of [`compare`].
    exact: Vec<(Box<str>, Place)>,
    /// The counters of the visits, each once.
    counters: Vec<Rc<Counter>>,
}

/// What a path leads to.
pub(super) enum Place {
    Visits(Rc<VisitRoute>),
}

/// A route whose requests are visits, as a worker serves it.
pub struct VisitRoute {
    methods: Vec<Method>,
    pub(super) accept: Accept,
    pub(super) counter: Rc<Counter>,
    pub(super) answers: RefCell<Answers>,
}

impl VisitRoute {
    pub(super) fn takes(&self, method: Method) -> bool {
        self.methods.contains(&method)
    }
}

impl Table {
    /// The table of `set`. Counters that `before` has are taken over with what is known of their visits.
    pub(super) fn new(set: &RouteSet, upstreams: &[Rc<Upstream>], before: &Self) -> Self {
        let mut table = Self::default();
        for route in &set.routes {
            let place = match &route.kind {
                RouteKind::Visits(visits) => Place::Visits(Rc::new(VisitRoute {
                    methods: visits.methods.clone(),
                    accept: set.rules.accept,
                    counter: table.counter(visits, upstreams, before),
                    answers: RefCell::new(Answers::new(
                        &visits.methods,
                        &visits.pages,
                        set.rules.sorry_status,
                    )),
                })),
            };
            table.exact.push((route.path.as_str().into(), place));
        }
        table.exact.sort_unstable_by(|(one, _), (other, _)| compare(one, other));
        table
    }

    fn counter(
        &mut self,
        visits: &Visits,
        upstreams: &[Rc<Upstream>],
        before: &Self,
    ) -> Rc<Counter> {
        let upstream = &upstreams[visits.upstream];
        let is = |counter: &&Rc<Counter>| counter.is(upstream, &visits.call);
        if let Some(known) = self.counters.iter().find(is) {
            return Rc::clone(known);
        }
        let counter = match before.counters.iter().find(is) {
            Some(known) => Rc::clone(known),
            None => Rc::new(Counter::new(
                Rc::clone(upstream),
                visits.call.clone(),
                Arc::clone(&visits.counter),
            )),
        };
        self.counters.push(Rc::clone(&counter));
        counter
    }

    /// What is served at `path`.
    pub(super) fn find(&self, path: &str) -> Option<&Place> {
        let found = self.exact.binary_search_by(|(known, _)| compare(known, path));
        found.ok().map(|place| &self.exact[place].1)
    }

    pub(super) fn counters(&self) -> &[Rc<Counter>] {
        &self.counters
    }
}

/// By length first: most paths differ in it, and to find that out takes no look at their bytes.
fn compare(one: &str, other: &str) -> Ordering {
    (one.len(), one).cmp(&(other.len(), other))
}
