//! What a service manager and a container engine see: the health check, notifications, inherited sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Command, Stdio},
};

use common::{
    COUNTED, Client, PATIENCE, Server, Signal, Stub, WELCOME, get_request, limited, nobody, run,
    serve, tallyring, with_socket,
};

/// Runs `tallyring health` with these flags; its exit code and what it says.
fn health(flags: &[&str]) -> (i32, String) {
    let (code, out, error) = run(&[&["health"], flags].concat());
    (code, out + &error)
}

#[track_caller]
fn check_health(flags: &[&str], code: i32, words: &str) {
    let (got, said) = health(flags);
    assert_eq!((got, said.lines().count()), (code, 1), "{flags:?}: {said}");
    assert!(said.contains(words), "{flags:?}: {said}");
}

#[test]
fn health_follows_the_server() {
    let (stub, gate, arrived) = Stub::gated();
    let mut server = serve(&["--counter", &stub.url(), "--admin", "127.0.0.1:0"]);
    let admin = server.address_after("admin on ").to_string();
    check_health(&["--admin", &admin], 0, &format!("healthy: http://{admin}/readyz answers 200"));
    // A server that listens on all addresses is asked on loopback.
    let port = admin.rsplit(':').next().unwrap();
    check_health(&["--admin", &format!("0.0.0.0:{port}")], 0, &format!("http://{admin}/readyz"));
    check_health(&["--url", &format!("http://{admin}/livez")], 0, "livez answers 200");
    check_health(&["--url", &format!("http://localhost:{port}/livez")], 0, "livez answers 200");
    check_health(&["--url", &format!("http://{admin}/none")], 1, "none: it answers 404");
    let mut client = server.client();
    client.send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    server.signal(Signal::TERM);
    server.wait_for_line("no new connections");
    check_health(&["--admin", &admin], 1, "it answers 503, \"not ready: it starts or stops\"");
    gate.open();
    assert_eq!(client.response().body, WELCOME);
    server.wait();
    check_health(&["--admin", &admin], 1, "it does not answer");
    check_health(&["--admin", &admin], 1, "; --admin says where to ask");
    check_health(&["--url", &format!("http://{admin}/")], 1, "; --url says where to ask");
}

