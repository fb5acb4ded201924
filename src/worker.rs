//! What one core owns: a thread pinned to it, a runtime, listeners, clients, and the service that
//! answers them. Workers share nothing while they serve.

use std::{
    cell::Cell,
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    rc::Rc,
    sync::{Arc, mpsc},
    time::Duration,
};

use core_affinity::CoreId;
use futures_util::FutureExt;
use ipnet::IpNet;
use monoio::{net::TcpStream, task::JoinHandle};

use crate::{
    access_log::Recorder,
    connection::{ClientContext, ClientLimits, Connection, Departed, Service},
    handoff::{Client, Handed, Handoff},
    listener::{Accepted, Acceptor, Listener},
    metrics::{DriverInfo, WorkerMetrics},
    runtime::{
        clock,
        driver::{self, Driver, DriverError},
        fatal,
        liveness::{Liveness, Shown},
        mailbox, task,
        turn::Turns,
    },
};

/// How often deadlines are checked, and so how exactly they are kept. When a worker is so busy that its timer does
/// not run, each new call to a counter checks those of the calls.
const TICK: Duration = Duration::from_millis(100);
/// The shortest tick, for deadlines shorter than ten of the usual ones.
const TICK_MIN: Duration = Duration::from_millis(2);

/// A command to a worker.
pub enum Command<M> {
    /// Accept clients from now on.
    Serve,
    /// Accept no more, finish what is in progress, and report.
    Drain,
    /// Stop at once, whatever is in progress, and report.
    Stop,
    /// Give the service a message.
    Deliver(M),
    /// Apply these limits to clients from now on; the second value is the shortest deadline of the service.
    Limit(ClientLimits, Option<Duration>),
    /// Confirm here that all commands before this one are done.
    Confirm(mpsc::Sender<()>),
    /// Report that all parts of it still work.
    Ping,
    /// Serve a connection that another worker has accepted.
    Take(Handed),
}

