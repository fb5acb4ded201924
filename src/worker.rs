//! What one core owns: a thread pinned to it, a runtime, listeners, clients, and the service that
//! answers them. Workers share nothing while they serve.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    process,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use core_affinity::CoreId;
use futures_util::FutureExt;
use monoio::{io::Canceller, task::JoinHandle};

use crate::{
    connection::{ClientLimits, Clients, Service},
    driver::{self, Driver, DriverError},
    listener::{self, Listener},
    mailbox,
    observe::metrics::WorkerMetrics,
    task,
};

/// How often waits are looked over for their ends: deadlines are kept to this much. When a worker is
/// so busy that its timer does not run, the calls themselves look.
const TICK: Duration = Duration::from_millis(100);
/// The finest tick, for deadlines shorter than ten of the usual ones.
const TICK_MIN: Duration = Duration::from_millis(2);

/// What a worker is asked to do.
pub enum Order<W> {
    /// Accept clients from now on.
    Serve,
    /// Accept no more, finish what is under way, and report.
    Drain,
    /// Stop at once, whatever is under way, and report.
    Cut,
    /// Tell the service.
    Tell(W),
    /// Report that it still works.
    Answer,
}

/// What a worker reports.
#[derive(Debug)]
pub enum Report {
    /// Its runtime and service stand; it waits for [`Order::Serve`].
    Ready(Driver),
    /// It cannot work.
    Failed(WorkerError),
    /// Its last client has left.
    Drained,
    /// It was cut: nothing happens on it any more, and its counts are final.
    Stopped,
    /// It was asked and answers.
    Alive,
}

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No runtime.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Something of the system's.
    #[error("a worker cannot start: {0}")]
    Io(#[from] io::Error),
}

/// All that a worker is made of.
pub struct Plan<W, F> {
    /// The name of its thread.
    pub name: String,
    /// The core to pin it to.
    pub core: Option<usize>,
    /// What it may wait on.
    pub driver: driver::Choice,
    /// Where it accepts.
    pub listeners: Vec<Listener>,
    /// What its clients may do.
    pub limits: ClientLimits,
    /// The shortest deadline of its service, if it has any.
    pub shortest_wait: Option<Duration>,
    /// Its counts.
    pub metrics: Arc<WorkerMetrics>,
    /// Its orders.
    pub orders: mailbox::Receiver<Order<W>>,
    /// Makes its service, on its thread.
    pub make: F,
}

/// Starts a worker's thread. What it reports goes to `report`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<V, F, R>(plan: Plan<V::Word, F>, report: R) -> io::Result<()>
where
    V: Service,
    F: FnOnce() -> V + Send + 'static,
    R: Fn(Report) + Clone + Send + 'static,
{
    thread::Builder::new().name(plan.name.clone()).spawn(move || {
        // Tasks catch their own panics. One that gets here has left the worker half alive, with a
        // listener that takes connections and answers none: better none than that.
        if panic::catch_unwind(AssertUnwindSafe(|| run(plan, report))).is_err() {
            eprintln!("tallyring: a worker panicked outside of its tasks; aborting");
            process::abort();
        }
    })?;
    Ok(())
}

fn run<V, F, R>(plan: Plan<V::Word, F>, report: R)
where
    V: Service,
    F: FnOnce() -> V,
    R: Fn(Report) + Clone + 'static,
{
    if let Some(core) = plan.core
        && !core_affinity::set_for_current(CoreId { id: core })
    {
        tracing::warn!("cannot pin a worker to core {core}; the system places it");
    }
    let (mut runtime, driver) = match driver::build(plan.driver) {
        Ok(built) => built,
        Err(error) => return report(Report::Failed(error.into())),
    };
    // Set once: each worker has its own.
    let _ = plan.metrics.driver.set(driver.name());
    let ended = report.clone();
    ended(match runtime.block_on(work(plan, driver, report)) {
        Ok(()) => Report::Stopped,
        Err(error) => Report::Failed(error.into()),
    });
}

