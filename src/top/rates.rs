//! What has happened between two answers: rates, shares of a core, quantiles. Pure.

use super::figures::{Counts, Cpu, Durations, Figures, Upstream, Worker};
use crate::metrics::quantile;

/// A worker that has not shown for this long that it runs is told of.
pub const SILENT_SECONDS: f64 = 2.0;

/// A server as it is shown. A rate is `None` before there are two answers.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub version: String,
    pub uptime_seconds: f64,
    /// What an operator must see at once; empty while all is well.
    pub alarms: Vec<String>,
    pub total: Total,
    pub workers: Vec<WorkerView>,
    pub counters: Vec<CounterView>,
    /// Total and commits a second of the bundled counter.
    pub bundled: Option<(u64, Option<f64>)>,
    pub memory_bytes: Option<u64>,
}

/// All workers together.
#[derive(Debug, Clone, PartialEq)]
pub struct Total {
    pub outcomes: [Outcome; 4],
    pub in_flight: u64,
    pub visits_per_second: Option<f64>,
    /// Not welcomed.
    pub failed_per_second: Option<f64>,
    pub latency: Latency,
    pub clients: u64,
    pub accepted_per_second: Option<f64>,
    pub evicted: u64,
    pub bad_requests: u64,
    pub panics: u64,
    /// Why visits have erred, with how many; those causes that have any.
    pub causes: Vec<(String, u64)>,
    pub load: Option<Load>,
    /// CPU time of the workers for each visit.
    pub cpu_per_visit: Option<f64>,
}

/// Visits that have ended in one way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    pub name: &'static str,
    pub count: u64,
    pub per_second: Option<f64>,
}

/// What durations do not exceed, in seconds. `None` without any.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

