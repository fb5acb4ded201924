//! What the admin listener tells of the server: its metrics, its figures as JSON, the page and its stream of events.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    time::Instant,
};

use common::{
    COUNTED, Client, Gate, PATIENCE, SORRY, Server, Signal, Stub, WELCOME, get_request, nobody,
    serve, serve_with,
};

use serde_json::Value;

const ADMIN: [&str; 4] = ["--workers", "1", "--admin", "127.0.0.1:0"];

/// Waits until each worker has shown that it runs.
fn wait_until_all_run(admin: &mut Client, workers: usize) {
    let began = Instant::now();
    while admin.get("/metrics").body.matches("\ntallyring_worker_silent_seconds{").count() < workers
    {
        assert!(began.elapsed() < PATIENCE, "a worker never showed that it runs");
    }
}

/// The durations of visits that were answered, and of calls.
fn durations(admin: &mut Client) -> (u64, u64) {
    let visits = admin.metric("http_server_request_duration_seconds_count{worker=");
    (visits, admin.metric("http_client_request_duration_seconds_count{worker="))
}

#[test]
fn each_answered_visit_has_a_duration() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    let mut admin = server.admin();
    assert_eq!(durations(&mut admin), (0, 0));
    let mut client = server.client();
    (0..5).for_each(|_| assert_eq!(client.get("/").body, WELCOME));
    // What is no visit has none.
    assert_eq!(client.get("/none").status, 404);
    assert_eq!(durations(&mut admin), (5, 5));
    let buckets = "http_server_request_duration_seconds_bucket{le=\"+Inf\"";
    assert_eq!(admin.metric(buckets), 5);
    let sum = "http_server_request_duration_seconds_sum{";
    let text = admin.get("/metrics").body;
    let sum = text.lines().find_map(|line| line.strip_prefix(sum)).unwrap();
    let sum: f64 = sum.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(sum > 0.0 && sum < PATIENCE.as_secs_f64(), "{sum}");
}

#[test]
fn a_visit_without_a_call_has_a_duration_and_the_call_has_none() {
    let url = format!("http://{}/counter", nobody());
    let server = serve(&[&["--counter", &url][..], &ADMIN].concat());
    let (mut admin, mut client) = (server.admin(), server.client());
    // The last ones fail at once.
    (0..15).for_each(|_| assert_eq!(client.get("/").body, SORRY));
    assert_eq!(durations(&mut admin), (15, 0));
    assert!(admin.metric("tallyring_visits_erred_total{cause=\"not_tried\"") > 0);
    assert_eq!(admin.metric("tallyring_upstream_failing{counter="), 1);
}

#[test]
fn connections_to_the_counter_are_told_by_what_they_do() {
    // Visits are answered when the gate opens.
    let (gate, (asked, arrived)) = (Gate::default(), mpsc::channel());
    let open = gate.clone();
    let stub = Stub::start(move |_, mut peer| {
        while peer.request().is_some() {
            asked.send(()).unwrap();
            open.wait();
            peer.send(COUNTED);
        }
    });
    let server = serve_with(&stub, &[&ADMIN[..], &["--counter-connections-max", "1"]].concat());
    let mut admin = server.admin();
    let mut clients = [server.client(), server.client(), server.client()];
    clients.iter_mut().for_each(|client| client.send(get_request("/")));
    arrived.recv_timeout(PATIENCE).unwrap();
    admin.wait_for_metric("tallyring_upstream_calls_queued{counter=", 2);
    admin.wait_for_metric("tallyring_upstream_connections_idle{counter=", 0);
    admin.wait_for_metric("tallyring_upstream_connections{counter=", 1);
    gate.open();
    clients.iter_mut().for_each(|client| assert_eq!(client.response().body, WELCOME));
    for (name, expected) in [
        ("tallyring_upstream_calls_queued", 0),
        ("tallyring_upstream_connections_idle", 1),
        ("tallyring_upstream_connections", 1),
        ("tallyring_upstream_connections_dialed_total", 1),
        ("tallyring_upstream_connections_reused_total", 2),
        ("tallyring_upstream_failing", 0),
        // The first one waited too, for the connection to be established.
        ("tallyring_upstream_queue_duration_seconds_count", 3),
    ] {
        admin.wait_for_metric(&format!("{name}{{counter=\"{}\"", stub.address), expected);
    }
    assert_eq!(durations(&mut admin), (3, 3));
}

