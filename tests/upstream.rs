//! The counter as the server sees it: every framing, each call at most once, no answer mixed up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use common::{
    Books, COUNTED, Client, PATIENCE, SORRY, Stub, WELCOME, get_request, serve, serve_by,
    serve_with,
};

/// The page of a visitor when the counter answers `answer`, twice on one client connection, and how many connections
/// to the counter that takes.
#[track_caller]
fn check_framing(answer: &'static str, page: &str, connections: usize) {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let stub = Stub::start(move |_, mut peer| {
        count.fetch_add(1, Ordering::SeqCst);
        while peer.request().is_some() && peer.send(answer) {
            if answer.contains("to the close") {
                return;
            }
        }
    });
    let server = serve_with(&stub, &["--workers", "1"]);
    let mut client = server.client();
    for _ in 0..2 {
        assert_eq!(client.get("/").body, page, "{answer:?}");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), connections, "connections for {answer:?}");
}

#[test]
fn each_framing_of_the_response() {
    let (kept, again) = (1, 2);
    check_framing(COUNTED, WELCOME, kept);
    check_framing("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", WELCOME, kept);
    check_framing("HTTP/1.1 204 No Content\r\n\r\n", WELCOME, kept);
    check_framing("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", WELCOME, kept);
    check_framing("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", SORRY, kept);
    check_framing("HTTP/1.1 299 Fine\r\nContent-Length: 0\r\n\r\n", WELCOME, kept);
    check_framing("HTTP/1.1 300 Choose\r\nContent-Length: 0\r\n\r\n", SORRY, kept);
    check_framing("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", SORRY, kept);
    check_framing(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"b\"\r\n7\r\n0\r\nSum: 1\r\n\r\n",
        WELCOME,
        kept,
    );
    check_framing(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
        WELCOME,
        kept,
    );
    check_framing("HTTP/1.1 200 OK\r\n\r\nto the close", WELCOME, again);
    check_framing("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n1", WELCOME, again);
    check_framing(
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n1",
        WELCOME,
        kept,
    );
    check_framing(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1",
        WELCOME,
        again,
    );
}

#[test]
fn a_connection_with_bytes_left_over_is_not_used_again() {
    check_framing(
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 500 No\r\n\r\n",
        WELCOME,
        2,
    );
    check_framing("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1\r\n", WELCOME, 2);
}

#[test]
fn a_response_without_a_clear_end_is_an_error() {
    let long: &'static str =
        Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(20_000)).into_boxed_str());
    let interims: &'static str =
        Box::leak(("HTTP/1.1 100 Continue\r\n\r\n".repeat(17) + COUNTED).into_boxed_str());
    for answer in [
        "nonsense",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        long,
        interims,
    ] {
        check_framing(answer, SORRY, 2);
    }
}

#[test]
fn a_long_body_costs_its_connection_and_not_the_visit() {
    let body = |bytes: usize| -> &'static str {
        let text =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n{}", "b".repeat(bytes));
        Box::leak(text.into_boxed_str())
    };
    check_framing(body(64 * 1024), WELCOME, 1);
    check_framing(body(64 * 1024 + 1), WELCOME, 2);
}

#[test]
fn thousands_of_visits_are_in_flight_at_once() {
    const VISITS: usize = 2000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&listener).listen(4096).unwrap();
    let url = format!("http://{}/counter", listener.local_addr().unwrap());
    // Answers only once all calls have arrived: a server that held back one would never get an answer.
    let counter = thread::spawn(move || {
        let mut peers: Vec<_> = listener.incoming().take(VISITS).map(Result::unwrap).collect();
        for peer in &mut peers {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                std::io::Read::read_exact(peer, &mut byte).unwrap();
                head.push(byte[0]);
            }
        }
        for peer in &mut peers {
            std::io::Write::write_all(peer, COUNTED.as_bytes()).unwrap();
        }
        peers
    });
    let server = serve(&[
        "--counter",
        &url,
        "--counter-connections-max",
        "2000",
        "--counter-timeout",
        "60s",
    ]);
    let mut clients: Vec<_> = (0..VISITS).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send(get_request("/"));
    }
    for client in &mut clients {
        assert_eq!(client.response().body, WELCOME);
    }
    drop(counter.join().unwrap());
}

#[test]
fn calls_wait_in_a_bounded_queue() {
    let (stub, gate, arrived) = Stub::gated();
    let flags = ["--workers", "1", "--counter-connections-max", "1", "--counter-queue-max", "2"];
    let server = serve_with(&stub, &flags);
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    clients[0].send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    for client in &mut clients[1..] {
        client.send(get_request("/"));
    }
    // Which of them waits and which is refused depends only on their order here: the worker reads first what was sent
    // first.
    let refused = loop {
        let response = server.get("/");
        if response.status == 503 {
            break response;
        }
    };
    assert_eq!(refused.field("retry-after"), Some("1"));
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().body, WELCOME);
    }
}

/// The visits that a counter has counted of each path.
type Counted = Arc<Mutex<HashMap<String, usize>>>;

