//! The bundled counter as workers: one thread for each frontend, and one for its commits.
//!
//! In a server, our own workers have a frontend to themselves, on a port of loopback that changes with each start.
//! Other programs have another one, with its own thread and limits and at most one batch at the committer: they delay
//! a visit by one commit at most.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{Group, Run, ServerError, describe_drivers, send_all, stats::BundledSource};
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

/// How long clients may take to leave once the site's workers have stopped.
const CLIENTS_DRAIN: Duration = Duration::from_secs(2);

/// How long the store may take to close at least, even after the drain time.
const CLOSE_MIN: Duration = Duration::from_secs(1);

/// Connections of our own workers beyond their limit: those that are being closed.
const OWN_CLIENTS_SPARE: usize = 64;

/// The parts of a counter before it runs.
pub(super) struct Parts {
    frontends: Vec<Frontend>,
    store: Box<dyn Store>,
    kind: store::Kind,
}

/// A frontend, with its own thread, limits and hosts.
struct Frontend {
    thread: &'static str,
    listeners: Vec<Listener>,
    driver: driver::Choice,
    limits: ClientLimits,
    hosts: HostList,
}

impl Parts {
    /// The parts of the counter that a site bundles, if a route uses it.
    pub(super) fn of_site(config: &Config) -> Result<Option<Self>, ServerError> {
        let Some(kind) = &config.bundled else { return Ok(None) };
        let mut frontends = vec![Frontend {
            thread: "counter",
            listeners: listener::bind((Ipv4Addr::LOCALHOST, 0).into(), 1, false)?,
            driver: config.driver,
            limits: own_limits(config),
            hosts: HostList::default(),
        }];
        let shares = config.share_port;
        if let Some(address) = config.counter_listen {
            let listeners = listener::bind(address, 1, false);
            frontends.push(Frontend {
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
        Ok(Some(Self { frontends, store, kind: kind.clone() }))
    }

    /// The parts of a counter without a site.
    pub(super) fn alone(config: CounterConfig) -> Result<Self, ServerError> {
        let handed = inherited::take()?;
        let listeners = match handed.as_slice() {
            [] => listener::bind(config.listen, 1, false).map_err(ServerError::Counter)?,
            [socket] => inherited::share_out(socket, 1)?,
            sockets => return Err(ServerError::TooManySockets(sockets.len())),
        };
        let store = store::open(&config.store, config.create)?;
        let CounterConfig { driver, clients: limits, hosts, store: kind, .. } = config;
        let frontend = Frontend { thread: "counter", listeners, driver, limits, hosts };
        Ok(Self { frontends: vec![frontend], store, kind })
    }

    pub(super) fn addresses(&self) -> Addresses {
        let addresses: Vec<_> =
            self.frontends.iter().map(|frontend| frontend.listeners[0].address).collect();
        let shown = addresses[addresses.len() - 1];
        Addresses { own: addresses[0], shown }
    }

    /// Starts the threads and lets them serve.
    pub(super) fn start(self, run: &Run) -> Result<BundledCounter, ServerError> {
        let addresses = self.addresses();
        let metrics = Arc::<CounterMetrics>::default();
        let (fenced, closed) = (run.fence_reporter(), run.close_reporter());
        let committer = Committer::start(self.store, Arc::clone(&metrics), fenced, closed)?;
        let orders = self.frontends.into_iter().map(|frontend| frontend.start(run, &committer));
        let orders = orders.collect::<Result<Vec<_>, _>>()?;
        let drivers = describe_drivers(run.wait_until_ready(Group::Counter, orders.len())?);
        let counter =
            BundledCounter { addresses, drivers, orders, committer, metrics, kind: self.kind };
        send_all(&counter.orders, || Command::Serve);
        Ok(counter)
    }
}

/// The limits for our own workers.
pub(super) fn own_limits(config: &Config) -> ClientLimits {
    let connections = config.limits.upstream.connections_max * config.cores.len();
    // When the counter drains, our own workers have drained.
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
    /// For other programs, and for messages.
    pub(super) shown: SocketAddr,
}

type Orders = mailbox::Sender<Command<Vec<Outcome>>>;

impl Frontend {
    fn start(self, run: &Run, committer: &Committer) -> Result<Orders, ServerError> {
        let hosts = Hosts::new(self.listeners[0].address.ip(), self.hosts);
        let (orders, receiver) = mailbox::channel()?;
        let report = orders.clone();
        let report: OutcomeSink = Arc::new(move |outcomes| {
            // Fails only when the frontend has ended, and its clients with it.
            let _ = report.send(Command::Deliver(outcomes));
        });
        let jobs = committer.jobs();
        let submit = move |batch| {
            // Fails only after the close, when no client is answered.
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
            access_log: None,
            trusted_proxies: Arc::default(),
            handoff: None,
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
    /// Its address for other programs.
    pub(super) fn address(&self) -> SocketAddr {
        self.addresses.shown
    }

    pub(super) fn drivers(&self) -> &str {
        &self.drivers
    }

    /// Changes the limits for our own workers.
    pub(super) fn set_own_limits(&self, limits: ClientLimits) {
        // Fails only when the frontend has ended.
        let _ = self.orders[0].send(Command::Limit(limits, Some(COMMIT_TIMEOUT)));
    }

    /// Asks each thread to confirm that all earlier commands are done.
    pub(super) fn confirm(&self, confirmed: &mpsc::Sender<()>) {
        send_all(&self.orders, || Command::Confirm(confirmed.clone()));
    }

    /// How many threads answer a ping.
    pub(super) fn workers(&self) -> usize {
        self.orders.len()
    }

    pub(super) fn metrics(&self) -> Arc<CounterMetrics> {
        Arc::clone(&self.metrics)
    }

    /// What the admin listener tells of it.
    pub(super) fn source(&self) -> BundledSource {
        BundledSource {
            metrics: self.metrics(),
            store: self.kind.to_string(),
            health: self.committer.health(),
        }
    }

    /// What it has counted, read when it is displayed.
    pub(super) fn tally(&self) -> Tally {
        Tally { metrics: self.metrics(), kind: self.kind.clone() }
    }

    /// What it has counted so far.
    pub(super) fn counted(&self) -> Counted {
        counted(&self.metrics)
    }

    pub(super) fn store(&self) -> &store::Kind {
        &self.kind
    }

    /// Asks each thread to report that it still works.
    pub(super) fn ping(&self) {
        send_all(&self.orders, || Command::Ping);
    }

    /// Stops it after our own workers have drained; its store may take until `end`. A second signal, if one came.
    pub(super) fn stop(self, run: &Run, end: Instant) -> Option<i32> {
        let late = "others have not left the bundled counter in the time that they have after the last visit";
        self.drain_and_close(run, CLIENTS_DRAIN, late, end)
    }

    /// Lets calls under way end, for at most `timeout`, and closes the store, which may take until `end`, and has
    /// [`CLOSE_MIN`] in any case. A second signal, if one came. `late` is logged of calls that do not end.
    pub(super) fn drain_and_close(
        self,
        run: &Run,
        timeout: Duration,
        late: &str,
        end: Instant,
    ) -> Option<i32> {
        send_all(&self.orders, || Command::Drain);
        let cut = run.drain(Group::Counter, self.orders.len(), timeout, late);
        self.committer.close();
        let soonest = Instant::now() + CLOSE_MIN;
        let end = if cut.is_some() { soonest } else { end.max(soonest) };
        let (closed, signal) = run.wait_until_closed(end, CLOSE_MIN);
        if !closed {
            tracing::error!(
                "the counter's store hangs and is cut: it is not known whether the calls that \
                 wait for it were counted"
            );
        }
        cut.or(signal)
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

/// What to do when the bundled counter's address is not available.
pub(super) fn remedies(error: &BindError, shares: bool) -> String {
    let BindError::InUse { address } = error else {
        return String::from("choose another address by --counter-listen, or off");
    };
    let url = format!("http://{}/counter", reachable(*address));
    let both = if shares { ", and give the same to the server that shares the port" } else { "" };
    format!(
        "if it is a counter of tallyring, use it by --counter {url}{both}; else choose another address by \
         --counter-listen, or off"
    )
}
