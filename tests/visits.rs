//! What visitors get: the site through the real binary and real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    thread,
};

use common::{
    COUNTED, Client, PATIENCE, SORRY, Server, Signal, Stub, WELCOME, get_request, serve, serve_with,
};

fn with_counter(flags: &[&str]) -> (Server, Stub) {
    let stub = Stub::answering(COUNTED);
    (serve_with(&stub, flags), stub)
}

#[test]
fn a_visit_is_welcomed() {
    let (server, _stub) = with_counter(&[]);
    let response = server.get("/");
    assert_eq!((response.status, response.body.as_str()), (200, WELCOME));
    assert_eq!(response.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.field("content-length"), Some("19"));
    assert_eq!(response.field("cache-control"), Some("no-store"));
    assert_eq!(response.field("connection"), None);
    let date = response.field("date").expect("a date");
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
    assert_eq!(server.get("/?from=there").body, WELCOME);
}

#[test]
fn a_head_has_no_body_and_is_a_visit() {
    let (mut server, _stub) = with_counter(&[]);
    let mut client = server.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.response_to("HEAD");
    assert_eq!((head.status, head.field("content-length")), (200, Some("19")));
    // The next answer begins where the head ended.
    assert_eq!(client.get("/").body, WELCOME);
    drop(client);
    assert!(server.stop().contains("2 visits welcomed, 0 erred"));
}

#[test]
fn what_is_no_visit_is_not_counted() {
    let (mut server, _stub) = with_counter(&[]);
    let mut client = server.client();
    assert_eq!(client.get("/other").status, 404);
    client.send("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
    let refused = client.response();
    assert_eq!((refused.status, refused.field("allow")), (405, Some("GET, HEAD, OPTIONS")));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.response().status, 405);
    client.send("OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    let options = client.response();
    assert_eq!((options.status, options.field("allow")), (200, Some("GET, HEAD, OPTIONS")));
    assert_eq!(client.response().status, 200);
    drop(client);
    assert!(server.stop().contains("0 visits welcomed, 0 erred, 0 refused"));
}

#[test]
fn pipelined_answers_come_in_order() {
    let (server, _stub) = with_counter(&[]);
    let mut client = server.client();
    let paths = ["/", "/a", "/", "/", "/b"];
    // More than are answered at a time, in one write.
    let all: Vec<_> = paths.iter().cycle().take(100).collect();
    client.send(all.iter().map(|path| get_request(path)).collect::<String>());
    for path in all {
        assert_eq!(client.response().status, if *path == "/" { 200 } else { 404 });
    }
}

#[test]
fn a_connection_lives_as_long_as_both_sides_want() {
    let (server, _stub) = with_counter(&[]);
    let exchange = |request: &str| {
        let mut client = server.client();
        client.send(request);
        let response = client.response();
        let connection = response.field("connection").map(str::to_owned);
        // Whether it is closed shows without a clock: another request is answered, or not.
        let open = match connection.as_deref() {
            Some("close") => !client.is_closed(),
            _ => client.get("/").body == WELCOME,
        };
        (response.status, connection, open)
    };
    let close = |status| (status, Some(String::from("close")), false);
    assert_eq!(exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), (200, None, true));
    assert_eq!(exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), close(200));
    assert_eq!(exchange("GET / HTTP/1.0\r\n\r\n"), close(200));
    let kept = exchange("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(kept, (200, Some(String::from("keep-alive")), true));
    assert_eq!(exchange("GET / HTTP/1.1\r\n\r\n"), close(400));
}

#[test]
fn nothing_is_answered_after_a_close() {
    let (server, _stub) = with_counter(&[]);
    let mut client = server.client();
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{}",
        get_request("/")
    ));
    assert_eq!(client.response().body, WELCOME);
    client.finish_sending();
    assert!(client.is_closed());
}

#[test]
fn bytes_may_come_in_any_pieces() {
    let (server, _stub) = with_counter(&[]);
    let mut client = server.client();
    let request =
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: ".to_owned() + &"a".repeat(3000) + "\r\n\r\n";
    for piece in request.as_bytes().chunks(701) {
        client.send(piece);
    }
    assert_eq!(client.response().body, WELCOME);
    let (first, last) = request.as_bytes().split_at(request.len() - 1);
    client.send(first);
    client.send(last);
    assert_eq!(client.response().body, WELCOME);
}

#[track_caller]
fn check_refused(server: &Server, bytes: &str, status: u16) {
    let mut client = server.client();
    client.send(bytes);
    let response = client.response();
    assert_eq!(response.status, status, "{bytes:?}");
    assert_eq!(response.field("connection"), Some("close"));
    assert_eq!(response.body.lines().count(), 1, "one line says why: {:?}", response.body);
    client.finish_sending();
    assert!(client.is_closed());
}

