//! The whole, from start to stop: binds, starts the workers, waits for a signal, drains.

mod counter;
mod manager;
mod outages;
mod run;
mod site;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use self::{
    counter::{BundledCounter, Parts, remedies},
    run::{Group, Run, signal_name},
    site::SiteWorkers,
};
use crate::{
    config::{Config, CounterConfig, admin_clients},
    counter::store,
    driver::{self, Driver},
    http::hosts::{HostList, Hosts},
    listener::{self, BindError, Listener, inherited::InheritError},
    mailbox,
    observe::{
        admin::Admin,
        metrics::{self, CounterMetrics, Totals, WorkerMetrics},
    },
    plural::plural,
    worker::{self, Order, Plan, WorkerError},
};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address of the site's cannot be listened on.
    #[error("{0}; {or}choose another address by --listen", or = or_share(.0))]
    Site(BindError),
    /// The counter's cannot.
    #[error("{0}; choose another address by --listen")]
    Counter(BindError),
    /// The address at which others can ask the bundled counter is not to be had.
    #[error("counter-listen: {error}; {}", remedies(.error, *.shares))]
    CounterListen {
        /// Why not.
        error: BindError,
        /// Whether this server shares the site's port with another one.
        shares: bool,
    },
    /// No port of loopback is free for the bundled counter.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket that the service manager has opened cannot be served.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// More sockets than there is a use for.
    #[error("the counter serves on one socket, and the service manager hands down {0}")]
    TooManySockets(usize),
    /// The same, of the admin listener's.
    #[error("admin: {0}; choose another address by --admin, or none by --admin off")]
    Admin(BindError),
    /// The bundled counter's file.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The same, where it is in use and the site's port is shared.
    #[error(
        "{0}. For two servers that share the port, run tallyring counter, and give both \
         --counter http://127.0.0.1:3001/counter"
    )]
    StoreShared(store::OpenError),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Anything else of the system's.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// The remedy that only the site's addresses have.
const fn or_share(error: &BindError) -> &'static str {
    match error {
        BindError::InUse { .. } => "stop it, share the port with it by --share-port, or ",
        _ => "",
    }
}

/// How a server that had started came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// After a signal, when all was finished or the time to finish was up.
    Drained,
    /// At once, by a second signal.
    Cut {
        /// The signal's number.
        signal: i32,
    },
}

/// Serves the site until a signal ends it.
///
/// # Errors
/// When it cannot start. Nobody was served then.
pub fn serve(config: Config) -> Result<Ended, ServerError> {
    let run = Run::start(config.ready_needs_counter)?;
    // All that can fail for want of an address or a file comes first, while nothing runs yet.
    let listeners = site::listen(&config)?;
    let admin = config.admin.map(|address| listener::bind(address, 1, false));
    let admin = admin.transpose().map_err(ServerError::Admin)?;
    let bundled = Parts::of_site(&config)?;
    // The site's workers come first: where memory for rings is short, they are to have it.
    let addresses = bundled.as_ref().map(Parts::addresses);
    let site = SiteWorkers::start(&run, &config, listeners, addresses)?;
    let bundled = bundled.map(|parts| parts.start(&run)).transpose()?;
    let tally = bundled.as_ref().map(BundledCounter::tally);
    let registry = || {
        let counter = bundled.as_ref().map(BundledCounter::metrics);
        (site.metrics().to_vec(), counter)
    };
    let admin =
        admin.map(|listeners| start_admin(&run, listeners, registry(), config.admin_hosts.clone()));
    let admin_address = admin.transpose()?;
    site.serve();
    run.readiness.serves.store(true, Ordering::Release);
    let admin_said = admin_address.map(|address| format!("; admin on http://{address}"));
    let counted = behind_semicolon(tally.as_ref());
    tracing::info!("{}{counted}{}", site.describe(&config), admin_said.unwrap_or_default());
    manager::ready();

    let workers = site.count() + bundled.as_ref().map_or(0, BundledCounter::workers);
    let ask = || {
        site.ask();
        bundled.iter().for_each(BundledCounter::ask);
    };
    let signal = run.wait_for_end(workers, ask, || site.reload(&config));
    // Before anybody is told: whoever hears of the stop must not find the server ready.
    run.readiness.serves.store(false, Ordering::Release);
    stop(signal);
    let end = Instant::now() + config.limits.drain_timeout;
    site.drain();
    let mut cut = run.drain(Group::Site, site.count(), config.limits.drain_timeout);
    // What is still under way ends here: what a worker told anybody later would be in no book.
    site.cut();
    run.wait_until_stopped(Group::Site, site.count());
    if let Some(bundled) = bundled {
        let signal = bundled.stop(&run, if cut.is_some() { Instant::now() } else { end });
        cut = cut.or(signal);
    }
    tracing::info!("{}{}", last_line(Totals::of(site.metrics())), behind_semicolon(tally.as_ref()));
    Ok(cut.map_or(Ended::Drained, |signal| Ended::Cut { signal }))
}

