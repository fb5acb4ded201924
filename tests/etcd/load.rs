//! Clients that count without a pause, and note what they are told.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::common::{Client, PATIENCE};

pub const ADD: &str = "POST /counter HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";

#[derive(Default)]
struct Told {
    stops: AtomicBool,
    confirmed: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    totals: Mutex<BTreeSet<u64>>,
}

/// Clients of one counter.
pub struct Load {
    told: Arc<Told>,
    threads: Vec<JoinHandle<()>>,
}

/// What clients were told.
#[derive(Debug)]
pub struct Books {
    pub confirmed: u64,
    pub failed: u64,
    pub unknown: u64,
}

impl Load {
    pub fn start(counter: SocketAddr) -> Self {
        let told = Arc::<Told>::default();
        let run = |told: Arc<Told>| {
            move || {
                let mut client = Client::connect(counter);
                while !told.stops.load(Ordering::SeqCst) && client.try_send(ADD) {
                    // A counter that ends closes between two answers.
                    let Ok(Some(response)) = client.try_response("POST") else { break };
                    told.note(&response);
                }
            }
        };
        let threads = (0..8).map(|_| thread::spawn(run(Arc::clone(&told)))).collect();
        Self { told, threads }
    }

    /// Waits until more was counted: something that began after this was called.
    pub fn wait_for_more(&self) {
        // Each client may have one answer on its way.
        let wanted = self.confirmed() + 2 * self.threads.len() as u64;
        let began = Instant::now();
        while self.confirmed() < wanted {
            assert!(began.elapsed() < PATIENCE, "nothing more is counted");
            thread::yield_now();
        }
    }

    /// The same when etcd is back. Prints how long it took, which is told and never asserted.
    pub fn wait_until_back(&self) {
        let began = Instant::now();
        self.wait_for_more();
        eprintln!("the service was back {:?} after etcd", began.elapsed());
    }

    /// Waits until somebody is told that something was not counted, or may not be.
    pub fn wait_for_failure(&self) {
        let failures =
            || self.told.failed.load(Ordering::SeqCst) + self.told.unknown.load(Ordering::SeqCst);
        let (began, before) = (Instant::now(), failures());
        while failures() == before {
            assert!(began.elapsed() < PATIENCE, "nothing fails");
            thread::yield_now();
        }
    }

    pub fn confirmed(&self) -> u64 {
        self.told.confirmed.load(Ordering::SeqCst)
    }

    pub fn stop(self) -> Books {
        self.told.stops.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let number = |told: &AtomicU64| told.load(Ordering::SeqCst);
        Books {
            confirmed: number(&self.told.confirmed),
            failed: number(&self.told.failed),
            unknown: number(&self.told.unknown),
        }
    }
}

impl Told {
    fn note(&self, response: &crate::common::Response) {
        let book = match (response.status, &*response.body) {
            (200, total) => {
                let total = total.trim_end().parse().unwrap();
                assert!(self.totals.lock().unwrap().insert(total), "{total} was told twice");
                &self.confirmed
            }
            (503, text) if text.contains("nothing was counted") => &self.failed,
            (503, text) if text.contains("may have been kept") => &self.unknown,
            other => panic!("{other:?}"),
        };
        book.fetch_add(1, Ordering::SeqCst);
    }
}

impl Books {
    /// Nothing is lost, and nothing counted twice.
    #[track_caller]
    pub fn check(&self, total: u64) {
        assert!(self.confirmed <= total, "lost: {self:?}, {total} counted");
        assert!(total <= self.confirmed + self.unknown, "counted twice: {self:?}, {total} counted");
    }
}
