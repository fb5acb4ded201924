//! One member: killed, compacted and full.

use std::{
    sync::{Arc, Barrier},
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    PREFIX,
    common::{
        Client,
        proxy::{Proxy, Way},
    },
    counter,
    load::{ADD, Load},
    member::{program, single, url},
};

#[test]
fn totals_outlive_a_counter() {
    let Some(program) = program("totals_outlive_a_counter") else { return };
    let member = single(&program, &[]);
    let store = url(std::slice::from_ref(&member), PREFIX);
    let mut server = counter(&store, "a");
    let mut client = server.client();
    let add = |client: &mut Client, path: &str| {
        client
            .send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
        client.response().body
    };
    assert_eq!(add(&mut client, "/counter?by=5"), "5\n");
    assert_eq!(add(&mut client, "/counter/home.page"), "1\n");
    assert_eq!(add(&mut client, "/counter"), "6\n");
    assert_eq!(client.get("/counters").body, r#"{"":6,"home.page":1}"#);
    assert_eq!(
        member.keys("/site/totals/"),
        [
            (String::from("/site/totals//a"), String::from("6")),
            (String::from("/site/totals/home.page/a"), String::from("1")),
        ]
    );
    assert_eq!(member.keys("/site/")[0], (String::from("/site/epoch"), String::from("1")));
    assert!(server.stop().contains("6 counted"));
    let server = counter(&store, "a");
    let mut client = server.client();
    assert_eq!(client.get("/counter").body, "6\n");
    assert_eq!(add(&mut client, "/counter"), "7\n");
    assert_eq!(member.keys("/site/")[0], (String::from("/site/epoch"), String::from("2")));
}

#[test]
fn a_member_that_is_killed_loses_nothing() {
    let Some(program) = program("a_member_that_is_killed_loses_nothing") else { return };
    let mut member = single(&program, &[]);
    let server = counter(&url(std::slice::from_ref(&member), PREFIX), "a");
    let load = Load::start(server.address);
    for _ in 0..3 {
        load.wait_for_more();
        member.kill();
        member.start();
        member.wait_until_writable();
        load.wait_until_back();
    }
    // Away for longer than a commit is tried.
    member.kill();
    load.wait_for_failure();
    member.start();
    member.wait_until_writable();
    load.wait_until_back();
    load.stop().check(member.total(PREFIX));
}

#[test]
fn a_compaction_disturbs_nothing() {
    let Some(program) = program("a_compaction_disturbs_nothing") else { return };
    let member = single(&program, &[]);
    let server = counter(&url(std::slice::from_ref(&member), PREFIX), "a");
    let load = Load::start(server.address);
    let mut client = server.client();
    for _ in 0..20 {
        load.wait_for_more();
        member.ask("/v3/kv/compaction", json!({ "revision": member.revision().to_string() }));
        // Names of all shards are read with a new one.
        assert_eq!(client.get("/counters").status, 200);
    }
    let books = load.stop();
    assert_eq!((books.failed, books.unknown), (0, 0));
    books.check(member.total(PREFIX));
}

#[test]
fn a_member_without_space_refuses_and_comes_back() {
    let Some(program) = program("a_member_without_space_refuses_and_comes_back") else { return };
    let member = single(&program, &["--quota-backend-bytes", "4000000"]);
    let store = url(std::slice::from_ref(&member), PREFIX);
    let server = counter(&store, "a");
    let load = Load::start(server.address);
    load.wait_for_more();
    let waste =
        json!({ "key": STANDARD.encode("/waste"), "value": STANDARD.encode(vec![b'x'; 100_000]) });
    let mut writes = 0;
    while member.try_ask("/v3/kv/put", &waste).is_some() {
        writes += 1;
        assert!(writes < 1_000, "its quota is never used up");
    }
    load.wait_for_failure();
    let line = server.wait_for_line("nothing is counted");
    assert!(line.contains("its space is used up") && line.contains("alarm disarm"), "{line}");
    let (code, _, told) = crate::common::run(&[
        "counter",
        "--store",
        &store,
        "--store-shard",
        "b",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert!(code == 1 && told.contains("its space is used up"), "{told}");

    let revision = member.revision().to_string();
    member.ask("/v3/kv/compaction", json!({ "revision": revision, "physical": true }));
    member.ask("/v3/maintenance/defragment", json!({}));
    let (_, number) = member.standing().unwrap();
    let alarm =
        json!({ "action": "DEACTIVATE", "memberID": number.to_string(), "alarm": "NOSPACE" });
    member.ask("/v3/maintenance/alarm", alarm);
    load.wait_until_back();
    server.wait_for_line("works again");
    let books = load.stop();
    assert!(books.failed > 0);
    // etcd says that it has no space also after it has written: that is found out.
    assert_eq!(books.unknown, 0);
    books.check(member.total(PREFIX));
}

/// Counts once through a proxy that cuts the exchange after each byte, and checks that it counts once.
#[test]
fn a_commit_that_is_cut_at_any_byte_counts_once() {
    let Some(program) = program("a_commit_that_is_cut_at_any_byte_counts_once") else { return };
    let member = Arc::new(single(&program, &["--unsafe-no-fsync"]));
    // Each has cuts of its own, since each waits before it tries again.
    const COUNTERS: usize = 16;
    let begun = Arc::new(Barrier::new(COUNTERS));
    let cut = |number: usize| {
        let (member, begun) = (Arc::clone(&member), Arc::clone(&begun));
        move || {
            let prefix = format!("/site{number}");
            let proxy = Proxy::start(member.address);
            let server = counter(&format!("etcd://{}{prefix}", proxy.address), "a");
            let mut client = server.client();
            let mut expected = 0;
            let mut add = || {
                expected += 1;
                client.send(ADD);
                let response = client.response();
                assert_eq!((response.status, response.body), (200, format!("{expected}\n")));
                assert_eq!(member.total(&prefix), expected);
            };
            add();
            begun.wait();
            let mut cuts = [0; 2];
            for way in [Way::ToServer, Way::ToClient] {
                let before = proxy.passed(way);
                add();
                // A commit is never longer than this one and the digits that its total gains.
                let bytes = proxy.passed(way) - before + 16;
                for byte in (number..bytes).step_by(COUNTERS) {
                    proxy.cut_after(way, byte);
                    add();
                    cuts[way as usize] += proxy.pass_all();
                }
            }
            cuts
        }
    };
    let threads: Vec<_> = (0..COUNTERS).map(|number| thread::spawn(cut(number))).collect();
    let mut cuts = [0; 2];
    for thread in threads {
        let cut = thread.join().unwrap();
        (0..2).for_each(|way| cuts[way] += cut[way]);
    }
    assert!(cuts.iter().all(|cuts| *cuts > 300), "{cuts:?}");
}

#[test]
fn ten_thousand_of_the_longest_names_are_written_at_once() {
    let Some(program) = program("ten_thousand_of_the_longest_names_are_written_at_once") else {
        return;
    };
    let member = single(&program, &["--unsafe-no-fsync"]);
    let proxy = Proxy::start(member.address);
    let shard = "s".repeat(128);
    let server = counter(&format!("etcd://{}/{}", proxy.address, "p".repeat(63)), &shard);
    let name = |number: usize| format!("{number:0>128}");
    // Many at once, so that they share commits: each new name makes the counter read all names.
    let mut clients: Vec<_> = (0..1_000).map(|_| server.client()).collect();
    for first in (0..10_000).step_by(clients.len()) {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(ADD.replace("/counter", &format!("/counter/{}", name(first + number))));
        }
        clients.iter_mut().for_each(|client| assert_eq!(client.response().body, "1\n"));
    }
    let mut client = clients.swap_remove(0);
    drop(clients);
    client.send(ADD.replace("/counter", "/counter/one-more"));
    assert_eq!(client.response().status, 507);
    // After a cut all values are written again, in pieces; cut in the middle of them, too.
    for (total, bytes) in [(1, 0), (2, 1_500_000), (3, 3_000_000)] {
        proxy.cut_after(Way::ToServer, 0);
        let mut other = server.client();
        other.send(ADD);
        proxy.wait_for_cut();
        proxy.cut_after(Way::ToServer, bytes);
        assert_eq!(other.response().body, format!("{total}\n"));
        assert!(proxy.pass_all() > 0);
    }
    let all: serde_json::Value = serde_json::from_str(&client.get("/counters").body).unwrap();
    let all = all.as_object().unwrap();
    assert_eq!((all.len(), all[""].as_u64()), (10_001, Some(3)));
    assert!((0..10_000).all(|number| all[&name(number)] == 1));
}
