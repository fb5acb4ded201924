//! `--balance handoff`: connections are spread evenly over the workers, and none is lost on its way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use common::{Books, COUNTED, Client, Server, Signal, Stub, WELCOME, run, serve_with};

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
            // One, or an eighth, is not worth a hand-over.
            let most = 1.max(count.div_ceil(2) / 8);
            assert!(open[0].abs_diff(open[1]) <= most, "{driver}: {open:?}");
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
