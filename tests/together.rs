//! Visits that are registered together: the counter's URL holds `{n}`, the counter says that it takes several, or it is
//! bundled.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use common::{
    Client, PATIENCE, SORRY, Server, Signal, Stub, WELCOME,
    ending::{Load, check_counter_that_ends},
    get_request, nobody, run, serve,
};

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];
/// One worker with one connection, so that all others wait while a call is held.
const NARROW: [&str; 4] = ["--workers", "1", "--counter-connections-max", "1"];
const QUEUED: &str = "tallyring_upstream_calls_queued{counter=";
const BATCHED: &str = "tallyring_upstream_batched_visits_total{counter=";
const CALLS: &str = "http_client_request_duration_seconds_count{counter=";
const COUNTED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1";

/// A counter that tells of each call, and answers when the test says so and what.
struct Held {
    stub: Stub,
    calls: mpsc::Receiver<String>,
    answers: mpsc::Sender<Option<String>>,
}

impl Held {
    fn start() -> Self {
        let (tell, calls) = mpsc::channel();
        let (answers, answer) = mpsc::channel();
        let answer = Mutex::new(answer);
        let stub = Stub::start(move |_, mut peer| {
            while let Some(call) = peer.request() {
                let Ok(()) = tell.send(call) else { return };
                let answer: Option<String> = match answer.lock().unwrap().recv() {
                    Ok(answer) => answer,
                    Err(_) => return,
                };
                // Without an answer the connection ends.
                let Some(answer) = answer else { return };
                if !peer.send(answer) {
                    return;
                }
            }
        });
        Self { stub, calls, answers }
    }

    fn url(&self) -> String {
        format!("{}?by={{n}}", self.stub.url())
    }

    /// The next call is this one.
    #[track_caller]
    fn expect_target(&self, target: &str) {
        let call = self.calls.recv_timeout(PATIENCE).expect("a call");
        assert!(call.starts_with(&format!("POST {target} HTTP/1.1\r\n")), "{call}");
    }

    /// Counts, and says that so many were added.
    fn add(&self, added: usize) {
        self.answer(&format!("HTTP/1.1 204 A\r\nTallyring-Added: {added}\r\n\r\n"));
    }

    /// The next call, and how many visits it registers.
    #[track_caller]
    fn call(&self) -> (String, usize) {
        let call = self.calls.recv_timeout(PATIENCE).expect("a call");
        let by = by_of(&call);
        (call, by)
    }

    #[track_caller]
    fn expect(&self, by: usize) {
        assert_eq!(self.call().1, by);
    }

    fn answer(&self, answer: &str) {
        self.answers.send(Some(answer.to_owned())).unwrap();
    }

