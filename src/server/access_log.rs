//! The thread that writes the access log: it takes entries out of the workers' rings, formats them, and writes all that
//! is there at once.
//!
//! Neither a disk that is full nor a reader that is gone or too slow stops the server: what cannot be written is lost,
//! counted and reported. Nobody waits for this thread without a time-out.

mod output;
mod trouble;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

pub(super) use self::output::{OpenError, probe};
use self::{
    output::{File, Lines, Progress},
    trouble::Trouble,
};
use ipnet::IpNet;

use crate::{
    access_log::{self, Entries, Format, Recorder, Rules},
    config::AccessLogConfig,
    metrics::{AccessLogMetrics, WorkerMetrics},
    runtime::task,
};

/// Room for the entries of one worker: a tenth of a second of a very busy one.
const RING_BYTES: usize = 1 << 20;
/// The size of a write. Lines are added until they have it.
const BATCH_BYTES: usize = 64 * 1024;
/// The wait for entries, when there are none.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the stop waits for the last lines, and a reload for the file.
const TIMEOUT: Duration = Duration::from_secs(1);

/// An access log that is open, before its thread runs.
pub(super) struct Opened {
    config: AccessLogConfig,
    file: File,
    rings: Vec<Ring>,
}

/// The entries of one worker.
struct Ring {
    entries: Entries,
    metrics: Arc<WorkerMetrics>,
}

/// An access log that is written.
pub(super) struct AccessLog {
    orders: mpsc::Sender<Order>,
    metrics: Arc<AccessLogMetrics>,
}

enum Order {
    /// Open the file again, and tell how that went.
    Reopen(mpsc::Sender<Result<(), OpenError>>),
    /// Write what is there until this time, tell how much is missing, and end.
    Stop(Instant, mpsc::Sender<u64>),
}

impl Opened {
    /// Opens the file.
    pub(super) fn of(config: &AccessLogConfig) -> Result<Self, OpenError> {
        let file = File::open(&config.output)?;
        Ok(Self { config: config.clone(), file, rings: Vec::new() })
    }

    /// What the next worker records its requests with, which believes these proxies.
    pub(super) fn recorder(
        &mut self,
        metrics: &Arc<WorkerMetrics>,
        trusted: &Arc<[IpNet]>,
    ) -> Recorder {
        let (producer, entries) = access_log::ring(RING_BYTES);
        self.rings.push(Ring { entries, metrics: Arc::clone(metrics) });
        let rules = Rules { one_in: self.config.one_in, trusted: Arc::clone(trusted) };
        Recorder::new(rules, producer, Arc::clone(metrics))
    }

    /// Starts the thread.
    pub(super) fn start(self) -> io::Result<AccessLog> {
        let metrics = Arc::<AccessLogMetrics>::default();
        let (orders, receiver) = mpsc::channel();
        let lines = Lines::new(self.file, Arc::clone(&metrics));
        let writer = Writer {
            format: self.config.format,
            rings: self.rings,
            next: 0,
            lines,
            trouble: Trouble::new(self.config.output.to_string()),
        };
        task::spawn_essential_thread(String::from("access-log"), move || writer.run(&receiver))?;
        Ok(AccessLog { orders, metrics })
    }
}

impl AccessLog {
    /// Opens the file again: the one before may have been renamed. What goes wrong is logged, and the file that was
    /// open stays.
    pub(super) fn reopen(&self) {
        let (told, opened) = mpsc::channel();
        // Fails only when the thread has ended, and with it the process.
        let _ = self.orders.send(Order::Reopen(told));
        match opened.recv_timeout(TIMEOUT) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!("SIGHUP: {error}; what was open stays the access log");
            }
            Err(_) => tracing::warn!(
                "SIGHUP: the access log waits for its reader; it is opened anew after that"
            ),
        }
    }

    /// Writes the last lines, once no worker records any more.
    pub(super) fn stop(&self) {
        let (told, missing) = mpsc::channel();
        let _ = self.orders.send(Order::Stop(Instant::now() + TIMEOUT, told));
        match missing.recv_timeout(TIMEOUT * 2) {
            Ok(0) => {}
            Ok(missing) => {
                tracing::warn!("{missing} requests are missing in the access log");
            }
            Err(_) => {
                tracing::warn!("the last lines of the access log are missing: nobody reads it");
            }
        }
    }

    pub(super) fn metrics(&self) -> Arc<AccessLogMetrics> {
        Arc::clone(&self.metrics)
    }
}

/// What the thread has.
struct Writer {
    format: Format,
    rings: Vec<Ring>,
    /// The ring that comes first in the next batch.
    next: usize,
    lines: Lines<File>,
    trouble: Trouble,
}

impl Writer {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        loop {
            let pause = if self.write_batch() { Duration::ZERO } else { PAUSE };
            match orders.recv_timeout(pause) {
                Ok(Order::Reopen(told)) => {
                    // Fails only when nobody waits for it any more.
                    let _ = told.send(self.lines.reopen());
                }
                Ok(Order::Stop(end, told)) => {
                    let _ = told.send(self.finish(end, orders));
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The start has failed.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes what is in the rings, as far as it fits into one write; returns whether there may be much more.
    fn write_batch(&mut self) -> bool {
        if self.lines.is_written() {
            self.gather();
        }
        if self.lines.is_written() {
            return false;
        }
        let now = Instant::now();
        let is_full = self.lines.bytes() >= BATCH_BYTES;
        let goes_on = match self.lines.write() {
            Ok(Progress::Done) => {
                self.trouble.over();
                // Of fewer, some more are waited for: a write for each would keep a core busy.
                is_full
            }
            // The pause is for the reader.
            Ok(Progress::Blocked) => false,
            Err((error, lost)) => {
                self.trouble.failed(&error, lost, now);
                false
            }
        };
        self.trouble.dropped(self.dropped(), now);
        goes_on
    }

    /// Takes entries of each ring in turn.
    fn gather(&mut self) {
        let rings = self.rings.len();
        self.next = (self.next + 1) % rings.max(1);
        for place in 0..rings {
            let worker = (self.next + place) % rings;
            while self.lines.bytes() < BATCH_BYTES
                && let Some(entry) = self.rings[worker].entries.next()
            {
                self.lines.add(|line| self.format.write(&entry, worker, line));
            }
        }
    }

    /// Entries for which the workers had no room.
    fn dropped(&self) -> u64 {
        self.rings.iter().map(|ring| ring.metrics.access_log_dropped.read()).sum()
    }

    /// Writes the rest until `end`; how many entries are missing since the start.
    fn finish(&mut self, end: Instant, orders: &mpsc::Receiver<Order>) -> u64 {
        loop {
            let goes_on = self.write_batch();
            self.gather_if_written();
            if self.lines.is_written() {
                break;
            }
            if Instant::now() >= end {
                self.lines.give_up();
                while self.rings.iter_mut().any(|ring| ring.entries.next().is_some()) {
                    self.lines.lose_one();
                }
                break;
            }
            if !goes_on {
                let _ = orders.recv_timeout(PAUSE);
            }
        }
        self.lines.lost() + self.dropped()
    }

    fn gather_if_written(&mut self) {
        if self.lines.is_written() {
            self.gather();
        }
    }
}
