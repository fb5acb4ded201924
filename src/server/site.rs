//! The site as workers: one on each core, each with its listeners and its connections to each counter.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    Group, Run, ServerError,
    access_log::Opened,
    counter::Addresses,
    describe_drivers,
    routes::{Counters, UnknownCounter},
    send_all,
    stats::{BundledSource, CounterAddresses, CounterSource, Sources, WorkerSource},
    summary::{Role, StartSummary},
};
use crate::{
    config::{Balance, Config, Content, Cores, Limits, RouteConfig, VisitsConfig},
    counter::store::{self, Counted},
    handoff::{Handoff, Intake, Meter, Neighbour, WINDOW},
    listener::{self, Listener, inherited},
    metrics::{AccessLogMetrics, WorkerMetrics},
    runtime::{host, mailbox},
    site::{Failures, Message, RouteSet, Rules, Site},
    upstream::{
        Upstream, UpstreamLimits,
        balance::CANDIDATES_MAX,
        resolve::{self, Refresher},
        slots::{Changes, Slots},
    },
    worker::{self, Command, Plan},
};

/// How long the start waits for the counters' names to be resolved.
const FIRST_LOOK_UP: Duration = Duration::from_secs(5);

type Orders = mailbox::Sender<Command<Message>>;

/// The listeners of the workers: each worker has one for each address.
pub(super) struct Listeners {
    of_workers: Vec<Vec<Listener>>,
    addresses: Vec<SocketAddr>,
}

