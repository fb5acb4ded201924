//! `--trace-context`: calls say of which trace their visits are a part.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use common::{COUNTED, Server, Stub, WELCOME, run, serve_with};

const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A counter that keeps the head of each call.
fn recorder() -> (Stub, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&heads);
    let stub = Stub::start(move |_, mut peer| {
        while let Some(head) = peer.request() {
            kept.lock().unwrap().push(head);
            if !peer.send(COUNTED) {
                return;
            }
        }
    });
    (stub, heads)
}

/// The value of the field of a head.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let value = values.next();
    assert_eq!(values.next(), None, "{head}");
    value
}

/// A site whose counter keeps the heads of its calls.
struct Traced {
    server: Server,
    stub: Stub,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Traced {
    fn start(flags: &[&str]) -> Self {
        let (stub, heads) = recorder();
        let server = serve_with(&stub, flags);
        Self { server, stub, heads }
    }

    /// The head of the call of a visit that sends these fields, without what all calls have.
    #[track_caller]
    fn visit(&self, fields: &str) -> String {
        let mut client = self.server.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(client.response().body, WELCOME);
        let heads = std::mem::take(&mut *self.heads.lock().unwrap());
        let [head] = &heads[..] else { panic!("one call: {heads:?}") };
        assert!(head.starts_with("POST /counter HTTP/1.1\r\ncontent-length: 0\r\n"), "{head}");
        let host = self.stub.url().replace("http://", "").replace("/counter", "");
        assert_eq!(field(head, "host"), Some(&*host));
        head.clone()
    }

    #[track_caller]
    fn check(&self, fields: &str, expected: (&str, &str), state: Option<&str>) {
        let head = self.visit(fields);
        let (id, flags) = expected;
        let parent = field(&head, "traceparent").expect(&head);
        let parts: Vec<&str> = parent.split('-').collect();
        let [version, trace, span, trace_flags] = parts[..] else { panic!("{head}") };
        assert_eq!((version, trace, trace_flags), ("00", id, flags), "{head}");
        assert!(span != PARENT && span.len() == 16, "{head}");
        assert_eq!(field(&head, "tracestate"), state, "{head}");
    }

    /// A visit with these fields begins a trace of its own; its id.
    #[track_caller]
    fn check_begun(&self, fields: &str) -> String {
        let head = self.visit(fields);
        let parent = field(&head, "traceparent").expect(&head);
        assert!(!parent.contains(ID) && parent.len() == 55, "{head}");
        assert_eq!(field(&head, "tracestate"), None, "{head}");
        parent[3..35].to_owned()
    }
}

#[test]
fn a_visit_stays_a_part_of_its_trace() {
    let site = Traced::start(&["--trace-context", "--workers", "1"]);
    let valid = format!("Traceparent: 00-{ID}-{PARENT}-01\r\n");
    site.check(&valid, (ID, "01"), None);
    site.check(&valid.replace("-01", "-00"), (ID, "00"), None);
    site.check(
        &format!("tracestate: b=2\r\n{valid}TraceState: c=3\r\n"),
        (ID, "01"),
        Some("b=2,c=3"),
    );
    site.check(&format!("{valid}tracestate: no state\r\n"), (ID, "01"), None);
    site.check(&valid.replace(": 00", ": 3f").replace("-01", "-01-x"), (ID, "01"), None);
    let long = format!("a={}", "x".repeat(200));
    let states = format!("{valid}tracestate: {long},{long},{long},b=2\r\n");
    site.check(&states, (ID, "01"), Some(&format!("{long},{long},b=2")));
}

#[test]
fn a_visit_without_a_trace_begins_one() {
    let mut ids = BTreeSet::new();
    let site = Traced::start(&["--trace-context"]);
    let valid = format!("traceparent: 00-{ID}-{PARENT}-01\r\n");
    let wrong = [
        String::new(),
        String::from("tracestate: a=1\r\n"),
        format!("{valid}{valid}tracestate: a=1\r\n"),
        format!("{}tracestate: a=1\r\n", valid.to_uppercase()),
        valid.replace(": 00", ": ff"),
        valid.replace(PARENT, "0000000000000000"),
        valid.replace("-01", "-01\t-evil: 1"),
    ];
    for fields in &wrong {
        assert!(ids.insert(site.check_begun(fields)), "an id is used twice: {fields}");
    }
    // The workers of another server have other ids.
    let other = Traced::start(&["--trace-context"]);
    for _ in 0..20 {
        assert!(ids.insert(other.check_begun("")) && ids.insert(site.check_begun("")));
    }
}

#[test]
fn a_share_of_the_traces_is_recorded() {
    for (share, least, most) in
        [("0%", 0, 0), ("100%", 100, 100), ("50%", 20, 80), ("1/2", 20, 80), ("1", 100, 100)]
    {
        let (stub, heads) = recorder();
        let flags = ["--trace-context", "--trace-sample", share];
        let server = serve_with(&stub, &flags);
        let mut client = server.client();
        for _ in 0..100 {
            assert_eq!(client.get("/").body, WELCOME);
        }
        let heads = heads.lock().unwrap();
        let sampled =
            heads.iter().filter(|head| field(head, "traceparent").unwrap().ends_with("-01"));
        let sampled = sampled.count();
        assert!((least..=most).contains(&sampled), "{share}: {sampled}");
    }
}

#[test]
fn without_the_setting_no_trace_goes_on() {
    let site = Traced::start(&["--trace-sample", "50%"]);
    let head = site.visit(&format!("traceparent: 00-{ID}-{PARENT}-01\r\ntracestate: a=1\r\n"));
    assert!(!head.contains("trace"), "{head}");
    let (code, _, said) = run(&["serve", "--trace-context", "--trace-sample", "2"]);
    assert!(code == 2 && said.contains("it must be a share like 1%"), "{said}");
}

#[test]
fn a_visit_with_a_body_keeps_its_trace() {
    let site = Traced::start(&["--trace-context"]);
    let (mut first, mut second) = (site.server.client(), site.server.client());
    // Both are read at the same time.
    for (client, id) in [(&mut first, "1"), (&mut second, "2")] {
        client.send(format!(
            "GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-{}-{PARENT}-01\r\nContent-Length: 4\r\n\r\nab",
            id.repeat(32)
        ));
    }
    for (client, id) in [(&mut second, "2"), (&mut first, "1")] {
        client.send("cd");
        assert_eq!(client.response().body, WELCOME);
        let head = site.heads.lock().unwrap().pop().unwrap();
        assert_eq!(field(&head, "traceparent").unwrap()[3..35], id.repeat(32));
    }
}

#[test]
fn a_reload_begins_and_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("site.toml");
    std::fs::write(&path, "trace-context = true\ntrace-sample = \"100%\"\n").unwrap();
    let site = Traced::start(&["--config", path.to_str().unwrap()]);
    site.check(&format!("traceparent: 00-{ID}-{PARENT}-00\r\n"), (ID, "00"), None);
    assert!(field(&site.visit(""), "traceparent").unwrap().ends_with("-01"));
    std::fs::write(&path, "trace-context = false\n").unwrap();
    site.server.signal(common::Signal::HUP);
    site.server.wait_for_line("trace-context is false, was true");
    assert_eq!(field(&site.visit(""), "traceparent"), None);
}
