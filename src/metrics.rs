//! Counts, written by one thread each and read by the admin listener.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// A number that one thread writes and others read. Writing is a plain load, add and store: the
/// writer is alone, so nothing can come between.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn increment(&self) {
        self.0.store(self.read().wrapping_add(1), Ordering::Relaxed);
    }

    /// Takes one off.
    pub fn decrement(&self) {
        self.0.store(self.read().wrapping_sub(1), Ordering::Relaxed);
    }

    /// Puts another number in its place.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number as it was a moment ago.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a visit was not registered, as far as its counter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens at the counter's address.
    Refused,
    /// No connection stood in time.
    ConnectTimedOut,
    /// The counter's name has no address.
    NoAddress,
    /// No connection could be opened, for another reason.
    NoConnection,
    /// The call took too long.
    TimedOut,
    /// The connection ended before the answer, or what came was no HTTP response.
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
        // This book first: what is abandoned meanwhile must not be missing from those that were started.
        let abandoned = self.abandoned.read();
        self.unanswered().saturating_sub(abandoned)
    }
}

/// The sums over all workers that the last line tells, once they have stopped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Visits answered with the welcome page.
    pub welcomed: u64,
    /// Visits answered with the sorry page.
    pub erred: u64,
    /// Visits refused for overload.
    pub refused: u64,
    /// Visits whose outcome nobody was told: their client left, or the drain cut them.
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

/// How the settings were read last, named as Prometheus names it of itself.
#[derive(Debug, Default)]
pub struct ReloadMetrics {
    successful: Gauge,
    success_seconds: Gauge,
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
}

impl ReloadMetrics {
    /// Those of a server that starts: its settings were right.
    pub fn started(unix_seconds: u64) -> Self {
        let metrics = Self::default();
        // Both rows are there from the beginning.
        metrics.count("failed", 0);
        metrics.count("ok", 0);
        metrics.hold(unix_seconds);
        metrics
    }

    /// Settings were read and hold from now on.
    pub fn succeeded(&self, unix_seconds: u64) {
        self.count("ok", 1);
        self.hold(unix_seconds);
    }

    /// Settings were read that are wrong.
    pub fn failed(&self) {
        self.count("failed", 1);
        self.successful.set(0);
    }

    fn count(&self, outcome: &'static str, reloads: u64) {
        self.reloads.get_or_create(&[("outcome", outcome)]).inc_by(reloads);
    }

