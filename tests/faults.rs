//! A counter whose answer goes wrong in every way: its visitor gets the error in time, other visitors are not
//! affected, and the next visit is welcomed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    io::{self, Read},
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{
    COUNTED, Gate, PATIENCE, Peer, SORRY, Stub, WELCOME, beside::Site, get_request, peak_kib,
    serve_with,
};

/// A counter whose first connection fails as `fail` says, once its neighbour has been visited, and whose
/// others count.
#[track_caller]
fn check_fault(fault: &str, fail: impl Fn(Peer) + Send + Sync + 'static) {
    check(fault, SORRY, &Gate::default(), fail);
}

/// The same, but it fails as soon as it is connected to.
#[track_caller]
fn check_early(fault: &str, fail: impl Fn(Peer) + Send + Sync + 'static) {
    let gate = Gate::default();
    gate.open();
    check(fault, SORRY, &gate, fail);
}

#[track_caller]
fn check(fault: &str, page: &str, gate: &Gate, fail: impl Fn(Peer) + Send + Sync + 'static) {
    let calls = Arc::new(AtomicUsize::new(0));
    let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
    let (counted, open) = (Arc::clone(&calls), gate.clone());
    let stub = Stub::start(move |number, mut peer| {
        if number == 0 {
            begin.send(()).unwrap();
            open.wait();
            fail(peer);
            return end.send(()).unwrap();
        }
        while peer.request().is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
            if !peer.send(COUNTED) {
                return;
            }
        }
    });
    let mut site = Site::start(&stub.url(), &["--counter-timeout", "2s"]);
    let mut visitor = site.server.client();
    visitor.send(get_request("/"));
    begun.recv_timeout(PATIENCE).expect(fault);
    for _ in 0..3 {
        site.check_neighbour();
    }
    gate.open();
    assert_eq!(visitor.response().body, page, "{fault}");
    ended.recv_timeout(PATIENCE).expect(fault);
    site.check_neighbour();
    for _ in 0..2 {
        assert_eq!(visitor.get("/").body, WELCOME, "after {fault}");
    }
    drop(visitor);
    // A visit that may have reached the counter was not sent again.
    assert_eq!(calls.load(Ordering::SeqCst), 2, "{fault}");
    let erred = usize::from(page == SORRY);
    site.check_total(3 - erred, erred);
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const TO_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// Stages of an answer at which it can stop, each but the last with less than all of it.
fn stages() -> impl Iterator<Item = String> {
    let begun = ["", "H", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Le"];
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let interims = [interim.to_owned(), interim.to_owned() + begun[2]];
    let bodies = [HEAD.to_owned(), HEAD.to_owned() + "12345"];
    let chunks = ["", "5", "5\r\n12", "5\r\n12345\r\n", "5\r\n12345\r\n0\r\n", "0\r\nX: a\r\n"];
    let chunks = chunks.map(|chunks| CHUNKED.to_owned() + chunks);
    begun.map(str::to_owned).into_iter().chain(interims).chain(bodies).chain(chunks)
}

#[test]
fn a_counter_that_closes_in_the_middle_of_an_answer() {
    check_early("closes at once", drop);
    check_fault("closes before it reads", drop);
    for stage in stages() {
        check_fault(&format!("closes after {stage:?}"), move |mut peer| {
            peer.request();
            peer.send(&stage);
        });
    }
}

#[test]
fn a_counter_that_resets_at_any_stage() {
    check_early("resets at once", Peer::reset);
    check_fault("resets before it reads", Peer::reset);
    // A close would be the end of such a body; a reset is not.
    for stage in stages().chain([format!("{TO_CLOSE}some")]) {
        check_fault(&format!("resets after {stage:?}"), move |mut peer| {
            peer.request();
            peer.send(&stage);
            peer.reset();
        });
    }
}

#[test]
fn a_counter_that_stops_answering() {
    // All at once: each takes as long as a call may.
    thread::scope(|scope| {
        for stage in stages().chain([format!("{TO_CLOSE}some")]) {
            scope.spawn(move || {
                check_fault(&format!("silent after {stage:?}"), move |mut peer| {
                    peer.request();
                    peer.send(&stage);
                    while peer.request().is_some() {}
                });
            });
        }
    });
}

/// Sends `endless` a byte at a time, each after the server was silent for a moment, until the server gives up.
fn trickle(peer: &mut Peer, endless: &str) {
    peer.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    for byte in endless.bytes().cycle() {
        match peer.stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
        if !peer.send([byte]) {
            return;
        }
    }
}

#[test]
fn a_counter_that_answers_a_byte_at_a_time() {
    // There is always something new to read: only a deadline for the whole call ends it.
    let cases = [
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("HTTP/1.1 200 ", "O"),
        ("HTTP/1.1 200 OK\r\nX: ", "a"),
        ("HTTP/1.1 200 OK\r\n", "X: a\r\n"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", "a"),
        (CHUNKED, "1\r\na\r\n"),
        (TO_CLOSE, "a"),
    ];
    thread::scope(|scope| {
        for (begun, endless) in cases {
            scope.spawn(move || {
                check_fault(&format!("trickles {endless:?} after {begun:?}"), move |mut peer| {
                    peer.request();
                    peer.send(begun);
                    trickle(&mut peer, endless);
                });
            });
        }
    });
}

#[test]
fn a_counter_that_never_ends() {
    let endless = |begun: &'static str, endless: &'static str| {
        let endless = endless.repeat(500);
        move |mut peer: Peer| {
            peer.request();
            peer.send(begun);
            while peer.send(&endless) {}
        }
    };
    check_fault("one line", endless("HTTP/1.1 200 ", "O"));
    check_fault("one field", endless("HTTP/1.1 200 OK\r\nX: ", "a"));
    check_fault("fields", endless("HTTP/1.1 200 OK\r\n", "X: a\r\n"));
    check_fault("interim responses", endless("", "HTTP/1.1 103 Early Hints\r\n\r\n"));
    check_fault("a chunk's extension", endless(CHUNKED, "5;aaaaaaaa"));
    check_fault(
        "trailers",
        endless(&*Box::leak(format!("{CHUNKED}0\r\n").into_boxed_str()), "X: a\r\n"),
    );
    // The visit is counted by then, whatever follows: only the connection is given up.
    for begun in [CHUNKED, TO_CLOSE, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"] {
        check(begun, WELCOME, &Gate::default(), endless(begun, "1\r\na\r\n"));
    }
}

#[test]
fn what_never_ends_is_not_kept() {
    const VISITORS: usize = 64;
    // Each may fill a large buffer of 16 KiB, and needs a connection on both sides.
    const EACH_KIB_MAX: u64 = 64;
    let endless = "X: a\r\n".repeat(5000);
    let stub = Stub::start(move |number, mut peer| {
        peer.request();
        if number < VISITORS {
            // The first round: after it the server has all the memory that visits without a fault need.
            peer.send("HTTP/1.1 204 Counted\r\nConnection: close\r\n\r\n");
            return;
        }
        // A head and a body in turn, so that no run of failures opens the circuit breaker.
        peer.send(if number % 2 == 0 { "HTTP/1.1 200 OK\r\n" } else { TO_CLOSE });
        while peer.send(&endless) {}
    });
    let server = serve_with(&stub, &["--workers", "1", "--counter-timeout", "5s"]);
    let visit_together = || {
        let mut visitors: Vec<_> = (0..VISITORS).map(|_| server.client()).collect();
        visitors.iter_mut().for_each(|visitor| visitor.send(get_request("/")));
        let pages = visitors.iter_mut().map(|visitor| visitor.response().body);
        pages.filter(|page| page == WELCOME).count()
    };
    visit_together();
    let before = peak_kib(&server);
    let welcomed: usize = (0..5).map(|_| visit_together()).sum();
    let grown = peak_kib(&server) - before;
    assert!(welcomed > 0);
    assert!(grown <= VISITORS as u64 * EACH_KIB_MAX, "it grew by {grown} KiB");
}

#[test]
fn a_counter_that_speaks_another_language() {
    for garbage in [
        "\0\0\0\0",
        "220 ready\r\n",
        "-ERR unknown command\r\n",
        "HTTP/2.0 200\r\n\r\n",
        "\r\n\r\n\r\n",
    ] {
        let speak = move |mut peer: Peer| {
            peer.send(garbage);
            while peer.request().is_some() {}
        };
        check_fault(garbage, speak);
        check_early(garbage, speak);
    }
    check_fault("bytes at random", |mut peer| {
        peer.request();
        peer.send([0xff; 100]);
        while peer.request().is_some() {}
    });
}

#[test]
fn a_counter_that_speaks_before_it_is_asked() {
    // Whether this is read before or after the call is sent, it welcomes nobody.
    check_early("answers before the call", |mut peer| {
        peer.send("HTTP/1.1 500 Early\r\nContent-Length: 0\r\n\r\n");
        peer.request();
        peer.stream.shutdown(Shutdown::Write).unwrap();
        while peer.request().is_some() {}
    });
}

#[test]
fn an_answer_after_the_time_out_reaches_nobody() {
    let (late, gate) = (Gate::default(), Gate::default());
    let (answer_now, said) = (late.clone(), gate.clone());
    let stub = Stub::start(move |number, mut peer| {
        while peer.request().is_some() {
            if number == 0 {
                answer_now.wait();
                peer.send("HTTP/1.1 500 Late\r\nContent-Length: 0\r\n\r\n");
                said.open();
            } else {
                peer.send(COUNTED);
            }
        }
    });
    let server = serve_with(&stub, &["--workers", "1", "--counter-timeout", "1s"]);
    let mut client = server.client();
    assert_eq!(client.get("/").body, SORRY);
    late.open();
    gate.wait();
    for _ in 0..10 {
        assert_eq!(client.get("/").body, WELCOME);
    }
}
