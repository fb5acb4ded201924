//! Counts, each written by one thread and read by the admin listener.

mod histogram;
mod reasons;

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

pub use self::{
    histogram::{BOUNDS, Durations, Histogram, quantile},
    reasons::{BadRequest, Failure},
};

/// A number that one thread writes and others read. Writing is a plain load, add and store: there is one writer, so
/// no update is lost.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn increment(&self) {
        self.0.store(self.read().wrapping_add(1), Ordering::Relaxed);
    }

    /// Adds several.
    pub fn add(&self, number: u64) {
        self.0.store(self.read().wrapping_add(number), Ordering::Relaxed);
    }

    /// Subtracts one.
    pub fn decrement(&self) {
        self.0.store(self.read().wrapping_sub(1), Ordering::Relaxed);
    }

    /// Sets the number.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number as it was a moment ago.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts. Aligned so that no two workers write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMetrics {
    /// Visits that were started. Each ends in exactly one of the four books that follow.
    pub started: Count,
    /// Visits answered with the welcome page.
    pub welcomed: Count,
    /// Visits answered with the sorry page.
    pub erred: Count,
    /// Of those that erred, how many for each cause.
    failures: [Count; Failure::LABELS.len()],
    /// Visits refused for overload.
    pub refused: Count,
    /// Visits whose client left before their outcome was known. Their calls may have been counted.
    pub abandoned: Count,
    /// Requests for what is not counted, answered without a call.
    pub uncounted: Count,
    /// Requests refused, how many for each reason.
    bad_requests: [Count; BadRequest::LABELS.len()],
    /// How long visits took that were answered, from their start to their outcome.
    pub visit_durations: Histogram,
    /// Client connections accepted so far.
    pub accepted: Count,
    /// Client connections closed to make room for others.
    pub evicted: Count,
    /// Client connections accepted and handed over to another worker, which counts them as accepted.
    pub handed_over: Count,
    /// Client connections that left for another worker between two requests.
    pub moved: Count,
    /// Client connections open.
    pub connections: Count,
    /// The part of the time that the worker has run or waited for a core of late, in thousandths; 0 where nobody asks for
    /// it.
    pub busy: Count,
    /// Entries of the access log that were dropped, since the worker's ring had no room for them.
    pub access_log_dropped: Count,
    /// Panics caught at a task's boundary.
    pub panics: Count,
    /// When the worker last kept its deadlines, in milliseconds of the monotonic clock; 0 before it serves.
    pub heartbeat: Count,
    /// The driver, once the runtime is built.
    pub driver: OnceLock<DriverInfo>,
    /// Its sides of the counters, in the order in which they were made. Locked only to add one and by readers.
    upstreams: Mutex<Vec<Arc<UpstreamMetrics>>>,
}

/// The driver of a worker, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverInfo {
    /// `io_uring` or `epoll`.
    pub name: &'static str,
    /// The flags of the ring, with commas between.
    pub flags: &'static str,
    /// All about it, and why it is not a better one.
    pub description: String,
    /// The descriptor of its ring, if there is one and it is known.
    pub ring: Option<i32>,
}

/// What a worker counts of its side of one counter.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct UpstreamMetrics {
    /// Connections, open or being opened.
    pub connections: Count,
    /// Connections that carry no call.
    pub idle: Count,
    /// Connections dialed so far.
    pub dialed: Count,
    /// Calls that were sent over a connection that had carried another one.
    pub reused: Count,
    /// Calls that wait for a connection.
    pub queued: Count,
    /// Visits that calls took along which may register several.
    pub batched_visits: Count,
    /// Visits that went to another counter, since nothing could be sent to this one.
    pub moved: Count,
    /// 1 while the circuit breaker is open, else 0.
    pub failing: Count,
    /// How long calls waited that found no connection free, until they had one.
    pub waits: Histogram,
    /// How long calls took that were answered, from when they had a connection.
    pub calls: Histogram,
    /// The last of these durations, in microseconds.
    pub last_call_micros: Count,
    /// When it ended, in microseconds of the monotonic clock.
    pub last_answer_micros: Count,
}

impl WorkerMetrics {
    /// A visit has erred.
    pub fn err(&self, failure: Failure) {
        self.erred.increment();
        self.failures[failure.place()].increment();
    }

    /// A request was refused with this status.
    pub fn refuse_request(&self, status: u16) {
        self.refuse(BadRequest::of_status(status));
    }

    /// A client was refused for this reason.
    pub fn refuse(&self, reason: BadRequest) {
        self.bad_requests[reason as usize].increment();
    }

