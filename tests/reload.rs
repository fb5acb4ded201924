//! SIGHUP: each setting that can change while the server runs does so; others, and wrong ones, stay as they were.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use common::{
    COUNTED, Client, PATIENCE, SORRY, Server, Signal, Stub, WELCOME, get_request, nobody,
    send_signal, serve, tallyring,
};

const FAILS: &str = "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";

/// A server whose settings file changes.
struct Site {
    server: Server,
    file: PathBuf,
    /// The end of the file, which does not change.
    rest: String,
    directory: tempfile::TempDir,
}

impl Site {
    /// One worker, with the admin listener. `settings` change, `rest` stays.
    fn start(settings: &str, rest: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tallyring.toml");
        fs::write(&file, format!("{settings}\n{rest}")).unwrap();
        let flags = ["--workers", "1", "--admin", "127.0.0.1:0"];
        let server = serve(&[&flags[..], &["--config", file.to_str().unwrap()]].concat());
        Self { server, file, rest: rest.to_owned(), directory }
    }

    fn with_counter(settings: &str, stub: &Stub) -> Self {
        Self::start(settings, &format!("counter = \"{}\"\n", stub.url()))
    }

    fn write(&self, settings: &str) {
        fs::write(&self.file, format!("{settings}\n{}", self.rest)).unwrap();
    }

    /// Makes it read new settings; returns the line that says what has changed.
    #[track_caller]
    fn reload(&self, settings: &str) -> String {
        self.write(settings);
        self.server.signal(Signal::HUP);
        let line = self.server.wait_for_line("SIGHUP: settings and pages");
        assert_eq!(self.metric("tallyring_config_last_reload_successful"), 1);
        line
    }

    /// Makes it read a file with a wrong setting among right ones: none applies.
    #[track_caller]
    fn fail_to_reload(&self) {
        let failed = self.metric("tallyring_config_reloads_total{outcome=\"failed\"}");
        self.write(
            "# Nothing of this holds.\nbody-max = \"7\"\nsorry-status = 599\nhead-max = \"lots\"",
        );
        self.server.signal(Signal::HUP);
        let line = self.server.wait_for_line("SIGHUP: the settings stay as they were: ");
        let place = format!("{} line 4: ", self.file.display());
        assert!(line.contains(&place) && line.contains("lots"), "{line}");
        assert_eq!(self.metric("tallyring_config_last_reload_successful"), 0);
        assert_eq!(self.metric("tallyring_config_reloads_total{outcome=\"failed\"}"), failed + 1);
    }

    /// A metric that is not of a worker.
    #[track_caller]
    fn metric(&self, row: &str) -> u64 {
        let text = self.server.admin().get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(row)).expect(row);
        line.trim().parse().expect(line)
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }
}

/// A setting applies after the reload, and after one that failed, but not before or once it was removed.
#[track_caller]
fn check(settings: &str, rest: &str, holds: impl Fn(&Site) -> bool) {
    let site = Site::start("", rest);
    assert!(!holds(&site), "{settings} before it was read");
    site.reload(settings);
    assert!(holds(&site), "{settings}");
    site.fail_to_reload();
    assert!(holds(&site), "{settings} after a reload that failed");
    site.reload("");
    assert!(!holds(&site), "{settings} after it was taken back");
}

fn counter(stub: &Stub) -> String {
    format!("counter = \"{}\"\n", stub.url())
}

/// A request gets the second status with the setting, and the first without it.
#[track_caller]
fn check_status(settings: &str, rest: &str, request: &str, statuses: (u16, u16)) {
    check(settings, rest, |site| {
        let mut client = site.server.client();
        client.send(request);
        let status = client.response().status;
        assert!(status == statuses.0 || status == statuses.1, "{settings}: {status}");
        status == statuses.1
    });
}

