//! A counter that goes away and comes back, and connections to it that end while they are idle.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use common::{
    COUNTED, Gate, PATIENCE, Peer, SORRY, Server, Signal, Stub, WELCOME, beside::Site, get_request,
    nobody, serve, serve_with,
};

#[test]
fn bytes_that_nobody_asked_for_end_an_idle_connection() {
    let (ended, notice) = mpsc::channel();
    let stub = Stub::start(move |_, mut peer| {
        peer.request();
        peer.send(COUNTED);
        // In a segment of its own, once the first answer was used.
        if peer.request().is_none() {
            return;
        }
        peer.send(COUNTED);
        peer.send("HTTP/1.1 500 Twice\r\nContent-Length: 0\r\n\r\n");
        ended.send(peer.request().is_none()).unwrap();
    });
    let server = serve_with(&stub, &["--workers", "1"]);
    let mut client = server.client();
    assert_eq!(client.get("/").body, WELCOME);
    assert_eq!(client.get("/").body, WELCOME);
    assert!(notice.recv_timeout(PATIENCE).unwrap());
    assert_eq!(client.get("/").body, WELCOME);
}

#[test]
fn an_idle_connection_that_the_counter_closed_is_noticed() {
    // The counter closes each connection after one answer, without saying so in the head. The stub itself waits for
    // the server's close.
    let (closed, noticed) = mpsc::channel();
    let stub = Stub::start(move |_, mut peer| {
        peer.request();
        peer.send(COUNTED);
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The server closes too, at once: nothing is sent into a dead connection.
        closed.send(peer.request().is_none()).unwrap();
    });
    let mut server = serve_with(&stub, &["--workers", "1"]);
    let mut client = server.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").body, WELCOME);
        assert!(noticed.recv_timeout(PATIENCE).unwrap());
    }
    drop(client);
    assert!(server.stop().contains("20 visits welcomed, 0 erred"));
}

#[test]
fn an_idle_connection_that_the_counter_ended_costs_no_visit() {
    // By a close, by a reset, and as some servers close connections that were idle for long.
    let ends: [fn(Peer); 3] = [drop, Peer::reset, |mut peer| {
        peer.send("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n");
    }];
    for end in ends {
        let (gate, calls) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
        let (open, counted) = (gate.clone(), Arc::clone(&calls));
        let stub = Stub::start(move |number, mut peer| {
            while peer.request().is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                peer.send(COUNTED);
                if number == 0 {
                    open.wait();
                    return end(peer);
                }
            }
        });
        let mut site = Site::start(&stub.url(), &["--admin", "127.0.0.1:0"]);
        let mut admin = site.server.admin();
        site.check_neighbour();
        let mut visitor = site.server.client();
        assert_eq!(visitor.get("/").body, WELCOME);
        assert_eq!(admin.metric("tallyring_connections{peer=\"counter\""), 2);
        gate.open();
        admin.wait_for_metric("tallyring_connections{peer=\"counter\"", 1);
        assert_eq!(visitor.get("/").body, WELCOME);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        drop((visitor, admin));
        site.check_total(2, 0);
    }
}

#[test]
fn a_counter_that_refuses_and_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut site = Site::start(&format!("http://{address}/counter"), &[]);
    for _ in 0..3 {
        assert_eq!(site.server.visit(), SORRY);
        site.check_neighbour();
    }
    let listener = TcpListener::bind(address).unwrap();
    Stub::start_on(listener, |_, mut peer| while peer.request().is_some() && peer.send(COUNTED) {});
    assert_eq!(site.server.visit(), WELCOME);
    site.check_neighbour();
    site.check_total(1, 3);
}

#[test]
fn a_counter_that_cannot_be_reached_and_comes_back() {
    // A full queue of connections: the kernel drops every further attempt, as a dead host would.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = socket2::SockRef::from(&listener);
    socket.listen(0).unwrap();
    let filler = std::net::TcpStream::connect(address).unwrap();
    let times = ["--counter-connect-timeout", "1s", "--counter-timeout", "30s"];
    let mut site = Site::start(&format!("http://{address}/counter"), &times);
    let mut visitor = site.server.client();
    visitor.send(get_request("/"));
    site.check_neighbour();
    // By the connect time-out, long before the time-out of a call.
    assert_eq!(visitor.response().body, SORRY);
    site.check_neighbour();
    socket.listen(128).unwrap();
    Stub::start_on(listener, |_, mut peer| while peer.request().is_some() && peer.send(COUNTED) {});
    assert_eq!(visitor.get("/").body, WELCOME);
    drop((filler, visitor));
    site.check_total(1, 1);
}

#[test]
fn a_counter_by_name_is_found_at_the_address_that_answers() {
    // localhost may be ::1 and 127.0.0.1; only one of them listens.
    let stub = Stub::answering(COUNTED);
    let url = format!("http://localhost:{}/counter", stub.address.port());
    let server = serve(&["--counter", &url]);
    assert_eq!(server.visit(), WELCOME);
    let mut site = Site::start("http://no-such-name.invalid/counter", &[]);
    assert_eq!(site.server.visit(), SORRY);
    site.check_neighbour();
}