    /// How many visits have erred for each cause, in the order of [`Failure::LABELS`].
    pub fn failures(&self) -> impl Iterator<Item = u64> {
        self.failures.iter().map(Count::read)
    }

    /// How many requests were refused for each reason, in the order of [`BadRequest::LABELS`].
    pub fn bad_requests(&self) -> impl Iterator<Item = u64> {
        self.bad_requests.iter().map(Count::read)
    }

    /// Adds the worker's side of one more counter.
    pub fn add_upstream(&self) -> Arc<UpstreamMetrics> {
        let upstream = Arc::<UpstreamMetrics>::default();
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        upstreams.push(Arc::clone(&upstream));
        upstream
    }

    /// The worker's sides of the counters.
    pub fn upstreams(&self) -> Vec<Arc<UpstreamMetrics>> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Visits that were started and neither welcomed, erred nor refused: abandoned, or in flight, which is the same
    /// once the worker has stopped.
    fn unanswered(&self) -> u64 {
        let answered = self.welcomed.read() + self.erred.read() + self.refused.read();
        self.started.read().saturating_sub(answered)
    }

    /// Visits that were started and are in no book yet.
    pub fn in_flight(&self) -> u64 {
        // Read first: a visit that starts and is abandoned between the reads must not be subtracted alone.
        let abandoned = self.abandoned.read();
        self.unanswered().saturating_sub(abandoned)
    }
}

/// The sums over all workers once they have stopped, for the last log line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Visits answered with the welcome page.
    pub welcomed: u64,
    /// Visits answered with the sorry page.
    pub erred: u64,
    /// Visits refused for overload.
    pub refused: u64,
    /// Visits that ended without an answer: their client left, or the drain cut them.
    pub abandoned: u64,
    /// Client connections open.
    pub connections: u64,
}

impl Totals {
    /// Adds up what the workers counted.
    pub fn of(workers: &[Arc<WorkerMetrics>]) -> Self {
        workers.iter().fold(Self::default(), |sum, worker| Self {
            welcomed: sum.welcomed + worker.welcomed.read(),
            erred: sum.erred + worker.erred.read(),
            refused: sum.refused + worker.refused.read(),
            abandoned: sum.abandoned + worker.unanswered(),
            connections: sum.connections + worker.connections.read(),
        })
    }
}

/// How the last reload went, with the names that Prometheus uses for its own.
#[derive(Debug, Default)]
pub struct ReloadMetrics {
    successful: Gauge,
    success_seconds: Gauge,
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
}

impl ReloadMetrics {
    /// For a server that starts: its settings were right.
    pub fn started(unix_seconds: u64) -> Self {
        let metrics = Self::default();
        // Both rows are there from the beginning.
        metrics.count("failed", 0);
        metrics.count("ok", 0);
        metrics.note_success(unix_seconds);
        metrics
    }

    /// Settings were read and apply from now on.
    pub fn succeeded(&self, unix_seconds: u64) {
        self.count("ok", 1);
        self.note_success(unix_seconds);
    }

    /// Wrong settings were read.
    pub fn failed(&self) {
        self.count("failed", 1);
        self.successful.set(0);
    }

    fn count(&self, outcome: &'static str, reloads: u64) {
        self.reloads.get_or_create(&[("outcome", outcome)]).inc_by(reloads);
    }

    fn note_success(&self, unix_seconds: u64) {
        self.successful.set(1);
        self.success_seconds.set(unix_seconds.cast_signed());
    }

    /// Adds them to what Prometheus reads.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "config_last_reload_successful",
            "Whether the settings that were read last were right",
            self.successful.clone(),
        );
        registry.register_with_unit(
            "config_last_reload_success_timestamp",
            "When settings were read last that were right",
            Unit::Seconds,
            self.success_seconds.clone(),
        );
        registry.register(
            "config_reloads",
            "Reloads of the settings, by outcome",
            self.reloads.clone(),
        );
    }
}

/// What becomes of the entries that reach the thread of the access log. It writes these counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct AccessLogMetrics {
    /// Lines that were written.
    pub written: Count,
    /// Lines that could not be written.
    pub lost: Count,
}

/// What a bundled counter has counted, as it is on disk. Its committer writes it after each commit.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CounterMetrics {
    /// The total of the counter without a name.
    pub total: Count,
    /// The sum of the totals of all counters with a name.
    pub named: Count,
    /// Commits that have added something.
    pub commits: Count,
    /// Commits whose store has failed.
    pub commits_failed: Count,
    /// When the commit under way began, in milliseconds of the monotonic clock; 0 while there is none.
    pub committing_since: Count,
}
