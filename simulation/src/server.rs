//! The server that is tried: workers as the product starts them, each with a site, as tasks of one process.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    rc::{Rc, Weak},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::http::{HeaderValue, StatusCode};
use bytes::Bytes;
use fastrand::Rng;
use monoio::world::{self, Process};

use crate::{
    access_log::{self, Entries, Recorder},
    bundled, foreign,
    handoff::{Handoff, Intake, Meter, Neighbour},
    http::request::Method,
    listener::Listener,
    metrics::WorkerMetrics,
    names::Names,
    plan::{ADDRESSES, BATCHES, COUNTERS, PROBES, Plan, Spread},
    request::{FILES, VISITS},
    runtime::{
        driver::{Choice, Driver},
        mailbox,
    },
    site::{
        Accept, File, Message, Page, Pages, Route, RouteKind, RouteSet, Rules, Site, VisitCounter,
        Visits,
    },
    trace::SHARES,
    upstream::{Endpoint, Upstream, UpstreamLimits, slots::Slots},
    worker::{self, Command, Report},
};

/// The process of the server.
pub const SITE: Process = Process(0);

/// How long a worker measures how busy it is: shorter than in the product, since histories are.
const WINDOW: Duration = Duration::from_millis(20);

/// Where a worker accepts.
pub fn address(worker: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, u8::try_from(worker + 1).unwrap_or(u8::MAX)), 3000).into()
}

/// The counter of a visit.
pub fn counter_of(visit: usize) -> usize {
    visit % COUNTERS
}

/// The visit that names the call of a visit. Where one call registers several, all visits of one counter have the same,
/// but for those of probes.
pub fn called_as(visit: usize, batches: bool) -> usize {
    if batches && visit < VISITS - PROBES { counter_of(visit) } else { visit }
}

/// Whether the welcome page of a visit shows its number.
pub fn shows_number(visit: usize) -> bool {
    page(visit, 0, true).contains(PLACEHOLDER)
}

/// What stands for the number of a visit in a page.
const PLACEHOLDER: &str = "{visits}";

/// How many upstreams a worker has for a counter. Those of a name with a place for each address: more than it ever has
/// at a time, since a place that has just become free is not used at once.
const fn slots(spread: Spread) -> usize {
    match spread {
        Spread::One | Spread::Counters => 1,
        Spread::Addresses => 2 * ADDRESSES,
    }
}

/// How many upstreams a worker has.
pub const fn upstreams(spread: Spread) -> usize {
    COUNTERS * slots(spread)
}

/// A page: without its number, no two have the same length, so that the answer to a `HEAD` tells which it is.
pub fn page(visit: usize, version: usize, welcome: bool) -> String {
    let word = if welcome { "welcome" } else { "sorry" };
    let text = format!("{word} v{visit} of {version}\n");
    // Some are too large to be copied into a write buffer.
    let least = if visit % 8 == 7 { 4_500 } else { 40 };
    let length = least + visit * 4 + version * 2 + usize::from(welcome);
    let rest = "x".repeat(length - text.len());
    match visit % 3 {
        0 => text + PLACEHOLDER + &rest,
        1 => String::from(PLACEHOLDER) + &text + &rest + PLACEHOLDER,
        _ => text + &rest,
    }
}

/// A page as a visitor gets it.
pub fn shown_page(visit: usize, version: usize, welcome: bool, number: Option<u64>) -> String {
    let number = number.map(|number| number.to_string()).unwrap_or_default();
    page(visit, version, welcome).replace(PLACEHOLDER, &number)
}

/// A text that is not counted.
pub fn file(number: usize) -> String {
    format!("file {number} {}", "y".repeat(number * 2_000))
}

/// Makes what all histories of this thread share.
pub fn prepare() {
    for traces in std::iter::once(None).chain(SHARES.map(Some)) {
        for version in [0, 1] {
            for spread in [Spread::One, Spread::Counters, Spread::Addresses] {
                routes(version, Kind { spread, traces, batches: None, offers: false });
                for batches in BATCHES.map(Some) {
                    for offers in [false, true] {
                        routes(version, Kind { spread, traces, batches, offers });
                    }
                }
            }
        }
    }
}

/// What the routes of a history are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    spread: Spread,
    /// Whether calls take traces to the counter.
    traces: Option<&'static str>,
    /// Whether one call registers several visits.
    batches: Option<usize>,
    /// Whether that is only offered.
    offers: bool,
}

