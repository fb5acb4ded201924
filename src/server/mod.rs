//! The server from start to stop: binds, starts the workers, waits for a signal, drains.

mod access_log;
mod admin;
mod counter;
mod exposition;
mod manager;
mod outages;
mod page;
mod preflight;
mod reload;
mod routes;
mod run;
mod site;
mod stats;
mod summary;
mod watchers;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use self::{
    access_log::AccessLog,
    admin::Admin,
    counter::{BundledCounter, Parts, remedies},
    reload::{Reloader, Running},
    routes::UnknownCounter,
    run::{End, Group, Run, signal_name},
    site::SiteWorkers,
    stats::Sources,
    summary::{Role, StartSummary},
};
use crate::{
    config::{Config, ConfigError, CounterConfig, RouteConfig, Settled, admin_client_limits},
    counter::store,
    counter_check::{self, Asked},
    http::hosts::{HostList, Hosts},
    listener::{self, BindError, Listener, inherited::InheritError},
    metrics::{ReloadMetrics, Totals},
    plural::plural,
    runtime::{
        clock,
        driver::{self, Driver},
        mailbox,
    },
    worker::{self, Command, Plan, WorkerError},
};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The site cannot listen on an address.
    #[error("{0}; {or}choose another address by --listen", or = or_share(.0))]
    Site(BindError),
    /// `tallyring counter` cannot.
    #[error("{0}; choose another address by --listen")]
    Counter(BindError),
    /// The bundled counter cannot listen on its address for other programs.
    #[error("counter-listen: {error}; {}", remedies(.error, *.shares))]
    CounterListen {
        /// Why not.
        error: BindError,
        /// Whether this server shares the site's port with another.
        shares: bool,
    },
    /// The bundled counter cannot listen on loopback for our own workers.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket from the service manager cannot be used.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The service manager hands down too many sockets.
    #[error("the counter serves on one socket, and the service manager hands down {0}")]
    TooManySockets(usize),
    /// The admin listener cannot listen on its address.
    #[error("the admin listener: {0}; choose another by --admin, or --admin off")]
    Admin(BindError),
    /// The bundled counter's file cannot be opened.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The access log cannot be written.
    #[error(transparent)]
    AccessLog(#[from] access_log::OpenError),
    /// The workers do not know the counter of a route.
    #[error(transparent)]
    Route(#[from] UnknownCounter),
    /// The bundled counter's file is in use, and the site's port is shared.
    #[error(
        "{0}. For two servers that share the port, run tallyring counter, and give both \
         --counter http://127.0.0.1:3001/counter"
    )]
    StoreShared(store::OpenError),
    /// A worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Another error of the system.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// The remedies that only the site's addresses have.
const fn or_share(error: &BindError) -> &'static str {
    match error {
        BindError::InUse { .. } => "stop it, share the port with it by --share-port, or ",
        _ => "",
    }
}

/// How a server that had started has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// After a signal, when all visits had ended or the drain time had passed.
    Drained,
    /// At once, by a second signal.
    Cut {
        /// The signal's number.
        signal: i32,
    },
    /// Since another counter has taken over the shard of the bundled one.
    Fenced,
}

impl Ended {
    /// After `end`; `cut` is the second signal, if one came.
    fn after(end: End, cut: Option<i32>) -> Self {
        match (end, cut) {
            (End::Fenced, _) => Self::Fenced,
            (End::Signal(_), None) => Self::Drained,
            (End::Signal(_), Some(signal)) => Self::Cut { signal },
        }
    }
}

/// Tries a start as far as possible while another server may run; notes about what would prevent one now.
///
/// # Errors
/// When [`serve`] would refuse these settings.
pub fn check(config: &Config) -> Result<Vec<String>, ServerError> {
    let notes = preflight::try_start(config)?;
    preflight::try_driver(config)?;
    Ok(notes)
}

