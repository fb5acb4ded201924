//! The access log of the real program: what its lines say, that nothing a client sends makes another line, and that
//! nothing that happens to its file stops the server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use common::{
    COUNTED, SORRY, Server, Signal, Stub, WELCOME, nobody, run, serve, serve_by, tallyring,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::Value;

/// A server with one worker and an access log in a file.
struct Site {
    server: Server,
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Site {
    fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = ["--workers", "1", "--access-log", path.to_str().unwrap()];
        let server = serve(&[&log[..], flags].concat());
        Self { server, path, directory }
    }

    /// Ends the server; the lines.
    fn lines(mut self) -> Vec<String> {
        self.server.stop();
        lines_of(&self.path)
    }

    /// Ends the server; the lines, which are JSON.
    fn values(self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

fn lines_of(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// A combined line without its time, of which the form is checked.
#[track_caller]
fn without_time(line: &str) -> String {
    let (before, rest) = line.split_once('[').expect(line);
    let (time, after) = rest.split_once(']').expect(line);
    let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let month = &form[3..6];
    assert_eq!(form, format!("00/{month}/0000:00:00:00 +0000"), "{line}");
    format!("{before}[]{after}")
}

#[test]
fn each_answer_has_a_line_in_the_combined_form() {
    let site = Site::start(&[]);
    let mut client = site.server.client();
    assert_eq!(client.get("/").body, WELCOME);
    client.send("HEAD /?a=\"b HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response_to("HEAD").status, 400);
    let mut client = site.server.client();
    client.send(
        "HEAD /?a HTTP/1.1\r\nHost: a\r\nReferer: http://b/\r\nUser-Agent: c \"d\\e\" \u{e9}\r\n\r\n\
         DELETE / HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.0\r\n\r\n",
    );
    assert_eq!(client.response_to("HEAD").status, 200);
    assert_eq!(client.response().status, 405);
    assert_eq!(client.response().status, 404);
    let lines: Vec<_> = site.lines().iter().map(|line| without_time(line)).collect();
    assert_eq!(
        lines,
        [
            "127.0.0.1 - - [] \"GET / HTTP/1.1\" 200 19 \"-\" \"-\"",
            "127.0.0.1 - - [] \"HEAD /?a=\\x22b HTTP/1.1\" 400 0 \"-\" \"-\"",
            "127.0.0.1 - - [] \"HEAD /?a HTTP/1.1\" 200 0 \"http://b/\" \"c \\x22d\\x5Ce\\x22 \\xC3\\xA9\"",
            "127.0.0.1 - - [] \"DELETE / HTTP/1.1\" 405 36 \"-\" \"-\"",
            "127.0.0.1 - - [] \"GET /none HTTP/1.0\" 404 22 \"-\" \"-\"",
        ]
    );
}

#[test]
fn a_json_line_says_what_became_of_a_visit() {
    let counter = format!("http://{}/", nobody());
    let site = Site::start(&["--access-log-format", "json", "--counter", &counter]);
    let mut client = site.server.client();
    for _ in 0..11 {
        assert_eq!(client.get("/").body, SORRY);
    }
    let values = site.values();
    assert_eq!(values.len(), 11);
    for (number, value) in values.iter().enumerate() {
        assert_eq!(value["target"], "/");
        assert_eq!((&value["outcome"], &value["status"]), (&"erred".into(), &200.into()));
        assert_eq!(value["cause"], if number < 10 { "refused" } else { "not_tried" });
        assert_eq!(value["reused"], number > 0);
        assert!(value["duration_seconds"].as_f64().is_some_and(|seconds| seconds < 60.0));
    }

    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let site = Site::start(&["--access-log-format", "json", "--counter", &url]);
    site.server.visit();
    assert_eq!(site.server.get("/none").status, 404);
    let values = site.values();
    assert_eq!(
        (&values[0]["outcome"], &values[1]["outcome"]),
        (&"welcomed".into(), &"uncounted".into())
    );
    assert_eq!((&values[0]["bytes"], &values[0]["worker"]), (&19.into(), &0.into()));
    assert_eq!((&values[0]["client"], &values[0]["method"]), (&"127.0.0.1".into(), &"GET".into()));
    assert_eq!((&values[0]["version"], &values[0]["referer"]), (&"HTTP/1.1".into(), &Value::Null));
}

#[test]
fn a_visit_that_is_refused_for_overload_says_so() {
    let (stub, gate, arrived) = Stub::gated();
    let url = stub.url();
    let one = ["--counter-connections-max", "1", "--counter-queue-max", "0"];
    let flags = [&["--access-log-format", "json", "--counter", &url][..], &one].concat();
    let site = Site::start(&flags);
    let mut first = site.server.client();
    first.send(common::get_request("/first"));
    assert_eq!(first.response().status, 404);
    first.send(common::get_request("/?first"));
    arrived.recv().unwrap();
    assert_eq!(site.server.get("/?second").status, 503);
    gate.open();
    assert_eq!(first.response().body, WELCOME);
    let values = site.values();
    let outcome = |target: &str| {
        let mut of_target = values.iter().filter(|value| value["target"] == target);
        of_target.next().map(|value| value["outcome"].clone())
    };
    assert_eq!(values.len(), 3);
    assert_eq!(outcome("/?first"), Some("welcomed".into()));
    assert_eq!(outcome("/?second"), Some("refused".into()));
}

#[test]
fn what_is_refused_has_a_line_with_what_is_known() {
    let limits = ["--head-timeout", "1s", "--head-max", "2KiB", "--target-max", "1KiB"];
    let site = Site::start(&limits);
    let refused = |request: &str, status: u16| {
        let mut client = site.server.client();
        client.send(request);
        assert_eq!(client.response().status, status, "{request:?}");
    };
    refused("GET / HTTP/1.1\r\n\r\n", 400);
    refused("\u{1b}[31m\r\n", 400);
    refused(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1024)), 414);
    refused(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2048)), 431);
    refused("GET /slow", 408);
    refused("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", 400);
    refused("GET /large HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413);
    // One who leaves in the middle of a body, and two of whom there is no request.
    let mut client = site.server.client();
    client.send("GET /left HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na");
    client.finish_sending();
    assert!(client.is_closed());
    let mut client = site.server.client();
    client.send("GET /half");
    client.finish_sending();
    assert!(client.is_closed());
    let client = site.server.client();
    client.finish_sending();
    let lines = site.lines();
    let long = format!("\"GET /{}...\" 414", "x".repeat(1019));
    let expected = [
        "\"GET / HTTP/1.1\" 400",
        "\"\\x1B[31m\" 400",
        &long,
        "\"GET / HTTP/1.1\" 431",
        "\"GET /slow\" 408",
        "\"GET / HTTP/1.1\" 400",
        "\"GET /large HTTP/1.1\" 413",
        "\"GET /left HTTP/1.1\" 499 0",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line:?} has no {expected:?}");
    }
}

