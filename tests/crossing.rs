//! Nothing crosses: clients that reset at every stage of a request and of an answer, beside clients that behave. The
//! latter get no wrong byte and lose no connection, with both drivers and all three services.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use common::{COUNTED, Client, PATIENCE, Server, Stub, WELCOME, get_request, serve_by};
use socket2::SockRef;

/// A page that no socket takes whole at once.
const LARGE_BYTES: usize = 1 << 20;

/// The n-th request (from 1) of an innocent client, and the content of the answer that it must get.
type Innocent = fn(client: usize, n: usize) -> (String, String);

/// Clients that ask in turn, each on its first connection.
struct Innocents {
    clients: Vec<Client>,
    asked: usize,
    innocent: Innocent,
}

impl Innocents {
    /// Lets the next one ask, and checks that it got its answer and nothing else.
    #[track_caller]
    fn check_next(&mut self) {
        let (count, number) = (self.clients.len(), self.asked % self.clients.len());
        let (request, expected) = (self.innocent)(number, self.asked / count + 1);
        self.asked += 1;
        let client = &mut self.clients[number];
        client.send(request);
        let answer = client.response();
        assert_eq!((answer.status, answer.body), (200, expected));
        assert_eq!((client.has_read_all(), answer.head.contains("connection:")), (true, false));
    }
}

/// Resets connections while innocent clients are served: each of `requests` is cut after each of its bytes,
/// and each of their answers after each of its first bytes.
#[track_caller]
fn check(address: SocketAddr, innocent: Innocent, requests: &[String]) {
    let clients = (0..4).map(|_| Client::connect(address)).collect();
    let mut innocents = Innocents { clients, asked: 0, innocent };
    for request in requests {
        for end in 0..=request.len() {
            reset(address, &request.as_bytes()[..end], 0);
            innocents.check_next();
        }
        for answer_bytes in (1..64).chain([200, 5_000, 100_000]) {
            reset(address, request.as_bytes(), answer_bytes);
            innocents.check_next();
        }
    }
    // The last resets are noticed meanwhile.
    (0..100).for_each(|_| innocents.check_next());
}

/// Sends, receives at most so much of the answer, and resets (SO_LINGER of 0, socket(7)).
fn reset(address: SocketAddr, request: &[u8], answer_bytes: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    // To receive nothing would wait for something all the same.
    if answer_bytes > 0 {
        assert!(stream.read(&mut vec![0; answer_bytes]).unwrap() > 0, "{request:?} is answered");
    }
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Requests that every service refuses or answers: alone, before and after others.
fn requests(path: &str) -> Vec<String> {
    let get = get_request(path);
    let post = |fields: &str| format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    vec![
        String::from("BAD\r\n\r\n"),
        get.clone(),
        get.repeat(3),
        format!("{get}BAD\r\n\r\n"),
        String::from("HEAD /< HTTP/1.1\r\n\r\n"),
        post("Expect: 100-continue\r\nContent-Length: 3\r\n"),
        post("Expect: 100-continue\r\nContent-Length: 999999\r\n"),
        format!("{}x", post("Transfer-Encoding: chunked\r\n")),
    ]
}

const DRIVERS: [&str; 2] = ["auto", "epoll"];

#[test]
fn resets_of_visitors_touch_no_other_visitor() {
    let directory = tempfile::tempdir().unwrap();
    let large = directory.path().join("large.txt");
    fs::write(&large, vec![b'x'; LARGE_BYTES]).unwrap();
    for driver in DRIVERS {
        let stub = Stub::answering(COUNTED);
        let file = format!(
            "[[route]]\npath = \"/\"\nmethods = [\"GET\", \"POST\"]\n\
             [[route]]\npath = \"/large\"\nwelcome = \"{}\"\n",
            large.display()
        );
        let flags = ["--workers", "1", "--driver", driver, "--counter", &stub.url()];
        let server = serve_by(&file, &flags);
        let innocent: Innocent = |_, _| (get_request("/"), String::from(WELCOME));
        let mut all = requests("/");
        all.push(get_request("/large").repeat(2));
        check(server.address, innocent, &all);
    }
}

#[test]
fn resets_of_callers_touch_no_other_caller() {
    for driver in DRIVERS {
        let flags = ["counter", "--store", "memory", "--driver", driver];
        let server = Server::start(&flags, &[]);
        // Each has a counter of its own, so that it knows its total.
        let innocent: Innocent = |client, n| {
            let head = format!("POST /counter/of-{client} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            (head, format!("{n}\n"))
        };
        check(server.address, innocent, &requests("/counter"));
    }
}

#[test]
fn resets_of_scrapers_touch_no_other_scraper() {
    let stub = Stub::answering(COUNTED);
    let server = common::serve_with(&stub, &["--workers", "1", "--admin", "127.0.0.1:0"]);
    let innocent: Innocent = |_, _| (get_request("/readyz"), String::from("ready\n"));
    check(server.address_after("admin on "), innocent, &requests("/metrics"));
    assert_eq!(server.visit(), WELCOME);
}
