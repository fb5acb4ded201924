//! The books always balance: visits through faults chosen at random, and then the contract is proven.
//!
//! Briefly here. For as long as one likes, and again with a seed that was printed:
//!
//! ```sh
//! TALLYRING_BOOKS_ROUNDS=1000 TALLYRING_BOOKS_SEED=7 cargo test --release --test books -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Delays are among the faults. Nothing waits for them to pass.
#![allow(clippy::disallowed_methods)]

mod common;

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{Books, Client, PATIENCE, SORRY, Server, WELCOME, get_request, serve};

const VISITORS: u64 = 8;
/// Visits while a fault lasts, and welcomes after it before the next.
const VISITS_WITH_FAULT: usize = 150;
const WELCOMES_AFTER: usize = 100;

/// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers for the same seed.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick(&mut self, of: [u64; 3]) -> u64 {
        of[usize::try_from(self.below(3)).unwrap()]
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// What stands between the site and the counter.
struct Wire {
    address: SocketAddr,
    counter: Mutex<SocketAddr>,
    /// One piece in so many is cut somewhere, with its connection; 0 is none.
    cuts: AtomicU64,
    /// One piece in so many is held for some milliseconds; 0 is none.
    delays: AtomicU64,
    refuses: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Wire {
    fn start(counter: SocketAddr, random: &Random) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            counter: Mutex::new(counter),
            cuts: AtomicU64::new(0),
            delays: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let (accepting, mut random) = (Arc::clone(&wire), random.clone());
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
                    let (wire, random) = (Arc::clone(&accepting), Random(random.next()));
                    thread::spawn(move || wire.carry(from, to, random));
                }
            }
        });
        wire
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, mut random: Random) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let delays = self.delays.load(Ordering::SeqCst);
            if delays > 0 && random.one_in(delays) {
                thread::sleep(Duration::from_millis(random.below(20)));
            }
            let cuts = self.cuts.load(Ordering::SeqCst);
            if cuts > 0 && random.one_in(cuts) {
                let part = usize::try_from(random.below(count as u64 + 1)).unwrap();
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
    /// Visits whose answer the visitor did not wait for, or did not get.
    left: u64,
}

/// Visits until told to stop, one or several at a time; now and then leaves before the last answer.
fn visit(
    address: &Mutex<SocketAddr>,
    mut random: Random,
    stop: &AtomicBool,
    done: &mpsc::Sender<bool>,
) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    while !stop.load(Ordering::SeqCst) {
        let before = tally.welcomed;
        // The server may be on its way down, or not yet up again.
        let connected = connection.take().or_else(|| {
            let address = *address.lock().unwrap();
            TcpStream::connect(address).ok().map(Client::of)
        });
        let Some(mut client) = connected else {
            thread::yield_now();
            continue;
        };
        let sent = if random.one_in(3) { 1 + random.below(7) } else { 1 };
        let sent_whole = client.try_send(get_request("/").repeat(usize::try_from(sent).unwrap()));
        let patience = if random.one_in(20) { random.below(sent) } else { sent };
        let read = if sent_whole { tally.read(&mut client, patience) } else { 0 };
        tally.left += sent - read;
        if read == sent {
            connection = Some(client);
        } else if random.one_in(2) {
            client.reset();
        }
        let _ = done.send(tally.welcomed > before);
    }
    tally
}

impl Tally {
    /// Reads so many answers, or as many as there are.
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

/// A site that finishes in less time than a visit may take.
fn site(wire: &Wire, listen: &str) -> Server {
    let url = format!("http://{}/counter", wire.address);
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

#[test]
fn the_books_balance_whatever_happens() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = setting("TALLYRING_BOOKS_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    let rounds = setting("TALLYRING_BOOKS_ROUNDS").unwrap_or(8);
    println!("TALLYRING_BOOKS_SEED={seed} TALLYRING_BOOKS_ROUNDS={rounds}");
    let mut random = Random(seed);

    let directory = tempfile::tempdir().unwrap();
    let store = format!("redb:{}", directory.path().join("counter.redb").display());
    let mut process = counter(&store);
    let wire = Wire::start(process.address, &random);
    let mut server = site(&wire, "127.0.0.1:0");
    let address = Mutex::new(server.address);
    let mut books = Vec::new();
    let stop = AtomicBool::new(false);
    let (done, visited) = mpsc::channel();
    let tally = thread::scope(|scope| {
        let visitors: Vec<_> = (0..VISITORS)
            .map(|_| {
                let (random, done) = (Random(random.next()), done.clone());
                let (stop, address) = (&stop, &address);
                scope.spawn(move || visit(address, random, stop, &done))
            })
            .collect();
        for round in 0..rounds {
            wire.cuts.store(random.pick([0, 5, 50]), Ordering::SeqCst);
            wire.delays.store(random.pick([0, 3, 30]), Ordering::SeqCst);
            let fault = random.below(7);
            println!("round {round}: fault {fault}");
            match fault {
                0 => {
                    process.signal("-KILL");
                    process.wait();
                    process = counter(&store);
                    *wire.counter.lock().unwrap() = process.address;
                }
                1 => process.signal("-STOP"),
                2 => wire.refuses.store(true, Ordering::SeqCst),
                3 => wire.cut_all(),
                4 | 5 => {
                    // With a counter that answers, and with one that does not.
                    if fault == 5 {
                        process.signal("-STOP");
                    }
                    books.push(server.stop_with_books());
                    server = site(&wire, "127.0.0.1:0");
                    *address.lock().unwrap() = server.address;
                }
                _ => {}
            }
            // Those of before do not count for this fault.
            while visited.try_recv().is_ok() {}
            for _ in 0..VISITS_WITH_FAULT {
                visited.recv_timeout(PATIENCE).expect("visits go on");
            }
            process.signal("-CONT");
            wire.refuses.store(false, Ordering::SeqCst);
            let mut welcomes = 0;
            while welcomes < WELCOMES_AFTER {
                let welcomed = visited.recv_timeout(PATIENCE).expect("visits go on");
                welcomes += usize::from(welcomed);
            }
        }
        stop.store(true, Ordering::SeqCst);
        visitors
            .into_iter()
            .map(|visitor| visitor.join().unwrap())
            .fold(Tally::default(), Tally::plus)
    });
    books.push(server.stop_with_books());
    let books = Books::sum(&books);
    // What the counter has is what it has on disk.
    process.signal("-KILL");
    process.wait();
    let counted: u64 = counter(&store).get("/counter").body.trim().parse().unwrap();
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