    fn count(&self, total: usize) {
        let total = total.to_string();
        self.answer(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{total}", total.len()));
    }

    fn close(&self) {
        self.answers.send(None).unwrap();
    }
}

fn by_of(call: &str) -> usize {
    let by = call.strip_prefix("POST /counter?by=").and_then(|rest| rest.split_once(' '));
    by.expect(call).0.parse().expect(call)
}

/// A server of one connection to this counter, whose page shows the number of the visit, or is the usual one.
fn narrow(counter: &Held, page: Option<&str>) -> (Server, tempfile::TempDir) {
    narrow_at(&counter.url(), page)
}

fn narrow_at(url: &str, page: Option<&str>) -> (Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut flags = [&ADMIN[..], &NARROW].concat();
    flags.extend(["--counter", url]);
    let welcome = directory.path().join("welcome.html");
    if let Some(page) = page {
        fs::write(&welcome, page).unwrap();
        flags.extend(["--welcome", welcome.to_str().unwrap()]);
    }
    (serve(&flags), directory)
}

/// Clients, each with a visit that waits while the counter holds the call before.
fn wait_behind(server: &Server, visits: &[String]) -> Vec<Client> {
    let clients = visits.iter().map(|visit| {
        let mut client = server.client();
        client.send(visit);
        client
    });
    let clients = clients.collect();
    server.admin().wait_for_metric(QUEUED, visits.len() as u64);
    clients
}

fn visits(count: usize) -> Vec<String> {
    vec![get_request("/"); count]
}

#[test]
fn visits_that_arrive_during_a_call_go_together_in_the_next_one() {
    let counter = Held::start();
    let (server, _directory) = narrow(&counter, Some("{visits}"));
    let mut first = server.client();
    first.send(get_request("/"));
    counter.expect(1);
    let mut others = wait_behind(&server, &visits(12));
    counter.count(100);
    assert_eq!(first.response().body, "100");
    counter.expect(12);
    counter.count(112);
    let shown: BTreeSet<usize> =
        others.iter_mut().map(|client| client.response().body.parse().unwrap()).collect();
    assert_eq!(shown, (101..=112).collect());
    assert_eq!(server.admin().metric(BATCHED), 13);
    assert_eq!(server.admin().metric(CALLS), 2);
}

#[test]
fn a_visit_that_finds_no_call_in_flight_has_its_own() {
    let counter = Held::start();
    let (mut server, _directory) = narrow(&counter, None);
    let mut client = server.client();
    for _ in 0..20 {
        client.send(get_request("/"));
        counter.expect(1);
        counter.answer(COUNTED);
        assert_eq!(client.response().body, WELCOME);
    }
    drop(client);
    assert!(server.stop().contains("20 visits welcomed, 0 erred"));
}

#[test]
fn a_failed_call_fails_all_of_its_visits_and_no_others() {
    let counter = Held::start();
    let (mut server, _directory) = narrow(&counter, None);
    let mut before = server.client();
    before.send(get_request("/"));
    counter.expect(1);
    for fails in [None, Some("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")] {
        let mut batch = wait_behind(&server, &visits(4));
        counter.answer(COUNTED);
        assert_eq!(before.response().body, WELCOME);
        counter.expect(4);
        let mut after = wait_behind(&server, &visits(1));
        match fails {
            None => counter.close(),
            Some(answer) => counter.answer(answer),
        }
        for client in &mut batch {
            assert_eq!(client.response().body, SORRY);
        }
        counter.expect(1);
        before = after.remove(0);
    }
    counter.answer(COUNTED);
    assert_eq!(before.response().body, WELCOME);
    drop(before);
    let books = server.stop_with_books();
    assert_eq!((books.welcomed, books.erred, books.abandoned), (3, 8, 0));
}

#[test]
fn visits_that_are_cut_off_before_their_call_are_not_registered() {
    let counter = Held::start();
    let url = counter.url();
    let flags = ["--drain-timeout", "100ms", "--counter", &url];
    let mut server = serve(&[&ADMIN[..], &NARROW, &flags].concat());
    let mut first = server.client();
    first.send(get_request("/"));
    counter.expect(1);
    let others = wait_behind(&server, &visits(5));
    let books = server.stop_with_books();
    assert_eq!((books.welcomed, books.erred, books.abandoned), (0, 0, 6));
    assert!(counter.calls.try_recv().is_err(), "they were registered");
    drop((first, others));
}

#[test]
fn a_call_has_the_trace_of_its_first_visit() {
    let counter = Held::start();
    let url = counter.url();
    let flags = ["--trace-context", "--counter", &url];
    let server = serve(&[&ADMIN[..], &NARROW, &flags].concat());
    let mut first = server.client();
    first.send(get_request("/"));
    counter.expect(1);
    let traced = |digit: &str| {
        let parent = format!("00-{}-00f067aa0ba902b7-01", digit.repeat(32));
        format!("GET / HTTP/1.1\r\nHost: a\r\nTraceparent: {parent}\r\n\r\n")
    };
    let mut others = wait_behind(&server, &[traced("a")]);
    // One more than those that wait is queued.
    let mut last = server.client();
    last.send(traced("b"));
    server.admin().wait_for_metric(QUEUED, 2);
    counter.answer(COUNTED);
    let (call, by) = counter.call();
    assert!(by == 2 && call.contains(&format!("traceparent: 00-{}-", "a".repeat(32))), "{call}");
    assert!(!call.contains(&"b".repeat(32)), "{call}");
    counter.answer(COUNTED);
    for client in others.iter_mut().chain([&mut first, &mut last]) {
        assert_eq!(client.response().body, WELCOME);
    }
}

#[test]
fn with_a_maximum_of_one_each_visit_has_its_own_call() {
    let counted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counted);
    let stub = Stub::start(move |_, mut peer| {
        while let Some(call) = peer.request() {
            assert_eq!(by_of(&call), 1);
            count.fetch_add(1, Ordering::SeqCst);
            if !peer.send(COUNTED) {
                return;
            }
        }
    });
    let url = format!("{}?by={{n}}", stub.url());
    let flags = ["--workers", "1", "--counter", &url, "--counter-batch-max", "1"];
    let server = serve(&[&ADMIN[..], &flags].concat());
    pipeline(&server, 40);
    assert_eq!(counted.load(Ordering::SeqCst), 40);
    assert_eq!(server.admin().metric(BATCHED), 0);
    let bundled = serve(&[&ADMIN[..], &["--workers", "1", "--counter-batch-max", "1"]].concat());
    pipeline(&bundled, 40);
    assert_eq!(bundled.admin().metric(BATCHED), 0);
    assert_eq!(bundled.admin().metric(CALLS), 40);
}

