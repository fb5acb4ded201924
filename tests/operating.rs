//! What docs/operating.md, the dashboard and the alerts say, against a real server: each figure that it has is
//! documented, and nothing else is asked for.

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
    let flags = ["--workers", "2", "--admin", "127.0.0.1:0", "--access-log", "/dev/null"];
    let server = Server::start(&[&["serve"], &flags[..]].concat(), &[]);
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
    // At least a read of the client, and of the counter's connection: what is sent alone is sent past the ring.
    let (submitted, completed) = (after.0 - before.0, after.1 - before.1);
    assert!((100..1000).contains(&submitted), "{submitted}");
    assert!((100..=submitted + 50).contains(&completed), "{completed} of {submitted}");
    // With the connection to the counter, one too many.
    let clients: Vec<_> = (1..CONNECTIONS_MAX).map(|_| server.client()).collect();
    while ring().is_some() {}
    drop(clients);
    while ring().is_none() {}
}

/// The names of all samples in the text of `/metrics`, as a query has them.
fn samples(server: &Server) -> BTreeSet<String> {
    let text = server.admin().get("/metrics").body;
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| row.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// What may stand in a query beside metrics, outside of quotes: functions, aggregations and labels.
const WORDS: [&str; 26] = [
    "by",
    "cause",
    "changes",
    "count",
    "counter",
    "e9",
    "histogram_quantile",
    "increase",
    "instance",
    "job",
    "kind",
    "le",
    "m",
    "max",
    "min",
    "mode",
    "or",
    "outcome",
    "peer",
    "rate",
    "rate_interval",
    "reason",
    "sum",
    "up",
    "vector",
    "worker",
];

/// The words of a query that are neither in quotes nor known.
fn metrics_in(query: &str) -> BTreeSet<String> {
    let outside: String = query.split('"').step_by(2).collect();
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = outside.split(|character| !is_word(character));
    let words = words.map(|word| word.trim_start_matches(|digit: char| digit.is_ascii_digit()));
    let words = words.map(|word| word.trim_start_matches("__"));
    let unknown = words.filter(|word| !word.is_empty() && !WORDS.contains(word));
    unknown.map(str::to_owned).collect()
}

#[test]
fn the_metrics_in_a_query_are_found() {
    let query =
        "sum by (le) (rate(a_bucket{b=\"c_d\",job=~\"$job\"}[$__rate_interval])) / e_f > 1e9";
    assert_eq!(metrics_in(query), ["a_bucket", "b", "e_f"].map(str::to_owned).into());
}

/// Each query has a metric, and only metrics that the server has.
#[track_caller]
fn check_queries(queries: &[String], there: &BTreeSet<String>) {
    for query in queries {
        let mut metrics = metrics_in(query);
        if !there.contains("tallyring_ring_completed_total") {
            metrics.retain(|name| !name.starts_with("tallyring_ring_"));
        }
        let unknown: Vec<_> = metrics.difference(there).collect();
        assert!(unknown.is_empty(), "{query} has {unknown:?}, and /metrics has not");
        assert!(!metrics.is_empty() || query.contains("up{"), "{query} asks for nothing");
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(&page("package/grafana/tallyring.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have the same id");
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{} shows nothing", panel["title"]);
        let mut letters = BTreeSet::new();
        for target in targets {
            assert!(letters.insert(target["refId"].as_str().unwrap()), "{}", panel["title"]);
            queries.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    assert!(queries.len() > 30, "{}", queries.len());
    for query in &queries {
        assert!(
            query.contains("job=~\"$job\",instance=~\"$instance\""),
            "{query} is of all servers"
        );
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        queries.push(annotation["expr"].as_str().unwrap().to_owned());
    }
    check_queries(&queries, &samples(&visited()));
}

#[test]
fn no_two_panels_cover_each_other() {
    let dashboard: Value = serde_json::from_str(&page("package/grafana/tallyring.json")).unwrap();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (columns, rows) =
            (place("x")..place("x") + place("w"), place("y")..place("y") + place("h"));
        assert!(columns.end <= 24, "{panel}");
        for column in columns {
            for row in rows.clone() {
                assert!(taken.insert((column, row)), "{} covers another panel", panel["title"]);
            }
        }
    }
}

/// The alerts of the rule file: their names and their queries.
fn alerts() -> Vec<(String, String)> {
    let text = page("package/prometheus/alerts.yml");
    let alerts = text.split("      - alert: ").skip(1).map(|alert| {
        let (name, rest) = alert.split_once('\n').unwrap();
        let (_, query) = rest.split_once("expr: ").unwrap();
        let end = query.find("\n        for:").or_else(|| query.find("\n        labels:")).unwrap();
        let query = query[..end].trim_start_matches('|').trim();
        (name.to_owned(), query.to_owned())
    });
    alerts.collect()
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are_and_each_is_explained() {
    let alerts = alerts();
    assert!(alerts.len() > 10, "{alerts:?}");
    let names: BTreeSet<_> = alerts.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), alerts.len());
    let queries: Vec<_> = alerts.into_iter().map(|(_, query)| query).collect();
    check_queries(&queries, &samples(&visited()));
    assert_eq!(first_cells(&page("docs/operating.md"), "alert"), names);
    // Each has a case in which it fires, and one in which it does not.
    let cases = page("package/prometheus/alerts_test.yml");
    for name in names {
        for case in ["fires", "is quiet"] {
            assert!(cases.contains(&format!("- name: {name} {case}\n")), "no case: {name} {case}");
        }
    }
}
