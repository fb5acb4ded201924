//! Start and stop: arguments, errors and their exit codes, signals, the drain, the admin listener.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    sync::mpsc,
    thread,
};

use common::{
    Books, COUNTED, Gate, PATIENCE, Running, SORRY, Server, Signal, Stub, WELCOME, get_request,
    limited, nobody, reserve, run, serve, tallyring,
};

#[test]
fn the_start_up_line_tells_what_runs() {
    let stub = Stub::answering(COUNTED);
    let server = serve(&["--counter", &stub.url()]);
    for word in [
        &format!("tallyring {} serves http://127.0.0.1:", env!("CARGO_PKG_VERSION")),
        "with 2 workers on core",
        "by ",
        &format!("visits go to {}", stub.url()),
    ] {
        assert!(server.line.contains(word), "{word:?} is not in {:?}", server.line);
    }
}

#[test]
fn wrong_arguments_are_one_line_and_code_2() {
    for (arguments, word) in [
        (&["--wrong"][..], "--wrong"),
        (&["fly"], "fly"),
        (&["--listen", "here"], "--listen"),
        (&["--workers", "0"], "--workers"),
        (&["--workers", "1", "--cores", "0"], "--cores"),
        (&["--cores", "4000"], "4000"),
        (&["--cores", "3-1"], "--cores"),
        (&["--driver", "steam"], "steam"),
        (&["--counter", "https://a/"], "https:// is not supported yet"),
        (&["--counter", "counter:80"], "--counter"),
        (&["--counter-timeout", "soon"], "--counter-timeout"),
        (&["--head-max", "1"], "head-max"),
        (&["--target-max", "16KiB"], "target-max"),
        (&["--head-fields-max", "1000"], "head-fields-max"),
        (&["--connections-max", "0"], "connections-max"),
        (&["--connections-max", "99999999999"], "connections-max"),
        (&["--counter-connections-max", "0"], "counter-connections-max"),
        (&["--config", "/no/such/file"], "/no/such/file"),
        (&["--welcome", "/no/such/page"], "/no/such/page"),
        (&["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"], "twice"),
        (
            &["--listen", "0.0.0.0:1", "--listen", "127.0.0.1:1"],
            "0.0.0.0:1 and 127.0.0.1:1 conflict",
        ),
        (
            &["--listen", "0.0.0.0:1", "--admin", "127.0.0.1:1"],
            "0.0.0.0:1 and 127.0.0.1:1 conflict",
        ),
        (
            &["--admin", "127.0.0.1:1", "--listen", "127.0.0.1:1"],
            "--listen has 127.0.0.1:1 already",
        ),
        (&["--admin", "on"], "--admin"),
        (&["--admin-hosts", "site:9300"], "--admin-hosts"),
        (&["counter", "--counter-hosts", "http://counter"], "--counter-hosts"),
        (&["counter", "--store", "cloud"], "--store"),
        (&["check", "--log-format", "xml"], "xml"),
    ] {
        let (code, out, error) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert_eq!((out.as_str(), error.lines().count()), ("", 1), "{arguments:?}: {error}");
        assert!(error.starts_with("tallyring: ") && error.contains(word), "{arguments:?}: {error}");
    }
}

