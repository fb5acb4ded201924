//! The bundled counter: what it answers, and that what it has answered stays counted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use common::{
    Books, Client, PATIENCE, Server, Signal, WELCOME, get_request, limited, serve, tallyring,
};

fn counter(store: &str) -> Server {
    Server::start(&["counter", "--store", store], &[])
}

fn post(client: &mut Client, path: &str) -> (u16, String) {
    client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
    let response = client.response();
    (response.status, response.body)
}

fn get(client: &mut Client, path: &str) -> (u16, String) {
    let response = client.get(path);
    (response.status, response.body)
}

#[test]
fn it_counts_under_names() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("redb:{}", directory.path().join("counter.redb").display());
    for store in ["memory", &store] {
        let server = counter(store);
        let mut client = server.client();
        let total = |text: &str| (200, format!("{text}\n"));
        assert_eq!(get(&mut client, "/counter"), total("0"));
        assert_eq!(post(&mut client, "/counter"), total("1"));
        assert_eq!(post(&mut client, "/counter?by=1000000"), total("1000001"));
        assert_eq!(post(&mut client, "/counter/home.page?by=5"), total("5"));
        assert_eq!(get(&mut client, "/counter/home.page"), total("5"));
        assert_eq!(get(&mut client, "/counter"), total("1000001"));
        let all = client.get("/counters");
        assert_eq!(all.body, r#"{"":1000001,"home.page":5}"#);
        assert_eq!(all.field("content-type"), Some("application/json"));
        for (path, status) in [
            ("/counter?by=0", 400),
            ("/counter?by=1000001", 400),
            ("/counter?to=1", 400),
            ("/counter/", 400),
            ("/counter/a/b", 400),
            ("/counters", 405),
            ("/other", 404),
        ] {
            assert_eq!(post(&mut client, path).0, status, "{path}");
        }
        client.send("DELETE /counter HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.response().field("allow"), Some("GET, HEAD, POST, OPTIONS"));
        assert_eq!(get(&mut client, "/counter"), total("1000001"));
    }
}

#[test]
fn pipelined_calls_are_counted_in_order() {
    let server = counter("memory");
    let mut client = server.client();
    client.send(
        "POST /counter HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50) + &get_request("/counter"),
    );
    for total in 1..=50 {
        assert_eq!(client.response().body, format!("{total}\n"));
    }
    assert_eq!(client.response().body, "50\n");
}

#[test]
fn a_site_without_another_counter_has_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let mut server = serve(&["--data-dir", data]);
    for _ in 0..3 {
        assert_eq!(server.visit(), WELCOME);
    }
    assert_eq!(total(&server), 3);
    assert!(server.stop().contains("3 visits welcomed"));
    // The total outlives the process.
    let server = serve(&["--data-dir", data]);
    assert_eq!(server.visit(), WELCOME);
    assert_eq!(total(&server), 4);
}

/// The total of a site's own counter.
fn total(server: &Server) -> u64 {
    let counter = server.address_after("visits go to ");
    Client::connect(counter).get("/counter").body.trim().parse().unwrap()
}

#[test]
fn kill_9_under_load_loses_no_welcomed_visit() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("redb:{}", directory.path().join("counter.redb").display());
    let mut welcomed = 0;
    let mut sent = 0;
    for round in 1..=3 {
        let mut counter = counter(&store);
        let url = format!("http://{}/counter", counter.address);
        let mut site = serve(&["--counter", &url, "--counter-timeout", "2s"]);
        let stop = AtomicBool::new(false);
        let (some, enough) = std::sync::mpsc::channel();
        let (now_welcomed, now_sent) = thread::scope(|scope| {
            let visitors: Vec<_> = (0..16)
                .map(|_| {
                    let (mut client, some, stop) = (site.client(), some.clone(), &stop);
                    scope.spawn(move || {
                        let (mut welcomed, mut sent) = (0u64, 0u64);
                        while !stop.load(Ordering::SeqCst) {
                            sent += 1;
                            if client.get("/").body == WELCOME {
                                welcomed += 1;
                                let _ = some.send(());
                            }
                        }
                        (welcomed, sent)
                    })
                })
                .collect();
            // In the middle of the load, however fast this machine is.
            for _ in 0..200 * round {
                enough.recv_timeout(PATIENCE).unwrap();
            }
            counter.signal(Signal::KILL);
            counter.wait();
            stop.store(true, Ordering::SeqCst);
            let counts = visitors.into_iter().map(|visitor| visitor.join().unwrap());
            counts.fold((0, 0), |(w, s), (welcomed, sent)| (w + welcomed, s + sent))
        });
        welcomed += now_welcomed;
        sent += now_sent;
        let line = site.stop();
        assert_eq!(Books::read(&line).welcomed, now_welcomed, "{line}");
    }
    let reopened = counter(&store);
    let counted: u64 = reopened.get("/counter").body.trim().parse().unwrap();
    assert!(welcomed <= counted, "{welcomed} welcomed, {counted} counted");
    assert!(counted <= sent, "{counted} counted, {sent} sent");
}

