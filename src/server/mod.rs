//! The whole, from start to stop: binds, starts the workers, waits for a signal, drains.

mod counter;
mod site;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use signal_hook::{
    consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    iterator::Signals,
};

use self::{counter::BundledCounter, site::SiteWorkers};
use crate::{
    config::{Config, CounterConfig, counter_clients},
    counter::store,
    driver::{self, Driver},
    listener::{self, BindError},
    mailbox,
    observe::{
        admin::Admin,
        metrics::{self, Totals, WorkerMetrics},
    },
    worker::{self, Order, Plan, Report, WorkerError},
};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The same, of the admin listener's.
    #[error("admin: {0}; choose another address by --admin, or none by --admin off")]
    Admin(BindError),
    /// The bundled counter's file.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Anything else of the system's.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
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

/// What happens to a server.
#[derive(Debug)]
enum Event {
    Signal(i32),
    Report(Group, Report),
}

/// Whose report it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Site,
    Counter,
    Admin,
}

/// Serves the site until a signal ends it.
///
/// # Errors
/// When it cannot start. Nobody was served then.
pub fn serve(config: Config) -> Result<Ended, ServerError> {
    let (sender, events) = mpsc::channel();
    let run = Run { sender, events, ready: Arc::default() };
    run.catch_signals()?;
    // All that can fail for want of an address or a file comes first, while nothing runs yet.
    let listeners = site::bind(&config)?;
    let admin = config.admin.map(|address| listener::bind(address, 1, false));
    let admin = admin.transpose().map_err(ServerError::Admin)?;
    let bundled = match &config.bundled {
        Some(kind) => {
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            Some((listener::bind(address, 1, false)?, store::open(kind)?))
        }
        None => None,
    };
    let counter_address = match &bundled {
        Some((listeners, _)) => Some(listeners[0].local_addr()?),
        None => None,
    };
    // The site's workers come first: where memory for rings is short, they are to have it.
    let site = SiteWorkers::start(&run, &config, listeners, counter_address)?;
    let bundled = match bundled {
        Some((listeners, store)) => {
            let connections = config.limits.upstream.connections_max * config.cores.len() + 64;
            let clients = counter_clients(connections);
            Some(BundledCounter::start(&run, listeners, store, config.driver, clients)?)
        }
        None => None,
    };
    let admin = admin.map(|listeners| start_admin(&run, listeners, site.metrics()));
    let admin_address = admin.transpose()?;
    site.serve();
    run.ready.store(true, Ordering::Release);
    let admin_said = admin_address.map(|address| format!("; admin on http://{address}"));
    tracing::info!("{}{}", site.describe(&config), admin_said.unwrap_or_default());

    let signal = run.wait_for_end(|| site.reload(&config));
    tracing::info!("{}: no new connections; finishing what is under way", signal_name(signal));
    run.ready.store(false, Ordering::Release);
    site.drain();
    let cut = run.drain(Group::Site, site.count(), config.limits.drain_timeout);
    if let Some(bundled) = bundled {
        bundled.stop(&run);
    }
    tracing::info!("{}", last_line(Totals::of(site.metrics())));
    Ok(cut.map_or(Ended::Drained, |signal| Ended::Cut { signal }))
}

/// Serves the counter alone until a signal ends it.
///
/// # Errors
/// When it cannot start. Nothing was counted then.
pub fn serve_counter(config: CounterConfig) -> Result<Ended, ServerError> {
    let (sender, events) = mpsc::channel();
    let run = Run { sender, events, ready: Arc::default() };
    run.catch_signals()?;
    let listeners = listener::bind(config.listen, 1, false)?;
    let store = store::open(&config.store)?;
    let counter =
        BundledCounter::start(&run, listeners, store, config.driver, config.clients.clone())?;
    tracing::info!(
        "tallyring {} counts at http://{}/counter, on {}; totals in {}",
        env!("CARGO_PKG_VERSION"),
        counter.address(),
        counter.driver(),
        config.store
    );
    let signal = run.wait_for_end(|| tracing::info!("SIGHUP: a counter has nothing to read anew"));
    tracing::info!("{}: no new connections; finishing what is under way", signal_name(signal));
    let cut = counter.drain_and_close(&run, config.drain_timeout);
    tracing::info!("stopped");
    Ok(cut.map_or(Ended::Drained, |signal| Ended::Cut { signal }))
}

/// What a running server hears of.
struct Run {
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    ready: Arc<AtomicBool>,
}

