//! Where a request's body ends, which is where the next request begins.

use super::{Site, Then, chunked, get, line, post};
use crate::common::{Stub, WELCOME, serve_with};

const BODY_MAX: usize = 64 * 1024;

#[test]
fn content_length() {
    let site = Site::start();
    // RFC 9112 section 6.3: without a length and a coding there is no body.
    site.serves("POST / HTTP/1.1\r\nHost: a\r\n\r\n");
    // RFC 9110 section 8.6: Content-Length = 1*DIGIT, and whitespace around it.
    for value in [" 5", "5", "\t5", "  5 \t"] {
        site.serves(post(&format!("Content-Length:{value}"), "hello"));
    }
    site.serves(post("Content-Length: 0", ""));
    site.serves(post("content-LENGTH: 5", "hello"));
    // A GET may have a body; it is not the next request (RFC 9110 section 9.3.1).
    site.serves(get("Content-Length: 5") + "hello");
    site.check(line("OPTIONS / HTTP/1.1\r\nContent-Length: 5") + "hello", &[200], Then::Open);
    site.check(line("TRACE / HTTP/1.1\r\nContent-Length: 5") + "hello", &[405], Then::Open);
    // Not whole.
    site.waits(post("Content-Length: 10", "hello"));
    site.waits(post("Content-Length: 1", ""));
}

#[test]
fn content_length_refused() {
    let site = Site::start();
    for value in [
        "",
        "abc",
        "+5",
        "-5",
        "-1",
        "-0",
        "5.0",
        "5e0",
        "0x5",
        "0o5",
        "0b1",
        "5 5",
        "1 0",
        "1_0",
        "5;",
        "'5'",
        "\"5\"",
        "5h",
        "５",
        "\x0b5",
        "5\0",
        // Digits that some read as octal.
        "05",
        "005",
        "00",
        "0200",
        // More than 64 bits hold, and so much more that it wraps around.
        "18446744073709551616",
        "18446744073709551621",
        "99999999999999999999",
    ] {
        site.refuses(400, post(&format!("Content-Length: {value}"), "hello"));
    }
    // RFC 9112 section 6.3, point 5: neither a list nor several, not even of the same.
    for fields in [
        "Content-Length: 5, 5",
        "Content-Length: 5, 10",
        "Content-Length: 5,",
        "Content-Length: ,5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 10",
        "Content-Length: 5\r\nX: a\r\ncontent-length: 0",
    ] {
        site.refuses(400, post(fields, "helloworld"));
    }
}

#[test]
fn transfer_encoding() {
    let site = Site::start();
    // RFC 9112 section 7: coding names are case-insensitive; chunked is the only one here.
    for value in ["chunked", "Chunked", "CHUNKED", "\tchunked", "chunked "] {
        site.serves(post(&format!("Transfer-Encoding: {value}"), "1\r\na\r\n0\r\n\r\n"));
    }
    site.serves(get("Transfer-Encoding: chunked") + "1\r\na\r\n0\r\n\r\n");
    // RFC 9112 section 6.1: one that is not understood is 501.
    for value in ["gzip", "xchunked", "chunkedx", "identity", "gzip, chunked", "gzip, deflate", "x"]
    {
        site.refuses(501, post(&format!("Transfer-Encoding: {value}"), "0\r\n\r\n"));
    }
    // RFC 9112 section 6.3, point 4: where chunked is not the last the length is unknown. Section 6.1: it
    // is not applied twice. What is no list of codings is refused with them.
    for value in [
        "",
        ",",
        "chunked, chunked",
        "chunked, gzip",
        "chunked, identity",
        ", chunked",
        "chunked,",
        "chunked;a=b",
        "\"chunked\"",
        "chunked chunked",
        "chunked\0",
        "\x0bchunked",
        "\x0cchunked",
        "chunked\x0b",
        "chunked\u{a0}",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
        "gzip\r\nTransfer-Encoding: chunked",
    ] {
        site.refuses(400, post(&format!("Transfer-Encoding: {value}"), "0\r\n\r\n"));
    }
    // RFC 9112 section 6.1: in HTTP/1.0 the framing is faulty.
    site.refuses(400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let kept = "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n";
    site.refuses(400, format!("{kept}0\r\n\r\n"));
}

#[test]
fn a_length_and_a_coding_exclude_each_other() {
    let site = Site::start();
    // RFC 9112 section 6.1: such a request ought to be taken for an attempt at smuggling. Whichever of
    // the two is believed, what the other takes for a second request is never answered.
    let second = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Content-Length: 31\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nTransfer-Encoding: Chunked",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked",
        "Content-Length: 5\r\nTransfer-Encoding: identity",
        "Content-Length: 5\r\nTransfer-Encoding:",
        "Content-Length: 5\r\nTransfer-Encoding: chunked \t",
        "Content-Length: 5\r\nTransfer-Encoding: chunked, chunked",
        "Content-Length: 5\r\nTransfer-Encoding: chunked;a=b",
        "Content-Length: 5\r\nTransfer-Encoding : chunked",
        "Content-Length: 5\r\nTransfer-Encoding\t: chunked",
        "Content-Length: 5\r\n Transfer-Encoding: chunked",
        "Content-Length: 5\r\nTransfer-Encoding:\r\n chunked",
        "Content-Length: 5\r\nX: a\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nX: a\rTransfer-Encoding: chunked",
        "Content-Length: 5\r\nTransfer-Encoding: \x0bchunked",
        "Content-Length: 5\r\nTransfer-Encoding: \0chunked",
    ] {
        site.refuses(400, post(fields, &format!("0\r\n\r\n{second}")));
    }
    let old = "POST / HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    site.refuses(400, format!("{old}{second}"));
}