#[test]
fn sizes_of_requests() {
    let stub = Stub::answering(COUNTED);
    let rest = &counter(&stub);
    let padded = format!("GET / HTTP/1.1\r\nHost: a\r\nPadding: {}\r\n\r\n", "x".repeat(2000));
    check_status("head-max = \"1KiB\"\ntarget-max = 512", rest, &padded, (200, 431));
    let fields = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(10));
    check_status("head-fields-max = 10", rest, &fields, (200, 431));
    check_status("target-max = 10", rest, &get_request("/aaaaaaaaaa"), (404, 414));
    let body = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n0123456789a";
    check_status("body-max = 10", rest, body, (200, 413));
    // Larger heads need larger buffers, of which clients hold some of the old size.
    let padded = format!("GET / HTTP/1.1\r\nHost: a\r\nPadding: {}\r\n\r\n", "x".repeat(20_000));
    check_status("head-max = \"64KiB\"", rest, &padded, (431, 200));
}

#[test]
fn a_head_that_grows_is_judged_by_the_new_limits() {
    let stub = Stub::answering(COUNTED);
    let site = Site::with_counter("head-max = \"4KiB\"\ntarget-max = 512", &stub);
    let begun = |bytes| {
        let mut client = site.server.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nPadding: {}", "x".repeat(bytes)));
        client
    };
    let mut admin = site.server.admin();
    let (mut grows, mut too_large) = (begun(3000), begun(3000));
    admin.wait_for_metric("tallyring_connections{peer=\"client\"", 2);
    site.reload("head-max = \"32KiB\"");
    grows.send("x".repeat(20_000) + "\r\n\r\n");
    assert_eq!(grows.response().status, 200);
    // The client goes on with buffers of the new size.
    assert_eq!(grows.get("/").status, 200);
    let mut too_many = site.server.client();
    too_many.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(60)));
    admin.wait_for_metric("tallyring_connections{peer=\"client\"", 3);
    // Its 61 fields were within the limit when they came.
    site.reload("head-max = \"1KiB\"\ntarget-max = 512\nhead-fields-max = 50");
    too_many.send("X: y\r\n");
    assert_eq!(too_many.response().status, 431);
    too_large.send("x");
    assert_eq!(too_large.response().status, 431);
    assert_eq!(grows.get("/").status, 200);
}

#[test]
fn what_visitors_get() {
    let (good, bad) = (Stub::answering(COUNTED), Stub::answering(FAILS));
    check_status("sorry-status = 503", &counter(&bad), &get_request("/"), (200, 503));
    check("accept = \"any\"", &counter(&bad), |site| site.server.get("/").body == WELCOME);
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.html");
    fs::write(&page, "<h1>Hello</h1>").unwrap();
    let page = page.display();
    let is_page = |site: &Site| site.server.get("/").body == "<h1>Hello</h1>";
    check(&format!("welcome = \"{page}\""), &counter(&good), is_page);
    check(&format!("sorry = \"{page}\""), &counter(&bad), is_page);
}

#[test]
fn routes_come_change_and_go() {
    let stub = Stub::answering(COUNTED);
    let rest = &counter(&stub);
    let route = |path: &str| format!("[[route]]\npath = \"{path}\"\n");
    let posted = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    // The settings come before the counter's, so the tables of routes have theirs.
    let table = |path, more: &str| {
        format!("[[route]]\npath = \"{path}\"\ncounter = \"{}\"\n{more}", stub.url())
    };
    let site = Site::start("", rest);
    assert_eq!((site.server.get("/").status, site.server.get("/new").status), (200, 404));
    let bare = Site { rest: String::new(), ..site };
    let line = bare.reload(&format!("{rest}{}{}", route("/"), route("/new")));
    assert!(line.ends_with(": route /new is new"), "{line}");
    assert_eq!((bare.server.get("/").status, bare.server.get("/new").status), (200, 200));
    bare.fail_to_reload();
    assert_eq!(bare.server.get("/new").status, 200);
    let line = bare.reload(&(table("/", "methods = [\"POST\"]\n") + &table("/other", "")));
    let changes = ": route /new is gone; route / has changed; route /other is new";
    assert!(line.ends_with(changes), "{line}");
    let mut client = bare.server.client();
    client.send(posted);
    assert_eq!(client.response().body, WELCOME);
    assert_eq!((client.get("/").status, client.get("/new").status), (405, 404));
    assert_eq!(client.get("/other").body, WELCOME);
    // Not all of them are visits.
    let public = bare.directory.path().join("public");
    fs::create_dir(&public).unwrap();
    fs::write(public.join("a.txt"), "file").unwrap();
    let line = bare.reload(&format!(
        "[[route]]\npath = \"/\"\ncounted = false\ntext = \"ok\"\n\
         [[route]]\npath = \"/files/*\"\ndirectory = \"{}\"\n",
        public.display()
    ));
    let changes = ": route /other is gone; route / has changed; route /files/* is new";
    assert!(line.ends_with(changes), "{line}");
    assert_eq!(client.get("/").body, "ok");
    assert_eq!(client.get("/files/a.txt").body, "file");
    assert_eq!(client.get("/other").status, 404);
}

