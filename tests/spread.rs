//! Several counters: each visit goes to one of them, and to another only if the first was certainly sent nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use common::{
    Client, PATIENCE, SORRY, Server, Signal, Stub, WELCOME, nobody, run, serve, serve_by,
};

/// A server whose visits go to these counters, of which each worker would see the same.
fn serve_with_all(urls: &[String], flags: &[&str]) -> Server {
    let mut all = Vec::new();
    urls.iter().for_each(|url| all.extend(["--counter", url]));
    all.extend(flags);
    serve(&all)
}

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];
const FAILING: &str = "tallyring_upstream_failing{counter=";
const ERRED: &str = "tallyring_visits_total{outcome=\"erred\"";

/// A counter that takes each call and closes without an answer, and how many it has taken.
fn breaking() -> (Stub, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let stub = Stub::start(move |_, mut peer| {
        if peer.request().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (stub, taken)
}

/// Sends visits until both counters have some, and checks that each is counted once.
#[track_caller]
fn check_both(server: &Server, counted: &[Arc<AtomicUsize>; 2]) {
    let counts = || counted.each_ref().map(|counted| counted.load(Ordering::SeqCst));
    let (mut client, mut visits) = (server.client(), 0);
    while visits < 40 || counts().contains(&0) {
        assert_eq!(client.get("/").body, WELCOME);
        visits += 1;
        assert_eq!(counts().iter().sum::<usize>(), visits);
    }
}

#[test]
fn each_visit_goes_to_one_of_the_counters() {
    let stubs = || {
        let ((one, counted), (other, also)) = (Stub::counting(), Stub::counting());
        ([one.url(), other.url()], [counted, also])
    };
    let (urls, counted) = stubs();
    check_both(&serve_with_all(&urls, &[]), &counted);
    let (urls, counted) = stubs();
    let list = urls.join(",");
    let arguments = ["serve", "--workers", "1"];
    check_both(&Server::start(&arguments, &[("TALLYRING_COUNTER", &list)]), &counted);
    let (urls, counted) = stubs();
    check_both(&serve_by(&format!("counter = {urls:?}\n"), &[]), &counted);
    let (urls, counted) = stubs();
    let file = format!(
        "counter = \"http://{}/\"\n[[route]]\npath = \"/\"\ncounter = {urls:?}\n",
        nobody()
    );
    check_both(&serve_by(&file, &[]), &counted);
}

#[test]
fn the_counter_with_less_to_do_gets_the_visit() {
    let (slow, gate, arrived) = Stub::gated();
    let (quick, counted) = Stub::counting();
    let server = serve_with_all(&[slow.url(), quick.url()], &["--workers", "1"]);
    // Until one visit waits at the slow one.
    let mut waiting = server.client();
    loop {
        waiting.send(common::get_request("/"));
        let before = counted.load(Ordering::SeqCst);
        let done = loop {
            if arrived.try_recv().is_ok() {
                break true;
            }
            if counted.load(Ordering::SeqCst) > before {
                break false;
            }
            thread::yield_now();
        };
        if done {
            break;
        }
        assert_eq!(waiting.response().body, WELCOME);
    }
    for _ in 0..20 {
        assert_eq!(server.visit(), WELCOME);
    }
    assert!(arrived.try_recv().is_err(), "the slow counter got another visit");
    gate.open();
    assert_eq!(waiting.response().body, WELCOME);
}

#[test]
fn a_counter_that_nobody_listens_for_costs_no_visit() {
    let (quick, counted) = Stub::counting();
    let dead = format!("http://{}/counter", nobody());
    let flags = [&ADMIN[..], &["--workers", "1", "--ready-needs-counter"]].concat();
    let mut server = serve_with_all(&[dead.clone(), quick.url()], &flags);
    let mut admin = server.admin();
    let mut visits = 0;
    while admin.metric(FAILING) == 0 {
        assert_eq!(server.visit(), WELCOME);
        visits += 1;
    }
    let line = server.wait_for_line("visits go to other counters");
    assert!(line.contains(&format!("POST {dead}: connection refused")), "{line}");
    assert_eq!(admin.get("/readyz").status, 200);
    let moved = admin.metric("tallyring_upstream_visits_moved_total{counter=");
    assert!((10..=visits).contains(&moved), "{moved} of {visits}");
    let books = server.stop_with_books();
    assert_eq!((books.welcomed, books.ended()), (visits, visits));
    assert_eq!(counted.load(Ordering::SeqCst) as u64, visits);
}

#[test]
fn a_visit_that_a_counter_may_have_seen_goes_to_no_other() {
    let ((breaks, taken), (quick, counted)) = (breaking(), Stub::counting());
    let flags = [&ADMIN[..], &["--workers", "1", "--ready-needs-counter"]].concat();
    let mut server = serve_with_all(&[breaks.url(), quick.url()], &flags);
    let (mut sorry, mut visits) = (0, 0);
    while sorry < 5 {
        sorry += usize::from(server.visit() == SORRY);
        visits += 1;
    }
    assert_eq!(taken.load(Ordering::SeqCst), sorry);
    assert_eq!(counted.load(Ordering::SeqCst), visits - sorry);
    server.wait_for_line("visits are not registered");
    // The other one still registers visits.
    assert_eq!(server.admin().get("/readyz").status, 200);
    let books = server.stop_with_books();
    assert_eq!((books.erred, books.ended()), (sorry as u64, visits as u64));
}

#[test]
fn a_server_without_any_counter_that_works_is_not_ready() {
    let (breaks, taken) = breaking();
    let flags = [&ADMIN[..], &["--workers", "1", "--ready-needs-counter"]].concat();
    let dead = format!("http://{}/counter", nobody());
    let mut server = serve_with_all(&[dead, breaks.url()], &flags);
    let mut admin = server.admin();
    assert_eq!(admin.get("/readyz").status, 200);
    let mut visits = 0;
    while admin.get("/readyz").status == 200 {
        assert_eq!(server.visit(), SORRY);
        visits += 1;
    }
    let text = admin.get("/readyz").body;
    assert!(text.contains("not registered"), "{text}");
    let books = server.stop_with_books();
    assert_eq!((books.erred, books.ended()), (visits, visits));
    assert!(taken.load(Ordering::SeqCst) as u64 <= visits);
}

#[test]
fn visits_are_refused_only_when_every_counter_has_too_many() {
    let ((one, gate, arrived), (other, also_gate, also_arrived)) = (Stub::gated(), Stub::gated());
    let flags = ["--workers", "1", "--counter-connections-max", "1", "--counter-queue-max", "0"];
    let server = serve_with_all(&[one.url(), other.url()], &flags);
    let mut waiting = [server.client(), server.client()];
    waiting.iter_mut().for_each(|client| client.send(common::get_request("/")));
    // One at each.
    arrived.recv_timeout(PATIENCE).unwrap();
    also_arrived.recv_timeout(PATIENCE).unwrap();
    assert_eq!(server.get("/").status, 503);
    gate.open();
    also_gate.open();
    for client in &mut waiting {
        assert_eq!(client.response().body, WELCOME);
    }
    assert_eq!(server.visit(), WELCOME);
}

/// Visits from several clients; each one that is not welcomed is an error.
struct Load {
    stop: Arc<AtomicBool>,
    welcomes: mpsc::Receiver<bool>,
    visitors: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(server: &Server) -> Self {
        let (stop, (told, welcomes)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let visitors = (0..8).map(|_| {
            let (stop, told, address) = (Arc::clone(&stop), told.clone(), server.address);
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::SeqCst) {
                    let _ = told.send(client.get("/").body == WELCOME);
                }
            })
        });
        let visitors = visitors.collect();
        Self { stop, welcomes, visitors }
    }

    /// Waits for so many more visits; how many of them were not welcomed.
    fn wait(&self, visits: usize) -> usize {
        while self.welcomes.try_recv().is_ok() {}
        let visits = (0..visits).map(|_| self.welcomes.recv_timeout(PATIENCE).unwrap());
        visits.filter(|welcomed| !welcomed).count()
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.visitors.into_iter().for_each(|visitor| visitor.join().unwrap());
    }
}