#[test]
fn the_query_of_a_url_is_never_shown() {
    let stub = Stub::answering(COUNTED);
    let url = format!("{}?token=s3cret", stub.url());
    let shown = format!("{}?…", stub.url());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file("good", &format!("[[route]]\npath = \"/\"\ncounter = \"{url}\"\n"));
    let bad = file("bad", "counter = \"https://counter/?token=s3cret\"\n");
    let check = |arguments: &[&str], variable: &str, words: &str| {
        let mut command = tallyring();
        command.args(arguments).env("TALLYRING_COUNTER", variable);
        let output = command.env("TALLYRING_HEALTH_URL", variable).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        let said = said.concat();
        assert!(said.contains(words), "{arguments:?}: no {words:?} in {said}");
        assert!(!said.contains("s3cret"), "{arguments:?}: {said}");
    };
    check(&["check"], &url, &format!("counter                  {shown}  (environment"));
    check(&["check", "--counter", &url], "", &format!("GET, HEAD to {shown}; welcome"));
    check(&["check", "--config", &good], "", &format!("GET, HEAD to {shown}; welcome"));
    check(&["check", "--config", &bad], "", "\"https://counter/?…\": https:// is not supported");
    check(&["health"], &url, &format!("healthy: {shown} answers 200"));
    check(&["--help"], &url, "TALLYRING_COUNTER");
    check(&["health", "--help"], &url, "TALLYRING_HEALTH_URL");
    let wrong = "https://user:s3cret@counter/?token=s3cret";
    check(&["check"], wrong, "https://…@counter/?…");
    check(&["check", "--counter", wrong], "", "https://…@counter/?…");
    check(&["check", &url], "", &shown);
    let mut server = serve(&["--counter", &url]);
    assert_eq!(server.visit(), WELCOME);
    assert!(
        server.line.contains(&format!("visits go to {shown}; ")) || server.line.ends_with(&shown)
    );
    assert!(!server.line.contains("s3cret"));
    server.signal(Signal::TERM);
    let lines = server.wait().1;
    assert!(!lines.concat().contains("s3cret"), "{lines:?}");
}

#[test]
fn help_is_for_newcomers() {
    for (arguments, words) in [
        (
            &["--help"][..],
            &["doctor", "--counter", "TALLYRING_COUNTER", "Examples", "[default: 5s]"][..],
        ),
        (&["counter", "--help"], &["--store", "redb:PATH", "127.0.0.1:3001"]),
        (&["doctor", "--help"], &["Exits with 0"]),
        (&["help"], &["doctor", "--counter", "Examples"]),
        (&["help", "counter"], &["--store", "redb:PATH", "127.0.0.1:3001"]),
        (&["-V"], &[concat!("tallyring ", env!("CARGO_PKG_VERSION"), "\n")]),
        (
            &["--version"],
            &[
                concat!("tallyring ", env!("CARGO_PKG_VERSION"), "\n"),
                "commit ",
                " by rustc 1.",
                "io_uring",
                "epoll",
            ],
        ),
    ] {
        let (code, out, error) = run(arguments);
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}");
        for word in words {
            assert!(out.contains(word), "{arguments:?} does not say {word:?}:\n{out}");
        }
    }
}

#[test]
fn settings_come_from_the_first_source_that_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    fs::write(&file, "admin-hosts = \"a, B.\"\ncounter-timeout = \"1s\"\nhead-timeout = \"2s\"\nidle-timeout = \"3s\"\n")
        .unwrap();
    let arguments = ["--config", file.to_str().unwrap(), "--counter-timeout", "7s"];
    let settings = Settings::of(&arguments, &[("TALLYRING_HEAD_TIMEOUT", "8s")]);
    settings.check("counter-timeout", "7s  (flag --counter-timeout)");
    settings.check("head-timeout", "8s  (environment TALLYRING_HEAD_TIMEOUT)");
    settings.check("idle-timeout", &format!("3s  (file {} line 4)", file.display()));
    settings.check("body-timeout", "30s  (default)");
    settings.check("admin-hosts", &format!("a,B  (file {} line 1)", file.display()));
}

#[test]
fn cores_are_named_once_however_many_workers_share_them() {
    let cores = |workers| {
        let all = Settings::of(&["--workers", workers], &[]).0;
        all.lines().find(|line| line.starts_with("cores ")).unwrap().to_owned()
    };
    // On less than 500 cores.
    assert_eq!(cores("500"), cores("1000"));
    let server = serve(&["--counter", "http://127.0.0.1:1/", "--workers", "9"]);
    let (_, named) = server.line.split_once("with 9 workers on core").unwrap();
    let (named, _) = named.trim_start_matches('s').split_once(" by ").unwrap();
    assert!(named.len() < "0,1,2,3,4,5,6,7,8".len(), "{named}");
}

#[test]
fn one_is_singular() {
    let stub = Stub::answering(COUNTED);
    let mut server = serve(&["--counter", &stub.url(), "--workers", "1"]);
    assert!(server.line.contains(" with 1 worker on core "), "{}", server.line);
    assert_eq!(server.visit(), WELCOME);
    assert!(server.stop().contains("stopped: 1 visit welcomed, 0 erred"));
}