#[test]
fn bad_requests_are_told_by_reason() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    let mut admin = server.admin();
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (&long, 414),
        ("GET / HTTP/2.5\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("GET /none HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    ] {
        let mut client = server.client();
        client.send(request);
        assert_eq!(client.response().status, status, "{request}");
    }
    let mut counts =
        |reason: &str| admin.metric(&format!("tallyring_bad_requests_total{{reason=\"{reason}\""));
    let reasons = ["malformed", "too_large", "unsupported", "too_slow"];
    assert_eq!(reasons.map(&mut counts), [1, 1, 1, 0]);
}

#[test]
fn each_worker_shows_that_it_runs_and_what_it_uses() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--workers", "2", "--admin", "127.0.0.1:0"]);
    let mut admin = server.admin();
    wait_until_all_run(&mut admin, 2);
    let text = admin.get("/metrics").body;
    for worker in 0..2 {
        for row in [
            format!("tallyring_worker_cpu_seconds_total{{worker=\"{worker}\",mode=\"user\"}} "),
            format!("tallyring_worker_cpu_seconds_total{{worker=\"{worker}\",mode=\"system\"}} "),
            format!("tallyring_worker_silent_seconds{{worker=\"{worker}\"}} "),
        ] {
            let value = text.lines().find_map(|line| line.strip_prefix(&row)).expect(&row);
            let value: f64 = value.parse().unwrap();
            assert!((0.0..PATIENCE.as_secs_f64()).contains(&value), "{row}{value}");
        }
    }
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"] {
        assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {text}");
    }
}

/// What `/stats` tells.
fn stats(admin: &mut Client) -> Value {
    let response = admin.get("/stats");
    assert_eq!((response.status, response.field("content-type")), (200, Some("application/json")));
    assert_eq!(response.field("cache-control"), Some("no-store"));
    serde_json::from_str(&response.body).unwrap()
}

#[track_caller]
fn check(stats: &Value, pointer: &str, expected: impl Into<Value>) {
    assert_eq!(stats.pointer(pointer), Some(&expected.into()), "{pointer} of {stats:#}");
}

#[test]
fn the_figures_are_there_as_json() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--workers", "2", "--admin", "127.0.0.1:0"]);
    let (mut admin, mut client) = (server.admin(), server.client());
    wait_until_all_run(&mut admin, 2);
    (0..4).for_each(|_| assert_eq!(client.get("/").body, WELCOME));
    let all = stats(&mut admin);
    for (pointer, expected) in [
        ("/schema", Value::from(1)),
        ("/version", env!("CARGO_PKG_VERSION").into()),
        ("/state", "serving".into()),
        ("/ready", true.into()),
        ("/bundled", Value::Null),
        ("/totals/visits/welcomed", 4.into()),
        ("/totals/visits/erred", 0.into()),
        ("/totals/visits/in_flight", 0.into()),
        ("/totals/durations/count", 4.into()),
        ("/totals/connections/open", 1.into()),
        ("/totals/erred_by_cause/timeout", 0.into()),
        ("/bucket_bounds_seconds/0", 0.000_064.into()),
        ("/bucket_bounds_seconds/18", Value::Null),
        ("/workers/1/worker", 1.into()),
        ("/counters/0/counter", stub.address.to_string().into()),
        ("/counters/0/bundled", false.into()),
        ("/counters/0/addresses/0", stub.address.to_string().into()),
        ("/counters/0/dialed", 1.into()),
        ("/counters/0/reused", 3.into()),
        ("/counters/0/failing", 0.into()),
        ("/counters/0/durations/count", 4.into()),
    ] {
        check(&all, pointer, expected);
    }
    // The connection is one worker's, and so are its visits.
    let of_worker = |worker: usize, name: &str| {
        all.pointer(&format!("/workers/{worker}/{name}")).unwrap().as_u64().unwrap()
    };
    let welcomed = [0, 1].map(|worker| of_worker(worker, "visits/welcomed"));
    assert!(welcomed == [4, 0] || welcomed == [0, 4], "{welcomed:?}");
    let called = [0, 1].map(|worker| of_worker(worker, "upstreams/0/durations/count"));
    assert_eq!(called, welcomed);
    for pointer in [
        "/totals/durations/p99_seconds",
        "/counters/0/last_call_seconds",
        "/workers/0/cpu/user_seconds",
        "/workers/0/silent_seconds",
        "/process/resident_memory_bytes",
        "/uptime_seconds",
    ] {
        let number = all.pointer(pointer).and_then(Value::as_f64);
        assert!(number.is_some_and(|number| number >= 0.0), "{pointer} of {all:#}");
    }
    let driver = all.pointer("/workers/0/driver/description").unwrap().as_str().unwrap();
    assert!(server.line.contains(driver), "{driver} is not in {}", server.line);
}

