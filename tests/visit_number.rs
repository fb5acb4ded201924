//! The number of a visit in its page: that of its own call to the counter, or none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use common::{COUNTED, Client, SORRY, Server, Signal, Stub, get_request, run, serve};

const PAGE: &str = "<p>Visit {visits}, yes {visits}</p>";

/// A directory with a welcome page.
fn directory(page: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("welcome.html"), page).unwrap();
    directory
}

fn path(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

/// A server whose welcome page this is.
fn serve_page(page: &str, flags: &[&str]) -> (Server, tempfile::TempDir) {
    let directory = directory(page);
    let welcome = path(&directory, "welcome.html");
    (serve(&[&["--welcome", &welcome], flags].concat()), directory)
}

fn page_of(number: &str) -> String {
    PAGE.replace("{visits}", number)
}

/// What a visitor is shown whose counter answers so.
#[track_caller]
fn check(answer: &'static str, flags: &[&str], expected: &str) {
    let stub = Stub::answering(answer);
    let (server, _directory) = serve_page(PAGE, &[&["--counter", &stub.url()], flags].concat());
    // The second is not shown what the first was.
    for _ in 0..2 {
        let response = server.get("/");
        assert_eq!((response.status, &response.body[..]), (200, expected), "{answer:?} {flags:?}");
    }
}

#[test]
fn what_a_counter_answers_is_shown_if_it_is_a_number() {
    let shown = |answer, number| check(answer, &[], &page_of(number));
    shown("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n42\n", "42");
    shown("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n4 2", "");
    shown(
        "HTTP/1.1 201 Made\r\nContent-Length: 20\r\n\r\n99999999999999999999",
        "99999999999999999999",
    );
    shown("HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n100000000000000000000", "");
    shown("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n42\r\n", "42");
    // It closes after an answer whose end is told by its length.
    shown("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n42", "42");
    shown("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"total\":42}", "");
    shown("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<b>42</b>", "");
    shown("HTTP/1.1 204 Counted\r\n\r\n", "");
    shown("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "");
}

#[test]
fn only_an_answer_that_says_that_the_visit_is_counted_has_its_number() {
    let failed = "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n42";
    check(failed, &[], SORRY);
    check(failed, &["--accept", "any"], &page_of(""));
    let counted = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42";
    check(counted, &["--accept", "any"], &page_of("42"));
}

#[test]
fn a_body_without_an_end_of_its_own_has_no_number() {
    let stub = Stub::start(|_, mut peer| {
        // It may have been cut off, so that the number is another one.
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\n\r\n42");
        }
    });
    let (server, _directory) = serve_page(PAGE, &["--counter", &stub.url()]);
    assert_eq!(server.visit(), page_of(""));
}

#[test]
fn each_visit_is_shown_the_number_of_its_own_call_in_any_pieces() {
    let forms = |number: usize| {
        let text = format!("{number}\n");
        let length = text.len();
        let (one, other) = text.split_at(length / 2);
        let [one, other] = [one, other].map(|part| format!("{:x}\r\n{part}\r\n", part.len()));
        [
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}"),
            format!(
                "HTTP/1.1 103 Hints\r\nA: 1\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {one}{other}0\r\nB: 2\r\n\r\n"
            ),
        ]
    };
    let longest = forms(100_000).map(|answer| answer.len()).into_iter().max().unwrap();
    let calls = Arc::new(AtomicUsize::new(100_000));
    let numbers = Arc::clone(&calls);
    let stub = Stub::start(move |_, mut peer| {
        peer.stream.set_nodelay(true).unwrap();
        while peer.request().is_some() {
            let number = numbers.fetch_add(1, Ordering::SeqCst);
            let answer = &forms(number)[number % 2];
            let (first, rest) = answer.split_at((number / 2 % longest).min(answer.len()));
            if !(peer.send(first) && peer.send(rest)) {
                return;
            }
        }
    });
    let (server, _directory) = serve_page(PAGE, &["--counter", &stub.url(), "--workers", "1"]);
    let mut client = server.client();
    for number in 100_000..100_000 + 2 * longest {
        assert_eq!(client.get("/").body, page_of(&number.to_string()));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 100_000 + 2 * longest);
}

