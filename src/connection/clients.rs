//! The clients of one worker: how many there are, what each waits for, and who is closed when its
//! time is up or its place is needed.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    os::fd::RawFd,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use monoio::io::{CancelHandle, Canceller};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use slotmap::SparseSecondaryMap;

use super::outbox::{OutboxPool, PooledOutbox};
use crate::{
    clock::{self, Moment},
    deadlines::{Deadlines, Key},
    http::HeadLimits,
    inbox::Buffers,
    observe::metrics::WorkerMetrics,
    pace,
};

/// What the clients of one worker may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// The size of a request head.
    pub head: HeadLimits,
    /// The size of a request body, which is read and discarded.
    pub body_bytes_max: u64,
    /// Connections open at a time.
    pub connections_max: usize,
    /// A whole head, from its first byte.
    pub head_timeout: Duration,
    /// A whole body, from the end of its head.
    pub body_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// Until the client takes some of what is written.
    pub write_timeout: Duration,
    /// For one more request of a client that is idle when the server is about to stop.
    pub parting_timeout: Duration,
}

/// How long a client that was refused may take to close its side.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// At the limit of connections, how long a client may take over what it is waited for while others wait to be
/// let in. With the tick at which this is looked at, a newcomer waits less than a second.
const SHARE: Duration = Duration::from_millis(800);

/// How long a client stays idle before it makes room, if nobody has waited for [`SHARE`]: one that has just come, or
/// has just been answered, is about to send a request.
const IDLE_SHARE: Duration = Duration::from_millis(100);

/// The phases in which a client keeps others out that are not idle: it could be done with them.
const BUSY_PHASES: [Phase; 4] = [Phase::Head, Phase::Body, Phase::Write, Phase::Linger];

/// What a client is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a request head.
    Head,
    /// The rest of a request body.
    Body,
    /// Room for an answer.
    Write,
    /// The close, after a refusal.
    Linger,
    /// The first byte of a last request, before the server stops.
    Parting,
}

const PHASES: [Phase; 6] =
    [Phase::Idle, Phase::Head, Phase::Body, Phase::Write, Phase::Linger, Phase::Parting];

impl ClientLimits {
    /// How long a client is waited for, by phase.
    fn patiences(&self) -> [Duration; PHASES.len()] {
        PHASES.map(|phase| match phase {
            Phase::Idle => self.idle_timeout,
            Phase::Head => self.head_timeout,
            Phase::Body => self.body_timeout,
            Phase::Write => self.write_timeout,
            Phase::Linger => LINGER_TIMEOUT,
            Phase::Parting => self.parting_timeout,
        })
    }
}

/// The clients of one worker.
pub struct Clients {
    limits: Cell<ClientLimits>,
    buffers: Buffers,
    outboxes: OutboxPool,
    metrics: Arc<WorkerMetrics>,
    table: RefCell<Deadlines<Client, 6>>,
    /// What ends the reads of the rest of a request: few clients are in the middle of one.
    stops: RefCell<SparseSecondaryMap<Key, Canceller>>,
    draining: Cell<bool>,
    /// A newcomer has waited for long, and all clients are on the way of a request: the next one that begins is
    /// told that it is the last of its connection.
    place_wanted: Cell<bool>,
    /// Who waits for a client to leave, or for a chance to make one leave: accept loops, and the drain.
    waiting: RefCell<Vec<Waker>>,
}

struct Client {
    /// Open for as long as the entry exists: the connection gives up its seat before it closes.
    socket: RawFd,
    expired: Option<Phase>,
}

/// A client's place among the worker's clients, for as long as it is connected.
pub struct Seat {
    clients: Rc<Clients>,
    key: Key,
}

impl Clients {
    /// No clients yet.
    pub fn new(limits: ClientLimits, metrics: Arc<WorkerMetrics>) -> Rc<Self> {
        Rc::new(Self {
            buffers: Buffers::new(limits.head.head_bytes_max),
            outboxes: OutboxPool::default(),
            table: RefCell::new(Deadlines::new(limits.patiences())),
            stops: RefCell::default(),
            draining: Cell::new(false),
            place_wanted: Cell::new(false),
            waiting: RefCell::default(),
            limits: Cell::new(limits),
            metrics,
        })
    }

