//! `--proxy-protocol`: a load balancer in front says for whom it has connected.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{COUNTED, Server, Stub, WELCOME, get_request, run, serve, serve_with};

const LINE: &str = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
/// The same in version 2.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\xdc\x04\x01\xbb";
/// What a load balancer's own check begins with.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

const REFUSED: &str = "tallyring_bad_requests_total{reason=\"proxy_header\"";

/// Of a server that expects PROXY headers: a connection that begins with these bytes, and then visits twice.
#[track_caller]
fn check_welcomed(server: &Server, header: &[u8]) {
    let request = get_request("/");
    for cut in [0, 1, header.len() / 2, header.len()] {
        let mut client = server.client();
        client.send(&header[..cut]);
        client.send([&header[cut..], request.as_bytes()].concat());
        assert_eq!(client.response().body, WELCOME, "cut at {cut}");
        assert_eq!(client.get("/").body, WELCOME, "cut at {cut}");
    }
}

#[track_caller]
fn check_closed(server: &Server, bytes: &[u8]) {
    let mut client = server.client();
    assert!(client.try_send(bytes));
    assert!(client.is_closed(), "{:?}", String::from_utf8_lossy(bytes));
}

#[test]
fn a_connection_must_begin_with_a_header() {
    let stub = Stub::answering(COUNTED);
    for driver in ["io_uring", "epoll"] {
        let flags = ["--proxy-protocol", "--admin", "127.0.0.1:0", "--driver", driver];
        let mut server = serve_with(&stub, &flags);
        assert!(server.line.contains(" by the PROXY protocol"), "{}", server.line);
        for header in [LINE.as_bytes(), BINARY, LOCAL, b"PROXY UNKNOWN\r\n"] {
            check_welcomed(&server, header);
        }
        let mut admin = server.admin();
        assert_eq!(admin.metric(REFUSED), 0);
        let request = get_request("/");
        check_closed(&server, request.as_bytes());
        let told = server.wait_for_line("--proxy-protocol expects a PROXY header");
        assert!(told.contains("there is no PROXY header"), "{told}");
        check_closed(
            &server,
            format!("PROXY TCP4 192.0.2.01 198.51.100.7 1 2\r\n{request}").as_bytes(),
        );
        check_closed(&server, &[&BINARY[..14], &[0, 11], request.as_bytes()].concat());
        check_closed(&server, format!("PROXY UNKNOWN\n{request}").as_bytes());
        assert_eq!(admin.metric(REFUSED), 4);
        // Who says nothing is no bad request.
        drop(server.client());
        // A second header is a request, and no good one.
        let mut client = server.client();
        client.send(LINE.repeat(2));
        assert_eq!(client.response().status, 400);
        assert_eq!(admin.metric(REFUSED), 4);
        let books = server.stop_with_books();
        assert_eq!((books.welcomed, books.ended()), (32, 32), "{books:?}");
    }
}

#[test]
fn a_header_must_come_in_time() {
    let flags = ["--proxy-protocol", "--admin", "127.0.0.1:0", "--head-timeout", "300ms"];
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &flags);
    let mut admin = server.admin();
    for begun in ["", "PROXY TC", &LINE[..LINE.len() - 1]] {
        check_closed(&server, begun.as_bytes());
    }
    assert_eq!(admin.metric(REFUSED), 3);
    assert!(server.wait_for_line("--proxy-protocol expects").contains("it took too long"));
}

#[test]
fn without_the_setting_a_header_is_no_request() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &[]);
    let mut client = server.client();
    client.send(LINE);
    assert_eq!(client.response().status, 400);
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn the_client_is_known_where_debug_lines_are_logged() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--proxy-protocol", "--log-level", "debug"]);
    check_welcomed(&server, BINARY);
    server.wait_for_line("a connection was relayed for 192.0.2.1:56324");
}

/// Only the site's connections come through a load balancer.
#[test]
fn the_admin_listener_and_the_counter_take_no_header() {
    let flags = ["--proxy-protocol", "--admin", "127.0.0.1:0", "--counter-listen", "127.0.0.1:0"];
    let server = serve(&flags);
    assert_eq!(server.admin().get("/readyz").status, 200);
    let counter = server.address_after("visits go to ");
    assert_eq!(common::Client::connect(counter).get("/counter").body, "0\n");
    check_welcomed(&server, LINE.as_bytes());
    assert_eq!(common::Client::connect(counter).get("/counter").body, "8\n");
    let admin = server.address_after("admin on ").to_string();
    let (code, said, errors) = run(&["health", "--admin", &admin]);
    assert_eq!(code, 0, "{said}{errors}");
}

#[test]
fn it_is_told_by_the_commands_and_changed_by_a_reload() {
    let data = tempfile::tempdir().unwrap();
    let data = ["--data-dir", data.path().to_str().unwrap(), "--counter", "http://127.0.0.1:1/"];
    let (_, said, _) = run(&[&["doctor", "--proxy-protocol"], &data[..]].concat());
    assert!(said.contains("PROXY protocol") && said.contains("on: a connection"), "{said}");
    let (_, said, _) = run(&[&["doctor"], &data[..]].concat());
    assert!(!said.contains("PROXY protocol"), "{said}");
    let (_, said, _) = run(&[&["check", "--proxy-protocol"], &data[..]].concat());
    assert!(said.contains("proxy-protocol"), "{said}");

    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--proxy-protocol", "--log-format", "json"]);
    assert!(server.line.contains("\"proxy_protocol\":true"), "{}", server.line);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("site.toml");
    std::fs::write(&path, "proxy-protocol = true\n").unwrap();
    let server = serve_with(&stub, &["--config", path.to_str().unwrap()]);
    check_welcomed(&server, LINE.as_bytes());
    std::fs::write(&path, "proxy-protocol = false\n").unwrap();
    server.signal(common::Signal::HUP);
    server.wait_for_line("proxy-protocol is false, was true");
    assert_eq!(server.visit(), WELCOME);
    // Whom to trust needs a restart, so that until then nobody names clients.
    std::fs::write(&path, "proxy-protocol = true\ntrusted-proxy = \"10.9.9.9\"\n").unwrap();
    server.signal(common::Signal::HUP);
    server.wait_for_line("proxy-protocol needs a restart");
    assert_eq!(server.visit(), WELCOME);
}
