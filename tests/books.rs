//! The books balance: visits during random faults, and then a check of the contract.
//!
//! This is short. For a longer run, or one with a seed that was printed:
//!
//! ```sh
//! TALLYRING_BOOKS_ROUNDS=1000 TALLYRING_BOOKS_SEED=7 cargo test --release --test books -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Delays are among the faults. Nothing is synchronised by them.
#![allow(clippy::disallowed_methods)]

mod common;

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{Books, Client, PATIENCE, SORRY, Server, Signal, WELCOME, get_request, serve};
use fastrand::Rng;

const VISITORS: u64 = 8;
/// Visits while a fault lasts, and welcomes after it before the next.
const VISITS_WITH_FAULT: usize = 150;
const WELCOMES_AFTER: usize = 100;

/// A proxy between the site and the counter.
struct Wire {
    address: SocketAddr,
    counter: Mutex<SocketAddr>,
    /// One piece in this many is cut, with its connection; 0 is none.
    cuts: AtomicU64,
    /// One piece in this many is delayed by some milliseconds; 0 is none.
    delays: AtomicU64,
    refuses: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Wire {
    fn start(counter: SocketAddr, mut random: Rng) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            counter: Mutex::new(counter),
            cuts: AtomicU64::new(0),
            delays: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&wire);
        thread::spawn(move || {
            for site in listener.incoming().map_while(Result::ok) {
                if accepting.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let counter = *accepting.counter.lock().unwrap();
                let Ok(counter) = TcpStream::connect(counter) else { continue };
                let (there, back) = ((site.try_clone(), counter.try_clone()), (counter, site));
                let mut connections = accepting.connections.lock().unwrap();
                connections.retain(|connection| connection.peer_addr().is_ok());
                connections.push(back.1.try_clone().unwrap());
                drop(connections);
                for (from, to) in [(there.0.unwrap(), there.1.unwrap()), back] {
                    let (wire, random) = (Arc::clone(&accepting), random.fork());
                    thread::spawn(move || wire.carry(from, to, random));
                }
            }
        });
        wire
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, mut random: Rng) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let delays = self.delays.load(Ordering::SeqCst);
            if delays > 0 && one_in(&mut random, delays) {
                thread::sleep(Duration::from_millis(random.u64(..20)));
            }
            let cuts = self.cuts.load(Ordering::SeqCst);
            if cuts > 0 && one_in(&mut random, cuts) {
                let part = random.usize(..=count);
                let _ = to.write_all(&buffer[..part]);
                break;
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn cut_all(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Default)]
struct Tally {
    welcomed: u64,
    sorry: u64,
    /// Visits without an answer: the visitor left, or got none.
    left: u64,
}

/// Visits until `stop`, one or several at a time, and sometimes leaves before the last answer. Tells `done` of each
/// round whether it was welcomed.
fn visit(
    address: &Mutex<SocketAddr>,
    mut random: Rng,
    stop: &AtomicBool,
    done: &mpsc::Sender<bool>,
) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    while !stop.load(Ordering::SeqCst) {
        let before = tally.welcomed;
        // The server may be stopping or starting.
        let connected = connection.take().or_else(|| {
            let address = *address.lock().unwrap();
            TcpStream::connect(address).ok().map(Client::of)
        });
        let Some(mut client) = connected else {
            thread::yield_now();
            continue;
        };
        let sent = if one_in(&mut random, 3) { random.u64(1..=7) } else { 1 };
        let sent_whole = client.try_send(get_request("/").repeat(usize::try_from(sent).unwrap()));
        let patience = if one_in(&mut random, 20) { random.u64(..sent) } else { sent };
        let read = if sent_whole { tally.read(&mut client, patience) } else { 0 };
        tally.left += sent - read;
        if read == sent {
            connection = Some(client);
        } else if one_in(&mut random, 2) {
            client.reset();
        }
        let _ = done.send(tally.welcomed > before);
    }
    tally
}

impl Tally {
    /// Reads this many answers, or as many as come.
    fn read(&mut self, client: &mut Client, answers: u64) -> u64 {
        for read in 0..answers {
            match client.try_response("GET") {
                Ok(Some(answer)) if answer.body == WELCOME => self.welcomed += 1,
                Ok(Some(answer)) if answer.body == SORRY => self.sorry += 1,
                Ok(Some(answer)) => panic!("neither page: {answer:?}"),
                Ok(None) | Err(_) => return read,
            }
        }
        answers
    }

    fn plus(self, other: Self) -> Self {
        Self {
            welcomed: self.welcomed + other.welcomed,
            sorry: self.sorry + other.sorry,
            left: self.left + other.left,
        }
    }
}

/// A site whose drain time is shorter than the time-out of a call, so that a stop cuts visits. Every other one registers
/// several visits in one call.
fn site(wire: &Wire, listen: &str, before: usize) -> Server {
    let query = if before.is_multiple_of(2) { "?by={n}" } else { "" };
    let url = format!("http://{}/counter{query}", wire.address);
    serve(&[
        "--counter",
        &url,
        "--counter-timeout",
        "400ms",
        "--drain-timeout",
        "100ms",
        "--listen",
        listen,
    ])
}