impl Run {
    fn catch_signals(&self) -> io::Result<()> {
        // SIGXFSZ: beyond a file-size limit a write then fails instead of ending the process.
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXFSZ])?;
        let events = self.sender.clone();
        thread::Builder::new().name(String::from("signals")).spawn(move || {
            for signal in signals.forever().filter(|signal| *signal != SIGXFSZ) {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// Where the workers of a group report to.
    fn reporter(&self, group: Group) -> impl Fn(Report) + Clone + Send + 'static {
        let events = self.sender.clone();
        move |report| {
            // Fails only when the process is at its end.
            let _ = events.send(Event::Report(group, report));
        }
    }

    /// Waits until `count` workers of a group stand; their drivers.
    fn wait_until_ready(&self, group: Group, count: usize) -> Result<Vec<Driver>, WorkerError> {
        let mut drivers = Vec::new();
        loop {
            match self.events.recv() {
                Ok(Event::Report(of, Report::Ready(driver))) if of == group => {
                    drivers.push(driver);
                    if drivers.len() == count {
                        return Ok(drivers);
                    }
                }
                Ok(Event::Report(_, Report::Failed(error))) => return Err(error),
                // A signal during the start: nothing runs yet that would have to end in order.
                Ok(Event::Signal(signal)) if signal != SIGHUP => std::process::exit(128 + signal),
                Ok(_) => {}
                Err(_) => unreachable!("this end holds a sender"),
            }
        }
    }

    /// Waits for the signal that ends the server, calling `reload` at each SIGHUP.
    fn wait_for_end(&self, reload: impl Fn()) -> i32 {
        loop {
            match self.events.recv() {
                Ok(Event::Signal(SIGHUP)) => reload(),
                Ok(Event::Signal(signal)) => return signal,
                Ok(Event::Report(_, Report::Failed(error))) => {
                    tracing::error!("a worker failed: {error}");
                }
                Ok(Event::Report(..)) => {}
                Err(_) => unreachable!("this end holds a sender"),
            }
        }
    }

    /// Waits until `count` workers of a group have drained, `timeout` at most; the second signal, if
    /// one came.
    fn drain(&self, group: Group, count: usize, timeout: Duration) -> Option<i32> {
        let end = Instant::now() + timeout;
        let mut drained = 0;
        while drained < count {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Report(of, Report::Drained)) if of == group => drained += 1,
                Ok(Event::Signal(signal)) if signal != SIGHUP => {
                    tracing::warn!("{} again: ending at once", signal_name(signal));
                    return Some(signal);
                }
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("the time to finish, {timeout:?}, is up");
                    return None;
                }
            }
        }
        None
    }
}

fn start_admin(
    run: &Run,
    listeners: Vec<std::net::TcpListener>,
    workers: &[Arc<WorkerMetrics>],
) -> Result<SocketAddr, ServerError> {
    /// Scrapers and probes; far more than there ever are.
    const CONNECTIONS_MAX: usize = 64;
    let address = listeners[0].local_addr()?;
    let (orders, receiver) = mailbox::channel()?;
    let (ready, workers) = (Arc::clone(&run.ready), workers.to_vec());
    let plan = Plan {
        name: String::from("admin"),
        core: None,
        // A ring would lock memory that the workers may need.
        driver: driver::Choice::Epoll,
        listeners,
        limits: counter_clients(CONNECTIONS_MAX),
        shortest_wait: None,
        metrics: Arc::default(),
        orders: receiver,
        make: move || Admin::new(ready, metrics::registry(workers)),
    };
    worker::start(plan, run.reporter(Group::Admin))?;
    run.wait_until_ready(Group::Admin, 1)?;
    orders.send(Order::Serve);
    // The thread lives as long as the process; so does its mailbox.
    std::mem::forget(orders);
    Ok(address)
}

/// The drivers of several workers for a person: one, unless they differ.
fn describe_drivers(mut drivers: Vec<Driver>) -> String {
    drivers.dedup();
    drivers.iter().map(Driver::to_string).collect::<Vec<_>>().join(" and ")
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGTERM => "SIGTERM",
        SIGINT => "SIGINT",
        _ => "a signal",
    }
}

fn last_line(totals: Totals) -> String {
    let Totals { welcomed, erred, refused, connections } = totals;
    let left = match connections {
        0 => String::new(),
        left => format!("; {left} connections were closed unfinished"),
    };
    format!("stopped: {welcomed} visits welcomed, {erred} erred, {refused} refused{left}")
}
