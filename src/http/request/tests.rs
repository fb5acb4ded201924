//! What is a request and what is not: one line a case, each accepted case with its refused twin.

use super::*;

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 1024, head_fields_max: 8, target_bytes_max: 256 };
const BODY_MAX: u64 = 100;

/// Parses `bytes` as they grow to each of `ends`.
fn parse_in_pieces(
    bytes: &[u8],
    ends: impl IntoIterator<Item = usize>,
) -> Result<Option<Whole<'_>>, Refusal> {
    let mut scan = HeadScan::default();
    let mut result = Ok(None);
    for end in ends {
        result = parse(&bytes[..end], &mut scan, &LIMITS, BODY_MAX);
        if result != Ok(None) {
            break;
        }
    }
    result
}

/// Parses `bytes` whole, in every split of two and a byte at a time; the result must be the same, the
/// reason of a refusal included.
#[track_caller]
fn parse_all_splits(bytes: &[u8]) -> Result<Option<Whole<'_>>, Refusal> {
    let whole = parse_in_pieces(bytes, [bytes.len()]);
    for split in 0..bytes.len() {
        let text = String::from_utf8_lossy(bytes);
        let result = parse_in_pieces(bytes, [split, bytes.len()]);
        assert_eq!(result, whole, "split at {split}: {text:?}");
    }
    let text = String::from_utf8_lossy(bytes);
    assert_eq!(parse_in_pieces(bytes, 1..=bytes.len()), whole, "a byte at a time: {text:?}");
    whole
}

#[track_caller]
fn check(bytes: &str, expected: Result<(), u16>) {
    let result = parse_all_splits(bytes.as_bytes());
    assert_ne!(result, Ok(None), "not whole: {bytes:?}");
    assert_eq!(result.map(|_| ()).map_err(|refusal| refusal.status), expected, "{bytes:?}");
}

/// A request line, in an otherwise valid GET.
#[track_caller]
fn check_line(line: &str, expected: Result<(), u16>) {
    check(&format!("{line}\r\nHost: a\r\n\r\n"), expected);
}

/// Fields, in an otherwise valid POST.
#[track_caller]
fn check_fields(fields: &str, expected: Result<(), u16>) {
    check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"), expected);
}

#[track_caller]
fn request(bytes: &str) -> Request<'_> {
    parse_all_splits(bytes.as_bytes()).unwrap().expect("whole").request
}

#[test]
fn a_request_is_read() {
    let bytes = "\r\n\r\nHEAD /a/b?c=d?e HTTP/1.1\r\nHost: a:80\r\nX: \u{e9}\r\n\r\nGET";
    let whole = parse_all_splits(bytes.as_bytes()).unwrap().unwrap();
    assert_eq!(whole.head_bytes, bytes.len() - 3);
    let expected = Request {
        method: Method::Head,
        path: "/a/b",
        query: Some("c=d?e"),
        host: Some(b"a:80"),
        has_origin: false,
        accept: None,
        version: Version::Http11,
        persistent: true,
        expects_continue: false,
        fields: whole.request.fields,
        body: BodyReader::EMPTY,
    };
    assert_eq!(whole.request, expected);
    let fields: Vec<_> = whole.request.fields.iter().collect();
    assert_eq!(fields, [(&b"Host"[..], &b"a:80"[..]), (b"X", "\u{e9}".as_bytes())]);
}

#[test]
fn a_request_that_is_not_whole_waits() {
    for bytes in
        ["", "\r", "\r\n", "\r\n\r", "G", "GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: a\r\n"]
    {
        assert_eq!(parse_all_splits(bytes.as_bytes()), Ok(None), "{bytes:?}");
    }
}

