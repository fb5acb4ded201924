//! Properties of the parsers that hold for every input: any split reads the same, nothing panics,
//! what is accepted obeys the rules, and an independent parser reads it the same.

use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use hyper::{server::conn::http1, service::service_fn};
use proptest::{prelude::*, sample::select};

use super::{
    HeadLimits, Refusal, Version,
    body::{BodyReader, Progress},
    request::{self, Method},
    response,
};

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 512, head_fields_max: 8, target_bytes_max: 128 };
const BODY_MAX: u64 = 64;

/// Pieces that heads are made of, right and wrong; random bytes alone rarely get past the first one.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = select(vec![
        "GET ",
        "POST ",
        "HEAD ",
        "OPTIONS ",
        "/ ",
        "/a?b ",
        "* ",
        "http://h/ ",
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/1.2",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 204 No Content",
        "\r\n",
        "\r\n\r\n",
        "Host: h\r\n",
        "Host: ",
        "Content-Length: 5\r\n",
        "Content-Length: ",
        "5",
        "05",
        "+5",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Expect: 100-continue\r\n",
        "X: y\r\n",
        "X : y\r\n",
        " folded\r\n",
        "5\r\nhello\r\n",
        "5;a=b\r\nhello\r\n",
        "0\r\n\r\n",
        "0\r\nTrailer: x\r\n\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        ";",
        "\0",
    ]);
    prop_oneof![
        8 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

/// Mostly a request that is right, with some pieces changed.
fn request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let fields = prop::collection::vec(
        prop_oneof![
            Just("X: y\r\n".to_owned()),
            Just("Connection: close\r\n".to_owned()),
            Just("Content-Length: 5\r\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            "[A-Za-z-]{1,8}: [ -~]{0,12}\r\n",
        ],
        0..4,
    );
    let right = ("(GET|POST|HEAD|PUT|GETT)", "/[a-z?/%=]{0,8}", "1\\.[0-3]", fields).prop_map(
        |(method, target, version, fields)| {
            let fields = fields.concat();
            format!("{method} {target} HTTP/{version}\r\nHost: h\r\n{fields}\r\n").into_bytes()
        },
    );
    let pieces = prop::collection::vec(piece(), 0..12).prop_map(|pieces| pieces.concat());
    let damaged = (right.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut bytes, place, byte)| {
            let place = place.index(bytes.len());
            bytes[place] = byte;
            bytes
        },
    );
    prop_oneof![right, damaged, pieces]
}

const REQUEST_LINES: [&str; 3] =
    ["GET / HTTP/1.1", "POST /a?b HTTP/1.0", "POST http://a/b HTTP/1.2"];

const FAULTY_REQUEST_LINES: [&str; 11] = [
    "FOO / HTTP/1.1",
    "CONNECT a:80 HTTP/1.1",
    "GET / HTTP/2.0",
    "FOO /# HTTP/0.9",
    "GET /# HTTP/1.1",
    "GET  / HTTP/1.1",
    "GET /\x7f HTTP/1.1",
    "GET / http/1.1",
    "GET /\r HTTP/1.1",
    "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1",
];

const FIELDS: [&str; 7] = [
    "X: y",
    "Connection: close",
    "Expect: 100-continue",
    "Origin: http://a",
    "Content-Type: a/b",
    "Transfer-Encoding: chunked",
    "Content-Length: 5",
];

const FAULTY_FIELDS: [&str; 21] = [
    "X : y",
    " X: y",
    ": y",
    "X",
    "X: y\0",
    "X: y\rz",
    "X: y\nY: z",
    "\rX: y",
    "X: y\r",
    "Host: a/b",
    "Host: a\r\nHost: a",
    "Expect: tea",
    "Content-Type: a\r\nContent-Type: a",
    "Content-Length: 5x",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Content-Length: 99999",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: gzip, chunked\r\nContent-Length: 5",
    "Transfer-Encoding: chunked, gzip",
    "A:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:",
];

