//! The first line: method, target and version.

use super::{Site, Then, get, line};

#[test]
fn the_request_line_has_three_parts() {
    let site = Site::start();
    // RFC 9112 section 3: method SP request-target SP HTTP-version, with single spaces.
    site.serves(line("GET / HTTP/1.1"));
    for refused in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET\x0b/ HTTP/1.1",
        " GET / HTTP/1.1",
        "GET HTTP/1.1",
        "GET",
        "GET ",
        "GET / HTTP/1.1 HTTP/1.1",
        "/ HTTP/1.1",
        "HTTP/1.1 200 OK",
    ] {
        site.refuses(400, line(refused));
    }
    // RFC 9112 section 2.2: empty lines before it are skipped; but what else is no line end is not.
    site.serves("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    site.serves("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for before in ["\n", "\r", " \r\n", "\r\n\n", "\r\n ", "\t", "\0", "\u{feff}"] {
        site.refuses(400, format!("{before}GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    site.refuses(400, "\r\n".repeat(8 * 1024));
}

#[test]
fn methods() {
    let site = Site::start();
    // RFC 9110 section 9.1: methods are tokens, and case-sensitive. One that the page does not take is
    // answered with those that it takes; one that nobody knows is 501, wherever it is aimed.
    for method in ["DELETE", "PUT", "PATCH", "TRACE"] {
        site.check(line(&format!("{method} / HTTP/1.1")), &[405], Then::Open);
        site.check(line(&format!("{method} /there HTTP/1.1")), &[404], Then::Open);
        site.refuses(400, line(&format!("{method} * HTTP/1.1")));
    }
    for method in ["get", "Get", "FOO", "delete", "FOO-bar!~", "GETT", "G", "PRI", &"A".repeat(32)]
    {
        for target in ["/", "/there", "*", "http://a/", "a:443"] {
            site.refuses(501, line(&format!("{method} {target} HTTP/1.1")));
        }
    }
    site.refuses(501, line("FOO / HTTP/1.1\r\nContent-Length: 5") + "hello");
    site.refuses(501, line("FOO / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5"));
    for method in ["G[T", "G\"T", "G(T", "G:T", "G/T", "G\0T", "G\x7fT", "GÉT", "@"] {
        site.refuses(400, line(&format!("{method} / HTTP/1.1")));
    }
    site.refuses(400, line(&format!("{} / HTTP/1.1", "A".repeat(33))));
    site.refuses(400, line(&format!("{} / HTTP/1.1", "A".repeat(100_000))));
    // RFC 9110 section 9.3.6: only a proxy serves CONNECT.
    site.refuses(501, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    site.refuses(501, line("CONNECT / HTTP/1.1"));
    // RFC 9110 section 9.3.7: OPTIONS is about a resource, or about the server, and is no visit.
    site.check(line("OPTIONS / HTTP/1.1"), &[200], Then::Open);
    site.check(line("OPTIONS * HTTP/1.1"), &[200], Then::Open);
    site.check(line("OPTIONS /there HTTP/1.1"), &[404], Then::Open);
    // RFC 9110 section 9.3.8: TRACE would echo what the client sent, secrets too.
    let mut client = site.server.client();
    client.send("TRACE / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n");
    let answer = client.response();
    assert!(answer.status == 405 && !answer.head.contains("secret"), "{answer:?}");
    assert!(!answer.body.contains("secret") && !answer.body.contains("TRACE"), "{answer:?}");
}

#[test]
fn versions() {
    let site = Site::start();
    site.serves(line("GET / HTTP/1.1"));
    site.check("GET / HTTP/1.0\r\n\r\n", &[200], Then::Closes);
    // RFC 9110 section 2.5: a higher minor version is read as the highest known of its major version.
    for minor in 2..=9 {
        site.serves(line(&format!("GET / HTTP/1.{minor}")));
        site.refuses(400, format!("GET / HTTP/1.{minor}\r\n\r\n"));
    }
    let fields = "Connection: close\r\nTransfer-Encoding: chunked";
    site.check(line(&format!("POST / HTTP/1.2\r\n{fields}")) + "0\r\n\r\n", &[200], Then::Closes);
    // RFC 9110 section 15.6.6: other major versions are refused, with those that are spoken.
    for version in ["0.9", "2.0", "2.1", "3.0", "9.9"] {
        site.refuses(505, line(&format!("GET / HTTP/{version}")));
    }
    site.refuses(505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // RFC 9112 section 2.3: HTTP-version = "HTTP" "/" DIGIT "." DIGIT, case-sensitive.
    for version in [
        "http/1.1",
        "Http/1.1",
        "HTTP/1",
        "HTTP/11",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/01.1",
        "HTTP/1.01",
        "HTTP/1.10",
        "HTTP/1.1.1",
        "HTTP/1,1",
        "HTTP/1.x",
        "HTTP/-1.1",
        "HTTP/ 1.1",
        "HTTP /1.1",
        "HTTPS/1.1",
        "HTTP1.1",
        "HTTP\\1.1",
    ] {
        site.refuses(400, line(&format!("GET / {version}")));
    }
    // HTTP/0.9 had a line of two parts and no fields.
    site.refuses(400, "GET /\r\n");
    // Other protocols have other first bytes.
    site.refuses(400, "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03");
    site.refuses(400, "SSH-2.0-client\r\n");
    site.refuses(400, "\0\0\0\0");
}

#[test]
fn target_forms() {
    let site = Site::start();
    // RFC 9112 section 3.2.1: the origin form is an absolute path and perhaps a query.
    for target in ["/", "/?", "/?a=b", "/?a?b/c:d@e", "/?%41%"] {
        site.serves(line(&format!("GET {target} HTTP/1.1")));
    }
    for target in ["//", "/a", "/a/../b", "/;a=b", "/%41%2f", "/a:b@c!$&'()*+,;=~", "/*", "/%C3%A9"]
    {
        site.check(line(&format!("GET {target} HTTP/1.1")), &[404], Then::Open);
    }
    for target in ["a", "a/b", "a:80", "*", "?a", "**", "*/", "localhost/"] {
        site.refuses(400, line(&format!("GET {target} HTTP/1.1")));
    }
    // RFC 9112 section 3.2.2: a server takes the absolute form of an http URI too. Its host is the
    // request's, whatever the Host field says; user information in it is refused (RFC 9110 section
    // 4.2.4).
    for target in [
        "http://a/",
        "HTTP://A/",
        "http://a",
        "http://a?b",
        "https://a/",
        "http://b/",
        "http://a:80/",
    ] {
        site.serves(line(&format!("GET {target} HTTP/1.1")));
    }
    site.serves("GET http://a:80/ HTTP/1.1\r\nHost: b:81\r\n\r\n");
    for host in ["", "Host:\r\n", "Host: b/c\r\n", "Host: a\r\nHost: a\r\n"] {
        site.refuses(400, format!("GET http://a/ HTTP/1.1\r\n{host}\r\n"));
    }
    site.check(line("GET http://a/there HTTP/1.1"), &[404], Then::Open);
    for target in [
        "http://u@a/",
        "http://u:p@a/",
        "http://",
        "http:///",
        "http:/a/",
        "http:a",
        "http//a/",
        "ftp://a/",
        "://a/",
    ] {
        site.refuses(400, line(&format!("GET {target} HTTP/1.1")));
    }
    // RFC 9112 section 3.2.4: the asterisk form is for OPTIONS alone.
    site.check(line("OPTIONS * HTTP/1.1"), &[200], Then::Open);
    for method in ["GET", "HEAD", "POST", "PUT"] {
        site.refuses(400, line(&format!("{method} * HTTP/1.1")));
    }
    site.refuses(400, line("OPTIONS ** HTTP/1.1"));
}

#[test]
fn target_characters() {
    let site = Site::start();
    // RFC 9112 section 3.2: no whitespace, and no fragment.
    for target in ["/a b", "/a\tb", "/#", "/a#b", "/?a#b", "http://a/#b"] {
        site.refuses(400, line(&format!("GET {target} HTTP/1.1")));
    }
    // RFC 3986 section 2: visible ASCII, without delimiters; a percent sign begins an escape. None that
    // hides a control character or passes for a slash.
    for target in [
        "/\0",
        "/a\0b",
        "/\x01",
        "/\x1b",
        "/\x7f",
        "/é",
        "/\u{fffd}",
        "/<",
        "/>",
        "/\"",
        "/\\",
        "/a\\b",
        "/`",
        "/%",
        "/%4",
        "/%4g",
        "/%g4",
        "/%00",
        "/%0d%0a",
        "/%0A",
        "/%1f",
        "/%7F",
    ] {
        site.refuses(400, line(&format!("GET {target} HTTP/1.1")));
    }
    // Not even UTF-8: an overlong slash.
    site.refuses(400, b"GET /\xc0\xaf HTTP/1.1\r\nHost: a\r\n\r\n");
    site.refuses(400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn lengths() {
    let site = Site::start();
    // RFC 9112 section 3: at least 8,000 bytes of request line; 414 beyond what is taken.
    let target = |bytes: usize| line(&format!("GET /{} HTTP/1.1", "a".repeat(bytes - 1)));
    site.check(target(8000), &[404], Then::Open);
    site.check(target(8 * 1024), &[404], Then::Open);
    site.refuses(414, target(8 * 1024 + 1));
    site.refuses(414, target(100_000));
    site.refuses(414, &target(100_000)[..50_000]);
    // RFC 6585 section 5: 431 when the fields are too large, one or all of them.
    let field = |bytes: usize| get(&format!("X: {}", "a".repeat(bytes)));
    let frame = field(0).len();
    site.serves(field(16 * 1024 - frame));
    site.refuses(431, field(16 * 1024 - frame + 1));
    site.refuses(431, field(100_000));
    site.refuses(431, get(&format!("{}: a", "X".repeat(100_000))));
    let fields = |count: usize| get(&vec!["X: a"; count].join("\r\n"));
    site.serves(fields(99));
    site.refuses(431, fields(100));
    site.refuses(431, fields(10_000));
}

#[test]
fn a_request_that_is_not_whole_is_none() {
    let site = Site::start();
    let whole = get("X: a");
    for length in [0, 1, 3, 4, 13, 14, 15, 16, 20, whole.len() - 2, whole.len() - 1] {
        site.waits(&whole[..length]);
    }
    site.waits("\r\n");
    site.waits("\r\n\r");
}
