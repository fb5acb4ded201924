//! Several calls on one connection to the counter (`--counter-pipeline`), from the program's outside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use common::{
    Books, COUNTED, Client, PATIENCE, Peer, SORRY, Server, Signal, Stub, WELCOME,
    ending::{Load, check_counter_that_ends},
    get_request, run, serve, serve_by, serve_with,
};

const DRIVERS: [&str; 2] = ["auto", "epoll"];

/// A counter whose first connection does what a test says, and says how many calls it has got. The others answer
/// nothing, and say when they are made.
struct Scripted {
    stub: Stub,
    calls: mpsc::Receiver<String>,
    does: mpsc::Sender<Does>,
}

enum Does {
    /// Answers with these bytes.
    Answer(String),
    /// Ends the connection.
    Close,
    Reset,
}

impl Scripted {
    fn start() -> Self {
        let (told, calls) = mpsc::channel();
        let (does, script) = mpsc::channel();
        let script = Mutex::new(script);
        let stub = Stub::start(move |number, mut peer| {
            if number > 0 {
                // It counts, like any other.
                while peer.request().is_some() && peer.send(COUNTED) {}
                return;
            }
            let mut reader = Peer::from(peer.stream.try_clone().unwrap());
            let told = told.clone();
            let reads = std::thread::spawn(move || {
                while let Some(head) = reader.request() {
                    if told.send(head).is_err() {
                        return;
                    }
                }
            });
            while let Ok(does) = script.lock().unwrap().recv() {
                match does {
                    Does::Answer(bytes) => assert!(peer.send(bytes)),
                    Does::Close => {
                        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
                        reads.join().unwrap();
                        return;
                    }
                    Does::Reset => {
                        peer.stream.shutdown(std::net::Shutdown::Read).unwrap();
                        reads.join().unwrap();
                        return peer.reset();
                    }
                }
            }
        });
        Self { stub, calls, does }
    }

    /// The paths of the next calls.
    #[track_caller]
    fn expect<const COUNT: usize>(&self) -> [String; COUNT] {
        [(); COUNT].map(|()| {
            let head = self.calls.recv_timeout(PATIENCE).expect("a call");
            head.split(' ').nth(1).unwrap().to_owned()
        })
    }

    fn answers(&self, bytes: impl Into<String>) {
        self.does.send(Does::Answer(bytes.into())).unwrap();
    }

    /// A server with a route for each visitor, and these flags, whose first connection has shown that it stays open.
    fn serve(&self, flags: &[&str]) -> Server {
        let url = format!("http://{}", self.stub.address);
        let route =
            |path: &str| format!("[[route]]\npath = \"{path}\"\ncounter = \"{url}{path}\"\n");
        let routes: String = PATHS.iter().map(|path| route(path)).collect();
        let more = ["--workers", "1", "--counter-pipeline", "8"];
        let server = serve_by(&routes, &[&more[..], flags].concat());
        let mut client = server.client();
        client.send(get_request("/a"));
        assert_eq!(self.expect(), ["/a"]);
        self.answers(COUNTED);
        assert_eq!(client.response().body, WELCOME);
        server
    }
}

const PATHS: [&str; 5] = ["/a", "/b", "/c", "/d", "/e"];

/// Visitors of all paths, whose calls are on the first connection.
fn visit_all(counter: &Scripted, server: &Server) -> Vec<(String, Client)> {
    let mut clients: Vec<_> = PATHS.iter().map(|_| server.client()).collect();
    for (client, path) in clients.iter_mut().zip(PATHS) {
        client.send(get_request(path));
    }
    // In the order in which the counter has got them.
    let mut by_path: Vec<_> = PATHS.iter().map(|path| String::from(*path)).zip(clients).collect();
    let order = counter.expect::<5>();
    by_path.sort_by_key(|(path, _)| order.iter().position(|other| other == path));
    by_path
}

/// An answer of the `place`th call: each has a length of its own.
fn answer(place: usize, welcomes: bool) -> String {
    let status = if welcomes { "200 OK" } else { "500 No" };
    format!("HTTP/1.1 {status}\r\nContent-Length: {place}\r\n\r\n{}", "x".repeat(place))
}

