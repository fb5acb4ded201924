//! The count can be read, backed up and restored: `tallyring total`, `backup` and `restore`, and the address at which
//! a site's own counter is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{fs, net::SocketAddr, path::Path};

use common::{
    Client, Data, Server, Signal, Stub, WELCOME, get_request, limited, nobody, run, serve,
    serve_by, tallyring,
};

impl Data {
    fn flags(&self) -> [String; 2] {
        ["--data-dir".into(), self.0.path().to_str().unwrap().into()]
    }

    /// A site that counts here, with this flag for the address of its counter.
    fn site(&self, counter_listen: &str) -> Server {
        let [flag, directory] = self.flags();
        serve(&[&flag, &directory, "--counter-listen", counter_listen])
    }

    /// A counter that counts here.
    fn counter(&self) -> Server {
        let [flag, directory] = self.flags();
        Server::start(&["counter", &flag, &directory], &[])
    }

    /// Runs a command on the file, while nobody listens at the address that it asks.
    #[track_caller]
    fn check(&self, arguments: &[&str], code: i32, words: &str) {
        let [flag, directory] = self.flags();
        let mut all = [arguments, &[&flag, &directory]].concat();
        if arguments[0] != "restore" && !arguments.contains(&"--counter-listen") {
            all.extend(["--counter-listen", "off"]);
        }
        check(&all, code, words);
    }
}

/// Runs `tallyring`, which must print one line with these words.
#[track_caller]
fn check(arguments: &[&str], code: i32, words: &str) {
    let (got, out, error) = run(arguments);
    let said = if code == 0 { &out } else { &error };
    assert_eq!(got, code, "{arguments:?}: {out}{error}");
    assert_eq!((out.clone() + &error).lines().count(), 1, "{arguments:?}: {out}{error}");
    assert!(said.contains(words), "{arguments:?}: no {words:?} in {said:?}");
}

/// What `total` prints, of the counter at `address`.
#[track_caller]
fn check_total(address: SocketAddr, arguments: &[&str], expected: &str) {
    let address = address.to_string();
    let (code, out, error) = run(&[&["total", "--counter-listen", &address], arguments].concat());
    assert_eq!((code, out.as_str(), error.as_str()), (0, expected, ""), "{arguments:?}");
}

fn post(address: SocketAddr, path: &str) -> u16 {
    let mut client = Client::connect(address);
    client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
    client.response().status
}

fn counter_of(server: &Server) -> SocketAddr {
    server.address_after("visits go to ")
}

#[test]
fn the_total_of_a_running_site_is_told() {
    let data = Data::new();
    let server = data.site("127.0.0.1:0");
    let counter = counter_of(&server);
    check_total(counter, &[], "0\n");
    for _ in 0..3 {
        assert_eq!(server.visit(), WELCOME);
    }
    assert_eq!(post(counter, "/counter/home.page?by=7"), 200);
    check_total(counter, &[], "3\n");
    check_total(counter, &["home.page"], "7\n");
    check_total(counter, &["nobody"], "0\n");
    check_total(counter, &["--all"], "{\"\":3,\"home.page\":7}\n");
    // A counter that listens on all addresses is asked on loopback.
    check_total(SocketAddr::from(([0, 0, 0, 0], counter.port())), &[], "3\n");
    let address = counter.to_string();
    for arguments in [&["home/page"][..], &[""], &["a", "--all"]] {
        let all = [&["total", "--counter-listen", &address], arguments].concat();
        assert_eq!(run(&all).0, 2, "{arguments:?}");
    }
}