impl<M> Command<M> {
    /// Gives a connection to the worker that has these orders.
    ///
    /// # Errors
    /// The connection, when that worker has stopped.
    pub fn give(orders: &mailbox::Sender<Self>, handed: Handed) -> Result<(), Handed> {
        match orders.offer(Self::Take(handed)) {
            Err(Self::Take(handed)) => Err(handed),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// What a worker reports.
#[derive(Debug)]
pub enum Report {
    /// Its runtime and service are ready; it waits for [`Command::Serve`].
    Ready(Driver),
    /// It cannot run.
    Failed(WorkerError),
    /// Its last client has left.
    Drained,
    /// It has stopped: nothing runs on it any more, and its counts are final.
    Stopped,
    /// The answer to [`Command::Ping`]: it accepts connections and keeps its deadlines.
    Pong,
}

/// Why a worker cannot run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No runtime.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A system call failed.
    #[error("a worker cannot start: {0}")]
    Io(#[from] io::Error),
}

/// All that a worker is made of.
pub struct Plan<M, F> {
    /// The name of its thread.
    pub name: String,
    /// The core to pin it to.
    pub core: Option<usize>,
    /// Which driver it may use.
    pub driver: driver::Choice,
    /// The sockets that it accepts from.
    pub listeners: Vec<Listener>,
    /// The limits of its clients.
    pub limits: ClientLimits,
    /// The shortest deadline of its service, if it has any.
    pub shortest_wait: Option<Duration>,
    /// Its metrics.
    pub metrics: Arc<WorkerMetrics>,
    /// What records the requests of its clients, if they are recorded.
    pub access_log: Option<Recorder>,
    /// Who may begin a connection with a PROXY header; nobody in it is everybody.
    pub trusted_proxies: Arc<[IpNet]>,
    /// How it hands connections over to others, if it does.
    pub handoff: Option<Handoff>,
    /// The commands to it.
    pub orders: mailbox::Receiver<Command<M>>,
    /// Makes its service, on its thread.
    pub make: F,
}

/// Starts a worker's thread. What it reports goes to `report`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<V, F, R>(plan: Plan<V::Message, F>, report: R) -> io::Result<()>
where
    V: Service,
    F: FnOnce() -> V + Send + 'static,
    R: Fn(Report) + Clone + Send + 'static,
{
    // Tasks catch their own panics. One that gets past them would leave a listener that takes connections and answers
    // none, so it ends the process.
    task::spawn_essential_thread(plan.name.clone(), move || run(plan, report)).map(drop)
}

fn run<V, F, R>(plan: Plan<V::Message, F>, report: R)
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
    let info = DriverInfo { ring: runtime.ring(), ..driver.info() };
    let _ = plan.metrics.driver.set(info);
    let name = plan.name.clone();
    match runtime.block_on(work(plan, driver, report.clone())) {
        Ok(()) => report(Report::Stopped),
        Err(error) => fatal::end_process(&name, &error),
    }
}

/// Obeys commands until it is stopped or all senders are gone.
///
/// # Errors
/// When commands do not reach it any more.
pub(crate) async fn work<V, F, R>(
    plan: Plan<V::Message, F>,
    driver: Driver,
    report: R,
) -> io::Result<()>
where
    V: Service,
    F: FnOnce() -> V,
    R: Fn(Report) + Clone + 'static,
{
    let mut orders = match plan.orders.open() {
        Ok(orders) => orders,
        Err(error) => {
            report(Report::Failed(error.into()));
            return Ok(());
        }
    };
    let clients = ClientContext::new(
        plan.limits,
        Arc::clone(&plan.metrics),
        plan.access_log,
        plan.trusted_proxies,
    );
    let service = Rc::new((plan.make)());
    let tick = Rc::new(Cell::new(tick_for(&clients.limits(), plan.shortest_wait)));
    let alive = report.clone();
    let liveness = Rc::new(Liveness::new(move || alive(Report::Pong)));
    let handoff = plan.handoff.map(Rc::new);
    let mut listeners = Some(plan.listeners);
    let mut accepts = Vec::new();
    let turns = Turns::count();
    report(Report::Ready(driver));
    while let Some(order) = turns.during(orders.receive()).await? {
        match order {
            Command::Serve => {
                for listener in listeners.take().into_iter().flatten() {
                    accepts.push(accept(listener, &clients, &service, &liveness, &handoff));
                }
                handoff.iter().for_each(|handoff| handoff.intake().open());
                let shown = liveness.add_part();
                let (clients, service) = (Rc::clone(&clients), Rc::clone(&service));
                let (liveness, tick) = (Rc::clone(&liveness), Rc::clone(&tick));
                let watching = watch(clients, service, liveness, shown, tick, handoff.clone());
                drop(task::spawn_essential("the task that keeps deadlines", watching));
            }
            Command::Deliver(message) => service.on_message(message),
            Command::Limit(limits, shortest_wait) => {
                clients.set_limits(limits);
                // The present tick keeps its length, which is never long.
                tick.set(tick_for(&limits, shortest_wait));
            }
            Command::Confirm(confirmed) => {
                // Fails only when nobody waits for it any more.
                let _ = confirmed.send(());
            }
            Command::Ping => liveness.ask(),
            Command::Take(handed) => take(handed, &clients, &service, &handoff),
            Command::Stop => break,
            Command::Drain => {
                drain(std::mem::take(&mut accepts), &clients, &liveness, &handoff, &report);
            }
        }
    }
    for intake in handoff.iter().map(|handoff| handoff.intake()) {
        intake.close();
        // They are closed unfinished, like those that it serves, and the last line tells of both.
        clients.metrics().connections.add(intake.coming());
    }
    Ok(())
}

/// Begins to drain, and reports the end of it.
fn drain<R: Fn(Report) + Clone + 'static>(
    accepts: Vec<JoinHandle<()>>,
    clients: &Rc<ClientContext>,
    liveness: &Liveness,
    handoff: &Option<Rc<Handoff>>,
    report: &R,
) {
    clients.drain();
    handoff.iter().for_each(|handoff| handoff.intake().close());
    liveness.interrupt();
    let drained = drained(accepts, Rc::clone(clients), handoff.clone());
    let report = report.clone();
    let reported = drained.map(move |()| report(Report::Drained));
    drop(task::spawn("drain", clients.metrics(), reported));
}

/// Starts to accept on one listener. A failure ends the process, since the worker would keep the socket and answer
/// nobody who connects to it; while it drains, other listeners get those clients.
fn accept<V: Service>(
    listener: Listener,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    liveness: &Rc<Liveness>,
    handoff: &Option<Rc<Handoff>>,
) -> JoinHandle<()> {
    let clients = Rc::clone(clients);
    // Before the task runs: a ping may come earlier.
    let shown = liveness.add_part();
    let accepting = accept_connections(
        listener,
        Rc::clone(&clients),
        Rc::clone(service),
        Rc::clone(liveness),
        shown,
        handoff.clone(),
    );
    task::spawn_essential("a listener", async move {
        match accepting.await {
            Err(error) if clients.is_draining() => {
                tracing::error!(%error, "a listener failed while it was closed");
                Ok(())
            }
            ended => ended,
        }
    })
}

/// Accepts clients until the worker drains, then those that the kernel has already queued. `liveness` interrupts its
/// waits, so that it shows that it is alive, or sees that the worker drains.
///
/// # Errors
/// When the socket fails for good.
async fn accept_connections<V: Service>(
    listener: Listener,
    clients: Rc<ClientContext>,
    service: Rc<V>,
    liveness: Rc<Liveness>,
    mut shown: Shown,
    handoff: Option<Rc<Handoff>>,
) -> io::Result<()> {
    let mut acceptor = Acceptor::open(listener)?;
    let mut failing_since = None;
    while !clients.is_draining() {
        liveness.show(&mut shown);
        match acceptor.accept(liveness.handle()).await? {
            Accepted::Nothing => {}
            Accepted::Connection(stream, peer) => {
                failing_since = None;
                let Some(stream) = keep(stream, peer, &clients, &handoff) else { continue };
                clients.wait_for_capacity(|| liveness.show(&mut shown)).await;
                serve(stream, peer, &clients, &service, &handoff);
            }
            Accepted::Exhausted(error, pause) => {
                tracing::warn!(%error, "cannot accept; trying again in {pause:?}");
                clients.evict(*failing_since.get_or_insert_with(clock::now));
                monoio::time::sleep(pause).await;
            }
        }
    }
    acceptor.close(|stream, peer| serve(stream, peer, &clients, &service, &handoff)).await
}

/// A connection that was just accepted, unless it was handed over to another worker.
fn keep(
    stream: TcpStream,
    peer: IpAddr,
    clients: &ClientContext,
    handoff: &Option<Rc<Handoff>>,
) -> Option<TcpStream> {
    let Some(handoff) = handoff else { return Some(stream) };
    let connections_max = clients.limits().connections_max;
    handoff.hand_over(stream, peer, clients.metrics(), connections_max)
}

fn serve<V: Service>(
    stream: TcpStream,
    peer: IpAddr,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    handoff: &Option<Rc<Handoff>>,
) {
    let client = clients.register(stream.as_raw_fd(), peer);
    spawn(Connection::new(stream, client), clients, service, handoff);
}

/// Serves a connection that has left another worker, or this one, between two requests.
fn resume<V: Service>(
    departed: Departed<TcpStream>,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    handoff: &Option<Rc<Handoff>>,
) {
    let Departed { stream, client: origin } = departed;
    let client = clients.register_moved(stream.as_raw_fd(), origin.peer);
    spawn(Connection::resume(stream, client, origin), clients, service, handoff);
}

fn spawn<V: Service>(
    connection: Connection<TcpStream>,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    handoff: &Option<Rc<Handoff>>,
) {
    let serving = connection.serve(Rc::clone(service));
    if handoff.is_none() {
        // None leaves.
        drop(task::spawn("connection", clients.metrics(), serving.map(drop)));
        return;
    }
    let metrics = Arc::clone(clients.metrics());
    let (clients, service, handoff) = (Rc::clone(clients), Rc::clone(service), handoff.clone());
    let served = serving.map(move |departed| {
        if let Some(departed) = departed {
            move_on(*departed, &clients, &service, &handoff);
        }
    });
    drop(task::spawn("connection", &metrics, served));
}

/// Hands a connection over that leaves, or goes on with it where no other worker takes it.
fn move_on<V: Service>(
    departed: Departed<TcpStream>,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    handoff: &Option<Rc<Handoff>>,
) {
    let kept = match handoff {
        Some(handoff) => handoff.move_on(departed, clients.metrics()),
        None => Some(departed),
    };
    if let Some(kept) = kept {
        resume(kept, clients, service, handoff);
    }
}

/// Takes a connection that another worker has handed over. At the limit it waits in a task of its own, as it would in
/// the kernel's queue: the worker obeys other commands meanwhile. While the worker drains it is served, like those in
/// that queue.
fn take<V: Service>(
    handed: Handed,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    handoff: &Option<Rc<Handoff>>,
) {
    let (stream, client, place) = match handed.take() {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!(%error, "a connection that another worker has accepted is closed");
            return;
        }
    };
    if clients.has_room() {
        welcome(stream, client, clients, service, handoff);
        // Not before: until then, a drain waits for it.
        drop(place);
        return;
    }
    let (clients, service, handoff) = (Rc::clone(clients), Rc::clone(service), handoff.clone());
    let metrics = Arc::clone(clients.metrics());
    let waiting = async move {
        clients.wait_for_capacity(|| {}).await;
        welcome(stream, client, &clients, &service, &handoff);
        drop(place);
    };
    drop(task::spawn("a connection that waits for its turn", &metrics, waiting));
}