#[test]
fn calls_do_not_wait_for_the_answers_of_others_and_each_gets_its_own() {
    for driver in DRIVERS {
        let counter = Scripted::start();
        let server = counter.serve(&["--driver", driver]);
        for welcomed in 0..PATHS.len() {
            let visitors = visit_all(&counter, &server);
            let answers = (0..PATHS.len()).map(|place| answer(place, place == welcomed));
            counter.answers(answers.collect::<String>());
            for (place, (path, mut client)) in visitors.into_iter().enumerate() {
                let expected = if place == welcomed { WELCOME } else { SORRY };
                assert_eq!(client.response().body, expected, "{path} with {driver}");
            }
        }
    }
}

#[test]
fn answers_that_are_cut_at_any_byte_are_told_as_far_as_they_are_whole() {
    let answers: Vec<_> = (0..PATHS.len()).map(|place| answer(place, true)).collect();
    let all = answers.concat();
    for cut in (0..all.len()).step_by(13).chain([all.len() - 1]) {
        let counter = Scripted::start();
        let mut server = counter.serve(&[]);
        let visitors = visit_all(&counter, &server);
        counter.answers(&all[..cut]);
        counter.does.send(if cut % 2 == 0 { Does::Close } else { Does::Reset }).unwrap();
        let (mut end, mut whole) = (0, 0);
        for (answer, (path, mut client)) in answers.iter().zip(visitors) {
            end += answer.len();
            let body = client.response().body;
            // A reset may overtake what was sent before it.
            let expected = if end <= cut { WELCOME } else { SORRY };
            assert!(body == expected || cut % 2 == 1 && body == SORRY, "{path}, cut at {cut}");
            whole += u64::from(body == WELCOME);
        }
        let books = server.stop_with_books();
        let (welcomed, erred) = (1 + whole, 5 - whole);
        assert_eq!(books, Books { welcomed, erred, refused: 0, abandoned: 0 });
    }
}

#[test]
fn after_an_announced_close_nothing_more_is_sent_there() {
    let counter = Scripted::start();
    let mut server = counter.serve(&[]);
    let visitors = visit_all(&counter, &server);
    let close = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    counter.answers(answer(0, true) + close);
    for (place, (path, mut client)) in visitors.into_iter().enumerate() {
        let expected = if place < 2 { WELCOME } else { SORRY };
        assert_eq!(client.response().body, expected, "{path}");
    }
    // On another connection, which answers.
    assert_eq!(server.client().get("/b").body, WELCOME);
    assert!(counter.calls.try_recv().is_err(), "a call came after the last answer");
    let books = server.stop_with_books();
    assert_eq!(books, Books { welcomed: 4, erred: 3, refused: 0, abandoned: 0 });
}

#[test]
fn a_call_that_takes_too_long_fails_and_its_connection_is_not_used_again() {
    let counter = Scripted::start();
    let server = counter.serve(&["--counter-timeout", "2s"]);
    let mut slow = server.client();
    slow.send(get_request("/a"));
    assert_eq!(counter.expect(), ["/a"]);
    assert_eq!(slow.response().body, SORRY);
    // What comes meanwhile goes over another connection, and is answered there.
    assert_eq!(server.client().get("/b").body, WELCOME);
    assert!(counter.calls.try_recv().is_err(), "the connection is used again");
}

#[test]
fn the_answer_for_a_client_that_has_left_is_nobodys() {
    let counter = Scripted::start();
    let mut server = counter.serve(&[]);
    let mut gone = server.client();
    gone.send(get_request("/a"));
    assert_eq!(counter.expect(), ["/a"]);
    let mut stays = server.client();
    stays.send(get_request("/b"));
    assert_eq!(counter.expect(), ["/b"]);
    gone.reset();
    counter.answers(answer(3, false) + &answer(4, true));
    assert_eq!(stays.response().body, WELCOME);
    let books = server.stop_with_books();
    assert_eq!((books.welcomed, books.erred + books.abandoned), (2, 1), "{books:?}");
}