fn counter(directory: &Path, name: &str, listen: &str) -> Server {
    let store = format!("redb:{}", directory.join(name).display());
    Server::start(&["counter", "--store", &store, "--listen", listen], &[])
}

fn counted(counter: &Server) -> u64 {
    counter.get("/counter").body.trim().parse().unwrap()
}

#[test]
fn a_counter_that_is_killed_costs_what_was_under_way_and_one_that_drains_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let [mut first, mut second] =
        ["first", "second"].map(|name| counter(directory.path(), name, "127.0.0.1:0"));
    let urls = [&first, &second].map(|counter| format!("http://{}/counter", counter.address));
    let mut site = serve_with_all(&urls, &ADMIN);
    let mut admin = site.admin();
    let load = Load::start(&site);
    assert_eq!(load.wait(200), 0);
    assert!(counted(&first) > 0 && counted(&second) > 0);

    first.signal(Signal::KILL);
    first.wait();
    admin.wait_for_metric(FAILING, 2);
    let erred = admin.metric(ERRED);
    // What was under way at the kill, one for each visitor, and until the breaker of each worker has opened: the kernel
    // goes on for a while to accept connections for who was killed.
    assert!(erred <= 8 + 2 * 10, "{erred} erred");
    load.wait(1000);
    assert_eq!(admin.metric(ERRED), erred, "visits err though the breaker is open");

    // It is back at its address, and gets visits again.
    let address = first.address.to_string();
    first = counter(directory.path(), "first", &address);
    admin.wait_for_metric(FAILING, 0);
    let before = counted(&first);
    while counted(&first) < before + 50 {
        assert_eq!(load.wait(10), 0);
    }

    second.signal(Signal::TERM);
    let (status, _) = second.wait();
    assert_eq!(status.code(), Some(0));
    assert_eq!(load.wait(1000), 0);
    assert_eq!(admin.metric(ERRED), erred, "visits err because a counter drains");
    load.stop();
    let books = site.stop_with_books();
    second = counter(directory.path(), "second", "127.0.0.1:0");
    books.check(counted(&first) + counted(&second));
    assert_eq!((books.erred, books.refused), (erred, 0));
}