/// Serves a connection that was handed over.
fn welcome<V: Service>(
    stream: TcpStream,
    client: Client,
    clients: &Rc<ClientContext>,
    service: &Rc<V>,
    handoff: &Option<Rc<Handoff>>,
) {
    match client {
        Client::New(peer) => serve(stream, peer, clients, service, handoff),
        Client::Known(client) => {
            resume(Departed { stream, client }, clients, service, handoff);
        }
    }
}

/// Waits until nobody is accepted or handed over any more and the last client has left.
async fn drained(
    accepts: Vec<JoinHandle<()>>,
    clients: Rc<ClientContext>,
    handoff: Option<Rc<Handoff>>,
) {
    for accepting in accepts {
        accepting.await;
    }
    let come = || handoff.as_ref().is_some_and(|handoff| handoff.intake().coming() > 0);
    clients.all_closed(come).await;
}

/// A tenth of the shortest deadline, within bounds.
fn tick_for(limits: &ClientLimits, shortest_wait: Option<Duration>) -> Duration {
    let deadlines =
        [limits.head_timeout, limits.body_timeout, limits.idle_timeout, limits.write_timeout];
    let shortest = deadlines.into_iter().chain(shortest_wait).min().unwrap_or(TICK);
    (shortest / 10).clamp(TICK_MIN, TICK)
}