#[test]
fn a_counter_may_have_another_path_but_no_other_host() {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heads = Arc::clone(&asked);
    let stub = Stub::start(move |_, mut peer| {
        while let Some(head) = peer.request() {
            heads.lock().unwrap().push(head.lines().next().unwrap().to_owned());
            if !peer.send(COUNTED) {
                return;
            }
        }
    });
    let elsewhere = nobody();
    let site = Site::start(&counter(&stub), "");
    site.server.visit();
    site.reload(&format!("counter = \"http://{}/other\"\n", stub.address));
    site.server.visit();
    assert_eq!(*asked.lock().unwrap(), ["POST /counter HTTP/1.1", "POST /other HTTP/1.1"]);
    site.write(&format!("counter = \"http://{elsewhere}/\"\nbody-max = 10"));
    site.server.signal(Signal::HUP);
    let line = site.server.wait_for_line("needs a restart");
    let stays = format!("http://{}/other stays, http://{elsewhere}/ was read", stub.address);
    assert!(line.contains("SIGHUP: the counter of route / needs a restart: "), "{line}");
    assert!(line.ends_with(&stays), "{line}");
    let line = site.server.wait_for_line("read anew");
    assert!(line.ends_with(": body-max is 10, was 64KiB"), "{line}");
    assert_eq!(site.server.visit(), WELCOME);
    assert_eq!(site.metric("tallyring_config_last_reload_successful"), 1);
}

#[test]
fn times_of_clients() {
    let stub = Stub::answering(COUNTED);
    let begun = |site: &Site, bytes: &str| {
        let mut client = site.server.client();
        client.send(bytes);
        client
    };
    let body = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx";
    for (setting, bytes) in [("head-timeout", "GET / HT"), ("body-timeout", body)] {
        let site = Site::with_counter(&format!("{setting} = \"1h\""), &stub);
        // The new time applies to a wait that has begun, and to later ones.
        let mut early = begun(&site, bytes);
        site.reload(&format!("{setting} = \"20ms\""));
        assert_eq!(early.response().status, 408, "{setting}");
        site.fail_to_reload();
        assert_eq!(begun(&site, bytes).response().status, 408, "{setting}");
    }
    let site = Site::with_counter("idle-timeout = \"1h\"", &stub);
    let mut idle = site.server.client();
    assert_eq!(idle.get("/").status, 200);
    site.reload("idle-timeout = \"20ms\"");
    assert!(idle.is_closed());
    site.fail_to_reload();
    let mut idle = site.server.client();
    assert_eq!(idle.get("/").status, 200);
    assert!(idle.is_closed());
}