#[test]
fn health_takes_the_admin_address_where_the_server_does() {
    let stub = Stub::answering("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Fine\r\n\r\n");
    let (good, bad) = (stub.address.to_string(), nobody().to_string());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    fs::write(&file, format!("admin = \"{good}\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let ask = |flags: &[&str], variable: Option<&str>| {
        let mut command = tallyring();
        command.arg("health").args(flags);
        variable.map(|value| command.env("TALLYRING_ADMIN", value));
        command.output().unwrap().status.code().unwrap()
    };
    assert_eq!(ask(&["--config", file], None), 0);
    assert_eq!(ask(&["--config", file], Some(&bad)), 1);
    assert_eq!(ask(&["--config", file, "--admin", &good], Some(&bad)), 0);
    assert_eq!(ask(&[], Some(&good)), 0);
    // The server can be given as a URL too; a flag wins over a variable in both forms.
    let ask_url = |flags: &[&str]| {
        let mut command = tallyring();
        command.arg("health").args(flags).env("TALLYRING_HEALTH_URL", format!("http://{bad}/"));
        command.env("TALLYRING_ADMIN", &good).output().unwrap().status.code().unwrap()
    };
    assert_eq!(ask_url(&[]), 1);
    assert_eq!(ask_url(&["--admin", &good]), 0);
    assert_eq!(ask_url(&["--admin", &bad, "--url", &format!("http://{good}/")]), 0);
}

#[test]
fn a_counter_keeps_its_totals_where_the_strongest_source_says() {
    let (flag, variable) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let environment = [("TALLYRING_DATA_DIR", variable.path().to_str().unwrap())];
    let store = format!("redb:{}", variable.path().join("store.redb").display());
    let flags = ["counter", "--data-dir", flag.path().to_str().unwrap()];
    let counter = Server::start(&flags, &[("TALLYRING_STORE", &store)]);
    assert!(counter.line.ends_with(&format!("{}/counter.redb", flag.path().display())));
    drop(counter);
    let arguments = [&flags[..], &["--store", &store]].concat();
    let counter = Server::start(&arguments, &environment);
    assert!(counter.line.ends_with(&store), "{}", counter.line);
}

#[test]
fn health_says_what_is_wrong() {
    check_health(
        &["--admin", "off"],
        1,
        "--admin off: it is off, so that nobody can be asked; give",
    );
    let words = "--admin 127.0.0.1:0: 127.0.0.1:0 has no port to ask at; give a --url";
    check_health(&["--admin", "127.0.0.1:0"], 1, words);
    check_health(&["--config", "/no/such/file"], 1, "/no/such/file");
    check_health(&["--url", "https://a/"], 2, "https:// is not supported");
    check_health(&["--admin", &nobody().to_string()], 1, "refused");
    for (answer, words) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", "malformed"),
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "it answers 500"),
        // A reason of one line, which does nothing to a terminal, and one that does not come.
        (
            "HTTP/1.1 500 No\r\nContent-Length: 8\r\n\r\na\x1b[31m\nb",
            "it answers 500, \"a\\u{1b}[31m\"",
        ),
        ("HTTP/1.1 500 No\r\nContent-Length: 8\r\n\r\nhalf", "it answers 500"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "answers 200"),
    ] {
        let stub = Stub::answering(answer);
        let code = i32::from(!words.ends_with("200"));
        check_health(&["--admin", &stub.address.to_string()], code, words);
    }
    let closing = Stub::start(|_, _| {});
    check_health(&["--admin", &closing.address.to_string()], 1, "it does not answer");
    let (silent, _gate, _arrived) = Stub::gated();
    let address = silent.address.to_string();
    check_health(&["--admin", &address, "--timeout", "50ms"], 1, "timed out");
}

#[test]
fn a_counter_is_asked_by_its_url() {
    let mut counter = Server::start(&["counter", "--store", "memory"], &[]);
    let url = format!("http://{}/counters", counter.address);
    check_health(&["--url", &url], 0, "answers 200");
    counter.stop();
    check_health(&["--url", &url], 1, "it does not answer");
}

/// The status of one request for `path`, with these fields.
fn status_of(address: SocketAddr, method: &str, path: &str, fields: &str) -> (u16, String) {
    let mut client = Client::connect(address);
    client.send(format!("{method} {path} HTTP/1.1\r\n{fields}\r\n"));
    let response = client.response();
    (response.status, response.body)
}

#[test]
fn the_admin_listener_answers_to_its_own_names() {
    let stub = Stub::answering(COUNTED);
    let flags = ["--counter", &stub.url(), "--admin", "127.0.0.1:0", "--admin-hosts", "site,a.b"];
    let server = serve(&flags);
    let admin = server.address_after("admin on ");
    let own = admin.to_string();
    for host in [&own, "localhost", "LOCALHOST:9300", "[::1]", "site", "Site.:80", "a.b"] {
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(
                status_of(admin, "GET", path, &format!("Host: {host}\r\n")).0,
                200,
                "{host}"
            );
        }
    }
    for host in ["evil.example", "site.evil.example:9300", "10.0.0.1"] {
        for path in ["/livez", "/readyz", "/metrics", "/"] {
            let (status, said) = status_of(admin, "GET", path, &format!("Host: {host}\r\n"));
            assert_eq!((status, said.lines().count()), (421, 1), "{host}: {said}");
            assert!(said.contains("--admin-hosts"), "{said}");
        }
    }
    let mut old = Client::connect(admin);
    old.send("GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!(old.response().status, 200);
    // The site itself answers to any.
    assert_eq!(status_of(server.address, "GET", "/", "Host: evil.example\r\n").1, WELCOME);
    check_health(&["--admin", &own], 0, "answers 200");
    check_health(&["--url", &format!("http://localhost:{}/livez", admin.port())], 0, "answers 200");
}