#[test]
fn request_lines() {
    check_line("GET / HTTP/1.1", Ok(()));
    check_line("GET / HTTP/1.0", Ok(()));
    for line in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /",
        "GET HTTP/1.1",
        "G[T / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /é HTTP/1.1",
        "GET /< HTTP/1.1",
        "GET /?a=\"b\" HTTP/1.1",
        "GET /` HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1",
        "GET / HTTP/01.1",
        "GET / HTTP/1.10",
        "GET / HTTP/1.x",
        "GET / HTTP/ 1.1",
        "GET / HTTPS/1.1",
    ] {
        check_line(line, Err(400));
    }
    for line_end in ["\r", "\r\0", "\r\r\n", "\n", " \r\n", "\r \n"] {
        for version in ["1.0", "1.1", "1.2"] {
            check(&format!("GET / HTTP/{version}{line_end}Host: a\r\n\r\n"), Err(400));
        }
    }
    for version in ["0.0", "0.9", "2.0", "2.1", "9.9"] {
        check_line(&format!("GET / HTTP/{version}"), Err(505));
    }
}

#[test]
fn a_newer_minor_version_is_read_as_1_1() {
    for minor in 2..=9 {
        let newer = |rest: &str| format!("POST /a?b HTTP/1.{minor}\r\n{rest}\r\n");
        let plain = |rest: &str| format!("POST /a?b HTTP/1.1\r\n{rest}\r\n");
        for fields in [
            "Host: a\r\n",
            "Host: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nOrigin: b\r\n",
            "Host: a\r\nTransfer-Encoding: chunked\r\nConnection: x, close\r\n",
        ] {
            assert_eq!(request(&newer(fields)), request(&plain(fields)));
        }
        for fields in ["", "Host: a\r\nX : a\r\n", "Host: a\r\nHost: a\r\n", "Host: a\r\n X: a\r\n"]
        {
            check(&newer(fields), Err(400));
        }
        check(&newer(&format!("Host: a\r\n{}", "X: a\r\n".repeat(8))), Err(431));
        check(&newer(&format!("Host: a\r\n{}", "X: a\r\n".repeat(7))), Ok(()));
        check_line(&format!("GET /{} HTTP/1.{minor}", "a".repeat(256)), Err(414));
    }
}

#[test]
fn line_ends() {
    check("GET / HTTP/1.1\nHost: a\r\n\r\n", Err(400));
    check("GET / HTTP/1.1\r\nHost: a\n\r\n", Err(400));
    check("GET / HTTP/1.1\r\nHost: a\r\n\n", Err(400));
    check("GET / HTTP/1.1\rHost: a\r\n\r\n", Err(400));
    check("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Err(400));
    check("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", Err(400));
    check("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400));
    check("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400));
}

#[test]
fn each_line_ends_in_crlf() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a\r\nA:\r\nB: b \r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.9\r\nHost: a\r\nA:\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        check(head, Ok(()));
        for (carriage_return, _) in head.match_indices('\r') {
            let (before, after) = (&head[..carriage_return], &head[carriage_return + 1..]);
            check(&format!("{before}{after}"), Err(400));
        }
    }
}

#[test]
fn a_head_that_grows_is_not_searched_with_each_piece() {
    let bytes = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(900));
    for piece_bytes in 1..bytes.len() {
        let (mut scan, mut searched) = (HeadScan::default(), 0);
        for end in (piece_bytes..=bytes.len()).step_by(piece_bytes) {
            let received = &bytes.as_bytes()[..end];
            searched += if scan.has_doubled(received) { received.len() } else { 0 };
            scan.judge(received, &LIMITS).unwrap();
        }
        assert!(
            (1..=2 * bytes.len()).contains(&searched),
            "{searched} bytes in pieces of {piece_bytes}"
        );
    }
}