/// Serves the site until a signal ends it. `read` reads the settings again.
///
/// # Errors
/// When it cannot start. No request was served then.
pub fn serve(
    mut settled: Settled,
    read: impl Fn() -> Result<Settled, ConfigError>,
) -> Result<Ended, ServerError> {
    // Taken out of the settings, which live as long as the server: a reload then frees the old contents.
    let contents = std::mem::take(&mut settled.config.contents);
    let config = &settled.config;
    let run = Run::start(config.ready_needs_counter)?;
    // Its notes are not needed: what prevents a start now makes a step below fail.
    preflight::try_start(config)?;
    // Addresses and files come first: if one is missing, nothing runs yet.
    let listeners = site::listen(config)?;
    let admin = config.admin.map(|address| listener::bind(address, 1, false));
    let admin = admin.transpose().map_err(ServerError::Admin)?;
    let mut access_log = config.access_log.as_ref().map(access_log::Opened::of).transpose()?;
    let bundled = Parts::of_site(config)?;
    // The site's workers start before the counter: if memory for rings is short, they get it.
    let addresses = bundled.as_ref().map(Parts::addresses);
    let log = access_log.as_mut();
    let site = SiteWorkers::start(&run, config, contents, listeners, addresses, log)?;
    let access_log = access_log.map(access_log::Opened::start).transpose()?;
    let bundled = bundled.map(|parts| parts.start(&run)).transpose()?;
    let reloads = Arc::new(ReloadMetrics::started(clock::unix_seconds()));
    let admin = admin.map(|listeners| {
        let counter = bundled.as_ref().map(BundledCounter::source);
        let log = access_log.as_ref().map(AccessLog::metrics);
        let sources = Arc::new(site.sources(config, &run, counter, log));
        let registry = stats::registry(Arc::clone(&sources), &reloads);
        AdminListener::start(&run, listeners, sources, registry, config.admin_hosts.clone())
    });
    let admin = admin.transpose()?;
    site.serve();
    run.readiness.serves.store(true, Ordering::Release);
    let count = bundled.as_ref().map(BundledCounter::counted);
    site.summary(config, count, admin.as_ref().map(|admin| admin.address)).tell();
    manager::ready();
    if !config.skip_counter_check {
        check_counters(&config.routes);
    }

    let parts = Running {
        run: &run,
        site: &site,
        bundled: bundled.as_ref(),
        admin: admin.as_ref(),
        access_log: access_log.as_ref(),
    };
    let reloader = Reloader::new(settled, read, reloads, parts);
    let workers = site.count() + bundled.as_ref().map_or(0, BundledCounter::workers);
    let ping = || {
        site.ping();
        bundled.iter().for_each(BundledCounter::ping);
    };
    let cause = run.wait_for_end(workers, ping, || reloader.reload());
    let drain_timeout = reloader.drain_timeout();
    drop(reloader);
    Ok(finish(&run, &site, bundled, access_log.as_ref(), drain_timeout, cause))
}

/// Lets visits under way end, for at most `drain_timeout`, and stops all workers.
fn finish(
    run: &Run,
    site: &SiteWorkers,
    bundled: Option<BundledCounter>,
    access_log: Option<&AccessLog>,
    drain_timeout: Duration,
    cause: End,
) -> Ended {
    // Before the stop is announced: after that, the server must not be found ready.
    run.readiness.stops.store(true, Ordering::Release);
    run.readiness.serves.store(false, Ordering::Release);
    stop(cause);
    let end = Instant::now() + drain_timeout;
    site.drain();
    let late = "visits have not ended in the time of --drain-timeout";
    let mut cut = run.drain(Group::Site, site.count(), drain_timeout, late);
    // Visits that are still under way end here: an answer after the last line would not be in its counts.
    site.cut();
    run.wait_until_stopped(Group::Site, site.count());
    access_log.inspect(|log| log.stop());
    let tally = bundled.as_ref().map(BundledCounter::tally);
    if let Some(bundled) = bundled {
        let signal = bundled.stop(run, if cut.is_some() { Instant::now() } else { end });
        cut = cut.or(signal);
    }
    tracing::info!("{}{}", last_line(Totals::of(site.metrics())), after_semicolon(tally));
    Ended::after(cause, cut)
}

/// Serves the counter alone until a signal ends it.
///
/// # Errors
/// When it cannot start. Nothing was counted then.
pub fn serve_counter(config: CounterConfig) -> Result<Ended, ServerError> {
    let run = Run::start(false)?;
    let drain_timeout = config.drain_timeout;
    let counter = Parts::alone(config)?.start(&run)?;
    let (tally, metrics) = (counter.tally(), counter.metrics());
    let summary = StartSummary {
        role: Role::Counter,
        addresses: vec![counter.address()],
        driver: counter.drivers().to_owned(),
        store: Some(counter.store().to_string()),
        count: Some(counter.counted()),
        admin: None,
    };
    summary.tell();
    manager::ready();
    let reload = || {
        tracing::info!("SIGHUP: a counter has nothing to read anew");
        String::from("a counter has nothing to read anew")
    };
    let cause = run.wait_for_end(counter.workers(), || counter.ping(), reload);
    stop(cause);
    let end = Instant::now() + drain_timeout;
    let late = "calls have not ended in the time of --drain-timeout";
    let cut = counter.drain_and_close(&run, drain_timeout, late, end);
    tracing::info!("stopped; {tally}; {}", plural(metrics.commits.read(), "commit"));
    Ok(Ended::after(cause, cut))
}