/// Makes visits at once on one connection.
#[track_caller]
fn pipeline(server: &Server, visits: usize) {
    let mut client = server.client();
    client.send(get_request("/").repeat(visits));
    for _ in 0..visits {
        assert_eq!(client.response().body, WELCOME);
    }
}

#[test]
fn the_bundled_counter_registers_visits_together() {
    let server = serve(&[&ADMIN[..], &["--workers", "1"]].concat());
    (0..20).for_each(|_| pipeline(&server, 10));
    let mut admin = server.admin();
    assert_eq!(admin.metric(BATCHED), 200);
    let calls = admin.metric(CALLS);
    assert!(calls < 200, "{calls} calls for 200 visits");
    assert_eq!(admin.metric("tallyring_counted_total"), 200);
}

#[test]
fn a_counter_that_says_what_it_adds_gets_several_visits_in_a_call() {
    let counter = Held::start();
    let (mut server, _directory) = narrow_at(&counter.stub.url(), None);
    let mut first = server.client();
    first.send(get_request("/"));
    counter.expect_target("/counter");
    // It has not said anything yet.
    let mut early = wait_behind(&server, &visits(2));
    counter.answer(COUNTED);
    counter.expect_target("/counter");
    counter.add(1);
    counter.expect_target("/counter");
    let mut more = wait_behind(&server, &visits(5));
    counter.add(1);
    counter.expect_target("/counter?by=5");
    counter.add(5);
    for client in [&mut first].into_iter().chain(&mut early).chain(&mut more) {
        assert_eq!(client.response().body, WELCOME);
    }
    assert_eq!(server.admin().metric(BATCHED), 5);
    drop((first, early, more));
    assert!(server.stop().contains("8 visits welcomed, 0 erred"));
}

#[test]
fn who_ignores_the_number_of_visits_makes_no_visitor_welcome_that_it_has_not_counted() {
    for wrong in [COUNTED, "HTTP/1.1 204 A\r\nTallyring-Added: 1\r\n\r\n"] {
        let counter = Held::start();
        let (mut server, _directory) = narrow_at(&counter.stub.url(), None);
        let mut single = server.client();
        single.send(get_request("/"));
        counter.expect_target("/counter");
        counter.add(1);
        assert_eq!(single.response().body, WELCOME);
        single.send(get_request("/"));
        counter.expect_target("/counter");
        let mut batch = wait_behind(&server, &visits(3));
        counter.add(1);
        assert_eq!(single.response().body, WELCOME);
        counter.expect_target("/counter?by=3");
        let mut after = wait_behind(&server, &visits(2));
        counter.answer(wrong);
        batch.iter_mut().for_each(|client| assert_eq!(client.response().body, SORRY));
        // From now on each has a call of its own, whatever the counter says.
        for client in &mut after {
            counter.expect_target("/counter");
            counter.add(1);
            assert_eq!(client.response().body, WELCOME);
        }
        drop((single, batch, after));
        assert!(server.stop().contains("4 visits welcomed, 3 erred"));
    }
}