#[test]
fn a_counter_answers_to_its_own_names_and_to_no_page() {
    let arguments = ["counter", "--store", "memory", "--listen", "0.0.0.0:0"];
    let environment = [("TALLYRING_COUNTER_HOSTS", "counter")];
    let counter = Server::start(&arguments, &environment);
    let address = SocketAddr::from(([127, 0, 0, 1], counter.address.port()));
    let post = |fields: &str| {
        let fields = format!("{fields}Content-Length: 0\r\n");
        status_of(address, "POST", "/counter", &fields)
    };
    // It listens on all addresses, so any address may be its own.
    for (host, total) in [("counter:3001", "1\n"), ("localhost", "2\n"), ("192.0.2.1:3001", "3\n")]
    {
        assert_eq!(post(&format!("Host: {host}\r\n")), (200, total.to_owned()), "{host}");
    }
    let (status, said) = post("Host: evil.example\r\n");
    assert_eq!((status, said.lines().count()), (421, 1), "{said}");
    assert!(said.contains("--counter-hosts"), "{said}");
    for origin in ["https://evil.example", "null", "http://localhost"] {
        let (status, said) = post(&format!("Host: localhost\r\nOrigin: {origin}\r\n"));
        assert_eq!((status, said.lines().count()), (403, 1), "{said}");
        for method in ["GET", "OPTIONS"] {
            let fields = format!("Host: localhost\r\nOrigin: {origin}\r\n");
            assert_eq!(status_of(address, method, "/counter", &fields).0, 403);
        }
    }
    assert_eq!(status_of(address, "GET", "/counter", "Host: localhost\r\n").1, "3\n");
    // Workers send the host of the URL.
    let site = serve(&["--counter", &format!("http://localhost:{}/counter", address.port())]);
    assert_eq!(site.visit(), WELCOME);
}

/// The service manager's end of the notifications.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify").to_str().unwrap().to_owned();
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, _directory: directory }
    }

    fn receive(&self) -> String {
        let mut buffer = [0; 1024];
        let count = self.socket.recv(&mut buffer).expect("a notification");
        String::from_utf8(buffer[..count].to_vec()).unwrap().trim_end().to_owned()
    }

    /// Discards all notifications that have arrived.
    fn discard(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 1024]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// The next notification that is not for the watchdog.
    fn receive_other(&self) -> String {
        std::iter::repeat_with(|| self.receive()).find(|said| said != "WATCHDOG=1").unwrap()
    }
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_stop() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    for arguments in [
        &["serve", "--workers", "2", "--counter", &url][..],
        &["serve", "--workers", "2"],
        &["counter", "--store", "memory"],
    ] {
        let manager = Manager::new();
        let environment = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "20000")];
        let mut server = Server::start(arguments, &environment);
        assert_eq!(manager.receive(), "READY=1", "{arguments:?}");
        // It comes again and again, since all workers answer.
        for _ in 0..5 {
            assert_eq!(manager.receive(), "WATCHDOG=1", "{arguments:?}");
        }
        server.signal(Signal::HUP);
        let reloading = manager.receive_other();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        let said = match arguments[0] {
            "serve" => "settings and pages were read anew",
            _ => "a counter has nothing to read anew",
        };
        assert_eq!(manager.receive_other(), format!("READY=1\nSTATUS={said}"));
        server.stop();
        assert_eq!(manager.receive_other(), "STOPPING=1");
    }
}

