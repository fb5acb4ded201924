//! Totals are moved from one store to another: `tallyring counter export`, `import`, `migrate` and `reopen`, between files
//! and real databases that the tests start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod databases;
mod files;
#[path = "../etcd/member.rs"]
#[allow(dead_code)]
mod member;

use std::fs;

use common::{Data, Server, run};

impl Data {
    /// A file with the totals of a counter without a name and of these.
    fn export(&self, name: &str, total: u64, names: &[(&str, u64)]) -> String {
        fs::write(self.path(name), json(total, names)).unwrap();
        self.text(name)
    }

    /// A data directory with these totals.
    fn counted(&self, name: &str, total: u64, names: &[(&str, u64)]) -> String {
        let (from, to) = (self.export("counted.json", total, names), self.text(name));
        check(&["counter", "import", &from, "--data-dir", &to], 0, "counted");
        to
    }
}

/// An export.
fn json(total: u64, names: &[(&str, u64)]) -> String {
    let sum = total + names.iter().map(|(_, total)| total).sum::<u64>();
    let names: Vec<_> = names.iter().map(|(name, total)| format!("\"{name}\":{total}")).collect();
    let names = names.join(",");
    format!(r#"{{"version":1,"total":{total},"names":{{{names}}},"sum":{sum}}}"#)
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

/// A store, given by `--store` or `--data-dir`, holds this.
#[track_caller]
fn check_holds(flag: &str, store: &str, total: u64, names: &[(&str, u64)]) {
    let (code, out, error) = run(&["counter", "export", flag, store]);
    assert_eq!((code, &*error), (0, ""));
    let [found, expected]: [serde_json::Value; 2] =
        [out, json(total, names)].map(|text| serde_json::from_str(&text).unwrap());
    assert_eq!(found, expected);
}

/// The same of a store whose totals were moved: who reads them is told where they are.
#[track_caller]
fn check_held(flag: &str, store: &str, (total, names): (u64, &[(&str, u64)]), to: &str) {
    let (code, out, error) = run(&["counter", "export", flag, store]);
    assert_eq!(code, 0, "{error}");
    let words = format!("were moved to {to}");
    assert!(error.lines().count() == 1 && error.contains(&words), "{error}");
    let [found, expected]: [serde_json::Value; 2] =
        [out, json(total, names)].map(|text| serde_json::from_str(&text).unwrap());
    assert_eq!(found, expected);
}

/// A counter that uses this store does not start.
#[track_caller]
fn check_closed(flag: &str, store: &str, words: &str) {
    check(&["counter", "--listen", "127.0.0.1:0", flag, store], 1, words);
    let before =
        ["--listen", "127.0.0.1:0", "--admin", "off", "--counter-listen", "off", flag, store];
    check(&[&["check"], &before[..]].concat(), 1, words);
    let (_, out, error) = run(&[&["doctor"], &before[..]].concat());
    assert!(out.contains(words) && out.contains("SHORT   store"), "{out}{error}");
}

fn post(server: &Server, path: &str) -> (u16, String) {
    let mut client = server.client();
    client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
    let response = client.response();
    (response.status, response.body)
}
