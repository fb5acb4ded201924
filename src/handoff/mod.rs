//! Hands connections over to workers that have less to do, so that all are about equally busy: those that were just
//! accepted, before their first read, and now and then one that is open, between two requests. The kernel chooses a
//! worker for each connection by a hash, and with few connections its choices are uneven.
//!
//! ```text
//!   accepted --less to do elsewhere, and a place is reserved there--> detached --> in the other's mailbox --> registered
//!       |                                                         ^                                       and its place freed
//!       +--else--> registered here --busy for long, answered--> departed
//!                        ^                                         |
//!                        +------------- no place there ------------+
//! ```
//!
//! Knows load and sockets in which nothing is in progress; nothing of requests.

mod policy;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use monoio::net::TcpStream;

use self::policy::{Drawn, Load, Overload, choose, draw};
use crate::{
    access_log::Origin,
    connection::{Departed, Departures},
    listener::{Detached, Detacher},
    metrics::{Count, WorkerMetrics},
    runtime::clock,
};

/// The most connections that were handed over to a worker and that it has not registered yet.
pub const COMING_MAX: u64 = 64;
/// How long a worker measures how busy it is, before it tells others.
pub const WINDOW: Duration = Duration::from_millis(100);
/// A worker that has not kept its deadlines for so long stands still. It gets none: they would wait there, and it looks
/// as busy as it was before.
const STANDS_STILL: Duration = Duration::from_millis(300);
/// A worker does not send open connections to one that has fewer free places than this part of all.
const FREE_PART: u64 = 8;

/// A worker's account of what other workers hand over to it. Written only for a hand-over.
#[derive(Debug)]
#[repr(align(128))]
pub struct Intake(AtomicU64);

/// Set while the worker takes none. One number with the count, so that a worker that begins to drain knows of each
/// connection that still comes.
const CLOSED: u64 = 1 << 63;

/// Takes none.
impl Default for Intake {
    fn default() -> Self {
        Self(AtomicU64::new(CLOSED))
    }
}

impl Intake {
    /// From now on it takes some.
    pub fn open(&self) {
        self.0.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// From now on it takes none, except those that have a place already.
    pub fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Connections on their way to it.
    pub fn coming(&self) -> u64 {
        self.0.load(Ordering::Acquire) & !CLOSED
    }

    /// A place for one more connection, unless it takes none or has too many coming.
    fn reserve(self: &Arc<Self>) -> Option<Place> {
        let more = |now: u64| (now < COMING_MAX).then_some(now + 1);
        let reserved = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        reserved.ok().map(|_| Place(Arc::clone(self)))
    }
}

/// The place of a connection among those on their way to a worker. Freed by its drop, whatever becomes of it.
#[derive(Debug)]
pub struct Place(Arc<Intake>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whose connection is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// One who has just come, from this address.
    New(IpAddr),
    /// One whose requests another worker has answered.
    Known(Origin),
}

/// A connection that is handed over.
#[derive(Debug)]
pub struct Handed {
    connection: Detached,
    client: Client,
    place: Place,
}

impl Handed {
    /// Takes it on the worker that it was handed over to: the connection, whose it is, and its place, which is kept until
    /// the connection is registered.
    ///
    /// # Errors
    /// When the runtime cannot take it; it is closed then.
    pub fn take(self) -> io::Result<(TcpStream, Client, Place)> {
        let Self { connection, client, place } = self;
        Ok((connection.attach()?, client, place))
    }
}

/// Gives a connection to a worker, or back when that one has stopped.
pub type Give = Box<dyn Fn(Handed) -> Result<(), Handed> + Send>;

/// Another worker, as one sees it that may hand over to it.
pub struct Neighbour {
    /// What comes to it.
    pub intake: Arc<Intake>,
    /// What it counts.
    pub metrics: Arc<WorkerMetrics>,
    /// The way to it.
    pub give: Give,
}

impl Neighbour {
    fn stands_still(&self) -> bool {
        let silent = clock::now().millis().saturating_sub(self.metrics.heartbeat.read());
        u128::from(silent) > STANDS_STILL.as_millis()
    }
}

/// The load of a worker, with what comes to it.
fn load(metrics: &WorkerMetrics, intake: &Intake) -> Load {
    let connections = metrics.connections.read() + intake.coming();
    Load { busy: metrics.busy.read(), connections }
}

/// How a worker finds out how busy it is.
pub struct Meter {
    /// How often.
    pub window: Duration,
    /// How long the thread has run or waited for a core so far, in microseconds. Without the waits a worker that shares
    /// its core would look less busy than it is, and get more.
    pub runnable_micros: Box<dyn Fn() -> u64 + Send>,
}

/// One worker's side of the hand-over.
pub struct Handoff {
    intake: Arc<Intake>,
    neighbours: Vec<Neighbour>,
    detacher: RefCell<Detacher>,
    random: RefCell<Rng>,
    meter: Meter,
    /// When the present window began, and how long it was runnable until then, in microseconds.
    began: Cell<Option<(u64, u64)>>,
    overload: Cell<Overload>,
    /// Who gets the connections that leave in the present window.
    target: Cell<Option<usize>>,
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("intake", &self.intake).finish_non_exhaustive()
    }
}

impl Handoff {
    /// Of a worker that has this account, and these neighbours. `seed` differs for each worker.
    pub fn new(intake: Arc<Intake>, neighbours: Vec<Neighbour>, seed: u64, meter: Meter) -> Self {
        Self {
            intake,
            neighbours,
            detacher: RefCell::default(),
            random: RefCell::new(Rng::with_seed(seed)),
            meter,
            began: Cell::default(),
            overload: Cell::default(),
            target: Cell::default(),
        }
    }