impl Kind {
    fn of(plan: &Plan) -> Self {
        let Plan { spread, traces, batches, offers, .. } = *plan;
        Self { spread, traces, batches, offers }
    }
}

/// The routes, in one of two versions.
fn routes(version: usize, kind: Kind) -> Arc<RouteSet> {
    type Routes = BTreeMap<(usize, Kind), Arc<RouteSet>>;
    thread_local! {
        static ROUTES: RefCell<Routes> = RefCell::default();
    }
    ROUTES.with_borrow_mut(|routes| {
        let made = routes.entry((version, kind));
        Arc::clone(made.or_insert_with(|| Arc::new(make_routes(version, kind))))
    })
}

/// The call of a visit, or of so many that are called as this one, without a trace.
pub fn call(visit: usize, batch: Option<u64>) -> Bytes {
    let query = batch.map(|by| format!("?by={by}")).unwrap_or_default();
    endpoint(visit, &query).call(1).0
}

fn endpoint(visit: usize, query: &str) -> Endpoint {
    let url = format!("http://{}/counter/v{visit}{query}", bundled::address());
    url.parse().expect("a URL")
}

fn make_routes(version: usize, Kind { spread, traces, batches, offers }: Kind) -> RouteSet {
    let page = |visit, welcome| Page {
        content_type: HeaderValue::from_static("text/plain"),
        body: page(visit, version, welcome).into(),
    };
    let visits = (0..VISITS).map(|visit| {
        let query = if batches.is_some() && !offers { "?by={n}" } else { "" };
        let endpoint = endpoint(called_as(visit, batches.is_some()), query);
        // Other routes have other batches: those under way end as they began.
        let (call, batching) = endpoint.call(batches.map_or(1, |max| max + version));
        let url: Arc<str> = endpoint.to_string().into();
        let (own, slots) = (counter_of(visit), slots(spread));
        let places = match spread {
            Spread::Counters => 0..COUNTERS,
            Spread::One | Spread::Addresses => own * slots..(own + 1) * slots,
        };
        let counters = places.map(|upstream| VisitCounter {
            upstream,
            call: call.clone(),
            batching,
            url: Arc::clone(&url),
        });
        Route {
            path: format!("/v{visit}"),
            kind: RouteKind::Visits(Box::new(Visits {
                methods: vec![Method::Get, Method::Head, Method::Post],
                counters: counters.collect(),
                pages: Pages { welcome: page(visit, true), sorry: page(visit, false) },
            })),
        }
    });
    let files = (0..FILES).map(|number| Route {
        path: format!("/file{number}"),
        kind: RouteKind::File(Arc::new(File::text(file(number), None))),
    });
    let traces = traces.map(|share| share.parse().expect("a share"));
    let rules = Rules { accept: Accept::Success, sorry_status: StatusCode::OK, traces };
    let routes: Vec<Route> = visits.chain(files).collect();
    for route in &routes {
        // The first clone of such bytes allocates: not within a history, whose memory is counted.
        match &route.kind {
            RouteKind::Visits(visits) => {
                let Pages { welcome, sorry } = &visits.pages;
                visits.counters.iter().for_each(|counter| drop(counter.call.clone()));
                drop((welcome.body.clone(), sorry.body.clone()));
            }
            RouteKind::File(file) => drop(file.content().clone()),
            RouteKind::Directory(_) => {}
        }
    }
    RouteSet { rules, routes }
}

/// Where a counter is at first.
fn first_address(counter: usize, bundled: bool) -> SocketAddr {
    match counter {
        0 if bundled => bundled::address(),
        _ => foreign::address(counter, 0),
    }
}

type Orders = mailbox::Receiver<Command<Message>>;

/// What a worker has reported, by its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reports {
    /// It stands.
    pub ready: usize,
    /// Its last client has left.
    pub drained: usize,
    /// It has stopped.
    pub stopped: usize,
    /// It lives.
    pub pongs: usize,
}