#[test]
fn a_counter_that_is_killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("redb:{}", directory.path().join("counter.redb").display());
    let mut counter = Server::start(&["counter", "--store", &store], &[]);
    let address = counter.address.to_string();
    let mut site = Site::start(&format!("http://{address}/counter"), &[]);
    let mut visitor = site.server.client();
    let (mut welcomed, mut erred) = (0, 0);
    for _ in 0..3 {
        for _ in 0..10 {
            assert_eq!(visitor.get("/").body, WELCOME);
            welcomed += 1;
        }
        counter.signal(Signal::KILL);
        counter.wait();
        // Enough for the circuit breaker, too.
        for _ in 0..15 {
            assert_eq!(visitor.get("/").body, SORRY);
            erred += 1;
            site.check_neighbour();
        }
        counter = Server::start(&["counter", "--store", &store, "--listen", &address], &[]);
        while visitor.get("/").body == SORRY {
            erred += 1;
            site.check_neighbour();
        }
        welcomed += 1;
    }
    // None of the visits that failed had been sent.
    assert_eq!(counter.get("/counter").body, format!("{welcomed}\n"));
    drop(visitor);
    site.check_total(welcomed, erred);
}

#[test]
fn a_counter_that_fails_is_left_alone_until_it_is_back() {
    const VISITS: usize = 200;
    let (calls, back) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, is_back) = (Arc::clone(&calls), Arc::clone(&back));
    let stub = Stub::start(move |_, mut peer| {
        while peer.request().is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
            if !is_back.load(Ordering::SeqCst) || !peer.send(COUNTED) {
                return;
            }
        }
    });
    let server = serve_with(&stub, &["--workers", "1", "--admin", "127.0.0.1:0"]);
    let mut admin = server.admin();
    let failing = "tallyring_counters_failing{";
    assert_eq!(admin.metric(failing), 0);
    let mut client = server.client();
    for _ in 0..VISITS {
        assert_eq!(client.get("/").body, SORRY);
    }
    let line = server.wait_for_line("visits are not registered");
    assert!(line.contains(&stub.url()) && line.contains("the connection broke"), "{line}");
    assert_eq!(admin.metric(failing), 1);
    let broken = admin.metric("tallyring_visits_erred_total{cause=\"broken\"");
    let not_tried = admin.metric("tallyring_visits_erred_total{cause=\"not_tried\"");
    assert_eq!(broken + not_tried, VISITS as u64);
    // A run of failures, and some probes; far from one for each visit.
    let called = calls.load(Ordering::SeqCst);
    assert!((10..VISITS / 2).contains(&called), "{called} calls for {VISITS} visits");
    back.store(true, Ordering::SeqCst);
    while client.get("/").body == SORRY {
        thread::yield_now();
    }
    server.wait_for_line("visits are registered again");
    assert_eq!(admin.metric(failing), 0);
    assert_eq!(client.get("/").body, WELCOME);
}

#[test]
fn a_visit_that_its_visitor_left_keeps_no_connection_for_ever() {
    // The counter has one connection to give, and never answers the first call.
    let (hung, notice) = mpsc::channel();
    let stub = Stub::start(move |number, mut peer| {
        while peer.request().is_some() {
            if number == 0 {
                hung.send(()).unwrap();
            } else {
                peer.send(COUNTED);
            }
        }
    });
    let flags = ["--workers", "1", "--counter-connections-max", "1", "--counter-timeout", "1s"];
    let server = serve_with(&stub, &flags);
    let mut visitor = server.client();
    // The answer to the first cannot be written any more, so the second is given up.
    visitor.send(get_request("/other") + &get_request("/"));
    notice.recv_timeout(PATIENCE).unwrap();
    Peer::from(visitor.stream).reset();
    let mut client = server.client();
    while client.get("/").body == SORRY {}
    assert_eq!(client.get("/").body, WELCOME);
}

/// The log line and the metric for the cause of failing visits to the counter at `url`, and the status of their page.
#[track_caller]
fn check_cause(url: &str, words: &str, label: &str) {
    let flags = ["--workers", "1", "--admin", "127.0.0.1:0", "--sorry-status", "503"];
    let server = serve(&[&flags[..], &["--counter", url]].concat());
    for _ in 0..3 {
        let answer = server.get("/");
        assert_eq!((answer.status, answer.body.as_str()), (503, SORRY), "{url}");
    }
    let line = server.wait_for_line("visits are not registered");
    assert!(line.contains(words) && line.contains("(1 visit)"), "{line}");
    let row = format!("tallyring_visits_erred_total{{cause=\"{label}\"");
    assert_eq!(server.admin().metric(&row), 3, "{url}");
}

#[test]
fn the_cause_of_failing_visits_is_logged_at_once() {
    let url = format!("http://{}/counter", nobody());
    check_cause(&url, &format!("POST {url}: connection refused"), "refused");
    let not_found = Stub::answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    check_cause(&not_found.url(), "answer 404", "status_4xx");
    let failing = Stub::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    check_cause(&failing.url(), "answer 500", "status_5xx");
    let lying = Stub::answering("220 mail.example ESMTP\r\n");
    check_cause(&lying.url(), "no HTTP response", "broken");
    check_cause("http://no-such-name.invalid/", "no address", "no_address");
}

#[test]
fn readiness_may_need_the_counter() {
    let url = format!("http://{}/counter", nobody());
    for (needs, ready) in [(false, "ready\n"), (true, "not ready: visits are not registered\n")] {
        let mut flags = vec!["--workers", "1", "--admin", "127.0.0.1:0", "--counter", &url];
        if needs {
            flags.push("--ready-needs-counter");
        }
        let server = serve(&flags);
        assert_eq!(server.admin().get("/readyz").body, "ready\n");
        assert_eq!(server.visit(), SORRY);
        server.wait_for_line("visits are not registered");
        // The line is written by the thread that judges next.
        let mut admin = server.admin();
        while needs && admin.get("/readyz").status == 200 {
            thread::yield_now();
        }
        assert_eq!(admin.get("/readyz").body, ready);
    }
}