/// Gives every worker a listener on every address: on those of the service manager's sockets, if it has handed any
/// down, else on those of the settings.
pub(super) fn listen(config: &Config) -> Result<Listeners, ServerError> {
    let count = config.cores.len();
    let handed = inherited::take()?;
    let mut by_address = Vec::new();
    if handed.is_empty() {
        for &address in &config.listen {
            let listeners = listener::bind(address, count, config.share_port);
            by_address.push(listeners.map_err(ServerError::Site)?);
        }
    } else {
        tracing::info!("listening on {} of the service manager's, not on --listen", handed.len());
        for socket in &handed {
            by_address.push(inherited::share_out(socket, count)?);
        }
    }
    let addresses = by_address.iter().map(|listeners| listeners[0].address).collect();
    let mut of_workers: Vec<Vec<Listener>> = (0..count).map(|_| Vec::new()).collect();
    for listeners in by_address {
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
    /// What others hand over to each.
    intakes: Vec<Arc<Intake>>,
    addresses: Vec<SocketAddr>,
    drivers: String,
    /// The counters that the workers know, until the end.
    counters: Counters,
    /// Where these are.
    counter_addresses: Arc<CounterAddresses>,
    /// Where visits are registered, as of the start, for a person.
    described: Vec<String>,
}

impl SiteWorkers {
    /// Starts all workers. They listen, but do not accept before [`serve`](Self::serve).
    pub(super) fn start(
        run: &Run,
        config: &Config,
        contents: Vec<Content>,
        listeners: Listeners,
        bundled: Option<Addresses>,
        mut access_log: Option<&mut Opened>,
    ) -> Result<Self, ServerError> {
        let counters = Counters::of(&config.routes, config.counter_spread, bundled);
        let routes = Arc::new(counters.route_set(
            &config.routes,
            contents,
            rules(config),
            config.limits.counter_batch_max,
        )?);
        let mailboxes = config.cores.iter().map(|_| mailbox::channel());
        let (orders, receivers): (Vec<Orders>, Vec<_>) =
            mailboxes.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let counter_addresses = Arc::<CounterAddresses>::default();
        let (addresses, refreshers) = resolve_all(&counters, &orders, &counter_addresses)?;
        let metrics: Vec<_> =
            config.cores.iter().map(|_| Arc::<WorkerMetrics>::default()).collect();
        let intakes: Vec<_> = metrics.iter().map(|_| Arc::<Intake>::default()).collect();
        let parts = config.cores.iter().zip(listeners.of_workers).zip(receivers);
        for (number, ((&core, listeners), receiver)) in parts.enumerate() {
            let counts = Arc::clone(&metrics[number]);
            let recorder = access_log.as_mut();
            let recorder = recorder.map(|log| log.recorder(&counts, &config.trusted_proxies));
            let parts = SiteParts {
                addresses: addresses.clone(),
                refreshers: refreshers.clone(),
                routes: Arc::clone(&routes),
                tell: Box::new(run.failure_reporter()),
                limits: config.limits.upstream,
                metrics: Arc::clone(&counts),
                seed: random_seed(),
            };
            let plan = Plan {
                name: format!("worker-{number}"),
                core: Some(core),
                driver: config.driver,
                listeners,
                limits: config.limits.clients_of_each(config.cores.len()),
                shortest_wait: Some(config.limits.shortest_call_wait()),
                metrics: counts,
                access_log: recorder,
                trusted_proxies: Arc::clone(&config.trusted_proxies),
                handoff: (config.balance == Balance::Handoff && config.cores.len() > 1)
                    .then(|| handoff(number, &intakes, &metrics, &orders)),
                orders: receiver,
                make: move || parts.build(),
            };
            worker::start(plan, run.reporter(Group::Site))?;
        }
        let drivers = describe_drivers(run.wait_until_ready(Group::Site, config.cores.len())?);
        let described = each_once(counters.describe(&config.routes));
        let addresses = listeners.addresses;
        Ok(Self {
            orders,
            metrics,
            intakes,
            addresses,
            drivers,
            counters,
            counter_addresses,
            described,
        })
    }

    /// Lets them accept.
    pub(super) fn serve(&self) {
        send_all(&self.orders, || Command::Serve);
    }

    /// Asks each to confirm that all earlier commands are done.
    pub(super) fn confirm(&self, confirmed: &mpsc::Sender<()>) {
        send_all(&self.orders, || Command::Confirm(confirmed.clone()));
    }

    /// Asks each to report that it still works.
    pub(super) fn ping(&self) {
        send_all(&self.orders, || Command::Ping);
    }

    /// Lets them finish.
    pub(super) fn drain(&self) {
        send_all(&self.orders, || Command::Drain);
    }

    /// Stops them at once, with visits under way.
    pub(super) fn cut(&self) {
        send_all(&self.orders, || Command::Stop);
    }

    /// Changes the limits.
    pub(super) fn set_limits(&self, limits: &Limits) {
        let clients = limits.clients_of_each(self.count());
        let shortest_wait = Some(limits.shortest_call_wait());
        send_all(&self.orders, || Command::Limit(clients, shortest_wait));
        send_all(&self.orders, || Command::Deliver(Message::Limits(limits.upstream)));
    }

    /// Replaces the routes of all workers, from their next request on. Visits under way keep the route that they began
    /// with. A call registers at most `batch_max` visits.
    ///
    /// # Errors
    /// When a route needs a counter that the workers do not know. Nothing has changed then.
    pub(super) fn set_routes(
        &self,
        routes: &[RouteConfig],
        contents: Vec<Content>,
        rules: Rules,
        batch_max: usize,
    ) -> Result<(), UnknownCounter> {
        let routes = Arc::new(self.counters.route_set(routes, contents, rules, batch_max)?);
        send_all(&self.orders, || Command::Deliver(Message::Routes(Arc::clone(&routes))));
        Ok(())
    }

    /// The URLs of the counters of these routes.
    pub(super) fn urls(&self, routes: &[RouteConfig]) -> BTreeSet<String> {
        self.counters.urls(routes)
    }

    /// Whether the workers know the counter of these visits.
    pub(super) fn know(&self, visits: &VisitsConfig) -> bool {
        self.counters.know(visits)
    }

    pub(super) fn count(&self) -> usize {
        self.orders.len()
    }

    pub(super) fn metrics(&self) -> &[Arc<WorkerMetrics>] {
        &self.metrics
    }

    /// What the admin listener tells of the server.
    pub(super) fn sources(
        &self,
        config: &Config,
        run: &Run,
        bundled: Option<BundledSource>,
        access_log: Option<Arc<AccessLogMetrics>>,
    ) -> Sources {
        let workers = config.cores.iter().zip(self.metrics.iter().zip(&self.intakes));
        let counters = self.counters.origins().iter();
        Sources {
            readiness: Arc::clone(&run.readiness),
            started: run.started,
            workers: workers
                .map(|(&core, (metrics, intake))| WorkerSource {
                    core,
                    metrics: Arc::clone(metrics),
                    intake: Arc::clone(intake),
                })
                .collect(),
            counters: counters
                .flat_map(|origin| {
                    let source = CounterSource {
                        name: origin.host.to_string(),
                        bundled: self.counters.is_bundled(&origin.host),
                        is_address: origin.slots > 1,
                    };
                    std::iter::repeat_n(source, origin.slots)
                })
                .collect(),
            addresses: Arc::clone(&self.counter_addresses),
            bundled,
            access_log,
        }
    }

    /// What the start logs.
    pub(super) fn summary(
        &self,
        config: &Config,
        count: Option<Counted>,
        admin: Option<SocketAddr>,
    ) -> StartSummary {
        let role = Role::Site {
            workers: self.orders.len(),
            cores: Cores::of(&config.cores),
            counters: self.described.clone(),
            proxy_protocol: config.limits.clients.proxy_protocol,
        };
        StartSummary {
            role,
            addresses: self.addresses.clone(),
            driver: self.drivers.clone(),
            store: config.bundled.as_ref().map(store::Kind::to_string),
            count,
            admin,
        }
    }
}

/// How a worker hands connections over to all others.
fn handoff(
    number: usize,
    intakes: &[Arc<Intake>],
    metrics: &[Arc<WorkerMetrics>],
    orders: &[Orders],
) -> Handoff {
    let others = intakes.iter().zip(metrics).zip(orders).enumerate();
    let others = others.filter(|(other, _)| *other != number);
    let neighbours = others.map(|(_, ((intake, metrics), orders))| {
        let orders = orders.clone();
        Neighbour {
            intake: Arc::clone(intake),
            metrics: Arc::clone(metrics),
            give: Box::new(move |handed| Command::give(&orders, handed)),
        }
    });
    let meter = Meter { window: WINDOW, runnable_micros: Box::new(host::runnable_micros()) };
    Handoff::new(Arc::clone(&intakes[number]), neighbours.collect(), random_seed(), meter)
}

/// The settings that apply to all routes.
pub(super) fn rules(config: &Config) -> Rules {
    let Config { accept, sorry_status, traces, .. } = *config;
    Rules { accept, sorry_status, traces }
}

/// A number that differs at each call and on each machine: the keys of the standard library's hash maps come from the
/// system's random numbers.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The texts in order, without repetitions.
fn each_once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

/// Resolves the names of all counters, and tells the workers of every change. Returns the first answers; a name without
/// one is resolved later.
fn resolve_all(
    counters: &Counters,
    orders: &[Orders],
    shown: &Arc<CounterAddresses>,
) -> Result<(Vec<Vec<SocketAddr>>, Vec<Refresher>), ServerError> {
    let (first, answers) = mpsc::channel();
    let mut refreshers = Vec::new();
    for origin in counters.origins() {
        let (first, orders, shown) = (first.clone(), orders.to_vec(), Arc::clone(shown));
        let mut spread = (origin.slots > 1).then(Slots::default);
        let index = origin.first;
        let refresher = resolve::start(origin.host.clone(), move |addresses: Vec<SocketAddr>| {
            let changes = match &mut spread {
                None => vec![(index, addresses)],
                Some(slots) => spread_out(slots, index, &addresses),
            };
            for (index, addresses) in &changes {
                let message = || Message::Addresses(*index, addresses.clone());
                send_all(&orders, || Command::Deliver(message()));
                shown.set(*index, addresses.clone());
            }
            // Fails only after the start.
            let _ = first.send(changes);
        })?;
        refreshers.extend(std::iter::repeat_n(refresher, origin.slots));
    }
    let mut addresses = vec![Vec::new(); counters.upstreams()];
    let end = Instant::now() + FIRST_LOOK_UP;
    for _ in counters.origins() {
        match answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(answer) => answer.into_iter().for_each(|(index, these)| addresses[index] = these),
            Err(_) => {
                tracing::warn!("the name service is slow; visits fail until it has answered");
                break;
            }
        }
    }
    Ok((addresses, refreshers))
}