/// A request with two faults or more, among lines that are right.
fn faulty_request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        3 => (Just(false), select(&FIELDS).prop_map(str::to_owned)),
        1 => (Just(true), select(&FAULTY_FIELDS).prop_map(str::to_owned)),
        1 => (Just(true), (500..600usize).prop_map(|bytes| format!("X: {}", "a".repeat(bytes)))),
    ];
    let request_line = prop_oneof![
        (Just(false), select(&REQUEST_LINES)),
        (Just(true), select(&FAULTY_REQUEST_LINES)),
    ];
    let host = select(vec![(false, "Host: h\r\n"), (true, "")]);
    let lines = prop::collection::vec(line, 0..6);
    (request_line, host, lines).prop_filter_map("it has not two faults", |(first, host, lines)| {
        let needs_host = !first.1.contains("HTTP/1.0");
        let faulty =
            [first.0, host.0 && needs_host].into_iter().chain(lines.iter().map(|line| line.0));
        if faulty.filter(|is_faulty| *is_faulty).count() < 2 {
            return None;
        }
        let fields: String = lines.iter().map(|line| format!("{}\r\n", line.1)).collect();
        Some(format!("{}\r\n{}{fields}\r\n", first.1, host.1).into_bytes())
    })
}

/// Reads while the bytes grow as `cuts` say; the result of the last read.
fn parse_in_steps<T: PartialEq>(
    bytes: &[u8],
    cuts: &[prop::sample::Index],
    mut parse: impl FnMut(&[u8]) -> T,
    waits: impl Fn(&T) -> bool,
) -> T {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.sort_unstable();
    for end in ends {
        let result = parse(&bytes[..end]);
        if !waits(&result) {
            return result;
        }
    }
    parse(bytes)
}

type Read = Result<Option<(Method, String, Version, bool, BodyReader, usize)>, Refusal>;

fn read_request(bytes: &[u8], scan: &mut request::HeadScan) -> Read {
    let whole = request::parse(bytes, scan, &LIMITS, BODY_MAX)?;
    Ok(whole.map(|whole| {
        let request = whole.request;
        let path = request.path.to_owned();
        let head_bytes = whole.head_bytes;
        (request.method, path, request.version, request.persistent, request.body, head_bytes)
    }))
}

/// A head of HTTP/1.2 to 1.9, which hyper refuses, as one of HTTP/1.1.
fn of_a_known_version(head: &[u8]) -> Vec<u8> {
    let mut head = head.to_vec();
    if let Some(place) =
        head.windows(9).position(|bytes| bytes.starts_with(b"HTTP/1.") && bytes[8] == b'\r')
    {
        let minor = &mut head[place + 7];
        *minor = (*minor).min(b'1');
    }
    head
}

/// Gives the request, then the end of the stream; discards what is written.
struct Pipe(io::Cursor<Vec<u8>>);