/// The server.
pub struct Server {
    orders: Vec<mailbox::Sender<Command<Message>>>,
    /// The place of each address of a counter, where each is one.
    slots: RefCell<[Slots; COUNTERS]>,
    /// What each worker counts.
    pub metrics: Vec<Arc<WorkerMetrics>>,
    /// What each worker is handed over by others.
    pub intakes: Vec<Arc<Intake>>,
    /// Connections that were accepted.
    accepted: Arc<AtomicU64>,
    /// What each worker has recorded, if there is an access log.
    pub entries: RefCell<Vec<Entries>>,
    upstreams: Rc<RefCell<Vec<Weak<Upstream>>>>,
    /// Where its counters are.
    pub names: Rc<Names>,
    kind: Kind,
    /// What each worker has reported.
    pub reports: Rc<RefCell<Vec<Reports>>>,
}

impl Server {
    /// Starts the workers and lets them serve.
    pub fn start(plan: &Plan) -> Rc<Self> {
        let reports = Rc::new(RefCell::new(vec![Reports::default(); plan.workers]));
        let mailboxes = (0..plan.workers).map(|_| mailbox::channel().expect("a mailbox"));
        let (orders, receivers): (Vec<_>, Vec<_>) = mailboxes.unzip();
        let server = Self {
            orders,
            slots: RefCell::default(),
            metrics: (0..plan.workers).map(|_| Arc::default()).collect(),
            intakes: (0..plan.workers).map(|_| Arc::default()).collect(),
            accepted: Arc::default(),
            entries: RefCell::default(),
            upstreams: Rc::default(),
            names: Names::new(plan.seed),
            kind: Kind::of(plan),
            reports,
        };
        for counter in 0..COUNTERS {
            server.changes(counter, &[first_address(counter, plan.bundled)]);
        }
        for (number, receiver) in receivers.into_iter().enumerate() {
            server.start_worker(plan, number, receiver);
        }
        server.tell_all(|| Command::Serve);
        let server = Rc::new(server);
        server.names.tell(&server);
        server
    }

    fn start_worker(&self, plan: &Plan, number: usize, orders: Orders) {
        let orders = if plan.handoff { orders.late(plan.seed ^ number as u64) } else { orders };
        let metrics = Arc::clone(&self.metrics[number]);
        let recorder = plan.access_log.map(|log| {
            let (producer, entries) = access_log::ring(log.ring_bytes);
            self.entries.borrow_mut().push(entries);
            let one_in = NonZeroU32::new(log.one_in).expect("one in some");
            let rules = access_log::Rules { one_in, trusted: Arc::new([]) };
            Recorder::new(rules, producer, Arc::clone(&metrics))
        });
        let counts = Arc::clone(&metrics);
        let (limits, bundled, spread) = (plan.upstream, plan.bundled, plan.spread);
        let (kind, seed) = (Kind::of(plan), plan.seed ^ number as u64);
        let (kept, names) = (Rc::clone(&self.upstreams), Rc::clone(&self.names));
        let make = move || {
            let upstreams = (0..upstreams(spread)).map(|upstream| {
                let (counter, slot) = (upstream / slots(spread), upstream % slots(spread));
                let first = (slot == 0).then(|| first_address(counter, bundled));
                let (names, bundles) = (Rc::clone(&names), counter == 0 && bundled);
                let refresh = move || {
                    if !bundles {
                        names.refresh(counter);
                    }
                };
                Upstream::new(
                    limits,
                    first.into_iter().collect(),
                    Arc::clone(&counts),
                    Box::new(refresh),
                )
            });
            let upstreams: Vec<_> = upstreams.collect();
            kept.borrow_mut().extend(upstreams.iter().map(Rc::downgrade));
            let (routes, counts) = (routes(0, kind), Arc::clone(&counts));
            Site::new(upstreams, &routes, counts, Box::new(|_| {}), seed)
        };
        let plan = worker::Plan {
            name: format!("worker-{number}"),
            core: None,
            driver: Choice::Auto,
            listeners: vec![Listener {
                address: address(number),
                process: SITE,
                accepted: Arc::clone(&self.accepted),
            }],
            limits: plan.clients_limits,
            shortest_wait: Some(shortest(&limits)),
            metrics: Arc::clone(&metrics),
            access_log: recorder,
            trusted_proxies: Arc::default(),
            handoff: plan.handoff.then(|| self.handoff(number, plan.seed)),
            orders,
            make,
        };
        let reports = Rc::clone(&self.reports);
        let report = move |report: Report| {
            world::trace(format_args!("worker {number} reports {report:?}"));
            let reports = &mut reports.borrow_mut()[number];
            match report {
                Report::Ready(_) => reports.ready += 1,
                Report::Drained => reports.drained += 1,
                Report::Stopped => reports.stopped += 1,
                Report::Pong => reports.pongs += 1,
                Report::Failed(error) => panic!("a worker failed: {error}"),
            }
        };
        world::spawn_in(SITE, async move {
            let worked = worker::work(plan, Driver, report.clone()).await;
            worked.expect("its orders reach it");
            report(Report::Stopped);
        });
    }

