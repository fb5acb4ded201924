//! Clients that take more than their share, and more of them than there is room for: well-behaved clients are still
//! served, and the cost of the others is bounded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs, io,
    sync::mpsc,
    time::{Duration, Instant},
};

use common::{
    COUNTED, Client, Gate, PATIENCE, Server, Stub, WELCOME, get_request, limited, peak_kib, serve,
    serve_with,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// CPU time that the process has used, in ticks of 10 ms.
fn cpu_ticks(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    // proc_pid_stat(5): the name may hold anything; what follows it begins with the third field.
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[14 - 3].parse::<u64>().unwrap() + fields[15 - 3].parse::<u64>().unwrap()
}

/// How long the clients in the tests below wait. A loop that spins uses up to 300 ticks meanwhile.
const WAIT: Duration = Duration::from_secs(3);
const WAIT_TICKS_MAX: u64 = 60;

/// A server with these limits on open files and one worker, whose counter answers when the gate opens.
fn serve_gated(files: u32, driver: &str) -> (Server, Stub, Gate, mpsc::Receiver<()>) {
    let (stub, gate, arrived) = Stub::gated();
    let url = stub.url();
    let mut flags = vec!["--workers", "1", "--listen", "127.0.0.1:0", "--admin", "off"];
    flags.extend(["--driver", driver, "--counter", &url, "--counter-timeout", "60s"]);
    let command = limited(&format!("-n {files}"), &flags);
    (Server::spawn(command, tempfile::tempdir().unwrap()), stub, gate, arrived)
}

/// A client that has begun a request. When it is answered, the wait is over.
fn slow_client(server: &Server) -> Client {
    let mut client = server.client();
    client.send("GET / HTTP/1.1\r\n");
    client
}

/// The server sends nothing to this client for so long.
fn expect_silence(client: &mut Client, time: Duration) {
    client.stream.set_read_timeout(Some(time)).unwrap();
    assert!(client.try_response("GET").is_err());
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

fn visiting_client(server: &Server) -> Client {
    let mut client = server.client();
    client.send(get_request("/"));
    client
}

#[test]
fn forty_files_serve_two_hundred_clients_without_spinning() {
    for driver in ["auto", "epoll"] {
        let (server, _stub, gate, arrived) = serve_gated(40, driver);
        let mut clients: Vec<_> = (0..200).map(|_| visiting_client(&server)).collect();
        // Some are being served, none is idle; the others cannot be accepted.
        arrived.recv_timeout(PATIENCE).unwrap();
        let ticks = cpu_ticks(&server);
        expect_silence(&mut clients[0], WAIT);
        let ticks = cpu_ticks(&server) - ticks;
        assert!(ticks < WAIT_TICKS_MAX, "{ticks} ticks of CPU time to wait by {driver}");
        gate.open();
        for client in &mut clients {
            assert_eq!(client.response().body, WELCOME);
        }
        drop(clients);
        assert_eq!(server.visit(), WELCOME);
    }
}

#[test]
fn a_server_without_a_file_left_waits_and_recovers() {
    for driver in ["auto", "epoll"] {
        let (server, _stub, gate, arrived) = serve_gated(1000, driver);
        let mut clients: Vec<_> = (0..5).map(|_| visiting_client(&server)).collect();
        for _ in 0..5 {
            arrived.recv_timeout(PATIENCE).unwrap();
        }
        // From here on accept(2) fails with EMFILE, however many files it closes.
        let process = Pid::from_raw(i32::try_from(server.id()).unwrap());
        let none = Rlimit { current: Some(3), maximum: Some(1000) };
        let before = prlimit(process, Resource::Nofile, none).unwrap();
        clients.extend((0..50).map(|_| visiting_client(&server)));
        server.wait_for_line("cannot accept");
        let ticks = cpu_ticks(&server);
        expect_silence(&mut clients[0], WAIT);
        let ticks = cpu_ticks(&server) - ticks;
        assert!(ticks < WAIT_TICKS_MAX, "{ticks} ticks of CPU time to wait by {driver}");
        // Clients that were accepted before are served meanwhile.
        gate.open();
        for client in &mut clients[..5] {
            assert_eq!(client.response().body, WELCOME);
        }
        prlimit(process, Resource::Nofile, before).unwrap();
        for client in &mut clients[5..] {
            assert_eq!(client.response().body, WELCOME);
        }
    }
}

#[test]
fn clients_that_never_read_are_closed_and_cost_little() {
    const CLIENTS: usize = 200;
    const EACH_KIB_MAX: u64 = 64;
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.txt");
    fs::write(&page, vec![b'x'; 1 << 20]).unwrap();
    let stub = Stub::answering(COUNTED);
    let page = page.to_str().unwrap();
    let server = serve(&[
        "--workers",
        "1",
        "--admin",
        "127.0.0.1:0",
        "--counter",
        &stub.url(),
        "--counter-connections-max",
        "16",
        "--welcome",
        page,
        "--write-timeout",
        "2s",
    ]);
    let mut admin = server.admin();
    let mut visitor = server.client();
    visitor.send(get_request("/").repeat(16));
    for _ in 0..16 {
        assert_eq!(visitor.response().body.len(), 1 << 20);
    }
    let before = peak_kib(&server);
    // 16 MiB of answers each: far more than the kernel takes for any of them.
    let mut greedy: Vec<_> = (0..CLIENTS).map(|_| server.client()).collect();
    for client in &mut greedy {
        client.send(get_request("/").repeat(16));
    }
    assert_eq!(visitor.get("/").body.len(), 1 << 20);
    drop(visitor);
    admin.wait_for_metric("tallyring_connections{peer=\"client\"", 0);
    let grown = peak_kib(&server) - before;
    assert!(grown < CLIENTS as u64 * EACH_KIB_MAX, "{grown} KiB for {CLIENTS} clients");
    assert_eq!(server.visit().len(), 1 << 20);
    // None has read everything: the time for a write has closed them.
    let taken = io::copy(&mut greedy[0].stream, &mut io::sink()).unwrap_or(0);
    assert!(taken < 16 << 20, "{taken} bytes were taken");
}

#[test]
fn clients_that_send_slowly_get_408_and_delay_nobody() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--workers", "1", "--head-timeout", "2s"]);
    let mut visitor = server.client();
    let mut slow: Vec<_> = (0..300).map(|_| slow_client(&server)).collect();
    slow.iter_mut().for_each(|client| client.send("X: "));
    let began = Instant::now();
    // There is always another byte: a deadline that each byte moved would never pass.
    while !slow.is_empty() {
        assert!(began.elapsed() < PATIENCE, "{} are waited for still", slow.len());
        assert_eq!(visitor.get("/").body, WELCOME);
        slow.retain_mut(|client| {
            if !has_answer(client) {
                client.send("a");
                return true;
            }
            let answer = client.response();
            assert_eq!((answer.status, answer.field("connection")), (408, Some("close")));
            client.finish_sending();
            assert!(client.is_closed());
            false
        });
    }
    assert_eq!(visitor.get("/").body, WELCOME);
}

/// Whether something was received from the server.
fn has_answer(client: &Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let answer = client.stream.peek(&mut [0]).is_ok();
    client.stream.set_nonblocking(false).unwrap();
    answer
}

#[test]
fn a_body_that_is_sent_slowly_gets_408_too() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--workers", "1", "--body-timeout", "1s"]);
    let mut client = server.client();
    client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
    let began = Instant::now();
    // A byte each time the server has been silent for a moment.
    while client.stream.peek(&mut [0]).is_err() {
        assert!(began.elapsed() < PATIENCE, "the body is waited for still");
        client.send("b");
    }
    assert_eq!(client.response().status, 408);
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn no_socket_is_left_to_a_program_that_is_executed() {
    for driver in ["auto", "epoll"] {
        let stub = Stub::answering(COUNTED);
        let server = serve_with(&stub, &["--driver", driver, "--admin", "127.0.0.1:0"]);
        // A client of each kind and the counter are connected.
        let (mut client, mut admin) = (server.client(), server.admin());
        assert_eq!(client.get("/").body, WELCOME);
        assert_eq!(admin.get("/livez").status, 200);
        let mut seen = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap() {
            let entry = entry.unwrap();
            let number = entry.file_name().into_string().unwrap();
            let file = fs::read_link(entry.path()).unwrap().display().to_string();
            // Others were open before the start: standard streams, and those that the parent has left open.
            if !file.starts_with("socket:") && !file.starts_with("anon_inode:") {
                continue;
            }
            let info = format!("/proc/{}/fdinfo/{number}", server.id());
            let info = fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            // open(2): O_CLOEXEC.
            assert!(flags & 0o2_000_000 != 0, "{number}, {file}, by {driver}: {flags:o}");
            seen += 1;
        }
        // Two listeners and the admin's, two clients, the counter, the rings.
        assert!(seen >= 8, "{seen} files");
    }
}

/// For deadlines of clients: far longer than a test runs.
const LONG: &str = "1h";

/// A server with room for eight clients, whose deadlines close no client while a test runs.
fn serve_eight(stub: &Stub, driver: &str, flags: &[&str]) -> Server {
    let mut all = vec!["--workers", "1", "--connections-max", "8", "--driver", driver];
    all.extend(["--head-timeout", LONG, "--body-timeout", LONG, "--write-timeout", LONG]);
    all.extend(flags);
    serve_with(stub, &all)
}

#[test]
fn clients_that_take_long_are_closed_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.txt");
    fs::write(&page, vec![b'x'; 16 << 20]).unwrap();
    let page = page.to_str().unwrap();
    let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe";
    for driver in ["auto", "epoll"] {
        for request in ["GET / HT", body, &get_request("/")] {
            let stub = Stub::answering(COUNTED);
            let server = serve_eight(&stub, driver, &["--welcome", page]);
            let mut slow: Vec<_> = (0..8).map(|_| server.client()).collect();
            slow.iter_mut().for_each(|client| client.send(request));
            // It is accepted, though no client leaves by itself.
            let page = server.get("/").body;
            assert_eq!(page.len(), 16 << 20, "{driver}: {request:?}");
        }
    }
}