/// Asks each counter once and warns of those that probably do not register visits. It runs on its own thread, so that
/// visits do not wait for it.
fn check_counters(routes: &[RouteConfig]) {
    let routes = routes.to_vec();
    let check = move || {
        for Asked { counter, problem } in counter_check::check_all(&routes) {
            if let Some((problem, meanwhile)) = problem {
                tracing::warn!(
                    "the counter {counter} may not register visits: {problem}; {meanwhile} until it does"
                );
            }
        }
    };
    // The server already serves: without a thread it goes on without the check.
    if let Err(error) = thread::Builder::new().name(String::from("counter-check")).spawn(check) {
        tracing::warn!("the counters are not asked whether they register visits: {error}");
    }
}

/// Announces the stop.
fn stop(cause: End) {
    match cause {
        End::Signal(signal) => {
            let signal = signal_name(signal);
            tracing::info!("{signal}: no new connections; finishing what is under way");
        }
        End::Fenced => tracing::error!(
            "another counter has taken over the shard of this one, which ends: start each counter of a \
             database with a --store-shard of its own"
        ),
    }
    manager::stopping();
}

/// The admin listener, on its own thread.
struct AdminListener {
    address: SocketAddr,
    orders: mailbox::Sender<Command<Hosts>>,
}

impl AdminListener {
    fn start(
        run: &Run,
        listeners: Vec<Listener>,
        sources: Arc<Sources>,
        registry: prometheus_client::registry::Registry,
        hosts: HostList,
    ) -> Result<Self, ServerError> {
        /// For scrapers and probes: more than enough.
        const CONNECTIONS_MAX: usize = 64;
        let address = listeners[0].address;
        let (orders, receiver) = mailbox::channel()?;
        let hosts = Hosts::new(address.ip(), hosts);
        let plan = Plan {
            name: String::from("admin"),
            core: None,
            // A ring would lock memory that the workers may need.
            driver: driver::Choice::Epoll,
            listeners,
            limits: admin_client_limits(CONNECTIONS_MAX),
            shortest_wait: None,
            metrics: Arc::default(),
            access_log: None,
            trusted_proxies: Arc::default(),
            handoff: None,
            orders: receiver,
            make: move || Admin::new(sources, registry, hosts),
        };
        worker::start(plan, run.reporter(Group::Admin))?;
        run.wait_until_ready(Group::Admin, 1)?;
        orders.send(Command::Serve);
        Ok(Self { address, orders })
    }

    /// From now on it answers to these hosts, besides its own.
    fn set_hosts(&self, hosts: HostList) {
        // Fails only when it has ended.
        let _ = self.orders.send(Command::Deliver(Hosts::new(self.address.ip(), hosts)));
    }

    /// Asks it to confirm that all earlier commands are done.
    fn confirm(&self, confirmed: &mpsc::Sender<()>) {
        let _ = self.orders.send(Command::Confirm(confirmed.clone()));
    }
}

/// Sends a command to each of some workers.
fn send_all<T>(orders: &[mailbox::Sender<Command<T>>], command: impl Fn() -> Command<T>) {
    for orders in orders {
        // Fails only when the worker has ended, which it has reported.
        let _ = orders.send(command());
    }
}

/// The drivers of several workers, for a person: each once, io_uring before epoll.
fn describe_drivers(drivers: Vec<Driver>) -> String {
    let drivers = BTreeSet::from_iter(drivers);
    drivers.iter().map(Driver::to_string).collect::<Vec<_>>().join(" and ")
}

/// The optional end of a line.
fn after_semicolon(part: Option<impl std::fmt::Display>) -> String {
    part.map_or_else(String::new, |part| format!("; {part}"))
}

fn last_line(totals: Totals) -> String {
    let Totals { welcomed, erred, refused, abandoned, connections } = totals;
    let left = match connections {
        0 => String::new(),
        1 => String::from("; 1 connection was closed unfinished"),
        left => format!("; {left} connections were closed unfinished"),
    };
    format!(
        "stopped: {} welcomed, {erred} erred, {refused} refused, {abandoned} abandoned{left}",
        plural(welcomed, "visit")
    )
}