    /// What comes to this worker.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// Hands a connection over that this worker has just accepted, where another one has less to do. Gives it back
    /// where none has, or none takes it.
    pub fn hand_over(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        own: &WorkerMetrics,
        connections_max: usize,
    ) -> Option<TcpStream> {
        let drawn = self.draw();
        let most = connections_max as u64;
        let others = self.loads(drawn, most);
        let chance = self.random.borrow_mut().u64(..1000);
        let place = choose(load(own, &self.intake), most, others, chance)
            .and_then(|chosen| self.reserve(drawn[chosen]?));
        let Some(place) = place else { return Some(stream) };
        self.give(place, stream, Client::New(peer), &own.handed_over)
    }

    /// Ends a window if it is over: tells how busy this worker is, and says how many of its connections leave for another
    /// one.
    pub fn measure(&self, own: &WorkerMetrics, departures: &Departures, connections_max: usize) {
        let now = clock::micros();
        let (began, runnable_before) = self.began.get().unwrap_or_default();
        let passed = now.saturating_sub(began);
        if u128::from(passed) < self.meter.window.as_micros() {
            return;
        }
        let runnable = (self.meter.runnable_micros)();
        let is_first = self.began.replace(Some((now, runnable))).is_none();
        let more = runnable.saturating_sub(runnable_before);
        own.busy.set(if is_first { 0 } else { more * 1000 / passed });
        let samples = departures.next_window();
        let drawn = self.draw();
        let most = connections_max as u64;
        let others = self.loads(drawn, most - most / FREE_PART);
        let mut overload = self.overload.get();
        let leaving = overload.end_window(load(own, &self.intake), others, samples);
        self.overload.set(overload);
        self.target.set(leaving.and_then(|(chosen, _)| drawn[chosen]));
        leaving.into_iter().for_each(|(_, allowance)| departures.allow(allowance));
    }

    /// Hands a connection over that leaves this worker between two requests. Gives it back where none takes it.
    pub fn move_on(
        &self,
        departed: Departed<TcpStream>,
        own: &WorkerMetrics,
    ) -> Option<Departed<TcpStream>> {
        let Departed { stream, client } = departed;
        let kept = match self.target.get().and_then(|target| self.reserve(target)) {
            Some(place) => self.give(place, stream, Client::Known(client), &own.moved),
            None => Some(stream),
        };
        kept.map(|stream| Departed { stream, client })
    }

    /// Gives a connection to the worker of this place, and counts that.
    fn give(
        &self,
        (neighbour, place): (&Neighbour, Place),
        stream: TcpStream,
        client: Client,
        count: &Count,
    ) -> Option<TcpStream> {
        let connection = match self.detacher.borrow_mut().detach(stream) {
            Ok(connection) => connection,
            Err(stream) => return Some(stream),
        };
        // It may have stopped since.
        let Err(Handed { connection, .. }) = (neighbour.give)(Handed { connection, client, place })
        else {
            count.increment();
            return None;
        };
        match connection.attach() {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::warn!(%error, "a connection is closed that no worker can take");
                None
            }
        }
    }

    fn draw(&self) -> Drawn<usize> {
        draw(self.neighbours.len(), &mut self.random.borrow_mut())
    }

    /// The loads of those that have room for more and do not stand still.
    fn loads(&self, drawn: Drawn<usize>, connections_max: u64) -> Drawn<Load> {
        drawn.map(|drawn| {
            let neighbour = self.neighbours.get(drawn?)?;
            let load = load(&neighbour.metrics, &neighbour.intake);
            (load.connections < connections_max && !neighbour.stands_still()).then_some(load)
        })
    }

    fn reserve(&self, neighbour: usize) -> Option<(&Neighbour, Place)> {
        // Again: it may stand still since the window began.
        let neighbour = self.neighbours.get(neighbour).filter(|chosen| !chosen.stands_still())?;
        Some((neighbour, neighbour.intake.reserve()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intake_has_places_while_it_is_open_and_frees_each() {
        let intake = Arc::<Intake>::default();
        assert!(intake.reserve().is_none());
        intake.open();
        let places: Vec<_> = std::iter::from_fn(|| intake.reserve()).collect();
        assert_eq!((places.len() as u64, intake.coming()), (COMING_MAX, COMING_MAX));
        intake.close();
        drop(places);
        // Those that had a place are known after the close too.
        assert_eq!(intake.coming(), 0);
        assert!(intake.reserve().is_none());
        intake.open();
        assert!(intake.reserve().is_some());
    }

    #[test]
    fn a_worker_that_stands_still_gets_none() {
        let (intake, metrics) = (Arc::<Intake>::default(), Arc::<WorkerMetrics>::default());
        intake.open();
        let neighbour = Neighbour {
            intake: Arc::clone(&intake),
            metrics: Arc::clone(&metrics),
            give: Box::new(Err),
        };
        let meter = Meter { window: WINDOW, runnable_micros: Box::new(|| 0) };
        let handoff = Handoff::new(Arc::default(), vec![neighbour], 1, meter);
        let may_get = || {
            let load = handoff.loads([Some(0), None], 10)[0];
            let place = handoff.reserve(0);
            assert_eq!(load.is_some(), place.is_some());
            load.is_some()
        };
        assert!(!may_get());
        // Not before now.
        metrics.heartbeat.set(u64::MAX);
        assert!(may_get());
        metrics.heartbeat.set(1);
        assert!(!may_get());
        assert_eq!(intake.coming(), 0);
    }
}
