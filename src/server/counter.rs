//! The bundled counter as workers: one thread for each way in, and one for its commits.
//!
//! In a server, our own workers have a way in of their own, at a port of loopback that changes with each start.
//! Others come by another one, on a thread of its own, with limits of its own and at most one batch before the
//! committer: they keep no visit waiting for longer than a commit takes.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{Group, Run, ServerError, describe_drivers};
use crate::{
    config::{Config, CounterConfig, internal_client_limits, reachable},
    connection::ClientLimits,
    counter::{
        COMMIT_TIMEOUT, Committer, HttpFrontend, Job, OutcomeSink,
        store::{self, Counted, Outcome, Store},
    },
    http::hosts::{HostList, Hosts},
    listener::{self, BindError, Listener, inherited},
    metrics::CounterMetrics,
    runtime::{driver, mailbox},
    worker::{self, Command, Plan},
};

/// How long its clients may take to leave when the site's workers, which it is for, have left.
const CLIENTS_DRAIN: Duration = Duration::from_secs(2);

/// How long the store may take to close when the time to finish is up.
const CLOSE_MIN: Duration = Duration::from_secs(1);

/// Connections of our own workers beyond what they may open: those that are being closed.
const OWN_CLIENTS_SPARE: usize = 64;

/// What a counter is made of, while nothing runs yet.
pub(super) struct Parts {
    ways_in: Vec<WayIn>,
    store: Box<dyn Store>,
    kind: store::Kind,
}

/// A way in, with a thread, limits and hosts of its own.
struct WayIn {
    thread: &'static str,
    listeners: Vec<Listener>,
    driver: driver::Choice,
    limits: ClientLimits,
    hosts: HostList,
}

impl Parts {
    /// Those of the counter that a site bundles, if a route uses it.
    pub(super) fn of_site(config: &Config) -> Result<Option<Self>, ServerError> {
        let Some(kind) = &config.bundled else { return Ok(None) };
        let mut ways_in = vec![WayIn {
            thread: "counter",
            listeners: listener::bind((Ipv4Addr::LOCALHOST, 0).into(), 1, false)?,
            driver: config.driver,
            limits: own_limits(config),
            hosts: HostList::default(),
        }];
        let shares = config.share_port;
        if let Some(address) = config.counter_listen {
            let listeners = listener::bind(address, 1, false);
            ways_in.push(WayIn {
                thread: "counter-others",
                listeners: listeners
                    .map_err(|error| ServerError::CounterListen { error, shares })?,
                // A ring would lock memory that the workers may need.
                driver: driver::Choice::Epoll,
                limits: internal_client_limits(config.limits.counter_clients_max),
                hosts: config.counter_hosts.clone(),
            });
        }
        let store = store::open(kind, config.create).map_err(|error| match error {
            store::OpenError::InUse(_) if shares => ServerError::StoreShared(error),
            error => error.into(),
        })?;
        Ok(Some(Self { ways_in, store, kind: kind.clone() }))
    }

    /// Those of a counter by itself.
    pub(super) fn alone(config: CounterConfig) -> Result<Self, ServerError> {
        let handed = inherited::take()?;
        let listeners = match handed.as_slice() {
            [] => listener::bind(config.listen, 1, false).map_err(ServerError::Counter)?,
            [socket] => inherited::share_out(socket, 1)?,
            sockets => return Err(ServerError::TooManySockets(sockets.len())),
        };
        let store = store::open(&config.store, config.create)?;
        let CounterConfig { driver, clients: limits, hosts, store: kind, .. } = config;
        let way_in = WayIn { thread: "counter", listeners, driver, limits, hosts };
        Ok(Self { ways_in: vec![way_in], store, kind })
    }

    pub(super) fn addresses(&self) -> Addresses {
        let addresses: Vec<_> =
            self.ways_in.iter().map(|way_in| way_in.listeners[0].address).collect();
        let told = addresses[addresses.len() - 1];
        Addresses { own: addresses[0], told }
    }

    /// Starts the threads and lets them serve.
    pub(super) fn start(self, run: &Run) -> Result<BundledCounter, ServerError> {
        let addresses = self.addresses();
        let metrics = Arc::<CounterMetrics>::default();
        let committer = Committer::start(self.store, Arc::clone(&metrics), run.close_reporter())?;
        let ways_in = self.ways_in.into_iter().map(|way_in| way_in.start(run, &committer));
        let orders = ways_in.collect::<Result<Vec<_>, _>>()?;
        let drivers = describe_drivers(run.wait_until_ready(Group::Counter, orders.len())?);
        let counter =
            BundledCounter { addresses, drivers, orders, committer, metrics, kind: self.kind };
        counter.tell_all(|| Command::Serve);
        Ok(counter)
    }
}

/// What our own workers may do.
pub(super) fn own_limits(config: &Config) -> ClientLimits {
    let connections = config.limits.upstream.connections_max * config.cores.len();
    // They have drained by then.
    ClientLimits {
        drain_idle_timeout: Duration::ZERO,
        ..internal_client_limits(connections + OWN_CLIENTS_SPARE)
    }
}

/// Where a counter listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    /// For our own workers.
    pub(super) own: SocketAddr,
    /// For people, who are told of this one.
    pub(super) told: SocketAddr,
}