    /// What the clients may do.
    pub fn limits(&self) -> ClientLimits {
        self.limits.get()
    }

    /// From now on, the clients may do this. A head that grows is judged by it, and a wait that has begun ends by
    /// it; a body under way is not. Clients beyond the new number stay until somebody wants their place.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.limits.set(limits);
        self.buffers.set_large_bytes(limits.head.head_bytes_max);
        let mut table = self.table.borrow_mut();
        for (phase, patience) in PHASES.into_iter().zip(limits.patiences()) {
            table.set_timeout(phase as u8, patience);
        }
        drop(table);
        // There may be room now.
        self.wake_waiting();
    }

    /// The worker's large buffers.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// An empty outbox.
    pub fn outbox(&self) -> PooledOutbox<'_> {
        self.outboxes.take()
    }

    /// The worker's counts.
    pub fn metrics(&self) -> &Arc<WorkerMetrics> {
        &self.metrics
    }

    /// Whether no request is taken after those that have begun.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether a client that begins a request is told that it is the last, since it has to make room.
    pub fn makes_room(&self) -> bool {
        self.place_wanted.get() && {
            self.place_wanted.set(false);
            self.metrics.evicted.increment();
            true
        }
    }

    /// Gives a client a seat. Its socket stays open until the seat is given up.
    pub fn seat(self: &Rc<Self>, socket: RawFd) -> Seat {
        self.metrics.accepted.increment();
        self.place_wanted.set(false);
        self.metrics.connections.increment();
        let key = self.table.borrow_mut().insert(Client { socket, expired: None });
        Seat { clients: Rc::clone(self), key }
    }

    /// Whether another client can have a seat.
    pub fn has_room(&self) -> bool {
        self.table.borrow().len() < self.limits.get().connections_max
    }

    /// Sees to it that a newcomer who waits since `since` gets a seat soon: makes a client leave, if one may
    /// be made to, and waits for a moment.
    pub async fn make_room(&self, since: Moment) {
        // What was received at the same time is read first: it tells who is not idle.
        pace::pause().await;
        if !self.has_room() {
            self.evict(since);
            self.changed().await;
        }
    }

    /// Closes one client to make room for another that waits since `since`: the one that has been idle
    /// longest, else the one that has used most of its time for a head, a body, a write or the close. Each has
    /// a share of time before, [`IDLE_SHARE`] or [`SHARE`], unless the newcomer has waited for `SHARE`. Those
    /// that wait for their answer keep their seats; but if there is nobody else, the next request that begins is
    /// the last of its connection.
    pub fn evict(&self, since: Moment) {
        let now = clock::now();
        let mut table = self.table.borrow_mut();
        let patient = now.since(since) < SHARE;
        let evicted = let_go(&mut table, now, patient) || {
            let busiest = BUSY_PHASES
                .into_iter()
                .filter_map(|phase| table.oldest(phase as u8, now))
                .max_by(|(_, one, _), (_, other, _)| one.total_cmp(other));
            match busiest {
                Some((key, _, waited)) if !patient || waited >= SHARE => cut_off(&mut table, key),
                _ => {
                    self.place_wanted.set(!patient);
                    false
                }
            }
        };
        if evicted {
            self.metrics.evicted.increment();
        }
    }

    /// Waits until a client has left or become idle, or a tick has passed.
    async fn changed(&self) {
        let mut registered = false;
        poll_fn(|context| {
            if std::mem::replace(&mut registered, true) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Takes one more request from each client, which is told that it was the last; those that send
    /// none are let go when the time for it is up.
    ///
    /// HTTP/1.1 has no other way to say so: a connection that is closed at once may already have a
    /// request on its way, which would be lost (RFC 9112 section 9.5).
    pub fn drain(&self) {
        self.draining.set(true);
        let mut table = self.table.borrow_mut();
        while let Some(key) = table.first(Phase::Idle as u8) {
            table.wait(key, Phase::Parting as u8, clock::now());
        }
        drop(table);
        self.expire();
    }

    /// Waits until the last client has left.
    pub async fn gone(&self) {
        while self.table.borrow().len() > 0 {
            self.changed().await;
        }
    }

    fn wake_waiting(&self) {
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Ends the waits whose time is up. The sockets are shut down, so that the pending operations
    /// end by themselves, which cannot race with their completion.
    ///
    /// A client that is to be told that it was too slow may still be sending, and the kernel resets a
    /// connection that receives more when both of its sides are shut (RFC 1122 section 4.2.2.13):
    /// its read is cancelled instead, and awaited all the same.
    pub fn expire(&self) {
        let now = clock::now();
        let mut table = self.table.borrow_mut();
        while let Some((queue, key)) = table.pop_expired(now) {
            let phase = PHASES[usize::from(queue)];
            let Some(client) = table.get_mut(key) else { continue };
            client.expired = Some(phase);
            let side = match phase {
                Phase::Head | Phase::Body => {
                    drop(self.stops.borrow_mut().remove(key).map(Canceller::cancel));
                    continue;
                }
                // A request that has already arrived is still answered.
                Phase::Idle | Phase::Parting => Shutdown::Read,
                Phase::Write | Phase::Linger => Shutdown::Both,
            };
            cut(client.socket, side);
        }
        drop(table);
        // Newcomers may have waited long enough now.
        self.wake_waiting();
    }
}

/// Closes the client that has been idle longest, if it may be closed; whether it was.
///
/// One whose request has begun to arrive is not idle, though nobody has read of it yet: it has the
/// time for a head from now on.
fn let_go(table: &mut Deadlines<Client, 6>, now: Moment, patient: bool) -> bool {
    while let Some((key, _, idle)) = table.oldest(Phase::Idle as u8, now) {
        let Some(client) = table.get(key) else { return false };
        let socket = client.socket;
        if has_unread(socket) {
            table.wait(key, Phase::Head as u8, now);
        } else if patient && idle < IDLE_SHARE {
            return false;
        } else {
            table.leave(key);
            // Only the receiving side: what arrives before this takes effect is still answered.
            cut(socket, Shutdown::Read);
            return true;
        }
    }
    false
}

/// Closes a client that is not idle; what it may still say or hear is lost.
fn cut_off(table: &mut Deadlines<Client, 6>, key: Key) -> bool {
    let Some(client) = table.get(key) else { return false };
    cut(client.socket, Shutdown::Both);
    table.leave(key);
    true
}

fn has_unread(socket: RawFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    matches!(recv(socket, &mut [0], flags), Ok(1..))
}

fn cut(socket: RawFd, side: Shutdown) {
    // An error means that the peer was faster.
    let _ = shutdown(socket, side);
}

impl Seat {
    /// The worker's clients.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// The client is waited for. A wait for the rest of something goes on from its beginning.
    pub fn wait(&self, phase: Phase) {
        let mut table = self.clients.table.borrow_mut();
        let continues = matches!(phase, Phase::Head | Phase::Body);
        if continues && table.queue_of(self.key) == Some(phase as u8) {
            return;
        }
        table.wait(self.key, phase as u8, clock::now());
        drop(table);
        if phase == Phase::Idle {
            // Whoever waits for a seat may have this one.
            self.clients.wake_waiting();
        }
    }

    /// Whether bytes have arrived that nobody has read.
    pub fn has_unread(&self) -> bool {
        self.clients.table.borrow().get(self.key).is_some_and(|client| has_unread(client.socket))
    }

    /// What ends a read of the rest of a request when its time is up.
    pub fn stop(&self) -> CancelHandle {
        let stop = Canceller::new();
        let handle = stop.handle();
        self.clients.stops.borrow_mut().insert(self.key, stop);
        handle
    }

    /// The read has ended.
    pub fn forget_stop(&self) {
        self.clients.stops.borrow_mut().remove(self.key);
    }

    /// The client waits for us.
    pub fn rest(&self) {
        self.clients.table.borrow_mut().leave(self.key);
    }

    /// The wait whose time was up, if one was.
    pub fn expired_phase(&self) -> Option<Phase> {
        self.clients.table.borrow().get(self.key)?.expired
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clients.metrics.connections.decrement();
        self.clients.table.borrow_mut().remove(self.key);
        self.forget_stop();
        self.clients.wake_waiting();
    }
}