/// The output of `check`: the value of each setting, and its source.
struct Settings(String);

impl Settings {
    #[track_caller]
    fn of(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = tallyring();
        command.arg("check").args(arguments).envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{:?}", String::from_utf8(output.stderr));
        Self(String::from_utf8(output.stdout).unwrap())
    }

    #[track_caller]
    fn check(&self, name: &str, expected: &str) {
        let is_named =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with("  "));
        let line = self.0.lines().find(is_named).expect(name);
        assert_eq!(line[name.len()..].trim(), expected, "{name}");
    }
}

#[test]
fn the_variable_of_a_switch_takes_any_word_for_yes_or_no() {
    for (words, expected) in [
        (&["true", "1", "yes", "on", "TRUE", "Yes", "ON"][..], true),
        (&["false", "0", "no", "off", "False", "NO", "Off"], false),
    ] {
        for word in words {
            let settings = Settings::of(&[], &[("TALLYRING_SHARE_PORT", word)]);
            settings
                .check("share-port", &format!("{expected}  (environment TALLYRING_SHARE_PORT)"));
        }
    }
    Settings::of(&["--share-port"], &[]).check("share-port", "true  (flag --share-port)");
    let output = tallyring().arg("check").env("TALLYRING_SHARE_PORT", "perhaps").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in ["TALLYRING_SHARE_PORT=perhaps: it must be", "yes", "off"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
fn an_empty_variable_is_not_set() {
    // All variables: the help shows them beside the flags.
    let help = ["serve", "counter", "health", "total", "backup", "restore"]
        .map(|command| run(&[command, "--help"]).1)
        .concat();
    let names = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap());
    let variables: Vec<(&str, &str)> = names.map(|name| (name, "")).collect();
    for name in ["TALLYRING_LISTEN", "TALLYRING_STORE", "TALLYRING_HEALTH_URL"] {
        assert!(variables.contains(&(name, "")), "{variables:?}");
    }
    let settings = Settings::of(&[], &variables);
    settings.check("listen", "0.0.0.0:3000  (default)");
    settings.check("share-port", "false  (default)");
    settings.check("counter", "bundled  (default)");
    // The variable that these tests set themselves.
    assert_eq!(settings.0, Settings::of(&[], &[("TALLYRING_SKIP_COUNTER_CHECK", "")]).0);
    let counter = Server::start(&["counter", "--store", "memory"], &variables);
    let url = format!("http://{}/counters", counter.address);
    let health = tallyring().args(["health", "--url", &url]).envs(variables).output().unwrap();
    assert_eq!(health.status.code(), Some(0), "{health:?}");
}

#[test]
fn workers_and_cores_from_the_strongest_source_win() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // The first core that this process may run on.
    let first = Settings::of(&["--workers", "1"], &[]);
    first.check("workers", "1  (flag --workers)");
    let core = first.0.lines().find(|line| line.starts_with("cores")).unwrap();
    let core = core.split_ascii_whitespace().nth(1).unwrap();
    let (listed, numbered) =
        (file("cores", &format!("cores = \"{core}\"\n")), file("workers", "workers = 3\n"));
    let count = [("TALLYRING_WORKERS", "3")];

    let flag = Settings::of(&["--config", &listed, "--workers", "3"], &[]);
    flag.check("workers", "3  (flag --workers)");
    assert!(flag.0.contains("  (follows from workers)\n"), "{}", flag.0);
    let flag = Settings::of(&["--config", &numbered, "--cores", core], &count);
    flag.check("workers", "1  (follows from cores)");
    flag.check("cores", &format!("{core}  (flag --cores)"));
    let variable = Settings::of(&["--config", &listed], &count);
    variable.check("workers", "3  (environment TALLYRING_WORKERS)");
    let of_file = Settings::of(&["--config", &listed], &[]);
    of_file.check("cores", &format!("{core}  (file {listed} line 1)"));
    // The server does the same.
    let stub = Stub::answering(COUNTED);
    let arguments = ["serve", "--config", &listed, "--workers", "3", "--counter", &stub.url()];
    assert!(Server::start(&arguments, &[]).line.contains("with 3 workers on core"));

    // Two from the same source contradict each other.
    let both = file("both", &format!("workers = 1\ncores = \"{core}\"\n"));
    let two = [("TALLYRING_WORKERS", "1"), ("TALLYRING_CORES", core)];
    let check_refused = |arguments: &[&str], environment: &[(&str, &str)], words: &str| {
        let mut command = tallyring();
        let output = command.args(arguments).envs(environment.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "no {words:?} in {said}");
    };
    let flags = ["check", "--workers", "1", "--cores", core];
    check_refused(&flags, &[], "flag --workers and flag --cores exclude each other");
    let variables = "environment TALLYRING_WORKERS and environment TALLYRING_CORES exclude";
    check_refused(&["check"], &two, variables);
    check_refused(&["check", "--config", &both], &[], &format!("workers and cores of file {both}"));
    Settings::of(&["--config", &both, "--workers", "1"], &two[1..]);
}

