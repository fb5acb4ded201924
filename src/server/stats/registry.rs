//! A snapshot as Prometheus reads it: names, help texts and labels.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::{MetricType, info::Info},
    registry::{Registry, Unit},
};

use super::{
    Snapshot, Sources,
    machine::{ContextSwitches, Cpu, RingCounts},
    snapshot::{AccessLogStats, BundledStats, DurationStats, UpstreamStats, WorkerStats},
};
use crate::metrics::{BOUNDS, ReloadMetrics};

/// A registry that takes a snapshot of the server each time that it is encoded.
pub fn registry(sources: Arc<Sources>, reloads: &ReloadMetrics) -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "tallyring_build",
        "The version that runs",
        Info::new([("version", env!("CARGO_PKG_VERSION")), ("commit", env!("BUILT_COMMIT"))]),
    );
    reloads.register(registry.sub_registry_with_prefix("tallyring"));
    registry.register_collector(Box::new(Stats(sources)));
    registry
}

#[derive(Debug)]
struct Stats(Arc<Sources>);

impl Collector for Stats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.snapshot();
        METRICS.iter().try_for_each(|metric| metric.encode(&mut encoder, &snapshot))
    }
}

/// A metric: a row for each set of labels.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    unit: Option<&'static Unit>,
    rows: fn(&Snapshot) -> Vec<Row>,
}

struct Row {
    labels: Labels,
    value: Value,
}