#[test]
fn the_time_for_a_client_to_take_an_answer() {
    let stub = Stub::answering(COUNTED);
    let site = Site::with_counter("write-timeout = \"1h\"", &stub);
    let page = site.path("page.txt");
    fs::write(&page, "x".repeat(8 << 20)).unwrap();
    let welcome = format!("welcome = \"{page}\"\n");
    site.reload(&format!("{welcome}write-timeout = \"1h\""));
    let mut admin = site.server.admin();
    let mut clients = Vec::new();
    for setting in ["write-timeout = \"20ms\"", ""] {
        let mut client = site.server.client();
        // More than the kernel buffers on both sides.
        client.send(get_request("/").repeat(4));
        clients.push(client);
        match setting {
            "" => site.fail_to_reload(),
            _ => drop(site.reload(&(welcome.clone() + setting))),
        }
        admin.wait_for_metric("tallyring_connections{peer=\"client\"", 0);
    }
}

#[test]
fn times_of_the_counter() {
    // It answers nothing.
    let silent = Stub::start(|_, mut peer| while peer.request().is_some() {});
    let site = Site::with_counter("counter-timeout = \"1h\"", &silent);
    site.reload("counter-timeout = \"20ms\"");
    assert_eq!(site.server.visit(), SORRY);
    site.fail_to_reload();
    assert_eq!(site.server.visit(), SORRY);

    let stub = Stub::answering(COUNTED);
    let site = Site::with_counter("counter-idle-timeout = \"1h\"", &stub);
    let mut admin = site.server.admin();
    for reload in [true, false] {
        site.server.visit();
        match reload {
            true => drop(site.reload("counter-idle-timeout = \"20ms\"")),
            false => site.fail_to_reload(),
        }
        admin.wait_for_metric("tallyring_connections{peer=\"counter\"", 0);
    }
}

#[test]
fn the_time_to_connect_to_the_counter() {
    // Its queue is full: the kernel drops every further SYN (listen(2), of a length of 0).
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let rest = format!("counter-timeout = \"1h\"\ncounter = \"http://{address}/\"\n");
    let site = Site::start("counter-connect-timeout = \"1h\"", &rest);
    site.reload("counter-connect-timeout = \"20ms\"");
    assert_eq!(site.server.visit(), SORRY);
    site.fail_to_reload();
    assert_eq!(site.server.visit(), SORRY);
}

#[test]
fn connections_to_the_counter_and_their_queue() {
    let (stub, gate, arrived) = Stub::gated();
    let site = Site::with_counter("", &stub);
    let begun = || {
        let mut client = site.server.client();
        client.send(get_request("/"));
        client
    };
    let mut visitors = vec![begun(), begun()];
    (0..2).for_each(|_| arrived.recv_timeout(PATIENCE).unwrap());
    // Both connections exist, and no third one is opened any more.
    site.reload("counter-connections-max = 2\ncounter-queue-max = 0");
    assert_eq!(site.server.get("/").status, 503);
    site.fail_to_reload();
    assert_eq!(site.server.get("/").status, 503);
    // One more may wait.
    site.reload("counter-connections-max = 1\ncounter-queue-max = 1");
    visitors.push(begun());
    let mut admin = site.server.admin();
    admin.wait_for_metric("tallyring_visits_in_flight{peer=\"client\"", 3);
    assert_eq!(site.server.get("/").status, 503);
    gate.open();
    for mut visitor in visitors {
        assert_eq!(visitor.response().body, WELCOME);
    }
    // Of the two, the one beyond the new number has ended.
    admin.wait_for_metric("tallyring_connections{peer=\"counter\"", 1);
    let line = site.reload("");
    assert!(line.contains("counter-connections-max is 1024, was 1"), "{line}");
    assert_eq!(site.server.visit(), WELCOME);
}

#[test]
fn connections_of_clients() {
    let stub = Stub::answering(COUNTED);
    check("connections-max = 1", &counter(&stub), |site| {
        let mut first = site.server.client();
        assert_eq!(first.get("/").status, 200);
        assert_eq!(site.server.get("/").status, 200);
        // It has made room, or it is still there.
        first.try_send(get_request("/"));
        !matches!(first.try_response("GET"), Ok(Some(_)))
    });
}

