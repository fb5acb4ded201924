//! The fields of a request: lines, names, values, and those that mean something to a server.

use super::{Site, Then, get, line, post};
use crate::common::{COUNTED, Server, Stub, serve_with};

#[test]
fn lines_end_in_crlf() {
    let site = Site::start();
    // RFC 9112 section 2.2: a lone LF may be taken for a line end; it is refused, since those who differ
    // about it read different messages. A lone CR never is one.
    site.serves("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\n");
    for refused in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\rHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\n\rHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
    ] {
        site.refuses(400, refused);
    }
    // RFC 9112 section 2.2: whitespace between the first line and the fields makes the first of them
    // one that some see and others do not.
    site.refuses(400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n");
    site.refuses(400, "GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n");
    site.refuses(400, "GET / HTTP/1.1\r\n\tX: b\r\nHost: a\r\n\r\n");
    // RFC 9112 section 5.2: no line is the continuation of another.
    site.refuses(400, get("X: a\r\n b"));
    site.refuses(400, get("X: a\r\n\tb"));
    site.refuses(400, get("X:\r\n a"));
    site.refuses(400, get("X: a\r\n \r\nY: b"));
    site.refuses(400, post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"));
    site.refuses(400, post("Content-Length: 5,\r\n 5", "hello"));
}

#[test]
fn names_are_tokens() {
    let site = Site::start();
    // RFC 9112 section 5: field-line = field-name ":" OWS field-value OWS.
    for field in ["X: a", "X:a", "x:a", "X:", "X: ", "!#$%&'*+-.^_`|~9: a", "_: a", "9: a"] {
        site.serves(get(field));
    }
    for field in [
        ": a", "X", "X a", "X Y: a", "X\0: a", "X\x7f: a", "X[: a", "(X): a", "X\"Y: a", "X,Y: a",
        "X/Y: a", "X=Y: a", "X@Y: a", "{X}: a", "Xé: a", "X\\: a", "X\x0b: a",
    ] {
        site.refuses(400, get(field));
    }
    // RFC 9112 section 5.1: no whitespace between the name and the colon.
    site.refuses(400, get("X : a"));
    site.refuses(400, get("X\t: a"));
    site.refuses(400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n");
    site.refuses(400, post("Content-Length : 5", "hello"));
    site.refuses(400, post("Transfer-Encoding : chunked", "0\r\n\r\n"));
}

#[test]
fn values_hold_no_control_characters() {
    let site = Site::start();
    // RFC 9110 section 5.5: visible characters, bytes of other character sets, spaces and tabs.
    for field in ["X: a b", "X: a\tb", "X:\t a \t", "X: é", "X: \"a, b\"; c=d", "X: :"] {
        site.serves(get(field));
    }
    site.serves(b"GET / HTTP/1.1\r\nHost: a\r\nX: \x80\xff\r\n\r\n");
    for control in ["\0", "\x01", "\x07", "\x08", "\x0b", "\x0c", "\x1b", "\x1f", "\x7f", "\r"] {
        site.refuses(400, get(&format!("X: a{control}b")));
        site.refuses(400, get(&format!("X: {control}")));
    }
}

#[test]
fn a_fault_is_told_before_the_head_is_whole() {
    let site = Site::start();
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    for fields in [
        "\n",
        "\rZ",
        " ",
        "X ",
        "X\r",
        "X: a\rb",
        "X: a\n",
        "X: \0",
        "X: a\x7f",
        "Host: a\r\n",
        "Content-Type: a\r\nContent-Type: a\r\n",
        "Content-Length: 5x\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
    ] {
        site.refuses(400, format!("{head}{fields}"));
    }
    site.refuses(417, format!("{head}Expect: tea\r\n"));
    site.refuses(431, format!("{head}{}", "X: a\r\n".repeat(100)));
    site.refuses(400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n");
    for line in ["G[", "GET  ", "GET /\0", "GET / HTTP/1.1 ", "GET / H2", "GET /# HTTP/1.1\r\n"] {
        site.refuses(400, line);
    }
    site.refuses(505, "GET / HTTP/2.0\r\n");
    site.refuses(414, format!("GET /{}", "a".repeat(8 * 1024)));
    // These could still be lines that are right.
    for fields in ["X", "X: a\r", "\r", "Content-Length: 5x", "Transfer-Encoding: gzip\r\n"] {
        site.waits(format!("{head}{fields}"));
    }
}

#[test]
fn of_several_faults_the_first_is_told() {
    let site = Site::start();
    // However the request is split.
    for (status, line, fields) in [
        (505, "GET / HTTP/2.0", "X : a"),
        (400, "GET  / HTTP/2.0", "Expect: tea"),
        (505, "FOO /# HTTP/2.0", "Host: b"),
        (417, "GET / HTTP/1.1", "Expect: tea\r\nX : a"),
        (400, "GET / HTTP/1.1", "X : a\r\nExpect: tea"),
        (400, "FOO / HTTP/1.1", "Host: b"),
        (417, "FOO / HTTP/1.1", "Expect: tea\r\nContent-Length: 99999"),
        (501, "FOO / HTTP/1.1", "Content-Length: 99999"),
        (501, "POST / HTTP/1.1", "Transfer-Encoding: gzip\r\nExpect: 100-continue"),
        (400, "POST / HTTP/1.1", "Transfer-Encoding: gzip\r\nContent-Length: 99999"),
        (400, "POST / HTTP/1.1", "Content-Length: 99999\r\nX: a\0"),
        (413, "POST /there HTTP/1.1", "Content-Length: 99999\r\nExpect: 100-continue"),
    ] {
        site.refuses(status, format!("{line}\r\nHost: a\r\n{fields}\r\n\r\n"));
    }
    let long = "a".repeat(20_000);
    site.refuses(414, format!("GET /{long} HTTP/2.0\r\nX : a\r\n\r\n"));
    site.refuses(400, format!("GET / HTTP/1.1\r\nX : a\r\nX: {long}\r\n\r\n"));
    site.refuses(431, format!("GET / HTTP/1.1\r\nX: {long}\r\nX : a\r\n\r\n"));
    site.refuses(431, format!("GET / HTTP/1.1\r\nX: {long}\n\r\n"));
}

#[test]
fn one_valid_host() {
    let site = Site::start();
    let host = |value: &str| format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n");
    // RFC 9110 section 7.2: Host = uri-host [ ":" port ].
    for value in
        ["a", "A.b-c", "a:80", "a:", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80", "a_b"]
    {
        site.serves(host(value));
    }
    for value in [
        "", " ", "u@a", "u:p@a", "a/", "a/b", "a?b", "a#b", "a b", "a, b", "a,b", ":80", "a:b",
        "a:-1", "a:123456", "a:80:80", "[::1", "::1", "[::g]", "[]", "[::1]x", "a\\b", "<a>",
        "http://a",
    ] {
        site.refuses(400, host(value));
    }
    // RFC 9112 section 3.2: in HTTP/1.1 exactly one. An older client need not send it.
    site.refuses(400, "GET / HTTP/1.1\r\n\r\n");
    site.refuses(400, "GET / HTTP/1.1\r\nX: a\r\n\r\n");
    site.refuses(400, get("Host: a"));
    site.refuses(400, get("Host: b"));
    site.refuses(400, get("hOST: a"));
    site.check("GET / HTTP/1.0\r\n\r\n", &[200], Then::Closes);
    site.refuses(400, "GET / HTTP/1.0\r\nHost: a/b\r\n\r\n");
    site.refuses(400, "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n");
    // Before it is routed: wherever it is aimed, whatever its method.
    site.refuses(400, "GET /there HTTP/1.1\r\n\r\n");
    site.refuses(400, "DELETE / HTTP/1.1\r\n\r\n");
    site.refuses(400, "OPTIONS * HTTP/1.1\r\n\r\n");
}

#[test]
fn fields_that_stand_once() {
    let site = Site::start();
    // RFC 9110 section 5.3: a field that is no list must not be repeated.
    site.serves(post("Content-Length: 0\r\nContent-Type: text/plain", ""));
    site.refuses(400, post("Content-Length: 0\r\nContent-Type: a/b\r\nContent-Type: c/d", ""));
    // Others may be, whatever they are.
    site.serves(get("X: a\r\nX: b\r\nx: c"));
    site.serves(get("Accept: a/b\r\nAccept: c/d"));
}

#[test]
fn fields_that_change_nothing_here() {
    let site = Site::start();
    // RFC 9110 section 7.8: Upgrade may be ignored, and must be where Connection does not name it.
    let websocket = "Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==";
    site.serves(get(&format!("Connection: Upgrade\r\n{websocket}\r\nSec-WebSocket-Version: 13")));
    site.serves(get(&format!("Connection: Upgrade\r\n{websocket}\r\nSec-WebSocket-Version: 99")));
    site.serves(get(&format!("{websocket}\r\nSec-WebSocket-Version: 13")));
    site.serves(get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA"));
    site.serves(get("Connection: Upgrade\r\nUpgrade: nothing/1.0"));
    let old = "GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    site.check(old, &[200], Then::Closes);
    // RFC 9110 section 14.2: Range may be ignored, and must be where it means nothing.
    site.serves(get("Range: bytes=0-1"));
    site.serves(get("Range: bytes=a-b"));
    site.serves(get(&format!("Range: bytes={}0-", "0-,".repeat(1000))));
    site.serves(post("Content-Length: 5\r\nRange: bytes=0-1", "hello"));
    // RFC 9110 section 12.5.1: what is not acceptable may be sent all the same.
    site.serves(get("Accept: nothing/of-this"));
    site.serves(post("Content-Length: 5\r\nContent-Type: nothing/of-this", "hello"));
    // RFC 9110 section 13: there is nothing to compare with.
    site.serves(get("If-None-Match: *\r\nIf-Modified-Since: yesterday"));
    // Other names, though some take an underscore for a hyphen (RFC 9110 section 17.10).
    site.serves(post("Transfer_Encoding: chunked\r\nContent-Length: 5", "hello"));
    site.serves(post("Content_Length: 50\r\nContent-Length: 5", "hello"));
}

#[test]
fn expectations() {
    let site = Site::start();
    // RFC 9110 section 10.1.1: one other than 100-continue may be refused, and is; 100-continue of a
    // request without content, or in HTTP/1.0, is ignored.
    site.serves(get("Expect: 100-continue"));
    site.serves(get("Expect: 100-Continue"));
    let old = "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello";
    site.check(old, &[200], Then::Closes);
    for expectation in ["", "tea", "200-ok", "100-continue=1", "100-continue, tea", "100"] {
        site.refuses(417, get(&format!("Expect: {expectation}")));
    }
    let mut client = site.server.client();
    for body in
        [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "1\r\na\r\n0\r\n\r\n")]
    {
        client.send(post(&format!("Expect: 100-continue\r\n{}", body.0), ""));
        assert_eq!(client.response().status, 100);
        client.send(body.1);
        assert_eq!(client.response().status, 200);
    }
    // A final answer at once where the content would not be read. Whether it still comes is not known, so
    // the connection ends, and nothing on it is taken for a request.
    let held = "Expect: 100-continue\r\nContent-Length: 65537";
    site.refuses(413, post(held, ""));
    site.refuses(413, line(&format!("POST /there HTTP/1.1\r\n{held}")));
    for (framing, content) in [
        ("Content-Length: 5", "hello"),
        ("Content-Length: 65536", ""),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "not hexadecimal\r\n"),
        ("Content-Length: 31", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let held = format!("Expect: 100-continue\r\n{framing}");
        for (method, status) in [("PUT /", 405), ("POST /there", 404), ("PUT /there", 404)] {
            let head = line(&format!("{method} HTTP/1.1\r\n{held}"));
            site.refuses(status, &head);
            site.refuses(status, head + content);
        }
        site.refuses(404, line(&format!("HEAD /there HTTP/1.1\r\n{held}")));
        site.refuses(501, line(&format!("FOO / HTTP/1.1\r\n{held}")));
    }
    // Without the expectation the content comes anyway; it is read, and the connection stays.
    site.check(line("PUT / HTTP/1.1\r\nContent-Length: 5") + "hello", &[405], Then::Open);
    site.waits(line("PUT / HTTP/1.1\r\nContent-Length: 5") + "hell");
    // So it does without content.
    site.check(line("PUT / HTTP/1.1\r\nExpect: 100-continue"), &[405], Then::Open);
    // What is answered before it is not lost.
    let visit = line("GET / HTTP/1.1");
    let held = "Expect: 100-continue\r\nContent-Length: 5";
    let refused = line(&format!("POST /there HTTP/1.1\r\n{held}"));
    site.check(format!("{visit}{refused}"), &[200, 404], Then::Refused);
}

#[test]
fn every_service_refuses_content_that_is_held_back() {
    let held = "Expect: 100-continue\r\nContent-Length: 5";
    // The counter and the admin listener answer to their own hosts only.
    let line = |text: &str| line(text).replace("Host: a\r\n", "Host: localhost\r\n");
    let counter = Server::start(&["counter", "--store", "memory"], &[]);
    let stub = Stub::answering(COUNTED);
    let site = serve_with(&stub, &["--admin", "127.0.0.1:0"]);
    for (what, mut client, status) in [
        ("POST /there", counter.client(), 404),
        ("POST /counters", counter.client(), 405),
        ("POST /counter?by=x", counter.client(), 400),
        ("POST /counter/a%20b", counter.client(), 400),
        ("GET /there", site.admin(), 404),
        ("POST /metrics", site.admin(), 405),
        ("PUT /", site.client(), 405),
    ] {
        client.send(line(&format!("{what} HTTP/1.1\r\n{held}")));
        let answer = client.response();
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{what}");
        client.finish_sending();
        assert!(client.is_closed(), "{what}");
    }
    for (what, mut client) in [
        ("POST /counter", counter.client()),
        ("OPTIONS /counter", counter.client()),
        ("GET /livez", site.admin()),
        ("OPTIONS /", site.client()),
    ] {
        client.send(line(&format!("{what} HTTP/1.1\r\n{held}")));
        assert_eq!(client.response().status, 100, "{what}");
        client.send("hello");
        let answer = client.response();
        assert_eq!((answer.status, answer.field("connection")), (200, None), "{what}");
    }
}