#[test]
fn the_service_manager_is_told_why_a_reload_failed() {
    let stub = Stub::answering(COUNTED);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap();
    let arguments = ["serve", "--workers", "1", "--counter", &stub.url(), "--config", path];
    let manager = Manager::new();
    let server = Server::start(&arguments, &[("NOTIFY_SOCKET", manager.path.as_str())]);
    assert_eq!(manager.receive(), "READY=1");
    for (settings, said) in [
        (
            "\nbody-max = \"lots\"\n",
            format!("stay as they were: {path} line 2: body-max = \"lots\": "),
        ),
        ("\nbody-max = 5\n", String::from("READY=1\nSTATUS=settings and pages were read anew")),
    ] {
        fs::write(&file, settings).unwrap();
        server.signal(Signal::HUP);
        assert!(manager.receive().starts_with("RELOADING=1\n"));
        let notified = manager.receive();
        assert!(notified.starts_with("READY=1\nSTATUS=") && notified.contains(&said), "{notified}");
    }
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn a_server_with_a_watchdog_loses_no_new_client() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    for driver in ["auto", "epoll"] {
        let manager = Manager::new();
        // It is asked each millisecond, which interrupts its accepts.
        let environment = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "4000")];
        let mut arguments = vec!["serve", "--workers", "2", "--counter", &url, "--driver", driver];
        // A short deadline makes for a short tick, at which the answers come.
        arguments.extend(["--counter-idle-timeout", "20ms"]);
        let mut server = Server::start(&arguments, &environment);
        for _ in 0..500 {
            assert_eq!(server.visit(), WELCOME, "{driver}");
            manager.discard();
        }
        assert!(server.stop().contains("500 visits welcomed"), "{driver}");
    }
}

#[test]
fn a_service_manager_that_is_gone_stops_nothing() {
    let stub = Stub::answering(COUNTED);
    let arguments = ["serve", "--workers", "1", "--counter", &stub.url()];
    let environment = [("NOTIFY_SOCKET", "/no/such/socket"), ("WATCHDOG_USEC", "20000")];
    let mut server = Server::start(&arguments, &environment);
    assert_eq!(server.visit(), WELCOME);
    server.stop();
}

fn start_with_socket(socket: &TcpListener, arguments: &[&str]) -> Server {
    let command = with_socket(socket.try_clone().unwrap(), arguments);
    Server::spawn(command, tempfile::tempdir().unwrap())
}

#[test]
fn a_socket_that_was_handed_down_outlives_the_server() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    for driver in ["auto", "epoll"] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let arguments = ["serve", "--workers", "2", "--driver", driver, "--counter", &url];
        let arguments = [&arguments[..], &["--admin", "off", "--listen", "127.0.0.1:1"]].concat();
        for _ in 0..3 {
            // They connect while no server runs, and wait.
            let mut early: Vec<_> = (0..20).map(|_| Client::connect(address)).collect();
            early.iter_mut().for_each(|client| client.send(get_request("/")));
            let mut server = start_with_socket(&socket, &arguments);
            assert_eq!(server.address, address);
            for client in &mut early {
                assert_eq!(client.response().body, WELCOME, "{driver}");
            }
            assert_eq!(server.visit(), WELCOME);
            drop(early);
            server.stop();
        }
    }
}