#[test]
fn chunk_sizes() {
    let site = Site::start();
    // RFC 9112 section 7.1: chunk-size = 1*HEXDIG; the last chunk's is zero.
    site.serves(chunked("0\r\n\r\n"));
    site.serves(chunked("000\r\n\r\n"));
    for (size, data) in [("5", "hello"), ("05", "hello"), ("a", "helloworld"), ("A", "helloworld")]
    {
        site.serves(chunked(&format!("{size}\r\n{data}\r\n0\r\n\r\n")));
    }
    site.serves(chunked("1\r\na\r\n2\r\nbc\r\n3\r\n\r\n\r\r\n0\r\n\r\n"));
    for size in [
        "",
        "+5",
        "-1",
        "-0",
        "0x5",
        "0X5",
        "5h",
        "x",
        "g",
        "5.",
        "5,",
        "1_0",
        " 5",
        "\t5",
        "5 ",
        "5\t",
        "5 5",
        "5\0",
        "\x005",
        "'5'",
        "５",
        // More than 64 bits hold: the rest of it would be five.
        "10000000000000005",
        "FFFFFFFFFFFFFFFF5",
        "00000000000000005",
    ] {
        site.refuses(400, chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")));
    }
}

#[test]
fn chunk_line_ends() {
    let site = Site::start();
    // Its line and its data end in CRLF, and where the size says.
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\n\rX",
    ] {
        site.refuses(400, chunked(body));
    }
    for body in ["", "5", "5\r\n", "5\r\nhello", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0"] {
        site.waits(chunked(body));
    }
}

#[test]
fn chunk_extensions() {
    let site = Site::start();
    // RFC 9112 section 7.1.1: unrecognized ones are ignored; but they must be some, and a limited
    // amount: *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] ).
    for extension in
        [";a", ";a=b", ";a;b=c;d", " ;a", "; a = b ; c", ";a=\"\"", ";a=\"b;\\\"\tc\"", ";a=\"é\""]
    {
        site.serves(chunked(&format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n")));
    }
    for extension in [
        ";",
        "; ",
        ";;a",
        ";a;",
        ";=b",
        ";a=",
        ";a b",
        ";a=b c",
        ";a[=b",
        ";a=[",
        ";\0a",
        ";a\0",
        ";a=\x01",
        ";a=\"b",
        ";a=\"b\\\"",
        ";a=\"\x7f\"",
        ";a=\"\0\"",
        ";\ra",
        ";a\rb",
        ";a\n",
        ";\n",
        ";a=\"\n\"",
        " a",
        "a=b",
        ";é",
    ] {
        site.refuses(400, chunked(&format!("5{extension}\r\nhello\r\n0\r\n\r\n")));
    }
    let long = |bytes: usize| chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(bytes)));
    site.serves(long(8 * 1024 - 1));
    site.refuses(400, long(8 * 1024));
    site.refuses(400, long(64 * 1024));
    // The limit is on all of them together.
    site.refuses(400, chunked(&("1;aaaaaaaaaaaaaaa\r\nb\r\n".repeat(600) + "0\r\n\r\n")));
}

#[test]
fn trailers() {
    let site = Site::start();
    // RFC 9112 section 7.1.2: trailer fields may be discarded. RFC 9110 section 6.5.1: those that would
    // change framing, routing or the content's meaning must not be there.
    for trailer in ["X-Sum: 1", "X:", "X: a b\t", "X: é", "A: b\r\nC: d"] {
        site.serves(chunked(&format!("1\r\na\r\n0\r\n{trailer}\r\n\r\n")));
    }
    for trailer in [
        "Content-Length: 50",
        "content-length: 0",
        "Transfer-Encoding: chunked",
        "Host: b",
        "Connection: close",
        "Authorization: Bearer secret",
        "Cookie: a=b",
        "Content-Type: a/b",
        "Content-Encoding: gzip",
        "Content-Range: bytes 0-1/2",
        "Trailer: X",
        "TE: trailers",
        "X: a\r\nContent-Length: 50",
        ": a",
        "X",
        "X : a",
        " X: a",
        "X: a\r\n b",
        "X: a\0",
        "X: a\rb",
        "X: a\nY: b",
        "Xé: a",
        "GET / HTTP/1.1",
    ] {
        site.refuses(400, chunked(&format!("1\r\na\r\n0\r\n{trailer}\r\n\r\n")));
    }
    let long = |bytes: usize| chunked(&format!("0\r\nX:{}\r\n\r\n", "a".repeat(bytes)));
    site.serves(long(8 * 1024 - 3));
    site.refuses(400, long(8 * 1024 - 2));
    site.waits(chunked("0\r\nX: a\r\n"));
}

