//! The arrangement of docker/compose-postgres.yaml as plain processes: two sites, two counters, and one PostgreSQL that
//! these share. Each of the five is killed and started again while visitors come.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use common::{
    PATIENCE, SORRY, Server, Signal, WELCOME, get_request,
    postgres::{Database, programs},
    reserve,
};
use socket2::Socket;

/// Visitors of each site at a time.
const VISITORS: usize = 4;

/// A server that is started again at the same address.
struct Part {
    address: SocketAddr,
    arguments: Vec<String>,
    server: Option<Server>,
    /// Keeps the port while no server runs.
    _port: Socket,
}

impl Part {
    fn start(arguments: &[&str]) -> Self {
        let (port, address) = reserve();
        let arguments = arguments.iter().copied().map(String::from);
        let arguments = arguments.chain([String::from("--listen"), address.to_string()]).collect();
        let mut part = Self { address, arguments, server: None, _port: port };
        part.start_again();
        part
    }

    fn counter(store: &str, shard: &str) -> Self {
        Self::start(&["counter", "--store", store, "--store-shard", shard])
    }

    fn site(counter: &Self) -> Self {
        let url = format!("http://{}/counter", counter.address);
        Self::start(&["serve", "--workers", "1", "--counter", &url])
    }

    fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.signal(Signal::KILL);
        server.wait();
    }

    fn start_again(&mut self) {
        assert!(self.server.is_none());
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        self.server = Some(Server::start(&arguments, &[]));
    }
}

/// What the visitors of one site saw.
#[derive(Default)]
struct Seen {
    welcomed: AtomicU64,
    /// Visits with the sorry page, another answer or none: they may be counted or not.
    unsure: AtomicU64,
}

impl Seen {
    fn welcomed(&self) -> u64 {
        self.welcomed.load(Ordering::SeqCst)
    }

    /// Waits until so many more are welcomed.
    #[track_caller]
    fn wait_for(&self, more: u64) {
        let (wanted, began) = (self.welcomed() + more, Instant::now());
        while self.welcomed() < wanted {
            assert!(began.elapsed() < PATIENCE, "visitors are not welcomed any more");
            thread::yield_now();
        }
    }

    /// One visitor, who comes anew when the connection ends, until told to stop.
    fn visit(&self, site: SocketAddr, stop: &AtomicBool) {
        let mut connection = None;
        while !stop.load(Ordering::SeqCst) {
            let stream = match connection.take().map_or_else(|| TcpStream::connect(site), Ok) {
                Ok(stream) => stream,
                Err(_) => {
                    thread::yield_now();
                    continue;
                }
            };
            match ask(&stream) {
                Ok(answer) if answer.contains(WELCOME) => {
                    self.welcomed.fetch_add(1, Ordering::SeqCst);
                    connection = Some(stream);
                }
                Ok(answer) => {
                    assert!(answer.is_empty() || answer.contains(SORRY), "{answer}");
                    self.unsure.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => drop(self.unsure.fetch_add(1, Ordering::SeqCst)),
            }
        }
    }
}

/// Tells visitors to stop, also where the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The answer to a visit, which fits into a segment; empty where the site has closed.
fn ask(mut stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(get_request("/").as_bytes())?;
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[test]
fn any_one_of_two_sites_two_counters_and_their_database_is_killed_and_the_books_are_exact() {
    let Some(programs) = programs("any_one_of_two_sites_two_counters_and_their_database") else {
        return;
    };
    let mut database = Database::start(&programs, "");
    let url = database.url();
    let mut counters = ["counter-1", "counter-2"].map(|shard| Part::counter(&url, shard));
    let mut sites = counters.each_ref().map(Part::site);
    let addresses = sites.each_ref().map(|site| site.address);
    let (seen, stop) = (<[Seen; 2]>::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for (address, seen) in addresses.into_iter().zip(&seen) {
            let stop = &stop;
            for _ in 0..VISITORS {
                scope.spawn(move || seen.visit(address, stop));
            }
        }
        let both = || seen.iter().for_each(|seen| seen.wait_for(100));
        both();
        for index in 0..2 {
            let other = &seen[1 - index];
            counters[index].kill();
            // The other counter and its site do not notice.
            other.wait_for(100);
            counters[index].start_again();
            both();
            sites[index].kill();
            other.wait_for(100);
            sites[index].start_again();
            both();
        }
        database.kill();
        database.restart();
        both();
    });
    let sum = |figure: fn(&Seen) -> &AtomicU64| {
        seen.iter().map(|seen| figure(seen).load(Ordering::SeqCst)).sum::<u64>()
    };
    let (welcomed, unsure) = (sum(|seen| &seen.welcomed), sum(|seen| &seen.unsure));
    let counted = database.total();
    assert!(
        (welcomed..=welcomed + unsure).contains(&counted),
        "{welcomed} welcomed, {unsure} unsure, {counted} counted"
    );
    // Undisturbed, both count exactly, and each of them tells the total of both.
    for (site, counter) in sites.iter().zip(&counters) {
        let before = database.total();
        (0..50).for_each(|_| assert_eq!(site.server.as_ref().unwrap().visit(), WELCOME));
        assert_eq!(database.total(), before + 50);
        let told = counter.server.as_ref().unwrap().get("/counter").body;
        assert_eq!(told, format!("{}\n", before + 50));
    }
}
