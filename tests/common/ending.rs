//! A counter that ends under load.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::{Client, Server, Signal, get_request, run, serve};

/// Visitors who do not stop asking.
pub struct Load {
    /// How many, each with eight requests at a time.
    pub visitors: usize,
    /// The visits that are welcomed before the counter ends.
    pub welcomed: u64,
    /// Those that err after that before the visitors end.
    pub erred: u64,
}

/// The books of a server with these flags hold where its counter ends by this signal under load. Its URL has this query.
/// `look` is given the admin listener once visits have erred.
#[track_caller]
pub fn check_counter_that_ends(
    flags: &[&str],
    query: &str,
    signal: Signal,
    load: Load,
    look: impl FnOnce(&mut Client),
) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let mut counter =
        Server::start(&["counter", "--listen", "127.0.0.1:0", "--data-dir", data], &[]);
    let url = format!("http://{}/counter{query}", counter.address);
    let common = ["--admin", "127.0.0.1:0", "--workers", "2", "--counter", &url];
    let mut server = serve(&[&common[..], flags].concat());
    let (ends, address) = (AtomicBool::new(false), server.address);
    thread::scope(|scope| {
        for _ in 0..load.visitors {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                while !ends.load(Ordering::SeqCst) {
                    client.send(get_request("/").repeat(8));
                    (0..8).for_each(|_| drop(client.response()));
                }
            });
        }
        let mut admin = server.admin();
        while admin.metric("tallyring_visits_total{outcome=\"welcomed\"") < load.welcomed {
            thread::yield_now();
        }
        counter.signal(signal);
        while admin.metric("tallyring_visits_total{outcome=\"erred\"") < load.erred {
            thread::yield_now();
        }
        ends.store(true, Ordering::SeqCst);
        look(&mut admin);
    });
    counter.wait();
    let books = server.stop_with_books();
    let (code, total, said) = run(&["total", "--data-dir", data, "--counter-listen", "off"]);
    assert_eq!(code, 0, "{said}");
    books.check(total.trim().replace(',', "").parse().expect(&total));
}