#[test]
fn the_next_request_begins_where_the_body_ends() {
    let site = Site::start();
    let second = line("GET /second HTTP/1.1");
    site.check(post("Content-Length: 5", "hello") + &second, &[200, 404], Then::Open);
    site.check(chunked("1\r\na\r\n0\r\n\r\n") + &second, &[200, 404], Then::Open);
    site.check(chunked("0\r\nX: a\r\n\r\n") + &second, &[200, 404], Then::Open);
    site.check(post("Content-Length: 0", "") + &second, &[200, 404], Then::Open);
    // RFC 9112 section 2.2: some old clients send a line end behind the body.
    site.check(post("Content-Length: 5", "hello\r\n") + &second, &[200, 404], Then::Open);
    // What is in a body is no request, however much it looks like one.
    let inside = post(&format!("Content-Length: {}", second.len()), &second);
    site.check(inside, &[200], Then::Open);
    let inside = chunked(&format!("{:x}\r\n{second}\r\n0\r\n\r\n", second.len()));
    site.check(inside, &[200], Then::Open);
    // One byte too many is the first of the next request; one too few is waited for.
    site.check(
        post("Content-Length: 4", "hello") + &line("GET / HTTP/1.1"),
        &[200, 501],
        Then::Refused,
    );
    site.check(post("Content-Length: 4", "hell\0") + &second, &[200, 400], Then::Refused);
    site.waits(post("Content-Length: 6", "hello"));
}

#[test]
fn bodies_are_bounded() {
    let site = Site::start();
    let sized = |bytes: usize| post(&format!("Content-Length: {bytes}"), &"b".repeat(bytes));
    site.serves(sized(BODY_MAX));
    // RFC 9110 section 15.5.14: more than the server is willing to read.
    site.refuses(413, sized(BODY_MAX + 1));
    site.refuses(413, sized(3 * BODY_MAX));
    let one = |bytes: usize| chunked(&format!("{bytes:x}\r\n{}\r\n0\r\n\r\n", "b".repeat(bytes)));
    site.serves(one(BODY_MAX));
    site.refuses(413, one(BODY_MAX + 1));
    let half = format!("{:x}\r\n{}\r\n", BODY_MAX / 2, "b".repeat(BODY_MAX / 2));
    site.serves(chunked(&format!("{half}{half}0\r\n\r\n")));
    site.refuses(413, chunked(&format!("{half}{half}1\r\nb\r\n0\r\n\r\n")));
    // As soon as the head or the line of a chunk's size says so: none of it is waited for.
    for length in ["65537", "999999999", "9999999999999999999"] {
        site.refuses(413, post(&format!("Content-Length: {length}"), ""));
        site.refuses(413, post(&format!("Content-Length: {length}"), "hello"));
        site.refuses(413, get(&format!("Content-Length: {length}")));
        site.refuses(413, line(&format!("PUT /there HTTP/1.1\r\nContent-Length: {length}")));
    }
    for size in ["10001", "0000000000010001", "FFFFFFFFFFFFFFFF", "10001;a=b"] {
        site.refuses(413, chunked(&format!("{size}\r\n")));
        site.refuses(413, chunked(&format!("{size}\r\nhello")));
        site.refuses(413, chunked(&format!("1\r\na\r\n{size}\r\n")));
        site.waits(chunked(&format!("{size}\r")));
    }
    // Of several faults the first is told, however the request is split.
    site.refuses(413, chunked("10001\r\nhello!\r\nx"));
    site.refuses(400, chunked("1\r\na!10001\r\n"));
    site.refuses(400, chunked("10001;=\r\n"));
    site.refuses(413, chunked("8000\r\n") + &"b".repeat(0x8000) + "\r\n8001\r\n");
    site.waits(post("Content-Length: 65536", "hello"));
    site.waits(chunked("10000\r\nhello"));
}

#[test]
fn a_body_of_the_counter_that_is_announced_too_large_is_not_waited_for() {
    // The status counts; only its connection is given up.
    for begun in
        ["Content-Length: 1000000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n"]
    {
        let answer = Box::leak(format!("HTTP/1.1 200 OK\r\n{begun}").into_boxed_str());
        let stub = Stub::answering(answer);
        let server = serve_with(&stub, &["--counter-timeout", "1min"]);
        assert_eq!(server.visit(), WELCOME, "{begun:?}");
        assert_eq!(server.visit(), WELCOME, "{begun:?}");
    }
}