#[test]
fn methods() {
    let method = |method| request(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).method;
    for known in [Method::Get, Method::Head, Method::Post, Method::Options] {
        assert_eq!(method(known.as_str()), known);
    }
    for known in ["PUT", "DELETE", "TRACE", "PATCH"] {
        assert_eq!(method(known), Method::Other);
    }
    for unknown in ["FOO-bar!~", "get", "Get", "GETT", "G", "PRI", "CONNECT", &"A".repeat(32)] {
        // Whatever its target: its form depends on the method.
        for target in ["/", "*", "a:443", "/#", "/%00", "urn:a"] {
            check_line(&format!("{unknown} {target} HTTP/1.1"), Err(501));
        }
        check(&format!("{unknown} / HTTP/1.1\r\nX: a\r\n\r\n"), Err(400));
        check(&format!("{unknown} / HTTP/1.1\r\nHost: a/b\r\n\r\n"), Err(400));
        check(&format!("{unknown} / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n"), Err(400));
        check_line(&format!("{unknown} /\x7f HTTP/1.1"), Err(400));
        check_line(&format!("{unknown} / HTTP/2.0"), Err(505));
    }
}

#[test]
fn targets() {
    for target in
        ["/", "/?", "/a/../b", "/%41?%", "/a?\\|{}", "http://a", "HTTP://A/", "https://a?b"]
    {
        check_line(&format!("GET {target} HTTP/1.1"), Ok(()));
    }
    for target in [
        "*",
        "a",
        "a:80",
        "/#",
        "/a#b",
        "/\\",
        "/%",
        "/%4",
        "/%4g",
        "/%00",
        "/%0d%0a",
        "/%7F",
        "http://",
        "http:///",
        "http://u@a/",
        "ftp://a/",
        "//a\\",
    ] {
        check_line(&format!("GET {target} HTTP/1.1"), Err(400));
    }
    check_line("OPTIONS * HTTP/1.1", Ok(()));
    assert_eq!(request("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n").path, "/");
    assert_eq!(request("GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n").query, Some("b"));
    assert_eq!(request("GET http://a/c?b HTTP/1.1\r\nHost: a\r\n\r\n").path, "/c");
}

#[test]
fn hosts() {
    for host in ["a", "A.b-c", "127.0.0.1:80", "[::1]", "[::1]:3000", "a:", "a%20b"] {
        check(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), Ok(()));
    }
    for host in [
        "", "u@a", "a/b", "a, b", "a b", ":80", "a:b", "a:123456", "[::1", "[::g]", "[::1]x",
        "a:80:80",
    ] {
        check(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), Err(400));
    }
    check("GET / HTTP/1.1\r\n\r\n", Err(400));
    check("GET / HTTP/1.0\r\n\r\n", Ok(()));
    check("GET / HTTP/1.0\r\nHost: a/b\r\n\r\n", Err(400));
    check_fields("Host: a", Err(400));
    assert_eq!(request("GET / HTTP/1.0\r\n\r\n").host, None);
    assert_eq!(request("GET http://a:1/ HTTP/1.1\r\nHost: a:1\r\n\r\n").host, Some(&b"a:1"[..]));
}

#[test]
fn an_absolute_target_outdoes_the_host_field() {
    let host = |fields| {
        request(&format!("GET http://b:1/ HTTP/1.1\r\n{fields}\r\n")).host.map(<[u8]>::to_vec)
    };
    for fields in ["Host: a\r\n", "Host: b\r\n", "Host: b:1\r\n", "Host: [::1]:80\r\n"] {
        assert_eq!(host(fields).as_deref(), Some(&b"b:1"[..]), "{fields:?}");
    }
    // It must be there all the same, once, and well-formed.
    for fields in ["", "Host:\r\n", "Host: a/b\r\n", "Host: b:1\r\nHost: b:1\r\n"] {
        check(&format!("GET http://b:1/ HTTP/1.1\r\n{fields}\r\n"), Err(400));
    }
    check("GET http://b/ HTTP/1.0\r\n\r\n", Ok(()));
}