#[test]
fn an_idle_client_is_closed_before_one_that_takes_long() {
    for driver in ["auto", "epoll"] {
        let stub = Stub::answering(COUNTED);
        let server = serve_eight(&stub, driver, &[]);
        let mut slow: Vec<_> = (0..7).map(|_| slow_client(&server)).collect();
        let mut idle = server.client();
        assert_eq!(idle.get("/").body, WELCOME);
        let mut visitor = server.client();
        assert_eq!(visitor.get("/").body, WELCOME);
        assert!(idle.is_closed());
        for client in &mut slow {
            client.send("Host: a\r\n\r\n");
            assert_eq!(client.response().body, WELCOME, "{driver}");
        }
        assert_eq!(visitor.get("/").body, WELCOME);
    }
}

#[test]
fn clients_whose_visits_are_under_way_keep_their_places() {
    for driver in ["auto", "epoll"] {
        let (stub, gate, arrived) = Stub::gated();
        let server = serve_eight(&stub, driver, &["--counter-timeout", "60s"]);
        let mut clients: Vec<_> = (0..8).map(|_| visiting_client(&server)).collect();
        for _ in 0..8 {
            arrived.recv_timeout(PATIENCE).unwrap();
        }
        // A newcomer waits for longer than a slow client would keep its place.
        let mut newcomer = visiting_client(&server);
        expect_silence(&mut newcomer, Duration::from_millis(1500));
        gate.open();
        for client in &mut clients {
            assert_eq!(client.response().body, WELCOME, "{driver}");
        }
        assert_eq!(newcomer.response().body, WELCOME);
    }
}

