//! Settings: what `check` and `serve` refuse, and their messages; where values come from; what a start reports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
};

use common::{
    COUNTED, Running, SORRY, Server, Signal, Stub, WELCOME, limited, run, serve, tallyring,
};
use rustix::{
    fs::OFlags,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

/// Runs `check` or `serve` with these; returns the exit code and the last line of the error.
fn refusal(command: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let mut tallyring = tallyring();
    tallyring.arg(command).args(arguments).envs(environment.iter().copied());
    let output = tallyring.stdout(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap_or_default();
    (output.status.code().unwrap(), last.trim_start_matches("tallyring: ").to_owned())
}

/// Both refuse, in the same words.
#[track_caller]
fn check_refused(arguments: &[&str], environment: &[(&str, &str)], code: i32, expected: &str) {
    for command in ["check", "serve"] {
        let refused = refusal(command, arguments, environment);
        assert_eq!(refused, (code, expected.to_owned()), "{command} {arguments:?} {environment:?}");
    }
}

#[test]
fn servers_that_share_a_port_and_a_database_name_their_shards() {
    let nobody = format!("postgres://me@{}/site", common::nobody());
    let shared = ["--share-port", "--counter-listen", "off", "--store", &nobody];
    let says = |more: &[&str]| refusal("check", &[&shared[..], more].concat(), &[]);
    let (code, said) = says(&[]);
    assert!(code == 2 && said.contains("name its shard"), "{code}: {said}");
    let (_, said) = says(&["--store-shard", "a"]);
    assert!(!said.contains("name its shard"), "{said}");
}

#[test]
fn a_flag_says_what_it_got_and_what_it_takes() {
    for (flag, value, problem) in [
        ("--workers", "two", "it must be a number from 1 to 1024"),
        ("--workers", "0", "it must be a number from 1 to 1024"),
        ("--workers", "1025", "it must be a number from 1 to 1024"),
        ("--listen", "0.0.0.0:99999", "port 99999 is above 65535"),
        ("--listen", ":99999", "port 99999 is above 65535"),
        ("--listen", "127.0.0.1", "it has no port; write 127.0.0.1:3000"),
        (
            "--listen",
            "localhost:80",
            "it must be an address like 0.0.0.0:3000 or [::]:3000, or a port, not a name",
        ),
        ("--listen", "0.0.0.0:1,0.0.0.0:1", "0.0.0.0:1 is given twice"),
        ("--admin", "on", "it must be an address like 127.0.0.1:9300, a port, or off"),
        ("--admin", "99999", "port 99999 is above 65535"),
        ("--counter-timeout", "2", "it must be a time like 250ms, 5s or 1m"),
        ("--head-max", "1", "it must be a size from 1KiB to 1MiB"),
        ("--target-max", "16KiB", "it must be a size from 1 to below head-max, which is 16KiB"),
        ("--head-fields-max", "1000", "it must be a number from 1 to 128"),
        ("--connections-max", "0", "it must be a number from 1 on"),
        ("--driver", "steam", "it must be auto, io_uring or epoll"),
        ("--accept", "3xx", "it must be 2xx or any"),
        ("--log-format", "xml", "it must be auto, text, journal or json"),
        (
            "--sorry-status",
            "204",
            "it must be a status from 200 to 599, except 204, 205 and 304, which have no page",
        ),
        ("--welcome", "/no/such", "cannot read /no/such: No such file or directory (os error 2)"),
    ] {
        check_refused(&[flag, value], &[], 2, &format!("{flag} {value}: {problem}"));
        check_refused(&[&format!("{flag}={value}")], &[], 2, &format!("{flag} {value}: {problem}"));
        let variable = format!("TALLYRING_{}", flag[2..].replace('-', "_").to_uppercase());
        let expected = format!("{variable}={value}: {problem}");
        check_refused(&[], &[(&variable, value)], 2, &expected);
    }
    let counter = ["counter", "--listen", "localhost:3001"];
    let expected = "tallyring: --listen localhost:3001: it must be an address like 127.0.0.1:3001 or [::]:3001, or a \
                    port, not a name\n";
    assert_eq!(run(&counter).2, expected);
}

#[test]
fn an_unknown_flag_or_command_is_answered_with_the_nearest() {
    for (arguments, expected) in [
        (&["--lisen", "80"][..], "--lisen is no argument here; did you mean --listen?"),
        (
            &["--force"],
            "--force is no argument here; it is a flag of tallyring backup or tallyring restore",
        ),
        (&["--xyz"], "--xyz is no argument here; see tallyring --help"),
        (
            &["--proxy-protocol", "yes"],
            "yes is no argument here; --proxy-protocol takes no value: it is on where it is given, and off without it; its \
             variable TALLYRING_PROXY_PROTOCOL takes yes or no",
        ),
        (
            &["check", "--proxy-protocol=v2"],
            "--proxy-protocol=v2: --proxy-protocol takes no value: it is on where it is given, and off without it; its \
             variable TALLYRING_PROXY_PROTOCOL takes yes or no",
        ),
        (
            &["total", "--all=yes"],
            "--all=yes: --all takes no value: it is on where it is given, and off without it",
        ),
        // What follows a flag with a value is not meant for it.
        (&["serve", "--workers", "2", "yes"], "yes is no argument here; see tallyring --help"),
        (&["--workers", "2", "yes"], "yes is no argument here; see tallyring --help"),
        (&["serv"], "serv is no command; did you mean serve?"),
        (&["fly"], "fly is no command; see tallyring --help"),
    ] {
        let (code, _, said) = run(arguments);
        assert_eq!((code, said), (2, format!("tallyring: {expected}\n")), "{arguments:?}");
    }
}

#[test]
fn an_unknown_variable_is_answered_with_the_nearest() {
    let misspelt = [("TALLYRING_COUNTER_TIMEUT", "1s")];
    let expected =
        "TALLYRING_COUNTER_TIMEUT is no setting; did you mean TALLYRING_COUNTER_TIMEOUT?";
    check_refused(&[], &misspelt, 2, expected);
    for command in ["counter", "health", "doctor"] {
        assert_eq!(refusal(command, &[], &misspelt), (2, expected.to_owned()), "{command}");
    }
    // Variables of other commands, and those that Kubernetes sets for a service of this name.
    let others = [
        ("TALLYRING_STORE", "memory"),
        ("TALLYRING_HEALTH_TIMEOUT", "1s"),
        ("TALLYRING_SERVICE_HOST", "10.0.0.1"),
        ("TALLYRING_SERVICE_PORT", "3000"),
        ("TALLYRING_PORT", "tcp://10.0.0.1:3000"),
        ("TALLYRING_PORT_3000_TCP_ADDR", "10.0.0.1"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let data = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--data-dir",
        directory.path().to_str().unwrap(),
    ];
    let check = |environment: &[(&str, &str)]| {
        let mut check = tallyring();
        let output =
            check.arg("check").args(data).envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!check(&others).contains("note: "));
    let unlike = check(&[("TALLYRING_IMAGE", "tallyring:1")]);
    assert!(unlike.ends_with("note: TALLYRING_IMAGE is no setting and is ignored\n"), "{unlike}");
    let stub = Stub::answering(COUNTED);
    let mut server = Server::start(&["serve", "--counter", &stub.url()], &others);
    assert_eq!(server.visit(), WELCOME);
    server.stop();
}

#[test]
fn a_port_alone_is_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    for (given, expected) in
        [("0", "0.0.0.0:0"), (":0", "0.0.0.0:0"), ("[::1]:0,0", "[::1]:0, 0.0.0.0:0")]
    {
        let (code, out, error) =
            run(&["check", "--listen", given, "--admin", "0", "--data-dir", data]);
        assert!(code == 0 || given.contains("::"), "{error}");
        let listen = format!("listen                   {expected}  (flag --listen)\n");
        assert!(code != 0 || out.contains(&listen), "{out}");
        assert!(
            code != 0 || out.contains("admin                    127.0.0.1:0  (flag --admin)\n"),
            "{out}"
        );
    }
    let stub = Stub::answering(COUNTED);
    let server = serve(&["--listen", "0", "--counter", &stub.url()]);
    assert!(server.address.ip().is_unspecified() && server.address.port() != 0);
    let counter = Server::start(&["counter", "--store", "memory", "--listen", "0"], &[]);
    assert!(counter.address.ip().is_loopback());
}

/// What `check` and `serve` say of this file, behind its name.
#[track_caller]
fn check_file(text: &str, expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tallyring.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let expected = expected.replace("DIRECTORY", directory.path().to_str().unwrap());
    check_refused(&["--config", path], &[], 2, &format!("{path} {expected}"));
    check_refused(&[], &[("TALLYRING_CONFIG", path)], 2, &format!("{path} {expected}"));
}

#[test]
fn a_file_says_the_line_what_it_got_and_what_it_takes() {
    check_file("\ncounter-timeout = 2\n", "line 2: counter-timeout = 2: write a time like \"2s\"");
    check_file(
        "workers = \"two\"\n",
        "line 1: workers = \"two\": it must be a number from 1 to 1024",
    );
    // These depend on others, so they are checked after the whole file was read.
    check_file(
        "# limits\nhead-max = \"2KiB\"\ntarget-max = \"2KiB\"\n",
        "line 3: target-max = \"2KiB\": it must be a size from 1 to below head-max, which is 2KiB",
    );
    check_file(
        "admin = 80\nlisten = \"127.0.0.1:80\"\n",
        "line 1: admin = 80: --listen has 127.0.0.1:80 already; choose another by --admin, or --admin off",
    );
    check_file(
        "listen = [\"127.0.0.1:80\",\n  \"127.0.0.1:80\"]\n",
        "line 1: listen = [\"127.0.0.1:80\", \"127.0.0.1:80\"]: 127.0.0.1:80 is given twice",
    );
    check_file(
        "welcome = \"none.html\"\n",
        "line 1: welcome = \"none.html\": cannot read DIRECTORY/none.html: No such file or directory (os error 2)",
    );
    check_file(
        "lisen = 80\n",
        "line 1: lisen = 80: lisen is no setting here; did you mean listen?",
    );
}

#[test]
fn a_route_is_named_with_its_line() {
    check_file(
        "[[route]]\npath = \"/\"\n\n[[route]]\npath = \"/a\"\nwelcome = \"none.html\"\n",
        "line 6: route \"/a\": welcome: cannot read DIRECTORY/none.html: No such file or directory (os error 2)",
    );
    check_file(
        "[[route]]\npath = \"/\"\nsorry = \"none.html\"\n",
        "line 3: route \"/\": sorry: cannot read DIRECTORY/none.html: No such file or directory (os error 2)",
    );
    check_file(
        "[[route]]\npath = \"about\"\n",
        "line 2: route \"about\": path: it must begin with / and hold visible ASCII without ?, # and \\",
    );
    check_file(
        "[[route]]\npath = \"/\"\n[[route]]\npath = \"/\"\n",
        "line 4: route \"/\": path: another route has it already",
    );
    check_file(
        "[[route]]\npath = \"/\"\nmethods = []\n",
        "line 3: route \"/\": methods: it must list some of GET, HEAD and POST, each once",
    );
    check_file(
        "[[route]]\npath = \"/\"\ntype = \"text/html\"\n",
        "line 3: route \"/\": type: it is for files; give welcome or sorry",
    );
    check_file(
        "[[route]]\npath = \"/\"\ntype = \"html\"\n",
        "line 3: type = \"html\": it must be a media type like \"text/html; charset=utf-8\"",
    );
    // A page of the site is not the route's.
    check_file(
        "welcome = \"none\"\n[[route]]\npath = \"/\"\n",
        "line 1: welcome = \"none\": cannot read DIRECTORY/none: No such file or directory (os error 2)",
    );
}

#[test]
fn pages_are_found_beside_the_file_and_have_a_type() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("home.html", "home");
    write("plain", "plain");
    write("typed", "typed");
    let text = "welcome = \"home.html\"\ndata-dir = \"data\"\n\
                [[route]]\npath = \"/\"\n\
                [[route]]\npath = \"/plain\"\nwelcome = \"./plain\"\n\
                [[route]]\npath = \"/typed\"\nwelcome = \"typed\"\ntype = \"text/html; charset=latin1\"\n";
    write("tallyring.toml", text);
    let file = directory.path().join("tallyring.toml");
    let home = directory.path().join("home.html");
    let mut check = tallyring();
    check.args([
        "check",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--sorry",
        "own",
        "--config",
    ]);
    fs::write(elsewhere.path().join("own"), "own").unwrap();
    let output = check.arg(&file).current_dir(elsewhere.path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    // Paths of flags start at the working directory.
    let own = elsewhere.path().canonicalize().unwrap().join("own");
    for (name, path, source) in [
        ("welcome", home, format!("file {} line 1", file.display())),
        ("data-dir", directory.path().join("data"), format!("file {} line 2", file.display())),
        ("sorry", own, String::from("flag --sorry")),
    ] {
        let line = format!("{name:<23}  {}  ({source})\n", path.display());
        assert!(
            said.contains(&line),
            "no {line:?} in {said}{:?}",
            String::from_utf8(output.stderr)
        );
    }
    assert!(!directory.path().join("data").exists(), "check makes nothing");
    let stub = Stub::answering(COUNTED);
    let server = serve(&["--config", file.to_str().unwrap(), "--counter", &stub.url()]);
    for (path, content, content_type) in [
        ("/", "home", "text/html; charset=utf-8"),
        ("/plain", "plain", "text/plain; charset=utf-8"),
        ("/typed", "typed", "text/html; charset=latin1"),
    ] {
        let page = server.get(path);
        assert_eq!((page.body.as_str(), page.field("content-type")), (content, Some(content_type)));
    }
    // A reload that fails names the route too, and keeps the pages.
    fs::remove_file(directory.path().join("plain")).unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_line("the settings stay as they were: ");
    assert!(line.contains("route \"/plain\": welcome: cannot read"), "{line}");
    assert_eq!(server.get("/plain").body, "plain");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_refused_by_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let own = ["--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"];
    fs::write(path("file"), "").unwrap();
    for name in ["file", "file/below"] {
        let expected = format!(
            "cannot make the directory {} for the counter's file: {} is no directory; choose another by --data-dir",
            path(name),
            path("file")
        );
        check_refused(&[&own[..], &[&path(name)]].concat(), &[], 1, &expected);
    }
    // Not even root can make a file there.
    let refused =
        ["check", "serve"].map(|command| refusal(command, &[&own[..], &["/proc"]].concat(), &[]));
    assert_eq!(refused[0], refused[1]);
    assert_eq!(refused[0].0, 1);
    assert!(refused[0].1.starts_with("cannot write to the directory /proc, where"), "{refused:?}");
    for (name, content, words) in [
        (
            "foreign",
            &b"somebody's own text"[..],
            "is not a counter's file of tallyring; it was left as it is",
        ),
        ("empty", b"", "is empty: its totals are lost, or it was made by something else."),
    ] {
        fs::create_dir(path(name)).unwrap();
        let file = Path::new(&path(name)).join("counter.redb");
        fs::write(&file, content).unwrap();
        let refused = ["check", "serve"]
            .map(|command| refusal(command, &[&own[..], &[&path(name)]].concat(), &[]));
        assert_eq!(refused[0], refused[1]);
        assert!(refused[0].0 == 1 && refused[0].1.contains(words), "{refused:?}");
        assert_eq!(fs::read(&file).unwrap(), content);
    }
}

#[test]
fn a_check_beside_a_running_server_passes_and_disturbs_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let server = serve(&["--data-dir", data, "--admin", "127.0.0.1:0"]);
    assert_eq!(server.visit(), WELCOME);
    let listing = || {
        let entries = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<Vec<_>>()
    };
    let before = listing();
    let (listen, admin) =
        (server.address.to_string(), server.address_after("admin on ").to_string());
    let (code, out, error) =
        run(&["check", "--listen", &listen, "--admin", &admin, "--data-dir", data]);
    assert_eq!((code, error.as_str()), (0, ""));
    for note in [
        format!(
            "cannot listen on {listen}: another process listens there already; stop it, share the port"
        ),
        format!(
            "the admin listener: cannot listen on {admin}: another process listens there already; choose another by --admin, or --admin off\n"
        ),
    ] {
        assert!(
            out.contains(&format!("note: a start would fail now: {note}")),
            "no {note:?} in {out}"
        );
    }
    assert_eq!(listing(), before);
    assert_eq!(server.visit(), WELCOME);
    // An address of another machine may come with the network.
    let (code, out, _) =
        run(&["check", "--listen", "192.0.2.1:80", "--admin", "off", "--data-dir", data]);
    assert_eq!(code, 0);
    assert!(out.contains("192.0.2.1:80: this machine does not have that address"), "{out}");
}

#[test]
fn an_admin_address_in_use_has_its_own_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments =
        ["--listen", "127.0.0.1:0", "--counter", "http://127.0.0.1:1/", "--admin", &address];
    let expected = format!(
        "the admin listener: cannot listen on {address}: another process listens there already; choose another \
         by --admin, or --admin off"
    );
    assert_eq!(refusal("serve", &arguments, &[]), (1, expected));
}

