//! How the server is at one moment: the value that `/stats` shows as JSON and `/metrics` as text.
//!
//! The names of the fields are those of the JSON, which docs/operating.md describes.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;

use super::{
    Sources, WorkerSource,
    machine::{ContextSwitches, Cpu, Machine, ProcessStats, RingCounts, ThreadStats},
};
use crate::{
    metrics::{BOUNDS, BadRequest, Durations, Failure, UpstreamMetrics, WorkerMetrics},
    runtime::clock,
};

/// Changes when a field changes its meaning or goes; new fields may come without.
const SCHEMA: u32 = 1;

/// With more connections a worker's ring is not asked for its counts. The kernel holds the ring's lock while it writes
/// a line for each operation in it: 10 µs for 64, 80 µs for 256, and 3 ms for 8,000 in Linux 6.18, for which the worker
/// would wait.
const RING_CONNECTIONS_MAX: u64 = 256;

#[derive(Debug, Serialize)]
pub struct Snapshot {
    pub schema: u32,
    /// Since the Unix epoch.
    pub time_seconds: f64,
    pub version: &'static str,
    pub commit: &'static str,
    pub state: &'static str,
    pub ready: bool,
    pub uptime_seconds: f64,
    /// Upper bounds of the buckets of all durations; the last one is infinite.
    pub bucket_bounds_seconds: [Option<f64>; BOUNDS.len()],
    pub totals: Counts,
    pub workers: Vec<WorkerStats>,
    pub counters: Vec<CounterStats>,
    /// `None` where no bundled counter runs.
    pub bundled: Option<BundledStats>,
    /// `None` where no access log is written.
    pub access_log: Option<AccessLogStats>,
    /// `None` where `/proc` cannot be read.
    pub process: Option<ProcessStats>,
}

/// What is counted of a worker, or of all.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    pub visits: Visits,
    pub erred_by_cause: BTreeMap<&'static str, u64>,
    pub requests_uncounted: u64,
    pub bad_requests_by_reason: BTreeMap<&'static str, u64>,
    pub connections: Connections,
    pub panics: u64,
    /// Of visits, from their start to their outcome.
    pub durations: DurationStats,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct Visits {
    pub welcomed: u64,
    pub erred: u64,
    pub refused: u64,
    pub abandoned: u64,
    pub in_flight: u64,
}

/// Connections to clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct Connections {
    pub open: u64,
    pub accepted: u64,
    /// Accepted by this worker, and served by another one, which counts them as accepted.
    pub handed_over: u64,
    /// Left for another worker between two requests.
    pub moved: u64,
    pub evicted: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
pub struct DurationStats {
    pub count: u64,
    pub sum_seconds: f64,
    /// Since the start; `None` without any.
    pub p50_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
    /// How many are in each bucket, without those in the buckets before it.
    pub buckets: [u64; BOUNDS.len()],
    #[serde(skip)]
    pub durations: Durations,
}

#[derive(Debug, Serialize)]
pub struct WorkerStats {
    pub worker: usize,
    pub core: usize,
    pub driver: Option<DriverStats>,
    /// Since the worker last showed that it runs; `None` before it serves.
    pub silent_seconds: Option<f64>,
    pub cpu: Option<Cpu>,
    pub context_switches: Option<ContextSwitches>,
    /// `None` where it is unknown, and while the worker has too many connections to ask.
    pub ring: Option<RingCounts>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Its connections to each counter, in the order of [`Snapshot::counters`].
    pub upstreams: Vec<UpstreamStats>,
}

#[derive(Debug, Serialize)]
pub struct DriverStats {
    pub name: &'static str,
    pub flags: &'static str,
    /// All about it, and why it is not a better one.
    pub description: String,
}

/// The connections to a counter, of one worker or of all.
#[derive(Debug, Default, Serialize)]
pub struct UpstreamStats {
    /// Open, or being opened.
    pub connections: u64,
    pub idle: u64,
    pub dialed: u64,
    pub reused: u64,
    pub queued: u64,
    /// Visits of calls that may register several.
    pub batched_visits: u64,
    /// Visits that went to another counter, since nothing could be sent to this one.
    pub moved: u64,
    /// Workers whose circuit breaker is open.
    pub failing: u64,
    /// How long the call took that was answered last.
    pub last_call_seconds: Option<f64>,
    #[serde(skip)]
    last_answer_micros: u64,
    /// Of calls that were answered, from when they had a connection.
    pub durations: DurationStats,
    /// Of calls that found no connection free, until they had one.
    pub waits: DurationStats,
}