#[test]
fn check_names_the_line_of_a_route() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tallyring.toml");
    fs::write(&path, "[[route]]\npath = \"/\"\n[[route]]\npath = \"/b\"\n").unwrap();
    let settings = Settings::of(&["--config", path.to_str().unwrap()], &[]);
    let pages =
        "welcome the text \"Welcome to my site!\"; sorry the text \"Error registering your visit\"";
    for (name, line) in [("route /", 1), ("route /b", 3)] {
        let expected =
            format!("GET, HEAD to bundled; {pages}  (file {} line {line})", path.display());
        settings.check(name, &expected);
    }
    let settings = Settings::of(&[], &[]);
    settings.check("route /", &format!("GET, HEAD to bundled; {pages}  (the settings above)"));
}

#[test]
fn a_wrong_file_names_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    let check = |text: &str, words: &[&str]| {
        fs::write(&file, text).unwrap();
        let (code, _, error) = run(&["check", "--config", file.to_str().unwrap()]);
        assert_eq!((code, error.lines().count()), (2, 1), "{text:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{text:?}: {error}");
        }
    };
    check("\nworkers = \"many\"\n", &["line 2", "many"]);
    check("color = 1\n", &["line 1", "color"]);
    check("= 1\n", &["line 1"]);
    check("admin-hosts = \"site:9300\"\n", &["line 1", "site:9300"]);
    check("[[route]]\npath = \"about\"\n", &["about", "begin with /"]);
    check("[[route]]\npath = \"/\"\n[[route]]\npath = \"/\"\n", &["another route"]);
    check("[[route]]\npath = \"/\"\nmethods = []\n", &["methods"]);
    check("[[route]]\npath = \"/\"\nmethods = [\"GET\", \"GET\"]\n", &["methods"]);
    check("[[route]]\npath = \"/\"\ncounter = \"https://a/\"\n", &["https"]);
}

#[track_caller]
fn check_cannot_start(arguments: &[&str], words: &str) {
    let (code, _, error) = run(arguments);
    assert_eq!(code, 1, "{error}");
    assert!(
        error.lines().any(|line| line.starts_with("tallyring:") && line.contains(words)),
        "{error}"
    );
}

#[test]
fn a_port_in_use_is_refused_and_can_be_shared() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let mut first = serve(&["--counter", &url]);
    let address = first.address.to_string();
    let arguments = ["--listen", &address, "--counter", &url, "--admin", "off"];
    check_cannot_start(
        &arguments,
        "another process listens there already; stop it, share the port",
    );
    check_cannot_start(&["counter", "--store", "memory", "--listen", &address], "already; choose");
    assert_eq!(first.visit(), WELCOME);
    let second = serve(&["--counter", &url, "--listen", &address, "--share-port"]);
    assert_eq!(second.address, first.address);
    // Not killed: the kernel would give a killed one its share of connections for a while.
    first.stop();
    assert_eq!(second.visit(), WELCOME);
}