#[test]
fn trusted_proxies_name_the_client() {
    let flags = ["--trusted-proxy", "10.0.0.0/8,127.0.0.1", "--trusted-proxy", "fd00::/8"];
    let site = Site::start(&flags);
    let untrusting = Site::start(&["--trusted-proxy", "10.0.0.0/8"]);
    for site in [&site, &untrusting] {
        let mut client = site.server.client();
        client.send(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4, 203.0.113.9\r\nX-Forwarded-For: fd00::1\r\n\r\n",
        );
        assert_eq!(client.response().status, 200);
    }
    assert!(site.lines()[0].starts_with("203.0.113.9 - - ["));
    assert!(untrusting.lines()[0].starts_with("127.0.0.1 - - ["));
}

#[test]
fn fields_of_a_client_that_its_proxy_does_not_name_are_not_believed() {
    let site = Site::start(&["--proxy-protocol", "--trusted-proxy", "127.0.0.1,10.0.0.0/8"]);
    let binary = |command, family| [b"\r\n\r\n\0\r\nQUIT\n", &[command, family, 0, 0][..]].concat();
    let line = |text: &str| format!("PROXY {text}\r\n").into_bytes();
    let cases = [
        // It is relayed for somebody: UNKNOWN, and a family without addresses.
        (line("UNKNOWN"), "127.0.0.1"),
        (binary(0x21, 0), "127.0.0.1"),
        // The proxy itself asks (LOCAL), or names another proxy that is trusted.
        (binary(0x20, 0), "203.0.113.9"),
        (line("TCP4 10.0.0.1 10.0.0.2 1 2"), "203.0.113.9"),
        // It names a client that is not.
        (line("TCP4 192.0.2.1 10.0.0.2 1 2"), "192.0.2.1"),
    ];
    for (header, _) in &cases {
        let mut client = site.server.client();
        client.send(header);
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    let lines = site.lines();
    let clients: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(clients, cases.map(|(_, expected)| expected));
}

#[test]
fn one_of_several_requests_has_a_line() {
    let site = Site::start(&["--access-log-sample", "1/3"]);
    let mut client = site.server.client();
    for number in 0..8 {
        assert_eq!(client.get(&format!("/?{number}")).status, 200);
    }
    let lines = site.lines();
    assert_eq!(lines.len(), 3);
    for (line, number) in lines.iter().zip([0, 3, 6]) {
        assert!(line.contains(&format!("\"GET /?{number} ")), "{line}");
    }
}

#[test]
fn sighup_opens_the_file_anew_whatever_the_settings_are() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    let site = Site::start(&["--config", settings.path().to_str().unwrap()]);
    let renamed = |number: usize| site.directory.path().join(format!("access.log.{number}"));
    site.server.get("/first");
    fs::rename(&site.path, renamed(1)).unwrap();
    site.server.get("/second");
    site.server.signal(Signal::HUP);
    site.server.wait_for_line("SIGHUP: settings and pages");
    site.server.get("/third");
    fs::write(settings.path(), "accept = \"all\"\n").unwrap();
    fs::rename(&site.path, renamed(2)).unwrap();
    site.server.signal(Signal::HUP);
    site.server.wait_for_line("the settings stay as they were");
    site.server.get("/fourth");
    // Where there is no place for a new file, the old one stays.
    fs::rename(&site.path, renamed(3)).unwrap();
    fs::create_dir(&site.path).unwrap();
    site.server.signal(Signal::HUP);
    site.server.wait_for_line("it is a directory; name a file in it; what was open stays");
    site.server.get("/fifth");
    let Site { mut server, path: _path, directory } = site;
    server.stop();
    let targets = |number: usize| -> Vec<String> {
        let lines = lines_of(&directory.path().join(format!("access.log.{number}")));
        lines.iter().map(|line| line.split(' ').nth(6).unwrap().to_owned()).collect()
    };
    // An answer may be read before its line is written, and the file may be opened anew between.
    let all = [targets(1), targets(2), targets(3)].concat();
    assert_eq!(all, ["/first", "/second", "/third", "/fourth", "/fifth"]);
    assert_eq!(targets(3).last().map(String::as_str), Some("/fifth"));
}