#[test]
fn the_figures_tell_of_a_bundled_counter_and_of_the_drain() {
    let mut server = Server::start(&["serve", "--workers", "1", "--admin", "127.0.0.1:0"], &[]);
    let (mut admin, mut client) = (server.admin(), server.client());
    assert_eq!(client.get("/").body, WELCOME);
    let all = stats(&mut admin);
    check(&all, "/bundled/counted", 1);
    check(&all, "/counters/0/bundled", true);
    // A head that is not whole keeps the worker from ending.
    client.send("GET / HTTP/1.1\r\n");
    server.signal(Signal::TERM);
    server.wait_for_line("no new connections");
    let all = stats(&mut admin);
    check(&all, "/state", "stopping");
    check(&all, "/ready", false);
    client.send("Host: a\r\n\r\n");
    assert_eq!(client.response().body, WELCOME);
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn a_store_that_fails_is_told_until_it_works_again() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let [file, away] = ["counter.redb", "away"].map(|name| directory.path().join(name));
    let flags = [&["serve", "--data-dir", data][..], &ADMIN].concat();
    let server = Server::start(&flags, &[]);
    let (mut admin, mut client) = (server.admin(), server.client());
    assert_eq!(client.get("/").body, WELCOME);
    let told = |admin: &mut Client| {
        let rows = ["tallyring_store_failing", "tallyring_commits_failed_total"];
        rows.map(|row| admin.metric(row))
    };
    assert_eq!(told(&mut admin), [0, 0]);
    let all = stats(&mut admin);
    check(&all, "/bundled/store", format!("redb:{}", file.display()));
    check(&all, "/bundled/store_problem", Value::Null);
    fs::rename(&file, &away).unwrap();
    assert_eq!(client.get("/").body, SORRY);
    assert_eq!(told(&mut admin), [1, 1]);
    let all = stats(&mut admin);
    let problem = all.pointer("/bundled/store_problem").and_then(Value::as_str).unwrap();
    assert!(problem.contains("was moved or deleted; put it back"), "{problem}");
    check(&all, "/bundled/commits_failed", 1);
    fs::rename(&away, &file).unwrap();
    assert_eq!(client.get("/").body, WELCOME);
    assert_eq!(told(&mut admin), [0, 1]);
    check(&stats(&mut admin), "/bundled/store_problem", Value::Null);
}