type Orders = mailbox::Sender<Command<Vec<Outcome>>>;

impl WayIn {
    fn start(self, run: &Run, committer: &Committer) -> Result<Orders, ServerError> {
        let hosts = Hosts::new(self.listeners[0].address.ip(), self.hosts);
        let (orders, receiver) = mailbox::channel()?;
        let report = orders.clone();
        let report: OutcomeSink = Arc::new(move |outcomes| {
            // Fails only when the face has ended, and with it those who would be answered.
            let _ = report.send(Command::Deliver(outcomes));
        });
        let jobs = committer.jobs();
        let submit = move |batch| {
            // Fails only after the close, when nobody is answered any more.
            let _ = jobs.send(Job::Commit(batch, Arc::clone(&report)));
        };
        let plan = Plan {
            name: self.thread.to_owned(),
            core: None,
            driver: self.driver,
            listeners: self.listeners,
            limits: self.limits,
            shortest_wait: Some(COMMIT_TIMEOUT),
            metrics: Arc::default(),
            orders: receiver,
            make: move || HttpFrontend::new(Box::new(submit), hosts),
        };
        worker::start(plan, run.reporter(Group::Counter))?;
        Ok(orders)
    }
}

/// A counter that runs in this process.
pub(super) struct BundledCounter {
    addresses: Addresses,
    drivers: String,
    orders: Vec<Orders>,
    committer: Committer,
    metrics: Arc<CounterMetrics>,
    kind: store::Kind,
}

impl BundledCounter {
    /// Where people ask it.
    pub(super) fn address(&self) -> SocketAddr {
        self.addresses.told
    }

    pub(super) fn drivers(&self) -> &str {
        &self.drivers
    }

    /// From now on, our own workers may do this.
    pub(super) fn set_own_limits(&self, limits: ClientLimits) {
        // Fails only when it has ended, and then nobody is its client.
        let _ = self.orders[0].send(Command::Limit(limits, Some(COMMIT_TIMEOUT)));
    }

    /// Has each thread say that all orders before this one are done.
    pub(super) fn confirm(&self, confirmed: &mpsc::Sender<()>) {
        self.tell_all(|| Command::Confirm(confirmed.clone()));
    }

    /// How many threads report that they still work.
    pub(super) fn workers(&self) -> usize {
        self.orders.len()
    }

    pub(super) fn metrics(&self) -> Arc<CounterMetrics> {
        Arc::clone(&self.metrics)
    }

    /// What it has counted, whenever it is shown.
    pub(super) fn tally(&self) -> Tally {
        Tally { metrics: self.metrics(), kind: self.kind.clone() }
    }

    /// What it has counted by now.
    pub(super) fn counted(&self) -> Counted {
        counted(&self.metrics)
    }

    pub(super) fn store(&self) -> &store::Kind {
        &self.kind
    }

    /// Has each thread report that it still works.
    pub(super) fn ask(&self) {
        self.tell_all(|| Command::Ping);
    }

    /// Stops it once its only clients that matter, our own workers, have drained; its store may take until `end`.
    /// A signal that ends this sooner, if one came.
    pub(super) fn stop(self, run: &Run, end: Instant) -> Option<i32> {
        self.drain_and_close(run, CLIENTS_DRAIN, end)
    }

    /// Lets calls under way end, `timeout` at most, and closes the store, which may take until `end`
    /// and a moment; the second signal, if one came.
    pub(super) fn drain_and_close(self, run: &Run, timeout: Duration, end: Instant) -> Option<i32> {
        self.tell_all(|| Command::Drain);
        let cut = run.drain(Group::Counter, self.orders.len(), timeout);
        self.committer.close();
        let soonest = Instant::now() + CLOSE_MIN;
        let end = if cut.is_some() { soonest } else { end.max(soonest) };
        let (closed, signal) = run.wait_until_closed(end, CLOSE_MIN);
        if !closed {
            tracing::error!(
                "the counter's store hangs and is cut: of the calls that wait for it nobody knows \
                 whether they were counted"
            );
        }
        cut.or(signal)
    }

    fn tell_all(&self, order: impl Fn() -> Command<Vec<Outcome>>) {
        for orders in &self.orders {
            // Fails only when the thread has ended, and then nobody answers.
            let _ = orders.send(order());
        }
    }
}

fn counted(metrics: &CounterMetrics) -> Counted {
    Counted { total: metrics.total.read(), named: metrics.named.read() }
}

/// What a counter has counted, for a person: `1,234 counted in redb:PATH`.
pub(super) struct Tally {
    metrics: Arc<CounterMetrics>,
    kind: store::Kind,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", counted(&self.metrics), self.kind)
    }
}

/// What can be done when the bundled counter's address is not to be had.
pub(super) fn remedies(error: &BindError, shares: bool) -> String {
    let BindError::InUse { address } = error else {
        return String::from("choose another address by --counter-listen, or off");
    };
    let url = format!("http://{}/counter", reachable(*address));
    let both = if shares { ", and give the same to the server that shares the port" } else { "" };
    format!(
        "if it is a counter of tallyring, use it by --counter {url}{both}; else choose another \
         address by --counter-listen, or off"
    )
}