    fn hold(&self, unix_seconds: u64) {
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

/// A registry that gives the counts of the workers, and of the bundled counter if there is one, in the
/// Prometheus text format when it is encoded.
pub fn registry(
    workers: Vec<Arc<WorkerMetrics>>,
    counter: Option<Arc<CounterMetrics>>,
    reloads: &ReloadMetrics,
) -> Registry {
    let mut registry = Registry::with_prefix("tallyring");
    registry.register(
        "build",
        "The version that runs",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );
    reloads.register(&mut registry);
    registry.register_collector(Box::new(Workers(workers)));
    if let Some(counter) = counter {
        registry.register_collector(Box::new(Bundled(counter)));
    }
    registry
}

#[derive(Debug)]
struct Bundled(Arc<CounterMetrics>);

impl Collector for Bundled {
    /// The counter without a name alone: the names are their callers', and there may be many.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help =
            "Total of the bundled counter, without those that have a name; it outlives the process";
        let mut row = |name, help, count: &Count| {
            let count = ConstCounter::new(count.read());
            let unit: Option<&Unit> = None;
            count.encode(encoder.encode_descriptor(name, help, unit, count.metric_type())?)
        };
        row("counted", help, &self.0.total)?;
        row("commits", "Durable commits of the bundled counter", &self.0.commits)
    }
}

#[derive(Debug)]
struct Workers(Vec<Arc<WorkerMetrics>>);

/// A labelled family: one value for each worker and label.
type Rows<'a> = &'a dyn Fn(&WorkerMetrics) -> Vec<([(&'static str, &'static str); 1], u64)>;

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.family(
            &mut encoder,
            "visits",
            "Visits that have ended, by outcome",
            Kind::Counter,
            &|w| {
                vec![
                    ([("outcome", "welcomed")], w.welcomed.read()),
                    ([("outcome", "erred")], w.erred.read()),
                    ([("outcome", "refused")], w.refused.read()),
                    ([("outcome", "abandoned")], w.abandoned.read()),
                ]
            },
        )?;
        let help = "Visits that have erred, by cause";
        self.family(&mut encoder, "visits_erred", help, Kind::Counter, &|w| {
            let rows = Failure::LABELS.iter().zip(&w.failures);
            rows.map(|(label, count)| ([("cause", *label)], count.read())).collect()
        })?;
        let help = "Visits that were started and have not ended";
        self.family(&mut encoder, "visits_in_flight", help, Kind::Gauge, &|w| {
            vec![([("peer", "client")], w.in_flight())]
        })?;
        let peer = |name| [("peer", name)];
        self.family(&mut encoder, "connections", "Open connections", Kind::Gauge, &|w| {
            vec![
                (peer("client"), w.connections.read()),
                (peer("counter"), w.counter_connections.read()),
            ]
        })?;
        let help = "Connections accepted from clients";
        self.family(&mut encoder, "connections_accepted", help, Kind::Counter, &|w| {
            vec![(peer("client"), w.accepted.read())]
        })?;
        let help = "Connections of clients closed to make room for others";
        self.family(&mut encoder, "connections_evicted", help, Kind::Counter, &|w| {
            vec![(peer("client"), w.evicted.read())]
        })?;
        let help = "Requests for what is not counted, such as files, answered without a call";
        self.family(&mut encoder, "requests_uncounted", help, Kind::Counter, &|w| {
            vec![(peer("client"), w.uncounted.read())]
        })?;
        let help = "Requests refused as malformed, too large or too slow";
        self.family(&mut encoder, "bad_requests", help, Kind::Counter, &|w| {
            vec![(peer("client"), w.bad_requests.read())]
        })?;
        let help = "Counters that fail: their visits fail at once, but for a probe now and then";
        self.family(&mut encoder, "counters_failing", help, Kind::Gauge, &|w| {
            vec![(peer("counter"), w.counters_failing.read())]
        })?;
        let help = "Panics caught at a task's boundary";
        self.family(&mut encoder, "panics", help, Kind::Counter, &|w| {
            vec![(peer("client"), w.panics.read())]
        })?;
        let help = "1 for the driver that the worker waits on";
        self.family(&mut encoder, "driver", help, Kind::Gauge, &|w| {
            w.driver.get().map(|name| ([("driver", *name)], 1)).into_iter().collect()
        })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

impl Workers {
    fn family(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        kind: Kind,
        rows: Rows<'_>,
    ) -> Result<(), std::fmt::Error> {
        let unit: Option<&Unit> = None;
        let metric_type = match kind {
            Kind::Counter => ConstCounter::new(0u64).metric_type(),
            Kind::Gauge => ConstGauge::new(0i64).metric_type(),
        };
        let mut family = encoder.encode_descriptor(name, help, unit, metric_type)?;
        for (number, worker) in self.0.iter().enumerate() {
            let number = number.to_string();
            for ([label], value) in rows(worker) {
                let labels = [("worker", number.as_str()), label];
                let row = family.encode_family(&labels)?;
                match kind {
                    Kind::Counter => ConstCounter::new(value).encode(row)?,
                    // A gauge is signed; no count of connections comes near the sign.
                    Kind::Gauge => ConstGauge::new(value.cast_signed()).encode(row)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_a_row_for_each_worker_and_label() {
        let worker = Arc::new(WorkerMetrics::default());
        worker.welcomed.increment();
        worker.welcomed.increment();
        worker.connections.increment();
        worker.connections.increment();
        worker.connections.decrement();
        worker.driver.set("epoll").unwrap();
        let mut text = String::new();
        let workers = vec![Arc::new(WorkerMetrics::default()), Arc::clone(&worker)];
        let reloads = ReloadMetrics::started(0);
        let registry = registry(workers.clone(), None, &reloads);
        reloads.failed();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(!text.contains("tallyring_counted_total"), "{text}");
        for row in [
            "tallyring_visits_total{worker=\"0\",outcome=\"welcomed\"} 0",
            "tallyring_visits_total{worker=\"1\",outcome=\"welcomed\"} 2",
            "tallyring_connections{worker=\"1\",peer=\"client\"} 1",
            "tallyring_driver{worker=\"1\",driver=\"epoll\"} 1",
            "tallyring_config_last_reload_successful 0",
            "tallyring_config_reloads_total{outcome=\"failed\"} 1",
            "tallyring_config_reloads_total{outcome=\"ok\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|line| line == row), "no {row:?} in\n{text}");
        }
        assert_eq!(
            Totals::of(&workers),
            Totals { welcomed: 2, connections: 1, ..Default::default() }
        );
    }

    #[test]
    fn the_text_has_the_total_of_a_bundled_counter() {
        let counter = Arc::new(CounterMetrics::default());
        counter.total.set(1_234);
        counter.commits.increment();
        let mut text = String::new();
        let registry = registry(Vec::new(), Some(counter), &ReloadMetrics::started(0));
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for row in [
            "# TYPE tallyring_counted counter",
            "tallyring_counted_total 1234",
            "tallyring_commits_total 1",
        ] {
            assert!(text.lines().any(|line| line == row), "no {row:?} in\n{text}");
        }
    }
}