#[test]
fn origins() {
    assert!(request("GET / HTTP/1.1\r\nHost: a\r\norigin: http://b\r\n\r\n").has_origin);
    assert!(!request("GET / HTTP/1.1\r\nHost: a\r\nX-Origin: http://b\r\n\r\n").has_origin);
    let several =
        request("GET / HTTP/1.1\r\nHost: a\r\nACCEPT: a/b, */*;q=0.1\r\nAccept: c/d\r\n\r\n");
    assert_eq!(several.accept, Some(&b"a/b, */*;q=0.1"[..]));
    let other =
        request("GET / HTTP/1.1\r\nHost: a\r\nAccept-Language: en\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!((other.accept, other.expects_continue), (None, true));
}

#[test]
fn fields() {
    check_fields("X: a b\t c", Ok(()));
    check_fields("X:", Ok(()));
    for field in [
        "X : a",
        " X: a",
        "X: a\r\n b",
        ": a",
        "X",
        "X[: a",
        "X\u{e9}: a",
        "X: a\0",
        "X: \x07",
        "X: \x7f",
    ] {
        check_fields(field, Err(400));
    }
    check_fields("Content-Type: a", Ok(()));
    check_fields("Content-Type: a\r\nContent-Type: b", Err(400));
}

#[test]
fn body_framing() {
    check_fields("Content-Length: 5", Ok(()));
    for field in [
        "Content-Length:",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length: 05",
        "Content-Length: 99999999999999999999",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;a=b",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ] {
        check_fields(field, Err(400));
    }
    check_fields("Transfer-Encoding: Chunked", Ok(()));
    for coding in ["gzip", "xchunked", "identity", "gzip, chunked"] {
        check_fields(&format!("Transfer-Encoding: {coding}"), Err(501));
    }
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400));
    let body = |fields| request_body(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    assert_eq!(body(""), BodyReader::EMPTY);
    assert!(body("Content-Length: 0\r\n").is_empty());
    assert_eq!(body("Content-Length: 7\r\n"), BodyReader::sized(7, BODY_MAX));
    assert_eq!(body("Transfer-Encoding: chunked\r\n"), BodyReader::chunked(BODY_MAX));
}

#[test]
fn an_announced_body_is_bounded() {
    check_fields("Content-Length: 100", Ok(()));
    for length in ["101", "999999999", "9999999999999999999"] {
        check_fields(&format!("Content-Length: {length}"), Err(413));
        check(&format!("GET / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n"), Err(413));
        // A malformed request is refused as malformed.
        check(&format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"), Err(400));
        check_fields(&format!("Content-Length: {length}\r\nX : a"), Err(400));
        check_fields(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), Err(400));
    }
    check_fields("Content-Length: 99999999999999999999", Err(400));
}

#[track_caller]
fn request_body(bytes: &str) -> BodyReader {
    request(bytes).body
}

#[test]
fn expectations() {
    let expects = |bytes| request(bytes).expects_continue;
    assert!(expects("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"));
    check_fields("Expect: 200-ok", Err(417));
    check_fields("Expect:", Err(417));
}

