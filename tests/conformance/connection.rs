//! Several requests on one connection, and its end.

use super::{Site, Then, chunked, get, line, post};
use crate::common::WELCOME;

#[test]
fn a_connection_persists_unless_somebody_says_otherwise() {
    let site = Site::start();
    let old = |fields: &str| format!("GET / HTTP/1.0\r\n{fields}\r\n");
    // RFC 9112 section 9.3: in HTTP/1.1 unless close is among the options of Connection.
    site.serves(get("Connection: keep-alive"));
    site.serves(get("Connection: closed, not-close, \"close\""));
    site.serves(get("Connection:"));
    site.serves(get("Connection: ,,"));
    site.serves(get("Close: yes"));
    for fields in [
        "Connection: close",
        "connection: CLOSE",
        "Connection: keep-alive, close",
        "Connection: close,keep-alive",
        "Connection: \t, close ,",
        "Connection: keep-alive\r\nConnection: close",
    ] {
        site.check(get(fields), &[200], Then::Closes);
    }
    site.check(post("Connection: close\r\nContent-Length: 5", "hello"), &[200], Then::Closes);
    site.check(line("GET /there HTTP/1.1\r\nConnection: close"), &[404], Then::Closes);
    site.check(line("PUT / HTTP/1.1\r\nConnection: close"), &[405], Then::Closes);
    // In HTTP/1.0 only where keep-alive is.
    site.check(old(""), &[200], Then::Closes);
    site.check(old("Connection: close\r\n"), &[200], Then::Closes);
    site.check(old("Connection: keep-alive, close\r\n"), &[200], Then::Closes);
    site.check(old("Keep-Alive: timeout=5\r\n"), &[200], Then::Closes);
    site.serves(old("Connection: Keep-Alive\r\n"));
    let mut client = site.server.client();
    client.send(old("Connection: keep-alive\r\n"));
    assert_eq!(client.response().field("connection"), Some("keep-alive"));
}

#[test]
fn requests_may_be_pipelined() {
    let site = Site::start();
    let (visit, there) = (line("GET / HTTP/1.1"), line("GET /there HTTP/1.1"));
    let last = get("Connection: close");
    // RFC 9112 section 9.3.2: answered in the order in which they came.
    site.check([&*visit, &there, &visit].concat(), &[200, 404, 200], Then::Open);
    site.check(visit.repeat(2) + &there.repeat(2), &[200, 200, 404, 404], Then::Open);
    let sized = post("Content-Length: 5", "hello");
    let coded = chunked("1\r\na\r\n0\r\n\r\n");
    let mixed = [&*visit, &sized, &there, &coded, &visit].concat();
    site.check(mixed, &[200, 200, 404, 200, 200], Then::Open);
    // More than are answered at a time.
    let statuses: Vec<u16> = [200, 404].into_iter().cycle().take(50).collect();
    site.check([&*visit, &there].concat().repeat(25), &statuses, Then::Open);
    // RFC 9112 section 9.6: none after the one that closes.
    site.check([&*visit, &last].concat(), &[200, 200], Then::Closes);
    site.check([&*visit, &last, &visit].concat(), &[200, 200], Then::Closes);
    site.check([&*last, &visit, &visit].concat(), &[200], Then::Closes);
    site.check(format!("GET / HTTP/1.0\r\n\r\n{visit}"), &[200], Then::Closes);
}

#[test]
fn none_is_answered_after_one_that_is_refused() {
    let site = Site::start();
    let visit = line("GET / HTTP/1.1");
    for (status, bad) in [
        (400, String::from("GET / HTTP/1.1\r\n\r\n")),
        (400, line("GET  / HTTP/1.1")),
        (400, get("X : a")),
        (400, post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
        (400, chunked("5\r\nhello!\r\n0\r\n\r\n")),
        (400, chunked("0\r\nHost: b\r\n\r\n")),
        (413, post("Content-Length: 65537", "")),
        (413, chunked("10001\r\n")),
        (417, get("Expect: tea")),
        (501, line("CONNECT a:80 HTTP/1.1")),
        (501, line("FOO / HTTP/1.1")),
        (501, post("Transfer-Encoding: gzip", "")),
        (505, line("GET / HTTP/2.0")),
    ] {
        site.refuses(status, format!("{bad}{visit}{visit}"));
        // Those before it are answered first, and counted.
        let statuses = [200, 200, status];
        site.check(format!("{visit}{visit}{bad}{visit}"), &statuses, Then::Refused);
    }
    // RFC 9112 section 11.2: the rest of a refused body, or of a head, is no request either.
    site.refuses(400, post("Content-Length: x", &visit));
    site.refuses(400, chunked(&format!("zz\r\n{visit}")));
    site.refuses(400, format!("GET / HTTP/1.1\nHost: a\n\n{visit}"));
}

#[test]
fn an_answer_to_a_head_has_no_content() {
    let site = Site::start();
    // RFC 9110 section 9.3.2: the same fields as for GET; content in none, not in a refusal either.
    // A case that begins with HEAD is expected to have none, and the next answer stands right behind.
    let visit = line("GET / HTTP/1.1");
    site.serves(line("HEAD / HTTP/1.1"));
    site.check(line("HEAD / HTTP/1.1") + &visit, &[200, 200], Then::Open);
    site.check(line("HEAD /there HTTP/1.1") + &visit, &[404, 200], Then::Open);
    site.check(line("HEAD / HTTP/1.1\r\nContent-Length: 5") + "hello", &[200], Then::Open);
    site.check("HEAD / HTTP/1.0\r\n\r\n", &[200], Then::Closes);
    site.refuses(400, "HEAD / HTTP/1.1\r\n\r\n");
    site.refuses(400, line("HEAD  / HTTP/1.1"));
    site.refuses(400, "\r\nHEAD / HTTP/1.1\nHost: a\r\n\r\n");
    site.refuses(417, line("HEAD / HTTP/1.1\r\nExpect: tea"));
    site.refuses(505, line("HEAD / HTTP/2.0"));
    site.refuses(414, line(&format!("HEAD /{} HTTP/1.1", "a".repeat(9000))));
    site.refuses(431, line(&format!("HEAD / HTTP/1.1\r\nX: {}", "a".repeat(20_000))));
    site.refuses(400, line("HEAD / HTTP/1.1\r\nTransfer-Encoding: chunked") + "x");
    let large = "HEAD / HTTP/1.1\r\nContent-Length: 65537";
    site.refuses(413, line(large));
    site.refuses(413, line(&format!("{large}\r\nExpect: 100-continue")));
    site.refuses(413, line("HEAD / HTTP/1.1\r\nTransfer-Encoding: chunked") + "10001\r\n");

    let mut client = site.server.client();
    client.send(line("HEAD / HTTP/1.1") + &visit);
    let (head, get) = (client.response_to("HEAD"), client.response());
    assert_eq!(get.body, WELCOME);
    for field in ["content-length", "content-type", "cache-control"] {
        assert!(get.field(field).is_some() && head.field(field) == get.field(field), "{field}");
    }
}