/// Gives each address an upstream of its own, from `first` on; those that change, and their addresses.
fn spread_out(
    slots: &mut Slots,
    first: usize,
    addresses: &[SocketAddr],
) -> Vec<(usize, Vec<SocketAddr>)> {
    let Changes { slots, left_out } = slots.set(addresses);
    if left_out > 0 {
        tracing::warn!(
            "the counter's name has {} addresses; {left_out} of them get no visits, since at most \
             {CANDIDATES_MAX} are used",
            addresses.len()
        );
    }
    slots.into_iter().map(|(slot, address)| (first + slot, address.into_iter().collect())).collect()
}

/// The parts of a worker's site, which are sent to the worker's thread.
struct SiteParts {
    addresses: Vec<Vec<SocketAddr>>,
    refreshers: Vec<Refresher>,
    routes: Arc<RouteSet>,
    tell: Box<dyn Fn(Failures) + Send>,
    limits: UpstreamLimits,
    metrics: Arc<WorkerMetrics>,
    seed: u64,
}

impl SiteParts {
    fn build(self) -> Site {
        let upstreams =
            self.addresses.into_iter().zip(self.refreshers).map(|(addresses, refresher)| {
                let refresh = Box::new(move || refresher.refresh());
                Upstream::new(self.limits, addresses, Arc::clone(&self.metrics), refresh)
            });
        let upstreams: Vec<Rc<Upstream>> = upstreams.collect();
        Site::new(upstreams, &self.routes, self.metrics, self.tell, self.seed)
    }
}