/// Serves the counter alone until a signal ends it.
///
/// # Errors
/// When it cannot start. Nothing was counted then.
pub fn serve_counter(config: CounterConfig) -> Result<Ended, ServerError> {
    let run = Run::start(false)?;
    let drain_timeout = config.drain_timeout;
    let counter = Parts::alone(config)?.start(&run)?;
    let tally = counter.tally();
    tracing::info!(
        "tallyring {} counts at http://{}/counter, on {}; {tally}",
        env!("CARGO_PKG_VERSION"),
        counter.address(),
        counter.drivers(),
    );
    manager::ready();
    let reload = || tracing::info!("SIGHUP: a counter has nothing to read anew");
    stop(run.wait_for_end(counter.workers(), || counter.ask(), reload));
    let end = Instant::now() + drain_timeout;
    let cut = counter.drain_and_close(&run, drain_timeout, end);
    tracing::info!("stopped; {tally}");
    Ok(cut.map_or(Ended::Drained, |signal| Ended::Cut { signal }))
}

/// Says that the end has begun.
fn stop(signal: i32) {
    tracing::info!("{}: no new connections; finishing what is under way", signal_name(signal));
    manager::stopping();
}

fn start_admin(
    run: &Run,
    listeners: Vec<Listener>,
    (workers, counter): (Vec<Arc<WorkerMetrics>>, Option<Arc<CounterMetrics>>),
    hosts: HostList,
) -> Result<SocketAddr, ServerError> {
    /// Scrapers and probes; far more than there ever are.
    const CONNECTIONS_MAX: usize = 64;
    let address = listeners[0].address;
    let (orders, receiver) = mailbox::channel()?;
    let hosts = Hosts::new(address.ip(), hosts);
    let readiness = Arc::clone(&run.readiness);
    let plan = Plan {
        name: String::from("admin"),
        core: None,
        // A ring would lock memory that the workers may need.
        driver: driver::Choice::Epoll,
        listeners,
        limits: admin_clients(CONNECTIONS_MAX),
        shortest_wait: None,
        metrics: Arc::default(),
        orders: receiver,
        make: move || Admin::new(readiness, metrics::registry(workers, counter), hosts),
    };
    worker::start(plan, run.reporter(Group::Admin))?;
    run.wait_until_ready(Group::Admin, 1)?;
    orders.send(Order::Serve);
    // The thread lives as long as the process; so does its mailbox.
    std::mem::forget(orders);
    Ok(address)
}

/// The drivers of several workers for a person: one, unless they differ; io_uring before epoll.
fn describe_drivers(drivers: Vec<Driver>) -> String {
    let drivers = BTreeSet::from_iter(drivers);
    drivers.iter().map(Driver::to_string).collect::<Vec<_>>().join(" and ")
}

/// A part of a line that may be missing.
fn behind_semicolon(part: Option<impl std::fmt::Display>) -> String {
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
