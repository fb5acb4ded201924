//! The site as workers: one on each core, each with its listeners and its own side of each counter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;

use super::{Group, Run, ServerError, describe_drivers};
use crate::{
    config::{Config, Cores, RouteConfig, read_pages},
    listener::{self, Listener, inherited},
    mailbox,
    observe::metrics::WorkerMetrics,
    plural::plural,
    site::{Accept, Failures, Route, Rules, Site, Word},
    upstream::{
        Endpoint, Host, Upstream, UpstreamLimits,
        resolve::{self, Refresher},
    },
    worker::{self, Order, Plan},
};

/// How long the start waits for the first answers of the name service.
const FIRST_LOOK_UP: Duration = Duration::from_secs(5);

type Orders = mailbox::Sender<Order<Word>>;

/// The listeners of the workers: for each, one for each address.
pub(super) struct Listeners {
    of_workers: Vec<Vec<Listener>>,
    addresses: Vec<SocketAddr>,
}

/// Gives every worker a listener at every address: at those of the sockets that a service manager has
/// handed down, if there are any, else at those of the settings.
pub(super) fn listen(config: &Config) -> Result<Listeners, ServerError> {
    let count = config.cores.len();
    let handed = inherited::take()?;
    let mut places = Vec::new();
    if handed.is_empty() {
        for &address in &config.listen {
            let listeners = listener::bind(address, count, config.share_port);
            places.push(listeners.map_err(ServerError::Site)?);
        }
    } else {
        tracing::info!("listening on {} of the service manager's, not on --listen", handed.len());
        for socket in &handed {
            places.push(inherited::share_out(socket, count)?);
        }
    }
    let addresses = places.iter().map(|listeners| listeners[0].address).collect();
    let mut of_workers: Vec<Vec<Listener>> = (0..count).map(|_| Vec::new()).collect();
    for listeners in places {
        for (of_worker, listener) in of_workers.iter_mut().zip(listeners) {
            of_worker.push(listener);
        }
    }
    Ok(Listeners { of_workers, addresses })
}

/// The site's workers.
pub(super) struct SiteWorkers {
    orders: Vec<Orders>,
    metrics: Vec<Arc<WorkerMetrics>>,
    addresses: Vec<SocketAddr>,
    drivers: String,
    /// The counters that visits go to, for a person.
    counters: Vec<String>,
}

impl SiteWorkers {
    /// Starts all of them. They stand and listen, but do not accept before [`serve`](Self::serve).
    pub(super) fn start(
        run: &Run,
        config: &Config,
        listeners: Listeners,
        bundled: Option<SocketAddr>,
    ) -> Result<Self, ServerError> {
        let targets = targets(&config.routes, bundled);
        let counters = Counters::of(&targets);
        let mailboxes = config.cores.iter().map(|_| mailbox::channel());
        let (orders, receivers): (Vec<Orders>, Vec<_>) =
            mailboxes.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let (addresses, refreshers) = resolve_all(&counters, &orders)?;
        let mut metrics = Vec::new();
        let parts = config.cores.iter().zip(listeners.of_workers).zip(receivers);
        for (number, ((&core, listeners), receiver)) in parts.enumerate() {
            let counts = Arc::<WorkerMetrics>::default();
            metrics.push(Arc::clone(&counts));
            let parts = SiteParts {
                addresses: addresses.clone(),
                refreshers: refreshers.clone(),
                routes: config.routes.clone(),
                calls: targets.iter().map(Endpoint::request).collect(),
                urls: targets.iter().map(|target| target.to_string().into()).collect(),
                tell: Box::new(run.failure_reporter()),
                places: counters.places.clone(),
                limits: config.limits.upstream.clone(),
                sorry_status: config.sorry_status,
                accept: config.accept,
                metrics: Arc::clone(&counts),
            };
            let upstream = &config.limits.upstream;
            let plan = Plan {
                name: format!("worker-{number}"),
                core: Some(core),
                driver: config.driver,
                listeners,
                limits: config.limits.clients.clone(),
                shortest_wait: Some(upstream.call_timeout.min(upstream.idle_timeout)),
                metrics: counts,
                orders: receiver,
                make: move || parts.build(),
            };
            worker::start(plan, run.reporter(Group::Site))?;
        }
        let drivers = describe_drivers(run.wait_until_ready(Group::Site, config.cores.len())?);
        let named = targets.iter().zip(&config.routes).map(|(target, route)| {
            let bundled = if route.counter.is_none() { " (bundled)" } else { "" };
            format!("{target}{bundled}")
        });
        let counters = each_once(named);
        Ok(Self { orders, metrics, addresses: listeners.addresses, drivers, counters })
    }

    /// Lets them accept.
    pub(super) fn serve(&self) {
        self.tell_all(|| Order::Serve);
    }

    /// Has each report that it still works.
    pub(super) fn ask(&self) {
        self.tell_all(|| Order::Answer);
    }

    /// Lets them finish.
    pub(super) fn drain(&self) {
        self.tell_all(|| Order::Drain);
    }

    /// Stops them whatever is under way.
    pub(super) fn cut(&self) {
        self.tell_all(|| Order::Cut);
    }