#[test]
fn the_bundled_counter_takes_as_many_connections_as_the_workers_may_open() {
    let site = Site::start("counter-connections-max = 1", "");
    // More than the counter has room for at the start: 64 in addition to those of the workers.
    site.reload("counter-connections-max = 200");
    let mut visitors: Vec<_> = (0..150).map(|_| site.server.client()).collect();
    site.server.while_stopped(|| {
        visitors.iter_mut().for_each(|visitor| visitor.send(get_request("/")));
    });
    for visitor in &mut visitors {
        assert_eq!(visitor.response().body, WELCOME);
    }
}

#[test]
fn hosts_of_the_admin_listener() {
    let stub = Stub::answering(COUNTED);
    check("admin-hosts = \"metrics.internal\"", &counter(&stub), |site| {
        let mut admin = site.server.admin();
        admin.send("GET /livez HTTP/1.1\r\nHost: metrics.internal\r\n\r\n");
        admin.response().status == 200
    });
}

#[test]
fn readiness_by_the_counter() {
    let stub = Stub::answering(FAILS);
    let site = Site::with_counter("", &stub);
    assert_eq!(site.server.visit(), SORRY);
    site.server.wait_for_line("visits are not registered");
    assert_eq!(site.server.admin().get("/readyz").status, 200);
    site.reload("ready-needs-counter = true");
    assert_eq!(site.server.admin().get("/readyz").status, 503);
    site.fail_to_reload();
    assert_eq!(site.server.admin().get("/readyz").status, 503);
    site.reload("");
    assert_eq!(site.server.admin().get("/readyz").status, 200);
}

#[test]
fn the_time_to_drain() {
    for fails in [false, true] {
        let (stub, _gate, arrived) = Stub::gated();
        let mut site = Site::with_counter("drain-timeout = \"1h\"", &stub);
        let mut visitor = site.server.client();
        visitor.send(get_request("/"));
        arrived.recv_timeout(PATIENCE).unwrap();
        site.reload("drain-timeout = \"20ms\"");
        if fails {
            site.fail_to_reload();
        }
        let books = site.server.stop_with_books();
        assert_eq!((books.welcomed, books.abandoned), (0, 1));
    }
}

#[test]
fn the_level_of_the_log() {
    let mut site = Site::start("", &format!("counter = \"http://{}/\"\n", nobody()));
    let said = "cannot connect to the counter";
    // Not logged at the default level: the next line is of the reload.
    assert_eq!(site.server.visit(), SORRY);
    site.write("log-level = \"debug\"");
    site.server.signal(Signal::HUP);
    let line = site.server.wait_for_line(" ");
    assert!(line.contains("visits are not registered"), "{line}");
    let line = site.server.wait_for_line(" ");
    assert!(line.ends_with(": log-level is debug, was info"), "{line}");
    assert_eq!(site.server.visit(), SORRY);
    site.server.wait_for_line(said);
    site.fail_to_reload();
    assert_eq!(site.server.visit(), SORRY);
    site.server.wait_for_line(said);
    site.reload("log-level = \"error\"");
    assert_eq!(site.server.visit(), SORRY);
    site.server.signal(Signal::TERM);
    let (status, lines) = site.server.wait();
    assert_eq!((status.code(), lines), (Some(0), vec![]));
}