impl hyper::rt::Read for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let at = usize::try_from(self.0.position()).unwrap();
        let rest = &self.0.get_ref()[at..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.0.set_position((at + count) as u64);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What hyper, on its own, makes of a request: its method and path, or that it refuses.
fn read_by_hyper(bytes: &[u8]) -> Option<(String, String)> {
    let seen = Rc::new(RefCell::new(None));
    let note = Rc::clone(&seen);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        note.borrow_mut().get_or_insert_with(|| {
            (request.method().as_str().to_owned(), request.uri().path().to_owned())
        });
        async { Ok::<_, Infallible>(hyper::Response::new(String::new())) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(Pipe(io::Cursor::new(bytes.to_vec())), service);
    // Nothing here waits, so one poll is enough.
    let connection = pin!(connection);
    let mut context = Context::from_waker(Waker::noop());
    let _ = connection.poll(&mut context);
    seen.borrow_mut().take()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_request_reads_the_same_in_any_pieces(
        bytes in request_bytes(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let whole = read_request(&bytes, &mut Default::default());
        let mut scan = Default::default();
        let pieces =
            parse_in_steps(&bytes, &cuts, |bytes| read_request(bytes, &mut scan), |read| *read == Ok(None));
        prop_assert_eq!(&whole, &pieces);
    }

    #[test]
    fn an_accepted_request_obeys_every_rule(bytes in request_bytes()) {
        let Ok(Some((method, path, version, _, _, head_bytes))) =
            read_request(&bytes, &mut Default::default())
        else {
            return Ok(());
        };
        let head = &bytes[..head_bytes];
        prop_assert!(head_bytes <= LIMITS.head_bytes_max);
        prop_assert!(head.ends_with(b"\r\n\r\n"));
        let text = head.iter().skip_while(|byte| b"\r\n".contains(byte)).copied().collect::<Vec<_>>();
        for (place, byte) in text.iter().enumerate() {
            let before = place.checked_sub(1).map(|before| text[before]);
            prop_assert!(*byte != 0);
            prop_assert!(*byte != b'\n' || before == Some(b'\r'), "a bare LF");
            prop_assert!(before != Some(b'\r') || *byte == b'\n', "a bare CR");
        }
        prop_assert!(path == "*" || path.starts_with('/'));
        let lines: Vec<_> = text.split(|byte| *byte == b'\n').collect();
        let named = |name: &str| {
            let is_it = |line: &&&[u8]| {
                let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
                line[..colon].eq_ignore_ascii_case(name.as_bytes())
            };
            lines[1..].iter().filter(is_it).count()
        };
        prop_assert!(named("host") == 1 || (version == Version::Http10 && named("host") == 0));
        prop_assert!(named("content-length") + named("transfer-encoding") <= 1);
        // What is accepted here is read as the same by hyper.
        if method != Method::Other && path != "*" {
            // Its body is made whole, so that hyper waits for nothing.
            let theirs = read_by_hyper(&of_a_known_version(head));
            prop_assert!(theirs.is_some(), "hyper refuses what was accepted");
            let (their_method, their_path) = theirs.unwrap_or_default();
            prop_assert_eq!(their_method.as_str(), method.as_str());
            prop_assert_eq!(their_path, path);
        }
    }

    #[test]
    fn a_response_reads_the_same_in_any_pieces(
        pieces in prop::collection::vec(piece(), 0..10),
        right in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut bytes = if right { b"HTTP/1.1 200 OK\r\n".to_vec() } else { Vec::new() };
        bytes.extend(pieces.concat());
        let whole = response::parse(&bytes, &mut Default::default(), &LIMITS, BODY_MAX);
        let mut scan = Default::default();
        let parse = |bytes: &[u8]| response::parse(bytes, &mut scan, &LIMITS, BODY_MAX);
        let steps = parse_in_steps(&bytes, &cuts, parse, |read| *read == Ok(None));
        match (&whole, &steps) {
            (Err(_), Err(_)) => {}
            _ => prop_assert_eq!(&whole, &steps),
        }
        if let Ok(Some(response)) = whole {
            prop_assert!(response.head_bytes <= LIMITS.head_bytes_max);
            prop_assert!((100..600).contains(&response.status));
        }
    }

    #[test]
    fn a_body_ends_in_the_same_place_in_any_pieces(
        pieces in prop::collection::vec(piece(), 0..10),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        length in prop::option::of(0..100u64),
    ) {
        let bytes = pieces.concat();
        let reader = match length {
            Some(length) => BodyReader::sized(length, BODY_MAX),
            None => BodyReader::chunked(BODY_MAX),
        };
        let end_of = |ends: &[usize]| {
            let mut reader = reader.clone();
            let mut start = 0;
            for end in ends {
                match reader.advance(&bytes[start..*end]) {
                    Ok(Progress { consumed, done: true }) => return Some(Ok(start + consumed)),
                    Ok(Progress { consumed, .. }) => assert_eq!(consumed, end - start),
                    Err(error) => return Some(Err(error)),
                }
                start = *end;
            }
            None
        };
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        prop_assert_eq!(end_of(&[bytes.len()]), end_of(&ends));
    }
}

proptest! {
    // Fewer, since each is read in every split.
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_request_with_several_faults_is_refused_for_the_same_in_any_pieces(
        bytes in faulty_request_bytes(),
        end in any::<prop::sample::Index>(),
    ) {
        let whole = read_request(&bytes, &mut Default::default());
        prop_assert!(whole.is_err(), "{:?}", whole);
        // Cut off, it has a fault more or less.
        for bytes in [&bytes[..], &bytes[..end.index(bytes.len() + 1)]] {
            let whole = read_request(bytes, &mut Default::default());
            for split in 0..bytes.len() {
                let mut scan = Default::default();
                let mut read = read_request(&bytes[..split], &mut scan);
                if read == Ok(None) {
                    read = read_request(bytes, &mut scan);
                }
                prop_assert_eq!(&read, &whole, "split at {}", split);
            }
            let mut scan = Default::default();
            let mut reads = (0..=bytes.len()).map(|end| read_request(&bytes[..end], &mut scan));
            let bytewise = reads.find(|read| *read != Ok(None)).unwrap_or(Ok(None));
            prop_assert_eq!(&bytewise, &whole, "a byte at a time");
        }
    }
}