#[test]
fn a_counter_that_fails_is_told() {
    let url = format!("http://{}/counter", nobody());
    let server = serve(&[&["--counter", &url][..], &ADMIN].concat());
    let (mut admin, mut client) = (server.admin(), server.client());
    (0..15).for_each(|_| assert_eq!(client.get("/").body, SORRY));
    let all = stats(&mut admin);
    check(&all, "/counters/0/failing", 1);
    check(&all, "/counters/0/last_call_seconds", Value::Null);
    check(&all, "/totals/visits/erred", 15);
    check(&all, "/totals/durations/count", 15);
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    let mut admin = server.admin();
    let page = admin.get("/");
    assert_eq!((page.status, page.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.field("content-security-policy").unwrap();
    for rule in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "no {rule} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "//cdn"] {
        assert!(!page.body.contains(reference), "{reference} is in the page");
    }
    for part in ["<html lang=\"en\">", "prefers-color-scheme: dark", "role=\"status\"", "viewport"]
    {
        assert!(page.body.contains(part), "{part} is not in the page");
    }
    // It has no other methods, and no other host gets it.
    for (request, status) in [
        ("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("GET /events HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("POST /events HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    ] {
        admin.send(request);
        let method = request.split(' ').next().unwrap();
        assert_eq!(admin.response_to(method).status, status, "{request}");
    }
}

/// One who watches.
struct Watcher(BufReader<TcpStream>);

impl Watcher {
    fn start(admin: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(get_request("/events").as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    /// The head of the answer.
    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "{head}");
        }
        head
    }

    /// The next event; `None` at the end.
    fn event(&mut self) -> Option<Value> {
        let mut event = String::new();
        while !event.ends_with("\n\n") {
            if self.0.read_line(&mut event).unwrap() == 0 {
                assert_eq!(event, "", "an event was cut");
                return None;
            }
        }
        let lines: Vec<_> = event.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "retry: 1000"), "{event}");
        Some(serde_json::from_str(lines[1].strip_prefix("data: ").unwrap()).unwrap())
    }

    /// Reads events until one has this.
    fn wait_for(&mut self, pointer: &str, wanted: &Value) {
        while self.event().expect("an event").pointer(pointer) != Some(wanted) {}
    }
}

#[test]
fn a_watcher_gets_the_figures_as_they_grow() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    let mut client = server.client();
    let mut watcher = Watcher::start(server.address_after("admin on "));
    let head = watcher.head();
    for line in
        ["HTTP/1.1 200 OK\r\n", "content-type: text/event-stream\r\n", "connection: close\r\n"]
    {
        assert!(head.contains(line), "{line:?} is not in {head}");
    }
    assert!(!head.contains("content-length"), "{head}");
    check(&watcher.event().unwrap(), "/totals/visits/welcomed", 0);
    for visits in 1..4 {
        assert_eq!(client.get("/").body, WELCOME);
        watcher.wait_for("/totals/visits/welcomed", &visits.into());
    }
    // Others are answered meanwhile.
    assert_eq!(server.admin().get("/livez").status, 200);
}

#[test]
fn a_head_only_request_for_events_gets_no_stream() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    let mut admin = server.admin();
    admin.send("HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(admin.response_to("HEAD").field("connection"), Some("close"));
    assert!(admin.is_closed());
}

#[test]
fn only_so_many_may_watch() {
    const WATCHERS_MAX: usize = 16;
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    let admin = server.address_after("admin on ");
    let start = || {
        let mut watcher = Watcher::start(admin);
        assert!(watcher.head().starts_with("HTTP/1.1 200 "));
        watcher
    };
    let mut watchers: Vec<_> = (0..WATCHERS_MAX).map(|_| start()).collect();
    let mut other = server.admin();
    let refused = other.get("/events");
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("5")));
    assert_eq!(refused.body, "too many watch already\n");
    // The same connection still gets other answers.
    assert_eq!(other.get("/livez").status, 200);
    // One who leaves makes room, once the server has noticed.
    drop(watchers.pop());
    while !Watcher::start(admin).head().starts_with("HTTP/1.1 200 ") {}
    assert!(watchers.iter_mut().all(|watcher| watcher.event().is_some()));
}

#[test]
fn the_drain_ends_the_stream() {
    let stub = Stub::answering(COUNTED);
    let mut server = serve_with(&stub, &ADMIN);
    let admin = server.address_after("admin on ");
    let mut client = server.client();
    let mut watcher = Watcher::start(admin);
    watcher.head();
    assert!(watcher.event().is_some());
    // A head that is not whole keeps the worker from ending.
    client.send("GET / HTTP/1.1\r\n");
    server.signal(Signal::TERM);
    watcher.wait_for("/state", &"stopping".into());
    assert_eq!(watcher.event(), None);
    assert_eq!(server.admin().get("/events").status, 503);
    client.send("Host: a\r\n\r\n");
    assert_eq!(client.response().body, WELCOME);
    assert_eq!(server.wait().0.code(), Some(0));
    assert_eq!(watcher.0.read(&mut [0]).unwrap_or(0), 0);
}