    /// Reads the pages anew. Those that cannot be read stay as they are, all of them.
    pub(super) fn reload(&self, config: &Config) {
        let pages: Result<Vec<_>, _> =
            config.routes.iter().map(|route| read_pages(&route.files)).collect();
        match pages {
            Ok(pages) => {
                let pages = Arc::new(pages);
                self.tell_all(|| Order::Tell(Word::Pages(Arc::clone(&pages))));
                tracing::info!("SIGHUP: the pages were read anew");
            }
            Err(error) => tracing::error!("SIGHUP: the pages stay as they were: {error}"),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.orders.len()
    }

    pub(super) fn metrics(&self) -> &[Arc<WorkerMetrics>] {
        &self.metrics
    }

    /// The line that says what runs.
    pub(super) fn describe(&self, config: &Config) -> String {
        let urls: Vec<_> =
            self.addresses.iter().map(|address| format!("http://{address}")).collect();
        let cores = Cores::of(&config.cores);
        format!(
            "tallyring {} serves {} with {} on {} {cores} by {}; visits go to {}",
            env!("CARGO_PKG_VERSION"),
            urls.join(" and "),
            plural(self.orders.len(), "worker"),
            if cores.0.len() == 1 { "core" } else { "cores" },
            self.drivers,
            self.counters.join(", "),
        )
    }

    fn tell_all(&self, order: impl Fn() -> Order<Word>) {
        for orders in &self.orders {
            // Fails only when the worker has failed, which was reported.
            let _ = orders.send(order());
        }
    }
}

/// The texts in their order, without those that were there before.
fn each_once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

/// The counter of each route.
fn targets(routes: &[RouteConfig], bundled: Option<SocketAddr>) -> Vec<Endpoint> {
    let of_route = |route: &RouteConfig| match (&route.counter, bundled) {
        (Some(target), _) => target.clone(),
        (None, Some(address)) => Endpoint::bundled(address),
        (None, None) => unreachable!("a route without a counter makes the bundled one start"),
    };
    routes.iter().map(of_route).collect()
}

/// The counters' origins, each once, and which of them each route's is.
struct Counters {
    origins: Vec<Host>,
    places: Vec<usize>,
}

impl Counters {
    fn of(targets: &[Endpoint]) -> Self {
        let mut known = BTreeMap::new();
        let mut origins = Vec::new();
        let place = |target: &Endpoint| {
            *known.entry(target.origin.clone()).or_insert_with(|| {
                origins.push(target.origin.clone());
                origins.len() - 1
            })
        };
        let places = targets.iter().map(place).collect();
        Self { origins, places }
    }
}

/// Looks up all counters, and sees to it that the workers hear of every change. Gives the first
/// answers; a name that has none by then is looked up further.
fn resolve_all(
    counters: &Counters,
    orders: &[Orders],
) -> Result<(Vec<Vec<SocketAddr>>, Vec<Refresher>), ServerError> {
    let (first, answers) = mpsc::channel();
    let mut refreshers = Vec::new();
    for (place, origin) in counters.origins.iter().enumerate() {
        let (first, orders) = (first.clone(), orders.to_vec());
        refreshers.push(resolve::start(origin.clone(), move |addresses: Vec<SocketAddr>| {
            for orders in &orders {
                let _ = orders.send(Order::Tell(Word::Addresses(place, addresses.clone())));
            }
            let _ = first.send((place, addresses));
        })?);
    }
    let mut addresses = vec![Vec::new(); counters.origins.len()];
    let end = Instant::now() + FIRST_LOOK_UP;
    for _ in &counters.origins {
        match answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((place, answer)) => addresses[place] = answer,
            Err(_) => {
                tracing::warn!("the name service is slow; visits fail until it has answered");
                break;
            }
        }
    }
    Ok((addresses, refreshers))
}

/// What a worker's site is made of, on its way to the worker's thread.
struct SiteParts {
    addresses: Vec<Vec<SocketAddr>>,
    refreshers: Vec<Refresher>,
    routes: Vec<RouteConfig>,
    calls: Vec<Bytes>,
    urls: Vec<Arc<str>>,
    tell: Box<dyn Fn(Failures) + Send>,
    places: Vec<usize>,
    limits: UpstreamLimits,
    sorry_status: StatusCode,
    accept: Accept,
    metrics: Arc<WorkerMetrics>,
}

impl SiteParts {
    fn build(self) -> Site {
        let upstreams =
            self.addresses.into_iter().zip(self.refreshers).map(|(addresses, refresher)| {
                let refresh = Box::new(move || refresher.refresh());
                Upstream::new(self.limits.clone(), addresses, Arc::clone(&self.metrics), refresh)
            });
        let calls = self.calls.into_iter().zip(self.urls);
        let routes = self.routes.into_iter().zip(calls).zip(self.places);
        let routes = routes.map(|((route, (call, counter)), upstream)| Route {
            path: route.path,
            methods: route.methods,
            upstream,
            call,
            counter,
            pages: route.pages,
        });
        let upstreams: Vec<Rc<Upstream>> = upstreams.collect();
        let rules = Rules { accept: self.accept, sorry_status: self.sorry_status };
        Site::new(upstreams, routes.collect(), rules, self.metrics, self.tell)
    }
}
