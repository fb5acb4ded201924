//! What docs/operating.md says against a real server: each figure that it has is documented, and nothing else is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{collections::BTreeSet, fs};

use common::{Server, WELCOME};
use serde_json::Value;

/// A page of the documentation.
fn page(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The words in code style of the first cells of a table, which has this head.
#[track_caller]
fn first_cells(page: &str, head: &str) -> BTreeSet<String> {
    let lines = page.lines().skip_while(|line| !line.starts_with(&format!("| {head} |")));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned);
    let names: Vec<String> = names.collect();
    let once: BTreeSet<_> = names.iter().cloned().collect();
    assert!(!names.is_empty() && once.len() == names.len(), "{head}: {names:?}");
    once
}

/// A server with its bundled counter, after a visit.
fn visited() -> Server {
    let server = Server::start(&["serve", "--workers", "2", "--admin", "127.0.0.1:0"], &[]);
    assert_eq!(server.visit(), WELCOME);
    server
}

/// The fields of an object and of all that is in it. Those of a list are those of its first element.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if path.ends_with("_by_cause") || path.ends_with("_by_reason") => {
            assert!(object.values().all(Value::is_u64), "{path}: {object:?}");
            found.insert(format!("{path}.*"));
        }
        Value::Object(object) => {
            for (name, value) in object {
                let dot = if path.is_empty() { "" } else { "." };
                fields(value, &format!("{path}{dot}{name}"), found);
            }
        }
        Value::Array(list) => fields(&list[0], &format!("{path}[]"), found),
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// What the page says that an answer of `/stats` has.
fn documented(page: &str) -> BTreeSet<String> {
    let durations = first_cells(page, "field of `durations` and `waits`");
    let under = |prefix: &str, names: &BTreeSet<String>| -> BTreeSet<String> {
        let of_name = |name: &String| match name.as_str() {
            "durations" | "waits" => {
                durations.iter().map(|field| format!("{prefix}.{name}.{field}")).collect()
            }
            _ => vec![format!("{prefix}.{name}")],
        };
        names.iter().flat_map(of_name).collect()
    };
    let counts = first_cells(page, "field of `totals` and `workers[]`");
    let upstream = first_cells(page, "field of `upstreams[]` and `counters[]`");
    let mut all = first_cells(page, "field");
    for (group, names) in [
        ("totals", &counts),
        ("workers[]", &counts),
        ("workers[].upstreams[]", &upstream),
        ("counters[]", &upstream),
    ] {
        assert!(all.remove(group), "{group} is not in the table");
        all.extend(under(group, names));
    }
    all
}

#[test]
fn each_field_of_the_figures_is_documented() {
    let server = visited();
    let stats: Value = serde_json::from_str(&server.admin().get("/stats").body).unwrap();
    let mut there = BTreeSet::new();
    fields(&stats, "", &mut there);
    let mut said = documented(&page("docs/operating.md"));
    // On epoll, and on a kernel that does not tell.
    if there.remove("workers[].ring") {
        said.retain(|field| !field.starts_with("workers[].ring."));
    }
    let missing: Vec<_> = there.difference(&said).collect();
    assert!(missing.is_empty(), "docs/operating.md does not have {missing:?}");
    let gone: Vec<_> = said.difference(&there).collect();
    assert!(gone.is_empty(), "docs/operating.md has {gone:?}, and /stats does not");
}

/// The names of the metrics in the text of `/metrics`.
fn metrics(server: &Server) -> BTreeSet<String> {
    let text = server.admin().get("/metrics").body;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn each_metric_is_documented() {
    let there = metrics(&visited());
    let mut said = first_cells(&page("docs/operating.md"), "metric");
    if !there.contains("tallyring_ring_submitted_total") {
        said.retain(|name| !name.starts_with("tallyring_ring_"));
    }
    assert_eq!(there, said);
}

/// Whether the kernel tells what the rings of the server have done.
fn rings_tell(server: &Server) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", server.id())).unwrap();
    let tells = |path| fs::read_to_string(path).is_ok_and(|text| text.contains("SqHead:"));
    descriptors.map(|entry| entry.unwrap().path()).any(tells)
}

#[test]
fn a_ring_tells_what_it_has_done_while_it_has_few_connections() {
    const CONNECTIONS_MAX: usize = 256;
    let server = Server::start(&["serve", "--workers", "1", "--admin", "127.0.0.1:0"], &[]);
    let mut admin = server.admin();
    let mut ring = || {
        let stats: Value = serde_json::from_str(&admin.get("/stats").body).unwrap();
        let number = |name: &str| {
            stats.pointer(&format!("/workers/0/ring/{name}")).map(|number| number.as_u64().unwrap())
        };
        number("submitted").zip(number("completed"))
    };
    if !rings_tell(&server) {
        assert_eq!(ring(), None);
        return;
    }
    let mut client = server.client();
    let before = ring().expect("it tells");
    (0..50).for_each(|_| assert_eq!(client.get("/").body, WELCOME));
    let after = ring().expect("it tells");
    // At least a read and a write of the client, and of the counter's connection.
    let (submitted, completed) = (after.0 - before.0, after.1 - before.1);
    assert!((200..1000).contains(&submitted), "{submitted}");
    assert!((200..=submitted + 50).contains(&completed), "{completed} of {submitted}");
    // With the connection to the counter, one too many.
    let clients: Vec<_> = (1..CONNECTIONS_MAX).map(|_| server.client()).collect();
    while ring().is_some() {}
    drop(clients);
    while ring().is_none() {}
}
