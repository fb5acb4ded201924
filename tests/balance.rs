//! `--balance handoff`: connections are spread evenly over the workers, busy ones move, and none is lost on its way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{Books, COUNTED, Client, Server, Signal, Stub, WELCOME, run, serve_with};

/// Only a failure takes so long.
const PATIENCE: Duration = Duration::from_secs(30);
const DRIVERS: [&str; 2] = ["auto", "epoll"];

fn start(stub: &Stub, driver: &str, flags: &[&str]) -> Server {
    let mut all = vec!["--driver", driver, "--admin", "127.0.0.1:0"];
    all.extend(flags);
    serve_with(stub, &all)
}

/// The rows of a metric, for each worker.
fn of_workers(admin: &mut Client, metric: &str) -> Vec<u64> {
    let text = admin.get("/metrics").body;
    let name = format!("{metric}{{");
    let rows = text.lines().filter(|row| row.starts_with(&name) && row.contains("\"client\""));
    rows.map(|row| row.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

/// A client that was answered: its worker knows it.
fn come(server: &Server) -> Client {
    let mut client = server.client();
    assert_eq!(client.get("/").body, WELCOME);
    client
}

#[test]
fn each_worker_has_as_many_connections() {
    for driver in DRIVERS {
        let stub = Stub::answering(COUNTED);
        let mut server = start(&stub, driver, &["--balance", "handoff"]);
        let mut admin = server.admin();
        let mut clients = Vec::new();
        for count in 1..=40_u64 {
            clients.push(come(&server));
            let open = of_workers(&mut admin, "tallyring_connections");
            assert_eq!(open.iter().sum::<u64>(), count, "{driver}");
            // Where one is busier, another one may get some more.
            let least = count / 4;
            assert!(open.iter().all(|open| *open >= least), "{driver}: {open:?}");
        }
        // That the kernel alone did this: once in a million starts.
        let handed_over = of_workers(&mut admin, "tallyring_connections_handed_over_total");
        assert!(handed_over.iter().sum::<u64>() > 0, "{driver}");
        // A connection is accepted once, by the worker that serves it.
        let accepted = of_workers(&mut admin, "tallyring_connections_accepted_total");
        assert_eq!(accepted.iter().sum::<u64>(), 40, "{driver}");
        for client in &mut clients {
            assert_eq!(client.get("/").body, WELCOME);
        }
        drop(clients);
        admin.wait_for_metric("tallyring_connections{peer=\"client\"", 0);
        assert_eq!(server.stop_with_books().welcomed, 80, "{driver}");
    }
}

#[test]
fn by_default_and_with_one_worker_nothing_is_handed_over() {
    for flags in [&[][..], &["--balance", "kernel"], &["--balance", "handoff", "--workers", "1"]] {
        let stub = Stub::answering(COUNTED);
        let mut server = start(&stub, "auto", flags);
        let clients: Vec<_> = (0..20).map(|_| come(&server)).collect();
        let mut admin = server.admin();
        let handed_over = of_workers(&mut admin, "tallyring_connections_handed_over_total");
        assert!(handed_over.iter().all(|count| *count == 0), "{flags:?}: {handed_over:?}");
        drop(clients);
        assert_eq!(server.stop_with_books().welcomed, 20);
    }
}

#[test]
fn at_the_limit_a_newcomer_is_served_and_no_worker_has_more() {
    for driver in DRIVERS {
        let stub = Stub::answering(COUNTED);
        let server = start(&stub, driver, &["--balance", "handoff", "--connections-max", "8"]);
        let mut admin = server.admin();
        let mut clients = Vec::new();
        for _ in 0..24 {
            clients.push(come(&server));
            let open = of_workers(&mut admin, "tallyring_connections");
            assert!(open.iter().all(|open| *open <= 4), "{driver}: {open:?}");
        }
    }
}

/// The workers that serve these clients.
fn workers_of(clients: &mut [Client], admin: &mut Client) -> Vec<usize> {
    let mut welcomed = || {
        let text = admin.get("/metrics").body;
        let rows = text.lines().filter(|row| {
            row.starts_with("tallyring_visits_total{") && row.contains("\"welcomed\"")
        });
        rows.map(|row| row.rsplit(' ').next().unwrap().parse().unwrap()).collect::<Vec<u64>>()
    };
    let mut before = welcomed();
    let mut visit = |client: &mut Client| {
        assert_eq!(client.get("/").body, WELCOME);
        let after = welcomed();
        let worker = after.iter().zip(&before).position(|(after, before)| after > before);
        before = after;
        worker.unwrap()
    };
    clients.iter_mut().map(&mut visit).collect()
}

#[test]
fn a_busy_connection_moves_between_two_requests_and_is_the_same_client() {
    const MOVED: &str = "tallyring_connections_moved_total";
    for driver in DRIVERS {
        let stub = Stub::answering(COUNTED);
        let data = common::Data::new();
        let log = data.path("access.log");
        let log = ["--access-log", log.to_str().unwrap(), "--proxy-protocol"];
        let flags = [&["--balance", "handoff", "--workers", "2"], &log[..]].concat();
        let mut server = start(&stub, driver, &flags);
        let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
        for client in &mut clients {
            client.send("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n");
        }
        let mut admin = server.admin();
        let workers = workers_of(&mut clients, &mut admin);
        // Those of one worker are busy, and the other worker has nothing to do.
        let busiest = usize::from(workers.iter().filter(|worker| **worker == 1).count() > 4);
        let (mut busy, mut idle) = (Vec::new(), Vec::new());
        for (client, worker) in clients.into_iter().zip(workers) {
            if worker == busiest { busy.push(client) } else { idle.push(client) }
        }
        assert!(busy.len() > 1, "{driver}");
        let over = AtomicBool::new(false);
        let visits: u64 = thread::scope(|scope| {
            let visit = |client: &mut Client| {
                let mut visits = 0;
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(client.get("/").body, WELCOME);
                    visits += 1;
                }
                visits
            };
            let visiting: Vec<_> =
                busy.iter_mut().map(|client| scope.spawn(move || visit(client))).collect();
            let began = Instant::now();
            let mut has_moved = || of_workers(&mut admin, MOVED).iter().sum::<u64>() > 0;
            let mut moved = has_moved();
            while !moved && began.elapsed() < PATIENCE {
                thread::yield_now();
                moved = has_moved();
            }
            over.store(true, Ordering::SeqCst);
            assert!(moved, "{driver}: nobody moves");
            visiting.into_iter().map(|visiting| visiting.join().unwrap()).sum()
        });
        let mut clients = busy.into_iter().chain(idle).collect::<Vec<_>>();
        let again = workers_of(&mut clients, &mut admin);
        assert_eq!(again.len(), 8, "{driver}: {again:?}");
        // It is one connection still, of the worker that has it now.
        let count = |admin: &mut Client, metric| of_workers(admin, metric).iter().sum::<u64>();
        assert_eq!(count(&mut admin, "tallyring_connections"), 8, "{driver}");
        assert_eq!(count(&mut admin, "tallyring_connections_accepted_total"), 8, "{driver}");
        drop(clients);
        admin.wait_for_metric("tallyring_connections{peer=\"client\"", 0);
        let books = server.stop_with_books();
        assert_eq!((books.welcomed, books.ended()), (visits + 16, visits + 16), "{driver}");
        let lines = fs::read_to_string(data.path("access.log")).unwrap();
        assert_eq!(lines.lines().count() as u64, visits + 16, "{driver}");
        assert!(lines.lines().all(|line| line.starts_with("192.0.2.1 ")), "{driver}");
    }
}

/// Clients come and go, each with one visit, until nobody listens any more.
fn come_and_go(address: SocketAddr, welcomed: &AtomicU64, first: &mpsc::Sender<()>) {
    while let Ok(stream) = TcpStream::connect(address) {
        let mut client = Client::of(stream);
        if !client.try_send(common::get_request("/")) {
            continue;
        }
        if let Ok(Some(answer)) = client.try_response("GET") {
            assert_eq!(answer.body, WELCOME);
            welcomed.fetch_add(1, Ordering::SeqCst);
            let _ = first.send(());
        }
    }
}

#[test]
fn the_books_are_exact_when_the_server_drains_while_connections_are_handed_over() {
    const CLIENTS: usize = 8;
    for driver in DRIVERS {
        let (stub, counted) = Stub::counting();
        let mut server = start(&stub, driver, &["--balance", "handoff", "--workers", "3"]);
        let welcomed = AtomicU64::new(0);
        let (first, visits) = mpsc::channel();
        let together = Barrier::new(CLIENTS);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let first = first.clone();
                let (address, welcomed, together) = (server.address, &welcomed, &together);
                scope.spawn(move || {
                    together.wait();
                    come_and_go(address, welcomed, &first);
                });
            }
            for _ in 0..300 {
                visits.recv().unwrap();
            }
            let handed_over = "tallyring_connections_handed_over_total";
            let mut admin = server.admin();
            while of_workers(&mut admin, handed_over).iter().sum::<u64>() == 0 {
                visits.recv().unwrap();
            }
            server.signal(Signal::TERM);
        });
        let (status, lines) = server.wait();
        assert_eq!(status.code(), Some(0), "{lines:?}");
        let books = Books::read(lines.last().unwrap());
        books.check(counted.load(Ordering::SeqCst) as u64);
        // All clients read what they were told, and no visit was cut.
        assert_eq!((books.erred, books.refused, books.abandoned), (0, 0, 0), "{driver}: {books:?}");
        assert_eq!(books.welcomed, welcomed.load(Ordering::SeqCst), "{driver}");
    }
}

#[test]
fn what_is_no_way_to_balance_is_refused() {
    let (code, _, said) = run(&["serve", "--balance", "fair"]);
    assert_eq!(code, 2);
    assert!(said.contains("it must be kernel or handoff"), "{said}");
}