    fn handoff(&self, number: usize, seed: u64) -> Handoff {
        let others = (0..self.orders.len()).filter(|other| *other != number);
        let neighbours = others.map(|other| {
            let orders = self.orders[other].clone();
            Neighbour {
                intake: Arc::clone(&self.intakes[other]),
                metrics: Arc::clone(&self.metrics[other]),
                give: Box::new(move |handed| Command::give(&orders, handed)),
            }
        });
        let (intake, seed) = (Arc::clone(&self.intakes[number]), !seed ^ number as u64);
        let runnable_micros = Box::new(cpu_time(Rng::with_seed(!seed)));
        let meter = Meter { window: WINDOW, runnable_micros };
        Handoff::new(intake, neighbours.collect(), seed, meter)
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Gives all workers an order.
    pub fn tell_all(&self, order: impl Fn() -> Command<Message>) {
        for orders in &self.orders {
            orders.send(order());
        }
    }

    /// Gives all workers other pages.
    pub fn set_pages(&self, version: usize) {
        let routes = || routes(version, self.kind);
        self.tell_all(|| Command::Deliver(Message::Routes(routes())));
    }

    /// Tells all workers where a counter is.
    pub fn set_addresses(&self, counter: usize, addresses: &[SocketAddr]) {
        for (upstream, addresses) in self.changes(counter, addresses) {
            let message = || Message::Addresses(upstream, addresses.clone());
            self.tell_all(|| Command::Deliver(message()));
        }
    }

    /// The upstreams that have other addresses from now on.
    fn changes(&self, counter: usize, addresses: &[SocketAddr]) -> Vec<(usize, Vec<SocketAddr>)> {
        if self.kind.spread != Spread::Addresses {
            return vec![(counter, addresses.to_vec())];
        }
        let changes = self.slots.borrow_mut()[counter].set(addresses);
        let first = counter * slots(self.kind.spread);
        let changes = changes.slots.into_iter().map(|(slot, address)| {
            assert!(slot < slots(self.kind.spread), "a place that no worker has");
            (first + slot, address.into_iter().collect())
        });
        changes.collect()
    }

    /// Gives all workers other limits.
    pub fn set_limits(&self, plan: &Plan, clients: usize, connections: usize, head_bytes: usize) {
        let limits = UpstreamLimits { connections_max: connections, ..plan.upstream };
        self.tell_all(|| Command::Deliver(Message::Limits(limits)));
        let mut clients_limits = plan.clients_limits;
        clients_limits.connections_max = clients;
        clients_limits.head.head_bytes_max += head_bytes;
        self.tell_all(|| Command::Limit(clients_limits, Some(shortest(&limits))));
    }

    /// Whether no worker has a call or a connection to a counter.
    pub fn has_no_calls(&self) -> bool {
        self.upstreams.borrow().iter().filter_map(Weak::upgrade).all(|upstream| upstream.is_empty())
    }

    /// Whether all workers have reported this.
    pub fn all(&self, is: impl Fn(&Reports) -> bool) -> bool {
        self.reports.borrow().iter().all(is)
    }
}

/// The CPU time of a worker that is now busy and now idle, whatever it does.
fn cpu_time(mut rng: Rng) -> impl Fn() -> u64 + Send {
    let mut busy = rng.bool();
    let state = Mutex::new((Duration::ZERO, Duration::ZERO));
    let rng = Mutex::new(move || {
        busy ^= rng.u8(0..6) == 0;
        if busy { 0.9 } else { 0.05 }
    });
    move || {
        let mut state = state.lock().expect("nobody panics with it");
        let (at, used) = *state;
        let part = (rng.lock().expect("nobody panics with it"))();
        *state = (world::now(), used + (world::now() - at).mul_f64(part));
        u64::try_from(state.1.as_micros()).unwrap_or(u64::MAX)
    }
}

fn shortest(limits: &UpstreamLimits) -> Duration {
    limits.connect_timeout.min(limits.call_timeout).min(limits.idle_timeout)
}