/// CPU time as a share of a core: 1 is all of one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    pub user: f64,
    pub system: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WorkerView {
    pub worker: usize,
    pub core: usize,
    pub driver: String,
    /// How long it has not shown that it runs, if that is too long.
    pub silent: Option<f64>,
    pub visits_per_second: Option<f64>,
    pub in_flight: u64,
    pub clients: u64,
    pub load: Option<Load>,
    pub latency: Latency,
    pub upstream_connections: u64,
    pub queued: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CounterView {
    pub name: String,
    pub bundled: bool,
    /// How many of how many workers find that it fails.
    pub failing: (u64, usize),
    pub connections: u64,
    pub idle: u64,
    pub queued: u64,
    pub last_call: Option<f64>,
    pub latency: Latency,
    pub wait_p99: Option<f64>,
}

impl View {
    /// `later` as it is, with its rates since `recent`, and its CPU time and quantiles since `earlier`. Both are of the
    /// same run as `later`.
    pub fn new(later: &Figures, recent: Option<&Figures>, earlier: Option<&Figures>) -> Self {
        let bounds: Vec<f64> = later
            .bucket_bounds_seconds
            .iter()
            .map(|bound| bound.unwrap_or(f64::INFINITY))
            .collect();
        let spans = Spans {
            recent: recent.map(|recent| later.uptime_seconds - recent.uptime_seconds),
            earlier: earlier.map(|earlier| later.uptime_seconds - earlier.uptime_seconds),
            bounds,
        };
        let workers = later.workers.iter().enumerate().map(|(place, worker)| {
            let recent = recent.and_then(|recent| recent.workers.get(place));
            let earlier = earlier.and_then(|earlier| earlier.workers.get(place));
            spans.worker(worker, recent, earlier)
        });
        let counters = later.counters.iter().enumerate().map(|(place, counter)| {
            let earlier = earlier.and_then(|earlier| earlier.counters.get(place));
            let calls = earlier.map(|earlier| &earlier.upstream);
            CounterView {
                name: counter.counter.clone(),
                bundled: counter.bundled,
                failing: (counter.upstream.failing, later.workers.len()),
                ..spans.counter(&counter.upstream, calls)
            }
        });
        let commits =
            |figures: &Figures| figures.bundled.as_ref().map_or(0, |bundled| bundled.commits);
        Self {
            version: later.version.clone(),
            uptime_seconds: later.uptime_seconds,
            alarms: alarms(later),
            total: spans.total(later, recent, earlier),
            workers: workers.collect(),
            counters: counters.collect(),
            bundled: later.bundled.as_ref().map(|bundled| {
                let before = recent.map(commits);
                (bundled.counted, spans.rate(bundled.commits, before))
            }),
            memory_bytes: later.process.map(|process| process.resident_memory_bytes),
        }
    }
}

/// What an operator must see at once.
fn alarms(figures: &Figures) -> Vec<String> {
    let mut alarms = Vec::new();
    if figures.state != "serving" {
        alarms.push(format!("it is {}", figures.state));
    }
    let silent =
        figures.workers.iter().filter_map(|worker| Some((worker.worker, silence(worker)?)));
    let mut silent: Vec<_> = silent.collect();
    silent.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    match silent.as_slice() {
        [] => {}
        [(worker, seconds)] => alarms.push(format!("worker {worker} is silent for {seconds:.0} s")),
        [(worker, seconds), ..] => {
            let count = silent.len();
            alarms.push(format!("{count} workers are silent, {worker} for {seconds:.0} s"));
        }
    }
    let store_problem =
        figures.bundled.as_ref().and_then(|bundled| bundled.store_problem.as_deref());
    if let Some(problem) = store_problem {
        alarms.push(format!("the store of the bundled counter fails: {problem}"));
    }
    for counter in &figures.counters {
        let is_told = counter.bundled && store_problem.is_some();
        if counter.upstream.failing > 0 && !is_told {
            alarms.push(format!("the counter {} fails", counter.counter));
        }
    }
    if alarms.is_empty() && !figures.ready {
        alarms.push(String::from("it is not ready"));
    }
    alarms
}

/// How long a worker has not shown that it runs, if that is too long.
fn silence(worker: &Worker) -> Option<f64> {
    worker.silent_seconds.filter(|seconds| *seconds > SILENT_SECONDS)
}

/// Between which answers things are compared, in seconds.
struct Spans {
    recent: Option<f64>,
    earlier: Option<f64>,
    /// Of the buckets of durations; the last one is infinite.
    bounds: Vec<f64>,
}

impl Spans {
    /// How often a second, since the recent answer.
    #[allow(clippy::cast_precision_loss)]
    fn rate(&self, later: u64, before: Option<u64>) -> Option<f64> {
        let (span, before) = self.recent.zip(before)?;
        (span > 0.0).then(|| later.saturating_sub(before) as f64 / span)
    }

    fn load(&self, later: Option<Cpu>, before: Option<Cpu>) -> Option<Load> {
        let (span, (later, before)) = self.earlier.zip(later.zip(before))?;
        let share = |later: f64, before: f64| (later - before).max(0.0) / span;
        (span > 0.0).then(|| Load {
            user: share(later.user_seconds, before.user_seconds),
            system: share(later.system_seconds, before.system_seconds),
        })
    }

    fn latency(&self, later: &Durations, before: Option<&Durations>) -> Latency {
        let Some(before) = before else { return Latency::default() };
        let pairs = later.buckets.iter().zip(&before.buckets);
        let between: Vec<u64> =
            pairs.map(|(later, before)| later.saturating_sub(*before)).collect();
        let quantile = |share| quantile(&between, &self.bounds, share);
        Latency { p50: quantile(0.5), p99: quantile(0.99) }
    }

    fn worker(
        &self,
        later: &Worker,
        recent: Option<&Worker>,
        earlier: Option<&Worker>,
    ) -> WorkerView {
        let counts = &later.counts;
        let before = recent.map(|recent| recent.counts.visits.ended());
        let durations = earlier.map(|earlier| &earlier.counts.durations);
        WorkerView {
            worker: later.worker,
            core: later.core,
            driver: later.driver.as_ref().map(|driver| driver.name.clone()).unwrap_or_default(),
            silent: silence(later),
            visits_per_second: self.rate(counts.visits.ended(), before),
            in_flight: counts.visits.in_flight,
            clients: counts.connections.open,
            load: self.load(later.cpu, earlier.and_then(|earlier| earlier.cpu)),
            latency: self.latency(&counts.durations, durations),
            upstream_connections: later.upstreams.iter().map(|one| one.connections).sum(),
            queued: later.upstreams.iter().map(|one| one.queued).sum(),
        }
    }

    fn counter(&self, later: &Upstream, earlier: Option<&Upstream>) -> CounterView {
        CounterView {
            name: String::new(),
            bundled: false,
            failing: (0, 0),
            connections: later.connections,
            idle: later.idle,
            queued: later.queued,
            last_call: later.last_call_seconds,
            latency: self.latency(&later.durations, earlier.map(|earlier| &earlier.durations)),
            wait_p99: self.latency(&later.waits, earlier.map(|earlier| &earlier.waits)).p99,
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn total(&self, later: &Figures, recent: Option<&Figures>, earlier: Option<&Figures>) -> Total {
        let counts = &later.totals;
        let before = recent.map(|recent| &recent.totals);
        let outcomes = outcomes(counts).map(|(name, count)| {
            let before = before.map(|before| {
                let same = outcomes(before).into_iter().find(|(other, _)| *other == name);
                same.map_or(0, |(_, count)| count)
            });
            Outcome { name, count, per_second: self.rate(count, before) }
        });
        let loads = later.workers.iter().enumerate().map(|(place, worker)| {
            let before = earlier.and_then(|earlier| earlier.workers.get(place)?.cpu);
            self.load(worker.cpu, before)
        });
        let load = loads.sum::<Option<Load>>();
        let visits = earlier.map(|earlier| {
            counts.visits.ended().saturating_sub(earlier.totals.visits.ended()) as f64
        });
        let used = load.zip(self.earlier).map(|(load, span)| (load.user + load.system) * span);
        let cpu_per_visit = used.zip(visits).filter(|(_, visits)| *visits > 0.0);
        let failed = |counts: &Counts| counts.visits.ended() - counts.visits.welcomed;
        Total {
            outcomes,
            in_flight: counts.visits.in_flight,
            visits_per_second: self
                .rate(counts.visits.ended(), before.map(|before| before.visits.ended())),
            failed_per_second: self.rate(failed(counts), before.map(failed)),
            latency: self
                .latency(&counts.durations, earlier.map(|earlier| &earlier.totals.durations)),
            clients: counts.connections.open,
            accepted_per_second: self.rate(
                counts.connections.accepted,
                before.map(|before| before.connections.accepted),
            ),
            evicted: counts.connections.evicted,
            bad_requests: counts.bad_requests_by_reason.values().sum(),
            panics: counts.panics,
            causes: causes(counts),
            load,
            cpu_per_visit: cpu_per_visit.map(|(used, visits)| used / visits),
        }
    }
}

const fn outcomes(counts: &Counts) -> [(&'static str, u64); 4] {
    let visits = &counts.visits;
    [
        ("welcomed", visits.welcomed),
        ("erred", visits.erred),
        ("refused", visits.refused),
        ("abandoned", visits.abandoned),
    ]
}

/// The causes that have occurred, the most frequent first.
fn causes(counts: &Counts) -> Vec<(String, u64)> {
    let there = counts.erred_by_cause.iter().filter(|(_, count)| **count > 0);
    let mut causes: Vec<_> = there.map(|(cause, count)| (cause.clone(), *count)).collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    causes
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        loads.fold(Self::default(), |sum, load| Self {
            user: sum.user + load.user,
            system: sum.system + load.system,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::figures::{Bundled, tests::figures};

    /// After two seconds of work by the first worker.
    fn later() -> Figures {
        let mut later = figures();
        later.uptime_seconds += 2.0;
        let counts = [&mut later.totals, &mut later.workers[0].counts];
        for counts in counts {
            counts.visits.welcomed = 150;
            counts.visits.erred = 50;
            counts.visits.in_flight = 3;
            counts.erred_by_cause.insert(String::from("timeout"), 50);
            counts.connections.open = 8;
            counts.connections.accepted = 10;
            // 100 of 64 to 128 µs, 100 of 1 to 2 ms.
            counts.durations.buckets[1] = 100;
            counts.durations.buckets[5] = 100;
        }
        later.workers[0].cpu = Some(Cpu { user_seconds: 1.5, system_seconds: 3.5 });
        later.workers[0].upstreams[0].connections = 4;
        later.counters[0].upstream.waits.buckets[0] = 1;
        later
    }

    fn near(value: Option<f64>, expected: f64) {
        assert!(value.is_some_and(|value| (value - expected).abs() < 1e-9), "{value:?}");
    }

    #[test]
    fn rates_are_of_the_time_between_two_answers() {
        let (earlier, later) = (figures(), later());
        let View { total, workers, counters, .. } =
            View::new(&later, Some(&earlier), Some(&earlier));
        near(total.visits_per_second, 100.0);
        near(total.failed_per_second, 25.0);
        near(total.accepted_per_second, 5.0);
        near(total.outcomes[0].per_second, 75.0);
        near(total.outcomes[2].per_second, 0.0);
        assert_eq!((total.in_flight, total.clients), (3, 8));
        assert_eq!(total.causes, [(String::from("timeout"), 50)]);
        // Two seconds of CPU time for 200 visits.
        near(total.cpu_per_visit, 0.01);
        let load = total.load.unwrap();
        near(Some(load.user), 0.25);
        near(Some(load.system), 0.75);
        let latency = total.latency;
        assert!(latency.p50.is_some_and(|p50| (0.000_064..=0.000_128).contains(&p50)));
        assert!(latency.p99.is_some_and(|p99| (0.001_024..=0.002_048).contains(&p99)));
        near(workers[0].visits_per_second, 100.0);
        near(workers[1].visits_per_second, 0.0);
        assert_eq!(workers[0].latency, latency);
        assert_eq!(workers[1].latency, Latency::default());
        assert_eq!((workers[0].upstream_connections, workers[1].upstream_connections), (4, 0));
        assert!(counters[0].wait_p99.is_some() && counters[0].latency.p50.is_none());
    }

    #[test]
    fn one_answer_has_no_rates() {
        let View { total, workers, .. } = View::new(&later(), None, None);
        assert_eq!(total.outcomes[0].count, 150);
        assert_eq!((total.visits_per_second, total.cpu_per_visit), (None, None));
        assert_eq!((total.load, total.latency), (None, Latency::default()));
        assert_eq!((workers[0].visits_per_second, workers[0].load), (None, None));
    }

    #[test]
    fn without_visits_there_is_no_cpu_time_of_a_visit() {
        let (earlier, mut later) = (figures(), figures());
        later.uptime_seconds += 1.0;
        let View { total, .. } = View::new(&later, Some(&earlier), Some(&earlier));
        near(total.visits_per_second, 0.0);
        assert_eq!(total.cpu_per_visit, None);
    }

    #[track_caller]
    fn check_alarms(change: impl FnOnce(&mut Figures), expected: &[&str]) {
        let mut figures = figures();
        change(&mut figures);
        assert_eq!(alarms(&figures), expected);
    }

    #[test]
    fn what_is_wrong_is_an_alarm() {
        check_alarms(|_| {}, &[]);
        check_alarms(|all| all.workers[1].silent_seconds = Some(2.0), &[]);
        check_alarms(|all| all.workers[1].silent_seconds = None, &[]);
        check_alarms(
            |all| all.workers[1].silent_seconds = Some(3.2),
            &["worker 1 is silent for 3 s"],
        );
        check_alarms(
            |all| {
                all.workers[0].silent_seconds = Some(4.0);
                all.workers[1].silent_seconds = Some(9.0);
            },
            &["2 workers are silent, 1 for 9 s"],
        );
        check_alarms(
            |all| {
                all.state = String::from("stopping");
                all.ready = false;
                all.counters[0].upstream.failing = 1;
            },
            &["it is stopping", "the counter 10.0.0.5:3001 fails"],
        );
        check_alarms(|all| all.ready = false, &["it is not ready"]);
        let with_store = |all: &mut Figures, problem: Option<&str>| {
            let store_problem = problem.map(str::to_owned);
            all.bundled = Some(Bundled { counted: 1, commits: 1, store_problem });
            all.counters[0].bundled = true;
        };
        check_alarms(|all| with_store(all, None), &[]);
        // Its counter fails too, which needs no word.
        check_alarms(
            |all| {
                with_store(all, Some("the disk is full"));
                all.counters[0].upstream.failing = 1;
            },
            &["the store of the bundled counter fails: the disk is full"],
        );
    }
}