#[test]
fn the_bundled_counter_numbers_the_visits_of_one_client_in_order() {
    let (mut server, _directory) = serve_page(PAGE, &[]);
    let mut client = server.client();
    for number in 1..=11 {
        let response = client.get("/");
        let expected = page_of(&number.to_string());
        assert_eq!(response.field("content-length"), Some(&*expected.len().to_string()));
        assert_eq!(response.body, expected);
        assert_eq!(response.field("cache-control"), Some("no-store"));
        assert_eq!((response.field("etag"), response.field("last-modified")), (None, None));
    }
    // A HEAD is a visit too: its length is that of the page which it would have been shown.
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\nRange: bytes=0-1\r\n\r\n");
    let head = client.response_to("HEAD");
    let length = page_of("12").len().to_string();
    assert_eq!((head.status, head.field("content-length")), (200, Some(&*length)));
    // Calls of visits that are pipelined may overtake each other, as those of different clients.
    client.send(get_request("/").repeat(20));
    let shown: BTreeSet<_> = (0..20).map(|_| client.response().body).collect();
    let expected: BTreeSet<_> = (13..=32).map(|number: u32| page_of(&number.to_string())).collect();
    assert_eq!(shown, expected);
    drop(client);
    assert!(server.stop().contains("32 visits welcomed, 0 erred"));
}

#[test]
fn no_two_visitors_are_shown_the_same_number() {
    const CLIENTS: usize = 8;
    const VISITS: usize = 50;
    let (server, _directory) = serve_page("{visits}", &[]);
    let address = server.address;
    let shown = thread::scope(|scope| {
        let client = move || {
            let mut client = Client::connect(address);
            (0..VISITS).map(|_| client.get("/").body.parse().unwrap()).collect::<Vec<usize>>()
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    for numbers in &shown {
        assert!(numbers.is_sorted(), "a later visit has a smaller number: {numbers:?}");
    }
    let all: BTreeSet<_> = shown.into_iter().flatten().collect();
    assert_eq!(all, (1..=CLIENTS * VISITS).collect());
}

#[test]
fn what_is_no_welcome_page_shows_no_number() {
    let directory = directory("{visits}");
    for (name, text) in [("sorry.txt", "sorry{visits}!"), ("page.txt", PAGE), ("image.png", PAGE)] {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let stub = Stub::answering(COUNTED);
    let config = "sorry = \"sorry.txt\"\n\
        [[route]]\npath = \"/down\"\nwelcome = \"welcome.html\"\ncounter = \"http://127.0.0.1:1/\"\n\
        [[route]]\npath = \"/image\"\nwelcome = \"image.png\"\n\
        [[route]]\npath = \"/page\"\ncounted = false\npage = \"page.txt\"\n\
        [[route]]\npath = \"/text\"\ncounted = false\ntext = \"{visits}\"\n\
        [[route]]\npath = \"/files/*\"\ndirectory = \".\"\n";
    fs::write(directory.path().join("tallyring.toml"), config).unwrap();
    let server =
        serve(&["--config", &path(&directory, "tallyring.toml"), "--counter", &stub.url()]);
    let mut client = server.client();
    assert_eq!(client.get("/down").body, "sorry!");
    for (path, text) in [
        // Not text, so its bytes stay as they are.
        ("/image", PAGE),
        ("/page", PAGE),
        ("/text", "{visits}"),
        ("/files/page.txt", PAGE),
        ("/files/welcome.html", "{visits}"),
    ] {
        assert_eq!(client.get(path).body, text, "{path}");
    }
}

#[test]
fn a_reload_brings_the_number_and_takes_it_away() {
    let stub = Stub::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42");
    let (server, directory) = serve_page("plain", &["--counter", &stub.url()]);
    for (page, shown) in [("plain", "plain"), ("no. {visits}", "no. 42"), ("again", "again")] {
        fs::write(directory.path().join("welcome.html"), page).unwrap();
        server.signal(Signal::HUP);
        server.wait_for_line("read anew");
        assert_eq!(server.visit(), shown);
    }
    // It would take its size for each visitor who reads it slowly.
    fs::write(directory.path().join("welcome.html"), "{visits}".repeat(8193)).unwrap();
    server.signal(Signal::HUP);
    let line = server.wait_for_line("stay as they were");
    assert!(line.contains("65544 bytes and {visits} in it"), "{line}");
    assert_eq!(server.visit(), "again");
    let welcome = path(&directory, "welcome.html");
    let (code, _, said) = run(&["check", "--welcome", &welcome, "--counter", &stub.url()]);
    assert!(code == 2 && said.contains("--welcome"), "{code} {said}");
}