fn counter(store: &str) -> Server {
    Server::start(&["counter", "--store", store], &[])
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect(name))
}

fn one_in(random: &mut Rng, count: u64) -> bool {
    random.u64(..count) == 0
}

fn pick(random: &mut Rng, of: [u64; 3]) -> u64 {
    of[random.usize(..of.len())]
}

/// A counter and a site, and the wire between them.
struct Trial {
    store: String,
    counter: Server,
    wire: Arc<Wire>,
    site: Server,
    /// Where the visitors find the site.
    address: Arc<Mutex<SocketAddr>>,
    /// The books of the sites that have stopped.
    books: Vec<Books>,
}

impl Trial {
    fn start(directory: &Path, random: Rng) -> Self {
        let store = format!("redb:{}", directory.join("counter.redb").display());
        let counter = counter(&store);
        let wire = Wire::start(counter.address, random);
        let site = site(&wire, "127.0.0.1:0", 0);
        let address = Arc::new(Mutex::new(site.address));
        Self { store, counter, wire, site, address, books: Vec::new() }
    }

    /// Begins a random fault, or one that is over at once.
    fn begin_fault(&mut self, random: &mut Rng) {
        self.wire.cuts.store(pick(random, [0, 5, 50]), Ordering::SeqCst);
        self.wire.delays.store(pick(random, [0, 3, 30]), Ordering::SeqCst);
        let fault = random.u64(..7);
        println!("fault {fault}");
        match fault {
            0 => self.kill_counter(),
            1 => self.counter.signal(Signal::STOP),
            2 => self.wire.refuses.store(true, Ordering::SeqCst),
            3 => self.wire.cut_all(),
            4 => self.restart_site(),
            5 => {
                self.counter.signal(Signal::STOP);
                self.restart_site();
            }
            _ => {}
        }
    }

    fn end_fault(&self) {
        self.counter.signal(Signal::CONT);
        self.wire.refuses.store(false, Ordering::SeqCst);
    }

    fn kill_counter(&mut self) {
        self.counter.signal(Signal::KILL);
        self.counter.wait();
        self.counter = counter(&self.store);
        *self.wire.counter.lock().unwrap() = self.counter.address;
    }

    fn restart_site(&mut self) {
        self.books.push(self.site.stop_with_books());
        self.site = site(&self.wire, "127.0.0.1:0", self.books.len());
        *self.address.lock().unwrap() = self.site.address;
    }

    /// Stops both; what the site's books say, and what the counter has on disk.
    fn finish(mut self) -> (Books, u64) {
        self.books.push(self.site.stop_with_books());
        self.kill_counter();
        let counted = self.counter.get("/counter").body.trim().parse().unwrap();
        (Books::sum(&self.books), counted)
    }
}

/// Visits during the fault, and then until visits are welcomed again.
fn wait_for_visits(trial: &Trial, visited: &mpsc::Receiver<bool>) {
    // Earlier visits do not count for this fault.
    while visited.try_recv().is_ok() {}
    for _ in 0..VISITS_WITH_FAULT {
        visited.recv_timeout(PATIENCE).expect("visits go on");
    }
    trial.end_fault();
    let mut welcomes = 0;
    while welcomes < WELCOMES_AFTER {
        let welcomed = visited.recv_timeout(PATIENCE).expect("visits go on");
        welcomes += usize::from(welcomed);
    }
}

#[test]
fn the_books_balance_whatever_happens() {
    let seed = setting("TALLYRING_BOOKS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = setting("TALLYRING_BOOKS_ROUNDS").unwrap_or(8);
    println!("TALLYRING_BOOKS_SEED={seed} TALLYRING_BOOKS_ROUNDS={rounds}");
    let mut random = Rng::with_seed(seed);

    let directory = tempfile::tempdir().unwrap();
    let mut trial = Trial::start(directory.path(), random.fork());
    let stop = AtomicBool::new(false);
    let (done, visited) = mpsc::channel();
    let tally = thread::scope(|scope| {
        let visitors: Vec<_> = (0..VISITORS)
            .map(|_| {
                let (random, done) = (random.fork(), done.clone());
                let (stop, address) = (&stop, Arc::clone(&trial.address));
                scope.spawn(move || visit(&address, random, stop, &done))
            })
            .collect();
        for _ in 0..rounds {
            trial.begin_fault(&mut random);
            wait_for_visits(&trial, &visited);
        }
        stop.store(true, Ordering::SeqCst);
        let tallies = visitors.into_iter().map(|visitor| visitor.join().unwrap());
        tallies.fold(Tally::default(), Tally::plus)
    });
    let (books, counted) = trial.finish();
    println!(
        "visitors read {} welcomes and {} errors, and left {}; the site says {books:?}; {counted} \
         were counted: seed {seed}",
        tally.welcomed, tally.sorry, tally.left
    );
    assert!(tally.welcomed > 0 && tally.left > 0, "too little was tried");
    assert!(tally.welcomed <= books.welcomed && tally.sorry <= books.erred);
    assert!(books.ended() <= tally.welcomed + tally.sorry + tally.left);
    books.check(counted);
}