#[test]
fn one_of_many_simultaneous_starts_serves() {
    const STARTS: usize = 8;
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let (_reserved, address) = reserve();
    let address = address.to_string();
    let arguments = ["--listen", &address, "--counter", &url, "--admin", "off", "--workers", "2"];
    let (said, lines) = mpsc::channel();
    let start = |_| {
        let mut child = tallyring().args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let said = said.clone();
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| said.send(line))
        });
        Running(child)
    };
    let _starts: Vec<_> = (0..STARTS).map(start).collect();
    let (mut serving, mut refused) = (0, 0);
    while serving + refused < STARTS {
        let line = lines.recv_timeout(PATIENCE).expect("each says what became of it");
        serving += usize::from(line.contains(" serves http://"));
        refused += usize::from(line.contains("another process listens there already"));
    }
    assert_eq!((serving, refused), (1, STARTS - 1));
}

#[test]
fn a_server_can_be_started_again_at_once() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let mut server = serve(&["--counter", &url]);
    let address = server.address.to_string();
    for signal in [Signal::TERM, Signal::KILL, Signal::KILL, Signal::TERM] {
        let mut client = server.client();
        assert_eq!(client.get("/").body, WELCOME);
        server.signal(signal);
        server.wait();
        server = serve(&["--counter", &url, "--listen", &address]);
    }
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn a_port_held_by_a_connection_is_not_reported_as_a_listener() {
    let stub = Stub::answering(COUNTED);
    // Bound first: a port that the connect chooses may be used by another connection too.
    let outgoing =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    outgoing.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    outgoing.connect(&stub.address.into()).unwrap();
    let outgoing = TcpStream::from(outgoing);
    let address = outgoing.local_addr().unwrap().to_string();
    let arguments = ["--listen", &address, "--counter", &stub.url(), "--admin", "off"];
    let words =
        format!("in use by a connection ({address} to {}), not by a listener", stub.address);
    check_cannot_start(&arguments, &words);
}

#[test]
fn an_admin_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments =
        ["--listen", "127.0.0.1:0", "--counter", "http://127.0.0.1:1/", "--admin", &address];
    check_cannot_start(&arguments, "--admin");
}

#[test]
fn visits_under_way_end_before_the_server_does() {
    for driver in ["auto", "epoll"] {
        let (stub, gate, arrived) = Stub::gated();
        let mut server = serve(&["--counter", &stub.url(), "--driver", driver, "--workers", "1"]);
        let mut idle = server.client();
        assert_eq!(idle.get("/other").status, 404);
        let mut under_way = server.client();
        // Two: one that is being registered, and one behind it that was sent already.
        under_way.send(get_request("/") + "GET / HTTP/1.1\r\n");
        arrived.recv_timeout(PATIENCE).unwrap();
        server.signal(Signal::TERM);
        server.wait_for_line("no new connections");
        // An idle client is closed, and no new one is accepted.
        assert!(idle.is_closed());
        assert!(TcpStream::connect(server.address).is_err());
        gate.open();
        under_way.send("Host: a\r\n\r\n");
        assert_eq!(under_way.response().body, WELCOME);
        let last = under_way.response();
        assert_eq!((last.body.as_str(), last.field("connection")), (WELCOME, Some("close")));
        assert!(under_way.is_closed());
        let (status, lines) = server.wait();
        assert_eq!(status.code(), Some(0), "{driver}: {lines:?}");
        let last = lines.last().unwrap();
        assert!(last.contains("stopped: 2 visits welcomed, 0 erred, 0 refused"), "{lines:?}");
    }
}

#[test]
fn clients_that_came_before_the_signal_are_served() {
    for driver in ["auto", "epoll"] {
        let stub = Stub::answering(COUNTED);
        let mut server = serve(&["--counter", &stub.url(), "--driver", driver]);
        // It accepts nobody meanwhile: the kernel queues the clients and what they send.
        let mut clients = server.while_stopped(|| {
            let mut clients: Vec<_> = (0..20).map(|_| server.client()).collect();
            for client in &mut clients {
                client.send(get_request("/") + &get_request("/"));
            }
            server.signal(Signal::TERM);
            clients
        });
        for client in &mut clients {
            assert_eq!(client.response().body, WELCOME, "{driver}");
        }
        drop(clients);
        assert_eq!(server.wait().0.code(), Some(0));
    }
}

