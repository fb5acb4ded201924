//! Hands connections that were just accepted over to workers that have fewer, so that all have about equally many.
//! The kernel chooses a worker for each connection by a hash, and with few connections its choices are uneven.
//!
//! A worker compares itself with two others, drawn at random: nearly as even as to compare all (the power of two
//! choices, after the kernel's own), and workers do not all choose the same one.
//!
//! ```text
//!   accepted --fewer elsewhere, and a place is reserved there--> detached --> in the other's mailbox --> registered
//!       |                                                                                         and its place freed
//!       +--else--> registered here
//! ```
//!
//! Knows counts and sockets that nothing was read from; nothing of requests.

use std::{
    cell::RefCell,
    fmt, io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use fastrand::Rng;
use monoio::net::TcpStream;

use crate::{
    listener::{Detached, Detacher},
    metrics::WorkerMetrics,
};

/// The most connections that were handed over to a worker and that it has not registered yet.
pub const COMING_MAX: u64 = 64;
/// How many connections fewer another worker must have than this one would, so that one is handed over: with less, both
/// are as even as they can be.
const LEAST: u64 = 2;
/// The same, as a part of those that this one would have: a hand-over costs a few microseconds, and a difference that
/// nobody notices is not worth them.
const PART: u64 = 8;

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

/// A connection that is handed over.
#[derive(Debug)]
pub struct Handed {
    connection: Detached,
    peer: IpAddr,
    place: Place,
}

impl Handed {
    /// Takes it on the worker that it was handed over to: the connection, who has opened it, and its place, which is
    /// kept until the connection is registered.
    ///
    /// # Errors
    /// When the runtime cannot take it; it is closed then.
    pub fn take(self) -> io::Result<(TcpStream, IpAddr, Place)> {
        let Self { connection, peer, place } = self;
        Ok((connection.attach()?, peer, place))
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
    fn load(&self) -> u64 {
        self.metrics.connections.read() + self.intake.coming()
    }
}

/// One worker's side of the hand-over.
pub struct Handoff {
    intake: Arc<Intake>,
    neighbours: Vec<Neighbour>,
    detacher: RefCell<Detacher>,
    random: RefCell<Rng>,
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("intake", &self.intake).finish_non_exhaustive()
    }
}

impl Handoff {
    /// Of a worker that has this account, and these neighbours. `seed` differs for each worker.
    pub fn new(intake: Arc<Intake>, neighbours: Vec<Neighbour>, seed: u64) -> Self {
        let random = RefCell::new(Rng::with_seed(seed));
        Self { intake, neighbours, detacher: RefCell::default(), random }
    }

    /// What comes to this worker.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// Hands a connection over that this worker has just accepted, where another one has clearly fewer. Gives it back
    /// where none has, or none takes it.
    pub fn hand_over(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        own: &WorkerMetrics,
        connections_max: usize,
    ) -> Option<TcpStream> {
        let Some(place) = self.reserve(own, connections_max as u64) else { return Some(stream) };
        let (neighbour, place) = place;
        let connection = match self.detacher.borrow_mut().detach(stream) {
            Ok(connection) => connection,
            Err(stream) => return Some(stream),
        };
        match (neighbour.give)(Handed { connection, peer, place }) {
            Ok(()) => {
                own.handed_over.increment();
                None
            }
            // It has stopped since.
            Err(Handed { connection, .. }) => match connection.attach() {
                Ok(stream) => Some(stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection is closed that no worker can take");
                    None
                }
            },
        }
    }

    /// A place at the worker where the connection is better served than here.
    fn reserve(&self, own: &WorkerMetrics, connections_max: u64) -> Option<(&Neighbour, Place)> {
        let drawn = draw(self.neighbours.len(), &mut self.random.borrow_mut());
        let loads = drawn.map(|drawn| {
            let neighbour = self.neighbours.get(drawn?)?;
            Some(neighbour.load()).filter(|load| *load < connections_max)
        });
        let chosen = choose(own.connections.read() + self.intake.coming(), loads)?;
        let neighbour = self.neighbours.get(drawn[chosen]?)?;
        Some((neighbour, neighbour.intake.reserve()?))
    }
}

/// Two of `count`, one where there is only one.
fn draw(count: usize, random: &mut Rng) -> [Option<usize>; 2] {
    match count {
        0 => [None, None],
        1 => [Some(0), None],
        _ => {
            let first = random.usize(..count);
            // Never the first again.
            [Some(first), Some((first + random.usize(1..count)) % count)]
        }
    }
}

/// Which of two others gets a connection that was accepted by a worker with `own` connections, if one has clearly
/// fewer.
fn choose(own: u64, others: [Option<u64>; 2]) -> Option<usize> {
    let with_it = own + 1;
    let places = others.into_iter().enumerate();
    let (place, load) =
        places.filter_map(|(place, load)| Some((place, load?))).min_by_key(|(_, load)| *load)?;
    let least = LEAST.max(with_it.div_ceil(PART));
    (with_it.saturating_sub(load) >= least).then_some(place)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(own: u64, others: [Option<u64>; 2], expected: Option<usize>) {
        assert_eq!(choose(own, others), expected, "{own} of {others:?}");
    }

    #[test]
    fn the_one_with_clearly_fewer_gets_it() {
        check(0, [Some(0), None], None);
        check(1, [Some(0), None], Some(0));
        check(1, [Some(1), Some(0)], Some(1));
        check(1, [None, Some(0)], Some(1));
        check(2, [Some(1), Some(1)], Some(0));
        check(5, [None, None], None);
        // An eighth of 100 is 13.
        check(99, [Some(87), None], Some(0));
        check(99, [Some(88), None], None);
    }

    proptest! {
        #[test]
        fn never_one_with_as_many_or_more(own in 0..5_000_u64, others: [Option<u16>; 2]) {
            let others = others.map(|load| load.map(u64::from));
            if let Some(place) = choose(own, others) {
                let load = others[place].unwrap();
                prop_assert!(load < own);
                prop_assert!(others.iter().flatten().all(|other| load <= *other));
            } else {
                let least = LEAST.max((own + 1).div_ceil(PART));
                prop_assert!(others.iter().flatten().all(|load| load + least > own + 1));
            }
        }

        #[test]
        fn connections_that_come_to_one_are_spread_over_all(workers in 2..9_usize, count in 0..400_u64) {
            let mut random = Rng::with_seed(count);
            let mut loads = vec![0; workers];
            for _ in 0..count {
                // All of them to the first one.
                let drawn = draw(workers - 1, &mut random);
                let others = drawn.map(|drawn| Some(loads[drawn? + 1]));
                let place = choose(loads[0], others).and_then(|place| drawn[place]);
                loads[place.map_or(0, |place| place + 1)] += 1;
            }
            let most = loads.iter().max().unwrap();
            let even = count.div_ceil(workers as u64);
            prop_assert!(*most <= even + 2 + even / 2, "{loads:?}");
        }
    }

    #[test]
    fn two_are_drawn_that_differ() {
        let mut random = Rng::with_seed(1);
        for count in 0..6 {
            for _ in 0..100 {
                let drawn: Vec<_> = draw(count, &mut random).into_iter().flatten().collect();
                assert_eq!(drawn.len(), count.min(2));
                assert!(drawn.iter().all(|place| *place < count));
                assert!(count < 2 || drawn[0] != drawn[1]);
            }
        }
    }

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
}