#[test]
fn persistence() {
    let persistent = |version: &str, fields: &str| {
        request(&format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n")).persistent
    };
    assert!(persistent("1.1", ""));
    assert!(!persistent("1.1", "Connection: close\r\n"));
    assert!(!persistent("1.1", "Connection: x, CLOSE\r\n"));
    assert!(!persistent("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
    assert!(persistent("1.1", "Connection: closed\r\n"));
    assert!(!persistent("1.0", ""));
    assert!(persistent("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!persistent("1.0", "Connection: keep-alive, close\r\n"));
}

#[test]
fn limits() {
    let target =
        |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(bytes - 1));
    check(&target(256), Ok(()));
    check(&target(257), Err(414));
    check(&"a".repeat(33), Err(400));
    check(&format!("{} /", "a".repeat(33)), Err(400));
    check(&format!("GET /{}", "a".repeat(1000)), Err(414));

    let head = |bytes: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n";
        frame.replace("X: ", &format!("X: {}", "a".repeat(bytes - frame.len())))
    };
    check(&head(1024), Ok(()));
    check(&head(1025), Err(431));
    check(&head(2000)[..1024], Err(431));

    let many = |fields: usize| format!("GET / HTTP/1.0\r\n{}\r\n", "X: a\r\n".repeat(fields));
    check(&many(8), Ok(()));
    check(&many(9), Err(431));
    check(&"\r\n".repeat(512), Err(400));
}

/// `bytes` are refused at the last of them, and not before.
#[track_caller]
fn check_at_last_byte(bytes: &str, status: u16) {
    check(bytes, Err(status));
    assert_eq!(parse_all_splits(&bytes.as_bytes()[..bytes.len() - 1]), Ok(None), "{bytes:?}");
}

#[test]
fn a_fault_of_the_request_line_is_told_at_once() {
    for (begin, status) in [
        ("\n", 400),
        ("\rG", 400),
        ("\r\n\n", 400),
        (" ", 400),
        ("G[", 400),
        ("GET\r", 400),
        ("GET  ", 400),
        ("GET /\0", 400),
        ("GET /<", 400),
        ("GET /\r", 400),
        ("GET / h", 400),
        ("GET / HTTP/a", 400),
        ("GET / HTTP/11", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET / HTTP/1.1\n", 400),
        ("GET / HTTP/1.1\r\0", 400),
        ("GET / HTTP/2.0\r\n", 505),
        ("GET /%00 HTTP/1.1\r\n", 400),
        ("GET /#a HTTP/1.1\r\n", 400),
        ("GET * HTTP/1.1\r\n", 400),
        ("GET http://a@b/ HTTP/1.1\r\n", 400),
    ] {
        check_at_last_byte(begin, status);
    }
}

#[test]
fn a_fault_of_a_field_is_told_at_once() {
    for (fields, status) in [
        ("\n", 400),
        ("\rZ", 400),
        (" ", 400),
        ("\t", 400),
        (":", 400),
        ("X ", 400),
        ("X\r", 400),
        ("X\n", 400),
        ("X\0", 400),
        ("X: a\r\n ", 400),
        ("X: a\n", 400),
        ("X: a\rb", 400),
        ("X: a\r\r", 400),
        ("X: \0", 400),
        ("X: a\x7f", 400),
        ("Host: a\r\n", 400),
        ("Expect: a\r\n", 417),
        ("Content-Type: a\r\nContent-Type: b\r\n", 400),
        ("Content-Length: a\r\n", 400),
        ("Content-Length: 5\r\nX: a\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("X:\r\nX:\r\nX:\r\nX:\r\nX:\r\nX:\r\nX:\r\nX:\r\n", 431),
    ] {
        check_at_last_byte(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}"), status);
    }
    check_at_last_byte("GET / HTTP/1.1\r\nHost: a/b\r\n", 400);
    check_at_last_byte("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400);
}

#[test]
fn a_head_that_is_too_large_is_told_at_once() {
    check_at_last_byte(&"A".repeat(33), 400);
    check_at_last_byte(&format!("GET /{}", "a".repeat(256)), 414);
    check_at_last_byte(&"\r\n".repeat(512), 400);
    check_at_last_byte(&format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(1005)), 431);
}

#[test]
fn a_fault_of_the_whole_head_is_told_at_its_end() {
    check_at_last_byte("GET / HTTP/1.1\r\nX: a\r\n\r\n", 400);
    check_at_last_byte("FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 501);
    check_at_last_byte("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501);
    check_at_last_byte("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413);
}

#[test]
fn any_byte_in_any_place_is_judged_alike_whole_and_split() {
    for place in [
        "|GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "G|T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET|/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /| HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /?| HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a|b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /|HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.|\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1|\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r|\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n|Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX|: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:|a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a|\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a|\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n|\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r|\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5|\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: |chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: a|close\r\n\r\n",
    ] {
        let (before, after) = place.split_once('|').unwrap();
        for byte in 0..=255 {
            let _ = parse_all_splits(&[before.as_bytes(), &[byte], after.as_bytes()].concat());
        }
    }
}

#[test]
fn of_several_faults_the_first_is_told() {
    let line = |line: &str, fields: &str| format!("{line}\r\n{fields}\r\n");
    for (bytes, status) in [
        // By the order of their bytes...
        (line("GET /\0 HTTP/2.0", "X : a\r\n"), 400),
        (line("GET / HTTP/2.0", "X : a\r\n"), 505),
        (line("FOO /# HTTP/2.0", "Host: a/b\r\n"), 505),
        (line(&format!("GET /{} HTTP/2.0", "a".repeat(300)), "X : a\r\n"), 414),
        (line(&format!("GET /\x7f{} HTTP/1.1", "a".repeat(300)), ""), 400),
        (line(&format!("GET /{}\x7f HTTP/1.1", "a".repeat(300)), ""), 414),
        (line(&format!("GET /{} a b c", "a".repeat(300)), ""), 414),
        (line(&format!("{} /{} HTTP/1.1", "A".repeat(33), "a".repeat(300)), ""), 400),
        (line("GET / HTTP/1.1", "Expect: a\r\nX : a\r\n"), 417),
        (line("GET / HTTP/1.1", "X : a\r\nExpect: a\r\n"), 400),
        (line("GET / HTTP/1.1", &("X:\r\n".repeat(9) + "X : a\r\n")), 431),
        (line("GET / HTTP/1.1", &("X:\r\n".repeat(8) + "X : a\r\n" + &"X:\r\n".repeat(3))), 400),
        (line("GET / HTTP/1.1", &format!("X : a\r\nX: {}\r\n", "a".repeat(2000))), 400),
        (line("GET / HTTP/1.1", &format!("X: {}\r\nX : a\r\n", "a".repeat(2000))), 431),
        (line("GET / HTTP/1.1", &format!("X: {}\n", "a".repeat(2000))), 431),
        ("\r\n".repeat(600) + "\0", 400),
        // ... faults of the whole head behind those of a line.
        (line("FOO / HTTP/1.1", "X : a\r\n"), 400),
        (line("FOO / HTTP/1.1", "Expect: a\r\n"), 417),
        (line("FOO / HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
        (line("POST / HTTP/1.1", "Transfer-Encoding: gzip\r\nContent-Length: 5\r\n"), 400),
        (line("POST / HTTP/1.1", "Content-Length: 999\r\nX : a\r\n"), 400),
        // Of faults of the whole head, malformed before not served.
        (line("FOO / HTTP/1.1", "Content-Length: 999\r\n"), 400),
        (line("POST / HTTP/1.1", "Transfer-Encoding: gzip\r\n"), 400),
        (line("FOO / HTTP/1.1", "Host: a\r\nContent-Length: 999\r\n"), 501),
        (line("FOO / HTTP/1.1", "Host: a\r\nTransfer-Encoding: gzip\r\n"), 501),
    ] {
        check(&bytes, Err(status));
    }
}

#[test]
fn a_head_is_known_before_it_is_whole() {
    for bytes in ["HEAD ", "HEAD / HTTP/1.1\r\n\r\n", "\r\nHEAD  x", "\r\n\r\nHEAD / HTTP/1.1\n"] {
        assert!(is_head(bytes.as_bytes()), "{bytes:?}");
    }
    for bytes in
        ["", "\r\n", "HEAD", "HEADER / HTTP/1.1", "head / HTTP/1.1", " HEAD ", "GET /HEAD "]
    {
        assert!(!is_head(bytes.as_bytes()), "{bytes:?}");
    }
}

#[test]
fn another_protocol_is_refused_at_its_first_bytes() {
    check("\x16\x03\x01", Err(400));
    check("   \r\n\r\n", Err(400));
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(505));
}