#[test]
fn totals_of_several_counters_are_told_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let counters = ["a", "b"].map(|name| counter(directory.path(), name, "127.0.0.1:0"));
    let urls = counters.each_ref().map(|counter| format!("http://{}/counter", counter.address));
    let [first, second] = &urls;
    counters[1].client().send("POST /counter HTTP/1.1\r\nHost: localhost\r\n\r\n");
    while counted(&counters[1]) == 0 {
        thread::yield_now();
    }
    let both = ["total", "--counter", first, "--counter", second];
    let expected = format!("0 {first}\n1 {second}\n");
    assert_eq!(run(&both), (0, expected, String::new()));
    let gone = format!("http://{}/counter", nobody());
    let (code, said, complaint) = run(&["total", "--counter", &format!("{gone},{second}")]);
    assert_eq!((code, said), (1, format!("1 {second}\n")));
    assert!(complaint.contains(&gone), "{complaint}");
    let (code, said, complaint) = run(&["total", "--all", "--counter", first, "--counter", second]);
    assert_eq!((code, said.as_str()), (1, ""));
    assert!(complaint.contains("gives 2 counters"), "{complaint}");
    let backup = directory.path().join("backup");
    let (code, ..) = run(&["backup", "--counter", &urls.join(","), backup.to_str().unwrap()]);
    assert_eq!((code, backup.exists()), (1, false));
}

#[test]
fn a_counter_is_given_once() {
    let twice = ["check", "--counter", "http://127.0.0.1:1/a", "--counter", "http://127.0.0.1:1/b"];
    let (code, _, said) = run(&twice);
    assert_eq!(code, 2);
    let words = "--counter http://127.0.0.1:1/a,http://127.0.0.1:1/b: http://127.0.0.1:1/a and \
                 http://127.0.0.1:1/b are one counter, on one host and port; give each once";
    assert!(said.contains(words), "{said}");
    let (code, said, _) = run(&["check", "--counter", "http://127.0.0.1:1/,http://127.0.0.1:2/"]);
    assert_eq!(code, 0);
    assert!(said.contains("http://127.0.0.1:1/, http://127.0.0.1:2/"), "{said}");
}