async fn watch<V: Service>(
    clients: Rc<ClientContext>,
    service: Rc<V>,
    liveness: Rc<Liveness>,
    mut shown: Shown,
    tick: Rc<Cell<Duration>>,
    handoff: Option<Rc<Handoff>>,
) -> io::Result<()> {
    loop {
        clients.metrics().heartbeat.set(clock::now().millis());
        monoio::time::sleep(tick.get()).await;
        liveness.show(&mut shown);
        clients.expire();
        service.expire();
        if let Some(handoff) = &handoff {
            let connections_max = clients.limits().connections_max;
            handoff.measure(clients.metrics(), clients.departures(), connections_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        env,
        io::Write,
        net::{TcpListener as StdListener, TcpStream as StdTcpStream},
        os::unix::process::ExitStatusExt,
        process::{Command as Process, Stdio},
        task::{Context, Poll},
        thread,
    };

    use monoio::{
        io::{AsyncReadRent, AsyncWriteRentExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        connection::Response,
        handoff::{Intake, Meter, Neighbour, WINDOW},
        http::request::Request,
        listener::After,
        site::Site,
    };

    /// The environment variable that names the fault of the child process.
    const FAULT: &str = "TALLYRING_TEST_FAULT";

    /// A service that panics as its fault says.
    struct Faulty(String);

    impl Service for Faulty {
        type Admitted = Infallible;
        type Pending = Infallible;
        type Message = ();

        fn admit(&self, _: &Request<'_>) -> Result<Infallible, Response> {
            Err(Response::text(200, ""))
        }

        fn start(&self, admitted: Infallible) -> Result<Infallible, Response> {
            match admitted {}
        }

        fn poll_response(&self, pending: &mut Infallible, _: &mut Context<'_>) -> Poll<Response> {
            match *pending {}
        }

        fn on_message(&self, (): ()) {
            assert!(self.0 != "orders", "on purpose");
        }

        fn expire(&self) {
            assert!(self.0 != "deadlines", "on purpose");
        }
    }

    fn run_with_fault(fault: String) -> ! {
        task::log_panics();
        let (orders, receiver) = mailbox::channel().unwrap();
        let socket = match fault.as_str() {
            "listener" => {
                // Bound, but it does not listen: accept(2) fails for good.
                let any = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
                StdListener::from(any.unwrap())
            }
            _ => StdListener::bind("127.0.0.1:0").unwrap(),
        };
        let address = ([127, 0, 0, 1], 0).into();
        let plan = Plan {
            name: String::from("worker"),
            core: None,
            driver: driver::Choice::Epoll,
            listeners: vec![Listener { socket, address, after: After::Close }],
            limits: crate::config::internal_client_limits(1),
            shortest_wait: None,
            metrics: Arc::default(),
            access_log: None,
            trusted_proxies: Arc::default(),
            handoff: None,
            orders: receiver,
            make: move || {
                assert!(fault != "start", "on purpose");
                Faulty(fault)
            },
        };
        start(plan, |_| {}).unwrap();
        orders.send(Command::Serve);
        orders.send(Command::Deliver(()));
        loop {
            thread::park();
        }
    }

    #[test]
    fn a_worker_that_loses_a_part_ends_the_process() {
        if let Ok(fault) = env::var(FAULT) {
            run_with_fault(fault);
        }
        for (fault, part) in [
            ("start", "worker"),
            ("orders", "worker"),
            ("deadlines", "deadlines"),
            ("listener", "listener"),
        ] {
            let name = "worker::tests::a_worker_that_loses_a_part_ends_the_process";
            let child = || {
                let mut child = Process::new(env::current_exe().unwrap());
                child.args(["--exact", name, "--nocapture"]).env(FAULT, fault);
                child.stdout(Stdio::null());
                child
            };
            // The reader of the message may be gone, or may not read.
            let (reader, broken) = io::pipe().unwrap();
            drop(reader);
            let (_reader, mut full) = io::pipe().unwrap();
            rustix::io::ioctl_fionbio(&full, true).unwrap();
            while full.write(&[b'x'; 4096]).is_ok() {}
            rustix::io::ioctl_fionbio(&full, false).unwrap();
            for stderr in [broken, full] {
                let status = child().stderr(stderr).status().unwrap();
                assert_eq!(status.signal(), Some(6), "{fault}");
            }
            let output = child().output().unwrap();
            assert_eq!(output.status.signal(), Some(6), "{fault}: {output:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().find(|line| line.contains("aborting")).expect(fault);
            assert!(said.contains(part), "{fault}: {said}");
        }
    }

    /// A new client, and its connection as another worker hands it over.
    async fn hand_over(listener: &TcpListener, intake: &Arc<Intake>) -> (StdTcpStream, Handed) {
        let client = StdTcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (give, given) = mpsc::channel();
        let metrics = Arc::<WorkerMetrics>::default();
        // It does not stand still, however long this takes.
        metrics.heartbeat.set(u64::MAX);
        let neighbour = Neighbour {
            intake: Arc::clone(intake),
            metrics,
            give: Box::new(move |handed| give.send(handed).map_err(|mpsc::SendError(it)| it)),
        };
        let own = WorkerMetrics::default();
        own.connections.add(100);
        let meter = Meter { window: WINDOW, runnable_micros: Box::new(|| 0) };
        let handoff = Handoff::new(Arc::default(), vec![neighbour], 1, meter);
        assert!(handoff.hand_over(stream, peer.ip(), &own, 1000).is_none());
        assert_eq!(own.handed_over.read(), 1);
        (client, given.recv().unwrap())
    }

    #[test]
    fn at_the_limit_a_connection_that_was_handed_over_waits_until_the_worker_has_room_or_drains() {
        for (driver, drains) in [driver::Choice::Auto, driver::Choice::Epoll]
            .into_iter()
            .flat_map(|driver| [(driver, false), (driver, true)])
        {
            let (mut runtime, _) = driver::build(driver).unwrap();
            runtime.block_on(async {
                let socket = StdListener::bind("127.0.0.1:0").unwrap();
                socket.set_nonblocking(monoio::utils::is_legacy()).unwrap();
                let listener = TcpListener::from_std(socket).unwrap();
                let limits = crate::config::internal_client_limits(1);
                let clients = ClientContext::new(limits, Arc::default(), None, Arc::default());
                let service = Rc::new(Faulty(String::new()));
                let intake = Arc::<Intake>::default();
                intake.open();
                let (open, counts) = (|| clients.metrics().connections.read(), clients.metrics());

                let (first, handed) = hand_over(&listener, &intake).await;
                take(handed, &clients, &service, &None);
                assert_eq!((open(), intake.coming()), (1, 0));
                let (second, handed) = hand_over(&listener, &intake).await;
                take(handed, &clients, &service, &None);
                assert_eq!((open(), intake.coming()), (1, 1));
                if drains {
                    clients.drain();
                } else {
                    drop(first);
                }
                second.set_nonblocking(monoio::utils::is_legacy()).unwrap();
                let mut second = TcpStream::from_std(second).unwrap();
                let request = Vec::from(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                second.write_all(request).await.0.unwrap();
                let (read, answer) = second.read(vec![0; 1000]).await;
                assert!(answer[..read.unwrap()].starts_with(b"HTTP/1.1 200 "), "{driver}");
                assert_eq!((counts.accepted.read(), intake.coming()), (2, 0));
            });
        }
    }

    fn bytes_of_task<T>(_: impl FnOnce(Connection<TcpStream>, Rc<Site>) -> T) -> usize {
        size_of::<T>()
    }

    #[test]
    fn the_task_of_a_client_is_small() {
        let bytes = bytes_of_task(Connection::serve);
        assert!(bytes <= 560, "{bytes} bytes");
    }
}