#[test]
fn clients_that_never_pause_make_room_too() {
    for driver in ["auto", "epoll"] {
        let (stub, gate, arrived) = Stub::gated();
        let server = serve_eight(&stub, driver, &["--counter-timeout", "60s"]);
        // Longer than a first read: the second request begins when the first is answered.
        let padded = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(300));
        let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
        clients.iter_mut().for_each(|client| client.send(padded.repeat(20)));
        for _ in 0..8 {
            arrived.recv_timeout(PATIENCE).unwrap();
        }
        let mut newcomer = visiting_client(&server);
        expect_silence(&mut newcomer, Duration::from_millis(1500));
        gate.open();
        // At least one of them is told that a request was its last.
        let told = clients.iter_mut().filter_map(|client| {
            let mut answers = (0..20).map(|_| client.response());
            answers.find(|answer| answer.field("connection") == Some("close"))
        });
        assert!(told.count() >= 1, "{driver}");
        assert_eq!(newcomer.response().body, WELCOME);
    }
}

#[test]
fn half_a_request_from_many_does_not_silence_the_admin_listener() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &["--admin", "127.0.0.1:0"]);
    let half = "POST /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf";
    let mut slow: Vec<_> = (0..64).map(|_| server.admin()).collect();
    slow.iter_mut().for_each(|client| client.send(half));
    // New clients are accepted before the time for a body has passed, which would end the half requests one after the
    // other.
    for _ in 0..3 {
        assert_eq!(server.admin().get("/readyz").status, 200);
    }
}
