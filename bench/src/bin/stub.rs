//! The counter stub: a fast counter that keeps its total in memory.
//! `stub ADDRESS [DELAY-MS [THREADS]]`
//!
//! Each `POST` is counted, and answered after the delay; a `GET` is answered with the total.

use std::{
    collections::VecDeque,
    io,
    os::fd::RawFd,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use tallyring_bench::{
    COUNTED, arguments, heads,
    ring::{self, Io, Program},
};

static TOTAL: AtomicU64 = AtomicU64::new(0);

struct Stub {
    delay: Duration,
    /// Answers that are due later, in the order of their times.
    owed: VecDeque<(Instant, RawFd)>,
}

impl Program for Stub {
    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
        if bytes.starts_with(b"GET ") {
            let total = TOTAL.load(Ordering::Relaxed).to_string();
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{total}", total.len());
            // Leaked, since the ring sends static bytes; a run asks only a few times.
            return io.send(socket, Box::leak(answer.into_boxed_str()).as_bytes());
        }
        for _ in 0..heads(bytes) {
            TOTAL.fetch_add(1, Ordering::Relaxed);
            if self.delay.is_zero() {
                io.send(socket, COUNTED);
            } else {
                self.owed.push_back((Instant::now() + self.delay, socket));
            }
        }
    }

    fn closed(&mut self, _io: &mut Io, socket: RawFd) {
        // The descriptor may be used again for another connection.
        self.owed.retain(|(_, owed)| *owed != socket);
    }

    fn deadline(&self) -> Option<Instant> {
        self.owed.front().map(|(due, _)| *due)
    }

    fn look(&mut self, io: &mut Io) {
        if self.owed.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some((due, socket)) = self.owed.front().copied()
            && due <= now
        {
            io.send(socket, COUNTED);
            self.owed.pop_front();
        }
    }
}

fn main() -> io::Result<()> {
    let [address, delay, threads] = arguments(["127.0.0.1:3001", "0", "1"]);
    let delay = Duration::from_millis(delay.parse().map_err(io::Error::other)?);
    let threads: usize = threads.parse().map_err(io::Error::other)?;
    let serve = || {
        let listener = ring::listen(&address)?;
        ring::run(Some(&listener), &mut Stub { delay, owed: VecDeque::new() })
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(serve)).collect();
        serve()?;
        others.into_iter().try_for_each(|other| other.join().unwrap_or(Ok(())))
    })
}