/// All of many visits at the same time are welcomed and counted once by a counter that answers so.
#[track_caller]
fn check_alone(answer: &'static str) {
    const VISITORS: usize = 24;
    const VISITS: usize = 5;
    let counted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counted);
    let stub = Stub::start(move |_, mut peer| {
        let keeps = answer.contains("keep-alive");
        while peer.request().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            if !peer.send(answer) || !keeps {
                return;
            }
        }
    });
    let server = serve_with(&stub, &["--workers", "1", "--counter-pipeline", "32"]);
    let address = server.address;
    std::thread::scope(|scope| {
        for _ in 0..VISITORS {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                (0..VISITS).for_each(|_| assert_eq!(client.get("/").body, WELCOME, "{answer:?}"));
            });
        }
    });
    assert_eq!(counted.load(Ordering::SeqCst), VISITORS * VISITS);
}

#[test]
fn a_counter_that_takes_one_call_at_a_time_loses_none() {
    check_alone("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1");
    check_alone("HTTP/1.1 200 OK\r\n\r\nto the close");
    check_alone("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n1");
    check_alone("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n1");
}

#[test]
fn many_visits_take_few_connections() {
    const VISITORS: usize = 40;
    let connections = Arc::new(AtomicUsize::new(0));
    let busy = Arc::clone(&connections);
    let stub = Stub::start(move |number, mut peer| {
        for call in 0.. {
            if peer.request().is_none() {
                return;
            }
            if call == 1 {
                busy.fetch_max(number + 1, Ordering::SeqCst);
            }
            if !peer.send(COUNTED) {
                return;
            }
        }
    });
    let server = serve_with(&stub, &["--workers", "1", "--counter-pipeline", "1000"]);
    assert_eq!(server.visit(), WELCOME);
    let mut clients: Vec<_> = (0..VISITORS).map(|_| server.client()).collect();
    for _ in 0..10 {
        clients.iter_mut().for_each(|client| client.send(get_request("/")));
        clients.iter_mut().for_each(|client| assert_eq!(client.response().body, WELCOME));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "the first has room for all of them");
}

#[test]
fn a_reload_turns_it_on_and_off() {
    let counter = Scripted::start();
    let file = |most: usize| {
        format!("counter = \"http://{}/x\"\ncounter-pipeline = {most}\n", counter.stub.address)
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tallyring.toml");
    fs::write(&path, file(1)).unwrap();
    let flags = ["--workers", "1", "--counter-connections-max", "1"];
    let server = serve(&[&flags[..], &["--config", path.to_str().unwrap()]].concat());
    let mut first = server.client();
    for most in [1, 2, 1] {
        fs::write(&path, file(most)).unwrap();
        server.signal(Signal::HUP);
        server.wait_for_line("read anew");
        first.send(get_request("/"));
        counter.expect::<1>();
        counter.answers(COUNTED);
        assert_eq!(first.response().body, WELCOME);
        let mut clients = [server.client(), server.client()];
        clients.iter_mut().for_each(|client| client.send(get_request("/")));
        if most > 1 {
            counter.expect::<2>();
            counter.answers(COUNTED.repeat(2));
        } else {
            for _ in 0..2 {
                counter.expect::<1>();
                assert!(counter.calls.try_recv().is_err(), "two at a time");
                counter.answers(COUNTED);
            }
        }
        clients.iter_mut().for_each(|client| assert_eq!(client.response().body, WELCOME));
    }
}

#[test]
fn it_is_a_number_up_to_a_thousand() {
    for most in ["0", "1001", "many", "-1"] {
        let (code, _, said) = run(&["check", &format!("--counter-pipeline={most}")]);
        assert!(code == 2 && said.contains("counter-pipeline"), "{most}: {code} {said}");
    }
    for most in ["1", "1000"] {
        let (code, said, _) = run(&["check", "--counter-pipeline", most]);
        assert_eq!(code, 0);
        let shown = said.lines().find(|line| line.contains("counter-pipeline")).unwrap();
        assert!(shown.contains(most), "{shown}");
    }
}

#[test]
fn the_books_hold_when_a_counter_drains_or_is_killed_under_load() {
    for signal in [Signal::TERM, Signal::KILL] {
        let load = Load { visitors: 16, welcomed: 2000, erred: 20 };
        check_counter_that_ends(&["--counter-pipeline", "32"], "", signal, load, |_| ());
    }
}