#[test]
fn the_counter_is_found_by_the_servers_own_settings() {
    let data = Data::new();
    let server = data.site("127.0.0.1:0");
    assert_eq!(server.visit(), WELCOME);
    let (good, bad) = (counter_of(&server).to_string(), nobody().to_string());
    let url = |address: &str| format!("http://{address}/counter");
    let (good_url, bad_url) = (url(&good), url(&bad));
    let file = |text: &str| {
        let path = data.path("tallyring.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // A directory without a file to read instead.
    let none = Data::new();
    let ask = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = tallyring();
        command.arg("total").args(flags).args(none.flags()).envs(variables.iter().copied());
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let told = (0, String::from("1\n"));
    let silent = (1, String::new());
    assert_eq!(ask(&[], &[("TALLYRING_COUNTER_LISTEN", &good)]), told);
    assert_eq!(ask(&["--counter-listen", &bad], &[("TALLYRING_COUNTER_LISTEN", &good)]), silent);
    let listen = file(&format!("counter-listen = \"{good}\"\n"));
    assert_eq!(ask(&["--config", &listen], &[]), told);
    assert_eq!(ask(&["--config", &listen], &[("TALLYRING_COUNTER_LISTEN", &bad)]), silent);
    assert_eq!(ask(&[], &[("TALLYRING_CONFIG", &listen)]), told);
    // A server with a counter in another process asks that one, and so does `total`.
    assert_eq!(ask(&["--counter", &good_url], &[("TALLYRING_COUNTER_LISTEN", &bad)]), told);
    assert_eq!(ask(&[], &[("TALLYRING_COUNTER", &good_url)]), told);
    assert_eq!(ask(&["--counter", &good_url, "--counter-listen", &bad], &[]), told);
    assert_eq!(ask(&["--counter-listen", &good], &[("TALLYRING_COUNTER", &bad_url)]), told);
    let by_url = file(&format!("counter = \"{good_url}\"\ncounter-listen = \"{bad}\"\n"));
    assert_eq!(ask(&["--config", &by_url], &[]), told);
    // A user without a place for a file can ask too.
    let homeless = |listen: &str| {
        let mut command = tallyring();
        command.args(["total", "--counter-listen", listen]);
        command.env_remove("HOME").env_remove("XDG_STATE_HOME").output().unwrap()
    };
    assert_eq!(homeless(&good).stdout, b"1\n");
    assert_eq!(homeless(&bad).status.code(), Some(1));
    assert_eq!(homeless("off").status.code(), Some(2));
    // A URL may name a counter; a name as an argument is another counter of the same server.
    assert_eq!(post(counter_of(&server), "/counter/a?by=5"), 200);
    let named = format!("{good_url}/a?by=9");
    assert_eq!(ask(&["--counter", &named], &[]).1, "5\n");
    assert_eq!(ask(&["b", "--counter", &named], &[]).1, "0\n");
    assert_eq!(ask(&["--all", "--counter", &named], &[]).1, "{\"\":1,\"a\":5}\n");
}

#[test]
fn the_file_of_a_stopped_counter_is_read_and_stays_unchanged() {
    let data = Data::new();
    for (round, signal) in [Signal::TERM, Signal::KILL, Signal::KILL].into_iter().enumerate() {
        let mut server = data.site("off");
        for _ in 0..2 {
            assert_eq!(server.visit(), WELCOME);
        }
        server.signal(signal);
        server.wait();
        let before = fs::read(data.path("counter.redb")).unwrap();
        let expected = format!("{}\n", 2 * (round + 1));
        let [flag, directory] = data.flags();
        for listen in ["off", &nobody().to_string()] {
            let all = ["total", "--counter-listen", listen, &flag, &directory];
            assert_eq!(run(&all), (0, expected.clone(), String::new()), "{signal:?}");
        }
        let store = format!("redb:{}", data.text("counter.redb"));
        let all = ["total", "--counter-listen", "off", "--store", &store];
        assert_eq!(run(&all).1, expected);
        assert!(fs::read(data.path("counter.redb")).unwrap() == before, "the file was changed");
        assert_eq!(fs::read_dir(data.0.path()).unwrap().count(), 1);
    }
    data.check(&["total", "a"], 0, "0");
    data.check(&["total", "--all"], 0, "{\"\":6}");
}

#[test]
fn a_missing_total_is_reported() {
    let data = Data::new();
    let file = data.text("counter.redb");
    data.check(&["total"], 1, &format!("nothing is counted yet: there is no file {file}"));
    let nobody = nobody().to_string();
    let words = format!("nobody listens at http://{nobody}/counter, and there is no file {file}");
    data.check(&["total", "--counter-listen", &nobody], 1, &words);
    data.check(&["backup", &data.text("copy")], 1, "there is no file");
    let server = data.site("off");
    assert_eq!(server.visit(), WELCOME);
    data.check(&["total"], 1, &format!("a process uses the counter's file {file}"));
    drop(server);
    fs::write(&file, "my diary").unwrap();
    data.check(&["total"], 1, "is not a counter's file");
    fs::write(&file, "").unwrap();
    data.check(&["total"], 1, "is empty");
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    let memory = ["total", "--counter-listen", "off", "--store", "memory"];
    check(&memory, 2, "memory keeps its totals in the counter's process alone");
    check(&["total", "--counter-listen", "127.0.0.1:0"], 2, "no port to ask at");
    check(&["total", "--config", "/no/such/file"], 2, "/no/such/file");
}

#[test]
fn a_counter_that_does_not_answer_is_reported_with_the_setting_that_names_it() {
    let nobody = nobody().to_string();
    let url = format!("http://{nobody}/counter");
    let refused = "it does not answer: Connection refused (os error 111)";
    check(&["total", "--counter", &url], 1, &format!("{refused}; --counter says where to ask\n"));
    let run_with = |command: &[&str], words: &str| {
        check(&[command, &["--counter-listen", &nobody]].concat(), 1, words);
    };
    run_with(
        &["total", "--store", "memory"],
        &format!("{refused}; --counter-listen says where to ask\n"),
    );
    let database = format!(
        "{refused}; --counter-listen says where to ask, and tallyring counter export reads \
         postgres://me@db/site without a counter\n"
    );
    run_with(&["total", "--store", "postgres://me@db/site"], &database);
    run_with(&["backup", "--store", "postgres://me@db/site", "none"], &database);
    check(
        &["restore", "--store", "etcd://db/site", "none"],
        2,
        "store: etcd://db:2379/site is no file; use tallyring counter import\n",
    );
    check(
        &["total", "--counter-listen", "off", "--store", "postgres://me@db/site"],
        2,
        "store: postgres://me@db/site is no file; use tallyring counter export\n",
    );
}

#[test]
fn a_server_that_is_no_counter_is_reported() {
    let answer = |head: &str, body: &str| {
        format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    for (answer, words) in [
        (answer("200 OK", "hello\n"), "not a counter of tallyring: its answer is not a total"),
        (answer("404 Not Found", "no such page\nor"), "it answers 404, \"no such page\""),
        ("HTTP/1.1 200 OK\r\n\r\n1\n".into(), "its answer has no length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n".into(), "or a larger one than"),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), "malformed"),
    ] {
        let stub = Stub::answering(&*answer.leak());
        let address = stub.address.to_string();
        // The file may be another counter's, so it is not read.
        check(&["total", "--counter-listen", &address], 1, words);
    }
    for listing in ["{\"a/b\":1}", "{\"a\":-1}", "[1]", "1"] {
        let stub = Stub::answering(&*answer("200 OK", listing).leak());
        let address = stub.address.to_string();
        check(&["total", "--all", "--counter-listen", &address], 1, "not a list of totals");
    }
    let (silent, _gate, _arrived) = Stub::gated();
    let address = silent.address.to_string();
    check(&["total", "--counter-listen", &address, "--timeout", "50ms"], 1, "timed out");
}

#[test]
fn a_counter_that_is_busy_is_asked_once_more() {
    let stub = Stub::start(|number, mut peer| {
        peer.request();
        peer.send(match number {
            0 => "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 5\r\n\r\nbusy\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n5\n",
        });
    });
    check_total(stub.address, &[], "5\n");
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nbusy\n";
    let stub = Stub::answering(busy);
    let address = stub.address.to_string();
    // With less time than the pause it is asked once. An answer that comes too late here is no answer.
    let all = ["total", "--counter-listen", &address, "--timeout", "1s"];
    let says = |(code, _, error): (i32, String, String)| {
        code == 1 && error.contains("it answers 503, \"busy\"")
    };
    assert!((0..60).any(|_| says(run(&all))));
}

#[test]
fn a_running_counter_is_backed_up_and_restored() {
    let data = Data::new();
    let mut server = data.site("127.0.0.1:0");
    assert_eq!(server.visit(), WELCOME);
    let counter = counter_of(&server);
    assert_eq!(post(counter, "/counter/a?by=41"), 200);
    let address = counter.to_string();
    let copy = data.text("backup.redb");
    let [flag, directory] = data.flags();
    let backup = |further: &[&str]| {
        let all = ["backup", "--counter-listen", &address, &flag, &directory];
        let (code, out, error) = run(&[&all[..], further].concat());
        (code, out + &error)
    };
    let (code, said) = backup(&[&copy]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(said, format!("{copy}: 1 counted, and 41 under 1 name\n"));
    assert_eq!(server.visit(), WELCOME);
    // An existing file is kept.
    let first = fs::read(&copy).unwrap();
    let (code, said) = backup(&[&copy]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is there already") && said.contains("--force"), "{said}");
    assert!(fs::read(&copy).unwrap() == first);
    assert_eq!(backup(&[&copy, "--force"]).0, 0);
    assert!(fs::read(&copy).unwrap() != first);
    // A backup does not replace the counter's file itself.
    let own = data.text("counter.redb");
    for further in [&[own.as_str()][..], &[&own, "--force"]] {
        let (code, said) = backup(further);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("is the counter's file itself"), "{said}");
    }
    let nowhere = data.text("none/backup.redb");
    assert!(backup(&[&nowhere]).1.contains("none"));
    // A running counter is not restored.
    assert_eq!(server.visit(), WELCOME);
    data.check(&["restore", &copy], 1, "stop the counter first");
    check_total(counter, &[], "3\n");
    server.stop();
    // A total does not go back without --force.
    let words = "2 counted, and 41 under 1 name, and";
    data.check(&["restore", &copy], 1, words);
    data.check(&["restore", &copy], 1, "the total would go back from 3 to 2; give --force");
    data.check(&["total"], 0, "3");
    let kept = data.text("counter.redb.before-restore");
    let words = format!("before, it held 3 counted, and 41 under 1 name, and is kept as {kept}");
    data.check(&["restore", &copy, "--force"], 0, &words);
    let server = data.site("off");
    assert!(server.line.contains("; 2 counted, and 41 under names, in redb:"), "{}", server.line);
    assert_eq!(server.visit(), WELCOME);
    drop(server);
    // The kept file is a backup too; a second restore keeps another.
    data.check(&["restore", &kept], 0, "3 counted, and 41 under 1 name; before, it held 3");
    assert!(data.path("counter.redb.before-restore-2").exists());
    data.check(&["total"], 0, "3");
    let names = fs::read_dir(data.0.path()).unwrap().count();
    assert_eq!(names, 4, "nothing unfinished is left");
}

#[test]
fn a_stopped_counter_is_backed_up_from_its_file() {
    let data = Data::new();
    let mut counter = data.counter();
    assert_eq!(post(counter.address, "/counter?by=7"), 200);
    counter.signal(Signal::KILL);
    counter.wait();
    let copy = data.text("copy");
    data.check(&["backup", &copy], 0, &format!("{copy}: 7 counted"));
    data.check(&["backup", &copy], 1, "is there already");
    // To a directory that does not exist yet.
    let other = Data::new();
    let [flag, _] = data.flags();
    let directory = other.text("made/for/it");
    let words = format!("{directory}/counter.redb: 7 counted; before, there was no file");
    check(&["restore", &copy, &flag, &directory], 0, &words);
    let counter = Server::start(&["counter", &flag, &directory], &[]);
    assert_eq!(counter.get("/counter").body, "7\n");
    assert!(counter.line.contains("; 7 counted in redb:"), "{}", counter.line);
}

#[test]
fn a_restore_checks_the_backup() {
    let data = Data::new();
    let mut counter = data.counter();
    assert_eq!(post(counter.address, "/counter?by=7"), 200);
    counter.stop();
    let before = fs::read(data.path("counter.redb")).unwrap();
    let bad = data.text("bad");
    for (bytes, words) in [
        (&b"my diary"[..], "is not a counter's file"),
        (b"", "is empty"),
        (&before[..before.len() / 2], "damaged"),
        (&[&before[..64], &[0xaa; 256], &before[320..]].concat(), "damaged"),
    ] {
        fs::write(&bad, bytes).unwrap();
        data.check(&["restore", &bad, "--force"], 1, words);
        assert!(fs::read(data.path("counter.redb")).unwrap() == before);
    }
    data.check(&["restore", &data.text("none")], 1, "there is no file");
    data.check(&["restore", &data.text("counter.redb")], 1, "is the counter's file itself");
    check(&["restore", &bad, "--store", "memory"], 2, "memory");
    assert_eq!(fs::read_dir(data.0.path()).unwrap().count(), 2);
}

#[test]
fn a_restore_replaces_a_lost_file() {
    let data = Data::new();
    let mut counter = data.counter();
    assert_eq!(post(counter.address, "/counter?by=7"), 200);
    counter.stop();
    let copy = data.text("copy");
    data.check(&["backup", &copy], 0, "7 counted");
    let path = data.path("counter.redb");
    let whole = fs::read(&path).unwrap();
    let half = &whole[..whole.len() / 2];
    for (bytes, words) in [(&b""[..], "it was empty"), (half, "it was damaged")] {
        fs::write(&path, bytes).unwrap();
        data.check(&["restore", &copy], 0, words);
        data.check(&["total"], 0, "7");
    }
    // A foreign file is not replaced without --force.
    fs::write(&path, "my diary").unwrap();
    data.check(&["restore", &copy], 1, "is not a counter's file");
    assert_eq!(fs::read(&path).unwrap(), b"my diary");
    data.check(&["restore", &copy, "--force"], 0, "it was not a counter's file");
    assert_eq!(fs::read(data.path("counter.redb.before-restore-3")).unwrap(), b"my diary");
    data.check(&["total"], 0, "7");
}

#[test]
fn a_restore_goes_through_a_link() {
    let data = Data::new();
    let mut counter = data.counter();
    assert_eq!(post(counter.address, "/counter?by=7"), 200);
    counter.stop();
    let copy = data.text("copy");
    data.check(&["backup", &copy], 0, "7 counted");
    let other = Data::new();
    std::os::unix::fs::symlink("target.redb", other.path("counter.redb")).unwrap();
    other.check(&["restore", &copy], 0, "there was no file");
    other.check(&["restore", &copy], 0, "it held 7 counted");
    other.check(&["total"], 0, "7");
    assert!(other.path("counter.redb").is_symlink());
    assert!(other.path("target.redb").is_file());
    assert!(other.path("target.redb.before-restore").is_file());
}

#[test]
fn as_many_names_as_there_may_be_are_backed_up() {
    const NAMES: usize = 10_000;
    let counter = Server::start(&["counter", "--store", "memory"], &[]);
    let mut client = counter.client();
    let request = |number: usize| {
        let name = format!("{number:0>128}");
        format!("POST /counter/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    };
    for first in (0..NAMES).step_by(100) {
        client.send((first..first + 100).map(request).collect::<String>());
        for _ in 0..100 {
            assert_eq!(client.response().status, 200);
        }
    }
    let data = Data::new();
    let (address, copy) = (counter.address.to_string(), data.text("copy"));
    let words = "0 counted, and 10,000 under 10,000 names";
    data.check(&["backup", &copy, "--counter-listen", &address], 0, words);
    data.check(&["restore", &copy], 0, words);
    data.check(&["total", &format!("{:0>128}", NAMES - 1)], 0, "1");
}

#[test]
fn the_lines_of_start_and_stop_tell_the_total() {
    let data = Data::new();
    let store = data.text("counter.redb");
    let mut server = data.site("off");
    assert!(server.line.contains(&format!("; 0 counted in redb:{store}")), "{}", server.line);
    assert_eq!(server.visit(), WELCOME);
    let last = server.stop();
    let words = format!(
        "stopped: 1 visit welcomed, 0 erred, 0 refused, 0 abandoned; 1 counted in redb:{store}"
    );
    assert!(last.ends_with(&words), "{last}");
    let mut counter = data.counter();
    assert!(counter.line.ends_with(&format!("; 1 counted in redb:{store}")), "{}", counter.line);
    assert_eq!(post(counter.address, "/counter?by=1233"), 200);
    assert_eq!(post(counter.address, "/counter/a?by=1000"), 200);
    let last = counter.stop();
    let words =
        format!("stopped; 1,234 counted, and 1,000 under names, in redb:{store}; 2 commits");
    assert!(last.ends_with(&words), "{last}");
}

#[test]
fn the_total_is_a_metric() {
    let data = Data::new();
    let [flag, directory] = data.flags();
    let row = |server: &Server, name: &str| {
        let text = server.admin().get("/metrics").body;
        let row = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        row.map(|number| number.parse::<u64>().unwrap())
    };
    for (before, commits) in [(0, 2), (2, 2)] {
        let mut server = serve(&[&flag, &directory, "--admin", "127.0.0.1:0"]);
        assert_eq!(row(&server, "tallyring_counted_total"), Some(before));
        assert_eq!(row(&server, "tallyring_commits_total"), Some(0));
        for visit in 1..=commits {
            assert_eq!(server.visit(), WELCOME);
            // A visitor who is welcomed is in the total already.
            assert_eq!(row(&server, "tallyring_counted_total"), Some(before + visit));
        }
        assert_eq!(row(&server, "tallyring_commits_total"), Some(commits));
        server.stop();
    }
    // A counter in another process has no metric here.
    let stub = Stub::answering(common::COUNTED);
    let server = serve(&["--counter", &stub.url(), "--admin", "127.0.0.1:0"]);
    assert_eq!(row(&server, "tallyring_counted_total"), None);
}

#[test]
fn an_address_in_use_names_its_setting_and_what_to_do() {
    let counter = Server::start(&["counter", "--store", "memory"], &[]);
    let address = counter.address.to_string();
    let data = Data::new();
    let [flag, directory] = data.flags();
    let start = |further: &[&str]| {
        let all =
            ["--listen", "127.0.0.1:0", "--admin", "off", "--workers", "1", &flag, &directory];
        run(&[&all[..], &["--counter-listen", &address], further].concat())
    };
    let (code, _, said) = start(&[]);
    assert_eq!(code, 1, "{said}");
    for word in [
        "counter-listen: cannot listen on",
        &format!("use it by --counter http://{address}/counter;"),
        "by --counter-listen, or off",
    ] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(start(&["--share-port"]).2.contains("and give the same to the server that shares"));
    // A server that does not start creates nothing.
    assert_eq!(fs::read_dir(data.0.path()).unwrap().count(), 0);
    let all = [&flag, &directory, "--counter-listen", "192.0.2.1:3001"];
    let (code, _, said) = run(&[&["--listen", "127.0.0.1:0", "--admin", "off"][..], &all].concat());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("counter-listen: ") && said.contains("or off"), "{said}");
    // Both remedies work.
    let server = data.site("off");
    assert_eq!(server.visit(), WELCOME);
    let url = format!("http://{address}/counter");
    // Where no route uses the bundled counter, nobody listens for it.
    let server = serve(&["--counter", &url, "--counter-listen", &address]);
    assert_eq!(server.visit(), WELCOME);
    assert_eq!(counter.get("/counter").body, "1\n");
}

#[test]
fn only_serve_takes_off() {
    for (arguments, variable) in [(&["counter", "--listen", "off"][..], ""), (&["counter"], "off")]
    {
        let mut command = tallyring();
        command.args(arguments).env("TALLYRING_COUNTER_LISTEN", variable);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(
            said.contains("only serve takes off")
                && said.contains(if variable.is_empty() {
                    "--listen off"
                } else {
                    "TALLYRING_COUNTER_LISTEN=off"
                }),
            "{said}"
        );
    }
    check(&["--counter-listen", "on"], 2, "--counter-listen");
    check(&["--counter-hosts", "http://counter"], 2, "--counter-hosts");
    check(
        &["--listen", "127.0.0.1:1", "--counter-listen", "127.0.0.1:1"],
        2,
        "--listen has 127.0.0.1:1 already",
    );
}

#[test]
fn a_sites_own_counter_answers_to_its_own_names_and_to_no_page() {
    let flags = ["--counter-listen", "127.0.0.1:0", "--counter-hosts", "counter"];
    let server = serve(&flags);
    let counter = counter_of(&server);
    let status = |fields: &str| {
        let mut client = Client::connect(counter);
        client.send(format!("POST /counter HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n"));
        client.response().status
    };
    assert_eq!(status("Host: localhost\r\n"), 200);
    assert_eq!(status("Host: counter:3001\r\n"), 200);
    assert_eq!(status("Host: evil.example\r\n"), 421);
    assert_eq!(status("Host: localhost\r\nOrigin: http://localhost\r\n"), 403);
    check_total(counter, &[], "2\n");
    let file = format!("counter-listen = \"{}\"\ncounter-hosts = \"a.b\"\n", nobody());
    let server = serve_by(&file, &["--counter-listen", "127.0.0.1:0"]);
    assert_eq!(post(counter_of(&server), "/counter"), 200);
}

#[test]
fn strangers_at_its_counter_delay_no_visit() {
    let data = Data::new();
    let [flag, directory] = data.flags();
    // So few open files that the connections of strangers would take them all, if they were not limited.
    let mut arguments = vec!["serve", "--workers", "1", "--listen", "127.0.0.1:0"];
    arguments.extend(["--admin", "off", &flag, &directory, "--counter-listen", "127.0.0.1:0"]);
    let command = limited("-n 400", &arguments);
    let mut server = Server::spawn(command, tempfile::tempdir().unwrap());
    let counter = counter_of(&server);
    let mut strangers: Vec<_> = (0..500).map(|_| Client::connect(counter)).collect();
    // Of all kinds: idle, in the middle of a head, and asking for all totals without reading them.
    for (number, stranger) in strangers.iter_mut().enumerate() {
        match number % 3 {
            0 => {}
            1 => drop(stranger.try_send("GET /counter HTTP/1.1\r\nHost:")),
            _ => drop(stranger.try_send(get_request("/counters").repeat(16))),
        }
    }
    let mut client = server.client();
    for _ in 0..100 {
        assert_eq!(client.get("/").body, WELCOME);
    }
    // And a client that behaves is answered among them: slow ones are closed for it.
    check_total(counter, &["--timeout", "60s"], "100\n");
    drop(client);
    drop(strangers);
    assert!(server.stop().contains("100 visits welcomed, 0 erred"));
}

#[test]
fn a_second_server_on_the_same_file_is_told_what_shares_a_counter() {
    let data = Data::new();
    let server = data.site("off");
    let [flag, directory] = data.flags();
    let arguments = ["--listen", "127.0.0.1:0", "--admin", "off", "--counter-listen", "off"];
    let arguments = [&arguments[..], &[&flag, &directory]].concat();
    let (code, _, said) = run(&arguments);
    assert_eq!(code, 1, "{said}");
    assert!(!said.contains("share the port"), "{said}");
    let (code, _, said) = run(&[&arguments[..], &["--share-port"]].concat());
    assert_eq!(code, 1, "{said}");
    for word in
        ["another process uses", "run tallyring counter", "--counter http://127.0.0.1:3001/"]
    {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert_eq!(server.visit(), WELCOME);
    assert!(Path::new(&data.text("counter.redb")).exists());
}

#[test]
fn a_file_size_limit_is_told_and_leaves_nothing_behind() {
    let data = Data::new();
    let counter = data.counter();
    let address = counter.address.to_string();
    let backup = data.text("backup");
    let arguments = ["backup", &backup, "--counter-listen", &address];
    let output = limited("-c 0; ulimit -f 8", &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("backup.unfinished: File too large"), "{said}");
    assert!(!data.path("backup").exists() && !data.path("backup.unfinished").exists());
}