#[test]
fn a_log_of_errors_only_has_no_other_lines() {
    let stub = Stub::answering(COUNTED);
    // Its start is logged at info, so that line never comes. The notification comes instead.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = tallyring();
    command.args(["serve", "--workers", "1", "--counter", &stub.url(), "--admin", "off"]);
    command.args(["--listen", "127.0.0.1:0", "--log-level", "error"]);
    command.env("NOTIFY_SOCKET", &socket).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut buffer = [0; 100];
    let count = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"READY=1\n");
    send_signal(&child, Signal::TERM);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn what_needs_a_restart_is_told_and_the_rest_holds() {
    let stub = Stub::answering(COUNTED);
    // Flags win over the file, so only settings without a flag here can change.
    let site = Site::with_counter("", &stub);
    site.write("share-port = true\nlog-format = \"json\"\ndriver = \"epoll\"\nbody-max = 10");
    for _ in 0..2 {
        site.server.signal(Signal::HUP);
        for said in [
            "SIGHUP: share-port needs a restart: false stays, true was read",
            "SIGHUP: driver needs a restart: auto stays, epoll was read",
            "SIGHUP: log-format needs a restart: auto stays, json was read",
        ] {
            let line = site.server.wait_for_line(" ");
            assert!(line.contains(" WARN ") && line.ends_with(said), "{line}");
        }
        site.server.wait_for_line("read anew");
    }
    let mut client = site.server.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n0123456789a");
    assert_eq!(client.response().status, 413);
    assert_eq!(site.server.visit(), WELCOME);
}

#[test]
fn flags_and_variables_still_win() {
    let stub = Stub::answering(COUNTED);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    fs::write(&file, "").unwrap();
    let url = stub.url();
    let arguments = ["serve", "--workers", "1", "--counter", &url, "--body-max", "20"];
    let environment =
        [("TALLYRING_CONFIG", file.to_str().unwrap()), ("TALLYRING_TARGET_MAX", "30")];
    let server = Server::start(&arguments, &environment);
    fs::write(&file, "body-max = 1\ntarget-max = 1\nhead-fields-max = 7\n").unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_line("read anew");
    assert!(line.ends_with("read anew: head-fields-max is 7, was 100"), "{line}");
    assert_eq!(server.visit(), WELCOME);
}

#[test]
fn pages_are_read_again_without_a_settings_file() {
    let stub = Stub::answering(COUNTED);
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.txt");
    fs::write(&page, "one").unwrap();
    let flags = ["--counter", &stub.url(), "--welcome", page.to_str().unwrap()];
    let server = serve(&flags);
    assert_eq!(server.visit(), "one");
    fs::write(&page, "other").unwrap();
    server.signal(Signal::HUP);
    server.wait_for_line("read anew");
    assert_eq!(server.visit(), "other");
    fs::remove_file(&page).unwrap();
    server.signal(Signal::HUP);
    server.wait_for_line("stay as they were");
    assert_eq!(server.visit(), "other");
}

#[test]
fn a_file_that_is_gone_changes_nothing() {
    let stub = Stub::answering(COUNTED);
    let site = Site::with_counter("body-max = 10", &stub);
    let began = site.metric("tallyring_config_last_reload_success_timestamp_seconds");
    assert!(began > 1_700_000_000);
    assert_eq!(site.metric("tallyring_config_last_reload_successful"), 1);
    assert_eq!(site.metric("tallyring_config_reloads_total{outcome=\"ok\"}"), 0);
    fs::remove_file(&site.file).unwrap();
    site.server.signal(Signal::HUP);
    let line = site.server.wait_for_line("stay as they were");
    assert!(line.contains(&format!("--config {}: cannot read it", site.file.display())), "{line}");
    assert_eq!(site.metric("tallyring_config_last_reload_successful"), 0);
    assert_eq!(site.metric("tallyring_config_last_reload_success_timestamp_seconds"), began);
    assert_eq!(site.server.visit(), WELCOME);
    site.reload("body-max = 10");
    assert_eq!(site.metric("tallyring_config_reloads_total{outcome=\"ok\"}"), 1);
    assert_eq!(site.metric("tallyring_config_reloads_total{outcome=\"failed\"}"), 1);
}

#[test]
fn a_file_that_can_be_read_once_is_not_read_again() {
    let stub = Stub::answering(COUNTED);
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let settings = format!("counter = \"{}\"\n[[route]]\npath = \"/a\"\n", stub.url());
    let to = pipe.clone();
    let writer = thread::spawn(move || fs::write(to, settings).unwrap());
    let server = serve(&["--config", pipe.to_str().unwrap()]);
    writer.join().unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_line("SIGHUP: the settings stay as they were: ");
    assert!(line.contains("it is no regular file, which can be read once only"), "{line}");
    assert_eq!(server.get("/a").body, WELCOME);
}

