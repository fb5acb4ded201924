//! Counts, each written by one thread and read by the admin listener. [`registry()`] gives them to Prometheus.

mod registry;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

pub use self::registry::registry;

/// A number that one thread writes and others read. Writing is a plain load, add and store: there is one writer, so
/// no update is lost.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn increment(&self) {
        self.0.store(self.read().wrapping_add(1), Ordering::Relaxed);
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

/// Why a visit was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens at the counter's address.
    Refused,
    /// No connection was established in time.
    ConnectTimedOut,
    /// The counter's name has no address.
    NoAddress,
    /// No connection could be opened, for another reason.
    NoConnection,
    /// The call took too long.
    TimedOut,
    /// The connection ended before the answer, or what was received is no HTTP response.
    Broken,
    /// The answer had this status, which does not say that the visit was counted.
    Status(u16),
    /// It was not tried: the calls before it have all failed.
    NotTried,
}

impl Failure {
    /// The labels of the metric, in the order of [`place`](Self::place).
    const LABELS: [&str; 10] = [
        "refused",
        "connect_timeout",
        "no_address",
        "no_connection",
        "timeout",
        "broken",
        "status_4xx",
        "status_5xx",
        "status_other",
        "not_tried",
    ];

    const fn place(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::ConnectTimedOut => 1,
            Self::NoAddress => 2,
            Self::NoConnection => 3,
            Self::TimedOut => 4,
            Self::Broken => 5,
            Self::Status(400..=499) => 6,
            Self::Status(500..=599) => 7,
            Self::Status(_) => 8,
            Self::NotTried => 9,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::ConnectTimedOut => f.write_str("connecting timed out"),
            Self::NoAddress => f.write_str("its name has no address"),
            Self::NoConnection => f.write_str("no connection could be opened"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Broken => f.write_str("the connection broke, or the answer was no HTTP response"),
            Self::Status(status) => write!(f, "answer {status}"),
            Self::NotTried => f.write_str("not tried, after many failures"),
        }
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
    /// Requests refused for what they said or how slowly.
    pub bad_requests: Count,
    /// Client connections accepted so far.
    pub accepted: Count,
    /// Client connections closed to make room for others.
    pub evicted: Count,
    /// Client connections open.
    pub connections: Count,
    /// Connections to the counter, open or being opened.
    pub counter_connections: Count,
    /// Counters whose circuit breaker is open: their visits fail at once.
    pub counters_failing: Count,
    /// Panics caught at a task's boundary.
    pub panics: Count,
    /// The driver's name, once the runtime is built.
    pub driver: OnceLock<&'static str>,
}

impl WorkerMetrics {
    /// A visit has erred.
    pub fn err(&self, failure: Failure) {
        self.erred.increment();
        self.failures[failure.place()].increment();
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

    fn register(&self, registry: &mut Registry) {
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
}