async fn work<V, F, R>(plan: Plan<V::Word, F>, driver: Driver, report: R) -> io::Result<()>
where
    V: Service,
    F: FnOnce() -> V,
    R: Fn(Report) + 'static,
{
    let report = Rc::new(report);
    let mut orders = plan.orders.open()?;
    let clients = Clients::new(plan.limits, Arc::clone(&plan.metrics));
    let service = Rc::new((plan.make)());
    let tick = tick(clients.limits(), plan.shortest_wait);
    let mut listeners = Some(plan.listeners);
    let mut accepts = Vec::new();
    let mut stop = Canceller::new();
    report(Report::Ready(driver));
    while let Some(order) = orders.receive().await {
        match order {
            Order::Serve => {
                for listener in listeners.take().into_iter().flatten() {
                    let accepting = listener::accept(
                        listener,
                        Rc::clone(&clients),
                        Rc::clone(&service),
                        stop.handle(),
                    );
                    accepts.push(task::spawn("listener", clients.metrics(), async move {
                        if let Err(error) = accepting.await {
                            tracing::error!(%error, "a listener failed");
                        }
                    }));
                }
                let watching = watch(Rc::clone(&clients), Rc::clone(&service), tick);
                drop(task::spawn("deadline", clients.metrics(), watching));
            }
            Order::Tell(word) => service.hear(word),
            Order::Answer => report(Report::Alive),
            Order::Cut => break,
            Order::Drain => {
                clients.drain();
                stop = stop.cancel();
                let drained = drained(std::mem::take(&mut accepts), Rc::clone(&clients));
                let report = Rc::clone(&report);
                let reported = drained.map(move |()| report(Report::Drained));
                drop(task::spawn("drain", clients.metrics(), reported));
            }
        }
    }
    Ok(())
}

/// Waits until nobody is accepted any more and the last client has left.
async fn drained(accepts: Vec<JoinHandle<()>>, clients: Rc<Clients>) {
    for accepting in accepts {
        accepting.await;
    }
    clients.gone().await;
}

/// A tenth of the shortest deadline, within bounds.
fn tick(limits: &ClientLimits, shortest_wait: Option<Duration>) -> Duration {
    let deadlines =
        [limits.head_timeout, limits.body_timeout, limits.idle_timeout, limits.write_timeout];
    let shortest = deadlines.into_iter().chain(shortest_wait).min().unwrap_or(TICK);
    (shortest / 10).clamp(TICK_MIN, TICK)
}

async fn watch<V: Service>(clients: Rc<Clients>, service: Rc<V>, tick: Duration) {
    loop {
        monoio::time::sleep(tick).await;
        clients.expire();
        service.expire();
    }
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::process::ExitStatusExt, process::Command};

    use super::*;
    use crate::observe::admin::Admin;

    /// Set in the process that is to die.
    const CHILD: &str = "TALLYRING_TEST_ABORT";

    #[test]
    fn a_panic_that_escapes_aborts_the_process() {
        if env::var_os(CHILD).is_none() {
            let name = "worker::tests::a_panic_that_escapes_aborts_the_process";
            let mut child = Command::new(env::current_exe().unwrap());
            let output =
                child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
            assert_eq!(output.status.signal(), Some(6), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("aborting"), "{output:?}");
            return;
        }
        let (_orders, receiver) = mailbox::channel().unwrap();
        let plan = Plan {
            name: String::from("worker"),
            core: None,
            driver: driver::Choice::Epoll,
            listeners: vec![],
            limits: crate::config::counter_clients(1),
            shortest_wait: None,
            metrics: Arc::default(),
            orders: receiver,
            make: || -> Admin { panic!("on purpose") },
        };
        start(plan, |_| {}).unwrap();
        loop {
            thread::park();
        }
    }
}