#[test]
fn a_reload_while_it_stops_is_harmless() {
    let (stub, gate, arrived) = Stub::gated();
    let mut site = Site::with_counter("drain-timeout = \"1h\"", &stub);
    let mut visitor = site.server.client();
    visitor.send(get_request("/"));
    arrived.recv_timeout(PATIENCE).unwrap();
    site.write("drain-timeout = \"1ms\"");
    site.server.signal(Signal::TERM);
    site.server.wait_for_line("no new connections");
    site.server.signal(Signal::HUP);
    site.server.wait_for_line("SIGHUP: nothing is read anew, since the server stops");
    gate.open();
    assert_eq!(visitor.response().body, WELCOME);
    let (status, lines) = site.server.wait();
    assert_eq!(status.code(), Some(0));
    assert!(lines.last().unwrap().contains("1 visit welcomed, 0 erred"), "{lines:?}");
}

/// Visits until `done`; returns the number of visits, each of which was answered.
fn visit_until(done: &AtomicBool, address: std::net::SocketAddr, keeps: bool) -> u64 {
    let mut client = Client::connect(address);
    let mut visits = 0;
    while !done.load(Ordering::Acquire) {
        if !keeps {
            client = Client::connect(address);
        }
        let response = client.get("/");
        assert!(response.status == 200 && response.body.starts_with("page "), "{response:?}");
        visits += 1;
    }
    visits
}

#[test]
fn reloads_under_load_lose_no_visit() {
    let (stub, counted) = Stub::counting();
    let settings = |number: usize| {
        let route = format!("[[route]]\npath = \"/\"\ncounter = \"{}\"\n", stub.url());
        match number % 3 {
            0 => route,
            1 => format!(
                "head-max = \"1KiB\"\ntarget-max = 512\ncounter-connections-max = 1\n\
                 counter-timeout = \"50s\"\nidle-timeout = \"40s\"\n{route}\
                 [[route]]\npath = \"/other\"\ncounter = \"{}\"\n",
                stub.url()
            ),
            _ => format!("head-max = \"64KiB\"\ncounter-idle-timeout = \"3ms\"\n{route}"),
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let (file, page) = (directory.path().join("tallyring.toml"), directory.path().join("page"));
    let welcome = format!("welcome = \"{}\"\n", page.display());
    fs::write(&page, "page 0").unwrap();
    fs::write(&file, welcome.clone() + &settings(0)).unwrap();
    let mut server = serve(&["--config", file.to_str().unwrap()]);
    let done = Arc::new(AtomicBool::new(false));
    let visitors: Vec<_> = (0..4)
        .map(|number| {
            let (done, address) = (Arc::clone(&done), server.address);
            thread::spawn(move || visit_until(&done, address, number % 2 == 0))
        })
        .collect();
    for number in 1..=12 {
        fs::write(&page, format!("page {number}")).unwrap();
        fs::write(&file, welcome.clone() + &settings(number)).unwrap();
        let before = counted.load(Ordering::Acquire);
        server.signal(Signal::HUP);
        server.wait_for_line("read anew");
        assert_eq!(server.visit(), format!("page {number}"));
        // Some visits under each.
        let began = Instant::now();
        while counted.load(Ordering::Acquire) < before + 50 {
            assert!(began.elapsed() < PATIENCE, "no visits after reload {number}");
            thread::yield_now();
        }
    }
    done.store(true, Ordering::Release);
    let visits: u64 = visitors.into_iter().map(|visitor| visitor.join().unwrap()).sum();
    let books = server.stop_with_books();
    let all = visits + 12;
    assert_eq!((books.welcomed, books.ended()), (all, all), "{books:?}");
    assert_eq!(counted.load(Ordering::Acquire) as u64, all);
}