type Labels = Vec<(&'static str, String)>;

enum Value {
    Count(u64),
    Amount(f64),
    Durations([u64; BOUNDS.len()], f64),
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Metric {
    const fn counter(
        name: &'static str,
        help: &'static str,
        rows: fn(&Snapshot) -> Vec<Row>,
    ) -> Self {
        Self { name, help, kind: Kind::Counter, unit: None, rows }
    }

    const fn gauge(
        name: &'static str,
        help: &'static str,
        rows: fn(&Snapshot) -> Vec<Row>,
    ) -> Self {
        Self { name, help, kind: Kind::Gauge, unit: None, rows }
    }

    const fn histogram(
        name: &'static str,
        help: &'static str,
        rows: fn(&Snapshot) -> Vec<Row>,
    ) -> Self {
        Self { name, help, kind: Kind::Histogram, unit: Some(&Unit::Seconds), rows }
    }

    const fn in_unit(mut self, unit: &'static Unit) -> Self {
        self.unit = Some(unit);
        self
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
        let rows = (self.rows)(snapshot);
        if rows.is_empty() {
            // A family without rows would be a name without a meaning.
            return Ok(());
        }
        let metric_type = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut family = encoder.encode_descriptor(self.name, self.help, self.unit, metric_type)?;
        for Row { labels, value } in rows {
            // A row without labels has no braces either.
            if labels.is_empty() {
                self.encode_value(&value, &mut family)?;
            } else {
                self.encode_value(&value, &mut family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_value(&self, value: &Value, row: &mut MetricEncoder<'_>) -> fmt::Result {
        match (self.kind, value) {
            (Kind::Counter, Value::Count(count)) => {
                row.encode_counter::<NoLabelSet, _, u64>(count, None)
            }
            (Kind::Counter, Value::Amount(amount)) => {
                row.encode_counter::<NoLabelSet, _, u64>(amount, None)
            }
            (_, Value::Count(count)) => row.encode_gauge(count),
            (_, Value::Amount(amount)) => row.encode_gauge(amount),
            (_, Value::Durations(buckets, sum)) => {
                let mut bounded = [(0.0, 0); BOUNDS.len()];
                for (place, row) in bounded.iter_mut().enumerate() {
                    *row = (BOUNDS[place], buckets[place]);
                }
                row.encode_histogram::<NoLabelSet>(*sum, buckets.iter().sum(), &bounded, None)
            }
        }
    }
}

const METRICS: [Metric; 44] = [
    Metric::counter("tallyring_visits", "Visits that have ended, by outcome", |all| {
        of_workers(all, |worker| {
            let visits = &worker.counts.visits;
            let outcomes = [
                ("welcomed", visits.welcomed),
                ("erred", visits.erred),
                ("refused", visits.refused),
                ("abandoned", visits.abandoned),
            ];
            labelled("outcome", outcomes)
        })
    }),
    Metric::counter("tallyring_visits_erred", "Visits that have erred, by cause", |all| {
        of_workers(all, |worker| labelled("cause", worker.counts.erred_by_cause.clone()))
    }),
    Metric::gauge(
        "tallyring_visits_in_flight",
        "Visits that were started and have not ended",
        |all| of_clients(all, |worker| worker.counts.visits.in_flight),
    ),
    Metric::histogram(
        "http_server_request_duration",
        "How long visits took that were answered, from their start to their outcome",
        |all| of_workers(all, |worker| vec![durations(vec![], &worker.counts.durations)]),
    ),
    Metric::gauge("tallyring_connections", "Open connections", |all| {
        of_workers(all, |worker| {
            let to_counters = worker.upstreams.iter().map(|upstream| upstream.connections).sum();
            labelled("peer", [("client", worker.counts.connections.open), ("counter", to_counters)])
        })
    }),
    Metric::counter("tallyring_connections_accepted", "Connections accepted from clients", |all| {
        of_clients(all, |worker| worker.counts.connections.accepted)
    }),
    Metric::counter(
        "tallyring_connections_handed_over",
        "Connections that the worker accepted and handed over to another one",
        |all| of_clients(all, |worker| worker.counts.connections.handed_over),
    ),
    Metric::counter(
        "tallyring_connections_moved",
        "Connections that left the worker for another one between two requests",
        |all| of_clients(all, |worker| worker.counts.connections.moved),
    ),
    Metric::counter(
        "tallyring_connections_evicted",
        "Connections of clients closed to make room for others",
        |all| of_clients(all, |worker| worker.counts.connections.evicted),
    ),
    Metric::counter(
        "tallyring_requests_uncounted",
        "Requests for what is not counted, such as files, answered without a call",
        |all| of_clients(all, |worker| worker.counts.requests_uncounted),
    ),
    Metric::counter("tallyring_bad_requests", "Requests refused, by reason", |all| {
        of_workers(all, |worker| labelled("reason", worker.counts.bad_requests_by_reason.clone()))
    }),
    Metric::counter("tallyring_panics", "Panics caught at a task's boundary", |all| {
        of_clients(all, |worker| worker.counts.panics)
    }),
    Metric::gauge("tallyring_driver", "1 for the driver that the worker waits on", |all| {
        of_workers(all, |worker| {
            let driver = worker.driver.iter();
            driver
                .map(|driver| Row {
                    labels: vec![("driver", driver.name.into()), ("flags", driver.flags.into())],
                    value: Value::Count(1),
                })
                .collect()
        })
    }),
    Metric::counter("tallyring_worker_cpu", "CPU time of the worker's thread", |all| {
        of_workers(all, |worker| worker.cpu.as_ref().map(cpu).unwrap_or_default())
    })
    .in_unit(&Unit::Seconds),
    Metric::counter(
        "tallyring_worker_context_switches",
        "How often the worker's thread gave its core up: voluntarily to wait, or for another thread",
        |all| of_workers(all, |worker| worker.context_switches.map(switches).unwrap_or_default()),
    ),
    Metric::counter(
        "tallyring_ring_submitted",
        "Operations that the worker's ring has given to the kernel, modulo 2^32",
        |all| of_rings(all, |ring| ring.submitted),
    ),
    Metric::counter(
        "tallyring_ring_completed",
        "Completions that the kernel has put into the worker's ring, modulo 2^32",
        |all| of_rings(all, |ring| ring.completed),
    ),
    Metric::gauge(
        "tallyring_worker_silent",
        "Time since the worker last showed that it runs; less than half a second while it is well",
        |all| {
            let silent = |worker: &WorkerStats| {
                let seconds = worker.silent_seconds.into_iter();
                seconds.map(|seconds| amount(vec![], seconds)).collect()
            };
            of_workers(all, silent)
        },
    )
    .in_unit(&Unit::Seconds),
    Metric::gauge(
        "tallyring_counters_failing",
        "Counters that fail: their visits fail at once, but for a probe now and then",
        |all| {
            of_workers(all, |worker| {
                let failing = worker.upstreams.iter().map(|upstream| upstream.failing).sum();
                labelled("peer", [("counter", failing)])
            })
        },
    ),
    Metric::gauge(
        "tallyring_upstream_connections",
        "Connections to the counter, open or being opened",
        |all| of_upstreams(all, |upstream| upstream.connections),
    ),
    Metric::gauge(
        "tallyring_upstream_connections_idle",
        "Connections to the counter without a call",
        |all| of_upstreams(all, |upstream| upstream.idle),
    ),
    Metric::counter(
        "tallyring_upstream_connections_dialed",
        "Connections to the counter that were dialed",
        |all| of_upstreams(all, |upstream| upstream.dialed),
    ),
    Metric::counter(
        "tallyring_upstream_connections_reused",
        "Calls sent over a connection that had carried another one",
        |all| of_upstreams(all, |upstream| upstream.reused),
    ),
    Metric::gauge("tallyring_upstream_calls_queued", "Calls that wait for a connection", |all| {
        of_upstreams(all, |upstream| upstream.queued)
    }),
    Metric::histogram(
        "tallyring_upstream_queue_duration",
        "How long calls waited that found no connection free, until they had one",
        |all| of_upstreams_as(all, |labels, upstream| durations(labels, &upstream.waits)),
    ),
    Metric::counter(
        "tallyring_upstream_batched_visits",
        "Visits that were sent in calls which may register several",
        |all| of_upstreams(all, |upstream| upstream.batched_visits),
    ),
    Metric::counter(
        "tallyring_upstream_visits_moved",
        "Visits that went to another counter, since nothing could be sent to this one",
        |all| of_upstreams(all, |upstream| upstream.moved),
    ),
    Metric::gauge(
        "tallyring_upstream_failing",
        "1 while the visits of this counter fail at once",
        |all| of_upstreams(all, |upstream| upstream.failing),
    ),
    Metric::histogram(
        "http_client_request_duration",
        "How long calls took that the counter answered, from when they had a connection",
        |all| of_upstreams_as(all, |labels, upstream| durations(labels, &upstream.durations)),
    ),
    Metric::counter(
        "tallyring_counted",
        "Total of the bundled counter, without those that have a name; it outlives the process",
        |all| all.bundled.iter().map(|bundled| count(vec![], bundled.counted)).collect(),
    ),
    Metric::counter("tallyring_commits", "Durable commits of the bundled counter", |all| {
        all.bundled.iter().map(|bundled| count(vec![], bundled.commits)).collect()
    }),
    Metric::counter(
        "tallyring_commits_failed",
        "Commits of the bundled counter that its store has failed",
        |all| all.bundled.iter().map(|bundled| count(vec![], bundled.commits_failed)).collect(),
    ),
    Metric::gauge(
        "tallyring_store_failing",
        "1 while the store of the bundled counter fails: nothing is counted there",
        |all| {
            let failing = |bundled: &BundledStats| u64::from(bundled.store_problem.is_some());
            all.bundled.iter().map(|bundled| count(vec![], failing(bundled))).collect()
        },
    ),
    Metric::counter("tallyring_access_log_written", "Lines of the access log written", |all| {
        all.access_log.iter().map(|log| count(vec![], log.written)).collect()
    }),
    Metric::counter(
        "tallyring_access_log_dropped",
        "Requests that are missing in the access log, by reason",
        |all| {
            let reasons = |log: &AccessLogStats| {
                [("ring_full", log.ring_full), ("write_failed", log.write_failed)]
            };
            all.access_log.iter().flat_map(|log| labelled("reason", reasons(log))).collect()
        },
    ),
    Metric::gauge("tallyring_ready", "1 while the server is ready", |all| {
        vec![count(vec![], all.ready.into())]
    }),
    Metric::gauge("tallyring_uptime", "Time since the start", |all| {
        vec![amount(vec![], all.uptime_seconds)]
    })
    .in_unit(&Unit::Seconds),
    Metric::counter("process_cpu", "CPU time of all threads", |all| {
        let used = |cpu: &Cpu| cpu.user_seconds + cpu.system_seconds;
        all.process.iter().map(|process| amount(vec![], used(&process.cpu))).collect()
    })
    .in_unit(&Unit::Seconds),
    Metric::gauge("process_resident_memory", "Memory in use", |all| {
        all.process.iter().map(|process| count(vec![], process.resident_memory_bytes)).collect()
    })
    .in_unit(&Unit::Bytes),
    Metric::gauge("process_virtual_memory", "Address space in use", |all| {
        all.process.iter().map(|process| count(vec![], process.virtual_memory_bytes)).collect()
    })
    .in_unit(&Unit::Bytes),
    Metric::gauge("process_open_fds", "Open files and sockets", |all| {
        all.process.iter().map(|process| count(vec![], process.open_fds)).collect()
    }),
    Metric::gauge("process_max_fds", "Files and sockets that may be open", |all| {
        let limits = all.process.iter().filter_map(|process| process.max_fds);
        limits.map(|limit| count(vec![], limit)).collect()
    }),
    Metric::gauge("process_threads", "Threads", |all| {
        all.process.iter().map(|process| count(vec![], process.threads)).collect()
    }),
    Metric::gauge("process_start_time", "When the process started, since the Unix epoch", |all| {
        all.process.iter().map(|process| amount(vec![], process.start_time_seconds)).collect()
    })
    .in_unit(&Unit::Seconds),
];

fn count(labels: Labels, count: u64) -> Row {
    Row { labels, value: Value::Count(count) }
}

fn amount(labels: Labels, amount: f64) -> Row {
    Row { labels, value: Value::Amount(amount) }
}

fn durations(labels: Labels, durations: &DurationStats) -> Row {
    Row { labels, value: Value::Durations(durations.buckets, durations.sum_seconds) }
}

fn cpu(cpu: &Cpu) -> Vec<Row> {
    let Cpu { user_seconds, system_seconds } = *cpu;
    let modes = [("user", user_seconds), ("system", system_seconds)];
    modes.into_iter().map(|(mode, used)| amount(vec![("mode", mode.into())], used)).collect()
}

fn switches(switches: ContextSwitches) -> Vec<Row> {
    let ContextSwitches { voluntary, involuntary } = switches;
    labelled("kind", [("voluntary", voluntary), ("involuntary", involuntary)])
}

/// A row for each worker whose ring tells of itself.
fn of_rings(all: &Snapshot, number: impl Fn(&RingCounts) -> u32) -> Vec<Row> {
    of_workers(all, |worker| {
        worker.ring.iter().map(|ring| count(vec![], number(ring).into())).collect()
    })
}

/// A row for each value of a label.
fn labelled(
    label: &'static str,
    counts: impl IntoIterator<Item = (&'static str, u64)>,
) -> Vec<Row> {
    counts.into_iter().map(|(value, number)| count(vec![(label, value.into())], number)).collect()
}

/// The rows of each worker.
fn of_workers(all: &Snapshot, rows: impl Fn(&WorkerStats) -> Vec<Row>) -> Vec<Row> {
    let workers = all.workers.iter().flat_map(|worker| {
        let number = worker.worker.to_string();
        rows(worker).into_iter().map(move |mut row| {
            row.labels.insert(0, ("worker", number.clone()));
            row
        })
    });
    workers.collect()
}

/// A row for each worker, about its clients.
fn of_clients(all: &Snapshot, number: impl Fn(&WorkerStats) -> u64) -> Vec<Row> {
    of_workers(all, |worker| labelled("peer", [("client", number(worker))]))
}

/// A row for each worker and counter.
fn of_upstreams(all: &Snapshot, number: impl Fn(&UpstreamStats) -> u64) -> Vec<Row> {
    of_upstreams_as(all, |labels, upstream| count(labels, number(upstream)))
}

fn of_upstreams_as(all: &Snapshot, row: impl Fn(Labels, &UpstreamStats) -> Row) -> Vec<Row> {
    of_workers(all, |worker| {
        let upstreams = all.counters.iter().zip(&worker.upstreams);
        upstreams
            .map(|(counter, upstream)| row(vec![("counter", counter.counter.clone())], upstream))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        counter::store::Health,
        metrics::{CounterMetrics, DriverInfo, Totals, WorkerMetrics},
        runtime::clock,
        server::stats::{BundledSource, CounterSource, WorkerSource},
    };

    fn text_of(
        workers: &[&Arc<WorkerMetrics>],
        bundled: Option<BundledSource>,
        reloads: &ReloadMetrics,
    ) -> String {
        let source = |(core, metrics): (usize, &&Arc<WorkerMetrics>)| WorkerSource {
            core,
            metrics: Arc::clone(metrics),
            intake: Arc::default(),
        };
        let name = String::from("counter:80");
        let sources = Sources {
            readiness: Arc::default(),
            started: Instant::now(),
            workers: workers.iter().enumerate().map(source).collect(),
            counters: vec![CounterSource { name, bundled: false, is_address: false }],
            addresses: Arc::default(),
            bundled,
            access_log: None,
        };
        let mut text = String::new();
        let registry = registry(Arc::new(sources), reloads);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[track_caller]
    fn check(text: &str, row: &str) {
        assert!(text.lines().any(|line| line == row), "no {row:?} in\n{text}");
    }

    #[test]
    fn the_text_has_a_row_for_each_worker_and_label() {
        let worker = Arc::new(WorkerMetrics::default());
        worker.welcomed.increment();
        worker.welcomed.increment();
        worker.connections.increment();
        worker.connections.increment();
        worker.connections.decrement();
        worker.refuse_request(431);
        worker.visit_durations.add(100);
        worker.visit_durations.add(70_000);
        let upstream = worker.add_upstream();
        upstream.idle.set(3);
        upstream.calls.add(50);
        upstream.waits.add(70);
        let (name, flags) = ("io_uring", "coop_taskrun,single_issuer");
        let driver = DriverInfo { name, flags, description: String::new(), ring: None };
        worker.driver.set(driver).unwrap();
        let other = Arc::default();
        let reloads = ReloadMetrics::started(0);
        reloads.failed();
        let text = text_of(&[&other, &worker], None, &reloads);
        assert!(!text.contains("tallyring_counted"), "{text}");
        for row in [
            "tallyring_visits_total{worker=\"0\",outcome=\"welcomed\"} 0",
            "tallyring_visits_total{worker=\"1\",outcome=\"welcomed\"} 2",
            "tallyring_connections{worker=\"1\",peer=\"client\"} 1",
            "tallyring_bad_requests_total{worker=\"1\",reason=\"too_large\"} 1",
            "tallyring_bad_requests_total{worker=\"1\",reason=\"malformed\"} 0",
            "tallyring_driver{worker=\"1\",driver=\"io_uring\",flags=\"coop_taskrun,single_issuer\"} 1",
            "tallyring_upstream_connections_idle{worker=\"1\",counter=\"counter:80\"} 3",
            "# TYPE http_server_request_duration_seconds histogram",
            "http_server_request_duration_seconds_sum{worker=\"1\"} 0.0701",
            "http_server_request_duration_seconds_count{worker=\"1\"} 2",
            "http_server_request_duration_seconds_bucket{le=\"0.000064\",worker=\"1\"} 0",
            "http_server_request_duration_seconds_bucket{le=\"0.000128\",worker=\"1\"} 1",
            "http_server_request_duration_seconds_bucket{le=\"+Inf\",worker=\"1\"} 2",
            "http_client_request_duration_seconds_count{worker=\"1\",counter=\"counter:80\"} 1",
            "tallyring_upstream_queue_duration_seconds_count{worker=\"1\",counter=\"counter:80\"} 1",
            "tallyring_config_last_reload_successful 0",
            "tallyring_config_reloads_total{outcome=\"failed\"} 1",
            "tallyring_config_reloads_total{outcome=\"ok\"} 0",
            "tallyring_ready 0",
            "# TYPE process_open_fds gauge",
            "# EOF",
        ] {
            check(&text, row);
        }
        let totals = Totals::of(&[other, worker]);
        assert_eq!(totals, Totals { welcomed: 2, connections: 1, ..Default::default() });
    }

    #[test]
    fn the_text_has_the_total_of_a_bundled_counter() {
        let counter = Arc::new(CounterMetrics::default());
        counter.total.set(1_234);
        counter.commits.increment();
        counter.commits_failed.set(2);
        let health = Health::default();
        let text = || {
            let (metrics, health) = (Arc::clone(&counter), health.clone());
            let source = BundledSource { metrics, store: String::from("memory"), health };
            text_of(&[], Some(source), &ReloadMetrics::started(0))
        };
        for row in [
            "# TYPE tallyring_counted counter",
            "tallyring_counted_total 1234",
            "tallyring_commits_total 1",
            "tallyring_commits_failed_total 2",
            "# TYPE tallyring_store_failing gauge",
            "tallyring_store_failing 0",
        ] {
            check(&text(), row);
        }
        assert!(health.fails("the disk is full"));
        check(&text(), "tallyring_store_failing 1");
        assert!(health.works());
        // A commit that has just begun, and one that hangs.
        let now = clock::now();
        counter.committing_since.set(now.millis());
        check(&text(), "tallyring_store_failing 0");
        counter.committing_since.set(now.before(Duration::from_secs(3600)).millis().max(1));
        check(&text(), "tallyring_store_failing 1");
    }
}