#[test]
fn a_failed_write_to_standard_output_is_an_error_and_a_closed_pipe_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let check = ["check", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir", data];
    let full =
        "tallyring: cannot write to standard output: No space left on device (os error 28)\n";
    for arguments in [&check[..], &["--help"], &["help", "serve"], &["--version"], &["doctor"]] {
        let mut command = tallyring();
        command.args(arguments).stdout(File::create("/dev/full").unwrap());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(1), full), "{arguments:?}");

        let mut command = tallyring();
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let code = child.wait().unwrap().code().unwrap();
        assert!(
            said.is_empty() && (code == 0 || arguments[0] == "doctor"),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn too_few_open_files_are_refused_and_the_number_in_the_message_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let serve =
        ["--workers", "2", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", data];
    let counter = ["counter", "--store", "memory", "--listen", "127.0.0.1:0"];
    for (arguments, who) in
        [(&serve[..], "2 workers and the bundled counter"), (&counter, "a counter")]
    {
        let needed = |limit| {
            let output = limited(&format!("-n {limit}"), arguments).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            let (before, behind) =
                said.split_once(&format!(", for {who}; raise it by ulimit -n,")).expect(&said);
            assert!(behind.contains("LimitNOFILE="));
            let told = format!(
                "tallyring: open files: the limit is {limit}, and this start needs at least "
            );
            before.strip_prefix(&told).expect(&said).parse::<u64>().unwrap()
        };
        let enough = needed(30);
        assert_eq!(needed(enough - 1), enough);
        let command = limited(&format!("-n {enough}"), arguments);
        let server = Server::spawn(command, tempfile::tempdir().unwrap());
        // More than can be connected at a time: idle ones are closed.
        let path = if arguments == serve { "/" } else { "/counter" };
        for _ in 0..3 {
            let clients: Vec<_> = (0..10).map(|_| (server.client(), server.get(path))).collect();
            for (_, response) in clients {
                assert_eq!(response.status, 200);
                assert_ne!(response.body, SORRY);
            }
        }
    }
}

#[test]
fn a_terminal_gets_a_few_lines_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let flags = OFlags::NOCTTY.bits().cast_signed();
    let other_end =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(name).unwrap();
    let mut command = tallyring();
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--workers",
        "1",
        "--data-dir",
    ]);
    command.arg(directory.path()).stderr(other_end);
    let _running = Running(command.spawn().unwrap());
    drop(command);
    let lines = BufReader::new(File::from(terminal)).lines();
    let lines: Vec<String> = lines
        .map(|line| line.unwrap().trim_end().to_owned())
        .skip_while(|line| line != concat!("tallyring ", env!("CARGO_PKG_VERSION")))
        .take(6)
        .collect();
    let begins = [
        String::from("tallyring "),
        String::from("  open     http://127.0.0.1:"),
        format!("  count    0 in redb:{}/counter.redb", directory.path().display()),
        String::from("  runs     1 worker on core "),
        String::from("  metrics  http://127.0.0.1:"),
        String::from("  stop     Ctrl-C"),
    ];
    for (line, begin) in lines.iter().zip(&begins) {
        assert!(line.starts_with(begin), "{line:?} is not {begin:?}: {lines:?}");
    }
    assert!(lines[1].ends_with('/') && lines[4].ends_with("/metrics"), "{lines:?}");
}