#[test]
fn a_request_that_has_begun_before_the_signal_is_served() {
    for driver in ["auto", "epoll"] {
        let stub = Stub::answering(COUNTED);
        let mut server = serve(&["--counter", &stub.url(), "--driver", driver]);
        let mut client = server.client();
        assert_eq!(client.get("/").body, WELCOME);
        // It reads nothing of it before the signal.
        server.while_stopped(|| {
            client.send("GET / HTTP/1.1\r\n");
            server.signal(Signal::TERM);
        });
        server.wait_for_line("no new connections");
        client.send("Host: a\r\n\r\n");
        assert_eq!(client.response().body, WELCOME, "{driver}");
        assert!(client.is_closed());
        assert_eq!(server.wait().0.code(), Some(0), "{driver}");
    }
}

#[test]
fn others_leave_the_bundled_counter_in_a_time_of_its_own() {
    let mut server = serve(&["--counter-listen", "127.0.0.1:0"]);
    let mut other = common::Client::connect(server.address_after("visits go to "));
    assert_eq!(other.get("/counter").body, "0\n");
    // Half a request, which ends never.
    other.send("GET / HTTP/1.1\r\n");
    server.signal(Signal::TERM);
    let (status, lines) = server.wait();
    assert_eq!(status.code(), Some(0), "{lines:?}");
    let told = "others have not left the bundled counter in the time that they have after the last visit (2s); \
                connections that are left are cut";
    assert!(lines.iter().any(|line| line.ends_with(told)), "{lines:?}");
}

#[test]
fn the_time_to_finish_is_bounded() {
    let (stub, _gate, arrived) = Stub::gated();
    let mut server = serve(&["--counter", &stub.url(), "--drain-timeout", "200ms"]);
    let mut under_way = server.client();
    under_way.send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    server.signal(Signal::INT);
    let (status, lines) = server.wait();
    assert_eq!(status.code(), Some(0), "{lines:?}");
    let last = lines.last().unwrap();
    assert!(last.contains("; 1 connection was closed unfinished"), "{lines:?}");
    let told = "visits have not ended in the time of --drain-timeout (200ms); connections that are left are cut";
    assert!(lines.iter().any(|line| line.ends_with(told)), "{lines:?}");
    // The counter has the call: the visit must be in a book.
    let books = Books { welcomed: 0, erred: 0, refused: 0, abandoned: 1 };
    assert_eq!(Books::read(last), books);
    assert!(under_way.is_closed());
}

#[test]
fn a_second_signal_ends_at_once() {
    let (stub, _gate, arrived) = Stub::gated();
    let mut server = serve(&["--counter", &stub.url()]);
    let mut under_way = server.client();
    under_way.send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    server.signal(Signal::TERM);
    server.wait_for_line("no new connections");
    server.signal(Signal::TERM);
    let (status, lines) = server.wait();
    assert_eq!(status.code(), Some(143), "{lines:?}");
    assert_eq!(Books::read(lines.last().unwrap()).abandoned, 1);
}