#[test]
fn a_changed_log_needs_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tallyring.toml");
    let log = "access-log = \"logs/access.log\"\naccess-log-format = \"json\"\n";
    let trusted = "trusted-proxy = [\"127.0.0.0/8\", \"::1\"]\n";
    fs::create_dir(directory.path().join("logs")).unwrap();
    fs::write(&file, format!("{log}{trusted}")).unwrap();
    let mut server = serve(&["--config", file.to_str().unwrap()]);
    fs::write(&file, format!("access-log-sample = \"0.5\"\n{trusted}")).unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_line("access-log needs a restart");
    assert!(line.contains("logs/access.log stays, off was read"), "{line}");
    server.wait_for_line("access-log-format needs a restart: json stays, combined was read");
    server.wait_for_line("access-log-sample needs a restart: 100% stays, 50% was read");
    server.wait_for_line("no setting has changed");
    server.visit();
    server.stop();
    let lines = lines_of(&directory.path().join("logs/access.log"));
    assert_eq!(serde_json::from_str::<Value>(&lines[0]).unwrap()["status"], 200);
}

#[test]
fn a_full_disk_costs_lines_and_no_visits() {
    let flags = ["--workers", "1", "--admin", "127.0.0.1:0", "--access-log", "/dev/full"];
    let mut server = serve(&flags);
    let mut client = server.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").body, WELCOME);
    }
    let line = server.wait_for_line("the access log cannot be written to /dev/full");
    assert!(line.contains("No space left on device"), "{line}");
    let mut admin = server.admin();
    let lost = "tallyring_access_log_dropped_total{reason=\"write_failed\"}";
    admin.wait_for_metric(lost, 5);
    assert_eq!(admin.metric("tallyring_access_log_written_total"), 0);
    server.signal(Signal::TERM);
    let (status, lines) = server.wait();
    assert!(status.success());
    // Told once, and at the end.
    let about: Vec<_> = lines.iter().filter(|line| line.contains("access log")).collect();
    assert!(about.len() == 1 && about[0].contains("5 requests are missing"), "{lines:?}");
}

#[test]
fn metrics_count_the_lines() {
    let site = Site::start(&["--admin", "127.0.0.1:0"]);
    site.server.visit();
    site.server.get("/none");
    let mut admin = site.server.admin();
    admin.wait_for_metric("tallyring_access_log_written_total", 2);
    assert_eq!(admin.metric("tallyring_access_log_dropped_total{reason=\"ring_full\"}"), 0);
    // The admin listener and the counter have no lines.
    assert_eq!(site.lines().len(), 2);
    let server = serve(&["--admin", "127.0.0.1:0"]);
    assert!(!server.admin().get("/metrics").body.contains("access_log"));
}

/// A FIFO, and its end for reading.
fn fifo(directory: &Path) -> (PathBuf, fs::File) {
    let path = directory.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let reader = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
    (path, reader)
}