/// A site without the default ports.
const SERVE: [&str; 5] = ["serve", "--admin", "off", "--counter-listen", "off"];

#[track_caller]
fn check_start_fails(arguments: &[&str], words: &str) {
    let output = tallyring().args(arguments).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(words), "{said:?} does not say {words:?}");
    assert_eq!(said.lines().filter(|line| line.starts_with("tallyring:")).count(), 1, "{said}");
}

#[test]
fn a_second_process_on_the_same_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("redb:{}", directory.path().join("counter.redb").display());
    let server = counter(&store);
    let mut client = server.client();
    assert_eq!(post(&mut client, "/counter").1, "1\n");
    check_start_fails(&["counter", "--store", &store], "another process uses the counter's file");
    assert_eq!(post(&mut client, "/counter").1, "2\n");
}

#[test]
fn a_foreign_file_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    fs::write(&path, "my diary").unwrap();
    let store = format!("redb:{}", path.display());
    check_start_fails(&["counter", "--store", &store], "is not a counter's file");
    check_start_fails(
        &[&SERVE[..], &["--data-dir", directory.path().to_str().unwrap()]].concat(),
        "is not a counter's file",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "my diary");
}

#[test]
fn an_empty_file_is_refused_without_create() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    let store = format!("redb:{}", path.display());
    fs::write(&path, "").unwrap();
    let data = ["--data-dir", directory.path().to_str().unwrap()];
    check_start_fails(&["counter", "--store", &store], "is empty");
    check_start_fails(&[&SERVE[..], &data].concat(), "--create");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(serve(&["--create", data[0], data[1]]).visit(), WELCOME);
    let server = Server::start(&["counter", "--store", &store], &[("TALLYRING_CREATE", "true")]);
    assert_eq!(server.get("/counter").body, "1\n");
}

#[test]
fn a_running_counter_refuses_until_its_file_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    let away = directory.path().join("away");
    let server = counter(&format!("redb:{}", path.display()));
    let mut client = server.client();
    assert_eq!(post(&mut client, "/counter").1, "1\n");
    fs::rename(&path, &away).unwrap();
    for _ in 0..3 {
        assert_eq!(post(&mut client, "/counter").0, 503);
    }
    assert!(!path.exists(), "it was made again");
    server.wait_for_line("was moved or deleted");
    fs::rename(&away, &path).unwrap();
    assert_eq!(post(&mut client, "/counter").1, "2\n");
    // The same was logged once.
    server.wait_for_line("works again");
    // A copy is another file with the same totals.
    fs::copy(&path, &away).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(post(&mut client, "/counter").0, 503);
    fs::write(&path, "").unwrap();
    assert_eq!(post(&mut client, "/counter").0, 503);
    fs::rename(&away, &path).unwrap();
    assert_eq!(post(&mut client, "/counter").1, "3\n");
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    let store = format!("redb:{}", path.display());
    let before = {
        let server = counter(&store);
        let mut client = server.client();
        post(&mut client, "/counter?by=41").1
    };
    assert_eq!(before, "41\n");
    // A limit on the size of files, at the size of this one, acts as a full disk: names make the file grow until it
    // cannot.
    let blocks = fs::metadata(&path).unwrap().len() / 1024;
    let arguments = ["counter", "--listen", "127.0.0.1:0", "--store", &store];
    let command = limited(&format!("-f {blocks}"), &arguments);
    let mut server = Server::spawn(command, tempfile::tempdir().unwrap());
    let mut client = server.client();
    let mut counted = Vec::new();
    let mut refused = 0;
    for number in 0..9000 {
        let name = format!("{number:0>100}");
        match post(&mut client, &format!("/counter/{name}")) {
            (200, total) => {
                assert_eq!(total, "1\n");
                counted.push(name);
            }
            (503, _) => refused += 1,
            other => panic!("{other:?}"),
        }
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "the file never grew to its limit");
    assert!(server.stop().contains("stopped"));
    let server = counter(&store);
    let mut client = server.client();
    assert_eq!(get(&mut client, "/counter").1, "41\n");
    for name in counted {
        assert_eq!(get(&mut client, &format!("/counter/{name}")).1, "1\n");
    }
    assert_eq!(post(&mut client, "/counter").1, "42\n");
}