#[test]
fn the_admin_listener_reports_the_state() {
    // The first visit is answered at once, the second when the gate opens.
    let (gate, (asked, arrived)) = (Gate::default(), mpsc::channel());
    let open = gate.clone();
    let stub = Stub::start(move |_, mut peer| {
        peer.request();
        peer.send(COUNTED);
        while peer.request().is_some() {
            asked.send(()).unwrap();
            open.wait();
            peer.send(COUNTED);
        }
    });
    let mut server = serve(&["--counter", &stub.url(), "--workers", "1", "--admin", "127.0.0.1:0"]);
    let mut admin = server.admin();
    assert_eq!(admin.get("/livez").body, "alive\n");
    assert_eq!(admin.get("/readyz").body, "ready\n");
    assert_eq!(admin.get("/none").status, 404);
    let mut client = server.client();
    assert_eq!(client.get("/").body, WELCOME);
    let mut metrics = |method: &str, accept: &str| {
        admin.send(format!("{method} /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n"));
        let metrics = admin.response_to(method);
        assert_eq!((metrics.status, metrics.field("vary")), (200, Some("accept")));
        let has_end = metrics.body.lines().last() == Some("# EOF");
        (metrics.field("content-type").unwrap().to_owned(), has_end, metrics.body.is_empty())
    };
    let open = "Accept: application/openmetrics-text; version=1.0.0, text/plain;q=0.5\r\n";
    let open_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let plain_type = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(metrics("GET", open), (open_type.to_owned(), true, false));
    assert_eq!(metrics("HEAD", open), (open_type.to_owned(), false, true));
    for accept in ["", "Accept: */*\r\n"] {
        assert_eq!(metrics("GET", accept), (plain_type.to_owned(), false, false));
        assert_eq!(metrics("HEAD", accept), (plain_type.to_owned(), false, true));
    }
    assert_eq!(admin.metric("tallyring_visits_total{outcome=\"welcomed\""), 1);
    assert_eq!(admin.metric("tallyring_visits_total{outcome=\"erred\""), 0);
    assert_eq!(admin.metric("tallyring_connections{peer=\"client\""), 1);
    assert_eq!(admin.metric("tallyring_visits_total{outcome=\"refused\""), 0);
    assert_eq!(admin.metric("tallyring_driver{driver="), 1);
    // While it drains it is alive and not ready.
    client.send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    server.signal(Signal::TERM);
    server.wait_for_line("no new connections");
    assert_eq!(admin.get("/livez").body, "alive\n");
    assert_eq!(admin.get("/readyz").status, 503);
    gate.open();
    assert_eq!(client.response().body, WELCOME);
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn few_open_files_are_enough_to_serve_some() {
    let stub = Stub::answering(COUNTED);
    let flags = ["--workers", "1", "--listen", "127.0.0.1:0", "--admin", "off", "--counter"];
    let command = limited("-n 64", &[&flags[..], &[&stub.url()]].concat());
    let server = Server::spawn(command, tempfile::tempdir().unwrap());
    // Far more clients than files: each is served, and idle ones are closed.
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut client = server.client();
            assert_eq!(client.get("/").body, WELCOME);
            client
        })
        .collect();
    drop(clients);
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn the_doctor_tells_what_it_found() {
    let (code, out, error) = run(&["doctor"]);
    assert!((0..=1).contains(&code), "{out}{error}");
    for word in [
        "kernel",
        "io_uring",
        "driver",
        "locked memory",
        "open files",
        "cores",
        "net.core.somaxconn",
    ] {
        assert!(out.contains(word), "no {word:?} in\n{out}");
    }
    let shortfalls = out.lines().filter(|line| line.starts_with("SHORT")).count();
    let remedies = out.lines().filter(|line| line.contains("remedy: ")).count();
    assert_eq!(shortfalls, remedies, "{out}");
    assert_eq!(code == 0, out.contains("io_uring; epoll is the fallback"), "{out}");
}

#[test]
fn counters_are_asked_once_at_the_start_and_by_the_doctor() {
    let refused = format!("http://{}/counter?token=s3cret", nobody());
    let stub = |answer| Stub::answering(answer);
    let stubs = [
        ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", Some("it answers 404 to a GET")),
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", Some("it answers 500 to a GET")),
        ("HTTP/1.1 301 No\r\nContent-Length: 0\r\n\r\n", Some("it answers 301 to a GET")),
        ("HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n", None),
        ("HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n", None),
        (COUNTED, None),
    ]
    .map(|(answer, problem)| (stub(answer), problem));
    let cases = stubs.iter().map(|(stub, problem)| (stub.url(), *problem));
    for (url, problem) in cases.chain([(refused, Some("it does not answer: Connection refused"))]) {
        let (code, out, error) = run(&["doctor", "--counter", &url]);
        assert!((0..=1).contains(&code), "{out}{error}");
        let shown = url.replace("token=s3cret", "…");
        let line = match problem {
            Some(problem) => format!("SHORT   counter                    {shown}: {problem}"),
            None => format!("ok      counter                    {shown} answers"),
        };
        assert!(out.contains(&line), "no {line:?} in\n{out}");
        assert!(!out.contains("s3cret"), "{out}");
        let environment = [("TALLYRING_SKIP_COUNTER_CHECK", "no")];
        let server = Server::start(&["serve", "--workers", "1", "--counter", &url], &environment);
        if let Some(problem) = problem {
            let line = server.wait_for_line("may not register visits");
            assert!(line.contains("WARN") && line.contains(problem), "{line}");
        }
    }
}