/// A counter that answers each path with its own name and status, and some calls badly.
fn counter_by_path(counted: &Counted) -> Stub {
    let counted = Arc::clone(counted);
    Stub::start(move |number, mut peer| {
        let mut calls = 0;
        while let Some(head) = peer.request() {
            let name = head.split(' ').nth(1).unwrap().to_owned();
            let visit = {
                let mut counted = counted.lock().unwrap();
                let visit = counted.entry(name.clone()).or_default();
                *visit += 1;
                *visit
            };
            calls += 1;
            // Some connections fail: after counting, without an answer, in the middle of one.
            match (number + calls) % 17 {
                0 => return,
                1 => {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1");
                    return;
                }
                2 => return peer.reset(),
                _ => {}
            }
            let status = if is_welcomed(&name) { "200 OK" } else { "500 No" };
            let body = format!("{name} {visit}");
            if !peer
                .send(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
            {
                return;
            }
        }
    })
}

/// Whether that counter answers this path with 200.
fn is_welcomed(path: &str) -> bool {
    path.len() % 2 == 1
}

/// Visits each path at the same time, on a connection each; how often each was welcomed.
fn visit_all(address: SocketAddr, paths: &[String], visits: usize) -> HashMap<String, usize> {
    thread::scope(|scope| {
        let visit = |path: &String| {
            let (path, mut client) = (path.clone(), Client::connect(address));
            scope.spawn(move || {
                let welcomed = (0..visits).filter(|_| client.get(&path).body == WELCOME).count();
                (path, welcomed)
            })
        };
        let visitors: Vec<_> = paths.iter().map(visit).collect();
        visitors.into_iter().map(|visitor| visitor.join().unwrap()).collect()
    })
}

#[test]
fn no_visit_is_counted_twice_or_mixed_up() {
    check_mixed_up("1");
    check_mixed_up("16");
}

/// With so many calls on a connection.
fn check_mixed_up(pipeline: &str) {
    // Each visitor has a route of its own, which names the visitor to the counter.
    const VISITORS: usize = 40;
    const VISITS: usize = 50;
    let counted = Counted::default();
    let stub = counter_by_path(&counted);
    let path = |visitor| format!("/{visitor:x<width$}", width = 3 + visitor % 7);
    let paths: Vec<String> = (0..VISITORS).map(path).collect();
    let route = |path: &String| {
        format!("[[route]]\npath = \"{path}\"\ncounter = \"http://{}{path}\"\n", stub.address)
    };
    let routes: String = paths.iter().map(route).collect();
    let mut server = serve_by(&routes, &["--counter-pipeline", pipeline]);
    let welcomed = visit_all(server.address, &paths, VISITS);
    let counted = counted.lock().unwrap();
    for path in &paths {
        let (counted, welcomed) = (counted.get(path).copied().unwrap_or(0), welcomed[path]);
        // At most once each; and an answer that was meant for another would have welcomed here.
        assert!(counted <= VISITS, "{path}: {counted} counted of {VISITS}");
        assert!(welcomed <= counted, "{path}: {welcomed} welcomed, {counted} counted");
        assert!(welcomed == 0 || is_welcomed(path), "{path} was welcomed by another's answer");
    }
    let total: usize = welcomed.values().sum();
    assert!(total > 0);
    let books = server.stop_with_books();
    let (welcomed, erred) = (total as u64, (VISITORS * VISITS - total) as u64);
    assert_eq!(books, Books { welcomed, erred, refused: 0, abandoned: 0 });
}

#[test]
fn an_unused_connection_is_closed_in_time() {
    let (ended, notice) = mpsc::channel();
    let stub = Stub::start(move |_, mut peer| {
        while peer.request().is_some() {
            peer.send(COUNTED);
        }
        ended.send(()).unwrap();
    });
    let server = serve_with(&stub, &["--workers", "1", "--counter-idle-timeout", "200ms"]);
    assert_eq!(server.visit(), WELCOME);
    notice.recv_timeout(PATIENCE).unwrap();
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn visits_whose_client_leaves_are_in_a_book() {
    /// As many as the first read takes.
    const VISITS: u64 = 4;
    for driver in ["auto", "epoll"] {
        let (asked, arrived) = mpsc::channel();
        let (permit, permitted) = mpsc::channel::<()>();
        let permitted = Mutex::new(permitted);
        // One call at a time, answered when the test says so.
        let stub = Stub::start(move |_, mut peer| {
            while peer.request().is_some() {
                asked.send(()).unwrap();
                if permitted.lock().unwrap().recv().is_err() || !peer.send(COUNTED) {
                    return;
                }
            }
        });
        let flags =
            ["--workers", "1", "--driver", driver, "--counter-connections-max", "1", "--admin"];
        let mut server = serve_with(&stub, &[&flags[..], &["127.0.0.1:0"]].concat());
        let mut admin = server.admin();
        let mut client = server.client();
        client.send(get_request("/").repeat(usize::try_from(VISITS).unwrap()));
        arrived.recv_timeout(PATIENCE).unwrap();
        admin.wait_for_metric("tallyring_visits_in_flight{peer=\"client\"", VISITS);
        client.reset();
        // The first answer has no client any more. Calls that wait behind it are not sent, except one that had the
        // connection by then.
        permit.send(()).unwrap();
        admin.wait_for_metric("tallyring_visits_in_flight{peer=\"client\"", 0);
        drop(permit);
        let books = server.stop_with_books();
        let counted = 1 + arrived.try_iter().count();
        assert_eq!((books.ended(), books.abandoned > 0), (VISITS, true), "{driver}: {books:?}");
        books.check(u64::try_from(counted).unwrap());
    }
}
