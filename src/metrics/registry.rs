//! The counts as Prometheus reads them: their names, help texts and labels.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use super::{Count, CounterMetrics, Failure, ReloadMetrics, WorkerMetrics};

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
    /// Only the counter without a name: callers choose the names, and there may be many.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
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

/// A metric of the workers: a row for each worker and label.
struct WorkerMetric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    rows: fn(&WorkerMetrics) -> Vec<Row>,
}

/// A label and its value, and the count.
type Row = ([(&'static str, &'static str); 1], u64);

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

const WORKER_METRICS: [WorkerMetric; 11] = [
    WorkerMetric {
        name: "visits",
        help: "Visits that have ended, by outcome",
        kind: Kind::Counter,
        rows: visits,
    },
    WorkerMetric {
        name: "visits_erred",
        help: "Visits that have erred, by cause",
        kind: Kind::Counter,
        rows: |worker| {
            let rows = Failure::LABELS.iter().zip(&worker.failures);
            rows.map(|(label, count)| ([("cause", *label)], count.read())).collect()
        },
    },
    WorkerMetric {
        name: "visits_in_flight",
        help: "Visits that were started and have not ended",
        kind: Kind::Gauge,
        rows: |worker| vec![([("peer", "client")], worker.in_flight())],
    },
    WorkerMetric {
        name: "connections",
        help: "Open connections",
        kind: Kind::Gauge,
        rows: |worker| {
            vec![client(&worker.connections), (COUNTER, worker.counter_connections.read())]
        },
    },
    WorkerMetric {
        name: "connections_accepted",
        help: "Connections accepted from clients",
        kind: Kind::Counter,
        rows: |worker| vec![client(&worker.accepted)],
    },
    WorkerMetric {
        name: "connections_evicted",
        help: "Connections of clients closed to make room for others",
        kind: Kind::Counter,
        rows: |worker| vec![client(&worker.evicted)],
    },
    WorkerMetric {
        name: "requests_uncounted",
        help: "Requests for what is not counted, such as files, answered without a call",
        kind: Kind::Counter,
        rows: |worker| vec![client(&worker.uncounted)],
    },
    WorkerMetric {
        name: "bad_requests",
        help: "Requests refused as malformed, too large or too slow",
        kind: Kind::Counter,
        rows: |worker| vec![client(&worker.bad_requests)],
    },
    WorkerMetric {
        name: "counters_failing",
        help: "Counters that fail: their visits fail at once, but for a probe now and then",
        kind: Kind::Gauge,
        rows: |worker| vec![(COUNTER, worker.counters_failing.read())],
    },
    WorkerMetric {
        name: "panics",
        help: "Panics caught at a task's boundary",
        kind: Kind::Counter,
        rows: |worker| vec![client(&worker.panics)],
    },
    WorkerMetric {
        name: "driver",
        help: "1 for the driver that the worker waits on",
        kind: Kind::Gauge,
        rows: |worker| {
            worker.driver.get().map(|name| ([("driver", *name)], 1)).into_iter().collect()
        },
    },
];

const COUNTER: [(&str, &str); 1] = [("peer", "counter")];

fn client(count: &Count) -> Row {
    ([("peer", "client")], count.read())
}

fn visits(worker: &WorkerMetrics) -> Vec<Row> {
    let outcome = |name, count: &Count| ([("outcome", name)], count.read());
    vec![
        outcome("welcomed", &worker.welcomed),
        outcome("erred", &worker.erred),
        outcome("refused", &worker.refused),
        outcome("abandoned", &worker.abandoned),
    ]
}

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        WORKER_METRICS.iter().try_for_each(|metric| self.encode_metric(&mut encoder, metric))
    }
}

impl Workers {
    fn encode_metric(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        metric: &WorkerMetric,
    ) -> Result<(), fmt::Error> {
        let WorkerMetric { name, help, kind, rows } = metric;
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
                    // A gauge is signed; no count gets near its limit.
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
    use crate::metrics::Totals;

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