#[test]
fn a_reader_that_does_not_read_keeps_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut reader) = fifo(directory.path());
    let flags = ["--workers", "1", "--access-log", path.to_str().unwrap()];
    let mut server = serve(&flags);
    let mut client = server.client();
    // More than the FIFO holds.
    let agent = "x".repeat(1000);
    for _ in 0..200 {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n"));
        assert_eq!(client.response().body, WELCOME);
    }
    server.signal(Signal::HUP);
    server.wait_for_line("SIGHUP: settings and pages");
    server.signal(Signal::TERM);
    let (status, lines) = server.wait();
    assert!(status.success());
    let missing = |line: &&String| line.contains("requests are missing in the access log");
    let missing = lines.iter().find(missing).expect("a line");
    let words: Vec<_> = missing.split(' ').collect();
    let place = words.iter().position(|word| *word == "requests").unwrap();
    let missing: usize = words[place - 1].parse().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let whole = text.lines().filter(|line| line.ends_with(&format!("\"{agent}\""))).count();
    assert_eq!(whole + missing, 200);
    // Where a line was cut, it was ended before the next one.
    assert!(text.lines().all(|line| line.matches("127.0.0.1").count() <= 1));
}

#[test]
fn a_reader_that_is_gone_may_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let (path, reader) = fifo(directory.path());
    let mut server = serve(&["--workers", "1", "--access-log", path.to_str().unwrap()]);
    drop(reader);
    server.visit();
    server.wait_for_line("Broken pipe");
    let mut reader = fs::File::open(&path).unwrap();
    server.get("/back");
    server.wait_for_line("again; 1 line lost");
    server.stop();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.contains("\"GET /back HTTP/1.1\" 404") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_dash_is_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("output");
    let mut command = tallyring();
    command.args(["serve", "--listen", "127.0.0.1:0", "--counter-listen", "off", "--admin", "off"]);
    command.args(["--access-log", "-", "--data-dir", directory.path().to_str().unwrap()]);
    command.stdout(fs::File::create(&path).unwrap());
    let server = Server::spawn(command, directory);
    server.get("/none");
    server.signal(Signal::HUP);
    server.wait_for_line("SIGHUP: settings and pages");
    server.visit();
    server.signal(Signal::TERM);
    server.wait_for_line("stopped");
    let lines = lines_of(&path);
    assert!(
        lines.len() == 2 && lines[0].contains("/none") && lines[1].contains("\"GET / "),
        "{lines:?}"
    );
}

#[test]
fn no_place_for_a_log_is_refused_by_a_start_and_by_check() {
    let directory = tempfile::tempdir().unwrap();
    let (fifo, reader) = fifo(directory.path());
    drop(reader);
    let none = directory.path().join("none/access.log");
    let data = directory.path().join("data");
    for (path, problem, check) in [
        (directory.path(), "it is a directory; name a file in it", true),
        (
            &none,
            "its directory does not exist; make it, or name another file by --access-log, or off",
            true,
        ),
        // A check would end its reader.
        (&fifo, "nobody reads this FIFO; start its reader first", false),
    ] {
        let commands: &[&str] = if check { &["serve", "check"] } else { &["serve"] };
        for command in commands {
            let flags = ["--listen", "127.0.0.1:0", "--admin", "off", "--counter-listen", "off"];
            let log =
                ["--access-log", path.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
            let (code, _, said) = run(&[&[*command][..], &flags, &log].concat());
            let expected =
                format!("tallyring: access-log: cannot write {}: {problem}\n", path.display());
            assert_eq!((code, said.as_str()), (1, expected.as_str()), "{command}");
        }
    }
}

#[test]
fn settings_are_shown_and_judged() {
    let (code, shown, _) =
        run(&["check", "--listen", "0", "--access-log", "-", "--access-log-sample", "0.01"]);
    assert_eq!(code, 0);
    for (name, value) in [
        ("access-log", "-"),
        ("access-log-format", "combined"),
        ("access-log-sample", "1%"),
        ("trusted-proxy", "none"),
    ] {
        let is = |line: &str| line.split_whitespace().take(2).eq([name, value]);
        assert!(shown.lines().any(is), "no {name} of {value} in {shown}");
    }
    for (flag, value, problem) in [
        ("--access-log-sample", "0.3", "it must be one in so many, like 1%, 0.01 or 1/100"),
        ("--access-log-sample", "2", "it must be a share like 1%, 0.01 or 1/100"),
        ("--access-log-format", "apache", "combined"),
        ("--trusted-proxy", "10.0.0.0/33", "it must be a network or an address"),
    ] {
        let (code, _, said) = run(&["check", flag, value]);
        assert!(code == 2 && said.contains(problem), "{said}");
    }
    let server = serve_by("trusted-proxy = \"127.0.0.1\"\naccess-log-sample = \"1/2\"\n", &[]);
    server.visit();
}