#[test]
fn a_counter_serves_on_a_socket_that_was_handed_down() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut early = Client::connect(socket.local_addr().unwrap());
    early.send("POST /counter HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    let mut counter = start_with_socket(&socket, &["counter", "--store", "memory"]);
    assert_eq!(early.response().body.trim_end(), "1");
    drop(early);
    counter.stop();
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let stub = Stub::answering(COUNTED);
    let connected = TcpStream::connect(stub.address).unwrap();
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    for socket in [OwnedFd::from(connected), datagram.into(), null.into()] {
        let output = with_socket(socket, &["serve", "--admin", "off"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("socket 1 of the service manager's"), "{said}");
    }
}

#[test]
fn sockets_of_another_process_are_not_taken() {
    let stub = Stub::answering(COUNTED);
    let environment = [("LISTEN_FDS", "1"), ("LISTEN_PID", "1")];
    let mut server = Server::start(&["serve", "--counter", &stub.url()], &environment);
    assert_eq!(server.visit(), WELCOME);
    server.stop();
}

#[test]
fn an_idle_client_may_send_one_more_request() {
    for driver in ["auto", "epoll"] {
        let stub = Stub::answering(COUNTED);
        let mut server = serve(&["--counter", &stub.url(), "--driver", driver]);
        let mut client = server.client();
        assert_eq!(client.get("/").body, WELCOME);
        server.while_stopped(|| {
            client.send(get_request("/"));
            server.signal(Signal::TERM);
        });
        server.wait_for_line("no new connections");
        assert_eq!(client.response().body, WELCOME, "{driver}");
        server.wait();
        // And one whose request comes after the signal.
        let mut server = serve(&["--counter", &stub.url(), "--driver", driver]);
        let mut client = server.client();
        assert_eq!(client.get("/").body, WELCOME);
        server.signal(Signal::TERM);
        server.wait_for_line("no new connections");
        // The line comes before the worker has the command.
        let last = loop {
            let answer = client.get("/");
            assert_eq!(answer.body, WELCOME, "{driver}");
            if answer.field("connection").is_some() {
                break answer;
            }
        };
        assert_eq!(last.field("connection"), Some("close"), "{driver}");
        assert!(client.is_closed());
        server.wait();
    }
}

/// `tallyring` with `JOURNAL_STREAM` set to `stream`, an expression of the shell: it tells whether standard error is
/// the journal.
fn journaled(stream: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("bash");
    let script = format!("export JOURNAL_STREAM={stream}; exec \"$@\"");
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_tallyring")]).args(arguments);
    command.stdin(Stdio::null());
    command
}

const STANDARD_ERROR: &str = "$(stat -L -c %d:%i /proc/self/fd/2)";

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let arguments = ["serve", "--counter", &url, "--admin", "off", "--listen", "127.0.0.1:0"];
    let start = |stream: &str, further: &[&str]| {
        let arguments = [&arguments[..], further].concat();
        Server::spawn(journaled(stream, &arguments), tempfile::tempdir().unwrap())
    };
    let mut server = start(STANDARD_ERROR, &[]);
    assert!(server.line.starts_with("<6>tallyring 0."), "{}", server.line);
    assert!(server.stop().starts_with("<6>stopped: "));
    // The variable is inherited by processes that write elsewhere.
    let mut server = start("1:1", &[]);
    assert!(server.line.starts_with("20"), "{}", server.line);
    server.stop();
    let mut server = start(STANDARD_ERROR, &["--log-format", "text"]);
    assert!(server.line.starts_with("20"), "{}", server.line);
    server.stop();
    let mut server = start("", &["--log-format", "journal"]);
    assert!(server.line.starts_with("<6>tallyring 0."), "{}", server.line);
    server.stop();
}

#[test]
fn the_journal_gets_errors_as_errors() {
    for arguments in [
        &["serve", "--listen", "nowhere"][..],
        &["check", "--workers", "0"],
        &["counter", "--store", "memory", "--listen", "192.0.2.1:1"],
        &["health", "--admin", &nobody().to_string()],
    ] {
        let output = journaled(STANDARD_ERROR, arguments).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("<3>") && !said.contains("tallyring: "), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn the_journal_gets_warnings_as_warnings() {
    let mut arguments = vec!["serve", "--log-format", "journal", "--listen", "192.0.2.1:1"];
    arguments.extend(["--workers", "1", "--counter", "http://127.0.0.1:1/", "--admin", "off"]);
    let output = limited("-n 64", &arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().any(|line| line.starts_with("<4>")), "{said}");
    assert!(said.lines().last().unwrap().starts_with("<3>"), "{said}");
}