#[test]
fn a_counter_in_a_process_of_its_own_registers_visits_together() {
    let counter = Server::start(&["counter", "--store", "memory"], &[]);
    let url = format!("http://{}/counter", counter.address);
    let mut server = serve(&[&ADMIN[..], &NARROW, &["--counter", &url]].concat());
    (0..20).for_each(|_| pipeline(&server, 10));
    let mut admin = server.admin();
    let (batched, calls) = (admin.metric(BATCHED), admin.metric(CALLS));
    // Until the first answer each visit has a call of its own.
    assert!((190..200).contains(&batched), "{batched}");
    assert!(calls < 200, "{calls} calls for 200 visits");
    drop(admin);
    assert_eq!(server.stop_with_books().welcomed, 200);
}

#[test]
fn visits_go_to_another_counter_where_nobody_listens_for_the_first() {
    const VISITS: usize = 12;
    let counter = Held::start();
    let (live, dead) = (counter.url(), format!("http://{}/counter?by={{n}}", nobody()));
    let flags = ["--counter", &live, "--counter", &dead];
    let mut server = serve(&[&ADMIN[..], &NARROW, &flags].concat());
    let mut client = server.client();
    client.send(get_request("/").repeat(VISITS));
    let mut registered = 0;
    while registered < VISITS {
        registered += counter.call().1;
        counter.answer(COUNTED);
    }
    assert_eq!(registered, VISITS);
    for _ in 0..VISITS {
        assert_eq!(client.response().body, WELCOME);
    }
    drop(client);
    assert_eq!(server.stop_with_books().welcomed, VISITS as u64);
}

#[test]
fn the_books_hold_when_a_counter_is_killed_under_load() {
    let load = Load { visitors: 8, welcomed: 500, erred: 50 };
    check_counter_that_ends(&[], "?by={n}", Signal::KILL, load, |admin| {
        let (visits, calls) = (admin.metric(BATCHED), admin.metric(CALLS));
        assert!(calls < visits, "{calls} calls for {visits} visits");
    });
}

#[test]
fn a_reload_turns_it_off_and_on() {
    let counter = Held::start();
    let file = |max: usize| format!("counter = {:?}\ncounter-batch-max = {max}\n", counter.url());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tallyring.toml");
    fs::write(&path, file(1)).unwrap();
    let server = serve(&[&ADMIN[..], &["--config", path.to_str().unwrap()]].concat());
    let mut batched = 0;
    for max in [1, 7, 1, 1000] {
        fs::write(&path, file(max)).unwrap();
        server.signal(Signal::HUP);
        server.wait_for_line("read anew");
        let mut client = server.client();
        client.send(get_request("/"));
        counter.expect(1);
        counter.answer(COUNTED);
        assert_eq!(client.response().body, WELCOME);
        batched += u64::from(max > 1);
        assert_eq!(server.admin().metric(BATCHED), batched);
    }
}

#[test]
fn a_url_that_cannot_say_how_many_is_refused() {
    let check = |url: &str, words: &str| {
        let (code, _, said) = run(&["check", "--counter", url]);
        assert!(code == 2 && said.contains(words), "{url}: {code} {said}");
    };
    let misplaced = "{n} may stand in its path or query only, and once";
    check("http://a/{n}?by={n}", misplaced);
    check("http://{n}/counter", misplaced);
    check("http://a/counter#{n}", misplaced);
    for max in ["0", "100001", "many"] {
        let (code, _, said) = run(&["check", "--counter-batch-max", max]);
        assert!(code == 2 && said.contains("counter-batch-max"), "{max}: {code} {said}");
    }
    let (code, said, _) = run(&["check", "--counter", "http://127.0.0.1:3001/add/{n}"]);
    assert!(code == 0 && said.contains("counter-batch-max"), "{code} {said}");
}