#[test]
fn bad_requests_are_told_why_and_closed() {
    let (server, _stub) = with_counter(&["--head-max", "2KiB", "--target-max", "1KiB"]);
    check_refused(&server, "GET / HTTP/1.1\nHost: a\n\n", 400);
    check_refused(&server, "nonsense\r\n\r\n", 400);
    check_refused(&server, "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
    check_refused(&server, "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501);
    check_refused(&server, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501);
    check_refused(&server, "GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417);
    check_refused(&server, &format!("GET /{} HTTP/1.1\r\n", "a".repeat(1024)), 414);
    check_refused(&server, &format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(2048)), 431);
    // Two requests in one: the second is never seen.
    let smuggled = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
                    0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    check_refused(&server, smuggled, 400);
}

const BEACON: &str =
    "[[route]]\npath = \"/\"\n[[route]]\npath = \"/beacon\"\nmethods = [\"POST\"]\n";

fn with_beacon(flags: &[&str]) -> (Server, Stub, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    fs::write(&file, BEACON).unwrap();
    let mut all = vec!["--config", file.to_str().unwrap()];
    all.extend(flags);
    let (server, stub) = with_counter(&all);
    (server, stub, directory)
}

#[test]
fn a_beacon_is_read_to_its_end_and_discarded() {
    let (mut server, _stub, _directory) = with_beacon(&["--body-max", "1KiB"]);
    let mut client = server.client();
    let sized = |length: usize| {
        let body = "b".repeat(length);
        format!("POST /beacon HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let chunked = |body: &str| {
        format!("POST /beacon HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
    };
    for request in [
        sized(0),
        sized(1),
        sized(1024),
        chunked("0\r\n\r\n"),
        chunked("5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nSum: 1\r\n\r\n"),
    ] {
        // The next request follows directly: its bytes are not taken for the body's.
        client.send(request + &get_request("/nothing"));
        assert_eq!(client.response().body, WELCOME);
        assert_eq!(client.response().status, 404);
    }
    check_refused(&server, &sized(1025), 413);
    check_refused(&server, &chunked("5\r\nhello!\r\n0\r\n\r\n"), 400);
    assert_eq!(client.get("/beacon").status, 405);
    drop(client);
    assert!(server.stop().contains("5 visits welcomed, 0 erred, 0 refused"));
}

#[test]
fn an_expected_continue_is_sent() {
    let (server, _stub, _directory) = with_beacon(&[]);
    let mut client = server.client();
    let head = "POST /beacon HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ";
    client.send(format!("{head}5\r\n\r\n"));
    assert_eq!(client.response().status, 100);
    client.send("hello");
    assert_eq!(client.response().body, WELCOME);
    client.send(format!("{head}100000\r\n\r\n"));
    assert_eq!(client.response().status, 413);
}

#[test]
fn routes_have_their_own_counters_and_pages() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("hello.html"), "<h1>Hello</h1>").unwrap();
    fs::write(path("sorry.json"), "{}").unwrap();
    let good = Stub::answering(COUNTED);
    let bad = Stub::answering("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let config = format!(
        "counter = \"{}\"\nsorry = \"{}\"\n\
         [[route]]\npath = \"/\"\nwelcome = \"{}\"\n\
         [[route]]\npath = \"/bad\"\ncounter = \"{}\"\n",
        good.url(),
        path("sorry.json"),
        path("hello.html"),
        bad.url()
    );
    fs::write(path("tallyring.toml"), config).unwrap();
    let server = serve(&["--config", &path("tallyring.toml")]);
    let welcome = server.get("/");
    assert_eq!(welcome.body, "<h1>Hello</h1>");
    assert_eq!(welcome.field("content-type"), Some("text/html; charset=utf-8"));
    let sorry = server.get("/bad");
    assert_eq!((sorry.status, sorry.body.as_str()), (200, "{}"));
    assert_eq!(sorry.field("content-type"), Some("application/json"));

    // Pages are read again on SIGHUP; those that cannot be read change nothing.
    let large = "x".repeat(100_000);
    fs::write(path("hello.html"), &large).unwrap();
    server.signal(Signal::HUP);
    server.wait_for_line("read anew");
    let mut client = server.client();
    client.send(get_request("/") + &get_request("/"));
    assert!(client.response().body == large && client.response().body == large);
    fs::remove_file(path("hello.html")).unwrap();
    server.signal(Signal::HUP);
    server.wait_for_line("stay as they were");
    assert!(client.get("/").body == large);
}

#[test]
fn any_answer_is_enough_where_it_is_asked() {
    let stub = Stub::answering("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(serve(&["--counter", &stub.url()]).visit(), SORRY);
    assert_eq!(serve(&["--counter", &stub.url(), "--accept", "any"]).visit(), WELCOME);
}

#[test]
fn both_drivers_and_both_protocols_serve() {
    let stub = Stub::answering(COUNTED);
    for driver in ["auto", "epoll"] {
        let server = serve(&["--counter", &stub.url(), "--driver", driver]);
        let mut client = server.client();
        for _ in 0..3 {
            assert_eq!(client.get("/").body, WELCOME);
        }
        if driver == "epoll" {
            assert!(server.line.contains("epoll (chosen by --driver epoll)"), "{}", server.line);
        }
    }
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let server = serve(&["--counter", &stub.url(), "--listen", "[::1]:0"]);
        assert!(server.address.is_ipv6());
        assert_eq!(server.visit(), WELCOME);
    }
}

#[test]
fn slow_clients_are_told_or_closed() {
    let stub = Stub::answering(COUNTED);
    let times = ["--head-timeout", "1s", "--body-timeout", "1s", "--idle-timeout", "2s"];
    let server = serve_with(&stub, &times);
    let mut slow_head = server.client();
    slow_head.send("GET / HTTP/1.1\r\n");
    assert_eq!(slow_head.response().status, 408);
    let mut slow_body = server.client();
    slow_body.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
    assert_eq!(slow_body.response().status, 408);
    let mut idle = server.client();
    assert_eq!(idle.get("/").body, WELCOME);
    assert!(idle.is_closed());
    // A client that sends nothing is not answered either.
    assert!(Client::connect(server.address).is_closed());
}

#[test]
fn a_slow_client_that_goes_on_sending_can_read_why_it_was_refused() {
    let stub = Stub::answering(COUNTED);
    for driver in ["io_uring", "epoll"] {
        let times = ["--head-timeout", "1s", "--body-timeout", "1s"];
        let server = serve_with(&stub, &[&["--driver", driver], &times[..]].concat());
        for begun in
            ["GET / HTTP/1.1\r\nX: ", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"]
        {
            let mut client = server.client();
            client.send(begun);
            // The answer has come, and the sending side of the server is shut.
            client.stream.peek(&mut [0]).unwrap();
            for _ in 0..100 {
                client.send("more of it");
            }
            assert_eq!(client.response().status, 408);
            client.finish_sending();
            assert_eq!(client.stream.read(&mut [0]).expect("a close, not a reset"), 0);
        }
    }
}

#[test]
fn a_client_that_sends_without_end_leaves_others_their_turn() {
    let stub = Stub::answering(COUNTED);
    for driver in ["io_uring", "epoll"] {
        let server = serve(&["--counter", &stub.url(), "--driver", driver, "--workers", "1"]);
        let greedy: Vec<_> = (0..2).map(|_| server.client().stream).collect();
        thread::scope(|scope| {
            for stream in &greedy {
                let (mut asks, mut reads) = (stream, stream);
                // Both end when the stream is shut.
                scope.spawn(move || {
                    let requests = get_request("/nowhere").repeat(1000);
                    while asks.write_all(requests.as_bytes()).is_ok() {}
                });
                scope.spawn(move || io::copy(&mut reads, &mut io::sink()));
            }
            for _ in 0..20 {
                assert_eq!(server.visit(), WELCOME, "{driver}");
            }
            for stream in &greedy {
                stream.shutdown(Shutdown::Both).unwrap();
            }
        });
    }
}

#[test]
fn the_longest_idle_client_is_closed_for_another() {
    let stub = Stub::answering(COUNTED);
    let server = serve(&["--counter", &stub.url(), "--workers", "1", "--connections-max", "2"]);
    let mut first = server.client();
    assert_eq!(first.get("/").body, WELCOME);
    let mut second = server.client();
    assert_eq!(second.get("/").body, WELCOME);
    assert_eq!(server.visit(), WELCOME);
    assert!(first.is_closed());
    assert_eq!(second.get("/").body, WELCOME);
}

#[test]
fn a_client_that_becomes_idle_makes_room_for_one_that_waits() {
    let (stub, gate, arrived) = Stub::gated();
    let server = serve(&["--counter", &stub.url(), "--workers", "1", "--connections-max", "1"]);
    let mut first = server.client();
    first.send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    let mut second = server.client();
    second.send(get_request("/"));
    gate.open();
    assert_eq!(first.response().body, WELCOME);
    // The first client keeps its connection open.
    assert_eq!(second.response().body, WELCOME);
    assert!(first.is_closed());
}

#[test]
fn a_client_whose_request_has_begun_is_not_idle() {
    // With epoll, where received bytes stay in the socket until they are read. A ring may hold them in a completion
    // that was not processed yet; for that moment the client is taken for idle.
    let stub = Stub::answering(COUNTED);
    let flags = ["--workers", "1", "--connections-max", "1", "--driver", "epoll"];
    let server = serve_with(&stub, &flags);
    // It accepts nobody meanwhile: when it continues, both clients are there with their bytes.
    let (mut first, mut second) = server.while_stopped(|| {
        let (mut first, mut second) = (server.client(), server.client());
        first.send("GET / HTTP/1.1\r\n");
        second.send(get_request("/"));
        (first, second)
    });
    first.send("Host: a\r\n\r\n");
    assert_eq!(first.response().body, WELCOME);
    assert_eq!(second.response().body, WELCOME);
}
