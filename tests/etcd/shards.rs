//! Several counters: one shard for two, a shard for each, and shards of counters that are gone.

use std::{sync::Arc, thread};

use crate::{
    PREFIX,
    common::{
        Client,
        proxy::{Proxy, Way},
    },
    counter,
    load::{ADD, Load},
    member::{Member, program, single, url},
};

fn add(client: &mut Client) -> (u16, String) {
    client.send(ADD);
    let response = client.response();
    (response.status, response.body)
}

#[test]
fn of_two_counters_with_one_shard_the_older_ends() {
    let Some(program) = program("of_two_counters_with_one_shard_the_older_ends") else { return };
    let member = single(&program, &[]);
    let store = url(std::slice::from_ref(&member), PREFIX);
    let mut old = counter(&store, "a");
    let load = Load::start(old.address);
    load.wait_for_more();
    let new = counter(&store, "a");
    let (status, lines) = old.wait();
    assert_eq!(status.code(), Some(3), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("has taken over the shard")), "{lines:?}");
    let told = load.stop();
    let mut client = new.client();
    let (status, body) = add(&mut client);
    assert_eq!(status, 200);
    let total: u64 = body.trim_end().parse().unwrap();
    told.check(total - 1);
    assert_eq!(member.total(PREFIX), total);
}

#[test]
fn a_total_is_the_sum_of_the_shards() {
    let Some(program) = program("a_total_is_the_sum_of_the_shards") else { return };
    let member = single(&program, &[]);
    let store = url(std::slice::from_ref(&member), PREFIX);
    let counters = ["a", "b", "c"].map(|shard| counter(&store, shard));
    let mut clients = counters.each_ref().map(|counter| counter.client());
    let mut expected = 0;
    for _ in 0..5 {
        for client in &mut clients {
            expected += 1;
            assert_eq!(add(client), (200, format!("{expected}\n")));
        }
    }
    for client in &mut clients {
        assert_eq!(client.get("/counters").body, format!(r#"{{"":{expected}}}"#));
    }
    let values = member.keys("/site/totals//");
    assert_eq!(values.len(), 3);
    assert!(values.iter().all(|(_, value)| value == "5"), "{values:?}");
}

#[test]
fn shards_of_counters_that_are_gone_are_taken() {
    let Some(program) = program("shards_of_counters_that_are_gone_are_taken") else { return };
    let member = single(&program, &[]);
    let store = url(std::slice::from_ref(&member), PREFIX);
    let mut servers = ["a", "b", "c"].map(|shard| counter(&store, shard));
    for (times, server) in servers.iter().enumerate() {
        let mut client = server.client();
        (0..=times).for_each(|_| assert_eq!(add(&mut client).0, 200));
        client.send(ADD.replace("/counter", "/counter/x"));
        assert_eq!(client.response().status, 200);
    }
    let [a, b, c] = &mut servers;
    a.stop();
    // It runs, and is only thought gone; c is seen now.
    for key in ["/site/shards/a", "/site/shards/b"] {
        let keys = member.keys("/site/shards/");
        let (_, value) = keys.iter().find(|(name, _)| name == key).unwrap();
        let (fence, seen) = value.split_once(' ').unwrap();
        let seen: u64 = seen.parse().unwrap();
        member.put(key, &format!("{fence} {}", seen - 4_000));
    }
    let server = counter(&store, "d");
    let mut client = server.client();
    assert_eq!(client.get("/counters").body, r#"{"":6,"x":3}"#);
    let keys: Vec<_> = member.keys("/site/").into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "/site/epoch",
            "/site/format",
            "/site/shards/c",
            "/site/shards/d",
            "/site/totals//c",
            "/site/totals//d",
            "/site/totals/x/c",
            "/site/totals/x/d",
        ]
    );
    assert_eq!(add(&mut client), (200, String::from("7\n")));
    assert_eq!(add(&mut c.client()), (200, String::from("8\n")));
    assert_eq!(add(&mut b.client()).0, 503);
    let (status, _) = b.wait();
    assert_eq!(status.code(), Some(3));
    // Its name can be used again.
    let again = counter(&store, "b");
    assert_eq!(add(&mut again.client()), (200, String::from("9\n")));
}

/// Takes two shards that are gone, through a proxy that cuts the exchange after each so many bytes.
#[test]
fn a_takeover_that_is_cut_at_any_byte_loses_nothing() {
    let Some(program) = program("a_takeover_that_is_cut_at_any_byte_loses_nothing") else { return };
    let member = Arc::new(single(&program, &["--unsafe-no-fsync"]));
    const THREADS: usize = 8;
    // Not a divisor of what is usual for lengths.
    const STEP: usize = 61;
    let cut = |number: usize| {
        let member = Arc::clone(&member);
        move || {
            let prefix = format!("/site{number}");
            let proxy = Proxy::start(member.address);
            let store = format!("etcd://{}{prefix}", proxy.address);
            let (mut cuts, mut bytes) = ([0; 2], [usize::MAX; 2]);
            for way in [Way::ToServer, Way::ToClient] {
                let mut byte = number * STEP;
                // The first one is not cut, and shows how long it is.
                let mut whole = true;
                while byte < bytes[way as usize] {
                    make_gone(&member, &prefix);
                    let before = proxy.passed(way);
                    if !whole {
                        proxy.cut_after(way, byte);
                        byte += STEP * THREADS;
                    }
                    let mut server = counter(&store, "c");
                    cuts[way as usize] += proxy.pass_all();
                    if whole {
                        bytes[way as usize] = proxy.passed(way) - before;
                    }
                    whole = false;
                    check_taken(&member, &prefix);
                    assert_eq!(add(&mut server.client()).1, "16\n");
                    server.stop();
                }
            }
            cuts
        }
    };
    let threads: Vec<_> = (0..THREADS).map(|number| thread::spawn(cut(number))).collect();
    let cuts: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(cuts.iter().flatten().sum::<usize>() > 80, "{cuts:?}");
}

/// Two shards that nobody has written for long, and a third one.
fn make_gone(member: &Member, prefix: &str) {
    for (key, _) in member.keys(&format!("{prefix}/")) {
        member.delete(&key);
    }
    for (shard, epoch) in [("a", 3), ("b", 7), ("c", 5)] {
        let fence = format!("{epoch:020}-{:020}-000000 1", 9);
        member.put(&format!("{prefix}/shards/{shard}"), &fence);
    }
    for (name, shard, value) in
        [("", "a", 1), ("", "b", 4), ("", "c", 10), ("x", "a", 2), ("x", "b", 3), ("y", "b", 6)]
    {
        member.put(&format!("{prefix}/totals/{name}/{shard}"), &value.to_string());
    }
}

fn check_taken(member: &Member, prefix: &str) {
    let keys = member.keys(&format!("{prefix}/totals/"));
    let value =
        |name: &str, value: &str| (format!("{prefix}/totals/{name}/c"), String::from(value));
    assert_eq!(keys, [value("", "15"), value("x", "5"), value("y", "6")]);
    let shards = member.keys(&format!("{prefix}/shards/"));
    assert_eq!(shards.len(), 1, "{shards:?}");
    // Above all that there were.
    assert!(*shards[0].1 > *"00000000000000000008", "{shards:?}");
}