#[test]
fn a_program_gets_the_start_as_fields() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let flags = ["--counter", &url, "--admin", "127.0.0.1:0", "--workers", "2", "--log-format"];
    let server = serve(&[&flags[..], &["json"]].concat());
    let line: serde_json::Value = serde_json::from_str(&server.line).unwrap();
    let fields = &line["fields"];
    assert_eq!(fields["message"], format!("tallyring {} serves", env!("CARGO_PKG_VERSION")));
    assert_eq!(fields["listen"], format!("http://{}", server.address));
    assert_eq!((&fields["workers"], &fields["counter"]), (&2.into(), &url.clone().into()));
    assert!(fields["driver"].is_string() && fields["cores"].is_string(), "{line}");
    assert!(fields["admin"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{line}");
    assert!(fields.get("store").is_none() && fields.get("count").is_none(), "{line}");
    let server = serve(&[&flags[..], &["journal"]].concat());
    let expected = format!(
        "<6>tallyring {} serves listen=\"http://{}\" workers=2 cores=\"",
        env!("CARGO_PKG_VERSION"),
        server.address
    );
    assert!(server.line.starts_with(&expected), "{}", server.line);
    let counter = Server::start(&["counter", "--store", "memory", "--log-format", "json"], &[]);
    let line: serde_json::Value = serde_json::from_str(&counter.line).unwrap();
    assert_eq!(line["fields"]["listen"], format!("http://{}/counter", counter.address));
    assert_eq!(line["fields"]["store"], "memory");
}