/// What the doctor says of what happens meanwhile, for each of these counters.
#[track_caller]
fn check_meanwhile(counters: &[&str], expected: &[&str]) {
    let flags: Vec<_> = counters.iter().flat_map(|url| ["--counter", url]).collect();
    let (_, out, error) = run(&[&["doctor"], &flags[..]].concat());
    let said = out.lines().skip_while(|line| !line.contains(" counter  "));
    let said: Vec<_> = said.filter_map(|line| line.split_once("; until then ")).collect();
    let said: Vec<_> = said.into_iter().map(|(_, meanwhile)| meanwhile).collect();
    assert_eq!(said, expected, "{out}{error}");
}

#[test]
fn the_doctor_says_that_others_get_the_visits_only_where_one_of_them_works() {
    let works = Stub::answering(COUNTED);
    let wrong = Stub::answering("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    let urls = [nobody(), nobody()].map(|dead| format!("http://{dead}/counter"));
    let [one, other] = urls.each_ref().map(String::as_str);
    let (works, wrong) = (works.url(), wrong.url());
    let sorry = "visitors get the sorry page";
    check_meanwhile(&[one], &[sorry]);
    check_meanwhile(&[one, other], &[sorry, sorry]);
    check_meanwhile(&[one, &wrong], &[sorry, sorry]);
    let others = "other counters get its visits";
    check_meanwhile(&[one, other, &works], &[others, others]);
    check_meanwhile(&[one, &wrong, &works], &[others, "some visitors get the sorry page"]);
}

#[test]
fn the_doctor_fails_where_the_settings_are_wrong() {
    let (code, out, error) = run(&["doctor", "--sorry-status", "99"]);
    assert_eq!(code, 2, "{out}{error}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    fs::write(&file, "listen = \"nowhere\"\n").unwrap();
    let (code, out, error) = run(&["doctor", "--config", file.to_str().unwrap()]);
    assert!(code == 2 && out.contains("SHORT   settings"), "{code} {out}{error}");
    fs::write(&file, "sorry-status = 503\n").unwrap();
    let (code, out, error) = run(&["doctor", "--config", file.to_str().unwrap()]);
    assert!((0..=1).contains(&code), "{code} {out}{error}");
}

#[test]
fn a_counter_is_asked_at_the_start_by_a_get_and_only_then() {
    let (sender, asked) = mpsc::channel();
    let stub = Stub::start(move |_, mut peer| {
        while let Some(request) = peer.request() {
            let _ = sender.send(request.lines().next().unwrap_or_default().to_owned());
            peer.send(COUNTED);
        }
    });
    let flags = ["serve", "--workers", "1", "--counter", &stub.url()];
    let server = Server::start(&flags, &[("TALLYRING_SKIP_COUNTER_CHECK", "no")]);
    assert!(asked.recv_timeout(PATIENCE).unwrap().starts_with("GET "));
    assert_eq!(server.visit(), WELCOME);
    assert!(asked.recv_timeout(PATIENCE).unwrap().starts_with("POST "));
    assert!(asked.try_recv().is_err());
    drop(server);
    let server = Server::start(&flags, &[]);
    assert_eq!(server.visit(), WELCOME);
    assert!(asked.recv_timeout(PATIENCE).unwrap().starts_with("POST "));
}

#[test]
fn log_lines_may_be_json() {
    let stub = Stub::answering("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let mut server = serve(&["--counter", &stub.url(), "--log-format", "json"]);
    assert_eq!(server.visit(), SORRY);
    let line = server.stop();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let message = value["fields"]["message"].as_str().unwrap();
    assert_eq!(message, "stopped: 0 visits welcomed, 1 erred, 0 refused, 0 abandoned");
}