#[derive(Debug, Serialize)]
pub struct CounterStats {
    pub counter: String,
    pub bundled: bool,
    pub addresses: Vec<String>,
    #[serde(flatten)]
    pub upstream: UpstreamStats,
}

#[derive(Debug, Serialize)]
pub struct BundledStats {
    /// Of the counter without a name.
    pub counted: u64,
    pub commits: u64,
    pub commits_failed: u64,
    /// Where its totals are.
    pub store: String,
    /// Why the store fails; `None` while it works.
    pub store_problem: Option<String>,
}

/// Of all workers, in lines.
#[derive(Debug, Serialize)]
pub struct AccessLogStats {
    pub written: u64,
    /// A worker's ring had no room for them.
    pub ring_full: u64,
    /// Their write has failed.
    pub write_failed: u64,
}

impl Snapshot {
    pub(super) fn take(sources: &Sources, machine: Machine) -> Self {
        let counters = sources.counters();
        let places: Vec<usize> = counters.iter().map(|(place, ..)| *place).collect();
        let workers = sources.workers.iter().enumerate();
        let workers: Vec<_> =
            workers.map(|(number, source)| worker(number, source, &places, &machine)).collect();
        let mut totals = Counts::default();
        workers.iter().for_each(|worker| totals.add(&worker.counts));
        let counters = counters.into_iter().enumerate().map(|(row, (_, source, addresses))| {
            let mut upstream = UpstreamStats::default();
            workers
                .iter()
                .filter_map(|worker| worker.upstreams.get(row))
                .for_each(|one| upstream.add(one));
            CounterStats { counter: source.name, bundled: source.bundled, addresses, upstream }
        });
        let counters = counters.collect();
        let (state, ready) = sources.state();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            schema: SCHEMA,
            time_seconds: now.as_secs_f64(),
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("BUILT_COMMIT"),
            state,
            ready,
            uptime_seconds: sources.started.elapsed().as_secs_f64(),
            bucket_bounds_seconds: BOUNDS.map(|bound| bound.is_finite().then_some(bound)),
            totals,
            workers,
            counters,
            bundled: sources.bundled.as_ref().map(|counter| BundledStats {
                counted: counter.metrics.total.read(),
                commits: counter.metrics.commits.read(),
                commits_failed: counter.metrics.commits_failed.read(),
                store: counter.store.clone(),
                store_problem: counter.problem(),
            }),
            access_log: sources.access_log.as_ref().map(|log| AccessLogStats {
                written: log.written.read(),
                ring_full: sources
                    .workers
                    .iter()
                    .map(|worker| worker.metrics.access_log_dropped.read())
                    .sum(),
                write_failed: log.lost.read(),
            }),
            process: machine.process,
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn worker(
    number: usize,
    WorkerSource { core, metrics, intake }: &WorkerSource,
    counters: &[usize],
    machine: &Machine,
) -> WorkerStats {
    let upstreams = metrics.upstreams();
    let upstreams = counters.iter().filter_map(|place| upstreams.get(*place));
    let heartbeat = metrics.heartbeat.read();
    let silent = clock::now().millis().saturating_sub(heartbeat) as f64 / 1e3;
    let thread = machine.threads.get(&format!("worker-{number}")).copied();
    let mut counts = Counts::of(metrics);
    // Those that come are open, and of no other worker any more.
    counts.connections.open += intake.coming();
    let upstreams: Vec<_> = upstreams.map(|upstream| UpstreamStats::of(upstream)).collect();
    let calls: u64 = upstreams.iter().map(|upstream| upstream.connections).sum();
    let ring = metrics.driver.get().and_then(|driver| driver.ring);
    let ring = ring.filter(|_| counts.connections.open + calls <= RING_CONNECTIONS_MAX);
    WorkerStats {
        worker: number,
        core: *core,
        driver: metrics.driver.get().map(|driver| DriverStats {
            name: driver.name,
            flags: driver.flags,
            description: driver.description.clone(),
        }),
        silent_seconds: (heartbeat > 0).then_some(silent),
        cpu: thread.map(|ThreadStats { cpu, .. }| cpu),
        context_switches: thread.and_then(|thread| thread.context_switches),
        ring: ring.and_then(RingCounts::read),
        counts,
        upstreams,
    }
}

impl Counts {
    fn of(worker: &WorkerMetrics) -> Self {
        // Read first: a visit that ends between the reads may be missing, but is not there twice.
        let in_flight = worker.in_flight();
        Self {
            visits: Visits {
                welcomed: worker.welcomed.read(),
                erred: worker.erred.read(),
                refused: worker.refused.read(),
                abandoned: worker.abandoned.read(),
                in_flight,
            },
            erred_by_cause: Failure::LABELS.into_iter().zip(worker.failures()).collect(),
            requests_uncounted: worker.uncounted.read(),
            bad_requests_by_reason: BadRequest::LABELS
                .into_iter()
                .zip(worker.bad_requests())
                .collect(),
            connections: Connections {
                open: worker.connections.read(),
                accepted: worker.accepted.read(),
                handed_over: worker.handed_over.read(),
                moved: worker.moved.read(),
                evicted: worker.evicted.read(),
            },
            panics: worker.panics.read(),
            durations: worker.visit_durations.read().into(),
        }
    }

    fn add(&mut self, other: &Self) {
        let Visits { welcomed, erred, refused, abandoned, in_flight } = other.visits;
        self.visits.welcomed += welcomed;
        self.visits.erred += erred;
        self.visits.refused += refused;
        self.visits.abandoned += abandoned;
        self.visits.in_flight += in_flight;
        add_each(&mut self.erred_by_cause, &other.erred_by_cause);
        self.requests_uncounted += other.requests_uncounted;
        add_each(&mut self.bad_requests_by_reason, &other.bad_requests_by_reason);
        let Connections { open, accepted, handed_over, moved, evicted } = other.connections;
        self.connections.open += open;
        self.connections.accepted += accepted;
        self.connections.handed_over += handed_over;
        self.connections.moved += moved;
        self.connections.evicted += evicted;
        self.panics += other.panics;
        self.durations = self.durations.durations.plus(&other.durations.durations).into();
    }
}

fn add_each(sums: &mut BTreeMap<&'static str, u64>, counts: &BTreeMap<&'static str, u64>) {
    for (label, count) in counts {
        *sums.entry(label).or_default() += count;
    }
}

impl UpstreamStats {
    #[allow(clippy::cast_precision_loss)]
    fn of(upstream: &UpstreamMetrics) -> Self {
        let last_answer_micros = upstream.last_answer_micros.read();
        let last_call_seconds = upstream.last_call_micros.read() as f64 / 1e6;
        Self {
            connections: upstream.connections.read(),
            idle: upstream.idle.read(),
            dialed: upstream.dialed.read(),
            reused: upstream.reused.read(),
            queued: upstream.queued.read(),
            batched_visits: upstream.batched_visits.read(),
            moved: upstream.moved.read(),
            failing: upstream.failing.read(),
            last_call_seconds: (last_answer_micros > 0).then_some(last_call_seconds),
            last_answer_micros,
            durations: upstream.calls.read().into(),
            waits: upstream.waits.read().into(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.idle += other.idle;
        self.dialed += other.dialed;
        self.reused += other.reused;
        self.queued += other.queued;
        self.batched_visits += other.batched_visits;
        self.moved += other.moved;
        self.failing += other.failing;
        if other.last_answer_micros > self.last_answer_micros {
            self.last_answer_micros = other.last_answer_micros;
            self.last_call_seconds = other.last_call_seconds;
        }
        self.durations = self.durations.durations.plus(&other.durations.durations).into();
        self.waits = self.waits.durations.plus(&other.waits.durations).into();
    }
}

impl From<Durations> for DurationStats {
    fn from(durations: Durations) -> Self {
        Self {
            count: durations.count(),
            sum_seconds: durations.sum_seconds(),
            p50_seconds: durations.quantile(0.5),
            p99_seconds: durations.quantile(0.99),
            buckets: durations.buckets,
            durations,
        }
    }
}
